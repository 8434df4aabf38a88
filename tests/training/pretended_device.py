"""A GPU that is not there: code runs with device="cuda" on any machine, and what a GPU would do of it is told.

    with PretendedDevice() as gpu:
        task = ...  # on torch.device("cuda")
        method.fit(task)
    gpu.kernels["_run_epoch"], gpu.waits["_run_epoch"]

A tensor on it says that it is on cuda:0 and holds its values on the CPU, so what is computed is real. Meanwhile every
operation is looked at:
- one that CUDA would refuse raises `MixedDevicesError`: tensors of two devices, a generator of another device, numpy;
- one for which the host would wait for the device is noted, with the file and line that asked for it;
- what was copied on a stream of its own and is read before that was waited for raises `NotCopiedYetError`;
- kernels are counted, by a table of what is not one kernel; an operation that the table does not know counts as one;
- autocast casts what torch's does on CUDA, so that mixed types are found and its casts are counted.

What it cannot see: numerics and memory of a GPU, streams but for those copies, and how long anything takes. Kernels are
estimates.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda:0")
SORTED = 8  # kernels of what sorts its indices first

NO_KERNEL = {
    "view", "_unsafe_view", "_reshape_alias", "view_as", "t", "transpose", "permute", "movedim", "expand",
    "as_strided", "slice", "select", "narrow", "unsqueeze", "squeeze", "split", "split_with_sizes", "unsafe_split",
    "chunk", "unbind", "diagonal", "unfold", "alias", "detach", "detach_", "lift_fresh", "empty", "empty_like",
    "empty_strided", "new_empty", "new_empty_strided", "set_", "is_same_size", "is_pinned", "_local_scalar_dense",
}  # fmt: skip
KERNELS = {  # of an operation that is not one
    "convolution": 2, "convolution_backward": 3, "randperm": 5, "sort": 4, "argsort": 4, "cumsum": 2, "nonzero": 4,
    "bincount": 4, "_unique2": 8, "scatter_add": 2, "scatter_reduce": 2, "index_put": 2, "index_put_": 1,
    "_index_put_impl_": 1, "native_layer_norm_backward": 2, "embedding_dense_backward": 2,
}  # fmt: skip
READS = {  # from the device, openly or inside
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "histc", "is_nonzero", "equal", "repeat_interleave",
}  # fmt: skip
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
# of autocast's lists, what networks and losses here meet: which computes in the low precision, and which in float32
LOWERED = {
    "linear", "conv1d", "conv2d", "conv3d", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm",
    "scaled_dot_product_attention",
}  # fmt: skip
RAISED = {
    "softmax", "log_softmax", "cross_entropy", "nll_loss", "layer_norm", "logsumexp", "exp", "expm1", "log",
    "log1p", "pow", "__pow__", "norm", "sum", "prod", "cumsum", "cosine_similarity", "softplus",
}  # fmt: skip


class MixedDevicesError(RuntimeError):
    """CUDA would have refused it."""


class NotCopiedYetError(RuntimeError):
    """On a GPU other numbers would have been read, now and then."""


class Stream:
    """A queue of a GPU. What is copied on one is there for others once they wait for an event that came after it."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.copied: list[DeviceTensor] = []

    def record_event(self) -> list[DeviceTensor]:
        return list(self.copied)

    def wait_event(self, event: list[DeviceTensor]) -> None:
        for tensor in event:
            tensor.lacks -= {"wait_event"}


class DeviceTensor(Tensor):
    """A tensor on the pretended device. For torch's own code it has a form alone; `held` has its values.

    `lacks`: what is still to be called before it may be read, as it was copied on a stream of its own.
    """

    held: Tensor
    lacks: frozenset[str] = frozenset()

    @staticmethod
    def __new__(cls, held: Tensor) -> DeviceTensor:
        form = torch.empty_strided(held.size(), held.stride(), dtype=held.dtype, device="meta")
        self = Tensor._make_subclass(cls, form, False, device_for_backend_keys=CUDA)
        self.held = held
        return self

    device = property(lambda _: CUDA)
    is_cuda = property(lambda _: True)
    is_cpu = is_meta = property(lambda _: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        assert PretendedDevice.current is not None, "a tensor of the pretended device is used outside of it"
        with PretendedDevice.current.mode:
            return operation(*args, **(kwargs or {}))

    def __deepcopy__(self, memo):
        return self.detach().clone().requires_grad_(self.requires_grad)

    def numpy(self, *_, **__):
        raise MixedDevicesError("numpy of a tensor on cuda:0")

    __array__ = numpy

    def record_stream(self, _):
        self.lacks -= {"record_stream"}

    def tolist(self):
        return self.cpu().tolist()

    def new_tensor(self, data, *, dtype=None, device=None):
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or CUDA)

    def __repr__(self, **_):
        return f"DeviceTensor({self.held!r})"


