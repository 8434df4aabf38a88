"""Progress: a live display on a terminal or in a notebook; elsewhere plain lines, at least one a minute."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Self

from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from debiasbench.console import PlainConsole, console, live
from debiasbench.records import read_record
from debiasbench.running.pace import Pace
from debiasbench.running.plan import Plan
from debiasbench.wording import duration

if TYPE_CHECKING:
    from debiasbench.cell import Cell
    from debiasbench.running.executor import Event

EVERY = 60.0  # seconds between lines where there is no terminal, such as in a cluster's log file
MOST_NAMED = 3  # running cells named in such a line


@dataclass
class Running:
    """A cell that is being trained.

    Attributes:
        title: of the cell.
        cost: in vanilla runs.
        epochs: of a vanilla run; None if the recipe counts steps.
        started: time of its first event, on the monotonic clock (seconds).
        reached: stage -> the epoch that it has reached.
        of: number of epochs of the present stage.
        pace: the time that its epochs take.
    """

    title: str
    cost: float
    epochs: int | None
    started: float
    reached: dict[str, int] = field(default_factory=dict)
    of: int = 1
    pace: Pace = field(default_factory=Pace)

    @classmethod
    def of_cell(cls, cell: Cell, cost: float) -> Running:
        """A cell at its first event."""
        epochs = None if cell.recipe.get("steps") else cell.recipe.get("epochs")
        return cls(cell.title, cost, epochs, time.monotonic())

    def hear(self, stage: str, epoch: int, epochs: int) -> None:
        """Note its progress."""
        self.pace.hear(stage, epoch)
        self.reached[stage], self.of = epoch, max(epochs, 1)

    @property
    def fraction(self) -> float:
        """The part of it that is done, by the epochs of all its stages; at most 0.95."""
        return min(0.95, sum(self.reached.values()) / (self.cost * (self.epochs or self.of)))

    def __str__(self) -> str:
        if not self.reached:
            return f"{self.title}: loading data"
        stage, epoch = list(self.reached.items())[-1]
        each = self.pace.seconds_an_epoch
        return f"{self.title}: {stage}, epoch {epoch}/{self.of}" + (f", {each:.3g} s an epoch" if each else "")


def _words(text: str, style: str = "none") -> TextColumn:
    """A column of text without markup."""
    return TextColumn(text, style, markup=False)


class Display:
    """Shows progress of the grid, and the cell, stage and epoch of each worker; estimates the time left."""

    def __init__(self, planned: Plan, shown_on: PlainConsole | None = None) -> None:
        self.console = shown_on or console(stderr=True)
        self.costs = {cell.hash: planned.grid.relative_costs.get(cell.hash, 1.0) for cell in planned.to_run}
        self.total_cost = sum(self.costs.values()) or 1.0
        self.done_cost = 0.0
        self.n_failed = 0
        self.started = time.monotonic()
        self.rows: dict[int, TaskID] = {}
        self.running: dict[int, Running] = {}  # by worker
        self.told = self.started
        self.grid_bar = Progress(
            _words("grid", "bold"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn(),
            _words("{task.fields[left]}"), console=self.console,
        )  # fmt: skip
        self.grid_task = self.grid_bar.add_task("grid", total=len(planned.to_run), left="")
        self.cell_bars = Progress(
            _words("  {task.fields[title]}"), _words("{task.fields[stage]}", "dim"), BarColumn(20),
            _words("epoch {task.completed:.0f}/{task.total:.0f}"), console=self.console,
        )  # fmt: skip
        self.live = live(Group(self.grid_bar, self.cell_bars), self.console)

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def handle(self, event: Event) -> None:
        """Show one event."""
        if event.kind == "note":
            self.console.print(event.message, style="yellow", soft_wrap=True)
            return
        if event.kind == "started":
            self.running[event.worker] = Running.of_cell(event.cell, self.costs.get(event.cell.hash, 1.0))
            self._row(event, title=event.cell.title, stage="loading data", completed=0, total=1)
        elif event.kind in ("epoch", "elsewhere"):
            self._row(
                event, title=event.cell.title, stage=event.stage, completed=event.epoch, total=max(event.epochs, 1)
            )
            if event.worker not in self.running:  # a cell of another run, which may be within an epoch
                running = Running.of_cell(event.cell, self.costs.get(event.cell.hash, 1.0))
                running.pace = Pace(event.stage, event.epoch)
                self.running[event.worker] = running
            self.running[event.worker].hear(event.stage, event.epoch, event.epochs)
            self._tell_now_and_then()
        else:
            self._ended(event)
        self.grid_bar.update(self.grid_task, left=self._left())

    def _row(self, event: Event, **fields: object) -> None:
        """Update the row of a worker."""
        if event.worker not in self.rows:
            self.rows[event.worker] = self.cell_bars.add_task("", total=1, title="", stage="")
        shown = {name: self.console.shown(one) if isinstance(one, str) else one for name, one in fields.items()}
        self.cell_bars.update(self.rows[event.worker], **shown)  # type: ignore[arg-type]

    def _ended(self, event: Event) -> None:
        self.done_cost += self.costs.get(event.cell.hash, 1.0)
        running = self.running.pop(event.worker, None)
        self.grid_bar.advance(self.grid_task)
        seconds = time.monotonic() - (running.started if running else self.started)
        self.told = time.monotonic()
        took = "in another run" if event.by_other else f"{seconds:.0f} s"
        problem = event.message
        if event.path is not None:
            record = read_record(event.path)
            if record.failure is not None:
                problem = f"{record.failure.type}: {record.failure.message}"
        if problem:
            self.n_failed += 1
            self.console.print(f"failed  {event.cell.title} ({took}): {problem}", style="red")
        elif self.live is None:
            n_done = int(self.grid_bar.tasks[0].completed)
            total = int(self.grid_bar.tasks[0].total or 0)
            left = self._left()
            self.console.print(f"done {n_done}/{total}  {event.cell.title} ({took}){'  ' + left if left else ''}")

    def _tell_now_and_then(self) -> None:
        """Without a live display, print the progress of the grid and of its running cells every `EVERY` seconds."""
        if self.live is not None or time.monotonic() - self.told < EVERY:
            return
        self.told = time.monotonic()
        bar = self.grid_bar.tasks[0]
        named = [str(one) for one in islice(self.running.values(), MOST_NAMED)]
        more = f"and {len(self.running) - MOST_NAMED} more" if len(self.running) > MOST_NAMED else ""
        parts = [f"{int(bar.completed)}/{int(bar.total or 0)} done", *named, more, self._left()]
        self.console.print("; ".join(part for part in parts if part), soft_wrap=True)

    def _left(self) -> str:
        """The estimated time left, from the cost of what is done; "" while unknown."""
        done = self.done_cost + sum(one.cost * one.fraction for one in self.running.values())
        if not done:
            return ""
        seconds = (time.monotonic() - self.started) * (self.total_cost - done) / done
        return f"about {duration(seconds)} left" if seconds > 1 else ""
