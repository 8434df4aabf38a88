"""Run many cells in worker processes: one thread each on a CPU, or one process a GPU."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debiasbench.about import PACKAGE
from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.files import to_path
from debiasbench.records import record_path
from debiasbench.running.global_state import GlobalState


@dataclass(frozen=True)
class Settings:
    """What workers need besides the cell."""

    data_dir: Path
    results_dir: Path
    devices: tuple[str, ...]  # one a worker
    threads: int = 1
    save_weights: bool = False
    reuse: bool = True

    @property
    def device_kind(self) -> str:
        """What kind the devices are of: "cpu" or "cuda"."""
        return self.devices[0].partition(":")[0]


@dataclass(frozen=True)
class Event:
    """What happened: kind is "started", "epoch", "finished", "lost", or "note" (a message to show, of no worker)."""

    kind: str
    cell: Cell
    worker: int
    stage: str = ""
    epoch: int = 0
    epochs: int = 0
    path: Path | None = None
    message: str = ""


def run_cells(cells: list[Cell], settings: Settings, handle: Callable[[Event], None]) -> None:
    """Run all cells, calling `handle` in this thread for every event; returns when all are finished or lost.

    A worker that dies takes one cell with it ("lost"); a new worker takes its place. On KeyboardInterrupt (or any
    error of `handle`) workers are stopped; records written so far stay.
    """
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in cells:
        waiting.put(cell)
    events: queue.Queue[Event | None] = queue.Queue()
    n_workers = min(len(settings.devices), len(cells))
    workers = [_Worker(number, settings, waiting, events) for number in range(n_workers)]
    try:
        for worker in workers:
            worker.start()
        running = n_workers
        while running:
            event = events.get()
            if event is None:
                running -= 1
            else:
                handle(event)
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join(timeout=10)


def run_cells_here(cells: list[Cell], settings: Settings, handle: Callable[[Event], None]) -> None:
    """Run all cells one after another in this process, so that `print` and debuggers work in methods.

    As `run_cells`, but what a method prints goes to the console, and so does the traceback of a cell that fails.
    """
    from debiasbench.records import read_record
    from debiasbench.running.runner import Runner, settle_torch

    state = GlobalState()
    settle_torch(settings.threads)
    runner = Runner(
        data_dir=settings.data_dir, results_dir=settings.results_dir, device=settings.devices[0],
        save_weights=settings.save_weights, reuse=settings.reuse, threads=settings.threads,
    )  # fmt: skip
    try:
        for cell in cells:
            handle(Event("started", cell, 0))

            def told(stage: str, epoch: int, epochs: int, cell: Cell = cell) -> None:
                handle(Event("epoch", cell, 0, stage=stage, epoch=epoch, epochs=epochs))

            path = runner.run(cell, told)
            failure = read_record(path).failure
            if failure is not None:
                handle(Event("note", cell, 0, message=failure.traceback.rstrip()))
            handle(Event("finished", cell, 0, path=path))
    finally:
        state.put_back()


class _Worker(threading.Thread):
    """Feeds one process with cells and turns its lines into events."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        waiting: queue.SimpleQueue[Cell],
        events: queue.Queue[Event | None],
    ) -> None:
        super().__init__(daemon=True)
        self.number, self.settings, self.waiting, self.events = number, settings, waiting, events
        self.process: subprocess.Popen[str] | None = None
        self.stopped = False

    def run(self) -> None:
        try:
            while not self.stopped:
                cell = self.waiting.get_nowait()
                self._run_cell(cell)
        except queue.Empty:
            pass
        finally:
            self._close()
            self.events.put(None)

    def stop(self) -> None:
        """End the process now."""
        self.stopped = True
        process = self.process
        if process and process.poll() is None:
            process.kill()  # records are written whole or not at all, so nothing is lost by it

    def _run_cell(self, cell: Cell) -> None:
        self.events.put(Event("started", cell, self.number))
        try:
            if self.process is None or self.process.poll() is not None:
                self._close()
                self.process = self._start_process()
            process = self.process
        except OSError as error:
            self.events.put(Event("lost", cell, self.number, message=f"No worker process could be started: {error}"))
            return
        if self.stopped:  # meanwhile: nobody would end this process
            process.kill()
            return
        assert process.stdin is not None
        assert process.stdout is not None
        request = {
            "cell": cell.to_record(),
            "root": for_worker(to_path(cell.root)) if cell.root else cell.root,
            "log": for_worker(log_path(self.settings.results_dir, cell)),
        }
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                message = json.loads(line)
                kind = message.pop("event")
                if kind == "epoch":
                    self.events.put(Event("epoch", cell, self.number, **message))
                elif kind == "finished":
                    self.events.put(Event("finished", cell, self.number, path=from_worker(message["path"])))
                    if message["leaves"]:
                        self._close()
                    return
                elif kind == "lost":
                    self.events.put(Event("lost", cell, self.number, message=message["message"]))
                    return
        except (BrokenPipeError, json.JSONDecodeError):
            pass
        if self.stopped:
            return
        code = process.wait()
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        hint = " (killed from outside, perhaps for want of memory)" if code == -signal.SIGKILL else ""
        self.events.put(Event("lost", cell, self.number, message=f"The worker process died: {cause}{hint}."))

    def _start_process(self) -> subprocess.Popen[str]:
        environment = dict(os.environ)
        # the package as this process found it, whether installed or run from a clone
        package_parent = str(PACKAGE.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_parent, environment.get("PYTHONPATH", "")]))
        environment["PYTHONSAFEPATH"] = environment["PYTHONUTF8"] = "1"
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(self.settings.threads)
        process = subprocess.Popen(
            [sys.executable, "-m", "debiasbench.running.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        assert process.stdin
        settings: dict[str, Any] = {
            "data_dir": for_worker(self.settings.data_dir),
            "results_dir": for_worker(self.settings.results_dir),
            "device": self.settings.devices[self.number],
            "threads": self.settings.threads,
            "save_weights": self.settings.save_weights,
            "reuse": self.settings.reuse,
            "memory_fraction": 0.5 / self.settings.devices.count(self.settings.devices[self.number]),
        }
        process.stdin.write(json.dumps(settings) + "\n")
        process.stdin.flush()
        return process

    def _close(self) -> None:
        """End the input, upon which the worker leaves by itself, and wait for it."""
        if self.process is None:
            return
        with contextlib.suppress(BrokenPipeError):  # it may have died with a request unread
            self.process.communicate()
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
