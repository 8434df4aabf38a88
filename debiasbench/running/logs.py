"""Finished cells for TensorBoard or Weights & Biases (`--log`): their curves, final metrics and parameters."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from debiasbench.errors import BenchmarkError
from debiasbench.escaping import one_line
from debiasbench.files import file_name
from debiasbench.parameters import suggestion
from debiasbench.records import Record

KINDS = {"tensorboard": "tensorboard", "wandb": "wandb"}  # name -> the package that it needs


def check(kinds: Sequence[str]) -> None:
    """Refuse an unknown kind, or one whose package is not there, before anything trains."""
    for kind in kinds:
        if kind not in KINDS:
            raise BenchmarkError(f"Unknown log '{kind}'.{suggestion(kind, KINDS)} Known: {', '.join(KINDS)}.")
        if importlib.util.find_spec(KINDS[kind]) is None:
            raise BenchmarkError(
                f"--log {kind} needs the package {KINDS[kind]}, which is not installed: "
                f"pip install 'debiasbench[{kind}]'."
            )


def write(kind: str, record: Record, folder: Path) -> None:
    """Log one finished record below `folder`: a run for each cell, named dataset/method/seed."""
    {"tensorboard": _tensorboard, "wandb": _wandb}[kind](record, folder)


def name_of(record: Record) -> str:
    """`cmnist5k/vanilla/s0-1a2b3c4d`."""
    cell = record.cell
    return f"{cell.dataset_title}/{cell.method_title}/s{cell.seed}-{record.hash[:8]}"


def curves(record: Record) -> Iterator[tuple[str, float, int]]:
    """(`test/acc_unbiased`, value, epoch) of everything that was evaluated, and training losses by stage."""
    if record.result is None:
        return
    for row in record.result.epochs:
        for split, metrics in (("valid", row.valid), ("test", row.test)):
            for metric, value in metrics.items():
                if not metric.startswith("n"):
                    yield f"{split}/{metric}", value, row.epoch
    for number, stage in enumerate(record.result.stages, 1):
        for epoch, loss in enumerate(stage.train_loss, 1):
            yield f"stage {number}/train_loss", loss, epoch


def settings(record: Record) -> dict[str, Any]:
    """The cell's values, flat: `method.alpha`, `recipe.learning_rate`."""
    cell = record.cell
    parts = {"method": cell.method_parameters, "dataset": cell.dataset_parameters, "recipe": cell.recipe}
    named = {"method": cell.method, "dataset": cell.dataset, "seed": cell.seed}
    return named | {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}


def last_metrics(record: Record) -> dict[str, float]:
    """`last/acc_unbiased` on test, for comparing cells."""
    last = record.result.selected() if record.result else None
    return {f"last/{name}": value for name, value in (last.test if last else {}).items() if name.startswith("acc_")}


def short(text: str, most: int = 128) -> str:
    """Text on one line and at most so long, as services want names: its beginning and its end."""
    text = one_line(text)
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"


def _tensorboard(record: Record, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    plain = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in settings(record).items()
    }
    place = _emptied(folder / "tensorboard", record)
    with SummaryWriter(str(place)) as writer:
        for name, value, epoch in curves(record):
            writer.add_scalar(name, value, epoch)
        writer.add_hparams(plain, last_metrics(record), run_name=".")


def _emptied(folder: Path, record: Record) -> Path:
    """Where a record is logged below a folder, without the events of an earlier run: they would be drawn as well.

    Only such files are removed, and no link is followed, whatever the record's titles are and wherever it is from.

    Raises:
        BenchmarkError: a link leads out of the folder.
    """
    place = folder / file_name(record.cell.dataset_title) / file_name(record.cell.method_title)
    place /= f"s{record.cell.seed}-{record.hash[:8]}"
    if not place.resolve().is_relative_to(folder.resolve()):
        raise BenchmarkError(f"{place} leads out of {folder}: remove the link.")
    for events in place.glob("events.out.tfevents.*"):
        events.unlink()
    return place


def _wandb(record: Record, folder: Path) -> None:
    import wandb

    cell = record.cell
    run = wandb.init(
        project="debiasbench", name=short(name_of(record)), group=short(cell.dataset_title),
        job_type=short(cell.method_title),
        config=settings(record), dir=str(folder), reinit="create_new", id=record.hash[:16], resume="allow",
    )  # fmt: skip
    by_epoch: dict[int, dict[str, float]] = {}
    for name, value, epoch in curves(record):
        by_epoch.setdefault(epoch, {})[name] = value
    for epoch, values in sorted(by_epoch.items()):
        run.log(values, step=epoch)
    run.summary.update(last_metrics(record))
    run.finish()
