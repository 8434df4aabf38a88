"""Equal training phases of several cells are trained once: what a method declares by `task.train(..., share=...)`.

What a phase ends with is kept under a key of everything that it follows from: what the author declared, the code of the
loss and of all that it calls, the method's parameters that this reads, the suite's source, recipe, epochs, seed, place
among the numbered calls, start weights, the data's fingerprint, versions and kind of device. A cell whose phase has the
same key loads that instead of training, and its result is equal bit for bit. A lock a key: of two workers that need the
same phase one trains it, and the other waits. Where any of this cannot be known, the phase is trained.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import platform
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

import torch

from debiasbench import PROTOCOL_VERSION
from debiasbench.parameters import Parameters
from debiasbench.records import write_atomically

if TYPE_CHECKING:
    from debiasbench.engine import Stage
    from debiasbench.task import Phase

IMPORTED = time.time()  # what is on disk may differ from what runs, if it was changed after this


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


def key_of(stage: Stage, call: int, signature: dict[str, Any]) -> str | None:
    """What a phase follows from, as SHA-256 in hexadecimal; None where that cannot be told.

    `signature`: the engine's, of the call.
    """
    from debiasbench.task import digest_of

    task = stage.task
    code, suite = _code_of(stage.loss), _source_of_suite()
    if code is None or suite is None:
        return None
    start = [
        (name, key, digest_of(value)) for name, net in stage.nets.items() for key, value in net.state_dict().items()
    ]
    known = {
        "signature": signature,
        "start": start,
        "state": {name: digest_of(value) for name, value in stage.state.items()},
        "call": call,
        "seed": task.seed,
        "data": task.splits.fingerprint(),
        "code": [code, suite],
        "versions": [PROTOCOL_VERSION, torch.__version__, platform.python_version()],
        "device": torch.cuda.get_device_name(task.device) if task.device.type == "cuda" else task.device.type,
        "threads": torch.get_num_threads(),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=repr).encode()).hexdigest()


@cache
def _source_of_suite() -> str | None:
    """Digest of the engine's files: whoever changes the loop or a loss there shares nothing with yesterday."""
    return _digest_of_files(sorted(Path(__file__).parent.glob("*.py")))


def _digest_of_files(files: list[Path]) -> str | None:
    """Digest of files that are still as they were imported; None if one was changed since."""
    if any(file.stat().st_mtime > IMPORTED for file in files):
        return None
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _code_of(loss: Any) -> str | None:
    """Digest of a loss: its code, that of the functions it calls by name, and the method's parameters they read.

    None for what is no plain function or method, and for a closure, which may hold anything.
    """
    owner = getattr(loss, "__self__", None)
    first = getattr(loss, "__func__", loss)
    if not isinstance(first, FunctionType) or not isinstance(owner, Parameters | None):
        return None
    values = owner.values() if owner is not None else {}
    found: list[Any] = []
    seen: set[CodeType] = set()
    waiting = [first]
    while waiting:
        function = waiting.pop()
        if function.__code__ in seen:
            continue
        if function.__closure__:
            return None
        seen.add(function.__code__)
        codes = list(_nested(function.__code__))
        found += [
            (code.co_code.hex(), [repr(one) for one in code.co_consts if not isinstance(one, CodeType)])
            for code in codes
        ]
        for name in sorted({name for code in codes for name in code.co_names}):
            found.append((name, values.get(name)))
            for called in (inspect.getattr_static(type(owner), name, None), function.__globals__.get(name)):
                called = called.fget if isinstance(called, property) else called
                if isinstance(called, FunctionType) and not called.__module__.startswith("torch"):
                    waiting.append(called)
                elif isinstance(called, int | float | str | tuple):
                    found.append((name, called))
    files = {Path(inspect.getfile(first)), *(Path(inspect.getfile(cls)) for cls in _classes(owner))}
    rest = _digest_of_files(sorted(files))
    return None if rest is None else hashlib.sha256(repr((found, rest)).encode()).hexdigest()


def _classes(owner: Any) -> list[type]:
    """The classes of a method, without Python's own."""
    return (
        [cls for cls in type(owner).__mro__ if cls.__module__ not in ("builtins", "abc")] if owner is not None else []
    )


def _nested(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


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
