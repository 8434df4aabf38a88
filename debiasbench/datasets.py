"""The base class of datasets. The datasets themselves are the modules of this package, one file each.

Like `debiasbench/methods.py`, this file is a one-file package. Its modules are in the top-level folder `datasets/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from debiasbench.files import absent, broken_link, expanded, is_ignored
from debiasbench.parameters import Parameters, above, at_least, between, one_of
from debiasbench.plugins import Registry, folders
from debiasbench.recipe import Recipe
from debiasbench.samples import Splits

__all__ = ["Dataset", "NeededFile", "Recipe", "above", "at_least", "between", "one_of", "registry"]

__path__ = folders(__file__, "DEBIASBENCH_DATASETS_PATH")
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
