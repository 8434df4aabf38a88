"""Share the work of several runs on one results folder: one run claims a cell, the others wait for its record.

A claim is a small file beside the folder of the running cell. The run that holds it rewrites it every `BEAT` seconds,
with the progress of the cell. It is a lease: a claim is void if it was not renewed for `LEASE` seconds, and at once if
its process is known to have ended. Its age is the difference between its time stamp and that of a file just touched on
the same file system, so the clocks of machines may differ. Claims are taken and given back under a lock of the file
system. The file system, also NFS, must have `flock` (NFS 4, or lockd), an atomic rename, and attributes that are cached
for less than `LEASE`.

If two runs train the same cell nevertheless (a machine slept for longer than a lease), both come to the same result and
write the same record.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.files import write_atomically
from debiasbench.plain import from_plain
from debiasbench.records import Record, read_record, record_path, running_path

RecordState = tuple[int, int] | None  # of the file: time of writing, and inode
BEAT = 5.0  # seconds
LEASE = 150.0
FORGOTTEN = 7 * 86_400.0  # marks this old are left by killed runs and removed; a sleeping run needs its mark
POLL = 1.0
PRESENT = ".present-"  # prefix of the names of the marks of runs


@dataclass(frozen=True)
class Holder:
    """The run that trains a cell, and its progress.

    Attributes:
        token: identifies the run. machine: the machine or container in which its process number is valid.
    """

    token: str
    host: str
    machine: str
    pid: int
    stage: str = ""
    epoch: int = 0
    epochs: int = 0

    @property
    def is_here(self) -> bool:
        """Whether its process is on this machine, so that its state can be checked."""
        return self.machine == _machine() and os.name == "posix"

    @property
    def has_ended(self) -> bool:
        """Whether its process is known to have ended, which is only possible on this machine."""
        if not self.is_here:
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            return False
        return False


class Claims:
    """The claims that one run holds on a results folder; as a context, it gives all back at its end."""

    def __init__(self, results_dir: Path) -> None:
        self.results_dir = results_dir
        self._me = Holder(secrets.token_hex(8), socket.gethostname(), _machine(), os.getpid())
        self._held: dict[Path, Holder] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beating.join()
        for path in list(self._held):
            self._give_back(path)

    def take(self, cell: Cell) -> bool:
        """Claim a cell; False if another run holds it."""
        path = claim_path(self.results_dir, cell)
        with alone_with_claims(self.results_dir):
            if holder_of(path) is not None:
                return False
            with self._lock:
                self._held[path] = self._me
                self._write(path)
        return True

    def tell(self, cell: Cell, stage: str, epoch: int, epochs: int) -> None:
        """Tell other runs the progress of a cell: it is written with the next beat."""
        path = claim_path(self.results_dir, cell)
        with self._lock:
            if path in self._held:
                self._held[path] = replace(self._me, stage=stage, epoch=epoch, epochs=epochs)

    def release(self, cell: Cell) -> None:
        """Give a claim back."""
        self._give_back(claim_path(self.results_dir, cell))

    def _give_back(self, path: Path) -> None:
        with alone_with_claims(self.results_dir), self._lock:
            if self._held.pop(path, None) is None or not self._is_mine(path):
                return
            with contextlib.suppress(OSError):
                path.unlink()
            for folder in list(path.parents)[:2]:  # the folders of its method and of its dataset
                with contextlib.suppress(OSError):  # other cells may still use them
                    folder.rmdir()

    def _is_mine(self, path: Path) -> bool:
        """Whether no other run has taken the claim while this run slept for longer than its lease."""
        there = read_claim(path)
        return there is not None and there.token == self._me.token

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with self._lock:
                for path in list(self._held):
                    if self._is_mine(path):
                        self._write(path)

    def _write(self, path: Path) -> None:
        with contextlib.suppress(OSError):  # on a full disk another run may take the cell
            write_atomically(path, json.dumps(asdict(self._held[path])).encode())


class Work:
    """The cells that a run has to train, shared with other runs on the same folder. It is safe to use from threads."""

    def __init__(
        self,
        cells: Sequence[Cell],
        results_dir: Path,
        *,
        before: dict[str, RecordState] | None = None,
        accepts: Callable[[Cell, Record], bool] = lambda *_: True,
        waits: bool = True,
    ) -> None:
        """Cells for which another run writes a record meanwhile are not trained.

        Args:
            cells: in the order in which they are taken.
            results_dir: where their records go.
            before: state of each cell's record when it was found to be missing; by default its present state.
            accepts: whether a record written since then is one that this run would make.
            waits: whether to wait for cells that other runs train, and to train those that they do not finish; if
                False, such cells are checked once more when nothing else is left.
        """
        self.cells, self.results_dir, self.accepts, self.waits = list(cells), results_dir, accepts, waits
        self.claims = Claims(results_dir)
        self._waiting, self._held = deque(cells), deque[Cell]()
        self._lock = threading.Lock()
        self.before = before or {cell.hash: state_of(record_path(results_dir, cell)) for cell in cells}

    def next(
        self, watch: Callable[[Cell, Holder], None], stopped: Callable[[], bool] = lambda: False
    ) -> tuple[Cell, Path | None] | None:
        """The next cell to train (release it afterwards), or one that another run has finished, with its record.

        Cells that other runs train come last: this waits for them, and calls `watch` each second.

        Returns:
            None: nothing is left, or `stopped`.
        """
        while not stopped():
            with self._lock:
                queue = self._waiting or self._held
                if not queue:
                    return None
                cell, others, again = queue.popleft(), bool(self._waiting), queue is self._held
            claimed = self.claims.take(cell)
            if claimed:
                path = self.new_record(cell)
                if path is None:
                    return cell, None
                self.claims.release(cell)
                return cell, path
            if again and not self.waits:
                continue
            with self._lock:
                self._held.append(cell)
            if not others and self.waits:
                holder = holder_of(claim_path(self.results_dir, cell))
                if holder is not None:
                    watch(cell, holder)
                    time.sleep(POLL)
        return None

    def put_back(self, cell: Cell) -> None:
        """Add a released cell again, as it has to be trained after all."""
        with self._lock:
            self._waiting.append(cell)

    def new_record(self, cell: Cell) -> Path | None:
        """The record of a cell that another run has written since `before`, if it is accepted."""
        path = record_path(self.results_dir, cell)
        if state_of(path) == self.before[cell.hash]:
            return None
        try:
            return path if self.accepts(cell, read_record(path)) else None
        except BenchmarkError:
            return None


class Presence:
    """Check that a results folder is still the same: if it was deleted, a worker may have created it again.

    As a context, it keeps a mark (a file) in the folder.
    """

    def __init__(self, results_dir: Path) -> None:
        self.results_dir = results_dir
        self._mark = results_dir / "running" / f"{PRESENT}{secrets.token_hex(8)}"

    def __enter__(self) -> Self:
        folder = self._mark.parent
        folder.mkdir(parents=True, exist_ok=True)
        self._mark.touch()
        for other in folder.glob(f"{PRESENT}*"):  # marks of killed runs
            with contextlib.suppress(OSError):
                if self._mark.stat().st_mtime - other.stat().st_mtime > FORGOTTEN:
                    other.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._mark.unlink()

    def check(self) -> None:
        """Refuse to go on if the folder was deleted.

        Raises:
            BenchmarkError: the folder was deleted or replaced.
        """
        try:
            os.utime(self._mark)
        except FileNotFoundError:
            raise BenchmarkError(
                f"The results folder {self.results_dir} was deleted or replaced while its cells ran. Nothing more is "
                "trained; the same command starts again with what is there."
            ) from None
        except OSError:
            return  # nothing is known, for example while the network is down


def is_at_work(results_dir: Path) -> bool:
    """Whether a run is at work on the folder, even if it trains no cell at the moment."""
    folder = results_dir / "running"
    marks = list(folder.glob(f"{PRESENT}*"))
    try:
        return bool(marks) and any(now_at(folder) - mark.stat().st_mtime < LEASE for mark in marks)
    except OSError:  # a read-only folder, or a run that has just ended: assume that one is at work
        return True


def claim_path(results_dir: Path, cell: Cell) -> Path:
    """The path of a cell's claim."""
    return claim_path_of(record_path(results_dir, cell))


