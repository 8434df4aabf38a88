"""Plan a grid: which cells have to run, and which are finished."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from debiasbench.cell import Cell
from debiasbench.data.checks import check_splits, files_needed
from debiasbench.datasets import Dataset, NeededFile
from debiasbench.errors import BenchmarkError, raised_by
from debiasbench.evaluation.rehearsal import check_headline, rehearse, without_value
from debiasbench.grid import Grid
from debiasbench.nets.build import check_fits, check_net
from debiasbench.nets.pretrained import needed_weights, weights_sha256
from debiasbench.parameters import write_value
from debiasbench.plugins import is_shipped
from debiasbench.records import Failure, Record, Result, found_record, record_path, running_path
from debiasbench.running.claims import RecordState, state_of
from debiasbench.training.checkpoints import JOURNAL

TIMES_LOST = 3  # times in a row; after these a lost cell only runs again with rerun="failed"
RERUN = ("missing", "failed", "changed", "all")


@dataclass(frozen=True)
class Plan:
    """A grid, divided into the cells to run and those with a record (cell hash -> record).

    Attributes:
        before: cell hash -> state of its record when the plan was made.
        fingerprints: of the data, by `data_key`. unvalidated: keys of the data whose validation split is the test
            split. without_value: by `data_key`, the rules that have no value on its validation split.
        weights: whether a record only counts with saved networks beside it.
    """

    grid: Grid
    to_run: list[Cell]
    finished: dict[str, Path]
    failed_before: dict[str, Path]
    before: dict[str, RecordState] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    unvalidated: frozenset[str] = frozenset()
    without_value: dict[str, frozenset[str]] = field(default_factory=dict)
    weights: bool = False

    def accepts(self, cell: Cell, record: Record) -> bool:
        """Whether a record that another run wrote meanwhile counts as one that this run would make; a failure does."""
        if record.hash != cell.hash:
            return False
        return record.result is None or (
            _is_whole(record, cell, self.fingerprints[data_key(cell)], weights=self.weights)
            and not changed_code(record, cell)
        )


def plan(  # noqa: PLR0913 - the ways in which a run differs
    grid: Grid,
    *,
    data_dir: Path,
    results_dir: Path,
    rerun: str = "missing",
    keep_changed: bool = False,
    weights: bool = False,
    device_kind: str | None = None,
    fetch: bool = True,
) -> Plan:
    """Check that the data are complete and undamaged, and find the finished cells.

    A cell is finished if an equal cell has a finished record that was made with equal data and equal code. Failed cells
    run again with `rerun="failed"`, and all cells with `rerun="all"`. With `weights`, cells without saved networks
    beside their record run again as well.

    If the code of a method, network, metric or rule outside the suite has changed since, its cells run again with
    `rerun="changed"`, and count as finished with `keep_changed`. For shipped files the version decides, and for
    datasets the fingerprint. If a metric or rule is new since, cells run again with `rerun="changed"`, and count as
    finished otherwise.

    A cell that ran on another kind of device than `device_kind` ("cpu", "cuda"; None: any), or in another precision
    than its recipe has there, counts as finished, and a notice says so.

    Without `fetch` nothing is downloaded: a notice says which pretrained weights a run would download, and finished
    cells with these weights are not checked for having used them.

    Raises:
        BenchmarkError: files are missing (the message gives name, size, source and destination) or damaged, or code has
            changed and no option says what to do.
    """
    if rerun not in RERUN:
        raise BenchmarkError(f"rerun must be one of {', '.join(RERUN)}. Got {rerun!r}.")
    cells = {data_key(cell): cell for cell in grid.cells}
    datasets = {key: cell.build_dataset() for key, cell in cells.items()}
    check_data(list(datasets.values()), data_dir)
    nets = ((cell.recipe["net"], cell.recipe["pretrained"], datasets[data_key(cell)].input) for cell in grid.cells)
    needed: dict[tuple[str, str], NeededFile] = {}  # net and pretrained weights -> missing file
    for net, pretrained, inputs in dict.fromkeys(nets):
        check_net(net, pretrained, inputs=inputs, fetch=fetch)
        if not fetch and (file := needed_weights(net, pretrained)) is not None:
            needed[net, pretrained] = file
    built = build_all(datasets, data_dir)
    _refuse_unfit(grid, datasets, built, needed)
    fingerprints = {key: one.fingerprint for key, one in built.items()}
    _refuse_equal_draws(grid, fingerprints)
    to_run, finished, failed = [], {}, {}
    changed: dict[str, list[Cell]] = {}  # changed part, such as "method pgd" -> finished cells
    lacking: dict[str, int] = {}  # metric or rule -> finished cells without it
    elsewhere: dict[tuple[str, str], int] = {}
    before = {}
    for cell in grid.cells:
        before[cell.hash] = state_of(record_path(results_dir, cell))
        record = found_record(results_dir, cell) if rerun != "all" else None  # ignores truncated and foreign ones
        if record is None or record.path is None or _is_not_its_fault(record.failure):
            to_run.append(cell)
        elif record.result is None:
            (to_run.append(cell) if rerun == "failed" else failed.update({cell.hash: record.path}))
        elif not _is_whole(
            record, cell, fingerprints[data_key(cell)], weights=weights, known=_start_of(cell) not in needed
        ) or (rerun == "changed" and (_is_outdated(record, cell) or new_functions(record, cell))):
            to_run.append(cell)
        else:
            finished[cell.hash] = record.path
            for kind in changed_code(record, cell):
                changed.setdefault(cell.name_of_part(kind), []).append(cell)
            for kind in new_functions(record, cell):
                lacking[kind] = lacking.get(kind, 0) + 1
            machines = _machines(record, cell, device_kind) if device_kind else None
            if machines is not None:
                elsewhere[machines] = elsewhere.get(machines, 0) + 1
    notices = [
        f"A run would first download {file.path.name} ({file.size}) from {file.source} to {file.path.parent}. "
        "pretrained=none starts at random."
        for file in dict.fromkeys(needed.values())
    ]
    notices += _of_data(grid, built) + _of_changed_code(changed, keep=keep_changed) + _of_other_machines(elsewhere)
    notices += [
        f"{n} finished cell{' was' if n == 1 else 's were'} run without the {kind}, and will show none. To run "
        f"{'it' if n == 1 else 'them'} again: --rerun changed."
        for kind, n in lacking.items()
    ]
    grid = replace(grid, notices=[*grid.notices, *notices])
    unvalidated = frozenset(key for key, one in built.items() if one.valid_is_test)
    valueless = {key: one.without_value for key, one in built.items()}
    return Plan(grid, to_run, finished, failed, before, fingerprints, unvalidated, valueless, weights)


def _is_whole(record: Record, cell: Cell, fingerprint: str, *, weights: bool, known: bool = True) -> bool:
    """Whether a finished record was made from the present data and pretrained weights, and has the networks if needed.

    known: whether the pretrained weights are present; if not, any weights count as the present ones.
    """
    from debiasbench.weights import has_weights

    assert record.result is not None
    start = _weights_of(cell) if known else record.result.pretrained_sha256
    return _made_from(record.result) == (fingerprint, start) and (not weights or has_weights(record))


def _is_not_its_fault(failure: Failure | None) -> bool:
    """Whether a cell was lost with its process, and not so often that the cell itself may be the cause."""
    return failure is not None and failure.type == "LostWorker" and (failure.times or 1) < TIMES_LOST


def _of_data(grid: Grid, built: dict[str, Built]) -> list[str]:
    """The notes of each dataset: what differs from the published data, was converted, or was left out."""
    told = [f"{cell.dataset_title}: {built[data_key(cell)].note}" for cell in grid.cells if built[data_key(cell)].note]
    return list(dict.fromkeys(told))


def _refuse_unfit(
    grid: Grid, datasets: dict[str, Dataset], built: dict[str, Built], without: Collection[tuple[str, str]]
) -> None:
    """Refuse networks and recipes that do not accept the data.

    Networks in `without` are tried without their pretrained weights.

    Raises:
        BenchmarkError: some do not; it says which, and why.
    """
    recipes = {(data_key(one), str(one.recipe)): one for one in grid.cells}
    nets = {(data_key(one), *(one.recipe[key] for key in ("net", "size", "pretrained"))): one for one in grid.cells}
    problems: list[str] = []
    for cell in recipes.values():
        shape = built[data_key(cell)].shape
        if datasets[data_key(cell)].input == "images" and shape:
            with _collected(problems, cell):
                cell.build_recipe().check_channels(shape[0])
    for cell in nets.values():
        dataset, recipe, shape = datasets[data_key(cell)], cell.build_recipe(), built[data_key(cell)].shape
        if dataset.input == "text" or not shape:
            continue  # text encoders were tried before
        with _collected(problems, cell):
            start = "none" if _start_of(cell) in without else recipe.pretrained
            check_fits(recipe.net, recipe.input_shape(shape), dataset.n_classes, start)
    if problems:
        raise BenchmarkError("\n".join(dict.fromkeys(problems)))


@contextmanager
def _collected(problems: list[str], cell: Cell) -> Iterator[None]:
    """Append an error to `problems`, with the dataset of the cell, instead of raising it."""
    try:
        yield
    except BenchmarkError as error:
        problems.append(f"{cell.dataset_title}: {error}")


def _refuse_equal_draws(grid: Grid, fingerprints: dict[str, str]) -> None:
    """Refuse several data seeds for data in which nothing is random: equal runs would count as new samples.

    Raises:
        BenchmarkError: two data seeds of one dataset give equal data.
    """
    seen: dict[tuple[str, str], int] = {}  # (data without their seed, fingerprint) -> data seed
    for cell in grid.cells:
        data_seed = cell.dataset_parameters.get("data_seed", 0)
        others = {key: value for key, value in cell.dataset_parameters.items() if key != "data_seed"}
        key = (f"{cell.dataset} {others} {cell.root}", fingerprints[data_key(cell)])
        if seen.setdefault(key, data_seed) != data_seed:
            raise BenchmarkError(
                f"The data seeds {seen[key]} and {data_seed} give equal data: nothing is drawn in {cell.dataset}, and "
                "its runs would be counted twice. Leave out --data-seeds there; training seeds are --seeds."
            )


def changed_code(record: Record, cell: Cell) -> list[str]:
    """The parts (keys of `Cell.code`) whose code differs between a record and now; for datasets the data decide.

    A part whose code is not known, then or now, counts as unchanged.
    """
    then = record.provenance.code or {}
    return [
        kind
        for kind, now in cell.code().items()
        if kind != "dataset" and now is not None and then.get(kind) not in (None, now)
    ]


def new_functions(record: Record, cell: Cell) -> list[str]:
    """Metrics and rules outside the suite (keys of `Cell.code`) that did not exist when a record was made."""
    then = record.provenance.code or {}
    return [kind for kind in cell.code() if kind.startswith(("metric ", "rule ")) and kind not in then]


def _is_outdated(record: Record, cell: Cell) -> bool:
    """Whether code outside the suite has changed since a record was made; for a shipped method its version decides."""
    changed = changed_code(record, cell)
    return changed not in ([], ["method"]) or (bool(changed) and not is_shipped(type(cell.build_method())))


def _of_changed_code(changed: dict[str, list[Cell]], *, keep: bool) -> list[str]:
    """Notices of code that has changed since finished records were made: "method pgd" -> their cells.

    Raises:
        BenchmarkError: code outside the suite has changed, and its records are not to be kept.
    """
    notices, problems = [], []
    for what, cells in changed.items():
        name = what.removeprefix("method ") if what.startswith("method ") else f"the {what}"
        n = f"{len(cells)} finished cell{'s' if len(cells) > 1 else ''}"
        if what.startswith("method ") and is_shipped(type(cells[0].build_method())):
            notices.append(f"{name}: its file has changed since {n}, and its version has not: they count as finished.")
        elif keep:
            notices.append(f"{name}: its code has changed since {n}, which are kept as they are.")
        else:
            problems.append(f"The code of {name} has changed since {n}; their numbers may not be what it gives now.")
    if problems:
        problems.append("Run them again: --rerun changed. Or count them as finished: --keep-changed.")
        raise BenchmarkError("\n".join(problems))
    return notices


def _machines(record: Record, cell: Cell, device_kind: str) -> tuple[str, str] | None:
    """The kind of device and precision of a record, and those that its cell would have here; None if they are equal.

    A value that a record does not contain counts as equal.
    """
    here = (device_kind, cell.build_recipe().effective_precision(device_kind))
    then = (record.device_kind or here[0], record.precision or here[1])
    return None if then == here else (f"{then[0]} in {then[1]}", f"{here[0]} in {here[1]}")


def _of_other_machines(n_by_machines: dict[tuple[str, str], int]) -> list[str]:
    """Notices of finished cells that ran on another kind of device, or in another precision, than this run."""
    return [
        f"{n} finished cell{' was' if n == 1 else 's were'} run on {then}, and this run is on {here}: counted as "
        "finished, and not paired with runs from here. To run all of them here: --rerun all."
        for (then, here), n in n_by_machines.items()
    ]


def _made_from(result: Result) -> tuple[str, str]:
    """Digests of the data and of the pretrained weights."""
    return result.data.fingerprint, result.pretrained_sha256


def _weights_of(cell: Cell) -> str:
    return weights_sha256(*_start_of(cell))


def _start_of(cell: Cell) -> tuple[str, str]:
    """Network and pretrained weights."""
    return cell.recipe["net"], cell.recipe["pretrained"]


def check_data(datasets: Sequence[Dataset], data_dir: Path, *, with_x: bool = True) -> None:
    """Refuse to start while files are missing, naming all; without `with_x`, only those that `build_labels` needs."""
    problems = []
    for dataset in {(dataset.name, repr(dataset)): dataset for dataset in datasets}.values():
        needed = [file for file in files_needed(dataset, data_dir) if with_x or not file.for_x_alone]
        if needed:
            problems.append(missing(dataset, needed, data_dir))
    if problems:
        raise BenchmarkError("\n".join(dict.fromkeys(problems)))


def missing(dataset: Dataset, needed: Sequence[NeededFile], data_dir: Path) -> str:
    """A message on missing files of a dataset: each file with its size and source, and what to do."""
    lines = [f"The data of {dataset.name} are not complete. Needed:"]
    lines += [f"  {file.path} ({file.size}) from: {file.source}" for file in needed]
    if all(file.downloads for file in needed):
        root = f":root={write_value(dataset.root)}" if dataset.root is not None else ""
        place = [] if root else ["--data-dir", str(data_dir)]
        lines.append(f"  To download them: {shlex.join(['debiasbench', 'prepare', dataset.name + root, *place])}")
    else:
        lines.append(f"  Put them there, or name their place: --data-dir DIR, or {dataset.name}:root=DIR.")
    return "\n".join(lines)


def begun(cells: Sequence[Cell], results_dir: Path) -> list[Cell]:
    """The cells for which an earlier run has left a checkpoint."""
    if not (results_dir / "running").exists():
        return []
    return [cell for cell in cells if (running_path(record_path(results_dir, cell)) / JOURNAL).exists()]


def data_key(cell: Cell) -> str:
    """A key that is equal for cells with the same data."""
    return f"{cell.dataset} {cell.dataset_parameters} {cell.root}"


class Built(NamedTuple):
    """Facts about data that were built.

    Attributes:
        fingerprint: digest of the data. note: a note to show. valid_is_test: whether validation is the test split.
        shape: of the x of a sample; () if unknown. without_value: rules that cannot choose on these data.
    """

    fingerprint: str
    note: str = ""
    valid_is_test: bool = False
    shape: tuple[int, ...] = ()
    without_value: frozenset[str] = frozenset()


def build_all(datasets: dict[str, Dataset], data_dir: Path) -> dict[str, Built]:
    """Build each dataset once, so that damaged files are reported before anything trains."""
    built, problems = {}, []
    for key, dataset in datasets.items():
        try:
            with raised_by(f"The data of {dataset.name} cannot be built"):
                splits = check_splits(dataset, dataset.build(data_dir))
                shape = tuple(splits.train.x.shape[1:])
                rehearse(dataset, splits)
                check_headline(dataset, splits)
                rules = without_value(dataset, splits)
                built[key] = Built(splits.fingerprint(), splits.note, splits.valid_is_test, shape, rules)
        except BenchmarkError as error:
            problems.append(str(error))
    if problems:
        raise BenchmarkError("\n".join(dict.fromkeys(problems)))
    return built
