"""One job on a SLURM cluster, which shares the cells of a grid with the other jobs of its array."""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from debiasbench.files import write_atomically
from debiasbench.running.claims import Work
from debiasbench.running.executor import Event, Settings, run_cells
from debiasbench.running.local import LocalExecutor
from debiasbench.running.nodes import other_code, other_versions, unreachable
from debiasbench.running.process import GRACE

REFUSED = "refused.txt"  # file that says why jobs could not start


@dataclass
class Job:
    """The function that submitit calls in a job, and asks for a checkpoint.

    Attributes:
        versions, folders: requirements for the machine. mark: a file in the folder of the array.
        content: the cells with the digests of their code, the earlier states of their records, which records count, and
            the settings; pickled separately, because it is only read if versions are equal.
        device: "cpu" or "cuda". cpus: cores of the job. at_a_time, per_device: cells at a time, in total and per GPU.
    """

    versions: Mapping[str, str]
    folders: Sequence[Path]
    mark: Path
    content: bytes
    device: str
    cpus: int
    at_a_time: int
    per_device: int

    def __call__(self) -> None:
        """Train cells until all are finished or held by other jobs."""
        refusal = other_versions(self.versions) or unreachable(self.folders, self.mark)
        if not refusal:
            cells, before, accepts, settings = pickle.loads(self.content)
            refusal = next(filter(None, (other_code(cell, code) for cell, code in cells)), "")
        if refusal:
            write_atomically(self.mark.with_name(REFUSED), refusal.encode())
            return
        executor = _OfJob(self.device, self.at_a_time, self.per_device)
        executor.threads = max(1, self.cpus // self.at_a_time)
        settings = replace(settings, devices=executor.devices, threads=executor.threads)
        work = Work(
            [cell for cell, _ in cells], settings.results_dir, before=before, accepts=accepts, waits=False
        )  # fmt: skip
        _train(executor, work, settings)

    def checkpoint(self) -> Any:
        """Stop with checkpoints, and queue the job again: its time is nearly over, or it is preempted."""
        from submitit.helpers import DelayedSubmission

        _stop()
        return DelayedSubmission(self)


class _OfJob(LocalExecutor):
    """Worker processes in a job."""

    name = "slurm"


_running: tuple[LocalExecutor, threading.Thread] | None = None  # in the process of a job


def _train(executor: LocalExecutor, work: Work, settings: Settings) -> None:
    """Train in a separate thread: signals arrive in the main thread, and so do not interrupt the work midway."""
    global _running
    failed: list[BaseException] = []

    def train() -> None:
        try:
            run_cells(executor, work, settings, _say)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=train)
    _running = executor, thread
    signal.signal(signal.SIGTERM, lambda *_: _stop())  # cancelled, or preempted without notice to submitit
    thread.start()
    while thread.is_alive():
        thread.join(timeout=1.0)
    if failed:
        raise failed[0]


def _stop() -> None:
    """End the running cells, with checkpoints, and give all claims back."""
    if _running is not None:
        executor, thread = _running
        executor.stop()
        thread.join(timeout=GRACE)


def _say(event: Event) -> None:
    """Print a line to the log of the job."""
    if event.kind != "epoch":
        print(f"{event.kind}: {event.cell.title} {event.message}".rstrip(), flush=True)  # noqa: T201
