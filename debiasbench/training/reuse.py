"""Equal training stages of several cells are trained once: `task.train(..., reuse=True)`.

What a stage ends with is kept under a key of all that it follows from: the name of its loss and its keyword values, the
source of the module that the loss is in and of the local modules which that imports, the source of the suite, recipe,
epochs, seed, call number, start weights, the data's fingerprint, versions, kind of device, threads. A cell whose stage
has the same key loads that end instead of training, and its result is equal bit for bit. A lock a key: of two workers
that need the same stage one trains it, and the other waits.

So that the key can be told, the loss is a function of a module, or `functools.partial` of one with plain keyword
values. Of any other the stage is trained, and the record says why.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from debiasbench.about import PROTOCOL_VERSION
from debiasbench.code import digest_of_module, digest_of_suite, is_local
from debiasbench.files import write_atomically
from debiasbench.training.digests import digest_of, name_of

PLAIN = (bool, int, float, str, type(None))


class DeclinedReuse(Exception):  # noqa: N818 - no error: the stage is trained
    """Why a stage is trained, although it was declared reusable."""


@dataclass(frozen=True)
class StageEnd:
    """What a stage ended with.

    Attributes:
        nets: network -> its state dict. state: the loss's state. losses: mean training loss a sample, by epoch.
        epoch, step: how many it did. seconds: of the training.
    """

    nets: dict[str, dict[str, Tensor]]
    state: dict[str, Tensor]
    losses: list[float]
    epoch: int
    step: int
    seconds: float


@dataclass(frozen=True)
class Entry:
    """Where one stage's end is, or will be."""

    path: Path

    def load(self, device: torch.device) -> StageEnd | None:
        """What is kept, on the device; None where there is nothing, or it cannot be read."""
        from safetensors import SafetensorError, safe_open

        nets: dict[str, dict[str, Tensor]] = {}
        state: dict[str, Tensor] = {}
        try:
            with safe_open(self.path, "pt", device=str(device)) as file:
                about = json.loads(file.metadata()["stage"])
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    kind, _, rest = name.partition(".")
                    if kind == "state":
                        state[rest] = file.get_tensor(name)
                    else:
                        net, _, key = rest.partition(".")
                        nets.setdefault(net, {})[key] = file.get_tensor(name)
            return StageEnd(nets, state, about["losses"], about["epoch"], about["step"], about["seconds"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def save(self, end: StageEnd) -> None:
        """Keep an end. A full disk, or weights that are tied, cost the reuse and not the cell."""
        from safetensors.torch import save

        tensors = {f"state.{name}": value.contiguous() for name, value in end.state.items()}
        for net, weights in end.nets.items():
            tensors |= {f"net.{net}.{key}": value.contiguous() for key, value in weights.items()}
        about = {"losses": end.losses, "epoch": end.epoch, "step": end.step, "seconds": end.seconds}
        with contextlib.suppress(OSError, RuntimeError):
            write_atomically(self.path, save(tensors, metadata={"stage": json.dumps(about)}))


class Reuse:
    """Ends of stages in a folder, which may be deleted at any time."""

    def __init__(self, folder: Path, *, data: str, device: torch.device) -> None:
        """`data`: fingerprint of the data that the cell trains on, on `device`."""
        cuda = device.type == "cuda"
        self.folder = folder
        self.facts: dict[str, Any] = {
            "data": data,
            "suite": digest_of_suite(),
            "versions": [PROTOCOL_VERSION, torch.__version__, platform.python_version()],
            "device": torch.cuda.get_device_name(device) if cuda else device.type,
        }

    def key(self, **facts: Any) -> str:
        """What a stage follows from, as SHA-256 in hexadecimal; `facts` are plain values."""
        known = self.facts | facts | {"threads": torch.get_num_threads()}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    @contextlib.contextmanager
    def entry(self, key: str) -> Iterator[Entry]:
        """The entry of a key, while nobody else touches it.

        Where the folder cannot be written or locked the stage is trained without it.
        """
        from filelock import FileLock, Timeout

        path = self.folder / f"{key}.safetensors"
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError, NotImplementedError, Timeout):
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(path.with_suffix(".lock")))
            yield Entry(path)


def facts_of_loss(loss: Any) -> list[Any]:
    """Module, name and keyword values of a loss, and the digest of its source.

    Raises:
        DeclinedReuse: it is no module-level function, nor a partial of one with plain keyword values.
    """
    values: dict[str, Any] = {}
    function = loss
    if isinstance(loss, functools.partial):
        function, values = loss.func, dict(loss.keywords)
        if loss.args:
            raise DeclinedReuse("its loss is a partial with values that have no name: give them by keyword")
    advice = "give a function of the module, or functools.partial of one with keyword values"
    if not isinstance(function, FunctionType):
        raise DeclinedReuse(f"its loss, {name_of(loss)}, is bound to an object: {advice}")
    if function.__closure__ or "<" in function.__qualname__ or function.__qualname__ != function.__name__:
        raise DeclinedReuse(f"its loss, {name_of(loss)}, is not a function of a module: {advice}")
    parameters = inspect.signature(function).parameters.values()
    values = {one.name: one.default for one in parameters if one.default is not one.empty} | values
    odd = [name for name, value in values.items() if type(value) not in PLAIN]
    if odd:
        raise DeclinedReuse(f"the values {', '.join(odd)} of its loss are no numbers, words, true, false or none")
    source = digest_of_module(function.__module__) if is_local(function.__module__) else None
    if source is None:
        raise DeclinedReuse(f"the source of its loss, {name_of(loss)}, cannot be read")
    return [function.__module__, function.__qualname__, dict(sorted(values.items())), source]


def facts_of_nets(nets: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Form, start weights and buffers of networks, and which of them are trained.

    Raises:
        DeclinedReuse: a network has hooks, which may do anything.
    """
    facts = {}
    for name, net in nets.items():
        for part in net.modules():
            if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
                raise DeclinedReuse(f"the network {name} has hooks, which may do anything")
        trained = {key for key, parameter in net.named_parameters() if parameter.requires_grad}
        facts[name] = [repr(net), [(key, digest_of(value), key in trained) for key, value in net.state_dict().items()]]
    return facts
