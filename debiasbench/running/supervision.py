"""Supervise processes that train cells, one at a time each, on this machine or elsewhere, even if processes fail."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.files import to_path
from debiasbench.records import record_path
from debiasbench.running.claims import Holder, Work
from debiasbench.running.executor import POLL, Event, Settings, elsewhere
from debiasbench.running.process import GRACE

SILENCE = 300.0  # a note is shown each time that this many seconds pass without a sign of life
OF_PROCESS = ("ready", "refused")  # messages that belong to no cell
TIMES_AGAIN = 3  # times that a cell goes on after others ended its process, for example with its machine


class Process(Protocol):
    """A process that trains cells: a worker process here, or a stand-in for one elsewhere."""

    @property
    def waits(self) -> bool:
        """Whether it has not started, because no machine is free."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""

    @property
    def is_lost(self) -> bool:
        """Whether it has ended because its machine was lost."""

    @property
    def was_killed_by_others(self) -> bool:
        """Whether it was killed, and not by this process: usually because memory ran out."""

    def send(self, request: Mapping[str, Any]) -> None:
        """Ask it to train a cell."""

    def next_message(self, timeout: float) -> dict[str, Any] | None:
        """The next message; None if none came within `timeout` seconds, or no more can come."""

    def ask_to_stop(self) -> None:
        """Ask it to end at the next step, with a checkpoint."""

    def kill(self) -> None:
        """Kill it now."""

    def end(self) -> None:
        """Ask it to end, and kill it if it does not."""

    def cause_of_death(self) -> str:
        """How it ended, in words."""


class Supervisor(ABC):
    """An executor whose cells are trained by other processes, with which this one exchanges messages.

    If a process dies, its cell is lost ("lost"), and a new process takes its place. A cell whose process was killed
    from outside, usually because memory ran out, is tried once more, alone, when all others are done. A cell whose
    process was lost with its machine, or was asked to stop by others, goes on, at most three times. To stop, processes
    are asked to write a checkpoint and end, and are killed if they do not; on a second KeyboardInterrupt they are
    killed at once.
    """

    devices: tuple[str, ...]
    name: ClassVar[str]
    threads = 1

    @abstractmethod
    def check(self, cells: Sequence[Cell], settings: Settings) -> None:
        """See `Executor`."""

    @abstractmethod
    def start(self, number: int) -> Process:
        """Start the process of a worker.

        Raises:
            OSError: the process could not be started.
        """

    def script(self, settings: Settings) -> str:  # noqa: ARG002
        """See `Executor`: there is none."""
        return ""

    def leave(self, work: Work, settings: Settings) -> str:  # noqa: ARG002
        """See `Executor`: nothing can go on, as its processes end with this one."""
        return ""

    def request(self, cell: Cell) -> dict[str, Any]:
        """The request that asks a process to train a cell."""
        return {
            "cell": cell.to_record(),
            "root": for_worker(to_path(cell.root)) if cell.root else cell.root,
            "log": for_worker(log_path(self.settings.results_dir, cell)),
        }

    def process_settings(self, device: str, share: int) -> dict[str, Any]:
        """The settings that a process gets at its start; `share`: number of processes that share its device."""
        settings = self.settings
        return {
            "data_dir": for_worker(settings.data_dir),
            "results_dir": for_worker(settings.results_dir),
            "device": device,
            "threads": settings.threads,
            "save_weights": settings.save_weights,
            "reuse": settings.reuse,
            "resume": settings.resume,
            "checkpoint_every": settings.checkpoint_every,
            "memory_fraction": 0.5 / share,
            "executor": self.name,
        }

    def submit(self, work: Work, settings: Settings) -> None:
        """See `Executor`."""
        self.work, self.settings = work, settings
        self.queue: queue.Queue[Event | Exception | None] = queue.Queue()  # None: one worker has nothing left to do
        self.ended: Counter[str] = Counter()  # cell hash -> how often others ended its process
        self._killed: list[tuple[Cell, str]] = []
        n_workers = min(len(self.devices), len(work.cells))
        self._start(n_workers, spare=self._killed if n_workers > 1 else None)

    def events(self) -> Iterator[Event | None]:
        """See `Executor`."""
        yield from self._until_done()
        if self._is_stopped:
            return
        for cell, cause in self._killed:
            yield Event("note", cell, 0, message=f"{cell.title}: {cause}. It is tried once more, alone.")
            self.work.put_back(cell)
        if self._killed:
            self._start(1, spare=None)
            yield from self._until_done()

    def stop(self) -> None:
        """See `Executor`."""
        self._is_stopped = True
        try:
            for worker in self._workers:
                worker.ask_to_stop()
            deadline = time.monotonic() + GRACE
            for worker in self._workers:
                worker.join(timeout=max(0.0, deadline - time.monotonic()))
        finally:
            for worker in self._workers:
                worker.kill()

    _workers: Sequence[Worker] = ()
    _is_stopped = False

    def _start(self, n_workers: int, *, spare: list[tuple[Cell, str]] | None) -> None:
        self._workers = [Worker(number, self, spare) for number in range(n_workers)]
        for worker in self._workers:
            worker.start()

    def _until_done(self) -> Iterator[Event | None]:
        """The events of all workers, until none has anything left to do."""
        running = len(self._workers)
        while running:
            try:
                event = self.queue.get(timeout=POLL)
            except queue.Empty:
                yield None
                continue
            if isinstance(event, Exception):
                raise event
            if event is None:
                running -= 1
            else:
                yield event


