"""Run many cells in worker processes: one thread each on a CPU, or one process a GPU."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.files import to_path
from debiasbench.records import record_path
from debiasbench.running.claims import Holder, Presence, Work
from debiasbench.running.global_state import GlobalState
from debiasbench.running.process import GRACE, WorkerProcess

POLL = 1.0  # seconds
SILENCE = 300.0  # seconds without a sign of life, after which it is told, and told again


@dataclass(frozen=True)
class Settings:
    """What workers need besides the cell.

    Attributes:
        devices: one a worker. resume: interrupted cells go on where they stood. checkpoint_every: seconds.
        cell_timeout, silence_timeout: seconds after which a cell is ended, in all or of silence; None: never.
    """

    data_dir: Path
    results_dir: Path
    devices: tuple[str, ...]
    threads: int = 1
    save_weights: bool = False
    reuse: bool = True
    resume: bool = True
    checkpoint_every: float = 60.0
    cell_timeout: float | None = None
    silence_timeout: float | None = None

    @property
    def device_kind(self) -> str:
        """What kind the devices are of: "cpu" or "cuda"."""
        return self.devices[0].partition(":")[0]


@dataclass(frozen=True)
class Event:
    """What happened.

    Attributes:
        kind: "started", "epoch", "elsewhere" (another run trains it: how far it is), "finished", "lost", or "note" (a
            message to show, of no worker).
        path: of a finished cell, its record. by_other: whether another run has finished it.
    """

    kind: str
    cell: Cell
    worker: int
    stage: str = ""
    epoch: int = 0
    epochs: int = 0
    path: Path | None = None
    message: str = ""
    by_other: bool = False


Events = queue.Queue[Event | Exception | None]  # None: a worker has nothing left to do


def run_cells(work: Work, settings: Settings, handle: Callable[[Event], None]) -> None:
    """Run all cells, calling `handle` in this thread for every event; returns when all are finished or lost.

    A worker that dies takes one cell with it ("lost"); a new worker takes its place. One that was killed from outside,
    as a rule for want of memory, has its cell tried once more when all others are done, alone. On KeyboardInterrupt (or
    any error of `handle`) workers are asked to stop, which write a checkpoint, and are killed if they do not; on a
    second one they are killed at once. Records written so far stay.

    Raises:
        BenchmarkError: the results folder was deleted meanwhile.
    """
    events: Events = queue.Queue()
    killed: list[tuple[Cell, str]] = []
    with Presence(settings.results_dir) as there, work.claims:
        n_workers = min(len(settings.devices), len(work.cells))
        spare = killed if n_workers > 1 else None
        _run([_Worker(number, settings, work, events, spare) for number in range(n_workers)], there, events, handle)
        for cell, cause in killed:
            handle(Event("note", cell, 0, message=f"{cell.title}: {cause}. It is tried once more, alone."))
            work.put_back(cell)
        if killed:
            _run([_Worker(0, settings, work, events, None)], there, events, handle)


def _run(workers: list[_Worker], there: Presence, events: Events, handle: Callable[[Event], None]) -> None:
    """Run workers until each has nothing left to do."""
    checked = time.monotonic()
    try:
        for worker in workers:
            worker.start()
        running = len(workers)
        while running:
            with contextlib.suppress(queue.Empty):
                event = events.get(timeout=POLL)
                if event is None:
                    running -= 1
                elif isinstance(event, Exception):
                    raise event
                else:
                    handle(event)
            if time.monotonic() - checked > POLL:
                there.check()
                checked = time.monotonic()
    finally:
        try:
            for worker in workers:
                worker.ask_to_stop()
            deadline = time.monotonic() + GRACE
            for worker in workers:
                if worker.ident is not None:
                    worker.join(timeout=max(0.0, deadline - time.monotonic()))
        finally:
            for worker in workers:
                worker.kill()


def run_cells_here(work: Work, settings: Settings, handle: Callable[[Event], None]) -> None:
    """Run all cells one after another in this process, so that `print` and debuggers work in methods.

    As `run_cells`, but what a method prints goes to the console, and so does the traceback of a cell that fails.
    """
    from debiasbench.records import read_record
    from debiasbench.running.runner import Runner, settle_torch

    state = GlobalState()
    settle_torch(settings.threads)
    runner = Runner(
        data_dir=settings.data_dir, results_dir=settings.results_dir, device=settings.devices[0],
        save_weights=settings.save_weights, reuse=settings.reuse, resume=settings.resume, threads=settings.threads,
        checkpoint_every=settings.checkpoint_every,
    )  # fmt: skip
    with contextlib.ExitStack() as until_the_end:
        until_the_end.callback(state.put_back)
        there = until_the_end.enter_context(Presence(settings.results_dir))
        until_the_end.enter_context(work.claims)
        while (taken := work.next(lambda cell, holder: handle(_elsewhere(cell, holder, 0)))) is not None:
            cell, path = taken
            if path is not None:
                handle(Event("finished", cell, 0, path=path, by_other=True))
                continue
            handle(Event("started", cell, 0))

            def told(stage: str, epoch: int, epochs: int, cell: Cell = cell) -> None:
                work.claims.tell(cell, stage, epoch, epochs)
                handle(Event("epoch", cell, 0, stage=stage, epoch=epoch, epochs=epochs))

            try:
                path = runner.run(cell, told)
            finally:
                work.claims.release(cell)
            failure = read_record(path).failure
            if failure is not None:
                handle(Event("note", cell, 0, message=failure.traceback.rstrip()))
            handle(Event("finished", cell, 0, path=path))
            there.check()


def _elsewhere(cell: Cell, holder: Holder, worker: int) -> Event:
    """How far another run is with a cell."""
    stage = f"in another run ({holder.host}) {holder.stage}".rstrip()
    return Event("elsewhere", cell, worker, stage=stage, epoch=holder.epoch, epochs=holder.epochs)


class _Worker(threading.Thread):
    """Feeds one process with cells and turns its messages into events."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        work: Work,
        events: Events,
        killed: list[tuple[Cell, str]] | None,
    ) -> None:
        """`killed`: where cells go whose process was killed from outside; None: they are lost."""
        super().__init__(daemon=True)
        self.number, self.settings, self.work, self.events, self.killed = number, settings, work, events, killed
        self.process: WorkerProcess | None = None
        self.stopped = False

    def run(self) -> None:
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
        except Exception as error:  # no cell's own: it ends the run
            self.events.put(error)
        finally:
            self._close()
            self.events.put(None)

    def ask_to_stop(self) -> None:
        """Take no more cells, and end the running one at its next step."""
        self.stopped = True
        process = self.process
        if process is not None:
            process.ask_to_stop()

    def kill(self) -> None:
        """End the process now."""
        process = self.process
        if process is not None:
            process.kill()

    def _tell(self, kind: str, cell: Cell, **what: Any) -> None:
        self.events.put(Event(kind, cell, self.number, **what))

    def _told_elsewhere(self, cell: Cell, holder: Holder) -> None:
        self.events.put(_elsewhere(cell, holder, self.number))

    def _run_cell(self, cell: Cell) -> None:
        self._tell("started", cell)
        try:
            if self.process is None or self.process.is_over:
                self._close()
                self.process = WorkerProcess(self._settings())
            process = self.process
        except OSError as error:
            self._lose(cell, "LostWorker", f"No worker process could be started: {error}")
            return
        process.send({
            "cell": cell.to_record(),
            "root": for_worker(to_path(cell.root)) if cell.root else cell.root,
            "log": for_worker(log_path(self.settings.results_dir, cell)),
        })  # fmt: skip
        started = heard = told = time.monotonic()
        while True:
            if self.stopped:
                process.ask_to_stop()  # one that was started meanwhile
            is_over = process.is_over  # before its last message is asked for
            message = process.next_message(POLL)
            now = time.monotonic()
            if message is None:
                if is_over:
                    break
                if self._is_late(cell, process, now - started, now - heard):
                    return
                if now - max(heard, told) > SILENCE:
                    told = now
                    self._tell("note", cell, message=f"{cell.title}: no progress reported for {now - heard:.0f} s.")
                continue
            heard = now
            kind = message.pop("event")
            if kind == "epoch":
                self.work.claims.tell(cell, **message)
                self._tell("epoch", cell, **message)
                if self._is_late(cell, process, now - started, 0.0):
                    return
            elif kind == "finished":
                if message["leaves"]:
                    self._close()
                self._tell("finished", cell, path=from_worker(message["path"]))
                return
            elif kind == "ready":
                started = now  # importing torch is not the cell's
            elif kind == "lost":
                self._lose(cell, "LostWorker", message["message"])
                return
            elif kind == "stopped":  # if not by this run, by somebody who signals every process
                self._close()
                if not self.stopped:
                    self.work.put_back(cell)
                return
        if self.stopped:
            return
        cause, was_killed = f"The worker process died: {process.cause_of_death()}", process.was_killed_by_others
        self._close()
        if self.killed is not None and was_killed:
            self.killed.append((cell, cause))
        else:
            self._lose(cell, "LostWorker", f"{cause}.")

    def _lose(self, cell: Cell, kind: str, message: str) -> None:
        """Record a failure that no worker could, before the claim is given back."""
        from debiasbench.running.runner import failed_record

        with contextlib.suppress(OSError):  # a full disk, perhaps: the message is shown all the same
            failed_record(cell, self.settings.results_dir, kind, message, self.settings.devices[self.number])
        self._tell("lost", cell, message=message)

    def _is_late(self, cell: Cell, process: WorkerProcess, seconds: float, silent: float) -> bool:
        """End a cell that takes longer than it may; its checkpoint stays."""
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

    def _settings(self) -> dict[str, Any]:
        device = self.settings.devices[self.number]
        return {
            "data_dir": for_worker(self.settings.data_dir),
            "results_dir": for_worker(self.settings.results_dir),
            "device": device,
            "threads": self.settings.threads,
            "save_weights": self.settings.save_weights,
            "reuse": self.settings.reuse,
            "resume": self.settings.resume,
            "checkpoint_every": self.settings.checkpoint_every,
            "memory_fraction": 0.5 / self.settings.devices.count(device),
        }

    def _close(self) -> None:
        """End the process, which leaves by itself if it can."""
        if self.process is not None:
            self.process.end()
            self.process = None


