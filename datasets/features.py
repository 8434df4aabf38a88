"""Features in place of images: what a frozen network has made of them, with a small network on top.

    --datasets "features:root=FOLDER,title=NAME"

Input: float32 (D,), a row of a file each. In the folder there is one file of features a split, `.npy` or
`.safetensors`, (N, D), whose name has the split as a word (train.npy, feats_val.npy, test-features.safetensors; train,
valid and test by any of their usual names), and beside them metadata.csv (or `table=FILE`): a line for each row, in the
order of the rows of its split, with the columns

- y: the label, a number or a name (or the column that `y=target` names);
- split: train, valid or test, or as above, or 0, 1 or 2 (or the column that `split=part` names);
- the biases: all others but those that name a sample or its group (id, filename, img_filename, g, ...), or those that
  `bias=` names (`bias=place`, `bias=colour/scale`). A value that is missing (nan, NA, -1, unknown, ...) is unknown;
- conflict, or for several biases conflict.NAME: 1 where the sample conflicts, else 0. Without, a sample conflicts when
  its bias is not the most frequent one of its class in training.

So `debiasbench embed` writes them, and so dpe4subpop, GroupDRO and SubpopBench have theirs (y, split, a or place).
Without a validation split a tenth of each training class becomes one, drawn from `data_seed`. Half and double precision
are converted, and the note of the data says so; other types, and values that are not finite, are refused. Nothing is
unpickled.

With `scale=standard` each feature has mean 0 and standard deviation 1 in training (as in DFR, and by batch
normalisation in linear probes), so that one learning rate fits all encoders; `scale=none` leaves them as they are.

`embedding.json`, which `debiasbench embed` writes, tells how the features were made: the note of the data says it
again, and data made of a part of a dataset carry the mark †. `title` names the data in tables and records: give each
folder its own. `rho`, the fraction of conflicting samples as far as you know it, is for methods that use it (JTT).

Recipe: a linear layer (`net=mlp`: three hidden layers before it), trained as DINO's linear evaluation is (Caron and
others, ICCV 2021: SGD, 0.001 for batches of 256, cosine, 100 epochs, no decay); not tuned here. With `net=linear`
nothing below the last layer learns: what a method does to features (CNC's contrast) is without effect. Headline:
`acc_avg`; with bias labels all group metrics are there as well.
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
    """Features from files."""

    name = "features"
    input = "features"
    headline = ("acc_avg",)
    recipe = Recipe(
        net="linear", epochs=100, batch_size=256, learning_rate=0.001, momentum=0.9, schedule="cosine", augment=False
    )

    title: str = ""  # what the data are called
    table: str = "metadata.csv"
    y: str = "y"  # what the table calls the column of labels
    split: str = "split"
    bias: str = ""  # names of columns, with / between them; "": all that may be one
    scale: str = one_of("standard", "none", default="standard")
    rho: float | None = between(0, 1, default=None)  # fraction of bias-conflicting training samples, if you know it

    def check(self) -> None:
        """Data without a name or a place cannot be told apart."""
        if self.root and not self.title:
            raise BenchmarkError(
                "features needs a title, which names the data in tables and records: "
                f"features:root={self.root},title=NAME"
            )

    @property
    def display(self) -> str:
        return self.title

    def in_words(self) -> dict[str, str]:
        hidden = dict.fromkeys(("title", "table", "y", "split"), "")  # the title names the data
        return {**hidden, "rho": "" if self.rho is None else f"{100 * self.rho:g} %"}

    def key(self) -> dict[str, Any]:
        """Without the usual names of columns: cells had their identity before there was a choice."""
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
        """The folder and its table, which the user names."""
        root = self.folder(data_dir) if self.root else Path("FOLDER")
        if self.root and (root / self.table).is_file():
            return []
        example = "name the folder: features:root=FOLDER,title=NAME; debiasbench embed makes one"
        return [NeededFile(root / self.table, "y, split and biases of each row of the files beside it", example)]

    def draws(self, data_dir: Path) -> bool:
        return not self.metadata.y["valid"]

    def build(self, data_dir: Path) -> Splits:
        """The splits as given; a tenth of training for validation, if there is none."""
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
        """How the features were made, where something says so."""
        return read_embedding(self._root)

    @cached_property
    def metadata(self) -> Table:
        """What the table says."""
        path = self._root / self.table
        named = self.bias.split("/") if self.bias else self.embedding.bias_names if self.embedding else ()
        table = read_metadata(path, named, y=self.y, split=self.split)
        for split in ("train", "test"):
            if not table.y[split]:
                raise BenchmarkError(f"{path} has no line whose split is {split}.")
        return table

    @cached_property
    def _labels(self) -> list[str]:
        """The labels in their order."""
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
        """The values of each bias in their order."""
        return {
            name: _in_order({value for part in values.values() for value in part} - {""})
            for name, values in self.metadata.biases.items()
        }

    def _bias(self, split: str) -> Tensor:
        """Int64 (N, A), -1 where it is unknown."""
        columns = [_numbers(values[split], self._values[name]) for name, values in self.metadata.biases.items()]
        return torch.stack(columns, 1)

    def _conflicts(
        self, y: Mapping[str, Tensor], bias: Mapping[str, Tensor], places: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Bool (N, A): as the table says, else where a known bias is not the most frequent one of its class."""
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
                    of_file = said[split] or said["train"]  # a validation split that was drawn
                    found[split][:, column] = torch.tensor([word == "1" for word in of_file])[places[split]]
        return found


def _in_order(values: set[str]) -> list[str]:
    """Numbers by their size, else names by their letters."""
    try:
        return sorted(values, key=lambda value: (float(value), value))
    except ValueError:
        return sorted(values)


def _named(values: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The values of a column, by name where they are numbers of these names."""
    return tuple(names[int(one)] if one.isdecimal() and int(one) < len(names) else one for one in values)


def _numbers(values: Sequence[str], order: Sequence[str]) -> Tensor:
    """The place of each value in the order, int64 (N,); -1 for those that are missing."""
    place = {value: number for number, value in enumerate(order)}
    return torch.from_numpy(np.array([place.get(value, -1) for value in values], dtype=np.int64))
