"""Features in place of images: the output of a frozen network, with a small network on top.

    --datasets "features:root=FOLDER,title=NAME"

Input: float32 (D,), one row of a file per sample. The folder has one file of features per split, `.npy` or
`.safetensors`, (N, D). The name of a file contains its split as a word (train.npy, feats_val.npy,
test-features.safetensors; train, valid and test by any of their usual names). Beside them is metadata.csv (or
`table=FILE`) with one line per row, in the order of the rows of its split, and the columns

- y: the label, a number or a name (or the column given by `y=target`);
- split: train, valid or test, or another usual name, or 0, 1 or 2 (or the column given by `split=part`);
- the biases: all other columns except those that name a sample or its group (id, filename, img_filename, g, ...), or
  the columns given by `bias=` (`bias=place`, `bias=colour/scale`). A missing value (nan, NA, -1, unknown, ...) means
  that the bias is unknown;
- conflict, or with several biases conflict.NAME: 1 if the sample conflicts, otherwise 0. Without this column, a sample
  conflicts if its bias is not the most frequent one of its class in training.

`debiasbench embed` writes this layout, and dpe4subpop, GroupDRO and SubpopBench have it too (y, split, a or place). If
there is no validation split, a tenth of each training class becomes one, drawn with `data_seed`. Half and double
precision are converted, and the note of the data says so. Other types are refused, and so are values that are not
finite. Nothing is unpickled.

With `scale=standard` each feature has mean 0 and standard deviation 1 in training, so that one learning rate fits all
encoders (DFR does this, and linear probes do it by batch normalisation). `scale=none` leaves the features as they are.

`embedding.json`, which `debiasbench embed` writes, says how the features were made. The note of the data repeats it,
and data made from a part of a dataset carry the mark †. `title` names the data in tables and records: give each folder
its own. `rho` is the fraction of conflicting samples, as far as you know it, for methods that use it (JTT).

Recipe: a linear layer (`net=mlp`: three hidden layers before it), trained like DINO's linear evaluation (Caron and
others, ICCV 2021: SGD, 0.001 for batches of 256, cosine, 100 epochs, no decay); not tuned here. With `net=linear`
nothing below the last layer learns, so what a method does to the features (CNC's contrast) has no effect. Headline:
`acc_avg`; with bias labels, all group metrics are computed as well.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from debiasbench.data.features import Embedding, Rows, Table, features, read_arrays, read_embedding, read_metadata
from debiasbench.data.labelled import SPLITS
from debiasbench.datasets import Dataset, NeededFile, Recipe, between, one_of
from debiasbench.errors import BenchmarkError
from debiasbench.randomness import derived_generator
from debiasbench.samples import Samples, Splits, stratified


class Features(Dataset):
    """Features read from files."""

    name = "features"
    input = "features"
    headline = ("acc_avg",)
    recipe = Recipe(
        net="linear", epochs=100, batch_size=256, learning_rate=0.001, momentum=0.9, schedule="cosine", augment=False
    )

    title: str = ""  # name of the data
    table: str = "metadata.csv"
    y: str = "y"  # column of the labels
    split: str = "split"  # column of the splits
    bias: str = ""  # columns, separated by /; "": all that can be a bias
    scale: str = one_of("standard", "none", default="standard")
    rho: float | None = between(0, 1, default=None)  # fraction of bias-conflicting training samples, if known

    def check(self) -> None:
        """Refuse data without a title, which could not be told apart."""
        if self.root and not self.title:
            raise BenchmarkError(
                "features needs a title, which names the data in tables and records: "
                f"features:root={self.root},title=NAME"
            )

    @property
    def display(self) -> str:
        return self.title

    def in_words(self) -> dict[str, str]:
        hidden = dict.fromkeys(("title", "table", "y", "split"), "")  # the title already names the data
        return {**hidden, "rho": "" if self.rho is None else f"{100 * self.rho:g} %"}

    def key(self) -> dict[str, Any]:
        """Leave out the usual column names, so that cells keep the identity they had before there was a choice."""
        return {name: value for name, value in super().key().items() if name not in ("y", "split") or value != name}

    @property
    def class_names(self) -> tuple[str, ...]:
        if not self.root:
            return ()
        named = self.embedding.class_names if self.embedding else ()
        return _named(self._labels, named)

    @property
    def bias_names(self) -> tuple[str, ...]:
        return tuple(self.metadata.biases) if self.root else ("bias",)

    @property
    def n_bias_values(self) -> int:
        return max(map(len, self._values.values())) if self.root else 0

    @property
    def bias_values(self) -> tuple[tuple[str, ...], ...]:
        if not self.root:
            return ()
        named = self.embedding.bias_values if self.embedding else ()
        values = zip_longest(self._values.values(), named[: len(self._values)], fillvalue=())
        return tuple(_named(one, names) for one, names in values)

    @property
    def has_bias_labels(self) -> bool:
        return self.n_bias_values > 0

    @property
    def conflict_ratio(self) -> float | None:
        made = self.embedding if self.root else None
        return made.conflict_ratio if made and self.rho is None else self.rho

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The folder and its table, which the user gives."""
        root = self.folder(data_dir) if self.root else Path("FOLDER")
        if self.root and (root / self.table).is_file():
            return []
        example = "name the folder: features:root=FOLDER,title=NAME; debiasbench embed makes one"
        return [NeededFile(root / self.table, "y, split and biases of each row of the files beside it", example)]

    def draws(self, data_dir: Path) -> bool:
        return not self.metadata.y["valid"]

    def build(self, data_dir: Path) -> Splits:
        """The given splits; without a validation split, a tenth of training becomes one."""
        n_lines = {split: len(part) for split, part in self.metadata.y.items()}
        arrays, notes = read_arrays(self._root, n_lines, self.table)
        notes = [f"{self.n_classes} classes, {arrays['train'].shape[1]:,} features.", *notes, *self.metadata.notes]
        if self.embedding is not None:
            self.embedding.check(arrays.values())
            notes.append(self.embedding.told())
        y = {split: _numbers(part, self._labels) for split, part in self.metadata.y.items()}
        bias = {split: self._bias(split) for split in SPLITS}
        places = {split: torch.arange(len(part)) for split, part in y.items()}
        if not len(y["valid"]):
            rest, tenth = stratified(y["train"], 0.1, derived_generator("data", self.data_seed))
            if not len(tenth):
                raise BenchmarkError(f"{self.root}: no class has the five training rows that validation would need.")
            for column in (y, bias):
                column |= {"train": column["train"][rest], "valid": column["train"][tenth]}
            places |= {"train": rest, "valid": tenth}
            arrays["valid"] = arrays["train"]
            notes.append("No validation split was given: a tenth of training serves.")
        conflict = self._conflicts(y, bias, places)
        rows = {split: Rows(arrays[split], places[split].numpy()) for split in SPLITS}
        standard = rows["train"] if self.scale == "standard" else None
        splits = {}
        for split in SPLITS:
            one = features(f"{self.name}-{split}", rows[split], standard=standard)
            splits[split] = Samples(one.x, y[split], bias[split], conflict[split], one.sha256)
        return Splits.of(splits, official=self.embedding is None or self.embedding.official, note=" ".join(notes))

    @property
    def _root(self) -> Path:
        if not self.root:
            raise BenchmarkError("features needs a folder: features:root=FOLDER,title=NAME")
        return self.folder(Path())

    @cached_property
    def embedding(self) -> Embedding | None:
        """How the features were made, if the folder says so."""
        return read_embedding(self._root)

    @cached_property
    def metadata(self) -> Table:
        """The content of the table."""
        path = self._root / self.table
        named = self.bias.split("/") if self.bias else self.embedding.bias_names if self.embedding else ()
        table = read_metadata(path, named, y=self.y, split=self.split)
        for split in ("train", "test"):
            if not table.y[split]:
                raise BenchmarkError(f"{path} has no line whose split is {split}.")
        return table

    @cached_property
    def _labels(self) -> list[str]:
        """The labels, in order."""
        labels = {split: set(part) for split, part in self.metadata.y.items()}
        for split in ("valid", "test"):
            unseen = labels[split] - labels["train"]
            if unseen:
                raise BenchmarkError(
                    f"{self._root / self.table}: {', '.join(_in_order(unseen))} occurs in {split}, but not in train, "
                    "so it cannot be learnt: add training rows, or take it out."
                )
        return _in_order(labels["train"])

    @cached_property
    def _values(self) -> dict[str, list[str]]:
        """The values of each bias, in order."""
        return {
            name: _in_order({value for part in values.values() for value in part} - {""})
            for name, values in self.metadata.biases.items()
        }

    def _bias(self, split: str) -> Tensor:
        """Biases int64 (N, A), -1 where unknown."""
        columns = [_numbers(values[split], self._values[name]) for name, values in self.metadata.biases.items()]
        return torch.stack(columns, 1)

    def _conflicts(
        self, y: Mapping[str, Tensor], bias: Mapping[str, Tensor], places: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Bool (N, A): as the table says; otherwise, a known bias that is not the most frequent one of its class."""
        found = {split: torch.zeros_like(part, dtype=torch.bool) for split, part in bias.items()}
        for column, name in enumerate(self.metadata.biases):
            said = self.metadata.conflicts.get(name)
            known, label = bias["train"][:, column], y["train"]
            counts = torch.zeros(len(self._labels), max(self.n_bias_values, 1))
            counts.index_put_((label[known >= 0], known[known >= 0]), torch.ones(()), accumulate=True)
            typical = counts.argmax(1)
            for split, part in bias.items():
                if said is None:
                    found[split][:, column] = (part[:, column] != typical[y[split]]) & (part[:, column] >= 0)
                else:
                    of_file = said[split] or said["train"]  # from train, if the validation split was drawn from it
                    found[split][:, column] = torch.tensor([word == "1" for word in of_file])[places[split]]
        return found


def _in_order(values: set[str]) -> list[str]:
    """Sort numbers by value, other names alphabetically."""
    try:
        return sorted(values, key=lambda value: (float(value), value))
    except ValueError:
        return sorted(values)


def _named(values: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The values of a column; a number that is an index into `names` becomes that name."""
    return tuple(names[int(one)] if one.isdecimal() and int(one) < len(names) else one for one in values)


def _numbers(values: Sequence[str], order: Sequence[str]) -> Tensor:
    """The position of each value in `order`, int64 (N,); -1 for missing values."""
    place = {value: number for number, value in enumerate(order)}
    return torch.from_numpy(np.array([place.get(value, -1) for value in values], dtype=np.int64))
