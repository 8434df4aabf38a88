"""The Python interface: run a grid, load results, compare methods, and load a trained predictor."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debiasbench.arguments import checked
from debiasbench.data.cache import CACHE_VARIABLE
from debiasbench.experiments import Experiment
from debiasbench.files import default_data_dir, to_path
from debiasbench.parameters import Allowed
from debiasbench.records import find_record, read_record
from debiasbench.tuned import check_output, check_rule, read_tuned

if TYPE_CHECKING:
    import pandas as pd

    from debiasbench.running.run import GridRun


SECONDS = Allowed("a time above 0, in seconds", lambda value: value > 0)
LIMITS = {
    "workers": Allowed("at least 0", lambda value: value >= 0),
    "per_device": Allowed("at least 1", lambda value: value >= 1),
    "checkpoint_every": SECONDS, "cell_timeout": SECONDS, "silence_timeout": SECONDS,
}  # fmt: skip


@checked(**LIMITS)
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
    tuned: str | Path | None = None,
    cache_dir: str | Path | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Run a grid and return its results as one tidy table: one row per cell, split and selection rule.

    A notebook shows progress while the grid runs, and displays the table as the report's comparison.

    Args:
        methods: names with inline parameters, as on the command line: "pgd:norm=l1,alpha=0.9".
        datasets: likewise: "cmnist:rho=0.01".
        seeds: the number of seeds (0, 1, ...), or a list of seeds.
        data_dir: folder of the data; default: $DEBIASBENCH_DATA, or `data`.
        results_dir: folder of the results; cells that are finished there do not run again.
        device: "auto", "cpu", "cuda", ...
        workers: number of processes; default: one per core or GPU; 0: run in this process.
        per_device: number of cells that share a GPU at the same time.
        executor: where cells are trained: "local" (this machine), "ray" or "ray:HOST:PORT", "slurm".
        slurm: options of a SLURM job: "partition=gpu", "time=8h", "gpus=1", ..., or a .toml file.
        epochs: replaces the epochs of each stage that follows the recipe.
        data_seeds: number of draws of each dataset; default: one.
        shared_recipes: train every method with the dataset's recipe.
        rerun: which cells run: "missing", "failed", "changed" (also those of methods whose code changed) or "all".
        keep_changed: count cells as finished even if the code of their method changed.
        save_weights: keep the trained networks, for `load_predictor`.
        reuse: train equal stages of several cells only once.
        download: first download missing data, as `debiasbench prepare` does.
        skip_missing: leave out datasets whose data are (still) missing, with a warning for each.
        shard: (i, n): run only the i-th of n parts of the grid; i starts at 1.
        checkpoint_every: seconds between checkpoints within a stage.
        cell_timeout: seconds after which a cell is stopped; default: never.
        silence_timeout: seconds without progress after which a cell is stopped, including the start of its process;
            default: never.
        reference: the method that a report tests the others against; default: the first.
        tuned: a file written by `tune`: methods run with the chosen values, and their titles say so.
        cache_dir: folder for decoded images; default: $DEBIASBENCH_CACHE, or a folder of the user.
        progress: show the live display; default: only in a notebook.

    Raises:
        BenchmarkError: something in the request cannot be run. Nothing has been trained in this case.
    """
    from debiasbench.report.notebook import Results
    from debiasbench.report.results import shortened
    from debiasbench.running.run import RunOptions, plan_grid

    asked = Experiment(
        "", list(methods), list(datasets), epochs=epochs, seeds=seeds if isinstance(seeds, int) else list(seeds),
        reference=reference, shared_recipes=shared_recipes, data_seeds=data_seeds,
    )  # fmt: skip
    results = to_path(results_dir)
    _cache_in(cache_dir)
    options = RunOptions(
        data_dir=to_path(data_dir) if data_dir else default_data_dir(), results_dir=results, device=device,
        workers=workers, per_device=per_device, executor=executor, slurm=tuple(slurm), rerun=rerun,
        keep_changed=keep_changed, save_weights=save_weights, reuse=reuse, download=download,
        skip_missing=skip_missing, shard=shard, checkpoint_every=checkpoint_every, cell_timeout=cell_timeout,
        silence_timeout=silence_timeout, tuned=read_tuned(to_path(tuned)) if tuned else None,
    )  # fmt: skip
    ready = plan_grid(asked, options)
    _train(ready, progress=progress)
    paths = [path for cell in ready.plan.grid.cells if (path := find_record(results, cell))]
    return Results.of([shortened(read_record(path)) for path in paths])


