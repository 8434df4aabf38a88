"""What a cell has done so far: numbered calls, stages, evaluated epochs, logged values, and seconds.

An interrupted cell resumes from the journal on disk (`Checkpoints`): `fit` runs again from its top, finished calls
return their earlier results, and the interrupted stage goes on where it stopped. A network whose later weights are
known has no values until the last finished call that trained it, so no wrong values can be read from it. All randomness
depends on the position of a call, so skipping a call changes no other.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from debiasbench.evaluation.evaluation import Row
from debiasbench.training.checkpoints import Checkpoints
from debiasbench.training.digests import digest_of
from debiasbench.training.ends import (
    Guard,
    StageEnd,
    StaleJournalError,
    Weights,
    fill,
    from_bytes,
    to_bytes,
    without_values,
)
from debiasbench.training.traces import Traces, versions_of

Curve = Sequence[tuple[str, float, int]]  # points: (name such as "test/acc_avg", value, epoch)
Progress = Callable[[str, int, int, Curve], None]  # (stage, epoch, epochs, new points of the epoch)
TOLD = 5.0  # seconds between two progress reports within an epoch


class StoppedError(BaseException):
    """The cell was asked to stop and can resume from its journal; this is not an error of its method."""


@dataclass
class StageRun:
    """One run of a stage, during and after it."""

    call: int  # its call number
    parameters: dict[str, int]  # network -> its number of parameters
    epochs: int
    evaluated: bool  # whether its epochs are evaluated, every `eval_every`
    losses: list[float] = field(default_factory=list)  # mean training loss per sample, by epoch
    end: dict[str, Row] = field(default_factory=dict)  # network -> its metrics at the end of the run
    seconds: float = 0.0  # of training only; for a reused stage, of the original training
    evaluation_seconds: float = 0.0
    rows: list[EvaluatedEpoch] = field(default_factory=list)  # its evaluated epochs
    proxies: str = ""  # of validation samples, two bytes each, in hexadecimal


@dataclass(frozen=True)
class EvaluatedEpoch:
    """An epoch that selection rules can choose."""

    epoch: int
    row: Row
    learning_rate: float | None = None
    train_loss: float | None = None

    @property
    def valid(self) -> dict[str, float]:
        """Metrics on validation."""
        return self.row.valid

    @property
    def test(self) -> dict[str, float]:
        """Metrics on test."""
        return self.row.test


def points_of(row: Any) -> list[tuple[str, float, int]]:
    """Name, value and epoch of every metric with a value in an epoch, which has `valid`, `test` and `epoch`."""
    return [
        (f"{split}/{metric}", value, row.epoch)
        for split, metrics in (("valid", row.valid), ("test", row.test))
        for metric, value in metrics.items()
        if not metric.startswith("n") and not math.isnan(value)
    ]


class Journal:
    """What a cell has done so far.

    Attributes:
        calls: the numbered calls, in order: kind, and digest of what they depend on.
        nets: the networks that were made.
        stages: the runs of stages.
        epochs: the evaluated epochs.
        columns: per-sample values that the method logged, (N,), on the CPU.
        values: single numbers that it logged.
        seconds: seconds of `each` and `once`.
        waited: seconds spent waiting for stages that another worker was training.
        spent: seconds of earlier processes on this cell.
        resumed: where each of them stopped, in words.
        stopping: whether the cell must stop at the next step or between two calls, with a checkpoint.
    """

    def __init__(self, progress: Progress | None = None, checkpoints: Checkpoints | None = None) -> None:
        """Resume from `checkpoints` if they have a journal."""
        self.calls: list[dict[str, Any]] = []
        self.nets: list[nn.Module] = []
        self.stages: list[StageRun] = []
        self.epochs: list[EvaluatedEpoch] = []
        self.columns: dict[str, Tensor] = {}
        self.values: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.waited = 0.0
        self.spent = 0.0
        self.resumed: list[str] = []
        self.stopping = False
        self._progress = progress or (lambda *_: None)
        self._told = self._started = time.monotonic()
        self._checkpoints: Checkpoints | None = None
        self._n_evaluations = self._n_stages = 0
        self._versions: dict[int, list[int]] = {}  # of each network, before a call of `each` or `once`
        self._then = _Then()
        self._replay = contextlib.ExitStack()  # contexts active until the last finished call
        self._guard: Guard | None = None
        self._ended: list[dict[str, Any]] = []  # plain values of each finished call
        self._newest: dict[str, int] = {}  # key -> the last finished call that kept something under it
        self._evaluations: list[dict[str, Any]] = []  # outside stages
        if checkpoints is not None:
            self.keep_in(checkpoints)

    # ---- numbered calls ---------------------------------------------------------------------------------------------

    def number(self, kind: str, signature: Mapping[str, Any]) -> int:
        """Begin a call and return its number, from 1; `signature` is what it depends on.

        Raises:
            StaleJournalError: an earlier process had another call at this position.
            StoppedError: the cell was asked to stop.
        """
        call = {"kind": kind, "signature": digest_of(signature)}
        place = len(self.calls)
        if place < len(self._then.calls):
            then = self._then.calls[place]
            if call != {"kind": then["kind"], "signature": then["signature"]}:
                raise StaleJournalError(f"call {place + 1} was {then['kind']}, or with other values")
            call = dict(then)
        else:
            self.close()
            if self._guard is not None:
                self._guard.check_nothing_is_held()
                self._guard = None
            self.stop_if_asked()
        self.calls.append(call)
        return len(self.calls)

    def close(self) -> None:
        """End the replay: all finished calls of an earlier process are restored, or the journal is no longer used."""
        self._replay.close()

    def stop_if_asked(self) -> None:
        """Stop if asked to, between two calls or between steps of a call that cannot be resumed.

        Raises:
            StoppedError: the cell was asked to stop.
        """
        if self.stopping:
            self._write()
            raise StoppedError

    def note(self, call: int, **what: Any) -> None:
        """Add values to the entry of a call."""
        self.calls[call - 1] |= what

    def finished(self, call: int) -> dict[str, Any] | None:
        """The values that an earlier process kept of a call it finished; None if the call is still to be done."""
        return self._ended[call - 1] if call <= len(self._then.calls) else None

    def end(self, call: int, files: Mapping[str, bytes] | None = None, **about: Any) -> None:
        """Mark a call as finished. `files` are kept by key and replace earlier ones; `about` are plain values.

        Calls are finished in order. A training loop of the method, or a call that makes other calls, is never marked
        as finished: after an interruption, it is done again with everything that follows.
        """
        if not self._is_next(call):
            return
        self._ended.append(about)
        if self._checkpoints is None:
            return
        for key, data in (files or {}).items():
            self._checkpoints.keep(key, data)
            self._newest[key] = call
        self._then.running = None
        if files and self._checkpoints.is_cheap:
            self._write()

    def _is_next(self, call: int) -> bool:
        """Whether all calls before this one are finished and it has made no other calls."""
        return call == len(self._ended) + 1 == len(self.calls)

    # ---- networks ---------------------------------------------------------------------------------------------------

    def made(self, net: nn.Module) -> None:
        """Register a new network. If a finished call has trained it, it has no values until that call."""
        self.nets.append(net)
        if f"net-{len(self.nets) - 1}" in self._then.newest:
            without_values(net)

    def index(self, net: nn.Module) -> int:
        """The index of a network, in the order in which they were made."""
        return next(index for index, own in enumerate(self.nets) if own is net)

    def files_of_nets(self, nets: Mapping[str, nn.Module]) -> dict[str, bytes]:
        """The current weights of networks, for `end`."""
        if self._checkpoints is None:
            return {}
        return {self._key(net): to_bytes(net.state_dict(), {}) for net in nets.values()}

    def fill_nets(self, call: int, nets: Mapping[str, nn.Module], device: torch.device) -> None:
        """Give networks their weights from the end of a finished call that trained them.

        If a later finished call trained them too, they have no values instead. The same is true for parts that they
        were given meanwhile, such as a head.
        """
        for net in nets.values():
            key = self._key(net)
            if self._then.newest.get(key) == call:
                fill(net, self.file(key, device)[0], device)
            else:
                without_values(net)

    def _key(self, net: nn.Module) -> str:
        return f"net-{self.index(net)}"

    # ---- stages -----------------------------------------------------------------------------------------------------

    def new_stage(self) -> str:
        """The key of a new stage."""
        self._n_stages += 1
        return f"stage-{self._n_stages}"

    def begin_run(self, call: int, nets: Mapping[str, nn.Module], epochs: int, *, evaluated: bool) -> StageRun:
        """Begin a run of a stage; a finished run starts with its final values."""
        sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
        run = StageRun(call, sizes, epochs, evaluated)
        kept = self.finished(call)
        if kept is not None and "run" in kept:
            run = _run_of(kept["run"])
            self.epochs += run.rows
        self.stages.append(run)
        return run

    def evaluated(self, run: StageRun, epoch: EvaluatedEpoch) -> None:
        """Keep an evaluated epoch of a run."""
        run.rows.append(epoch)
        self.epochs.append(epoch)

    def evaluation(self, evaluate: Callable[[], Row]) -> None:
        """Add an epoch to select from, outside a stage; it is not evaluated again if an earlier process did so."""
        place = self._n_evaluations
        self._n_evaluations += 1
        if place < len(self._evaluations):
            row = _row_of(self._evaluations[place])
        else:
            row = evaluate()
            if len(self.calls) == len(self._ended):  # otherwise earlier calls are done again, and so is this
                self._evaluations.append(asdict(row))
        self.epochs.append(EvaluatedEpoch(len(self.epochs) + 1, row))

    def report(self, run: StageRun, epoch: int, epochs: int) -> None:
        """Report the progress of a run."""
        self._told = time.monotonic()
        self._progress(f"stage {self.stages.index(run) + 1}", epoch, epochs, ())

    def report_epoch(self, run: StageRun, epoch: int, epochs: int) -> None:
        """Report the end of an epoch of a run, with its numbers."""
        stage = f"stage {self.stages.index(run) + 1}"
        curve = [(f"{stage}/train_loss", run.losses[-1], len(run.losses))] if run.losses else []
        if run.rows and run.rows[-1].epoch == epoch:
            curve += points_of(run.rows[-1])
        self._told = time.monotonic()
        self._progress(stage, epoch, epochs, curve)

    def between_steps(self, run: StageRun, epoch: int, epochs: int) -> bool:
        """Called after each step: reports progress, and says whether to make a checkpoint (`keep_running`)."""
        if time.monotonic() - self._told > TOLD:
            self.report(run, epoch, epochs)
        return self.stopping or (self._checkpoints is not None and self._is_next(run.call) and self._checkpoints.is_due)

    def keep_running(self, run: StageRun, end: StageEnd, **about: Any) -> None:
        """Write a checkpoint of the run in progress.

        Raises:
            StoppedError: the cell was asked to stop.
        """
        if self._checkpoints is not None and self._is_next(run.call):
            started = time.monotonic()
            self._checkpoints.keep("running", end.to_bytes())
            self._then.running = about | {"call": run.call, "run": asdict(run), "of": self.calls[run.call - 1]}
            self._write(started)
        elif self.stopping:
            self._write()  # the calls finished before
        if self.stopping:
            raise StoppedError

    def running(self, run: StageRun, device: torch.device) -> tuple[StageEnd, dict[str, Any]] | None:
        """Where an earlier process stopped in this run; None if it had not begun it. Call it once per run."""
        about = self._then.running
        if about is None or about["call"] != run.call:
            return None
        of = self.calls[run.call - 1]
        if any(about["of"][what] != of[what] for what in ("kind", "signature")):
            raise StaleJournalError(f"call {run.call} was {about['of']['kind']}, or with other values")
        end, _ = StageEnd.from_bytes(self._bytes("running"), device)
        was = _run_of(about["run"])
        run.losses, run.rows, run.end = was.losses, was.rows, was.end
        run.seconds, run.evaluation_seconds, run.proxies = was.seconds, was.evaluation_seconds, was.proxies
        self.epochs += run.rows
        self.resumed[-1] += f", step {end.step} of call {run.call}"
        return end, about

    # ---- results and files ------------------------------------------------------------------------------------------

    def end_with(self, call: int, result: Any, traces: Traces) -> None:
        """Mark a call of `each` or `once` as finished; keeps its result and the networks that it wrote into.

        A result is kept only if it is a tensor, a plain value, or a tuple, list or dictionary of them, and if its
        function left no other traces. Otherwise it is computed again after an interruption.
        """
        if self._checkpoints is None or self.finished(call) is not None:
            self.end(call)
            return
        changed = {str(i): net for i, net in enumerate(self.nets) if versions_of(net) != self._versions.get(i)}
        files = self.files_of_nets(changed)
        tensors: dict[str, Tensor] = {}
        with contextlib.suppress(_FormlessError, RuntimeError, ValueError, KeyError):
            if not traces.were_left():
                files[f"result-{call}"] = to_bytes(tensors, {"form": _form_of(result, tensors)})
        self.end(call, files)

    def result(self, call: int, device: torch.device) -> Any:
        """The result of a finished call, tensors on the device; `ABSENT` if it must be computed.

        The networks that the call wrote into are restored as well.
        """
        if self.finished(call) is None:
            if self._checkpoints is not None:
                self._versions = {index: versions_of(net) for index, net in enumerate(self.nets)}
            return ABSENT
        if not self.is_newest(f"result-{call}", call):
            return ABSENT
        written = {str(i): net for i, net in enumerate(self.nets) if self.is_newest(f"net-{i}", call)}
        self.fill_nets(call, written, device)
        tensors, about = self.file(f"result-{call}", "cpu")
        return _of_form(about["form"], tensors, device)

    def end_log(self, call: int, names: Iterable[str]) -> None:
        """Mark a call that logged values under these names as finished."""
        own = [name for name in names if name in self.columns]
        columns = {f"column-{name}": to_bytes({"": self.columns[name]}, {}) for name in own}
        self.end(call, columns, columns=own, values={name: self.values[name] for name in names if name in self.values})

    def logged_before(self, call: int) -> bool:
        """Whether an earlier process logged in this call; if so, restores the logged values."""
        kept = self.finished(call)
        if kept is None:
            return False
        self.values |= kept["values"]
        for name in kept["columns"]:
            if self.is_newest(f"column-{name}", call):
                self.columns[name] = self.file(f"column-{name}", "cpu")[0][""]
            else:
                self.columns.setdefault(name, torch.empty(0))  # keeps its position, until the call that has the values
        return True

    def file(self, key: str, device: torch.device | str) -> tuple[Weights, dict[str, Any]]:
        """The tensors and plain values kept under a key."""
        try:
            return from_bytes(self._bytes(key), device)
        except ValueError as error:
            raise StaleJournalError(f"{key}: {error}") from None

    def is_newest(self, key: str, call: int) -> bool:
        """Whether this call is the last in which an earlier process kept something under the key."""
        return self._then.newest.get(key) == call

    def stage_end(self, key: str, device: torch.device) -> StageEnd:
        """The end of a stage kept under a key."""
        return StageEnd.from_bytes(self._bytes(key), device)[0]

    def forget(self, key: str) -> None:
        """Drop what is kept under a key."""
        self._newest.pop(key, None)
        if self._checkpoints is not None:
            self._checkpoints.forget(key)

    def _bytes(self, key: str) -> bytes:
        data = self._checkpoints.bytes_of(key) if self._checkpoints is not None else None
        if data is None:
            raise StaleJournalError(f"{key} is gone")
        return data

    # ---- on disk ----------------------------------------------------------------------------------------------------

    @property
    def is_kept(self) -> bool:
        """Whether anything is written to disk."""
        return self._checkpoints is not None

    @property
    def is_resumed(self) -> bool:
        """Whether the cell resumes from an earlier process."""
        return bool(self.resumed)

    def keep_in(self, checkpoints: Checkpoints) -> None:
        """Resume from `checkpoints` if they have a journal, and write to them from now on."""
        self._checkpoints = checkpoints
        then = checkpoints.read()
        if then is None:
            return
        self._then = _Then(then["calls"], dict(then["newest"]), then["running"])
        self._ended, self._newest = then["ended"], dict(then["newest"])
        self._evaluations, self.seconds = then["evaluations"], then["seconds"]
        self.waited, self.spent = then["waited"], then["spent"]
        self.resumed = [*then["resumed"], f"after {len(self._ended)} calls"]
        self._replay.enter_context(warnings.catch_warnings())
        # `fit` may copy weights into a network that has no values yet; the warning is irrelevant during the replay
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter in the checkpoint to a meta")
        self._guard = self._replay.enter_context(Guard())

    def _write(self, started: float | None = None) -> None:
        if self._checkpoints is None:
            return
        n = len(self._ended)
        self._checkpoints.write({
            "calls": self.calls[:n], "ended": self._ended, "newest": self._newest, "running": self._then.running,
            "evaluations": self._evaluations, "seconds": self.seconds, "waited": self.waited,
            "spent": self.spent + time.monotonic() - self._started, "resumed": self.resumed,
        }, started)  # fmt: skip


@dataclass
class _Then:
    """The finished calls of an earlier process, and the run in progress, of that process or of this one."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    newest: dict[str, int] = field(default_factory=dict)
    running: dict[str, Any] | None = None


