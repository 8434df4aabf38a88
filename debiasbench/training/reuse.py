"""Equal training stages of several cells are trained once: `task.train(..., reuse=True)`.

The end of a stage is kept under a key of everything that it depends on: the name of its loss and its keyword values,
the source of the loss's module and of the local modules that it imports, the source of the suite, recipe, epochs, seed,
call number, start weights, the fingerprint of the data, versions, kind of device, threads. A cell whose stage has the
same key loads that end instead of training, and its result is equal bit for bit. Each key has a lock: if two workers
need the same stage, one trains it and the other waits.

To have a key, the loss must be a function of a module, or a `functools.partial` of one with plain keyword values. With
any other loss the stage is trained, and the record says why.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import nn

from debiasbench.about import PROTOCOL_VERSION
from debiasbench.code import digest_of_module, digest_of_plugin, digest_of_suite, is_local
from debiasbench.files import write_atomically
from debiasbench.training.digests import digest_of, name_of
from debiasbench.training.ends import StageEnd

POLL = 5.0  # seconds between two progress reports while another worker trains
PLAIN = (bool, int, float, str, type(None))


class DeclinedReuse(Exception):  # noqa: N818 - not an error: the stage is trained
    """The reason why a stage is trained although it was declared reusable."""


@dataclass(frozen=True)
class Entry:
    """The file of a stage's end, existing or not."""

    path: Path

    def load(self, device: torch.device) -> StageEnd | None:
        """The kept end, on the device; None if there is none or it cannot be read."""
        try:
            return StageEnd.from_bytes(self.path.read_bytes(), device)[0]
        except (OSError, ValueError):
            return None

    def save(self, end: StageEnd) -> None:
        """Keep an end. If the disk is full, the end cannot be reused, but the cell goes on."""
        with contextlib.suppress(OSError, RuntimeError):
            write_atomically(self.path, end.to_bytes())


class Reuse:
    """Ends of stages in a folder, which can be deleted at any time."""

    def __init__(self, folder: Path, *, data: str, device: torch.device) -> None:
        """`data` is the fingerprint of the data that the cell trains on; `device` is the device it trains on."""
        self.folder, self.data, self.device = folder, data, device

    def key(self, **facts: Any) -> str:
        """SHA-256, in hexadecimal, of everything that a stage depends on; `facts` are plain values."""
        known = facts_of_machine(self.device) | facts | {"data": self.data}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    @contextlib.contextmanager
    def entry(self, key: str, while_waiting: Callable[[], None] = lambda: None) -> Iterator[Entry]:
        """The locked entry of a key; `while_waiting` is called every few seconds until the lock is free.

        If the folder cannot be written or locked, the stage is trained without a lock.
        """
        from filelock import FileLock, Timeout

        path = self.folder / f"{key}.safetensors"
        lock = FileLock(path.with_suffix(".lock"))
        with contextlib.ExitStack() as held:
            waiting = True
            while waiting:
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(lock.acquire(timeout=POLL))
                    waiting = False
                except Timeout:
                    while_waiting()
                except (OSError, NotImplementedError):
                    waiting = False
            yield Entry(path)


def facts_of_machine(device: torch.device) -> dict[str, Any]:
    """What the last bit of a number depends on, besides the computation."""
    return {
        "suite": digest_of_suite(),
        "versions": [PROTOCOL_VERSION, torch.__version__, platform.python_version()],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def facts_of_loss(loss: Any, what: str = "loss") -> list[Any]:
    """Module, name and keyword values of a loss (or of another function, called `what`), and the digest of its source.

    Raises:
        DeclinedReuse: it is neither a module-level function nor a partial of one with plain keyword values.
    """
    values: dict[str, Any] = {}
    function = loss
    if isinstance(loss, functools.partial):
        function, values = loss.func, dict(loss.keywords)
        if loss.args:
            raise DeclinedReuse(f"its {what} is a partial with values that have no name: give them by keyword")
    advice = "give a function of the module, or functools.partial of one with keyword values"
    if not isinstance(function, FunctionType):
        raise DeclinedReuse(f"its {what}, {name_of(loss)}, is bound to an object: {advice}")
    if function.__closure__ or "<" in function.__qualname__ or function.__qualname__ != function.__name__:
        raise DeclinedReuse(f"its {what}, {name_of(loss)}, is not a function of a module: {advice}")
    parameters = inspect.signature(function).parameters.values()
    values = {one.name: one.default for one in parameters if one.default is not one.empty} | values
    odd = [name for name, value in values.items() if type(value) not in PLAIN]
    if odd:
        raise DeclinedReuse(f"the values {', '.join(odd)} of its {what} are not numbers, words, true, false or none")
    source = digest_of_module(function.__module__) if is_local(function.__module__) else None
    if source is None:
        raise DeclinedReuse(f"the source of its {what}, {name_of(loss)}, cannot be read")
    return [function.__module__, function.__qualname__, dict(sorted(values.items())), source]


def facts_of_noise(name: str, distribution: torch.distributions.Distribution) -> list[Any]:
    """Kind and parameters of a distribution, because torch's text for it leaves some of them out.

    Raises:
        DeclinedReuse: the distribution does not say what its parameters are.
    """
    parameters = sorted(distribution.arg_constraints)
    if not parameters:
        raise DeclinedReuse(f"the distribution of {name} does not say what its parameters are")
    return [type(distribution).__name__, [(one, digest_of(getattr(distribution, one))) for one in parameters]]


def facts_of_nets(nets: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Structure, source, start weights and buffers of networks, and which of these are trained.

    Raises:
        DeclinedReuse: a network has hooks, which could do anything.
    """
    facts = {}
    for name, net in nets.items():
        for part in net.modules():
            if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
                raise DeclinedReuse(f"the network {name} has hooks, which may do anything")
        trained = {key for key, parameter in net.named_parameters() if parameter.requires_grad}
        weights = [(key, digest_of(value), key in trained) for key, value in net.state_dict().items()]
        facts[name] = [repr(net), _source_of(type(net)), weights]
    return facts


def _source_of(net: type[nn.Module]) -> str | None:
    """Digest of the source of a network's class, None for the suite's; for an installed package, its version.

    A digest would cover all modules of the package, which takes a minute for torch; so it is used only if the package
    has no version.
    """
    package = net.__module__.partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", "")
    return digest_of_plugin(net) if is_local(net.__module__) or not version else f"{package} {version}"
