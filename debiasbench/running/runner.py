"""Run one cell in this process: build the data, fit, evaluate, and write the record. Failures become records too."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import socket
import subprocess
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from debiasbench import about, weights
from debiasbench.about import PROTOCOL_VERSION
from debiasbench.cell import Cell
from debiasbench.data.checks import check_splits
from debiasbench.datasets import Dataset
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.metrics import identification
from debiasbench.evaluation.own import own_selection
from debiasbench.evaluation.selection import select
from debiasbench.nets.pretrained import weights_sha256
from debiasbench.records import (
    DataFacts,
    EpochFacts,
    Failure,
    GroupFacts,
    Provenance,
    Record,
    Result,
    Seconds,
    SplitFacts,
    StageFacts,
    failed_path,
    failure_at,
    record_path,
    running_path,
    write_record,
)
from debiasbench.running.global_state import GlobalState, Watch, handed
from debiasbench.samples import Splits
from debiasbench.training.checkpoints import Checkpoints
from debiasbench.training.digests import digest_of
from debiasbench.training.ends import StaleJournalError
from debiasbench.training.journal import (
    EvaluatedEpoch,
    Journal,
    Progress,
    StageRun,
    StoppedError,
)
from debiasbench.training.reuse import Reuse, facts_of_machine
from debiasbench.training.task import Task


@dataclass
class Runner:
    """Runs cells one after another in this process; data that consecutive cells share are built once."""

    data_dir: Path
    results_dir: Path
    device: str = "cpu"
    save_weights: bool = False
    reuse: bool = True  # equal stages of several cells are trained once
    resume: bool = True  # an interrupted cell goes on from its checkpoint
    checkpoint_every: float = 60.0  # seconds between checkpoints within a stage
    threads: int | None = None  # torch threads; None: unchanged
    memory_fraction: float = 0.5  # part of the device's free memory that the data may take
    executor: str = "local"  # executor that runs the cell, for the record
    changed: list[str] = field(default_factory=list)  # global state that the last cell had changed
    stopping: bool = False  # the cell has to end at its next step, with a checkpoint
    _journal: Journal = field(default_factory=Journal)
    _data: dict[str, Splits] = field(default_factory=dict)

    def run(self, cell: Cell, progress: Progress | None = None) -> Path:
        """Run a cell and write its record, done or failed; returns the record's path.

        Raises:
            StoppedError: the cell was asked to stop; it goes on from its checkpoint when it is run again.
            OSError: the record could not be written.
        """
        with settled(self.threads, self.device), undetermined_operations() as undetermined:
            return self._run(cell, progress, undetermined)

    def _run(self, cell: Cell, progress: Progress | None, undetermined: set[str]) -> Path:
        path = record_path(self.results_dir, cell)
        started = time.perf_counter()
        spent, state = Spent(), GlobalState()
        arrays: dict[str, Tensor] = {}
        result: Result | None = None
        failure: Failure | None = None
        try:
            result, arrays = self._train_or_again(cell, spent, path, progress)
        except (KeyboardInterrupt, StoppedError):
            raise
        except BaseException as error:  # other cells go on after any error of a method, even sys.exit
            failure = Failure(type(error).__name__, _cut(_said(error)), _cut(traceback.format_exc()))
            path = failed_path(path)
        finally:
            self.changed = state.put_back()
        journal = self._journal
        spent.total = time.perf_counter() - started - journal.waited + journal.spent
        where = provenance(
            cell, self.device, journal, spent, undetermined, host=socket.gethostname(), executor=self.executor
        )
        record = Record(cell.hash, cell, where, result, failure)
        write_record(path, record, arrays)
        Checkpoints(running_path(record_path(self.results_dir, cell)), {}).clear()
        return path

    def stop(self) -> None:
        """Ask the running cell to stop at its next step; may be called from a signal handler."""
        self.stopping = self._journal.stopping = True

    def splits(self, dataset: Dataset) -> Splits:
        """The dataset's splits on the device; the last ones built are kept."""
        key = f"{dataset.name} {dataset!r}"  # two files may use the same class name
        if key not in self._data:
            self._data.clear()
            if torch.device(self.device).type == "cuda":
                torch.cuda.empty_cache()  # otherwise the memory of the last data still counts as used
            splits = check_splits(dataset, dataset.build(self.data_dir))
            splits.fingerprint()  # computed before a method can change the data
            self._data[key] = splits.to(torch.device(self.device), fraction=self.memory_fraction)
        return self._data[key]

    def _train_or_again(
        self, cell: Cell, spent: Spent, path: Path, progress: Progress | None
    ) -> tuple[Result, dict[str, Tensor]]:
        """Train a cell; if it fails after resuming from a checkpoint, train it again from the start."""
        try:
            return self._train(cell, spent, path, progress, resume=self.resume)
        except (Exception, StaleJournalError):
            if not self._journal.is_resumed:
                raise
        return self._train(cell, spent, path, progress, resume=False)

    def _train(
        self, cell: Cell, spent: Spent, path: Path, progress: Progress | None, *, resume: bool
    ) -> tuple[Result, dict[str, Tensor]]:
        """The steps of one cell: data, task, fit, result."""
        self._journal = journal = Journal(progress)
        journal.stopping = self.stopping
        method, dataset, recipe = cell.build_method(), cell.build_dataset(), cell.build_recipe()
        started = time.perf_counter()
        splits = handed(self.splits(dataset))
        spent.data = time.perf_counter() - started
        if torch.device(self.device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        checkpoints = self._checkpoints(cell, splits, resume=resume)
        journal.keep_in(checkpoints)
        if checkpoints.unused:
            print(f"The checkpoint of an earlier run is not used: {checkpoints.unused}.")  # noqa: T201 - to the log
        task = Task(
            splits, dataset=dataset, recipe=recipe, seed=cell.seed, access=method.access, journal=journal,
            reuse=self._reuse(splits),
        )  # fmt: skip
        watch = Watch(splits)
        try:
            predictor = method.fit(task)
            result, arrays = self._checked_result(cell, task, predictor)
            if self.save_weights:
                result = replace(result, weights=weights.save(task, weights.weights_path(path)))
        finally:
            journal.close()
            self._check_data(watch, cell.method)
        return result, arrays

    def _check_data(self, watch: Watch, method: str) -> None:
        try:
            watch.check(method)
        except BenchmarkError:
            self._data.clear()  # the next cell builds its own
            raise

    def _checked_result(self, cell: Cell, task: Task, predictor: Any) -> tuple[Result, dict[str, Tensor]]:
        """The result of a fitted task, after checking that `fit` returned the predictor that was evaluated."""
        if task.predictor is None:
            raise BenchmarkError(
                f"{cell.method}: no stage was given predict=, so there is nothing to evaluate. Pass it to the "
                "task.train whose epochs are to be selected from."
            )
        if predictor is not task.predictor and predictor != task.predictor:
            raise BenchmarkError(
                f"{cell.method}: fit must return the predictor that it gave to task.train(predict=...), so that what "
                f"was evaluated is what is returned. Got {type(predictor).__name__}."
            )
        return result_of(task)

    def _checkpoints(self, cell: Cell, splits: Splits, *, resume: bool) -> Checkpoints:
        """The checkpoints of the running cell, labelled with everything that its results depend on."""
        header = {
            "cell": cell.hash, "code": cell.code(), "data": splits.fingerprint(),
            "pretrained": weights_sha256(cell.recipe["net"], cell.recipe["pretrained"]),
            "machine": facts_of_machine(torch.device(self.device)),
        }  # fmt: skip
        folder = running_path(record_path(self.results_dir, cell))
        checkpoints = Checkpoints(folder, header, interval=self.checkpoint_every)
        if not resume:
            checkpoints.clear()
        return checkpoints

    def _reuse(self, splits: Splits) -> Reuse | None:
        if not self.reuse:
            return None
        return Reuse(self.results_dir / "reuse", data=splits.fingerprint(), device=splits.train.y.device)


def _said(error: BaseException) -> str:
    """The message of an error, or a remark if the error's own code for its message fails."""
    try:
        return str(error)
    except BaseException as of_message:
        return f"(its message cannot be shown: {type(of_message).__name__})"


def _cut(text: str, most: int = 20_000) -> str:
    """A text, without its middle if it is too long: a message may contain all data, and would be shown completely."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}... ({len(text) - most:,} characters) ...{text[-half:]}"


def result_of(task: Task) -> tuple[Result, dict[str, Tensor]]:
    """The result of a record and its arrays, from a task whose method has finished."""
    evaluation, dataset, journal, splits = task.evaluation, task.dataset, task.journal, task.splits
    predict, nets, recipe = task.final_predictor(), task.all_nets(), task.predicting_recipe
    logits = evaluation.logits(predict, nets, splits.test, recipe)
    check_last_row(task, evaluation.correct_by_class("test", logits))
    arrays = {name: column.contiguous() for name, column in journal.columns.items()}
    arrays["test_prediction"] = logits.argmax(1).to(torch.int16).cpu()
    conflicts_known = dataset.has_bias_labels and dataset.defines_conflicts
    if arrays.keys() & {"score", "selected"} and conflicts_known:
        arrays["train_conflict"] = splits.train.conflicting.cpu().contiguous()  # ground truth for figures
    tune = None
    if splits.tune is not None:
        tune = present(evaluation.metrics("tune", evaluation.logits(predict, nets, splits.tune, recipe)))
    validation = not (splits.valid_is_test or task.access.validation)
    result = Result(
        data=data_facts(dataset, splits),
        pretrained_sha256=weights_sha256(task.recipe.net, task.recipe.pretrained),
        selection=select(journal.epochs, dataset.headline, validation=validation)
        | own_selection([one.valid for one in journal.epochs], validation=validation),
        identification={
            name: present(identification(column, splits.train, dataset.bias_names))
            for name, column in (journal.columns.items() if conflicts_known else ())
        },
        logged=present(journal.values),
        stages=tuple(map(_stage_facts, journal.stages)),
        epochs=tuple(map(_epoch_facts, journal.epochs)),
        groups={"test": tuple(GroupFacts(**present(group)) for group in evaluation.groups("test", logits))},
        arrays={name: digest_of(array) for name, array in arrays.items()},
        tune=tune,
    )
    return result, arrays


def check_last_row(task: Task, correct: tuple[int, ...]) -> None:
    """Refuse a result whose last logged epoch does not agree with the final predictions.

    `correct`: the final predictor's number of correct test predictions for each class. On a GPU a few may differ by
    rounding.

    Raises:
        BenchmarkError: the predictor was changed after it had been evaluated.
    """
    logged = task.journal.epochs[-1].row.correct_by_class["test"]
    apart = sum(abs(one - other) for one, other in zip(logged, correct, strict=True))
    if apart > (0 if task.device.type == "cpu" else 0.001 * len(task.splits.test)):
        raise BenchmarkError(
            f"{task.access.name}: the last evaluated epoch has {sum(logged)} correct test predictions, and the final "
            f"predictor {sum(correct)}: it was changed after that. Let fit call task.evaluate(predict) at its end."
        )


def data_facts(dataset: Dataset, splits: Splits) -> DataFacts:
    """The facts about the data that a record contains."""
    facts = {}
    for name, part in splits.named().items():
        conflicts: dict[str, int] = {}
        if dataset.defines_conflicts:
            conflicts = dict(zip(dataset.bias_names, part.conflicting.sum(0).tolist(), strict=True))
        by_class = torch.bincount(part.y, minlength=dataset.n_classes).tolist()
        facts[name] = SplitFacts(len(part), part.x_sha256, conflicts, tuple(by_class))
    return DataFacts(
        splits.fingerprint(), splits.official, splits.note, facts, dataset.class_names, dataset.bias_values or None
    )


def _stage_facts(run: StageRun) -> StageFacts:
    end = {net: {"valid": present(row.valid), "test": present(row.test)} for net, row in run.end.items()}
    return StageFacts(run.call, run.epochs, run.evaluated, run.parameters, end, tuple(run.losses))


def _epoch_facts(one: EvaluatedEpoch) -> EpochFacts:
    correct = one.row.correct_by_class
    return EpochFacts(one.epoch, present(one.valid), present(one.test), one.learning_rate, one.train_loss, correct)


def present(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not nan: a metric without a value has no key."""
    return {name: value for name, value in values.items() if value == value}


def failed_record(cell: Cell, results_dir: Path, kind: str, message: str, device: str, executor: str = "local") -> Path:
    """Record the failure of a cell whose process was lost ("LostWorker") or ended ("TimedOut"), given by `kind`."""
    path = failed_path(record_path(results_dir, cell))
    before = failure_at(path)
    times = 1 + (before.times or 1) if before is not None and before.type == kind else 1
    failure = Failure(kind, message, times=times)
    write_record(
        path, Record(cell.hash, cell, provenance(cell, device, Journal(), Spent(), executor=executor), failure=failure)
    )
    return path


@dataclass
class Spent:
    """The seconds of a cell that its journal does not record."""

    total: float = 0.0
    data: float = 0.0


def provenance(
    cell: Cell,
    device: str,
    journal: Journal,
    spent: Spent,
    undetermined: set[str] | None = None,
    **where: str,
) -> Provenance:
    """Where, when, with what, and for how long a cell ran.

    Args:
        undetermined: operations whose results may be rounded differently in another run; None: unknown.
        where: the host and the executor, if they are known.
    """
    kind = "cuda" if device.startswith("cuda") and torch.cuda.is_available() else "cpu"
    versions: dict[str, str | int] = {
        "debiasbench": about.version(), "protocol": PROTOCOL_VERSION, "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "numpy")},
    }  # fmt: skip
    if cell.recipe["net"].startswith("timm:"):
        versions["timm"] = _version("timm")
    if kind == "cuda":
        versions["cuda"] = str(torch.version.cuda)
    return Provenance(
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=Seconds(
            total=spent.total,
            data=spent.data,
            evaluation=sum(run.evaluation_seconds for run in journal.stages),
            stages=tuple(run.seconds for run in journal.stages),
            calls=dict(journal.seconds),
        ),
        versions=versions,
        device=torch.cuda.get_device_name(device) if kind == "cuda" else f"cpu ({platform.machine()})",
        threads=torch.get_num_threads(),
        peak_memory_mib=round(_peak_memory(device, kind) / 2**20),
        commit=git_commit(),
        device_kind=kind,
        precision=cell.build_recipe().effective_precision(kind),
        code={name: digest for name, digest in cell.code().items() if digest},
        calls=tuple(journal.calls),
        resumed=tuple(_told_of(journal.resumed, exact=not undetermined)) or None,
        undetermined=None if kind == "cpu" or undetermined is None else tuple(sorted(undetermined)),
        **where,
    )


def _told_of(resumed: list[str], *, exact: bool) -> list[str]:
    """Where a cell was interrupted, with a remark if its result may differ between runs."""
    return resumed if exact else [f"{one} (sums of this GPU may round differently in each run)" for one in resumed]


def _peak_memory(device: str, kind: str) -> int:
    """The highest memory use, on a GPU or of this process, in bytes; 0 if unknown."""
    if kind == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource  # on Unix only
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


_COMMIT: list[str] = []


def git_commit() -> str:
    """The suite's commit, with "+changes" if the checkout differs from it; "" outside a checkout."""
    if not _COMMIT:
        _COMMIT.append(_ask_git())
    return _COMMIT[0]


def _ask_git() -> str:
    try:
        changes = about.git("status", "--porcelain", "--", "debiasbench", "methods", "datasets")
        return about.git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return ""


_DETERMINISTIC: Any = torch.utils.deterministic  # a module with a property


def settle_torch(threads: int | None = None, device: str = "cpu") -> None:
    """Make torch deterministic in a process that runs cells: equal seeds give equal results.

    On a GPU, torch uses the deterministic version of an operation where it has one; other operations run nevertheless
    (see `undetermined_operations`). TF32 is off, unless a recipe asks for it.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    if torch.device(device).type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first multiplication on a GPU
        torch.use_deterministic_algorithms(True, warn_only=True)
        _DETERMINISTIC.fill_uninitialized_memory = False  # saves a kernel for each new tensor
        torch.set_warn_always(True)  # otherwise attention warns once per process, but each record needs it


@contextlib.contextmanager
def settled(threads: int | None, device: str) -> Iterator[None]:
    """Apply `settle_torch` within this context; afterwards the settings of the process are restored."""
    before = GlobalState()
    filled, always = _DETERMINISTIC.fill_uninitialized_memory, torch.is_warn_always_enabled()
    settle_torch(threads, device)
    is_gpu = torch.device(device).type == "cuda"
    try:
        with torch.cuda.device(device) if is_gpu else contextlib.nullcontext():  # otherwise "cuda" means the first GPU
            yield
    finally:
        before.put_back()
        _DETERMINISTIC.fill_uninitialized_memory = filled
        torch.set_warn_always(always)


UNDETERMINED = r"(.+?) (?:does not have a deterministic implementation|defaults to a non-deterministic algorithm)"


@contextlib.contextmanager
def undetermined_operations() -> Iterator[set[str]]:
    """The names of operations without a deterministic version that run in this context, from the warnings of torch."""
    found: set[str] = set()
    show = warnings.showwarning

    def note(message: Warning | str, *where: Any, **how: Any) -> None:
        match = re.match(UNDETERMINED, str(message))
        if match:
            found.add(match[1])
        else:
            show(message, *where, **how)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=UNDETERMINED)
        warnings.showwarning = note
        yield found


def default_device() -> str:
    """The GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def n_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
