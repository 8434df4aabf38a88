"""Train cells on this machine, in worker processes (one per core or GPU) or in this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.running.claims import Presence, Work
from debiasbench.running.executor import Event, Settings, elsewhere
from debiasbench.running.global_state import GlobalState
from debiasbench.running.process import WorkerProcess
from debiasbench.running.supervision import Supervisor

if TYPE_CHECKING:
    from debiasbench.training.journal import Curve


class LocalExecutor(Supervisor):
    """Worker processes on this machine; each sees only its own GPU."""

    name = "local"

    def __init__(self, device: str, workers: int | None, per_device: int = 1) -> None:
        """Arguments as on the command line; `per_device`: workers that share a GPU.

        Raises:
            BenchmarkError: this machine has no such device, or a number of workers is too small.
        """
        from debiasbench.running.runner import n_cores

        self.devices = worker_devices(device, workers, per_device)
        if self.devices[0] != "cpu":  # CPU results depend on the number of threads, GPU results do not
            self.threads = max(1, n_cores() // len(self.devices))

    def check(self, cells: Sequence[Cell], settings: Settings) -> None:
        """Refuse nothing: this machine can run any cell."""

    def start(self, number: int) -> WorkerProcess:
        """Start a worker process."""
        device = self.devices[number]
        settings = self.process_settings(own_device(device), share=self.devices.count(device))
        return WorkerProcess(settings, visible_gpu(device, os.environ))


def own_device(device: str) -> str:
    """The name of a device in a process that sees no other GPU."""
    return "cuda:0" if device.startswith("cuda") else device


def visible_gpu(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variable that lets a process see only this GPU, of those that this process sees; none for CPU."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return {}
    seen = [one.strip() for one in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    number = int(index or 0)
    return {"CUDA_VISIBLE_DEVICES": seen[number] if seen else str(number)}


def worker_devices(device: str, workers: int | None, per_device: int = 1) -> tuple[str, ...]:
    """One device for each worker. Default: one worker per core, or `per_device` per GPU; 0 means this process.

    Raises:
        BenchmarkError: this machine has no such device, or a number of workers is too small.
    """
    import torch

    from debiasbench.running.runner import default_device, n_cores

    if workers is not None and workers < 0:
        raise BenchmarkError(f"--workers must be at least 0 (0: cells run in this process). Got {workers}.")
    if per_device < 1:
        raise BenchmarkError(f"--per-device must be at least 1 (workers that share a GPU). Got {per_device}.")
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
            return tuple(f"cuda:{number % n_gpus}" for number in range(workers or n_gpus * per_device))
        return (device,) * (workers or per_device)
    if per_device > 1:
        raise BenchmarkError(f"--per-device {per_device} is for GPUs, but the device is {device}. Use --workers.")
    return (device,) * (workers or n_cores())


def run_cells_here(work: Work, settings: Settings, handle: Callable[[Event], None]) -> None:
    """Run all cells one after another in this process, so that `print` and debuggers work in methods.

    Like `executor.run_cells`, but the console shows what methods print, and the traceback of a cell that fails.
    """
    from debiasbench.records import read_record
    from debiasbench.running.runner import Runner
    from debiasbench.training.journal import StoppedError

    state = GlobalState()
    runner = Runner(
        data_dir=settings.data_dir, results_dir=settings.results_dir, device=settings.devices[0],
        save_weights=settings.save_weights, reuse=settings.reuse, resume=settings.resume, threads=settings.threads,
        checkpoint_every=settings.checkpoint_every,
    )  # fmt: skip
    with contextlib.ExitStack() as until_the_end:
        until_the_end.callback(state.put_back)
        there = until_the_end.enter_context(Presence(settings.results_dir))
        until_the_end.enter_context(work.claims)
        while (taken := work.next(lambda cell, holder: handle(elsewhere(cell, holder, 0)))) is not None:
            cell, path = taken
            if path is not None:
                handle(Event("finished", cell, 0, path=path, by_other=True))
                continue
            handle(Event("started", cell, 0))

            def told(stage: str, epoch: int, epochs: int, curve: Curve, cell: Cell = cell) -> None:
                work.claims.tell(cell, stage, epoch, epochs)
                handle(Event("epoch", cell, 0, stage=stage, epoch=epoch, epochs=epochs, curve=curve))
                try:
                    there.check()
                except BenchmarkError:
                    runner.stop()  # an error raised here would count as the cell's failure

            try:
                path = runner.run(cell, told)
            except StoppedError:
                there.check()
                raise
            finally:
                work.claims.release(cell)
            failure = read_record(path).failure
            if failure is not None:
                handle(Event("note", cell, 0, message=failure.traceback.rstrip()))
            handle(Event("finished", cell, 0, path=path))
            there.check()
