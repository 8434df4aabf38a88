"""Find out which data are present, and download missing ones: `debiasbench prepare` and `run --download`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from debiasbench.data.checks import files_needed
from debiasbench.datasets import Dataset, NeededFile
from debiasbench.errors import BenchmarkError, raised_by
from debiasbench.running.plan import data_key, missing

if TYPE_CHECKING:
    from rich.table import Table

    from debiasbench.grid import Grid


def named_datasets(specs: list[str]) -> list[tuple[Dataset, str]]:
    """The datasets and their labels; all mistakes are reported at once, before anything is downloaded."""
    from debiasbench.grid import dataset_from_spec

    found, problems = [], []
    for spec in specs:
        try:
            found.append(dataset_from_spec(spec))
        except Exception as error:
            problems.append(in_words(error))
    if problems:
        raise BenchmarkError("\n".join(problems))
    return found


def prepare(dataset: Dataset, data_dir: Path) -> tuple[list[NeededFile], str]:
    """Let a dataset download missing files -> files still missing (to be fetched by hand), and what went wrong."""
    from debiasbench.files import check_writable

    needed = files_needed(dataset, data_dir)
    if not needed:
        return [], ""
    for folder in dict.fromkeys(file.path.parent for file in needed if file.downloads):
        check_writable(folder, "--data-dir")
    problem = ""
    try:
        dataset.prepare(data_dir)
    except BenchmarkError as error:
        problem = str(error)
    return files_needed(dataset, data_dir), problem


def with_data(
    grid: Grid, data_dir: Path, *, download: bool = False, skip_missing: bool = False, dry_run: bool = False
) -> tuple[Grid, dict[str, str]]:
    """Select the cells whose data are present -> the grid of these, and for each dataset that is left out, why.

    Args:
        download: first download missing files where possible, like `prepare`. skip_missing: leave out datasets whose
            files are still missing.
        dry_run: download nothing.

    Raises:
        BenchmarkError: files are missing and `skip_missing` is not set, or nothing would remain. It says what is
            missing, where to get it, and which of the two options can help.
    """
    cells = {data_key(cell): cell for cell in grid.cells}
    lacking: dict[str, str] = {}  # key of the data -> what is missing
    fetched: dict[tuple[Path, ...], str] = {}  # files, which variants share, so tried once -> what went wrong
    n_downloads = 0
    for key, cell in cells.items():
        dataset = cell.build_dataset()
        needed = files_needed(dataset, data_dir)
        problem = ""
        if needed and download and not dry_run:
            paths = tuple(file.path for file in needed)
            if paths not in fetched:
                with raised_by(f"prepare of {dataset.name} failed"):
                    needed, fetched[paths] = prepare(dataset, data_dir)
            problem = fetched[paths]
        if needed:
            n_downloads += any(file.downloads for file in needed)
            lacking[key] = "\n".join(filter(None, [missing(dataset, needed, data_dir), problem]))
    if not lacking:
        return grid, {}
    rest = [cell for cell in grid.cells if data_key(cell) not in lacking]
    if rest and skip_missing:
        counts = Counter(data_key(cell) for cell in grid.cells)
        left_out = {
            f"{cells[key].dataset_title} ({counts[key]} cell{'s' if counts[key] > 1 else ''})": text
            for key, text in lacking.items()
        }
        return replace(grid, cells=rest), left_out
    lines = list(dict.fromkeys(lacking.values()))
    if n_downloads and (dry_run or not download):
        lines.append(f"To download what can be, and go on: --download{' without --dry-run' if dry_run else ''}.")
    if rest:
        titles = ", ".join(dict.fromkeys(cell.dataset_title for cell in rest))
        lines.append(f"To run the rest ({titles}) without: --skip-missing.")
    elif skip_missing:
        lines.append("--skip-missing would leave nothing to run.")
    raise BenchmarkError("\n".join(lines))


def in_words(error: Exception) -> str:
    """An error in one sentence; messages of our own errors need no addition."""
    return str(error) if isinstance(error, BenchmarkError) else f"{type(error).__name__}: {error}"


class DataState(NamedTuple):
    """Which files of a dataset are present.

    Attributes:
        word: complete, subset (usable, but less than was published), incomplete, absent, or error.
        missing: missing files, or what went wrong. sources: where to get them.
        does: what `debiasbench prepare` does about them.
    """

    label: str
    word: str
    missing: str = ""
    sources: str = ""
    does: str = ""


def states(specs: list[str], data_dir: Path) -> list[DataState]:
    """The state of each dataset; without `specs`, of all, including those whose file could not be imported.

    Raises:
        BenchmarkError: there are mistakes in the names.
    """
    from debiasbench.datasets import registry
    from debiasbench.grid import dataset_from_spec

    named_datasets(specs)  # mistakes in the names come first
    found = []
    for spec in specs or list(registry.classes()):
        label = spec
        try:
            dataset, label = dataset_from_spec(spec)
            found.append(_state_of(dataset, label, data_dir))
        except Exception as error:  # an error in one plug-in must not hide the others
            found.append(DataState(label, "error", in_words(error)))
    if not specs:
        for name, text in registry.broken.items():
            found.append(DataState(name, "error", f"could not be imported: {text.strip().splitlines()[-1]}"))
    return found


def state(specs: list[str], data_dir: Path) -> tuple[Table, list[str]]:
    """A table of each dataset's state and what `prepare` can do about missing files, and lines to show below it.

    The lines say where to get missing files, because a table could break an address into two lines.
    """
    from rich.styled import Styled
    from rich.table import Table

    found = states(specs, data_dir)
    table = Table(title=f"Data in {data_dir.absolute()}", title_justify="left", title_style="bold", show_lines=True)
    for column in ("dataset", "state", "missing", "debiasbench prepare"):
        table.add_column(column, overflow="fold")
    styles = {"complete": "green", "subset": "yellow", "incomplete": "yellow", "absent": "dim", "error": "red"}
    lines = []
    for one in found:
        table.add_row(one.label, Styled(one.word, styles[one.word]), one.missing, one.does)
        lines.append(f"{one.label}: {'complete' if one.word == 'complete' else f'not complete ({one.word})'}")
        lines += [f"  from: {source}" for source in one.sources.splitlines()]
    return table, lines


def _state_of(dataset: Dataset, label: str, data_dir: Path) -> DataState:
    needed = files_needed(dataset, data_dir)
    if not needed:
        shortfalls = dataset.shortfalls(data_dir)
        return DataState(label, "subset" if shortfalls else "complete", "\n".join(shortfalls))
    word = "incomplete" if dataset.present_files(data_dir) else "absent"
    missing = []
    for file in needed:
        inside = file.path.is_relative_to(data_dir)
        missing.append(f"{file.path.relative_to(data_dir) if inside else file.path} ({file.size})")
    n_downloads = sum(file.downloads for file in needed)
    does = "downloads them" if n_downloads == len(needed) else f"downloads {n_downloads} of {len(needed)}"
    sources = "\n".join(dict.fromkeys(file.source for file in needed))
    return DataState(label, word, "\n".join(missing), sources, does if n_downloads else "nothing: by hand")
