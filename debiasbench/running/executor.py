"""Executors train cells: on this machine (`local`), on a Ray cluster (`ray_cluster`) or a SLURM cluster (`slurm`).

An executor takes cells, reports events, and can be stopped. Display, failures, claims and results are the same for all
executors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.parameters import suggestion
from debiasbench.running.claims import Holder, Presence, Work

if TYPE_CHECKING:
    from debiasbench.training.journal import Curve

POLL = 1.0  # seconds
KINDS = ("local", "ray", "slurm")


@dataclass(frozen=True)
class Settings:
    """Settings for training, apart from the cell.

    Attributes:
        devices: one for each cell that runs at a time. resume: whether interrupted cells go on from their checkpoints.
        checkpoint_every: seconds between checkpoints.
        cell_timeout, silence_timeout: seconds after which a cell is ended, in total or without a sign of life; None:
            never. A process that takes as long to start is ended as well, as it must be stuck.
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
        """The kind of the devices: "cpu" or "cuda"."""
        return self.devices[0].partition(":")[0]


@dataclass(frozen=True)
class Event:
    """Something that happened to a cell.

    Attributes:
        kind: "started", "epoch", "elsewhere" (progress in another run, which trains it), "finished", "lost", or "note"
            (a message to show, which belongs to no worker).
        curve: the values of an epoch that has ended: name, value, epoch.
        path: the record of a finished cell. by_other: whether another run has finished it.
    """

    kind: str
    cell: Cell
    worker: int
    stage: str = ""
    epoch: int = 0
    epochs: int = 0
    curve: Curve = ()
    path: Path | None = None
    message: str = ""
    by_other: bool = False


def elsewhere(cell: Cell, holder: Holder, worker: int) -> Event:
    """The progress of a cell that another run trains."""
    stage = f"in another run ({holder.host}) {holder.stage}".rstrip()
    return Event("elsewhere", cell, worker, stage=stage, epoch=holder.epoch, epochs=holder.epochs)


class Executor(Protocol):
    """Where cells are trained.

    Attributes:
        devices: one for each cell that runs at a time: "cpu", "cuda:0". threads: torch threads for each.
    """

    devices: tuple[str, ...]
    threads: int

    def check(self, cells: Sequence[Cell], settings: Settings) -> None:
        """Refuse a run that would fail, before anything trains.

        Raises:
            BenchmarkError: machines cannot be reached or have other versions, or folders are not shared.
        """

    def script(self, settings: Settings) -> str:
        """The script that a cluster is given, for display; "" if there is none."""

    def submit(self, work: Work, settings: Settings) -> None:
        """Start training."""

    def leave(self, work: Work, settings: Settings) -> str:
        """Start training that goes on without this process; returns the command that stops it, "" if none can go on."""

    def events(self) -> Iterator[Event | None]:
        """The events, until nothing is left to do; None if nothing happened for `POLL` seconds.

        Raises:
            BenchmarkError: the executor cannot go on.
        """

    def stop(self) -> None:
        """Stop the running cells, with a checkpoint; those that take too long are ended without one."""


def run_cells(executor: Executor, work: Work, settings: Settings, handle: Callable[[Event], None]) -> None:
    """Train all cells, calling `handle` in this thread for every event; returns when all are finished or lost.

    On KeyboardInterrupt (or any error in `handle`) the running cells are stopped. Records written so far stay.

    Raises:
        BenchmarkError: the results folder was deleted meanwhile; the executor cannot go on.
    """
    checked = time.monotonic()
    with Presence(settings.results_dir) as there, work.claims:
        try:
            executor.submit(work, settings)
            for event in executor.events():
                if event is not None:
                    handle(event)
                if time.monotonic() - checked > POLL:
                    there.check()
                    checked = time.monotonic()
        finally:
            executor.stop()


def kind_of(name: str) -> tuple[str, str]:
    """The kind and the address of an executor: "ray:10.0.0.1:6379" has kind "ray" and address "10.0.0.1:6379".

    Raises:
        BenchmarkError: the kind is unknown, or it takes no address.
    """
    kind, colon, address = name.partition(":")
    if kind not in KINDS or (colon and (kind != "ray" or not address)):
        raise BenchmarkError(
            f"Unknown executor '{name}'.{suggestion(kind, KINDS)} Allowed: local, ray, ray:HOST:PORT, slurm."
        )
    return kind, address
