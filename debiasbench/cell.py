"""One run, with every value resolved."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from debiasbench.about import PROTOCOL_VERSION
from debiasbench.code import digest_of_plugin
from debiasbench.datasets import Dataset
from debiasbench.datasets import registry as dataset_registry
from debiasbench.evaluation.own import digests_of_functions
from debiasbench.methods import Method
from debiasbench.methods import registry as method_registry
from debiasbench.nets.own import own_net
from debiasbench.plain import from_plain
from debiasbench.recipe import Recipe
from debiasbench.tuned import Draw, Tuned

OF_TUNING = ("draw", "tuned")  # fields that most cells lack


@dataclass(frozen=True)
class Cell:
    """One run: a method, a dataset, a seed, and every value resolved. All values are plain; workers receive cells."""

    method: str
    method_version: int | str
    method_parameters: dict[str, Any]
    dataset: str
    dataset_version: int | str
    dataset_parameters: dict[str, Any]
    recipe: dict[str, Any]
    seed: int
    # for display and for finding files; not part of the identity
    method_title: str = field(compare=False)
    dataset_title: str = field(compare=False)
    recipe_changes: dict[str, Any] = field(compare=False)  # fields that the method trains with instead of the dataset's
    root: str | None = field(default=None, compare=False)
    draw: Draw | None = field(default=None, compare=False)  # a draw of tuning, which is not a result
    tuned: Tuned | None = None  # how its values were chosen, if tuned; part of the identity

    def identity(self) -> dict[str, Any]:
        """All resolved values and the versions; cells with equal identity are the same."""
        names = (
            "method", "method_version", "method_parameters", "dataset", "dataset_version", "dataset_parameters",
            "recipe", "seed",
        )  # fmt: skip
        tuned = {"tuned": asdict(self.tuned)} if self.tuned else {}
        return {"protocol": PROTOCOL_VERSION} | {name: getattr(self, name) for name in names} | tuned

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the identity, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    @property
    def title(self) -> str:
        """The title for progress and messages."""
        return f"{self.method_title} on {self.dataset_title}, seed {self.seed}"

    @property
    def data_title(self) -> str:
        """The dataset's title without its data seed."""
        name, _, options = self.dataset_title.partition(":")
        kept = [part for part in options.split(",") if part and not part.startswith("data_seed=")]
        return name + (":" + ",".join(kept) if kept else "")

    def to_json(self) -> dict[str, Any]:
        """The cell as plain values; the inverse of `from_json`."""
        plain = asdict(self)
        return json.loads(json.dumps({key: plain[key] for key in plain if key not in OF_TUNING or plain[key]}))

    def to_record(self) -> dict[str, Any]:
        """The cell as plain values for a record, without paths of a machine."""
        return self.to_json() | {"root": None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Cell:
        """A cell from its plain values.

        Raises:
            ValueError: the values are not those of a cell.
        """
        cell: Cell = from_plain(cls, values, "cell")
        return cell

    def code(self) -> dict[str, str | None]:
        """Digests of the source of the method and of the dataset; None if unknown.

        Also of parts outside the suite: the network ("net"), and each metric and rule ("metric brier").
        """
        classes = {"method": method_registry.get(self.method)[0], "dataset": dataset_registry.get(self.dataset)[0]}
        net = own_net(self.recipe["net"])
        classes |= {"net": net} if net is not None else {}
        return {name: digest_of_plugin(cls) for name, cls in classes.items()} | digests_of_functions()

    def name_of_part(self, kind: str) -> str:
        """A readable name for a key of `code`: "method pgd", "net mine", "metric brier"."""
        names = {"method": self.method, "dataset": self.dataset, "net": self.recipe["net"]}
        return f"{kind} {names[kind]}" if kind in names else kind

    def build_method(self) -> Method:
        """Build the method with this cell's parameters."""
        return method_registry.get(self.method)[0](**self.method_parameters)

    def build_dataset(self) -> Dataset:
        """Build the dataset with this cell's parameters."""
        return dataset_registry.get(self.dataset)[0](**self.dataset_parameters, root=self.root)

    def build_recipe(self) -> Recipe:
        """Build the recipe with this cell's values (lists from JSON become tuples again)."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in self.recipe.items()
        }
        return Recipe(**values)