class PretendedDevice:
    """See the module.

    Attributes:
        free: bytes of its memory, by which data are placed there or stay on the host.
        operations, kernels: phase -> operation -> how many.
        waits: phase -> (what, file:line) -> how often the host would wait for the device.
        phases: names of functions; what is done counts for the innermost of them that it is called below, else for "".
    """

    current: PretendedDevice | None = None

    def __init__(self, *phases: str, free: int = 2**36) -> None:
        self.phases, self.free = {"_run_epoch", *phases}, free
        self.operations: dict[str, Counter[str]] = defaultdict(Counter)
        self.kernels: dict[str, Counter[str]] = defaultdict(Counter)
        self.waits: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        self.mode = _Watch(self)
        self._device_seeds: set[int] = set()  # of generators on the device: all that torch hands on of one
        self._patches = contextlib.ExitStack()
        self.computing, self._stream = Stream(), threading.local()

    def __enter__(self) -> PretendedDevice:
        for owner, name, pretended in self._pretended():
            self._patches.enter_context(mock.patch.object(owner, name, pretended, create=True))
        # else Module.to would put the form of the new tensor into the old parameter
        future = torch.__future__
        self._patches.callback(
            future.set_overwrite_module_params_on_conversion, future.get_overwrite_module_params_on_conversion()
        )
        future.set_overwrite_module_params_on_conversion(True)
        PretendedDevice.current = self
        self._patches.enter_context(self.mode)
        self._patches.enter_context(_Casts())
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()
        PretendedDevice.current = None

    @staticmethod
    def outside() -> contextlib.AbstractContextManager[None]:
        """For what uses torch's own meta device, such as the loading of an encoder: nothing is pretended meanwhile."""
        return _disable_current_modes()

    # ---- what is pretended ------------------------------------------------------------------------------------------

    def _pretended(self):
        """(owner, name, what stands there instead)."""
        owner = self
        plain = SimpleNamespace(
            Generator=torch.Generator, to=Tensor.to, submit=ThreadPoolExecutor.submit,
            tensor=torch.tensor, as_tensor=torch.as_tensor, empty=torch.empty,
        )  # fmt: skip

        class Generator(plain.Generator):
            """On the CPU, whatever it says."""

            def __new__(cls, device="cpu"):
                self = super().__new__(cls)
                self.kind = torch.device(device).type
                return self

            def __init__(self, device="cpu"):
                pass

            device = property(lambda self: CUDA if self.kind == "cuda" else torch.device("cpu"))

            def manual_seed(self, seed):
                super().manual_seed(seed)
                (owner._device_seeds.add if self.kind == "cuda" else owner._device_seeds.discard)(self.initial_seed())
                return self

        def with_index(value):
            return CUDA if isinstance(value, str | torch.device) and torch.device(value).type == "cuda" else value

        def to(self, *args, **kwargs):
            return plain.to(self, *map(with_index, args), **{key: with_index(value) for key, value in kwargs.items()})

        def made_there(make):  # from plain values: on the host first, and then copied
            def made(data, *, device=None, **options):
                value = make(data, **options)
                return value if device is None else value.to(device)

            return made

        def pinned(self):
            copy = self.clone()
            copy.is_page_locked = True
            return copy

        def empty(*size, pin_memory=False, **options):
            made = plain.empty(*size, **options)
            if pin_memory:
                made.is_page_locked = True
            return made

        @contextlib.contextmanager
        def on_stream(stream):
            owner._stream.now = stream
            try:
                yield
            finally:
                owner._stream.now = owner.computing

        def submit(pool, function, /, *args, **kwargs):  # modes belong to a thread
            def watched():
                with _Watch(owner):
                    return function(*args, **kwargs)

            is_watched = any(isinstance(mode, _Watch) for mode in _get_current_dispatch_mode_stack())
            return plain.submit(pool, watched) if is_watched else plain.submit(pool, function, *args, **kwargs)

        generator = Generator("cuda")
        cuda = {
            "_lazy_init": None, "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
            "set_device": None, "is_current_stream_capturing": False, "mem_get_info": (self.free, 2**37),
            "get_device_name": "a pretended GPU", "empty_cache": None, "reset_peak_memory_stats": None,
            "max_memory_allocated": 0, "is_bf16_supported": True,
        }  # fmt: skip
        yield from ((torch.cuda, name, lambda *_, value=value, **__: value) for name, value in cuda.items())
        yield torch.cuda, "synchronize", lambda *_: self._note_wait("torch.cuda.synchronize")
        yield torch.cuda, "default_generators", (generator,)
        yield torch.cuda, "get_rng_state", lambda *_: generator.get_state()
        yield torch.cuda, "set_rng_state", lambda state, *_: generator.set_state(state)
        yield torch.cuda, "Stream", Stream
        yield torch.cuda, "stream", on_stream
        yield torch.cuda, "current_stream", lambda *_: self._current_stream()
        yield torch.cuda, "device", lambda *_: contextlib.nullcontext()
        yield torch, "empty", empty
        yield torch.accelerator, "current_device_index", lambda: 0
        yield torch.accelerator, "current_stream", lambda *_: SimpleNamespace(is_capturing=lambda: False)
        yield torch, "Generator", Generator
        yield torch, "tensor", made_there(plain.tensor)
        yield torch, "as_tensor", made_there(plain.as_tensor)
        yield Tensor, "to", to
        yield Tensor, "pin_memory", pinned
        yield ThreadPoolExecutor, "submit", submit

    # ---- every operation --------------------------------------------------------------------------------------------

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Look at an operation, and carry it out on the CPU."""
        leaves = [*_leaves(args), *kwargs.values()]
        tensors = [leaf for leaf in leaves if isinstance(leaf, DeviceTensor)]
        made_there = kwargs.get("device") is not None and torch.device(kwargs["device"]).type in ("cuda", "meta")
        if not tensors and not made_there:
            return operation(*args, **kwargs)
        name = operation._schema.name.removeprefix("aten::")
        for tensor in tensors:
            if tensor.lacks:
                raise NotCopiedYetError(f"{name}: {' and '.join(sorted(tensor.lacks))} is missing ({self._place()})")
        if name in ("_to_copy", "copy_"):
            return self._copy(name, args, kwargs)
        hosts = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, DeviceTensor)]
        self._check_devices(name, args, kwargs, hosts)
        self._count(name, _kernels_of(name, args, kwargs))
        if name in READS or any(one.dtype in (torch.bool, torch.uint8) for one in _indices_of(name, args)):
            self._note_wait(name)
        if made_there:
            kwargs["device"] = torch.device("cpu")
        known = {id(tensor.held): tensor for tensor in tensors}  # what an operation in place returns is its argument

        def on_device(value):
            if not isinstance(value, Tensor):
                return value
            return known[id(value)] if id(value) in known else DeviceTensor(value)

        return _mapped(on_device, operation(*_mapped(_held, args), **_mapped(_held, kwargs)))

    def _check_devices(self, name, args, kwargs, hosts) -> None:
        """Refuse what CUDA would. A number on the host may stand anywhere, and so may indices into the device."""
        generator = kwargs.get("generator")
        if generator is not None and generator.initial_seed() not in self._device_seeds:
            raise MixedDevicesError(f"{name}: a generator of the CPU ({self._place()})")
        if name in INDEXED and isinstance(args[0], DeviceTensor):
            if any(not isinstance(index, DeviceTensor) for index in _indices_of(name, args)):
                self._note_wait(f"{name}: indices on the host")
            hosts = [] if name == "index" else [args[2]] if not isinstance(args[2], DeviceTensor) else []
        if name in INDEXED and not isinstance(args[0], DeviceTensor):
            raise MixedDevicesError(f"{name}: a tensor of the CPU by indices on cuda:0 ({self._place()})")
        if any(host.ndim for host in hosts):
            raise MixedDevicesError(f"{name}: tensors of two devices ({self._place()})")
        if hosts and name in ("where", "cat", "stack", "gather", "index_select"):
            self._note_wait(f"{name}: a number on the host is copied")

    def _copy(self, name, args, kwargs):
        """Copies to, from and on the device: the host waits for those between, but for one from pinned memory."""
        source = args[1] if name == "copy_" else args[0]
        device = args[0].device if name == "copy_" else kwargs.get("device") or source.device
        leaves, arrives = isinstance(source, DeviceTensor), torch.device(device).type in ("cuda", "meta")
        not_blocking = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
        if leaves != arrives and not (not_blocking and getattr(source, "is_page_locked", False)):
            self._note_wait(f"copy {'from' if leaves else 'to'} the device")
        options = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking", "pin_memory")}
        if name == "copy_":
            self._count(name, 1)
            _held(args[0]).copy_(_held(source))
            return args[0]
        as_it_is = all(options.get(key) in (None, torch.preserve_format) for key in ("dtype", "memory_format"))
        if leaves and arrives and as_it_is:  # a tensor that moves nowhere: its form says another device than it does
            return source.detach() if source.requires_grad else DeviceTensor(source.held)
        self._count(name, 1)
        result = torch.ops.aten._to_copy.default(_held(source), **options)
        if not arrives:
            return result
        there, stream = DeviceTensor(result), self._current_stream()
        if stream is not self.computing:
            there.lacks = frozenset({"wait_event", "record_stream"})
            stream.copied.append(there)
        return there

    def _current_stream(self) -> Stream:
        return getattr(self._stream, "now", self.computing)

    # ---- notes ------------------------------------------------------------------------------------------------------

    def _count(self, name: str, n_kernels: int) -> None:
        phase = self._phase()
        self.operations[phase][name] += 1
        self.kernels[phase][name] += n_kernels

    def _note_wait(self, what: str) -> None:
        self.waits[self._phase()][what, self._place()] += 1

    def _phase(self) -> str:
        return next((frame.f_code.co_name for frame in _frames() if frame.f_code.co_name in self.phases), "")

    def _place(self) -> str:
        """The line of the suite, or of a test, that asked for what is done."""
        for frame in _frames():
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT) and path != Path(__file__):
                return f"{path.relative_to(ROOT).as_posix()}:{frame.f_lineno}"
        return ""


class _Watch(TorchDispatchMode):
    """Every operation of a thread goes by the pretended device."""

    def __init__(self, owner: PretendedDevice) -> None:
        super().__init__()
        self.owner = owner

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return self.owner.run(operation, args, dict(kwargs or {}))


class _Casts(TorchFunctionMode):
    """What torch does on CUDA by itself, and not for tensors whose form is elsewhere: autocast, and fused dropout."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if name == "dropout" and isinstance(args[0], DeviceTensor) and kwargs.get("training", True):
            return torch.native_dropout(args[0], kwargs.get("p", 0.5) if len(args) < 2 else args[1], True)[0]
        if (name in LOWERED or name in RAISED) and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda") if name in LOWERED else torch.float32

            def cast(value):
                is_cast = isinstance(value, DeviceTensor) and value.is_floating_point() and value.dtype != torch.float64
                return value.to(dtype) if is_cast else value

            args, kwargs = _mapped(cast, args), _mapped(cast, kwargs)
        return function(*args, **kwargs)


def _leaves(value: Any):
    if isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _mapped(function: Any, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_mapped(function, one) for one in value)
    if isinstance(value, dict):
        return {key: _mapped(function, one) for key, one in value.items()}
    return function(value)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, DeviceTensor) else value


def _indices_of(name: str, args: tuple[Any, ...]) -> list[Tensor]:
    return [index for index in args[1] if isinstance(index, Tensor)] if name in INDEXED else []


def _kernels_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    if name in NO_KERNEL:
        return 0
    if name == "convolution_backward" and not args[-1][0]:
        return KERNELS[name] - 1  # the input needs no gradient
    if name in INDEXED - {"index"} and (torch.are_deterministic_algorithms_enabled() or True in args[3:4]):
        return SORTED  # also where it accumulates, which is the gradient of an index
    return KERNELS.get(name, 1)


def _frames():
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
