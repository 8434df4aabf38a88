"""What a debiasing method is. The methods themselves are the modules of this package, one file each.

This file is a one-file package: it has a `__path__`, so `debiasbench.methods.<file>` is the file of that name in
the top-level folder `methods/` of a clone, or in the folder beside this file in an installed wheel. Neither folder
may have an `__init__.py`: a package would be found before this file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from debiasbench.datasets import Dataset
from debiasbench.errors import BenchmarkError
from debiasbench.nets.base import Net, Nets
from debiasbench.parameters import Parameters, above, at_least, between, one_of
from debiasbench.plain import shown
from debiasbench.plugins import Registry, folders
from debiasbench.recipe import Recipe
from debiasbench.search import Range, around, choice
from debiasbench.training.batches import Batch, Sample, State
from debiasbench.training.task import Access, Predict, Task

__all__ = [
    "Batch", "Dataset", "Method", "Net", "Nets", "Predict", "Sample", "State", "Task", "above", "at_least", "between",
    "one_of", "registry",
]  # fmt: skip

__path__ = folders(__file__, "DEBIASBENCH_METHODS_PATH")
registry = Registry("debiasbench.methods", "Method", "DEBIASBENCH_METHODS_PATH")


class Method(Parameters, ABC):
    """A way to train a classifier on biased data. Subclass it in one file of `methods/`.

    Annotated class attributes are the method's parameters; `fit` is the algorithm. A subclass is a frozen
    dataclass without a decorator.
    """

    name: ClassVar[str] = ""  # as on the command line
    version: ClassVar[int] = 1  # raised when a change moves numbers: older records no longer count as finished
    citation: ClassVar[str] = ""  # BibTeX
    display: ClassVar[str] = ""  # as papers write it, "PGD": for LaTeX and figures; default: its name
    aliases: ClassVar[dict[str, dict[str, Any]]] = {}  # {"pgd-loss": {"score": "loss"}}
    alias_display: ClassVar[dict[str, str]] = {}  # {"dpr": "DPR"}
    alias_citation: ClassVar[dict[str, str]] = {}  # {"dpr": BibTeX}, of aliases that are another paper's
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # {"official": {parameter: value, "recipes": {...}}}
    by_dataset: ClassVar[dict[str, dict[str, Any]]] = {}  # {dataset: {parameter: value}}, each with its source
    recipes: ClassVar[dict[str, dict[str, Any]]] = {}  # {dataset: {recipe field: value}}, each with its source
    tuned: ClassVar[dict[str, dict[str, Any]]] = {}  # {dataset: {parameter or recipe field: value}} chosen with bias
    # knowledge on the tune split; tables mark them
    search: ClassVar[dict[str, Range]] = {  # {parameter or recipe field: range} of fair tuning, beside those of parents
        "learning_rate": around(0.1, 10.0, source="chosen here: a factor of ten around the published value"),
        "weight_decay": choice(0.0, 1e-5, 1e-4, 1e-3, 1e-2, source="the values of the PGD paper's Table 6"),
    }
    inputs: ClassVar[tuple[str, ...]] = ("images", "text", "features")  # what it runs on
    needs_bias_labels: ClassVar[bool] = False  # of the training samples; `task.bias` and `batch.bias` raise without
    trains_on_validation: ClassVar[bool] = False  # with its labels: rules that select on validation do not choose
    cost: ClassVar[float] = 1.0  # network trainings, in units of one vanilla run: for the estimate of --dry-run

    @property
    def access(self) -> Access:
        """What it may see, by what it declares."""
        return Access(self.name, self.needs_bias_labels, self.trains_on_validation)

    @classmethod
    def citations(cls, values: Mapping[str, Any]) -> list[str]:
        """BibTeX of what a method with these parameters is: the class's, and that of the aliases which they hold."""
        of_aliases = [cls.alias_citation[alias] for alias, stands_for in cls.aliases.items()
                      if alias in cls.alias_citation and stands_for.items() <= values.items()]  # fmt: skip
        return [one for one in (cls.citation, *of_aliases) if one]

    @classmethod
    def search_space(cls) -> dict[str, Range]:
        """What fair tuning searches: the ranges of the class and of its parents, which it may replace.

        Raises:
            BenchmarkError: `search` is no dictionary of ranges.
        """
        space: dict[str, Range] = {}
        for declared in (vars(parent).get("search", {}) for parent in reversed(cls.__mro__)):
            if not isinstance(declared, dict) or not all(isinstance(one, Range) for one in declared.values()):
                raise BenchmarkError(
                    f"The search of {cls.name} must be a dictionary of ranges from debiasbench.search, such as "
                    f'{{"alpha": uniform(0, 1, source="...")}}. Got {shown(declared)}.'
                )
            space |= declared
        return space

    @property
    def selects_on_validation(self) -> bool:
        """Whether, with these values, it reads labels of validation before it is done, and trains on none of them.

        Such as to choose an epoch of a first network. A class attribute where it follows from no value.
        """
        return False

    @property
    def gives_proxies(self) -> bool:
        """Whether its predictor is trained with `proxy=`, so that the rule worst_proxy can choose among its epochs."""
        return False

    def decline(self, dataset: Dataset) -> str | None:
        """Why this method cannot run on that dataset, or None if it can. Asked before anything trains."""
        del dataset
        return None

    def decline_recipe(self, recipe: Recipe) -> str | None:
        """Why this method cannot be trained by that recipe (which it may change), or None if it can.

        Asked before anything trains. Of what needs the samples of a batch together, or steps itself, it declines
        `recipe.accumulate > 1`, by `decline_accumulation`; of a loss without the suite's cross-entropy,
        `recipe.label_smoothing`.
        """
        del recipe
        return None

    def version_for(self, dataset: Dataset) -> int:
        """The version where it follows from the values, so that a change of a few leaves records of the others alone.

        Override it with what is added to the class's own: `return Mine.version + (self.norm == "l1")`.
        """
        del dataset
        return self.version

    def relative_cost(self, dataset: Dataset) -> float:
        """The cost in units of one vanilla run on that dataset; override where parameters change it."""
        del dataset
        return self.cost

    def decline_accumulation(self, recipe: Recipe, why: str) -> str | None:
        """Why gradients cannot be added up over the parts of a batch, or None where they are not to be.

        For the `decline_recipe` of methods that need a batch as a whole, or step themselves; `why` says what of it.
        """
        return f"{why}: it trains with accumulate=1" if recipe.accumulate > 1 else None

    def decline_groups(self, dataset: Dataset) -> str | None:
        """Why groups of one known bias cannot be formed, or None: for the `decline` of methods that form them."""
        if not dataset.has_bias_labels:
            return f"{self.name} needs the bias of each sample, and {dataset.name} does not have it"
        if len(dataset.bias_names) != 1:
            return f"{self.name} knows one bias, and {dataset.name} has {len(dataset.bias_names)}"
        return None

    @abstractmethod
    def fit(self, task: Task) -> Predict:
        """Train, and return the predictor: the same object that was given to `task.train(..., predict=...)`."""
