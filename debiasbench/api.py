"""The Python interface: run a grid, load results, compare, and load a trained predictor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debiasbench.data.cache import CACHE_VARIABLE
from debiasbench.files import default_data_dir
from debiasbench.grid import expand
from debiasbench.records import check_writable, find_record, read_record
from debiasbench.running.executor import run_plan
from debiasbench.running.plan import plan

if TYPE_CHECKING:
    import pandas as pd


def run(  # noqa: PLR0913 - the command line's options
    methods: Sequence[str],
    datasets: Sequence[str],
    *,
    seeds: int | Sequence[int] = 3,
    data_dir: str | Path | None = None,
    results_dir: str | Path = "results",
    device: str = "auto",
    workers: int | None = None,
    epochs: int | None = None,
    data_seeds: int | None = None,
    shared_recipes: bool = False,
    rerun: str = "missing",
    save_weights: bool = False,
    share: bool = True,
    cache_dir: str | Path | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Run a grid and return its results as one tidy table (see `debiasbench.results.to_frame`).

    Args:
        methods, datasets: names with inline parameters, as on the command line: "pgd:norm=l1,alpha=0.9".
        seeds: how many (0, 1, ...), or which.
        data_dir: default: $DEBIASBENCH_DATA, or `data`. results_dir: finished cells in it are not run again.
        device: "auto", "cpu", "cuda", ... workers: processes; default: one a core or GPU.
        cache_dir: for decoded images; default: $DEBIASBENCH_CACHE, or a folder of the user's own.
        epochs: replaces the epochs of each stage that follows the recipe.
        share: train equal first phases of several cells once.
        progress: show the live display.

    Raises:
        BenchmarkError: something asked for cannot be run; nothing has been trained then.
    """
    from debiasbench.report.results import to_frame

    if cache_dir:
        os.environ[CACHE_VARIABLE] = str(Path(cache_dir).absolute())  # workers inherit it
    data, results = Path(data_dir) if data_dir else default_data_dir(), Path(results_dir)
    grid = expand(
        list(methods),
        list(datasets),
        seeds=seeds,
        data_seeds=data_seeds,
        epochs=epochs,
        shared_recipes=shared_recipes,
    )
    check_writable(results)
    planned = plan(grid, data_dir=data, results_dir=results, rerun=rerun, weights=save_weights)
    options: dict[str, Any] = {"data_dir": data, "results_dir": results, "device": device, "workers": workers}
    options |= {"save_weights": save_weights, "share": share and rerun != "all"}
    if progress:
        from debiasbench.running.progress import Display

        with Display(planned) as display:
            run_plan(planned, display.handle, **options)
    else:
        run_plan(planned, lambda _: None, **options)
    paths = [path for cell in grid.cells if (path := find_record(results, cell))]
    return to_frame(read_record(path) for path in paths)


def load_results(path: str | Path) -> pd.DataFrame:
    """All records below a folder as one tidy table; see `debiasbench.results.load_results`."""
    from debiasbench.report.results import load_results as load

    return load(path)


def compare(table: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Test methods against a reference; see `debiasbench.results.compare`."""
    from debiasbench.report.results import compare as compare_table

    return compare_table(table, **options)


def load_predictor(record: str | Path) -> Any:
    """The trained predictor of a cell that was run with `save_weights`: x float (B, C, H, W) -> logits (B, C).

    x is as the recipe normalises it (`debiasbench.augment.to_input` makes it from uint8 images). Of text, x holds
    token numbers (B, L) with -1 where it is padded, as in the dataset's `Samples`.

    Raises:
        BenchmarkError: the record has no weights.
    """
    from debiasbench.weights import load

    return load(Path(record))
