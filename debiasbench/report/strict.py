"""Checks of a table before it is published, and the seal that says which records it was made of.

`refusals` compares the records behind the rows of a table, and returns everything that is unequal or missing, each with
the commands that fix it. A table that passes gets a `Seal`. Later, `differences` compares any records with that seal.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from debiasbench import about
from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.selection import select, uses_bias_labels
from debiasbench.grid import expand
from debiasbench.plain import encodable, from_plain, to_plain
from debiasbench.records import MOST_BYTES, Brief, Record, Result, read_record
from debiasbench.report.budgets import Budget, as_asked, budget_of, declared, untuned
from debiasbench.report.results import Measure, data_seed, dataset_title, headlines, runs
from debiasbench.report.statistics import LEVEL, smallest_p
from debiasbench.report.tables import MARKED, Table
from debiasbench.tuning import with_values

COUNTED, ROUNDING = ("acc_avg", "acc_unbiased"), 1e-6  # accuracies that are a fraction of the samples
TEST_ORACLE = "test_oracle"  # an upper bound: never a result


@dataclass(frozen=True)
class Refusal:
    """Why a table is not ready for publication: what is wrong in which cells, and the commands that fix it."""

    problem: str
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, order=True)
class Place:
    """A cell by the titles of its dataset (with the data seed) and method, and its training seed."""

    dataset: str
    method: str
    seed: int


@dataclass(frozen=True)
class Commands:
    """Command lines for cells of a results folder.

    Attributes:
        results_dir: the results folder in which more cells are trained.
        folder: the folder or archive that the report reads.
        shown: options of the report -> their values, such as methods, datasets and metrics.
        reference: the title of the method that the others are tested against.
    """

    results_dir: Path
    folder: Path
    shown: Mapping[str, Sequence[str]]
    reference: str

    def run(self, places: Iterable[Place], *more: str) -> tuple[str, ...]:
        """One `debiasbench run` for all cells of a dataset that have the same seeds."""
        return tuple(command for group in _grouped(places) for command in self.grid(*group, *more))

    def grid(
        self, methods: Sequence[str], datasets: Sequence[str], seeds: Sequence[int], *more: str
    ) -> tuple[str, ...]:
        """`debiasbench run` for methods x datasets x seeds; a separate one for methods with tuned values."""
        commands = []
        for tuned in (False, True):
            specs = [spec for spec, by_tuning in map(as_asked, methods) if by_tuning == tuned]
            words = ["run", "--methods", *specs, "--datasets", *datasets, "--seed-list", *map(str, seeds)]
            words += ["--tuned", str(self.results_dir / "tuned.toml")] if tuned else []
            commands += [self._command(*words, *more)] if specs else []
        return tuple(commands)

    def tune(self, methods: Sequence[str], datasets: Sequence[str], budget: Budget) -> str:
        """`debiasbench tune` with this budget; finished draws are not trained again."""
        numbers = "--draws", str(budget.draws), "--seeds", str(budget.seeds), "--rule", budget.rule
        return self._command("tune", "--methods", *methods, "--datasets", *datasets, *numbers)

    def _command(self, *words: str) -> str:
        place = () if self.results_dir == Path("results") and words[0] == "run" else (
            "--results-dir", str(self.results_dir)
        )  # fmt: skip
        return shlex.join(["debiasbench", *words, *place])

    def select(self, rule: str) -> str:
        """The report with another selection rule."""
        return f"{self.again} {shlex.join(['--select', rule])}"

    @property
    def again(self) -> str:
        """The report."""
        words = [word for name, values in self.shown.items() if values for word in (f"--{name}", *values)]
        return shlex.join([
            "debiasbench", "report", str(self.folder), *words, "--reference", self.reference, "--strict"
        ])  # fmt: skip

    def only(self, methods: Sequence[str]) -> str:
        """The report of these methods."""
        like = [method for method in methods if as_asked(method)[0] == as_asked(self.reference)[0]]
        return replace(self, shown={**self.shown, "methods": methods}, reference=(like or methods)[0]).again


class Facts(NamedTuple):
    """Facts from a whole record: its contradiction, "" if none is found, and its `digest_of`."""

    contradiction: str
    sha256: str


class Wholes:
    """Facts of finished records. A report keeps only a part of each record, so each one is read once again for them."""

    def __init__(self) -> None:
        self._found: dict[Path, Facts] = {}

    def facts(self, record: Record) -> Facts:
        """The facts of a finished record, from its file at the first call."""
        found = self._found.get(record.path) if record.path else None
        if found is None:
            whole = _whole(record)
            found = Facts(contradiction(whole), digest_of(whole))
            if record.path:
                self._found[record.path] = found
        return found


def refusals(
    records: Sequence[Record],
    measures: Sequence[Measure],
    *,
    asked: Iterable[Cell],
    table: pd.DataFrame | None,
    commands: Commands,
    wholes: Wholes,
) -> list[Refusal]:
    """Everything that keeps a table from being published; empty if it passes.

    Args:
        records: all records that the report shows, done and failed.
        measures: the columns of the table.
        asked: the cells of the last run that belong to the shown methods and datasets.
        table: the finished records as a data frame; None if there are none.
        commands: makes the command lines of the answer.
        wholes: the finished records as a whole; `seal` needs them again.
    """
    done = [record for record in records if record.done]
    found = [
        *_failed(records, commands), *_missing(records, asked, commands), *_rules(measures, commands),
        *_without_value(done, measures, commands), *_budgets(done, commands), *_data(done, commands),
        *_not_published(done, commands), *_contradictory(done, commands, wholes), *_code(done, commands),
        *_nets(done, commands), *_functions(done, measures, commands), *_machines(done, commands),
        *_few_seeds(done, measures, commands),
    ]  # fmt: skip
    if found or table is None:
        return found
    return [Refusal(problem) for problem in _mixed(table, measures)]


def message(found: Sequence[Refusal], complaints: Sequence[str], commands: Commands) -> str:
    """All refusals as one text; `complaints`: about files that could not be read, each of which may be a cell.

    The text ends with the command of the same report, with its reference: a run of a few cells changes the last grid,
    from which a report otherwise takes the reference.
    """
    every = [*found, *(Refusal(f"A file could not be read: {complaint}") for complaint in complaints)]
    lines = ["These tables are not ready for publication (to leave something out: --methods, --datasets):"]
    for one in every:
        lines.append(f"- {one.problem}")
        lines += [f"    {command}" for command in one.commands]
    lines.append(f"Then: {commands.again}")
    return "\n".join(lines)


# ---- cells in words --------------------------------------------------------------------------------------------------


def place_of(cell: Cell) -> Place:
    """The place of a cell."""
    return Place(cell.dataset_title, cell.method_title, cell.seed)


def _places(records: Iterable[Record]) -> list[Place]:
    return list(dict.fromkeys(place_of(record.cell) for record in records))


def _grouped(places: Iterable[Place]) -> Iterator[tuple[list[str], list[str], list[int]]]:
    """Methods, datasets and seeds of grids that hold these cells and no others."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for place in places:
        seeds.setdefault((place.dataset, place.method), set()).add(place.seed)
    methods: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (dataset, method), some in seeds.items():
        methods.setdefault((dataset, tuple(sorted(some))), []).append(method)
    for (dataset, chosen), names in methods.items():
        yield names, [dataset], list(chosen)


