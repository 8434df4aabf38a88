"""What a dataset is. The datasets themselves are the modules of this package, one file each.

Like `debiasbench/methods.py`, this file is a one-file package whose modules are in the top-level folder `datasets/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from debiasbench.errors import BenchmarkError
from debiasbench.files import absent, broken_link, expanded, is_ignored
from debiasbench.parameters import Parameters, above, at_least, between, one_of
from debiasbench.plugins import Registry, folders
from debiasbench.recipe import Recipe
from debiasbench.samples import INPUTS, Samples, Splits

__all__ = ["Dataset", "NeededFile", "Recipe", "above", "at_least", "between", "one_of", "registry"]

__path__ = folders(__file__, "DEBIASBENCH_DATASETS_PATH")
registry = Registry("debiasbench.datasets", "Dataset", "DEBIASBENCH_DATASETS_PATH")


@dataclass(frozen=True)
class NeededFile:
    """A file or folder that a dataset needs: where it belongs, how big it is, and where to get it."""

    path: Path
    size: str  # for people: "9.9 MB"
    source: str  # an address, or a sentence on how to get it
    downloads: bool = False  # True: `debiasbench prepare` fetches it by itself
    for_x_alone: bool = False  # True: labels, biases and groups are read without it (`Dataset.build_labels`)

    def __post_init__(self) -> None:
        """Where a link leads nowhere, the file is there perhaps, on a disk that is not mounted: that is told first."""
        if broken_link(self.path) is not None:
            object.__setattr__(self, "source", f"{absent(self.path)} Mend the link; or {self.source}")


class Dataset(Parameters, ABC):
    """A labelled dataset with a bias, its splits, its recipe and its metrics. Subclass it in one file of `datasets/`.

    Annotated class attributes are the dataset's parameters. `data_seed` changes what is drawn (colours, conflicts)
    and is apart from the training seed: all training seeds see the same data.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1  # a change of the data is a new version, never a silent fix
    citation: ClassVar[str] = ""
    aliases: ClassVar[dict[str, dict[str, Any]]] = {}
    alias_display: ClassVar[dict[str, str]] = {}
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # {preset: {parameter: value, "recipe": {...}}}
    recipe: ClassVar[Recipe] = Recipe()
    input: ClassVar[str] = "images"  # or "text", or "features"
    defines_conflicts: ClassVar[bool] = True  # False: no value of the bias belongs to a label
    group_names: ClassVar[tuple[str, ...]] = ()  # of evaluation groups that overlap (`Samples.groups`)
    headline: ClassVar[tuple[str, ...]] = ("acc_avg",)
    unbiased_test: ClassVar[bool] = False  # True: in the test split the bias is independent of the label
    ratio_parameters: ClassVar[tuple[str, ...]] = ()  # that set the conflict ratio; default: those that equal it

    data_seed: int = at_least(0, default=0)
    root: str | None = None  # where this dataset's files are, instead of its place below the data folder

    # A class attribute in most datasets; a property where the parameters decide.

    @property
    def display(self) -> str:
        """As papers write it, "Colored MNIST": for LaTeX and figures; default: its name."""
        return ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the labels, in their order."""
        return ()

    @property
    def bias_names(self) -> tuple[str, ...]:
        """The names of the biases, in the order of the columns of `Samples.bias`."""
        return ("bias",)

    @property
    def n_bias_values(self) -> int:
        """How many values each bias can take."""
        return 0

    @property
    def bias_values(self) -> tuple[tuple[str, ...], ...]:
        """The names of the values of each bias, in the order of `bias_names`; () where they have numbers alone."""
        return ()

    def bias_value(self, column: int, value: int) -> str:
        """What a value of the bias of a column is called: by its name, or else by its number."""
        names = self.bias_values[column] if column < len(self.bias_values) else ()
        return names[value] if value < len(names) else str(value)

    @property
    def official_counts(self) -> dict[str, int]:
        """Split -> number of samples as published."""
        return {}

    @property
    def n_classes(self) -> int:
        """Number of labels."""
        return len(self.class_names)

    @property
    def own_recipe(self) -> Recipe:
        """The recipe, with what follows from the dataset's parameters; such fields cannot be given inline."""
        return self.recipe

    @property
    def conflict_ratio(self) -> float | None:
        """The fraction of bias-conflicting training samples that the dataset is built for; None if not known."""
        return None

    @property
    def has_bias_labels(self) -> bool:
        """Whether the bias of the training samples is known."""
        return True

    def in_words(self) -> dict[str, str]:
        """What display titles say of parameters, whatever their values: {"rho": "0.5 %"}; "" where nothing is said.

        Others are shown as on the command line, where they are not the default.
        """
        return {}

    def folder(self, data_dir: Path) -> Path:
        """Where this dataset's files are."""
        return expanded(self.root) if self.root else data_dir / self.name

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The files that are needed and not there. Asked before anything trains."""
        del data_dir
        return []

    def present_files(self, data_dir: Path) -> list[Path]:
        """What is there of its files, whole or not: `prepare --check` tells incomplete from absent by it."""
        folder = self.folder(data_dir)
        return [path for path in folder.iterdir() if not is_ignored(path.name)] if folder.is_dir() else []

    def shortfalls(self, data_dir: Path) -> list[str]:
        """Where no needed file is missing, but less is there than was published: a line each, for `prepare --check`."""
        del data_dir
        return []

    def prepare(self, data_dir: Path) -> None:
        """Download what can be downloaded into `data_dir`; `debiasbench prepare` calls it."""
        del data_dir

    @abstractmethod
    def build(self, data_dir: Path) -> Splits:
        """Read or make the data.

        Raises:
            BenchmarkError: a file is missing, cut off, or not what it should be; the message names it.
        """

    def build_labels(self, data_dir: Path) -> Splits:
        """As `build`, for `debiasbench inspect`: x may be left empty, (N, 0), where what it is made of is missing."""
        return self.build(data_dir)

    def draws(self, data_dir: Path) -> bool:
        """Whether the data seed changes the data; False where they are read as they are."""
        del data_dir
        return True

    def key(self) -> dict[str, Any]:
        """The parameters that make up the identity of the data: all but where the files are."""
        return {key: value for key, value in self.values().items() if key != "root"}


def _check_types(dataset: Dataset, name: str, samples: Samples) -> None:
    """Refuse columns of other types than `Samples` has: a conversion of them would hide what was meant."""
    if dataset.input not in INPUTS:
        raise BenchmarkError(f"{dataset.name}: input must be one of {', '.join(INPUTS)}. Got {dataset.input!r}.")
    of_x = INPUTS[dataset.input]
    for column, wanted in (("x", of_x), ("y", torch.int64), ("bias", torch.int64), ("conflict", torch.bool)):
        values = getattr(samples, column)
        if values is not None and values.dtype != wanted:
            said = ", pixels in 0..255; the recipe scales and normalises them" if wanted == torch.uint8 else ""
            raise BenchmarkError(
                f"{dataset.name}: {column} of {name} must be {str(wanted).removeprefix('torch.')}{said}. "
                f"Got {str(values.dtype).removeprefix('torch.')}."
            )


def _check_features(dataset: Dataset, name: str, x: torch.Tensor, width: int | None) -> None:
    """Refuse features that no network can take: float32 (N, D), finite, as many of each sample as in training."""
    if x.ndim != 2 or not x.shape[1]:
        raise BenchmarkError(f"{dataset.name}: x of {name} must be (N, D), a row a sample. Got {tuple(x.shape)}.")
    if x.shape[1] != width:
        raise BenchmarkError(f"{dataset.name}: {name} has {x.shape[1]:,} features a sample, and train has {width:,}.")
    if not all(bool(torch.isfinite(end)) for end in torch.aminmax(x)):  # nan is the end of whatever holds one
        raise BenchmarkError(f"{dataset.name}: x of {name} holds NaN or infinite values.")


def check_splits(dataset: Dataset, splits: Splits) -> Splits:
    """Refuse data that cannot be trained on."""
    if not isinstance(splits, Splits):
        raise BenchmarkError(f"{dataset.name}: build must return Splits. Got {type(splits).__name__}.")
    if dataset.n_classes < 1:
        raise BenchmarkError(
            f"{dataset.name}: class_names is missing, the names of its labels: class_names = ('0', ...)."
        )
    for name, samples in splits.named().items():
        _check_types(dataset, name, samples)
        if len(samples) == 0:
            raise BenchmarkError(f"{dataset.name}: the {name} split is empty.")
        if dataset.input == "features":
            _check_features(dataset, name, samples.x, splits.train.x.shape[-1])
        if int(samples.y.min()) < 0 or int(samples.y.max()) >= dataset.n_classes:
            raise BenchmarkError(
                f"{dataset.name}: labels of {name} must be in 0..{dataset.n_classes - 1}. "
                f"Got {int(samples.y.min())}..{int(samples.y.max())}."
            )
        if int(samples.bias.max()) >= dataset.n_bias_values:
            raise BenchmarkError(
                f"{dataset.name}: the bias of {name} must be below n_bias_values, which is {dataset.n_bias_values}. "
                f"Got {int(samples.bias.max())}."
            )
    present = splits.train.y.unique()
    if len(present) < 2:
        raise BenchmarkError(
            f"{dataset.name}: the training data hold one class only ({dataset.class_names[int(present[0])]}); "
            "there is nothing to tell apart. At least two classes are needed."
        )
    for name, samples in splits.named().items():
        new = sorted({*samples.y.unique().tolist()} - {*present.tolist()})
        if new:
            raise BenchmarkError(
                f"{dataset.name}: {', '.join(dataset.class_names[label] for label in new)} occurs in {name}, but not "
                "in train, so it cannot be learnt: add training samples, or take it out."
            )
    return splits
