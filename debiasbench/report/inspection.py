"""How biased a dataset is: counts, conflict ratios, mutual information, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from debiasbench.data.checks import check_splits
from debiasbench.datasets import Dataset
from debiasbench.drawing import lacking
from debiasbench.errors import BenchmarkError, raised_by
from debiasbench.files import file_name
from debiasbench.report.tables import NOTHING, Column, Entry, Table, count, number, words
from debiasbench.samples import Samples, Splits

MOST_LISTED = 40  # groups of (label, bias) in the table; with ten classes and ten colours, the smallest group is enough


def inspect(dataset: Dataset, title: str, *, data_dir: Path, results_dir: Path) -> tuple[list[Table], list[Path]]:
    """Tables of each split, and contact sheets that show the bias."""
    with raised_by(f"The data of {dataset.name} cannot be built"):
        splits = dataset.build_labels(data_dir)
    with_x = not isinstance(splits, Splits) or splits.train.x.shape[1:] != (0,)  # see `Dataset.build_labels`
    check_splits(dataset, splits, with_x=with_x)
    rows = [
        _row(dataset, split, samples, index, bias_name)
        for split, samples in splits.named().items()
        for index, bias_name in enumerate(dataset.bias_names)
    ]
    columns = [
        Column("split", "split", numeric=False), Column("n", "n"), Column("bias", "bias", numeric=False),
        Column("conflicting", "conflicting"), Column("ratio", "ratio"), Column("information", "information (nats)"),
        Column("smallest", "smallest group"),
    ]  # fmt: skip
    notes = [
        *([f"Data fingerprint {splits.fingerprint()[:16]}."] if with_x else []),  # the fingerprint covers the inputs
        " ".join(["The data are complete." if splits.official else "NOT the published data.", splits.note]).strip(),
        "information: mutual information of label and bias, less its upward bias (C - 1)(K - 1) / 2N; "
        f"at most ln {dataset.n_classes} = {np.log(dataset.n_classes):.2f}.",
        "smallest group: over (label, bias), empty ones included.",
    ]
    heading = f"{title}: {dataset.n_classes} classes ({', '.join(dataset.class_names)})"
    tables = [Table("inspection", heading, columns, rows, notes)]
    if dataset.group_names:
        tables.append(_overlapping_groups(dataset, splits))
    elif len(dataset.bias_names) == 1 and 0 < dataset.n_classes * dataset.n_bias_values <= MOST_LISTED:
        tables.append(_groups(dataset, splits))
    if dataset.input == "text" and with_x:
        tables.append(_lengths(splits))
    paths = contact_sheets(dataset, title, splits, results_dir / "inspect")
    named = [title, *dataset.class_names, *dataset.bias_names, *chain.from_iterable(dataset.bias_values)]
    if paths and (boxes := lacking(named)):
        notes.append(f"The pictures show boxes for {boxes}: no installed font has them.")
    return tables, paths


def _overlapping_groups(dataset: Dataset, splits: Splits) -> Table:
    """The size of each evaluation group, by split."""
    counts = {name: part.groups.sum(0).tolist() for name, part in splits.named().items() if part.groups is not None}
    notes = ["These groups overlap: a sample may be in several, or in none."]
    return _sizes(dataset.group_names, counts, notes)


def _groups(dataset: Dataset, splits: Splits) -> Table:
    """The size of each group of (label, bias), by split."""
    n_values = dataset.n_bias_values
    values = [dataset.bias_value(0, value) for value in range(n_values)]
    counts = {}
    for name, part in splits.named().items():
        known = part.bias[:, 0] >= 0
        group = part.y[known] * n_values + part.bias[known, 0]
        counts[name] = group.bincount(minlength=dataset.n_classes * n_values).tolist()
    names = [f"{label} / {value}" for label in dataset.class_names for value in values]
    return _sizes(names, counts, [f"label / {dataset.bias_names[0]}; samples whose bias is not known are in none."])


def _sizes(names: Sequence[str], counts: Mapping[str, Sequence[int]], notes: list[str]) -> Table:
    """One row per group, and one column per split with its sizes in the order of the names."""
    rows = [[*words(name), *(count(sizes[index]) for sizes in counts.values())] for index, name in enumerate(names)]
    columns = [Column("group", "group", numeric=False), *(Column(name, name) for name in counts)]
    return Table("groups", "Evaluation groups", columns, rows, notes)


def _lengths(splits: Splits) -> Table:
    """The lengths of the texts, in tokens."""
    rows = []
    for name, part in splits.named().items():
        assert part.length is not None
        quantiles = np.quantile(part.length.numpy(), [0.5, 0.9, 1.0])
        cut = float((part.length == part.x.shape[1]).double().mean())
        rows.append([*words(name), *(number(one, "{:.0f}".format) for one in quantiles), number(cut, "{:.1%}".format)])
    headings = {"median": "median", "high": "90 %", "longest": "longest", "cut": "as long as allowed"}
    columns = [Column("split", "split", numeric=False), *(Column(*pair) for pair in headings.items())]
    return Table("lengths", "Tokens a text", columns, rows, [])


def _row(dataset: Dataset, split: str, samples: Samples, index: int, bias_name: str) -> list[Entry]:
    y, bias = samples.y.cpu().numpy(), samples.bias[:, index].cpu().numpy()
    row = [*words(split), count(len(y)), *words(bias_name)]
    known = bias >= 0
    if not known.any():
        return [*row, Entry(None, "unknown"), Entry(None, "unknown"), NOTHING, NOTHING]
    if dataset.defines_conflicts:
        n_conflicting = int(samples.conflicting[:, index].sum())
        row += [count(n_conflicting), number(n_conflicting / known.sum(), "{:.2%}".format)]
    else:
        row += [Entry(None, "not defined"), NOTHING]
    n_values = max(dataset.n_bias_values, int(bias.max()) + 1)
    counts = np.zeros((dataset.n_classes, n_values), dtype=int)
    np.add.at(counts, (y[known], bias[known]), 1)
    label, value = np.unravel_index(counts.argmin(), counts.shape)
    group = f"{dataset.class_names[label]} / {dataset.bias_value(index, int(value))}"
    smallest = f"{counts.min()} ({group}; {int((counts == 0).sum())} empty)"
    return [*row, number(mutual_information(counts), "{:.3f}".format), Entry(int(counts.min()), smallest)]


def mutual_information(counts: np.ndarray) -> float:
    """Mutual information in nats from a table of counts (C, K), less its bias (C - 1)(K - 1) / 2N, at least 0."""
    fraction = counts / counts.sum()
    independent = fraction.sum(1, keepdims=True) * fraction.sum(0, keepdims=True)
    positive = fraction > 0
    value = float((fraction[positive] * np.log(fraction[positive] / independent[positive])).sum())
    correction = (counts.shape[0] - 1) * (counts.shape[1] - 1) / (2 * counts.sum())
    return max(0.0, value - correction)


def sides_of(dataset: Dataset, splits: Splits, column: int) -> list[tuple[str, Samples, torch.Tensor]]:
    """The two sides of a contact sheet, each as its name, samples, and which of them belong to it (bool).

    The sides are aligned and conflicting training samples. If a bias with two values does not follow from the label,
    they are the two values; if the bias is unknown, the training and test samples.
    """
    train = splits.train
    bias, conflicting = train.bias[:, column], train.conflicting[:, column]
    if bool((bias < 0).all()):
        return [(name, part, torch.ones_like(part.y, dtype=torch.bool)) for name, part in
                (("training", train), ("test", splits.test))]  # fmt: skip
    if train.conflict is not None and dataset.n_bias_values == 2:
        name, values = dataset.bias_names[column], [dataset.bias_value(column, value) for value in (0, 1)]
        told = values if all(name in value for value in values) else [f"{name} = {value}" for value in values]
        return [(one, train, bias == value) for value, one in enumerate(told)]
    return [("aligned", train, ~conflicting & (bias >= 0)), ("conflicting", train, conflicting)]


def contact_sheets(dataset: Dataset, title: str, splits: Splits, folder: Path, *, n_each: int = 4) -> list[Path]:
    """Draw one sheet per bias, with a row for each class and the two sides from `sides_of` on the left and right.

    With more classes than pictures per class, classes are columns, and the two sides are above and below.
    """
    from debiasbench.report.figures import contact_sheet

    samples = splits.train
    if samples.x.ndim != 4:
        return []
    paths = []
    for column, bias_name in enumerate(dataset.bias_names):
        sides = sides_of(dataset, splits, column)
        blank = np.full((*samples.x.shape[2:], 3), 255, dtype=np.uint8)
        images = np.empty((dataset.n_classes, 2 * n_each, *blank.shape), dtype=np.uint8)
        for row in range(dataset.n_classes):
            for side, (_, part, members) in enumerate(sides):
                found = torch.nonzero(members & (part.y == row))[:n_each, 0]
                for index in range(n_each):
                    images[row, side * n_each + index] = _picture(part.x[found[index]]) if index < len(found) else blank
        names = [name for name, *_ in sides for _ in range(n_each)]
        stem = folder / f"{file_name(title)}-{file_name(bias_name)}"
        heading = f"{title}: label and {bias_name}"
        if dataset.n_classes > 2 * n_each:
            across, down, images = list(dataset.class_names), names, images.swapaxes(0, 1)
        else:
            across, down = names, list(dataset.class_names)
        paths += contact_sheet(images, across, stem, rows=down, title=heading)
    return paths


def _picture(x: torch.Tensor) -> np.ndarray:
    """Pixels uint8 (C, H, W) -> (H, W, 3)."""
    if x.dtype != torch.uint8:
        raise BenchmarkError(f"A picture needs uint8 pixels. Got {x.dtype}.")
    image = x.cpu().numpy().transpose(1, 2, 0)
    return image if image.shape[2] == 3 else image[:, :, :1].repeat(3, axis=2)