def _row_of(plain: Mapping[str, Any]) -> Row:
    correct = {split: tuple(counts) for split, counts in plain["correct_by_class"].items()}
    return Row(plain["valid"], plain["test"], correct)


def _run_of(plain: Mapping[str, Any]) -> StageRun:
    rows = [EvaluatedEpoch(**{**one, "row": _row_of(one["row"])}) for one in plain["rows"]]
    end = {name: _row_of(row) for name, row in plain["end"].items()}
    return StageRun(**{**plain, "rows": rows, "end": end})


# ---- results of calls as plain values and tensors --------------------------------------------------------------------

ABSENT = object()


class _FormlessError(Exception):
    """A value is not a tensor, a plain value, or a tuple, list or dictionary of them."""


def _form_of(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON with the names of its tensors, which are put into `tensors`."""
    if type(value) is Tensor:
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name, "on": value.device.type}
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return {"value": value}
    if type(value) in (tuple, list):
        return {type(value).__name__: [_form_of(one, tensors) for one in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _form_of(one, tensors) for key, one in value.items()}}
    raise _FormlessError


def _of_form(form: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device | str) -> Any:
    if "tensor" in form:
        tensor = tensors[form["tensor"]]
        return tensor if form["on"] == "cpu" else tensor.to(device)
    if "value" in form:
        return form["value"]
    if "dict" in form:
        return {key: _of_form(one, tensors, device) for key, one in form["dict"].items()}
    if "tuple" in form:
        return tuple(_of_form(one, tensors, device) for one in form["tuple"])
    return [_of_form(one, tensors, device) for one in form["list"]]
