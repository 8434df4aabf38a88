"""The base class of datasets. The datasets themselves are the modules of this package, one file each.

Like `debiasbench/methods.py`, this file is a one-file package. Its modules are in the top-level folder `datasets/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
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
SHAPES = {  # kind of input -> dimensions of x, and their names
    "images": (4, "(N, C, H, W)"),
    "text": (2, "(N, L), token numbers"),
    "features": (2, "(N, D), one row per sample"),
}
registry = Registry("debiasbench.datasets", "Dataset", "DEBIASBENCH_DATASETS_PATH")


@dataclass(frozen=True)
class NeededFile:
    """A file or folder that a dataset needs: its place, its size, and where to get it."""

    path: Path
    size: str  # in words: "9.9 MB"
    source: str  # an address, or a sentence that says how to get it
    downloads: bool = False  # True: `debiasbench prepare` downloads it
    for_x_alone: bool = False  # True: labels, biases and groups can be read without it (`Dataset.build_labels`)

    def __post_init__(self) -> None:
        """Report a broken link first: the file may exist, on a disk that is not mounted."""
        if broken_link(self.path) is not None:
            object.__setattr__(self, "source", f"{absent(self.path)} Repair the link; or {self.source}")


class Dataset(Parameters, ABC):
    """A labelled dataset with a bias, its splits, its recipe and its metrics. Subclass it in one file of `datasets/`.

    Annotated class attributes are the parameters of the dataset. `data_seed` changes what is drawn (colours,
    conflicts). It is separate from the training seed: all training seeds see the same data.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1  # every change of the data is a new version, never a silent fix
    citation: ClassVar[str] = ""
    aliases: ClassVar[dict[str, dict[str, Any]]] = {}
    alias_display: ClassVar[dict[str, str]] = {}
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # {preset: {parameter: value, "recipe": {...}}}
    recipe: ClassVar[Recipe] = Recipe()
    input: ClassVar[str] = "images"  # or "text", or "features"
    defines_conflicts: ClassVar[bool] = True  # False: no bias value belongs to a label
    group_names: ClassVar[tuple[str, ...]] = ()  # names of overlapping evaluation groups (`Samples.groups`)
    headline: ClassVar[tuple[str, ...]] = ("acc_avg",)
    unbiased_test: ClassVar[bool] = False  # True: in test, the bias is independent of the label
    ratio_parameters: ClassVar[tuple[str, ...]] = ()  # those that set the conflict ratio; default: those that equal it

    data_seed: int = at_least(0, default=0)
    root: str | None = None  # the folder of the files, instead of the usual place below the data folder

    # These are class attributes in most datasets, and properties where they depend on parameters.

    @property
    def display(self) -> str:
        """The name as papers write it, "Colored MNIST", for LaTeX and figures; default: the name."""
        return ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        return ()

    @property
    def bias_names(self) -> tuple[str, ...]:
        """The names of the biases, in the order of the columns of `Samples.bias`."""
        return ("bias",)

    @property
    def n_bias_values(self) -> int:
        """The number of values that each bias can take."""
        return 0

    @property
    def bias_values(self) -> tuple[tuple[str, ...], ...]:
        """The names of the values of each bias, in the order of `bias_names`; () if the values have only numbers."""
        return ()

    def bias_value(self, column: int, value: int) -> str:
        """The name of a value of the bias in a column; its number if it has no name."""
        names = self.bias_values[column] if column < len(self.bias_values) else ()
        return names[value] if value < len(names) else str(value)

    @property
    def official_counts(self) -> dict[str, int]:
        """Split -> published number of samples."""
        return {}

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def own_recipe(self) -> Recipe:
        """The recipe, with the fields that follow from parameters of the dataset; these cannot be given inline."""
        return self.recipe

    @property
    def conflict_ratio(self) -> float | None:
        """The fraction of bias-conflicting training samples that the dataset is built with; None if not known."""
        return None

    @property
    def has_bias_labels(self) -> bool:
        """Whether the bias of training samples is known."""
        return True

    def in_words(self) -> dict[str, str]:
        """How display titles show parameters, whatever their values: {"rho": "0.5 %"}; "" hides a parameter.

        All others are shown as on the command line, if they differ from the default.
        """
        return {}

    def folder(self, data_dir: Path) -> Path:
        """The folder of the files of this dataset."""
        return expanded(self.root) if self.root else data_dir / self.name

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The needed files that are missing. Called before anything trains."""
        del data_dir
        return []

    def present_files(self, data_dir: Path) -> list[Path]:
        """The files that are there, complete or not. `prepare --check` uses them to tell incomplete data from none."""
        folder = self.folder(data_dir)
        return [path for path in folder.iterdir() if not is_ignored(path.name)] if folder.is_dir() else []

    def shortfalls(self, data_dir: Path) -> list[str]:
        """What is incomplete although no needed file is missing: one line for each place with less than was published.

        `prepare --check` reports them.
        """
        del data_dir
        return []

    def prepare(self, data_dir: Path) -> None:
        """Download what can be downloaded into `data_dir`. `debiasbench prepare` calls it."""
        del data_dir

    @abstractmethod
    def build(self, data_dir: Path) -> Splits:
        """Read or make the data.

        Raises:
            BenchmarkError: a file is missing, truncated, or not what it should be; the message names it.
        """

    def build_labels(self, data_dir: Path) -> Splits:
        """Like `build`, for `debiasbench inspect`: x may be empty, (N, 0), if the files that it needs are missing."""
        return self.build(data_dir)

    def draws(self, data_dir: Path) -> bool:
        """Whether the data seed changes the data; False if they are only read from files."""
        del data_dir
        return True

    def key(self) -> dict[str, Any]:
        """The parameters that identify the data: all except the folder of the files."""
        return {key: value for key, value in self.values().items() if key != "root"}


def check_splits(dataset: Dataset, splits: Splits) -> Splits:
    """Refuse data that cannot be trained on, and columns that are not as `Samples` and the dataset describe them.

    Raises:
        BenchmarkError: names the dataset, the split and the column, with what is allowed and what was given.
    """
    if not isinstance(splits, Splits):
        raise BenchmarkError(f"{dataset.name}: build must return Splits. Got {type(splits).__name__}.")
    if dataset.input not in INPUTS:
        raise BenchmarkError(f"{dataset.name}: input must be one of {', '.join(INPUTS)}. Got {dataset.input!r}.")
    if dataset.n_classes < 1:
        raise BenchmarkError(
            f"{dataset.name}: class_names is missing, the names of its labels: class_names = ('0', ...)."
        )
    _check_names(dataset)
    for name, samples in splits.named().items():
        if len(samples) == 0:
            raise BenchmarkError(f"{dataset.name}: the {name} split is empty.")
        _check_columns(dataset, name, samples)
        _check_x(dataset, name, samples, splits.train.x)
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
                "in train, so it cannot be learnt: add training samples, or remove it."
            )
    return splits


def _check_names(dataset: Dataset) -> None:
    """Refuse names that are used twice, because tables would show two classes or groups as one; and names for nothing.

    The values of a bias may have names, or only numbers.
    """
    columns = {f"the values of {name}": of for name, of in zip(dataset.bias_names, dataset.bias_values, strict=False)}
    named = {"class_names": dataset.class_names, "bias_names": dataset.bias_names, "group_names": dataset.group_names}
    for what, names in {**named, **columns}.items():
        twice = [name for name, n in Counter(names).items() if n > 1]
        if twice:
            raise BenchmarkError(f"{dataset.name}: {what} must be different. '{twice[0]}' is there twice.")
    if not dataset.bias_names:
        raise BenchmarkError(
            f"{dataset.name}: bias_names is empty. Without a known bias, leave it out and give bias a column of -1."
        )
    if len(dataset.bias_values) not in (0, len(dataset.bias_names)):
        raise BenchmarkError(
            f"{dataset.name}: bias_values must be empty, or name the values of each of the {len(dataset.bias_names)} "
            f"biases. Got {len(dataset.bias_values)}."
        )
    for name, values in zip(dataset.bias_names, dataset.bias_values, strict=False):
        if len(values) > dataset.n_bias_values:
            raise BenchmarkError(
                f"{dataset.name}: bias_values names {len(values)} values of {name}, and n_bias_values is "
                f"{dataset.n_bias_values}."
            )


def _check_columns(dataset: Dataset, name: str, samples: Samples) -> None:
    """Refuse columns whose types, shapes or ranges are not those of `Samples`: converting them could hide a mistake."""
    n, n_biases, n_groups = len(samples), len(dataset.bias_names), len(dataset.group_names)
    for column, wanted, shape in (
        ("y", torch.int64, (n,)),
        ("bias", torch.int64, (n, n_biases)),
        ("conflict", torch.bool, (n, n_biases)),
        ("groups", torch.bool, (n, n_groups)),
        ("length", torch.int64, (n,)),
    ):
        values = getattr(samples, column)
        if values is None:
            continue
        _check_type(dataset, name, column, values, wanted)
        if values.shape != shape:
            of = {"bias": "a column for each of bias_names", "groups": "a column for each of group_names"}.get(column)
            raise BenchmarkError(
                f"{dataset.name}: {column} of {name} must be of shape {shape}{f', {of}' * bool(of)}. "
                f"Got {tuple(values.shape)}."
            )
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
    if int(samples.bias.min()) < -1:
        raise BenchmarkError(
            f"{dataset.name}: the bias of {name} must be at least 0, or -1 if unknown. Got {int(samples.bias.min())}."
        )


def _check_x(dataset: Dataset, name: str, samples: Samples, of_train: torch.Tensor) -> None:
    """Refuse x that no network can take, and x of another shape than in training. Images and texts are not read."""
    x = samples.x
    _check_type(dataset, name, "x", x, INPUTS[dataset.input])
    n_dims, shape = SHAPES[dataset.input]
    if x.ndim != n_dims or 0 in x.shape:
        raise BenchmarkError(f"{dataset.name}: x of {name} must be {shape}. Got {tuple(x.shape)}.")
    if dataset.input == "features" and x.shape[1:] != of_train.shape[1:]:
        raise BenchmarkError(
            f"{dataset.name}: {name} has {x.shape[1]:,} features per sample, and train has {of_train.shape[-1]:,}."
        )
    if x.shape[1:] != of_train.shape[1:]:
        raise BenchmarkError(
            f"{dataset.name}: x of {name} must have the shape of train, {tuple(of_train.shape[1:])} per sample. "
            f"Got {tuple(x.shape[1:])}."
        )
    if dataset.input == "features" and not all(bool(torch.isfinite(end)) for end in torch.aminmax(x)):
        raise BenchmarkError(f"{dataset.name}: x of {name} holds NaN or infinite values.")  # aminmax keeps nan
    if dataset.input == "text":
        if samples.length is None:
            raise BenchmarkError(f"{dataset.name}: length of {name} is missing, the number of tokens of each text.")
        shortest, longest = int(samples.length.min()), int(samples.length.max())
        if shortest < 1 or longest > x.shape[1]:
            raise BenchmarkError(
                f"{dataset.name}: length of {name} must be in 1..{x.shape[1]}. Got {shortest}..{longest}."
            )


def _check_type(dataset: Dataset, name: str, column: str, values: torch.Tensor, wanted: torch.dtype) -> None:
    if values.dtype != wanted:
        said = ", pixels in 0..255; the recipe scales and normalises them" if wanted == torch.uint8 else ""
        raise BenchmarkError(
            f"{dataset.name}: {column} of {name} must be {str(wanted).removeprefix('torch.')}{said}. "
            f"Got {str(values.dtype).removeprefix('torch.')}."
        )
