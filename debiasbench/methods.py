"""The base class of debiasing methods. The methods themselves are the modules of this package, one file each.

This file is a one-file package: it has a `__path__`, so `debiasbench.methods.<file>` is the file of that name in the
top-level folder `methods/` of a clone, or in the folder beside this file in an installed wheel. Neither folder may have
an `__init__.py`, because Python would then find that package before this file.
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

    Annotated class attributes are the parameters of the method; `fit` is the algorithm. Every subclass becomes a frozen
    dataclass and needs no decorator.
    """

    name: ClassVar[str] = ""  # name on the command line
    version: ClassVar[int] = 1  # raise it when a change affects results: older records no longer count as finished
    citation: ClassVar[str] = ""  # BibTeX
    display: ClassVar[str] = ""  # as papers write it, "PGD", for LaTeX and figures; default: the name
    aliases: ClassVar[dict[str, dict[str, Any]]] = {}  # {"pgd-loss": {"score": "loss"}}
    alias_display: ClassVar[dict[str, str]] = {}  # {"dpr": "DPR"}
    alias_citation: ClassVar[dict[str, str]] = {}  # {"dpr": BibTeX}, for aliases from another paper
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # {"official": {parameter: value, "recipes": {...}}}
    by_dataset: ClassVar[dict[str, dict[str, Any]]] = {}  # {dataset: {parameter: value}}, with sources
    recipes: ClassVar[dict[str, dict[str, Any]]] = {}  # {dataset: {recipe field: value}}, with sources
    tuned: ClassVar[dict[str, dict[str, Any]]] = {}  # {dataset: {parameter or recipe field: value}}, chosen with
    # knowledge of the bias, on the tune split; tables mark them
    search: ClassVar[dict[str, Range]] = {  # {parameter or recipe field: range} for tuning, added to those of parents
        "learning_rate": around(0.1, 10.0, source="chosen here: a factor of ten around the published value"),
        "weight_decay": choice(0.0, 1e-5, 1e-4, 1e-3, 1e-2, source="the values of the PGD paper's Table 6"),
    }
    inputs: ClassVar[tuple[str, ...]] = ("images", "text", "features")  # kinds of input that it can train on
    needs_bias_labels: ClassVar[bool] = False  # of training samples; without it, `task.bias` and `batch.bias` raise
    trains_on_validation: ClassVar[bool] = False  # with its labels, so no rule can select on validation
    cost: ClassVar[float] = 1.0  # in vanilla runs (plain trainings of one network), for the estimate of --dry-run

    @property
    def access(self) -> Access:
        """What the method may see, according to its declarations."""
        return Access(self.name, self.needs_bias_labels, self.trains_on_validation)

    @classmethod
    def citations(cls, values: Mapping[str, Any]) -> list[str]:
        """BibTeX of a method with these parameters: that of the class, and that of each alias whose values it has."""
        of_aliases = [cls.alias_citation[alias] for alias, stands_for in cls.aliases.items()
                      if alias in cls.alias_citation and stands_for.items() <= values.items()]  # fmt: skip
        return [one for one in (cls.citation, *of_aliases) if one]

    @classmethod
    def search_space(cls) -> dict[str, Range]:
        """The ranges that fair tuning searches: those of the parents and of the class, which may override them.

        Raises:
            BenchmarkError: `search` is not a dictionary of ranges.
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
        """Whether, with these parameters, it reads validation labels before training ends, but does not train on them.

        For example, to choose an epoch of a first network. It can be a class attribute if it depends on no parameter.
        """
        return False

    @property
    def gives_proxies(self) -> bool:
        """Whether its predictor is trained with `proxy=`, so that the rule worst_proxy can select among its epochs."""
        return False

    def decline(self, dataset: Dataset) -> str | None:
        """The reason why this method cannot run on the dataset, or None if it can. Called before anything trains."""
        del dataset
        return None

    def decline_recipe(self, recipe: Recipe) -> str | None:
        """The reason why this method cannot be trained with the recipe (which it may change), or None if it can.

        Called before anything trains. A method that needs the samples of a batch together, or makes its own optimiser
        steps, declines `recipe.accumulate > 1`, with `decline_accumulation`. A method whose loss does not use the
        suite's cross-entropy declines `recipe.label_smoothing`.
        """
        del recipe
        return None

    def version_for(self, dataset: Dataset) -> int:
        """The version for these parameters and this dataset.

        Override it where a change affects only some parameter values, so that records with the others stay valid. Add
        to the version of the class: `return Mine.version + (self.norm == "l1")`.
        """
        del dataset
        return self.version

    def relative_cost(self, dataset: Dataset) -> float:
        """The cost in units of one vanilla run on the dataset. Override it where parameters change the cost."""
        del dataset
        return self.cost

    def decline_accumulation(self, recipe: Recipe, why: str) -> str | None:
        """The reason why this method cannot accumulate gradients, or None if the recipe does not ask for it.

        For the `decline_recipe` of methods that need a batch as a whole or make their own optimiser steps; `why` says
        which of these it is.
        """
        return f"{why}: it trains with accumulate=1" if recipe.accumulate > 1 else None

    def decline_groups(self, dataset: Dataset) -> str | None:
        """The reason why groups of one known bias cannot be formed, or None; for `decline` of methods with groups."""
        if not dataset.has_bias_labels:
            return f"{self.name} needs the bias of each sample, and {dataset.name} does not have it"
        if len(dataset.bias_names) != 1:
            return f"{self.name} knows one bias, and {dataset.name} has {len(dataset.bias_names)}"
        return None

    @abstractmethod
    def fit(self, task: Task) -> Predict:
        """Train, and return the predictor: the object that was passed to `task.train(..., predict=...)`."""
