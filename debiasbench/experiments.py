"""Experiments: grids as TOML files, one for each table and figure of the paper.

This file is a one-file package, as `debiasbench/methods.py`: the files are in the top-level folder `experiments/` of a
clone, or in the folder beside this file in an installed wheel.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from debiasbench.errors import BenchmarkError
from debiasbench.files import to_path, write_atomically
from debiasbench.parameters import suggestion
from debiasbench.plugins import folders

__path__ = folders(__file__, "DEBIASBENCH_EXPERIMENTS_PATH")

SHOWN = ("accuracy", "cost", "bins", "fisher", "norms", "trials")
SMOKE: dict[str, Any] = {"methods": list, "datasets": list, "seeds": (int, list), "epochs": int, "instead": dict}
KEYS: dict[str, Any] = {
    "title": str, "methods": list, "datasets": list, "seeds": (int, list), "epochs": int, "reference": str,
    "paper": str, "show": str, "smoke": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """One file's grid.

    Attributes:
        methods, datasets: with parameters inline. seeds: how many, or which.
        paper: the stem of the file in `experiments/paper/` whose numbers it regenerates; "" for none.
        show: what is made of it: accuracy (tables), cost (seconds by step), bins (counts of scores), fisher (traces of
            the inverse Fisher information), norms (variants over datasets), trials (distributions over seeds).
        instead: dataset of the experiment -> what runs in its place, in a smoke run.
        epochs, shared_recipes, data_seeds: as on the command line; files do not say them.
    """

    name: str
    methods: list[str]
    datasets: list[str]
    title: str = ""
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
        """Whether it is drawn from the trained networks."""
        return self.show == "fisher"

    def ran(self, dataset: str) -> str | None:
        """What runs for a dataset of the paper: itself, or in a smoke run its stand-in, or nothing."""
        return self.instead.get(dataset) if self.smoke else dataset


def read_experiment(name: str, *, smoke: bool = False) -> Experiment:
    """The experiment of this name, or of this TOML file; with `smoke` the short one on stand-ins.

    Raises:
        BenchmarkError: no such experiment; a file that is no TOML or lacks or misspells something; no smoke variant.
    """
    shipped = Path(__path__[0])
    path = to_path(name) if name.endswith(".toml") else shipped / f"{name}.toml"
    if not path.is_file():
        known = names()
        raise BenchmarkError(f"Unknown experiment '{name}'.{suggestion(name, known)} Known: {', '.join(known)}.")
    try:
        values = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path} is no valid TOML: {error}") from None
    lacking = [key for key in ("methods", "datasets") if key not in values]
    if lacking:
        raise BenchmarkError(f"{path} lacks {', '.join(lacking)}.")
    _check(path, "", values, KEYS)
    short = values.pop("smoke", None)
    if values.get("show", "accuracy") not in SHOWN:
        raise BenchmarkError(f"{path}: 'show' must be one of {', '.join(SHOWN)}. Got {values['show']!r}.")
    if smoke:
        if short is None:
            raise BenchmarkError(f"{path} has no [smoke] variant.")
        _check(path, "smoke.", short, SMOKE)
        instead = short.get("instead", {})
        strange = [dataset for dataset in instead if dataset not in values["datasets"]]
        if strange:
            raise BenchmarkError(f"{path}: [smoke.instead] names {', '.join(strange)}, which is none of its datasets.")
        stand_ins = [instead[dataset] for dataset in values["datasets"] if dataset in instead]
        values = {**values, "datasets": stand_ins or values["datasets"], **short, "smoke": True}
    return Experiment(name=path.stem, **values)


def write_grid(results_dir: Path, asked: Experiment, methods: Sequence[str]) -> None:
    """Keep what `debiasbench report` needs to show a grid as its run did; `methods` are titles, in order."""
    shown = asdict(asked) if asked.paper or asked.show != "accuracy" else None
    content = {"reference": asked.reference, "order": list(methods), "experiment": shown}
    write_atomically(results_dir / "grid.json", json.dumps(content).encode())


def names() -> list[str]:
    """The experiments that are shipped."""
    return sorted(file.stem for file in Path(__path__[0]).glob("*.toml"))


def _check(path: Path, where: str, values: dict[str, Any], kinds: dict[str, Any]) -> None:
    for key, value in values.items():
        if key not in kinds:
            raise BenchmarkError(
                f"{path}: unknown key '{where}{key}'.{suggestion(key, kinds)} Known: {', '.join(kinds)}."
            )
        if not isinstance(value, kinds[key]):
            raise BenchmarkError(f"{path}: '{where}{key}' must not be {value!r}; see the shipped experiments.")