def _named(places: Iterable[Place]) -> str:
    """`pgd, lff on cmnist5k, seeds 0 to 2; pgd on bar, seed 1`."""
    return "; ".join(f"{', '.join(methods)} on {datasets[0]}, {_seeds(seeds)}"
                     for methods, datasets, seeds in _grouped(places))  # fmt: skip


def _seeds(seeds: Sequence[int]) -> str:
    """`seed 4`, `seeds 0, 1`, `seeds 0 to 9, 12`."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    texts = [f"{part[0]} to {part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts]
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(texts)}"


# ---- what is looked at -----------------------------------------------------------------------------------------------


def _failed(records: Iterable[Record], commands: Commands) -> Iterator[Refusal]:
    by_cause: dict[str, list[Place]] = {}
    for record in records:
        if record.failure is not None:
            cause = f"{record.failure.type}: {record.failure.message}".partition("\n")[0]
            by_cause.setdefault(cause, []).append(place_of(record.cell))
    for cause, places in by_cause.items():
        yield Refusal(f"Failed: {_named(places)} ({cause}).", commands.run(places, "--rerun", "failed"))


def _missing(records: Sequence[Record], asked: Iterable[Cell], commands: Commands) -> Iterator[Refusal]:
    """Cells that other methods have on the same dataset, and cells of the last run that have no record yet."""
    there = set(_places(records))
    methods = list(dict.fromkeys(record.cell.method_title for record in records))
    having = {(dataset_title(record.cell), record.cell.method_title) for record in records}
    declines = functools.cache(_declines)
    others: dict[Place, None] = {}
    for record in records:
        own, dataset = place_of(record.cell), dataset_title(record.cell)
        for method in methods:
            place = replace(own, method=method)
            if place not in there and ((dataset, method) in having or not declines(method, own.dataset)):
                others[place] = None
    if others:
        yield Refusal(f"No record, although other methods have one: {_named(others)}.", commands.run(others))
    waiting = [place for place in map(place_of, asked) if place not in there and place not in others]
    if waiting:
        yield Refusal(f"Cells of the last run have no record yet: {_named(waiting)}.", commands.run(waiting))


def _declines(method: str, dataset: str) -> bool:
    """Whether a method declines a dataset, and so has no cell there."""
    try:
        return not expand([as_asked(method)[0]], [dataset], seeds=1).cells
    except BenchmarkError:  # not known here
        return False


def _rules(measures: Sequence[Measure], commands: Commands) -> Iterator[Refusal]:
    rules = list(dict.fromkeys(measure.select for measure in measures))
    if len(rules) > 1:
        usable = [rule for rule in rules if not uses_bias_labels(rule)] or ["last"]
        yield Refusal(
            f"Several selection rules ({', '.join(rules)}): a table must have one, so that nobody can pick the best.",
            tuple(map(commands.select, usable)),
        )
    if TEST_ORACLE in rules:
        yield Refusal(
            f"The rule {TEST_ORACLE} selects on the test split: an upper bound, never a result.",
            (commands.select("last"),),
        )


def _without_value(done: Sequence[Record], measures: Sequence[Measure], commands: Commands) -> Iterator[Refusal]:
    for measure in measures:
        lacking = [
            place_of(record.cell) for record in done
            if dataset_title(record.cell) == measure.dataset and not _has_value(record, measure)
        ]  # fmt: skip
        if lacking:
            why = "the group is empty" if measure.select == "last" else "the rule cannot select, or the group is empty"
            yield Refusal(
                f"No value of {measure.metric} by the rule {measure.select} ({why}): {_named(lacking)}.",
                () if measure.select == "last" else (commands.select("last"),),
            )


def _has_value(record: Record, measure: Measure) -> bool:
    selected = record.result.selected(measure.select) if record.result is not None else None
    return selected is not None and measure.metric in selected.test


def _budgets(done: Sequence[Record], commands: Commands) -> Iterator[Refusal]:
    """Methods of a dataset with unequal tuning; equal means no tuning at all, or as many draws by the same rule."""
    for dataset, records in _by(done, lambda record: dataset_title(record.cell)):
        budgets = dict(_by(records, budget_of))
        if len(budgets) == 1 and next(iter(budgets)).draws is not None:
            continue
        parts = []
        for budget, some in budgets.items():
            cells = {place_of(record.cell): record.cell for record in some}
            named = _named(replace(place, method=_with_values(cell)) for place, cell in cells.items())
            parts.append(f"{named}: {budget.words}")
        by_draws = sorted((budget for budget in budgets if budget.draws), key=lambda one: -len(budgets[one]))
        if by_draws:
            advice, lines = _tuned_alike(dataset, records, budgets[by_draws[0]], by_draws[0], commands)
        else:
            cells = {place_of(record.cell): record.cell for record in records if declared(record.cell)}
            specs = {place: untuned(cell) for place, cell in cells.items()}
            lines = commands.run(replace(place, method=spec) for place, spec in specs.items() if spec is not None)
            advice = (
                "Give all methods the same number of draws (debiasbench tune)"
                + (", or compare them untuned: run the cells below, and show only these (--methods)" if lines else "")
            )  # fmt: skip
        yield Refusal(f"Unequal tuning budgets. {'. '.join(parts)}. {advice}.", lines)


def _tuned_alike(
    dataset: str, records: Sequence[Record], alike: Sequence[Record], budget: Budget, commands: Commands
) -> tuple[str, tuple[str, ...]]:
    """Advice and commands that give every method of a dataset the budget that some of them have."""
    tuned = list(dict.fromkeys(record.cell.method_title for record in alike))
    specs = list(dict.fromkeys(as_asked(record.cell.method_title)[0] for record in records))
    lacking = [spec for spec in specs if spec not in [as_asked(title)[0] for title in tuned]]
    if not lacking:
        return "Every method also has runs with equal draws: show only these", (commands.only(tuned),)
    places = [place_of(record.cell) for record in records if as_asked(record.cell.method_title)[0] in lacking]
    places = [replace(place, method=with_values(as_asked(place.method)[0], {"tuned": budget.rule})) for place in places]
    return (
        "Give all methods the same number of draws, run the missing cells, and show only tuned ones (--methods)",
        (commands.tune(specs, [dataset], budget), *commands.run(dict.fromkeys(places))),
    )


def _with_values(cell: Cell) -> str:
    values = ", ".join(f"{key} {value}" for key, value in declared(cell).items() if cell.tuned is None)
    return f"{cell.method_title} ({values})" if values else cell.method_title


def _data(done: Sequence[Record], commands: Commands) -> Iterator[Refusal]:
    for (dataset, seed), records in _by(done, lambda one: (dataset_title(one.cell), data_seed(one.cell))):
        odd, usual = _odd_ones(records, lambda one: one.result.data.fingerprint if one.result else "")
        if odd:
            prints = ", ".join(sorted({one.result.data.fingerprint[:12] for one in odd if one.result}))
            yield Refusal(
                f"Different data under one name, {dataset} with data seed {seed}: {_named(_places(odd))} (fingerprint "
                f"{prints}; the others {usual[:12]}). This trains those cells again that do not have the present data:",
                commands.run(_places(records)),
            )


def _not_published(done: Sequence[Record], commands: Commands) -> Iterator[Refusal]:
    for dataset, records in _by(done, lambda record: dataset_title(record.cell)):
        odd = [record for record in records if record.result is not None and not record.result.data.official]
        for first in odd[:1]:
            assert first.result is not None
            data = first.result.data
            counts = ", ".join(f"{split} {part.n:,}" for split, part in data.splits.items())
            yield Refusal(
                f"{MARKED} {dataset} is not the published data ({counts}): {_named(_places(odd))}. {data.note}".strip(),
                (shlex.join(["debiasbench", "prepare", first.cell.dataset]), *commands.run(_places(odd))),
            )


def _contradictory(done: Sequence[Record], commands: Commands, wholes: Wholes) -> Iterator[Refusal]:
    """Records whose parts contradict each other; the cause is unknown here."""
    by_reason: dict[str, list[Place]] = {}
    for record in done:
        reason = wholes.facts(record).contradiction
        if reason:
            by_reason.setdefault(reason, []).append(place_of(record.cell))
    for reason, places in by_reason.items():
        yield Refusal(
            f"A record contradicts itself, so one of its parts is not what the run gave: {_named(places)} ({reason}).",
            commands.run(places, "--rerun", "all"),
        )


def contradiction(record: Record) -> str:
    """The first contradiction in a finished record; "" if none is found."""
    result = record.result
    assert result is not None
    if record.hash != record.cell.hash:
        return "its hash does not match its cell"
    for row in result.epochs:
        for split, metrics in (("valid", row.valid), ("test", row.test)):
            counted, facts = (row.correct_by_class or {}).get(split), result.data.splits.get(split)
            fraction = None if counted is None or facts is None or not facts.n else sum(counted) / facts.n
            for name, value in metrics.items():
                place = f"{name} on {split} is {value:g} in epoch {row.epoch}"
                if name.startswith("acc_") and not 0 <= value <= 1:
                    return place
                if name in COUNTED and fraction is not None and abs(fraction - value) > ROUNDING:
                    return f"{place}, but {fraction:g} of the predictions were correct"
    for rule, index in select(result.epochs, headlines(record.cell.dataset)).items():
        chosen = result.selection.get(rule)
        if rule != TEST_ORACLE and chosen is not None and index is not None and chosen != index:
            return f"by its logged metrics, {rule} selects epoch {result.epochs[index].epoch} and not another"
    return _contradiction_of_groups(result)


def _contradiction_of_groups(result: Result) -> str:
    """The first contradiction of the accuracies by group, which are those of the last epoch; "" if none is found."""
    groups = [(group, group.acc) for group in result.groups.get("test", ()) if group.acc is not None]
    if not groups:
        return ""
    for group, accuracy in groups:
        if not 0 <= accuracy <= 1:
            name = f"{group.y} / {group.bias}" if group.group is None else group.group
            return f"the accuracy of group {name} on test is {accuracy:g}"
    by_group = {"acc_worst": min(accuracy for _, accuracy in groups)}
    n, facts = sum(group.n for group, _ in groups), result.data.splits.get("test")
    if facts and facts.n == n and all(group.group is None for group, _ in groups):  # every sample is in one group
        by_group["acc_avg"] = sum(group.n * accuracy for group, accuracy in groups) / n
    last = result.epochs[-1]
    for name, value in by_group.items():
        if name in last.test and abs(last.test[name] - value) > ROUNDING:
            return f"{name} on test is {last.test[name]:g} in epoch {last.epoch}, but {value:g} by its groups"
    return ""


def _code(done: Sequence[Record], commands: Commands) -> Iterator[Refusal]:
    for method, records in _by(done, lambda record: record.cell.method_title):
        digests = [_digest("method", record) for record in records]
        if len(set(digests)) == 1 and digests[0] is not None:
            continue
        now = _code_now(records[0].cell)
        known = Counter(digest for digest in digests if digest is not None)
        wanted = now or (known.most_common(1)[0][0] if known else None)
        odd = [record for record, digest in zip(records, digests, strict=True) if digest is None or digest != wanted]
        what = "has no digest of its code" if not known else "has different digests of its code, or lacks some"
        yield Refusal(
            f"The row of {method} {what}. Trained with other or unknown code: {_named(_places(odd))}.",
            commands.run(_places(odd), "--rerun", "all"),
        )


def _nets(done: Sequence[Record], commands: Commands) -> Iterator[Refusal]:
    """A network outside the suite must have one digest in all records of a dataset; those of the suite have none."""
    for (dataset, net), records in _by(done, lambda one: (dataset_title(one.cell), one.cell.recipe.get("net"))):
        odd, _ = _odd_ones(records, functools.partial(_digest, "net"))
        if odd:
            yield Refusal(
                f"The net {net} on {dataset} has different digests of its code, or lacks some. Unlike most: "
                f"{_named(_places(odd))}.",
                commands.run(_places(odd), "--rerun", "all"),
            )


def _functions(done: Sequence[Record], measures: Sequence[Measure], commands: Commands) -> Iterator[Refusal]:
    """A metric or rule outside the suite must have one digest in all records for which it is shown."""
    for measure in measures:
        records = [record for record in done if dataset_title(record.cell) == measure.dataset]
        for kind in (f"metric {measure.metric}", f"rule {measure.select}"):
            odd, _ = _odd_ones(records, functools.partial(_digest, kind))
            if odd:
                yield Refusal(
                    f"The {kind} on {measure.dataset} has different digests of its code, or lacks some. Unlike most: "
                    f"{_named(_places(odd))}.",
                    commands.run(_places(odd), "--rerun", "all"),
                )


def _digest(kind: str, record: Record) -> str | None:
    """The digest of one part of the code behind a record; None if the record has none."""
    return (record.provenance.code or {}).get(kind)


def _code_now(cell: Cell) -> str | None:
    try:
        return cell.code()["method"]
    except BenchmarkError:  # not known here
        return None


def _machines(done: Sequence[Record], commands: Commands) -> Iterator[Refusal]:
    """Kinds of device or precisions that differ from those of most cells, so that runs are not comparable."""
    odd, usual = _odd_ones(done, lambda record: (record.device_kind, record.precision))
    if odd or (done and not all(usual)):
        places = _places(odd or done)
        machines = sorted({_machine(record.device_kind, record.precision) for record in odd or done})
        told = f"{_named(places)} ran on {', '.join(machines)}" + (f", the others on {_machine(*usual)}" if odd else "")
        more = ("--device", usual[0]) if usual[0] else ()
        yield Refusal(
            f"Different or unknown kinds of device or precisions: {told}.",
            commands.run(places, "--rerun", "all", *more),
        )


def _machine(kind: str, precision: str) -> str:
    return f"{kind or 'an unknown kind of device'} in {precision or 'an unknown precision'}"


def _few_seeds(done: Sequence[Record], measures: Sequence[Measure], commands: Commands) -> Iterator[Refusal]:
    """Datasets with fewer runs per method than the sign-flip test needs at the level after correction."""
    by_dataset = dict(_by(done, lambda record: dataset_title(record.cell)))
    methods = {dataset: {record.cell.method_title for record in some} for dataset, some in by_dataset.items()}
    n_comparisons = sum(len(methods[measure.dataset] - {commands.reference}) for measure in measures)
    if not n_comparisons:
        return
    level = LEVEL / n_comparisons
    needed = math.ceil(math.log2(n_comparisons / LEVEL))
    for dataset, records in by_dataset.items():
        n = len({(one.cell.seed, one.result.data.fingerprint) for one in records if one.result is not None})
        if smallest_p(n) <= level or not methods[dataset] - {commands.reference}:
            continue
        seeds = sorted({record.cell.seed for record in records})
        drawings = max(1, n // len(seeds))
        free = (seed for seed in range(needed + max(seeds)) if seed not in seeds)
        more = [next(free) for _ in range(math.ceil(needed / drawings) - len(seeds))]
        order = list(dict.fromkeys(record.cell.method_title for record in records))
        titles = list(dict.fromkeys(record.cell.dataset_title for record in records))
        yield Refusal(
            f"Too few seeds: {_named(_places(records))}. With {n} pairs of runs, p of the sign-flip test is at least "
            f"{smallest_p(n):.2g}, but the level is {level:.2g} ({LEVEL:g} over {n_comparisons} comparisons): {needed} "
            "pairs are needed.",
            commands.grid(order, titles, sorted([*seeds, *more])),
        )


def _mixed(table: pd.DataFrame, measures: Sequence[Measure]) -> Iterator[str]:
    """Messages of what no report puts into one table: several versions, settings under one title, duplicates."""
    for measure in measures:
        try:
            runs(table, measure.dataset, measure.metric, select=measure.select)
        except BenchmarkError as error:
            yield str(error)


def _by(records: Iterable[Record], key: Callable[[Record], Any]) -> list[tuple[Any, list[Record]]]:
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.items())


def _odd_ones(records: Sequence[Record], value: Callable[[Record], Any]) -> tuple[list[Record], Any]:
    """The records whose value differs from the most frequent one (the first among equals), and that value."""
    values = [value(record) for record in records]
    usual = Counter(values).most_common(1)[0][0] if values else None
    return [record for record, one in zip(records, values, strict=True) if one != usual], usual


# ---- the seal --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sealed:
    """A record behind a table: the title of its cell, and the digest of everything that must come out equal."""

    title: str
    sha256: str


@dataclass(frozen=True)
class Seal:
    """What the file of a table that passed holds.

    Attributes:
        suite: version of the suite that made it.
        reference: the title of the method that the others were tested against.
        methods: titles, in order.
        datasets: titles, in order.
        metrics: the metrics that were shown.
        select: the selection rules that were shown.
        by: what columns are grouped by, if it is not the dataset.
        budgets: dataset -> the tuning budget of all its methods.
        records: hash of a cell -> its record.
        tables: key -> rows as they were shown, the headings first.
        digest: SHA-256 of all other fields.
    """

    suite: str
    reference: str
    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    metrics: tuple[str, ...]
    select: tuple[str, ...]
    budgets: dict[str, Budget]
    records: dict[str, Sealed]
    tables: dict[str, tuple[tuple[str, ...], ...]]
    by: str | None = None
    digest: str = ""

    def content(self) -> str:
        """The digest of its fields, which `digest` must equal."""
        plain = to_plain(replace(self, digest=""))
        return hashlib.sha256(_canonical(plain)).hexdigest()

    @property
    def line(self) -> str:
        """What is written below the tables."""
        n = len(self.records)
        return (
            f"Passed `debiasbench report --strict`: {n:,} record{'s' if n != 1 else ''}, digest {self.digest}. To "
            "check the records against it: debiasbench report --verify tables/strict.json."
        )


def _canonical(plain: Any) -> bytes:
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def seal(
    records: Sequence[Record],
    tables: Sequence[Table],
    *,
    reference: str,
    metrics: Sequence[str],
    select: Sequence[str],
    wholes: Wholes,
    by: str | None = None,
) -> Seal:
    """The seal of tables.

    Args:
        records: the finished records that the tables were made of.
        tables: the tables as they were shown.
        reference: the title of the method that the others were tested against.
        metrics: the metrics that were shown.
        select: the selection rules that were shown.
        wholes: what `refusals` has found in the records.
        by: what columns are grouped by, if it is not the dataset.
    """
    titles = dict.fromkeys(dataset_title(record.cell) for record in records)
    found = Seal(
        suite=about.version(),
        reference=reference,
        methods=tuple(dict.fromkeys(record.cell.method_title for record in records)),
        datasets=tuple(titles),
        metrics=tuple(metrics),
        select=tuple(select),
        budgets={dataset_title(record.cell): budget_of(record) for record in records},
        records={record.hash: Sealed(record.cell.title, wholes.facts(record).sha256) for record in records},
        tables=shown_in(tables),
        by=by,
    )
    return replace(found, digest=found.content())


def shown_in(tables: Sequence[Table]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The rows that tables show, by their keys; only characters that a file can hold."""
    return {
        encodable(table.key): tuple(
            tuple(map(encodable, row))
            for row in ([column.heading for column in table.columns],
                        *([entry.shown for entry in row] for row in table.rows))
        )
        for table in tables
    }  # fmt: skip


