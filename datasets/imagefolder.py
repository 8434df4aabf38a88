"""Your own images, from folders or a table, without code.

    --datasets "imagefolder:root=photos,title=birds"

Input: uint8 (3, size, size). Each image is resized to a square, without keeping its aspect ratio. Every file type that
Pillow decodes is read, except PostScript; files left out are reported. Grey values of more than 8 bits are scaled to 8,
transparent pixels are put on white, and of a file with several pictures the first is read. The note of the data counts
these. Label and bias come from either

- folders: root/<split>/<class>/* or, with bias labels, root/<split>/<class>/<bias>/*. Splits are train, test, and
  optionally valid, by any of their usual names (training; val, validation, dev; testing, eval). Another folder with
  images that looks like a split (train2, vali, holdout, or with folders of classes) is refused, because it would not be
  read;
- a table: root/images.csv (or `table=FILE`, below root), with the columns file (below root), label, split (train, valid
  or test, or another usual name, or 0, 1 or 2) and, if known, bias. Columns with other names are given by
  `file=path,label=target,split=fold,bias=background`.

Classes and bias values are numbered in the order of their names, without blanks around them. A missing bias, in any of
the ways tables write it (nan, NA, null, -1, unknown, ...), means that the bias is unknown. A label must not be missing.
If the bias values have the names of the classes, a sample conflicts when the two differ. Otherwise, it conflicts when
its bias is not the most frequent one of its class in training. If there is no validation split, a tenth of each
training class becomes one, drawn with `data_seed`.

`title` names the data in tables and records: give each folder its own. `rho` is the fraction of conflicting samples, as
far as you know it, for methods that use it (JTT). Recipe: that of BAR, with ImageNet weights (`pretrained=none` starts
from random weights). Every field can be given inline (`net=resnet50,epochs=30`). Headline: `acc_avg`. With bias labels,
all group metrics are computed as well, and tables show `acc_worst` beside it.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from debiasbench.data.images import contents, decode, remarks
from debiasbench.data.labelled import COLUMNS, Labelled, Row, alike, from_folders, from_table
from debiasbench.datasets import Dataset, NeededFile, Recipe, at_least, between
from debiasbench.errors import BenchmarkError
from debiasbench.parameters import write_value
from debiasbench.randomness import derived_generator
from debiasbench.samples import Samples, Splits, stratified


class ImageFolder(Dataset):
    """Images from folders or a table."""

    name = "imagefolder"
    headline = ("acc_avg",)
    recipe = Recipe(
        net="resnet18", pretrained="imagenet", epochs=100, batch_size=16, learning_rate=5e-4, weight_decay=1e-5,
        milestones=(0.2, 0.4, 0.6, 0.8), gamma=0.1, pad_crop=4, flip=True,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip

    title: str = ""  # name of the data
    table: str = "images.csv"  # used if it exists
    file: str = "file"  # column of the paths
    label: str = "label"  # column of the labels
    split: str = "split"  # column of the splits
    bias: str = "bias"  # column of the bias
    size: int = at_least(16, default=224)  # pixels per side
    rho: float | None = between(0, 1, default=None)  # fraction of bias-conflicting training samples, if known

    def check(self) -> None:
        """Refuse data without a title, which could not be told apart."""
        if self.root and not self.title:
            raise BenchmarkError(
                "imagefolder needs a title, which names the data in tables and records: "
                f"imagefolder:root={self.root},title=NAME"
            )

    @property
    def display(self) -> str:
        return self.title

    def in_words(self) -> dict[str, str]:
        hidden = dict.fromkeys(("title", "table", *COLUMNS), "")  # the title already names the data
        return {**hidden, "rho": "" if self.rho is None else f"{100 * self.rho:g} %"}

    def key(self) -> dict[str, Any]:
        """Leave out the usual column names, so that cells keep the identity they had before there was a choice."""
        return {name: value for name, value in super().key().items() if name not in COLUMNS or value != name}

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted({label for rows in self.rows.values() for _, label, _ in rows})) if self.root else ()

    @property
    def bias_names(self) -> tuple[str, ...]:
        return (self.bias,)

    @property
    def bias_values(self) -> tuple[tuple[str, ...], ...]:
        return (self._bias_values,) if self.root else ((),)

    @property
    def n_bias_values(self) -> int:
        return len(self.bias_values[0])

    @property
    def has_bias_labels(self) -> bool:
        return self.n_bias_values > 0

    @property
    def conflict_ratio(self) -> float | None:
        return self.rho

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The folder, which the user gives."""
        if self.root and self.folder(data_dir).is_dir():
            return []
        example = "name it: imagefolder:root=FOLDER,title=NAME"
        root = self.folder(data_dir) if self.root else Path("FOLDER")
        return [NeededFile(root, "train/<class>/*, test/<class>/* or images.csv", example)]

    def draws(self, data_dir: Path) -> bool:
        return not self.rows["valid"]

    def build(self, data_dir: Path) -> Splits:
        """The given splits; without a validation split, a tenth of training becomes one."""
        rows = dict(self.rows)
        classes, values = self.class_names, self.bias_values[0]
        y = {split: torch.tensor([classes.index(label) for _, label, _ in part]) for split, part in rows.items()}
        notes = [f"{len(classes)} classes.", *self.labelled.notes]
        if not rows["valid"]:
            rest, tenth = stratified(y["train"], 0.1, derived_generator("data", self.data_seed))
            if not len(tenth):
                raise BenchmarkError(f"{self.root}: no class has the five training images that validation would need.")
            train, labels = rows["train"], y["train"]
            rows |= {"train": [train[row] for row in rest], "valid": [train[row] for row in tenth]}
            y |= {"train": labels[rest], "valid": labels[tenth]}
            notes.append("No validation split was given: a tenth of training serves.")
        bias = {
            split: torch.tensor([[values.index(value) if value else -1] for *_, value in part])
            for split, part in rows.items()
        }
        typical = None  # for each class its most frequent bias; None: the bias with its name
        if values != classes:
            counts = torch.zeros(len(classes), max(len(values), 1))
            known = bias["train"][:, 0] >= 0
            counts.index_put_((y["train"][known], bias["train"][known, 0]), torch.ones(()), accumulate=True)
            typical = counts.argmax(1)
        images = {
            split: decode(f"{self.name}-{split}", [path for path, *_ in part], size=self.size)
            for split, part in rows.items()
        }
        notes += remarks(images.values())
        splits = {}
        for split, one in images.items():
            conflict = None
            if typical is not None:
                conflict = (bias[split] != typical[y[split]][:, None]) & (bias[split] >= 0)
            splits[split] = Samples(one.x, y[split], bias[split], conflict, one.sha256)
        return Splits.of(splits, note=" ".join(notes))

    @cached_property
    def _bias_values(self) -> tuple[str, ...]:
        return tuple(sorted({bias for rows in self.rows.values() for *_, bias in rows if bias}))

    @property
    def rows(self) -> Mapping[str, list[Row]]:
        """The images of each split; valid is empty if it was not given."""
        return self.labelled.rows

    @cached_property
    def labelled(self) -> Labelled:
        """The content of the folder or the table."""
        if not self.root:
            raise BenchmarkError("imagefolder needs a folder: imagefolder:root=FOLDER,title=NAME")
        root = self.folder(Path())
        table = root / self.table
        if self.table != "images.csv" and not table.is_file():
            raise BenchmarkError(f"There is no file {table} (imagefolder:table={self.table}).")
        named = {role: getattr(self, role) for role in COLUMNS}
        given = [f"{role}={name}" for role, name in named.items() if name != role]
        if given and not table.is_file():
            raise BenchmarkError(
                f"{', '.join(given)} names columns of a table, and there is no {table}.{_asked_for(root)} Name the "
                "table, table=FILE, or leave these out where images are in folders."
            )
        found = from_table(root, table, named) if table.is_file() else from_folders(root)
        labels = {split: {label for _, label, _ in part} for split, part in found.rows.items()}
        for split in ("train", "test"):
            if not labels[split]:
                folders = ""
                if not table.is_file():
                    names = ", ".join(path.name for path in contents(root).folders[:10])
                    folders = f" Folders there: {names or 'none'}.{_asked_for(root)}"
                raise BenchmarkError(
                    f"{root} has no {split} images: {split}/<class>/* is needed, or {self.table} with the columns "
                    f"file, label, split and, if known, bias (or named otherwise: label=COLUMN, ...).{folders}"
                )
        for split in ("valid", "test"):
            unseen = labels[split] - labels["train"]
            if unseen:
                near = [f"{one[0]!r} and {one[1]!r} are nearly one name." for one in alike(unseen | labels["train"])]
                raise BenchmarkError(
                    f"{root}: {', '.join(sorted(unseen))} occurs in {split}, but not in train, so it cannot be learnt: "
                    f"add training images, or take it out. {' '.join(near)}".rstrip()
                )
        return found


def _asked_for(root: Path) -> str:
    """A question that suggests a table that may be meant, if there is one."""
    tables = sorted(path.name for path in root.glob("*.csv"))
    return f" Is it {tables[0]}? imagefolder:table={write_value(tables[0])}" if tables else ""
