"""Equal training phases of several cells are trained once: what a method declares by `task.train(..., share=...)`.

What a phase ends with is kept under a key of everything that it follows from: what the author declared, the sources
of the suite, of the method and of what it imports, the method's parameters that the loss reads, recipe, epochs, seed,
place among the numbered calls, start weights, the data's fingerprint, versions and kind of device. A cell whose phase
has the same key loads that instead of training, and its result is equal bit for bit. A lock a key: of two workers that
need the same phase one trains it, and the other waits. Where any of this cannot be known, the phase is trained.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import json
import platform
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import torch

import debiasbench
from debiasbench.about import PROTOCOL_VERSION
from debiasbench.files import write_atomically
from debiasbench.parameters import Parameters, fields_of

if TYPE_CHECKING:
    from debiasbench.training.stage import Stage
    from debiasbench.training.task import Phase

IMPORTED = time.time()  # what is on disk may differ from what runs, if it was changed after this


class CannotTell(Exception):  # noqa: N818 - no error: the phase is trained
    """What a phase follows from cannot be told."""


class Shared:
    """Phases kept in a folder, which may be deleted at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def entry(self, key: str) -> Iterator[Path]:
        """Where the phase of this key is or will be, while nobody else touches it.

        Where the folder cannot be written or locked the phase is trained without it.
        """
        from filelock import FileLock, Timeout

        path = self.folder / f"{key}.safetensors"
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError, NotImplementedError, Timeout):
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(path.with_suffix(".lock")))
            yield path


def key_of(stage: Stage, call: int, signature: dict[str, Any], run: Callable[[Any], Any]) -> str | None:
    """What a phase follows from, as SHA-256 in hexadecimal; None where that cannot be told.

    Args:
        signature: the engine's, of the call.
        run: runs a loss once on a batch of the phase, which must leave no trace.
    """
    from debiasbench.training.digests import digest_of

    task = stage.task
    try:
        known = {
            "signature": signature,
            "loss": _loss(stage.loss, run),
            "nets": {name: (repr(net), _weights(net, digest_of)) for name, net in stage.nets.items()},
            "state": {name: digest_of(value) for name, value in stage.state.items()},
            "call": call,
            "seed": task.seed,
            "data": task.splits.fingerprint(),
            "suite": _digest(tuple(sorted(Path(debiasbench.__file__).parent.rglob("*.py"))) + _shipped_methods()),
            "versions": [PROTOCOL_VERSION, torch.__version__, platform.python_version()],
            "device": torch.cuda.get_device_name(task.device) if task.device.type == "cuda" else task.device.type,
            "threads": torch.get_num_threads(),
        }
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    except Exception:  # whatever a method is made of: the phase is trained
        return None


def _shipped_methods() -> tuple[Path, ...]:
    """The suite's own method files: in a wheel they count as an installed package."""
    from debiasbench import methods

    return tuple(sorted(Path(methods.__path__[0]).glob("*.py")))


def _weights(net: torch.nn.Module, digest_of: Callable[[Any], str]) -> list[Any]:
    """Digests of the weights and buffers, and which of them are trained."""
    for part in net.modules():
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            raise CannotTell("Hooks may do anything.")
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    return [(name, digest_of(value), name in trained) for name, value in net.state_dict().items()]


def _loss(loss: Any, run: Callable[[Any], Any]) -> list[Any]:
    """The name and the sources of a loss, and the parameters of its method that it reads, with their values."""
    owner = getattr(loss, "__self__", None)
    function = getattr(loss, "__func__", loss)
    if (
        not isinstance(function, FunctionType)
        or function.__closure__
        or function.__defaults__
        or function.__kwdefaults__
    ):
        raise CannotTell("It may hold anything.")
    cls = type(owner)
    if not _sources(function.__module__) and function.__module__.partition(".")[0] != "debiasbench":
        raise CannotTell("It has no source, or that of an installed package.")
    if owner is None:
        return [function.__module__, function.__qualname__, _sources(function.__module__), {}]
    if not isinstance(owner, Parameters) or "<locals>" in cls.__qualname__:
        raise CannotTell("Its class may hold anything.")
    watched = _Watched(owner)
    run(function.__get__(watched))
    read = {name: owner.values()[name] for name in sorted(watched.read_fields)}
    modules = [one.__module__ for one in cls.__mro__ if one is not object]
    sources = [_sources(name) for name in dict.fromkeys([function.__module__, *modules])]
    return [cls.__module__, cls.__qualname__, function.__qualname__, sources, read]


class _Watched:
    """Stands for a method and notes which of its parameters are read, also by the functions that it calls."""

    def __init__(self, owner: Any) -> None:
        self.owner, self.read_fields = owner, set[str]()
        self.fields = {item.name for item in fields_of(owner)}

    def __getattr__(self, name: str) -> Any:
        if name in self.fields:
            self.read_fields.add(name)
            return getattr(self.owner, name)
        found = inspect.getattr_static(type(self.owner), name)
        if isinstance(found, property) and found.fget is not None:
            return found.fget(self)
        if isinstance(found, functools.cached_property):
            return found.func(self)
        return found.__get__(self) if isinstance(found, FunctionType) else getattr(self.owner, name)


@functools.cache
def _sources(module: str) -> list[str]:
    """Digests of the file of a module and of all that it imports, without Python's own and installed packages."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _own_file(sys.modules.get(name))
        if file is None or str(file) in found:
            continue
        found[str(file)] = _digest((file,))
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = "." * node.level + (node.module or "")
                base = importlib.util.resolve_name(start, sys.modules[name].__package__) if node.level else start
                waiting += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return sorted(found.values())


def _own_file(module: ModuleType | None) -> Path | None:
    """The source of a module that is neither Python's own nor of an installed package; None for these."""
    place = getattr(module, "__file__", None)
    if place is None or not place.endswith(".py"):
        return None
    file = Path(place).resolve()
    installed = {Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return None if installed & set(file.parents) else file


@functools.cache
def _digest(files: tuple[Path, ...]) -> str:
    """Digest of files that are still as they were imported."""
    if not files or any(file.stat().st_mtime > IMPORTED for file in files):
        raise CannotTell("What is on disk may not be what runs.")
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def save(path: Path, stage: Stage, phase: Phase) -> None:
    """Keep what a phase ended with. A full disk, or weights that are tied, cost the sharing and not the cell."""
    from safetensors.torch import save as to_bytes

    tensors = {
        f"net.{name}.{key}": value.contiguous()
        for name, net in stage.nets.items()
        for key, value in net.state_dict().items()
    }
    tensors |= {f"state.{name}": value.contiguous() for name, value in stage.state.items()}
    about = {"losses": phase.losses, "seconds": phase.seconds, "epoch": stage.epoch, "step": stage.step}
    with contextlib.suppress(OSError, RuntimeError):
        write_atomically(path, to_bytes(tensors, metadata={"phase": json.dumps(about)}))


def load(path: Path, stage: Stage, phase: Phase) -> bool:
    """Put a stage to the end that is kept in `path`; False where there is none, or it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", device=str(stage.task.device)) as file:
            about = json.loads(file.metadata()["phase"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return False
    for name, net in stage.nets.items():
        prefix = f"net.{name}."
        net.load_state_dict({key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)})
    stage.state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    stage.epoch, stage.step = about["epoch"], about["step"]
    phase.losses, phase.seconds = about["losses"], about["seconds"]
    return True