def claim_path_of(record: Path) -> Path:
    """The path of the claim of the cell with this record path."""
    folder = running_path(record)
    return folder.with_name(f"{folder.name}.claim")


def read_claim(path: Path) -> Holder | None:
    """The holder that wrote a claim, void or not; None if there is no claim, or it cannot be read."""
    try:
        holder: Holder = from_plain(Holder, json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return None
    return holder


def running_cells(results_dir: Path) -> Iterator[tuple[Path, Holder]]:
    """The valid claims of a results folder, with their holders."""
    for path in sorted((results_dir / "running").rglob("*.claim")):
        holder = holder_of(path)
        if holder is not None:
            yield path, holder


UNKNOWN = Holder("", "?", "", 0)


def holder_of(path: Path) -> Holder | None:
    """The holder of a claim; None if there is no claim, or it is void."""
    try:
        with path.open("rb") as file:
            written = os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    holder = read_claim(path) or UNKNOWN  # a damaged claim is valid until its lease ends
    if holder.has_ended:
        return None
    try:
        age = now_at(path.parent) - written
    except OSError:  # a read-only folder: use this machine's clock
        age = time.time() - written
    return holder if age < LEASE else None


def _machine() -> str:
    """A name that distinguishes this machine, or container, from others."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def now_at(folder: Path) -> float:
    """The present time on the file system of a folder."""
    touched = folder / f".now-{os.getpid()}-{threading.get_ident()}"
    try:
        touched.write_bytes(b"")
        return touched.stat().st_mtime
    finally:
        touched.unlink(missing_ok=True)


def state_of(path: Path) -> RecordState:
    """The state of a record file, which differs once the file was rewritten."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


@contextlib.contextmanager
def alone_with_claims(results_dir: Path) -> Iterator[None]:
    """Let one run at a time look at claims and take one; without a lock if the file system has none."""
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError, NotImplementedError, Timeout):
            (results_dir / "running").mkdir(exist_ok=True)
            held.enter_context(FileLock(results_dir / "running" / ".lock", timeout=LEASE))
        yield