def for_worker(path: Path) -> str:
    """A path as a process has it whose file names are UTF-8, as a worker's are."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def from_worker(path: str) -> Path:
    """A path of a worker as this process has it."""
    return Path(os.fsdecode(path.encode("utf-8", "surrogateescape")))


def log_path(results_dir: Path, cell: Cell) -> Path:
    """Where a cell's own output goes."""
    record = record_path(results_dir, cell)
    return results_dir / "logs" / record.relative_to(results_dir / "records").with_suffix(".log")


def worker_devices(device: str, workers: int | None) -> tuple[str, ...]:
    """One device for each worker: all cores or all GPUs by default; 0 workers are this process, on one device.

    Raises:
        BenchmarkError: no such device here; less than no worker.
    """
    import torch

    from debiasbench.running.runner import default_device, n_cores

    if workers is not None and workers < 0:
        raise BenchmarkError(f"--workers must be at least 0 (0: cells run in this process). Got {workers}.")
    device = default_device() if device == "auto" else device
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise BenchmarkError(f"Unknown device '{device}'. Allowed: auto, cpu, cuda, cuda:0, ...") from None
    if kind.type == "cuda":
        n_gpus = torch.cuda.device_count()
        if n_gpus <= (kind.index or 0):
            raise BenchmarkError(f"--device {device}: {n_gpus} GPUs are visible to torch here. Use --device cpu.")
        if kind.index is None:
            return tuple(f"cuda:{number % n_gpus}" for number in range(workers or n_gpus))
    return (device,) * (workers or (n_cores() if kind.type == "cpu" else 1))
