"""The Python interface: run a grid, load results, compare, and load a trained predictor."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debiasbench.data.cache import CACHE_VARIABLE
from debiasbench.experiments import Experiment
from debiasbench.files import default_data_dir, to_path
from debiasbench.records import find_record, read_record

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
    per_device: int = 1,
    executor: str = "local",
    slurm: Sequence[str] = (),
    epochs: int | None = None,
    data_seeds: int | None = None,
    shared_recipes: bool = False,
    rerun: str = "missing",
    keep_changed: bool = False,
    save_weights: bool = False,
    reuse: bool = True,
    download: bool = False,
    skip_missing: bool = False,
    shard: tuple[int, int] | None = None,
    checkpoint_every: float = 60.0,
    cell_timeout: float | None = None,
    silence_timeout: float | None = None,
    reference: str | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Run a grid and return its results as one tidy table (see `debiasbench.report.results.to_frame`).

    Args:
        methods, datasets: names with inline parameters, as on the command line: "pgd:norm=l1,alpha=0.9".
        seeds: how many (0, 1, ...), or which.
        data_dir: default: $DEBIASBENCH_DATA, or `data`. results_dir: finished cells in it are not run again.
        device: "auto", "cpu", "cuda", ... workers: processes; default: one a core or GPU.
        per_device: cells that share a GPU at a time.
        executor: what trains the cells: "local" (this machine), "ray" or "ray:HOST:PORT", "slurm".
        slurm: what a SLURM job has: "partition=gpu", "time=8h", "gpus=1", ..., or a .toml file.
        cache_dir: for decoded images; default: $DEBIASBENCH_CACHE, or a folder of the user's own.
        epochs: replaces the epochs of each stage that follows the recipe.
        rerun: which cells run: "missing", "failed", "changed" (also of methods whose code has changed) or "all".
        keep_changed: count cells as finished although their method's code has changed.
        reuse: train equal stages of several cells once. shard: (i, n), only the i-th of n parts of the grid, from 1.
        checkpoint_every: seconds between checkpoints within a stage.
        cell_timeout, silence_timeout: seconds after which a cell is ended, in all or without progress; default: never.
        download: fetch missing data first, as `debiasbench prepare` does.
        skip_missing: leave out datasets whose data are missing (still), with a warning for each.
        reference: the method that a report tests the others against; default: the first.
        progress: show the live display.

    Raises:
        BenchmarkError: something asked for cannot be run; nothing has been trained then.
    """
    from debiasbench.report.results import to_frame
    from debiasbench.running.run import RunOptions, plan_grid, run_grid

    if cache_dir:
        os.environ[CACHE_VARIABLE] = str(to_path(cache_dir).absolute())  # workers inherit it
    asked = Experiment(
        "", list(methods), list(datasets), seeds=seeds if isinstance(seeds, int) else list(seeds), epochs=epochs,
        reference=reference, shared_recipes=shared_recipes, data_seeds=data_seeds,
    )  # fmt: skip
    results = to_path(results_dir)
    options = RunOptions(
        data_dir=to_path(data_dir) if data_dir else default_data_dir(), results_dir=results, device=device,
        workers=workers, per_device=per_device, executor=executor,
        slurm=(slurm,) if isinstance(slurm, str) else tuple(slurm), rerun=rerun, keep_changed=keep_changed,
        save_weights=save_weights, reuse=reuse, download=download, skip_missing=skip_missing, shard=shard,
        checkpoint_every=checkpoint_every, cell_timeout=cell_timeout, silence_timeout=silence_timeout,
    )  # fmt: skip
    ready = plan_grid(asked, options)
    for data, reason in ready.left_out.items():
        warnings.warn(f"Left out: {data}. {reason}", stacklevel=2)
    if progress:
        from debiasbench.running.progress import Display

        with Display(ready.plan) as display:
            run_grid(ready, display.handle)
    else:
        run_grid(ready, lambda _: None)
    paths = [path for cell in ready.plan.grid.cells if (path := find_record(results, cell))]
    return to_frame(read_record(path) for path in paths)


def load_results(path: str | Path) -> pd.DataFrame:
    """All records below a folder as one tidy table; see `debiasbench.report.results.load_results`."""
    from debiasbench.report.results import load_results as load

    return load(path)


def compare(table: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Test methods against a reference; see `debiasbench.report.results.compare`."""
    from debiasbench.report.results import compare as compare_table

    return compare_table(table, **options)


def load_predictor(record: str | Path) -> Any:
    """The trained predictor of a cell that was run with `save_weights`: x float (B, C, H, W) -> logits (B, C).

    x is as the recipe normalises it (`debiasbench.data.augment.to_input` makes it from uint8 images). Of text, x holds
    token numbers (B, L) with -1 where it is padded, as in the dataset's `Samples`.

    Raises:
        BenchmarkError: the record has no weights.
    """
    from debiasbench.weights import load

    return load(to_path(record))