class Worker(threading.Thread):
    """Sends cells to one process, and turns its messages into events."""

    def __init__(self, number: int, supervisor: Supervisor, killed: list[tuple[Cell, str]] | None) -> None:
        """`killed`: list that collects cells whose process was killed from outside; None: these are lost."""
        super().__init__(daemon=True)
        self.number, self.supervisor, self.killed = number, supervisor, killed
        self.work, self.settings = supervisor.work, supervisor.settings
        self.process: Process | None = None
        self.stopped = False

    def run(self) -> None:
        """Take cells until none is left."""
        try:
            while (taken := self.work.next(self._told_elsewhere, lambda: self.stopped)) is not None:
                cell, path = taken
                if path is not None:
                    self._tell("finished", cell, path=path, by_other=True)
                    continue
                try:
                    self._run_cell(cell)
                finally:
                    self.work.claims.release(cell)
        except Exception as error:  # not the error of a cell: it ends the run
            self.supervisor.queue.put(error)
        finally:
            self._close()
            self.supervisor.queue.put(None)

    def ask_to_stop(self) -> None:
        """Take no more cells, and stop the running one at its next step."""
        self.stopped = True
        process = self.process
        if process is not None:
            process.ask_to_stop()

    def kill(self) -> None:
        """Kill the process now."""
        process = self.process
        if process is not None:
            process.kill()

    def _tell(self, kind: str, cell: Cell, **what: Any) -> None:
        self.supervisor.queue.put(Event(kind, cell, self.number, **what))

    def _told_elsewhere(self, cell: Cell, holder: Holder) -> None:
        self.supervisor.queue.put(elsewhere(cell, holder, self.number))

    def _run_cell(self, cell: Cell) -> None:
        self._tell("started", cell)
        try:
            if self.process is None or self.process.is_over:
                self._close()
                self.process = self.supervisor.start(self.number)
            process = self.process
        except OSError as error:
            self._lose(cell, "LostWorker", f"No worker process could be started: {error}")
            return
        process.send(self.supervisor.request(cell))
        started = heard = told = time.monotonic()
        while True:
            if self.stopped:
                process.ask_to_stop()  # it may have been started after the request to stop
            is_over = process.is_over  # checked before reading what may be its last message
            message = process.next_message(POLL)
            now = time.monotonic()
            if message is None:
                if is_over:
                    break
                if process.waits:
                    started = heard = now
                if self._is_late(cell, process, now - started, now - heard):
                    return
                if now - max(heard, told) > SILENCE:
                    told = now
                    self._tell("note", cell, message=f"{cell.title}: no progress reported for {now - heard:.0f} s.")
                continue
            heard = now
            kind = message.pop("event", "")
            if kind not in OF_PROCESS and message.pop("cell", "") != cell.hash:
                continue  # the cell itself wrote something into the pipe
            if kind == "epoch":
                self.work.claims.tell(cell, message["stage"], message["epoch"], message["epochs"])
                self._tell("epoch", cell, **message)
                if self._is_late(cell, process, now - started, 0.0):
                    return
            elif kind in ("finished", "lost"):
                if message["leaves"]:
                    self._close()
                if kind == "finished":
                    self._tell("finished", cell, path=from_worker(message["path"]))
                else:
                    self._lose(cell, "LostWorker", message["message"])
                return
            elif kind == "ready":
                started = now  # the time to import torch does not count
            elif kind == "refused":
                raise BenchmarkError(message["message"])
            elif kind == "stopped":  # by this run, by a signal to all processes, or by the cell itself
                self._close()
                if not self.stopped:
                    self._go_on(cell, "Its process was asked to stop, and not by this run")
                return
        if not self.stopped:
            self._died(cell, process)

    def _died(self, cell: Cell, process: Process) -> None:
        """Handle a cell whose process has ended without a message."""
        cause = f"The worker process died: {process.cause_of_death()}"
        was_killed, is_lost = process.was_killed_by_others, process.is_lost
        self._close()
        path = self.work.new_record(cell)
        if path is not None:  # the cell is finished, only the message is missing
            self._tell("finished", cell, path=path)
        elif is_lost:
            self._go_on(cell, cause)
        elif was_killed and self.killed is not None:
            self.killed.append((cell, cause))
        else:
            self._lose(cell, "LostWorker", f"{cause}.")

    def _go_on(self, cell: Cell, cause: str) -> None:
        """Put back a cell whose process others have ended; not endlessly, as the cell itself may be the cause."""
        ended = self.supervisor.ended
        ended[cell.hash] += 1
        if ended[cell.hash] > TIMES_AGAIN:
            self._lose(cell, "LostWorker", f"{cause}.")
            return
        self._tell("note", cell, message=f"{cell.title}: {cause}. It goes on where it stood.")
        self.work.put_back(cell)

    def _lose(self, cell: Cell, kind: str, message: str) -> None:
        """Record a failure that no worker could record, before the claim is given back."""
        from debiasbench.running.runner import failed_record

        with contextlib.suppress(OSError):  # perhaps a full disk: the message is shown nevertheless
            device, executor = self.settings.devices[self.number], self.supervisor.name
            failed_record(cell, self.settings.results_dir, kind, message, device, executor)
        self._tell("lost", cell, message=message)

    def _is_late(self, cell: Cell, process: Process, seconds: float, silent: float) -> bool:
        """End a cell that exceeds a time limit; its checkpoint stays. Returns whether it was ended."""
        for limit, taken, option, what in (
            (self.settings.cell_timeout, seconds, "--cell-timeout", "It took"),
            (self.settings.silence_timeout, silent, "--silence-timeout", "It reported no progress for"),
        ):
            if limit is not None and taken > limit:
                process.end()
                self.process = None
                message = (
                    f"{what} longer than {option} allows ({limit:g} s). It goes on where it stood: --rerun failed."
                )
                self._lose(cell, "TimedOut", message)
                return True
        return False

    def _close(self) -> None:
        """End the process, which exits by itself if it can."""
        if self.process is not None:
            self.process.end()
            self.process = None


def for_worker(path: Path) -> str:
    """A path in the form of a process whose file names are UTF-8, as in workers."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def from_worker(path: str) -> Path:
    """A path from a worker, in the form of this process."""
    return Path(os.fsdecode(path.encode("utf-8", "surrogateescape")))


def log_path(results_dir: Path, cell: Cell) -> Path:
    """The file for a cell's own output."""
    record = record_path(results_dir, cell)
    return results_dir / "logs" / record.relative_to(results_dir / "records").with_suffix(".log")
