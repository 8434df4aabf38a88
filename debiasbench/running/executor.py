"""What trains cells: on this machine (`local`), on a Ray cluster (`ray_cluster`), or on a SLURM cluster (`slurm`).

An executor takes cells, hands on what happens, and can be stopped. Display, failures, claims and results are the same
with each.
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
    """What is needed to train besides the cell.

    Attributes:
        devices: one for each cell that runs at a time. resume: interrupted cells go on where they stood.
        checkpoint_every: seconds.
        cell_timeout, silence_timeout: seconds after which a cell is ended, in all or of silence; None: never. A process
            that has not started after that long is ended as well, as something hangs there.
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
        curve: of an epoch that has ended, its numbers: name, value, epoch.
        path: of a finished cell, its record. by_other: whether another run has finished it.
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
    """How far another run is with a cell."""
    stage = f"in another run ({holder.host}) {holder.stage}".rstrip()
    return Event("elsewhere", cell, worker, stage=stage, epoch=holder.epoch, epochs=holder.epochs)


class Executor(Protocol):
    """Where cells are trained.

    Attributes:
        devices: one for each cell that runs at a time: "cpu", "cuda:0". threads: of torch, for each.
    """

    devices: tuple[str, ...]
    threads: int

    def check(self, cells: Sequence[Cell], settings: Settings) -> None:
        """Refuse what would fail, before anything trains.

        Raises:
            BenchmarkError: machines that cannot be reached, other versions there, folders that are not shared.
        """

    def script(self, settings: Settings) -> str:
        """What a cluster is given, to look at; "" where that is no text."""

    def submit(self, work: Work, settings: Settings) -> None:
        """Begin to train."""

    def leave(self, work: Work, settings: Settings) -> str:
        """Begin to train what goes on without this process; returns the command that stops it, "" if nothing would."""

    def events(self) -> Iterator[Event | None]:
        """What happens, until nothing is left to do; None where nothing did for `POLL` seconds.

        Raises:
            BenchmarkError: it cannot go on.
        """

    def stop(self) -> None:
        """End what still runs, with a checkpoint; what takes longer is ended without."""


def run_cells(executor: Executor, work: Work, settings: Settings, handle: Callable[[Event], None]) -> None:
    """Train all cells, calling `handle` in this thread for every event; returns when all are finished or lost.

    On KeyboardInterrupt (or any error of `handle`) what runs is stopped. Records written so far stay.

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
    """The kind of an executor and what follows it: "ray:10.0.0.1:6379" is of the kind "ray", at "10.0.0.1:6379".

    Raises:
        BenchmarkError: there is none of that kind, or it takes no address.
    """
    kind, colon, address = name.partition(":")
    if kind not in KINDS or (colon and (kind != "ray" or not address)):
        raise BenchmarkError(
            f"Unknown executor '{name}'.{suggestion(kind, KINDS)} Allowed: local, ray, ray:HOST:PORT, slurm."
        )
    return kind, address