def digest_of(record: Record) -> str:
    """SHA-256 of what a record contributes to a table: cell, result, digests of code, kind of device and precision.

    Where, when and for how long it ran, whether its networks were saved, and what classes are called do not count: a
    cell that is trained again to the same result has the same digest.
    """
    whole = _whole(record)
    data = whole.result and replace(whole.result.data, class_names=None, bias_values=None)
    result = whole.result and data and replace(whole.result, weights=None, data=data)
    content = {
        "hash": whole.hash, "cell": whole.cell.to_record(), "protocol": whole.provenance.protocol, "result": result,
        "code": whole.provenance.code, "device_kind": whole.device_kind, "precision": whole.precision,
    }  # fmt: skip
    return hashlib.sha256(_canonical(to_plain(content))).hexdigest()


def _whole(record: Record) -> Record:
    """A record with all of its epochs."""
    return read_record(record.path) if isinstance(record, Brief) and record.path else record


def write_seal(found: Seal) -> bytes:
    """The file of a seal."""
    return (json.dumps(to_plain(found), indent=1, ensure_ascii=False) + "\n").encode()


def read_seal(path: Path) -> Seal:
    """A seal from its file.

    Raises:
        BenchmarkError: it cannot be read, or is no seal.
    """
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        found: Seal = from_plain(Seal, json.loads(path.read_bytes().decode("utf-8-sig")))
        return found
    except (OSError, ValueError, RecursionError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        text = "it is nested too deeply" if isinstance(error, RecursionError) else text
        raise BenchmarkError(
            f"{path} is not a file that `debiasbench report --strict` wrote (tables/strict.json in a results folder): "
            f"{text}."
        ) from None


def differences(found: Seal, records: Sequence[Record]) -> list[str]:
    """How records differ from those of a seal, a line each (changed, missing, additional); empty if they are equal.

    Args:
        found: the seal.
        records: the records of its methods and datasets.
    """
    lines = []
    if found.digest != found.content():
        lines.append("edited: the file was changed after it was written (its digest does not match its content)")
    of_cell: dict[str, list[Record]] = {}
    for record in records:
        of_cell.setdefault(record.hash, []).append(record)
    for name, sealed in found.records.items():
        some = of_cell.pop(name, [])
        equal = next((record for record in some if record.done and digest_of(record) == sealed.sha256), None)
        extra = [record for record in some if record is not equal]
        if not some:
            lines.append(f"missing: {sealed.title}")
        elif equal is None:
            lines += [f"changed: {sealed.title} ({_why(record)})" for record in some]
        else:
            lines += [f"additional: {sealed.title}, a second record ({record.path})" for record in extra]
    lines += [f"additional: {record.cell.title} ({record.path})" for some in of_cell.values() for record in some]
    return lines


def _why(record: Record) -> str:
    return f"{record.path}" if record.done else f"it failed: {record.path}"


def changed_tables(found: Seal, tables: Mapping[str, tuple[tuple[str, ...], ...]]) -> list[str]:
    """Tables that the same records now give differently, a line each."""
    return [
        f"different: the table '{key}' is not the one that version {found.suite} sealed"
        for key, rows in found.tables.items()
        if tables.get(key) != rows
    ]
