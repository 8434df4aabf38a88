"""Fair tuning: the same number of seeded draws for every method, chosen on validation only.

A draw is an ordinary cell: its values are inline parameters of the method, as on the command line. Draw 0 is the
method's defaults. Every other draw depends only on its number and on the names of method, dataset and parameter: more
draws extend fewer, and values given inline do not change the other values.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from debiasbench.cell import Cell
from debiasbench.datasets import registry as dataset_registry
from debiasbench.errors import BenchmarkError
from debiasbench.grid import MOST_CELLS, Grid, Skip, expand, named_all
from debiasbench.methods import Method
from debiasbench.methods import registry as method_registry
from debiasbench.parameters import MOST_SETTINGS, expand_sweeps, split_spec, write_value
from debiasbench.plugins import defaults
from debiasbench.recipe import Recipe
from debiasbench.records import Record, found_record
from debiasbench.search import Range
from debiasbench.tuned import Chosen, Draw, Tuned, TunedValues

FIRST_SEED = 1000  # first seed of the draws; reported runs have other seeds
MOST_TRIES = 100  # attempts to find values that a method accepts


@dataclass(frozen=True)
class Trial:
    """One draw: titles of dataset and method as given, its number, its values, and its cells, one per seed."""

    dataset: str
    method: str
    number: int
    values: dict[str, Any]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Tried:
    """The outcome of a draw.

    Attributes:
        value: the value that the rule maximises, as the mean over seeds; None if there is none.
        seconds: total of its records.
        reason: why it has no value, in words.
    """

    trial: Trial
    value: float | None
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class _Single:
    """One method or dataset that a spec stands for: its text, its class, and the keys that it sets."""

    text: str
    cls: type[Any]
    given: frozenset[str]


# ---- draws -----------------------------------------------------------------------------------------------------------


def expand_draws(
    methods: list[str],
    datasets: list[str],
    *,
    draws: int,
    seeds: int = 1,
    rule: str = "worst_class",
    epochs: int | None = None,
    shared_recipes: bool = False,
) -> tuple[Grid, list[Trial]]:
    """The cells of all draws, and the draws; methods that cannot be tuned are skipped, with the reason.

    Args:
        methods, datasets: names with inline parameters, which stay fixed and are not searched.
        draws: number for each method on each dataset; the first is the defaults.
        seeds: number of runs of each draw, with seeds 1000, 1001, ...
        rule: the rule that will choose.

    Raises:
        BenchmarkError: names, parameters or numbers are wrong (all mistakes at once), or no method can be tuned.
    """
    if not 1 <= draws <= MOST_SETTINGS:
        raise BenchmarkError(f"--draws must be from 1 to {MOST_SETTINGS}. Got {draws}.")
    _refuse_too_many(draws * seeds)  # before the seeds are listed, which could fill the memory
    options: dict[str, Any] = {
        "seeds": range(FIRST_SEED, FIRST_SEED + seeds) if seeds > 0 else seeds,
        "epochs": epochs, "shared_recipes": shared_recipes,
    }  # fmt: skip
    asked = expand(methods, datasets, **options)  # every mistake, in one message
    _refuse_too_many(draws * len(asked.cells))
    grids, skips, trials = [], list(asked.skips), []
    seen: set[tuple[str, str]] = set()
    for dataset in _singles(datasets, dataset_registry):
        for method in _singles(methods, method_registry):
            found = expand([method.text], [dataset.text], **options)
            if not found.cells:
                continue
            pair = found.cells[0].dataset_title, found.cells[0].method_title
            if pair in seen:
                continue
            seen.add(pair)
            reason = _why_not(found.cells[0].build_method(), rule)
            if reason:
                skips.append(Skip(pair[1], pair[0], reason))
                continue
            for number, (values, grid) in enumerate(_draws(method, dataset, found, draws, options)):
                cells = tuple(replace(cell, draw=Draw(pair[1], number)) for cell in grid.cells)
                trials.append(Trial(*pair, number, values, cells))
                grids.append(replace(grid, cells=list(cells)))
    if not trials:
        reasons = [f"{skip.method_title} on {skip.dataset_title}: {skip.reason}." for skip in skips]
        raise BenchmarkError("\n".join(["There is nothing to tune.", *reasons]))
    return _together(grids, skips, asked.notices), trials


def _refuse_too_many(n_cells: int) -> None:
    if n_cells > MOST_CELLS:
        raise BenchmarkError(
            f"{n_cells:,} cells (methods x datasets x draws x seeds) are too many: at most {MOST_CELLS:,}."
        )


def _why_not(method: Method, rule: str) -> str:
    """Why a rule cannot choose values of a method; "" if it can."""
    if method.trains_on_validation:
        return "it trains on the validation samples, so no rule on validation can choose its values"
    if rule == "worst_proxy" and not method.gives_proxies:
        return "it gives no proxies (a biased network before the one that predicts), which worst_proxy chooses by"
    return ""


def _draws(
    method: _Single, dataset: _Single, found: Grid, draws: int, options: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], Grid]]:
    """The values and cells of each draw; those of the first are the defaults, in `found`.

    Raises:
        BenchmarkError: nothing is left to search, or the method refuses `MOST_TRIES` attempts at one draw.
    """
    cell = found.cells[0]
    space = _space(method, dataset)
    known = {**cell.recipe, **cell.method_parameters}
    yield {key: known[key] for key in space}, found
    for number in range(1, draws):
        refusal = ""
        for attempt in range(MOST_TRIES):
            values = {
                key: one.draw(random.Random(f"{cell.method} {cell.dataset} {number} {key} {attempt}"), known[key])
                for key, one in space.items()
            }
            try:
                grid = expand([with_values(method.text, values)], [dataset.text], **options)
            except BenchmarkError as error:
                refusal = str(error)
                continue
            if grid.cells:
                yield values, grid
                break
            refusal = grid.skips[0].reason
        else:
            raise BenchmarkError(
                f"{cell.method_title} accepts none of {MOST_TRIES} draws from its search: {refusal} "
                "Give what cannot be drawn inline, or change its search."
            )


def _space(method: _Single, dataset: _Single) -> dict[str, Range]:
    """The search space: the ranges of the method, without what was given inline.

    Raises:
        BenchmarkError: a range is for something that is neither a parameter of the method nor a field of the recipe,
            or everything was given inline.
    """
    cls: type[Method] = method.cls
    own, space = defaults(cls), cls.search_space()
    strange = [key for key in space if key not in own and key not in defaults(Recipe)]
    if strange:
        raise BenchmarkError(
            f"The search of {cls.name} names '{strange[0]}', which is neither a parameter of it nor a field of the "
            "recipe."
        )
    fixed = method.given | {key for key in dataset.given if key not in own}
    left = {key: one for key, one in space.items() if key not in fixed}
    if not left:
        raise BenchmarkError(f"{method.text} leaves nothing to search: all of {', '.join(space)} are given.")
    return left


def _singles(specs: list[str], registry: Any) -> Iterator[_Single]:
    """Each method or dataset that specs stand for; a sweep gives several."""
    for spec in named_all(specs, registry):
        name, options = split_spec(spec)
        cls, implied = registry.get(name)
        for single in expand_sweeps(options):
            preset = cls.presets.get(single.get("preset", ""), {})
            recipes = preset.get("recipes", {}).values()
            of_preset = {*preset, *preset.get("recipe", {}), *(key for recipe in recipes for key in recipe)}
            yield _Single(with_values(name, single), cls, frozenset({*single, *implied, *of_preset}))


def with_values(spec: str, values: dict[str, Any]) -> str:
    """A spec with more inline parameters."""
    parts = ",".join(f"{key}={write_value(value)}" for key, value in values.items())
    return f"{spec}{',' if ':' in spec else ':'}{parts}" if parts else spec


def _together(grids: Iterable[Grid], skips: Iterable[Skip], notices: Iterable[str]) -> Grid:
    """Several grids as one, with equal cells once."""
    cells: dict[str, Cell] = {}
    costs: dict[str, float] = {}
    for grid in grids:
        for cell in grid.cells:
            cells.setdefault(cell.hash, cell)
            costs[cell.hash] = next(iter(grid.relative_costs.values()))
    return Grid(list(cells.values()), list(dict.fromkeys(skips)), list(dict.fromkeys(notices)), costs)


# ---- choosing --------------------------------------------------------------------------------------------------------


def tried(trials: Iterable[Trial], results_dir: Path, rule: str) -> list[Tried]:
    """The outcomes of draws, from their records, of which only validation is read. rule: one of `CHOOSING`."""
    return [_tried(trial, [found_record(results_dir, cell) for cell in trial.cells], rule) for trial in trials]


def tried_by(records: Iterable[Record], rule: str) -> list[Tried]:
    """The outcomes of the draws among records."""
    of_draws: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        cell = record.cell
        if cell.draw is not None:
            of_draws.setdefault((cell.dataset_title, cell.draw.method, cell.draw.number), []).append(record)
    return [
        _tried(Trial(*key, {}, tuple(record.cell for record in some)), some, rule)
        for key, some in sorted(of_draws.items())
    ]


def _tried(trial: Trial, records: Sequence[Record | None], rule: str) -> Tried:
    values, seconds, reasons = [], 0.0, []
    for record in records:
        if record is None:
            reasons.append("not run")
            continue
        seconds += record.provenance.seconds.total
        if record.result is None:
            assert record.failure is not None
            reasons.append(f"failed: {record.failure.type}: {record.failure.message.partition(chr(10))[0]}")
            continue
        value = record.result.criterion(rule, _headline(record.cell.dataset))
        if value is None:
            reasons.append(f"{rule} has no value there, and cannot choose")
        else:
            values.append(value)
    whole = len(values) == len(records)  # a mean over fewer seeds could not be compared with the others
    return Tried(trial, sum(values) / len(values) if whole else None, seconds, "; ".join(dict.fromkeys(reasons)))


def _headline(dataset: str) -> tuple[str, ...]:
    cls = dataset_registry.classes().get(dataset)
    return cls.headline if cls else ()


def choose(found: Sequence[Tried]) -> list[Tried]:
    """The best draw of each method on each dataset, the earlier one in a tie; none where no draw has a value."""
    best: dict[tuple[str, str], Tried] = {}
    for one in sorted((one for one in found if one.value is not None), key=lambda one: one.trial.number):
        pair = one.trial.dataset, one.trial.method
        if pair not in best or one.value > best[pair].value:  # type: ignore[operator] # those without are left out
            best[pair] = one
    return list(best.values())


def as_chosen(best: Tried, found: Sequence[Tried]) -> Chosen:
    """The entry of the file for a draw that was chosen among `found`; the rule's values are given without sign."""
    trial = best.trial
    default = next(
        one.value for one in found
        if (one.trial.dataset, one.trial.method, one.trial.number) == (trial.dataset, trial.method, 0)
    )  # fmt: skip
    assert best.value is not None
    values = {key: "none" if value is None else value for key, value in trial.values.items()}
    return Chosen(
        trial.dataset, trial.method, trial.number, abs(best.value), None if default is None else abs(default), values
    )


