"""Experiments: grids as TOML files, one for each table and figure of the paper.

This is a one-file package like `debiasbench/methods.py`: the TOML files are in the top-level folder `experiments/` of a
clone, or in the folder beside this file in an installed wheel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from debiasbench.errors import BenchmarkError
from debiasbench.files import read_toml, to_path, write_atomically
from debiasbench.parameters import suggestion
from debiasbench.plain import from_plain, shown
from debiasbench.plugins import folders

__path__ = folders(__file__, "DEBIASBENCH_EXPERIMENTS_PATH")

SHOWN = ("accuracy", "cost", "bins", "fisher", "norms", "trials")
_GRID: dict[str, tuple[Any, str]] = {  # key -> its type, and the type in words
    "methods": (tuple[str, ...], "a list of names"),
    "datasets": (tuple[str, ...], "a list of names"),
    "seeds": (int | tuple[int, ...], "a whole number or a list of them"),
    "epochs": (int, "a whole number"),
}
SMOKE = _GRID | {"instead": (dict[str, str], "a table of dataset = stand-in")}
KEYS = _GRID | {
    "title": (str, "text"), "about": (str, "text"), "then": (str, "text"), "reference": (str, "text"),
    "paper": (str, "text"), "show": (str, "text"),
    "smoke": (dict[str, Any], "a table, [smoke]"),
}  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """The grid of one file.

    Attributes:
        methods, datasets: names with inline parameters.
        seeds: how many, or which.
        about: text for newcomers, shown before the run.
        then: text shown after the run: what to try next.
        paper: the stem of the file in `experiments/paper/` whose numbers it regenerates; "" for none.
        show: what is made from its results: accuracy (tables), cost (seconds by step), bins (counts of scores), fisher
            (traces of the inverse Fisher information), norms (variants over datasets), trials (distributions over
            seeds).
        instead: dataset of the experiment -> what runs in its place in a smoke run.
        epochs, shared_recipes, data_seeds: as on the command line; they are not in the files.
    """

    name: str
    methods: list[str]
    datasets: list[str]
    title: str = ""
    about: str = ""
    then: str = ""
    seeds: int | list[int] = 3
    epochs: int | None = None
    reference: str | None = None
    paper: str = ""
    show: str = "accuracy"
    smoke: bool = False
    instead: dict[str, str] = field(default_factory=dict)
    shared_recipes: bool = False
    data_seeds: int | None = None

    @property
    def needs_weights(self) -> bool:
        """Whether its figure needs the trained networks."""
        return self.show == "fisher"

    def ran(self, dataset: str) -> str | None:
        """What runs for a dataset of the paper: the dataset itself, or in a smoke run its stand-in or nothing."""
        return self.instead.get(dataset) if self.smoke else dataset


def read_experiment(name: str, *, smoke: bool = False) -> Experiment:
    """The experiment with this name or from this TOML file; with `smoke`, the short one on stand-ins.

    Raises:
        BenchmarkError: there is no such experiment; the file cannot be read, is not TOML, or lacks or misspells a key;
            there is no smoke variant.
    """
    is_file = name.endswith(".toml")
    if not is_file and name not in names():
        raise _unknown(name)
    path = to_path(name) if is_file else Path(__path__[0]) / f"{name}.toml"
    if not path.exists():
        raise _unknown(name)
    values = read_toml(path, "The experiment")
    lacking = [key for key in ("methods", "datasets") if key not in values]
    if lacking:
        raise BenchmarkError(f"{path} lacks {', '.join(lacking)}.")
    values = _checked(path, "", values, KEYS)
    short = values.pop("smoke", None)
    if values.get("show", "accuracy") not in SHOWN:
        raise BenchmarkError(f"{path}: 'show' must be one of {', '.join(SHOWN)}. Got {values['show']!r}.")
    papers = sorted(file.stem for file in Path(__path__[0], "paper").glob("*.csv"))
    if values.get("paper", "") not in ("", *papers):
        raise BenchmarkError(
            f"{path}: there are no numbers of the paper called '{values['paper']}'."
            f"{suggestion(values['paper'], papers)} Known: {', '.join(papers)}; or leave 'paper' out."
        )
    if smoke:
        if short is None:
            raise BenchmarkError(f"{path} has no [smoke] variant.")
        short = _checked(path, "smoke.", short, SMOKE)
        instead = short.get("instead", {})
        strange = [dataset for dataset in instead if dataset not in values["datasets"]]
        if strange:
            raise BenchmarkError(
                f"{path}: [smoke.instead] names {', '.join(strange)}, which is not one of its datasets."
            )
        stand_ins = [instead[dataset] for dataset in values["datasets"] if dataset in instead]
        values = {**values, "datasets": stand_ins or values["datasets"], **short, "smoke": True}
    return Experiment(name=path.stem, **values)


def write_grid(results_dir: Path, asked: Experiment, methods: Sequence[str]) -> None:
    """Write what `debiasbench report` needs to show a grid as its run did, and to name cells without a record.

    `methods`: titles, in order.
    """
    shown = asdict(asked) if asked.paper or asked.show != "accuracy" else None
    content = {"reference": asked.reference, "order": list(methods), "experiment": shown, "asked": asdict(asked)}
    write_atomically(results_dir / "grid.json", json.dumps(content).encode())


def names() -> list[str]:
    """The names of the shipped experiments."""
    return sorted(file.stem for file in Path(__path__[0]).glob("*.toml"))


def _unknown(name: str) -> BenchmarkError:
    known = names()
    return BenchmarkError(f"Unknown experiment '{name}'.{suggestion(name, known)} Known: {', '.join(known)}.")


def _checked(path: Path, where: str, values: dict[str, Any], kinds: dict[str, tuple[Any, str]]) -> dict[str, Any]:
    """The checked values of a file, with lists where `from_plain` gives tuples.

    Raises:
        BenchmarkError: a key is unknown, or a value has another type.
    """
    found = {}
    for key, value in values.items():
        if key not in kinds:
            raise BenchmarkError(
                f"{path}: unknown key '{where}{key}'.{suggestion(key, kinds)} Known: {', '.join(kinds)}."
            )
        kind, words = kinds[key]
        try:
            read = from_plain(kind, value)
        except ValueError:
            raise BenchmarkError(f"{path}: '{where}{key}' must be {words}. Got {shown(value)}.") from None
        found[key] = list(read) if isinstance(read, tuple) else read
    return found
