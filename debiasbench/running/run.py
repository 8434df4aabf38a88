"""Run a grid, for both the command line and Python: from the request to cells, a plan, and records."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.experiments import Experiment, write_grid
from debiasbench.grid import Grid, expand
from debiasbench.parameters import suggestion
from debiasbench.records import check_writable, read_record
from debiasbench.running import logs
from debiasbench.running.claims import Work
from debiasbench.running.executor import Event, Executor, Settings, kind_of, run_cells
from debiasbench.running.following import tell_cells
from debiasbench.running.local import LocalExecutor, run_cells_here
from debiasbench.running.plan import Plan, data_key, plan
from debiasbench.running.preparation import with_data
from debiasbench.running.runner import n_cores
from debiasbench.tuned import TunedValues
from debiasbench.tuning import Trial, expand_draws, expand_tuned


@dataclass(frozen=True)
class RunOptions:
    """Where the data and results of a grid are, what it runs on, and which of its cells run.

    Attributes:
        device: "auto", "cpu", "cuda", "cuda:1", ... workers: processes; None: one per core or GPU; 0: this process.
        per_device: workers that share a GPU. executor: "local", "ray" (or "ray:HOST:PORT") or "slurm".
        slurm: options for SLURM, as on the command line.
        rerun: "missing", "failed", "changed" or "all". keep_changed: count cells as finished even if their code has
            changed since.
        save_weights: keep the trained networks.
        reuse: train equal stages of several cells once. shard: (i, n), the i-th of n parts of the grid, from 1.
        checkpoint_every: seconds between checkpoints within a stage; one is also written at the end of each call.
        cell_timeout, silence_timeout: seconds after which a cell is ended, in total or without a sign of life.
        log: loggers of cells ("tensorboard", "wandb").
        download: download missing data first, like `debiasbench prepare`. skip_missing: leave out datasets whose data
            are (still) missing, and say so.
        tuned: values that `debiasbench tune` chose, to run with. dry_run: only plan.
    """

    data_dir: Path
    results_dir: Path
    device: str = "auto"
    workers: int | None = None
    per_device: int = 1
    executor: str = "local"
    slurm: tuple[str, ...] = ()
    rerun: str = "missing"
    keep_changed: bool = False
    save_weights: bool = False
    reuse: bool = True
    shard: tuple[int, int] | None = None
    checkpoint_every: float = 60.0
    cell_timeout: float | None = None
    silence_timeout: float | None = None
    log: tuple[str, ...] = ()
    download: bool = False
    skip_missing: bool = False
    tuned: TunedValues | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class GridRun:
    """A grid that is ready to run: the request (with its reference by title), the plan, and the executor.

    Attributes:
        left_out: datasets that do not run, with their numbers of cells -> what is missing (`skip_missing`).
    """

    asked: Experiment
    options: RunOptions
    plan: Plan
    settings: Settings
    executor: Executor
    left_out: dict[str, str]

    @property
    def methods(self) -> list[str]:
        """Titles of the methods, in the order given."""
        return list(dict.fromkeys(cell.method_title for cell in self.plan.grid.cells))


MANY_CELLS, MANY_DATA = 10_000, 100  # above these, checking takes so long that a message says so


def plan_grid(asked: Experiment, options: RunOptions, told: Callable[[str], None] = lambda _: None) -> GridRun:
    """Check everything that can be wrong before anything trains, and find the finished cells.

    `told` is called with a message if this takes long.

    Raises:
        BenchmarkError: names, parameters, files, devices or folders cannot be used; it says what to do.
    """
    _check_workers(options)
    given: dict[str, Any] = {
        "seeds": asked.seeds, "data_seeds": asked.data_seeds, "epochs": asked.epochs,
        "shared_recipes": asked.shared_recipes,
    }  # fmt: skip
    if options.tuned is not None:
        grid = expand_tuned(asked.methods, asked.datasets, options.tuned, **given)
    else:
        grid = expand(asked.methods, asked.datasets, **given)
    return plan_cells(grid, asked, options, told)


@dataclass(frozen=True)
class Tuning:
    """A tuning that is ready to run: its draws, and the grid of their cells."""

    trials: list[Trial]
    ready: GridRun

    @property
    def seeds(self) -> list[int]:
        """The seeds with which each draw is trained."""
        return [cell.seed for cell in self.trials[0].cells]


def plan_tuning(
    asked: Experiment, options: RunOptions, *, draws: int, rule: str, told: Callable[[str], None] = lambda _: None
) -> Tuning:
    """Like `plan_grid`, for the draws of a tuning; `asked.seeds` is the number of runs of each draw.

    Raises:
        BenchmarkError: as in `plan_grid`, or nothing can be tuned, or not on these data.
    """
    _check_workers(options)
    assert isinstance(asked.seeds, int)
    grid, trials = expand_draws(
        asked.methods, asked.datasets, draws=draws, seeds=asked.seeds, rule=rule, epochs=asked.epochs,
        shared_recipes=asked.shared_recipes,
    )  # fmt: skip
    ready = plan_cells(grid, asked, options, told)
    without = [cell.dataset_title for cell in ready.plan.grid.cells if data_key(cell) in ready.plan.unvalidated]
    if without:
        raise BenchmarkError(
            f"{', '.join(dict.fromkeys(without))} has no validation split apart from its test split, so nothing can be "
            "chosen there. Leave it out."
        )
    without = [cell.dataset_title for cell in ready.plan.grid.cells if rule in ready.plan.without_value[data_key(cell)]]
    if without:
        raise BenchmarkError(
            f"The rule {rule} has no value on the validation split of {', '.join(dict.fromkeys(without))}: "
            f"{NEEDS.get(rule, 'too few samples are there')}. Choose by another rule, or leave it out."
        )
    left = {cell.hash for cell in ready.plan.grid.cells}  # datasets without data may have been left out
    return Tuning([trial for trial in trials if all(cell.hash in left for cell in trial.cells)], ready)


NEEDS = {  # rule -> why it has no value
    "group_val": "too few samples of known bias are in the smallest group, or conflict (ten at least)",
    **dict.fromkeys(("worst_class", "class_gap"), "it has samples of one class alone"),
}


def _check_workers(options: RunOptions) -> None:
    if kind_of(options.executor)[0] == "local":
        _check_machine(options.device, options.workers)
    elif options.workers is not None and options.workers < 1:
        raise BenchmarkError(f"--workers must be at least 1 with --executor {options.executor}. Got {options.workers}.")


def plan_cells(grid: Grid, asked: Experiment, options: RunOptions, told: Callable[[str], None]) -> GridRun:
    """Like `plan_grid`, for given cells."""
    n_cells, n_data = len(grid.cells), len({cell.dataset_title for cell in grid.cells})
    if n_cells > MANY_CELLS or n_data > MANY_DATA:
        told(f"{n_cells:,} cells on {n_data:,} set{'s' * (n_data > 1)} of data: checking them takes a while.")
    logs.check(options.log)
    asked = replace(asked, reference=_reference(asked.reference, grid.cells))  # report a mistake before downloads
    if options.shard is not None:
        grid = part_of(grid, *options.shard)
    limits = [name for name in ("cell_timeout", "silence_timeout") if getattr(options, name) is not None]
    if limits and options.workers == 0:
        raise BenchmarkError(
            f"{' and '.join('--' + name.replace('_', '-') for name in limits)} cannot be kept with --workers 0: a cell "
            "of this process cannot be ended. Use --workers 1."
        )
    weights = options.save_weights or asked.needs_weights
    executor = _executor(options)
    settings = Settings(
        data_dir=options.data_dir.absolute(),  # a method may change the current folder
        results_dir=options.results_dir.absolute(),
        devices=executor.devices,
        threads=executor.threads,
        save_weights=weights,
        reuse=options.reuse and options.rerun != "all",  # stored stages would hide differences
        resume=options.rerun != "all",
        checkpoint_every=options.checkpoint_every,
        cell_timeout=options.cell_timeout,
        silence_timeout=options.silence_timeout,
    )
    if not options.dry_run:
        check_writable(options.results_dir)  # before data are downloaded or built
    grid, left_out = with_data(
        grid, options.data_dir, download=options.download, skip_missing=options.skip_missing, dry_run=options.dry_run
    )
    if options.shard is None:  # the reference may be in another part of the grid
        asked = replace(asked, reference=_reference(asked.reference, grid.cells))
    planned = plan(
        grid, data_dir=options.data_dir, results_dir=options.results_dir, rerun=options.rerun,
        keep_changed=options.keep_changed, weights=weights, device_kind=settings.device_kind, fetch=not options.dry_run,
    )  # fmt: skip
    executor.check(planned.to_run, settings)
    return GridRun(asked, options, planned, settings, executor, left_out)


def _executor(options: RunOptions) -> Executor:
    """The executor that trains the cells.

    Raises:
        BenchmarkError: there is no such executor, or it lacks packages, machines or devices.
    """
    kind, address = kind_of(options.executor)
    if options.slurm and kind != "slurm":
        raise BenchmarkError(f"--slurm belongs to --executor slurm. The executor is {kind}.")
    if kind == "ray":
        from debiasbench.running.ray_cluster import RayExecutor

        return RayExecutor(address, options.device, options.workers, options.per_device)
    if kind == "slurm":
        from debiasbench.running.slurm import SlurmExecutor, read_options

        return SlurmExecutor(read_options(options.slurm), options.device, options.workers, options.per_device)
    return LocalExecutor(options.device, options.workers, options.per_device)


def run_grid(ready: GridRun, handle: Callable[[Event], None]) -> None:
    """Run the cells that are not finished, calling `handle` in this thread for each event."""
    planned = ready.plan
    with logs.Live(ready.options.log, ready.options.results_dir) as live:

        def logged(cell: Cell, log: Callable[[], None]) -> None:
            """Call `log`; if it fails, show a note and go on."""
            try:
                log()
            except Exception as error:  # a logging package may raise anything; the record is kept
                handle(Event("note", cell, 0, message=f"{cell.title} was not logged ({error})."))

        def at_end(cell: Cell, path: Path) -> None:
            record = read_record(path) if ready.options.log else None
            if record is not None and record.done:
                logged(cell, lambda: live.end(record))

        def keep(event: Event) -> None:
            handle(event)
            if event.curve:
                logged(event.cell, lambda: live.add(event.cell, event.curve))
            elif event.kind == "finished" and event.path is not None and not event.by_other:
                at_end(event.cell, event.path)

        work = _work(ready)
        for cell in planned.grid.cells:
            if cell.hash in planned.finished:
                at_end(cell, planned.finished[cell.hash])
        if not planned.to_run:
            return
        if ready.options.workers == 0:
            run_cells_here(work, ready.settings, keep)
        else:
            run_cells(ready.executor, work, ready.settings, keep)


def leave_grid(ready: GridRun) -> str:
    """Start a run that goes on without this process; returns the command that stops it, "" if none can go on."""
    return ready.executor.leave(_work(ready), ready.settings) if ready.plan.to_run else ""


def _work(ready: GridRun) -> Work:
    """The cells to train; the request is written down for `report` and `status --follow`."""
    results_dir, planned = ready.options.results_dir, ready.plan
    write_grid(results_dir, ready.asked, ready.methods)
    tell_cells(results_dir, planned)
    return Work(longest_first(planned), results_dir, before=planned.before, accepts=planned.accepts)


def part_of(grid: Grid, index: int, count: int) -> Grid:
    """Part `index` of `count` parts of a grid, from 1. Parts cost about the same, and are equal on every machine.

    Raises:
        BenchmarkError: there is no such part.
    """
    if not 1 <= index <= count:
        raise BenchmarkError(f"--shard must be I/N with I from 1 to N, such as 2/8. Got {index}/{count}.")
    by_cost = sorted(grid.cells, key=lambda cell: -grid.relative_costs[cell.hash])  # equal costs keep their order
    mine = {cell.hash for cell in by_cost[index - 1 :: count]}
    return replace(grid, cells=[cell for cell in grid.cells if cell.hash in mine])


def longest_first(planned: Plan) -> list[Cell]:
    """The cells to run, dataset by dataset; short ones last, so that no worker waits long for the others at the end.

    The seeds of a method follow each other, so that two workers seldom need the same reusable stage at the same time.
    """
    datasets = list(dict.fromkeys(data_key(cell) for cell in planned.to_run))
    methods = list(dict.fromkeys(cell.method_title for cell in planned.to_run))
    costs = planned.grid.relative_costs
    return sorted(
        planned.to_run,
        key=lambda cell: (datasets.index(data_key(cell)), -costs[cell.hash], methods.index(cell.method_title)),
    )


WORKERS_A_CORE = 8  # more must be a typing error: each worker has its own torch in memory


def _check_machine(device: str, workers: int | None) -> None:
    """Refuse kinds of devices on which nothing is tested, and implausible numbers of workers.

    Raises:
        BenchmarkError: the device or the number is refused; it says what was given and what is allowed.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise BenchmarkError(f"Unsupported device '{device}'. Allowed: auto, cpu, cuda, cuda:0, ...")
    if workers is not None and workers > (most := WORKERS_A_CORE * n_cores()):
        raise BenchmarkError(
            f"--workers must be at most {most}, as this machine has {n_cores()} cores. Got {workers}. Leave it out for "
            "one per core, or one per GPU."
        )


def _reference(given: str | None, cells: Sequence[Cell]) -> str | None:
    """The title of the reference, which was given by name or title; by default the first method."""
    titles = list(dict.fromkeys(cell.method_title for cell in cells))
    if given is None:
        return titles[0] if titles else None
    if given in titles:
        return given
    by_name = [title for title in titles if title.partition(":")[0] == given]
    if len(by_name) == 1:
        return by_name[0]
    raise BenchmarkError(
        f"The reference '{given}' is not among the methods of this run.{suggestion(given, titles)} "
        f"Allowed: {', '.join(titles)}."
    )
