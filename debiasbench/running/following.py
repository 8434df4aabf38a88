"""Follow a grid that runs elsewhere, from the files of its results folder alone."""

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
CELLS = "cells.json"  # the cells of the run that was started last, with the states of their records then


def tell_cells(results_dir: Path, planned: Plan) -> None:
    """Write down what a run is to train, for those who follow it."""
    told = {name_of(results_dir, cell): states_of(record_path(results_dir, cell)) for cell in planned.to_run}
    write_atomically(results_dir / CELLS, json.dumps(told).encode())


@dataclass
class Seen:
    """A cell that was seen to be trained.

    Attributes:
        name: where its record will be, below the folder of records.
        holder: who trains it, and how far it has come.
        started: when it was first seen, on the monotonic clock (seconds).
        pace: how fast it is.
    """

    name: str
    holder: Holder
    started: float = field(default_factory=time.monotonic)
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self.pace = Pace(self.holder.stage, self.holder.epoch)

    def see(self, holder: Holder) -> None:
        """Another look at it."""
        self.pace.hear(holder.stage, holder.epoch)
        self.holder = holder

    @property
    def seconds(self) -> float:
        """Since it was first seen."""
        return time.monotonic() - self.started


@dataclass
class Following:
    """How far the run is that was started last on a folder.

    Attributes:
        results_dir: the folder.
        waiting: records that are not written yet -> their states when the run was started.
        done: titles of cells, in the order in which they were seen to end.
        failed: such titles -> why, in a line.
        running: cells that were being trained at the last look, by name.
        started: when it was first looked at, on the monotonic clock (seconds).
        sign: when a run was last seen at work, on the same clock.
        n_before: cells that had ended when it was first looked at.
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
            BenchmarkError: there is none.
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
        """Look for new records; returns what is running.

        Raises:
            BenchmarkError: no run was at work for a while, and records are missing.
        """
        for name, before in list(self.waiting.items()):
            path = self.results_dir / name
            now = states_of(path)
            if now == before:
                continue
            try:
                record = read_record(path)
            except BenchmarkError:
                continue  # another look will tell
            del self.waiting[name]
            if record.failure is None and now[1] in (None, before[1]):  # it may have been cleared
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
        elif self.waiting and time.monotonic() - self.sign > LEASE:  # a run that is told to begin takes a while
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
        """By the cells that have ended since this was made; None while none has."""
        ended = len(self.done) + len(self.failed) - self.n_before
        return (time.monotonic() - self.started) / ended * len(self.waiting) if ended else None


def _reason(record: Path) -> str:
    """Why a cell failed: the failure beside a finished record, else in it."""
    for path in (failure_beside(record), record):
        with contextlib.suppress(BenchmarkError):
            failure = read_record(path).failure
            if failure is not None:
                return f"{failure.type}: {failure.message}".partition("\n")[0]
    return "the record cannot be read"


def name_of(results_dir: Path, cell: Cell) -> str:
    """What a cell is called in files of its results folder: where its record goes there."""
    return record_path(results_dir, cell).relative_to(results_dir).as_posix()


def states_of(record: Path) -> States:
    """Of a record and of a failure beside it, as JSON has them."""
    return [list(one) if one else None for one in map(state_of, (record, failure_beside(record)))]


def failure_beside(record: Path) -> Path:
    """Where a failure is recorded of a cell that has a finished record."""
    return record.with_name(record.name + ".failed")
