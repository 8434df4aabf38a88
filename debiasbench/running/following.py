"""Follow a grid that runs elsewhere, using only the files of its results folder."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.files import write_atomically
from debiasbench.records import read_record, record_path
from debiasbench.running.claims import LEASE, Holder, is_at_work, running_cells, state_of
from debiasbench.running.pace import Pace
from debiasbench.running.plan import Plan
from debiasbench.running.slurm_queue import is_queued, told_jobs

States = list[list[int] | None]
CELLS = "cells.json"  # cells of the run started last, with the states of their records at its start


def tell_cells(results_dir: Path, planned: Plan) -> None:
    """Write down which cells a run will train, for those who follow it."""
    told = {name_of(results_dir, cell): states_of(record_path(results_dir, cell)) for cell in planned.to_run}
    write_atomically(results_dir / CELLS, json.dumps(told).encode())


@dataclass
class Seen:
    """A cell that is being trained.

    Attributes:
        name: place of its record below the folder of records, without suffix.
        holder: the run that trains it, and its progress.
        started: when it was first seen, on the monotonic clock (seconds).
        pace: the time that its epochs take.
    """

    name: str
    holder: Holder
    started: float = field(default_factory=time.monotonic)
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self.pace = Pace(self.holder.stage, self.holder.epoch)

    def see(self, holder: Holder) -> None:
        """Update it."""
        self.pace.hear(holder.stage, holder.epoch)
        self.holder = holder

    @property
    def seconds(self) -> float:
        """Seconds since it was first seen."""
        return time.monotonic() - self.started


@dataclass
class Following:
    """The progress of the run that was started last on a folder.

    Attributes:
        results_dir: the folder.
        waiting: records that are not written yet -> their states when the run was started.
        done: titles of finished cells, in the order in which they were seen to end.
        failed: titles of failed cells -> why, in one line.
        running: cells in training at the last look, by name.
        started: time of the first look, on the monotonic clock (seconds).
        sign: when a run was last seen at work, on the same clock.
        n_before: number of cells that had ended at the first look.
    """

    results_dir: Path
    waiting: dict[str, States]
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    running: dict[str, Seen] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    sign: float = field(default_factory=time.monotonic)
    n_before: int = 0

    @classmethod
    def of(cls, results_dir: Path) -> Following:
        """The run that was started last on a results folder.

        Raises:
            BenchmarkError: no run was started there.
        """
        try:
            told = json.loads((results_dir / CELLS).read_bytes())
            waiting = {path: [one and list(one) for one in states] for path, states in told.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            raise BenchmarkError(f"No run was started on {results_dir}: there is nothing to follow.") from None
        following = cls(results_dir, waiting)
        following.look()
        following.n_before = len(following.done) + len(following.failed)
        return following

    def look(self) -> list[Seen]:
        """Look for new records; returns the running cells.

        Raises:
            BenchmarkError: no run has been at work for a while, and records are missing.
        """
        for name, before in list(self.waiting.items()):
            path = self.results_dir / name
            now = states_of(path)
            if now == before:
                continue
            try:
                record = read_record(path)
            except BenchmarkError:
                continue  # try again at the next look
            del self.waiting[name]
            if record.failure is None and now[1] in (None, before[1]):  # an old failure may have been removed
                self.done.append(record.cell.title)
            else:
                self.failed[record.cell.title] = _reason(path)
        folder, running = self.results_dir / "running", {}
        for path, holder in running_cells(self.results_dir):
            name = path.relative_to(folder).with_suffix("").as_posix()
            running[name] = self.running.get(name, Seen(name, holder))
            running[name].see(holder)
        self.running = running
        if running or is_at_work(self.results_dir):
            self.sign = time.monotonic()
        elif self.waiting and time.monotonic() - self.sign > LEASE:  # a new run takes a while to begin
            if not any(
                is_queued(number) for _, number, cells in told_jobs(self.results_dir) if cells.keys() & self.waiting
            ):
                raise BenchmarkError(
                    f"No run is at work on {self.results_dir}, and {len(self.waiting)} cells have no record. The same "
                    "command goes on with them."
                )
            self.sign = time.monotonic()
        return list(running.values())

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the cells that have ended since the first look; None while none has."""
        ended = len(self.done) + len(self.failed) - self.n_before
        return (time.monotonic() - self.started) / ended * len(self.waiting) if ended else None


def _reason(record: Path) -> str:
    """Why a cell failed, from the failure beside its finished record, else from the record itself."""
    for path in (failure_beside(record), record):
        with contextlib.suppress(BenchmarkError):
            failure = read_record(path).failure
            if failure is not None:
                return f"{failure.type}: {failure.message}".partition("\n")[0]
    return "the record cannot be read"


def name_of(results_dir: Path, cell: Cell) -> str:
    """The name of a cell in the files of its results folder: the place of its record there."""
    return record_path(results_dir, cell).relative_to(results_dir).as_posix()


def states_of(record: Path) -> States:
    """The states of a record and of a failure beside it, as plain values for JSON."""
    return [list(one) if one else None for one in map(state_of, (record, failure_beside(record)))]


def failure_beside(record: Path) -> Path:
    """The path of a failure of a cell that has a finished record."""
    return record.with_name(record.name + ".failed")
