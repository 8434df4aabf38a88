"""What `debiasbench prepare` does: which data are there, and fetching what is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from debiasbench.errors import BenchmarkError

if TYPE_CHECKING:
    from rich.table import Table

    from debiasbench.datasets import Dataset, NeededFile


def named_datasets(specs: list[str]) -> list[tuple[Dataset, str]]:
    """The datasets and their labels; every mistake is told, before anything is downloaded."""
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
    """Let a dataset fetch what it lacks -> what it lacks then (to be fetched by hand), and what went wrong."""
    from debiasbench.files import check_writable

    needed = dataset.needed_files(data_dir)
    if not needed:
        return [], ""
    for folder in dict.fromkeys(file.path.parent for file in needed if file.downloads):
        check_writable(folder, "--data-dir")
    problem = ""
    try:
        dataset.prepare(data_dir)
    except BenchmarkError as error:
        problem = str(error)
    return dataset.needed_files(data_dir), problem


def in_words(error: Exception) -> str:
    """One sentence about an error: our own speak for themselves."""
    return str(error) if isinstance(error, BenchmarkError) else f"{type(error).__name__}: {error}"


def state(specs: list[str], data_dir: Path) -> tuple[Table, list[str]]:
    """What is there of each dataset, and what `prepare` can do about the rest: as a table, and as a line each."""
    from rich.table import Table
    from rich.text import Text

    from debiasbench.datasets import registry
    from debiasbench.grid import dataset_from_spec

    named_datasets(specs)  # mistakes in the names come first
    rows: list[tuple[str, list[str]]] = []
    for spec in specs or list(registry.classes()):
        label = spec
        try:
            dataset, label = dataset_from_spec(spec)
            rows.append((label, _row(dataset, data_dir)))
        except Exception as error:  # one plug-in that raises must not hide the others
            rows.append((label, ["error", in_words(error), "", ""]))
    if not specs:
        for name, text in registry.broken.items():
            rows.append((name, ["error", f"could not be imported: {text.strip().splitlines()[-1]}", "", ""]))

    table = Table(title=f"Data in {data_dir.absolute()}", title_justify="left", title_style="bold", show_lines=True)
    for column in ("dataset", "state", "missing", "from", "debiasbench prepare"):
        table.add_column(column, overflow="fold")
    styles = {"complete": "green", "subset": "yellow", "incomplete": "yellow", "absent": "dim", "error": "red"}
    for label, (word, *cells) in rows:
        table.add_row(Text(label), Text(word, style=styles[word]), *map(Text, cells))
    lines = [f"{label}: {'complete' if word == 'complete' else f'not complete ({word})'}" for label, (word, *_) in rows]
    return table, lines


def _row(dataset: Dataset, data_dir: Path) -> list[str]:
    """State, missing files, their sources, and what `debiasbench prepare` does about them."""
    needed = dataset.needed_files(data_dir)
    if not needed:
        shortfalls = dataset.shortfalls(data_dir)
        return ["subset" if shortfalls else "complete", "\n".join(shortfalls), "", ""]
    word = "incomplete" if dataset.present_files(data_dir) else "absent"
    missing = []
    for file in needed:
        inside = file.path.is_relative_to(data_dir)
        missing.append(f"{file.path.relative_to(data_dir) if inside else file.path} ({file.size})")
    n_downloads = sum(file.downloads for file in needed)
    does = "downloads them" if n_downloads == len(needed) else f"downloads {n_downloads} of {len(needed)}"
    sources = "\n".join(dict.fromkeys(file.source for file in needed))
    return [word, "\n".join(missing), sources, does if n_downloads else "nothing: by hand"]