@checked(**LIMITS)
def tune(  # noqa: PLR0913 - the command line's options
    methods: Sequence[str],
    datasets: Sequence[str],
    *,
    draws: int = 16,
    rule: str = "worst_class",
    seeds: int = 1,
    output: str | Path | None = None,
    data_dir: str | Path | None = None,
    results_dir: str | Path = "results/tuning",
    device: str = "auto",
    workers: int | None = None,
    per_device: int = 1,
    executor: str = "local",
    slurm: Sequence[str] = (),
    epochs: int | None = None,
    shared_recipes: bool = False,
    rerun: str = "missing",
    keep_changed: bool = False,
    reuse: bool = True,
    download: bool = False,
    skip_missing: bool = False,
    checkpoint_every: float = 60.0,
    cell_timeout: float | None = None,
    silence_timeout: float | None = None,
    cache_dir: str | Path | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Choose the hyper-parameters of methods on validation, with the same number of draws for each method.

    Args:
        methods: names with inline parameters, which stay fixed: "pgd:norm=l1".
        datasets: likewise.
        draws: number of draws for each method on each dataset; the first is its defaults.
        seeds: number of runs of each draw, with seeds 1000, 1001, ...
        rule: selects the epoch of a run, and by the same measure the draw: "val_loss", "val_acc", "worst_class",
            "class_gap", or "group_val", which uses the bias labels of validation.
        output: the file for the chosen values, for `run(tuned=...)`; default: `tuned.toml` in `results_dir`.

    The other arguments are those of `run`.

    Returns:
        One row per draw: dataset, method (titles as requested), draw, run_as, a column for each hyper-parameter, rule,
        value (the measure of the rule, averaged over seeds; nan if there is none), seconds, chosen, reason (why there
        is no value).

    Raises:
        BenchmarkError: as in `run`; a rule that reads the test split or compares nothing; methods or data for which
            nothing can be chosen on validation. Nothing has been trained in these cases.
    """
    import pandas as pd

    from debiasbench.report.tuning import conclude
    from debiasbench.running.run import RunOptions, plan_tuning

    check_rule(rule)
    results = to_path(results_dir)
    path = to_path(output) if output else results / "tuned.toml"
    check_output(path)
    asked = Experiment("", list(methods), list(datasets), seeds=seeds, epochs=epochs, shared_recipes=shared_recipes)
    _cache_in(cache_dir)
    options = RunOptions(
        data_dir=to_path(data_dir) if data_dir else default_data_dir(), results_dir=results, device=device,
        workers=workers, per_device=per_device, executor=executor, slurm=tuple(slurm), rerun=rerun,
        keep_changed=keep_changed, reuse=reuse, download=download, skip_missing=skip_missing,
        checkpoint_every=checkpoint_every, cell_timeout=cell_timeout, silence_timeout=silence_timeout,
    )  # fmt: skip
    tuning = plan_tuning(asked, options, draws=draws, rule=rule)
    _train(tuning.ready, progress=progress)
    found = conclude(tuning.trials, results, rule=rule, draws=draws, seeds=tuning.seeds, output=path)
    chosen = {(one.dataset, one.method): one.draw for one in found.values.chosen}
    return pd.DataFrame([
        {"dataset": one.trial.dataset, "method": one.trial.method, "draw": one.trial.number,
         "run_as": one.trial.cells[0].method_title, **one.trial.values,
         "rule": rule, "value": math.nan if one.value is None else abs(one.value), "seconds": one.seconds,
         "chosen": chosen.get((one.trial.dataset, one.trial.method)) == one.trial.number, "reason": one.reason}
        for one in found.found
    ])  # fmt: skip


def _cache_in(cache_dir: str | Path | None) -> None:
    if cache_dir:
        os.environ[CACHE_VARIABLE] = str(to_path(cache_dir).absolute())  # workers inherit it


def _train(ready: GridRun, *, progress: bool | None) -> None:
    """Run the cells that are not finished; warn about each dataset that is left out."""
    from debiasbench.console import in_a_notebook
    from debiasbench.running.run import run_grid

    for data, reason in ready.left_out.items():
        warnings.warn(f"Left out: {data}. {reason}", stacklevel=3)
    if in_a_notebook() if progress is None else progress:
        from debiasbench.running.progress import Display

        with Display(ready.plan) as display:
            run_grid(ready, display.handle)
    else:
        run_grid(ready, lambda _: None)


@checked()
def load_results(path: str | Path) -> pd.DataFrame:
    """Load all records below a folder as one tidy table: one row per cell, split and selection rule, without copies.

    A notebook displays it as the report's comparison. Anything derived from it, such as some of its rows, is a plain
    data frame.

    Args:
        path: a results folder, any folder of records, or an archive of records.

    Returns:
        The table. docs/publication.md explains its columns; accuracies are fractions in [0, 1].

    Raises:
        BenchmarkError: the folder does not exist, or has no record that can be read.
    """
    from debiasbench.report.notebook import Results
    from debiasbench.report.results import records_in

    return Results.of(records_in(path))


@checked()
def compare(
    table: pd.DataFrame,
    *,
    reference: str | None = None,
    metric: str | None = None,
    split: str = "test",
    select: str = "last",
) -> pd.DataFrame:
    """Test on each dataset whether each method is better than a reference.

    A notebook displays the result as the report's table of tests.

    Args:
        table: from `run` or `load_results`: the whole table or some of its rows. Draws of a tuning are left out.
        reference: title of a method; default: the first method of the table that has finished runs.
        metric: an accuracy, a metric of your own, or "loss"; default: the headline metric of each dataset.
        split: "test" or "valid".
        select: the rule that selected the epoch: "last", "val_acc", ...

    Returns:
        One row per dataset and method: dataset, metric, split, select, method, reference, n_a, n_b and n_pairs
        (numbers of runs), gap (a fraction), p-values, the same after Holm's correction, effect_size, the confidence
        interval of the gap (low, high), and the gap that this many runs could detect; see
        `debiasbench.report.results.compare`.

    Raises:
        BenchmarkError: this is not a table of results, or it has no finished run; the reference or metric does not
            exist; it mixes versions, data or settings that must not be mixed.
    """
    from debiasbench.report.notebook import Tests
    from debiasbench.report.results import compare as compare_table

    tests = compare_table(table, reference=reference, metric=metric, split=split, select=select)
    return Tests.of(tests, table)


@checked()
def load_predictor(record: str | Path) -> Any:
    """Load the trained predictor of a cell that was run with `save_weights`: x float (B, C, H, W) -> logits (B, C).

    x must be normalised as in the recipe (`debiasbench.data.augment.to_input` makes it from uint8 images). For text, x
    holds token numbers (B, L), padded with -1. For features it is float32 (B, D). Both are as in the dataset's
    `Samples`.

    Raises:
        BenchmarkError: the record has no weights.
    """
    from debiasbench.weights import load

    return load(to_path(record))