# ---- what was chosen, run --------------------------------------------------------------------------------------------


def expand_tuned(
    methods: list[str],
    datasets: list[str],
    tuned: TunedValues,
    *,
    seeds: int | Sequence[int],
    data_seeds: int | None = None,
    epochs: int | None = None,
    shared_recipes: bool = False,
) -> Grid:
    """Like `grid.expand`, with the values that were chosen for each method on each dataset; the titles say so.

    Raises:
        BenchmarkError: as in `expand`, or nothing was chosen for a method on a dataset; it says for which there is.
    """
    options: dict[str, Any] = {"epochs": epochs, "shared_recipes": shared_recipes}
    asked = expand(methods, datasets, seeds=seeds, data_seeds=data_seeds, **options)
    grids, lacking = [], []
    for cell in asked.cells:
        chosen = tuned.of(cell.dataset_title, cell.method_title) or tuned.of(cell.data_title, cell.method_title)
        if chosen is None:
            lacking.append(f"{cell.method_title} on {cell.data_title}")
            continue
        grids.append(_with_chosen(cell, chosen, tuned, options))
    if lacking:
        there = ", ".join(f"{one.method} on {one.dataset}" for one in tuned.chosen) or "nothing"
        raise BenchmarkError(
            f"{tuned.path} has no values of {', '.join(dict.fromkeys(lacking))}. It has: {there}. Ask for these, or "
            "tune all of them in one command (what is trained is not trained again): debiasbench tune."
        )
    return _together(grids, asked.skips, asked.notices)


def _with_chosen(cell: Cell, chosen: Chosen, tuned: TunedValues, options: dict[str, Any]) -> Grid:
    """The grid of one cell with the values chosen for its method; titles are specs, so they give all other values."""
    try:
        found = expand(
            [with_values(cell.method_title, chosen.values)], [_spec_of_data(cell)], seeds=[cell.seed], **options
        )
        if not found.cells:
            raise BenchmarkError(found.skips[0].reason)
    except BenchmarkError as error:
        raise BenchmarkError(f"{tuned.path}: the values of {chosen.method} on {chosen.dataset}: {error}") from None
    how = Tuned(tuned.rule, tuned.draws, tuned.seeds, chosen.draw)
    title = with_values(cell.method_title, {"tuned": tuned.rule})
    (new,) = found.cells
    new = replace(new, tuned=how, method_title=title, dataset_title=cell.dataset_title)
    return replace(found, cells=[new])


def _spec_of_data(cell: Cell) -> str:
    """The title of the dataset, with its root folder."""
    return with_values(cell.dataset_title, {} if cell.root is None else {"root": cell.root})
