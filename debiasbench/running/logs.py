"""Log cells to TensorBoard or Weights & Biases (`--log`): curves during training, then metrics and parameters."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.escaping import one_line
from debiasbench.files import file_name
from debiasbench.parameters import suggestion
from debiasbench.records import Record
from debiasbench.training.journal import Curve, points_of

KINDS = {"tensorboard": "tensorboard", "wandb": "wandb"}  # name -> the package that it needs


def check(kinds: Sequence[str]) -> None:
    """Refuse an unknown kind, or one whose package is not installed, before anything trains."""
    for kind in kinds:
        if kind not in KINDS:
            raise BenchmarkError(f"Unknown log '{kind}'.{suggestion(kind, KINDS)} Known: {', '.join(KINDS)}.")
        if importlib.util.find_spec(KINDS[kind]) is None:
            raise BenchmarkError(
                f"--log {kind} needs the package {KINDS[kind]}, which is not installed: "
                f"pip install 'debiasbench[{kind}]'."
            )


class Live:
    """Logs the curves of cells while they train; a context."""

    def __init__(self, kinds: Sequence[str], folder: Path) -> None:
        self.kinds, self.folder = kinds, folder
        self._logs: dict[str, list[_Log]] = {}  # of cells in training, by hash

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for cell in list(self._logs):
            for log in self._logs.pop(cell):
                log.end(None)

    def add(self, cell: Cell, curve: Curve) -> None:
        """Log new points of a cell."""
        if not (self.kinds and curve):
            return
        logs = self._logs.get(cell.hash)
        self._logs[cell.hash] = []  # after an error, do not try again while the cell trains
        if logs is None:
            logs = [_LOGS[kind](cell, self.folder) for kind in self.kinds]
        for log in logs:
            log.add(curve)
        self._logs[cell.hash] = logs

    def end(self, record: Record) -> None:
        """Log the end of a cell; if it was not trained by this run, also its curves."""
        for log in self._logs.pop(record.hash, None) or [_LOGS[kind](record.cell, self.folder) for kind in self.kinds]:
            log.end(record)


def name_of(cell: Cell) -> str:
    """The name of a cell: `cmnist5k/vanilla/s0-1a2b3c4d`."""
    return f"{cell.dataset_title}/{cell.method_title}/s{cell.seed}-{cell.hash[:8]}"


def curves(record: Record) -> Iterator[tuple[str, float, int]]:
    """(`test/acc_unbiased`, value, epoch) for every evaluated metric, and for the training losses of each stage."""
    if record.result is None:
        return
    for row in record.result.epochs:
        yield from points_of(row)
    for number, stage in enumerate(record.result.stages, 1):
        for epoch, loss in enumerate(stage.train_loss, 1):
            yield f"stage {number}/train_loss", loss, epoch


def settings(cell: Cell) -> dict[str, Any]:
    """The parameters of a cell as a flat dictionary: `method.alpha`, `recipe.learning_rate`."""
    parts = {"method": cell.method_parameters, "dataset": cell.dataset_parameters, "recipe": cell.recipe}
    named = {"method": cell.method, "dataset": cell.dataset, "seed": cell.seed}
    return named | {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}


def last_metrics(record: Record) -> dict[str, float]:
    """Accuracies of the last epoch on test, such as `last/acc_unbiased`, for comparing cells."""
    last = record.result.selected() if record.result else None
    return {f"last/{name}": value for name, value in (last.test if last else {}).items() if name.startswith("acc_")}


def short(text: str, most: int = 128) -> str:
    """Text on one line of at most `most` characters, as services require of names; a longer one loses its middle."""
    text = one_line(text)
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"


class _Log(Protocol):
    """The run of one cell in another program."""

    def add(self, curve: Curve) -> None:
        """Add points."""

    def end(self, record: Record | None) -> None:
        """Finish the run, with the record if there is one."""


class _TensorBoard:
    """A folder of events; at the end they are rewritten from the record."""

    def __init__(self, cell: Cell, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.new_writer = lambda: SummaryWriter(str(_emptied(folder / "tensorboard", cell)))
        self.writer = self.new_writer()

    def add(self, curve: Curve) -> None:
        for name, value, epoch in curve:
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def end(self, record: Record | None) -> None:
        self.writer.close()
        if record is None:
            return
        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in settings(record.cell).items()
        }
        with self.new_writer() as self.writer:
            self.add(list(curves(record)))
            self.writer.add_hparams(plain, last_metrics(record), run_name=".")


def _emptied(folder: Path, cell: Cell) -> Path:
    """The folder in which a cell is logged. Events of an earlier run are deleted, as they would be plotted as well.

    Only such files are deleted, and no link is followed, whatever the titles are and wherever the record comes from.

    Raises:
        BenchmarkError: a link leads out of the folder.
    """
    place = folder / file_name(cell.dataset_title) / file_name(cell.method_title) / f"s{cell.seed}-{cell.hash[:8]}"
    if not place.resolve().is_relative_to(folder.resolve()):
        raise BenchmarkError(f"{place} leads out of {folder}: remove the link.")
    for events in place.glob("events.out.tfevents.*"):
        events.unlink()
    return place


class _WandB:
    """A run of Weights & Biases, with the epoch as the x-axis."""

    def __init__(self, cell: Cell, folder: Path) -> None:
        import wandb

        self.is_new = True
        self.run = wandb.init(
            project="debiasbench", name=short(name_of(cell)), group=short(cell.dataset_title),
            job_type=short(cell.method_title), config=settings(cell), dir=str(folder), reinit="create_new",
            id=cell.hash[:16], resume="allow",
        )  # fmt: skip
        self.run.define_metric("*", step_metric="epoch")  # epochs of a second stage start at 1 again

    def add(self, curve: Curve) -> None:
        self.is_new = False
        by_epoch: dict[int, dict[str, float]] = {}
        for name, value, epoch in curve:
            by_epoch.setdefault(epoch, {})[name] = value
        for epoch, values in sorted(by_epoch.items()):
            self.run.log({**values, "epoch": epoch})

    def end(self, record: Record | None) -> None:
        if record is not None:
            if self.is_new:
                self.add(list(curves(record)))
            self.run.summary.update(last_metrics(record))
        self.run.finish()


_LOGS: dict[str, Callable[[Cell, Path], _Log]] = {"tensorboard": _TensorBoard, "wandb": _WandB}
