"""Several runs on one results folder share the work: who trains a cell claims it, and the others wait for its record.

A claim is a small file beside the folder of the running cell, written anew every few seconds by the run that holds it
(`BEAT`), with how far the cell has come. It is a lease: one that was not renewed for `LEASE` seconds is void, and at
once if its process is known to be gone. Its age is that of its time stamp against the time stamp of a file just touched
on the same file system, so clocks of machines may differ. Claims are taken under a lock of the file system. Of that is
needed, over NFS as well: `flock` (NFS 4, or lockd) and an atomic rename.

If two runs should train one cell all the same (a machine that slept for longer than a lease), both come to the same
result and write the same record.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.files import write_atomically
from debiasbench.records import record_path, running_path

BEAT = 5.0  # seconds
LEASE = 60.0
POLL = 1.0


@dataclass(frozen=True)
class Holder:
    """Who trains a cell, and how far it has come."""

    host: str
    pid: int
    stage: str = ""
    epoch: int = 0
    epochs: int = 0

    @property
    def is_gone(self) -> bool:
        """Whether its process is known to have ended: only that of this machine can be."""
        if self.host != socket.gethostname() or os.name != "posix":
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


class Claims:
    """What one run holds of a results folder."""

    def __init__(self, results_dir: Path) -> None:
        self.results_dir = results_dir
        self._held: dict[str, tuple[Path, Holder]] = {}  # cell hash -> its claim
        self._lock = threading.Lock()
        self._beating: threading.Thread | None = None
        self._ended = threading.Event()

    def take(self, cell: Cell) -> bool:
        """Claim a cell; False if another run holds it."""
        path = claim_path(self.results_dir, cell)
        with _alone(self.results_dir):
            if _is_held(path):
                return False
            with self._lock:
                self._held[cell.hash] = path, Holder(socket.gethostname(), os.getpid())
                self._write(cell.hash)
        if self._beating is None:
            self._beating = threading.Thread(target=self._beat, daemon=True)
            self._beating.start()
        return True

    def tell(self, cell: Cell, stage: str, epoch: int, epochs: int) -> None:
        """How far a cell has come, for the other runs: written with the next beat."""
        with self._lock:
            if cell.hash in self._held:
                path, holder = self._held[cell.hash]
                self._held[cell.hash] = path, Holder(holder.host, holder.pid, stage, epoch, epochs)

    def release(self, cell: Cell) -> None:
        """Give a claim back."""
        with self._lock:
            path, _ = self._held.pop(cell.hash, (None, None))
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()
                for folder in list(path.parents)[:2]:  # of its method and of its dataset
                    with contextlib.suppress(OSError):  # of other cells, too
                        folder.rmdir()

    def close(self) -> None:
        """Give all back, at the end of the run."""
        self._ended.set()
        for path, _ in self._held.values():
            with contextlib.suppress(OSError):
                path.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with self._lock:
                for name in self._held:
                    self._write(name)

    def _write(self, name: str) -> None:
        path, holder = self._held[name]
        with contextlib.suppress(OSError):  # a full disk: another run may take the cell
            write_atomically(path, json.dumps(vars(holder)).encode())


class Work:
    """The cells that a run is to train, shared with the other runs on its folder. Threads may take from it."""

    def __init__(self, cells: Sequence[Cell], results_dir: Path) -> None:
        self.claims = Claims(results_dir)
        self._waiting, self._held = deque(cells), deque[Cell]()
        self._lock = threading.Lock()
        self._before = {cell.hash: _state_of(record_path(results_dir, cell)) for cell in cells}
        self.results_dir = results_dir

    def next(
        self, told: Callable[[Cell, Holder], None], stopped: Callable[[], bool] = lambda: False
    ) -> tuple[Cell, Path | None] | None:
        """The next cell to train (to be released), or one that another run has finished, with its record.

        Cells that others train come last: they are waited for, and `told` is called each second.

        Returns:
            None: nothing is left, or `stopped`.
        """
        while not stopped():
            with self._lock:
                queue = self._waiting or self._held
                if not queue:
                    return None
                cell, others = queue.popleft(), bool(self._waiting)
            claimed = self.claims.take(cell)
            path = record_path(self.results_dir, cell)
            if _state_of(path) != self._before[cell.hash] and (claimed or not _is_held(claim_path_of(path))):
                self.claims.release(cell)
                return cell, path
            if claimed:
                return cell, None
            with self._lock:
                self._held.append(cell)
            if not others:
                holder = read_claim(claim_path(self.results_dir, cell))
                if holder is not None:
                    told(cell, holder)
                time.sleep(POLL)
        return None


class Presence:
    """Whether a results folder is the one that it was at the start: a worker that writes may have made it again."""

    def __init__(self, results_dir: Path) -> None:
        results_dir.mkdir(parents=True, exist_ok=True)
        self.results_dir, self._number = results_dir, results_dir.stat().st_ino

    def check(self) -> None:
        """Refuse to go on where it was deleted.

        Raises:
            BenchmarkError: it was.
        """
        with contextlib.suppress(FileNotFoundError):
            if self.results_dir.stat().st_ino == self._number:
                return
        raise BenchmarkError(
            f"The results folder {self.results_dir} was deleted or replaced while its cells ran. Nothing more is "
            "trained; the same command starts again with what is there."
        )


def claim_path(results_dir: Path, cell: Cell) -> Path:
    """The file of a cell's claim."""
    return claim_path_of(record_path(results_dir, cell))


def claim_path_of(record: Path) -> Path:
    """The file of the claim of the cell that has its record there."""
    folder = running_path(record)
    return folder.with_name(f"{folder.name}.claim")


def read_claim(path: Path) -> Holder | None:
    """Who holds a claim; None where there is none, or it cannot be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        holder = Holder(**content)
        return holder if isinstance(holder.pid, int) and isinstance(holder.host, str) else None
    except (OSError, ValueError, TypeError):
        return None


def running_cells(results_dir: Path) -> Iterator[tuple[Path, Holder]]:
    """The claims of a results folder that hold, with who holds them."""
    for path in sorted((results_dir / "running").rglob("*.claim")):
        holder = read_claim(path)
        if holder is not None and _is_held(path):
            yield path, holder


def _is_held(path: Path) -> bool:
    """Whether a claim is there and not void."""
    try:
        written = path.stat().st_mtime
    except OSError:
        return False
    holder = read_claim(path)
    if holder is not None and holder.is_gone:
        return False
    try:
        return _now(path.parent) - written < LEASE
    except OSError:  # a folder that can only be read: by this machine's clock
        return time.time() - written < LEASE


def _now(folder: Path) -> float:
    """The time of the file system of a folder."""
    touched = folder / f".now-{os.getpid()}-{threading.get_ident()}"
    try:
        touched.write_bytes(b"")
        return touched.stat().st_mtime
    finally:
        touched.unlink(missing_ok=True)


def _state_of(path: Path) -> tuple[int, int] | None:
    """What tells whether a file was replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


@contextlib.contextmanager
def _alone(results_dir: Path) -> Iterator[None]:
    """One run at a time looks at claims and takes one; without the lock where the file system has none."""
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError, NotImplementedError, Timeout):
            (results_dir / "running").mkdir(exist_ok=True)
            held.enter_context(FileLock(results_dir / "running" / ".lock", timeout=LEASE))
        yield
