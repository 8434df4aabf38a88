"""Equal training phases of several cells are trained once: what a method declares by `task.train(..., share=...)`.

What a phase ends with is kept under a key of everything that it follows from: what the author declared, the source of
the loss and of the suite, recipe, epochs, seed, place among the numbered calls, start weights, the data's fingerprint,
versions and kind of device. A cell whose phase has the same key loads that instead of training, and its result is equal
bit for bit. A lock a key: of two workers that need the same phase one trains it, and the other waits.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from debiasbench import PROTOCOL_VERSION
from debiasbench.records import write_atomically

if TYPE_CHECKING:
    from debiasbench.engine import Stage
    from debiasbench.task import Phase


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


def key_of(stage: Stage, call: int, signature: dict[str, Any]) -> str:
    """What a phase follows from, as SHA-256 in hexadecimal. `signature`: the engine's, of the call."""
    from debiasbench.task import digest_of

    task = stage.task
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
        "sources": [_source_of_suite(), _source_around(stage.loss)],
        "versions": [PROTOCOL_VERSION, torch.__version__],
        "device": torch.cuda.get_device_name(task.device) if task.device.type == "cuda" else task.device.type,
        "threads": torch.get_num_threads(),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=repr).encode()).hexdigest()


@cache
def _source_of_suite() -> str:
    """Digest of the engine's files: whoever changes the loop or a loss there shares nothing with yesterday."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _source_around(loss: Any) -> str:
    """Digest of the file of a loss, for what it calls there; the name where there is no file."""
    try:
        return hashlib.sha256(Path(inspect.getfile(loss)).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return repr(getattr(loss, "__qualname__", loss))


def save(path: Path, stage: Stage, phase: Phase) -> None:
    """Keep what a phase ended with. A full disk costs the sharing, not the cell."""
    from safetensors.torch import save as to_bytes

    tensors = {
        f"net.{name}.{key}": value.contiguous()
        for name, net in stage.nets.items()
        for key, value in net.state_dict().items()
    }
    tensors |= {f"state.{name}": value.contiguous() for name, value in stage.state.items()}
    about = {"losses": phase.losses, "seconds": phase.seconds, "epoch": stage.epoch, "step": stage.step}
    with contextlib.suppress(OSError):
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
