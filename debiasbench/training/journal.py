"""What a cell has done so far: its numbered calls, its stages, evaluated epochs, what was logged, and seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from debiasbench.evaluation.evaluation import Row
from debiasbench.training.digests import digest_of

Progress = Callable[[str, int, int], None]  # (stage, epoch, epochs)


@dataclass
class StageRun:
    """One run of a stage, while it goes on and afterwards."""

    call: int  # its call number
    parameters: dict[str, int]  # network -> how many values it has
    epochs: int
    evaluated: bool  # whether its epochs are, each `eval_every`
    losses: list[float] = field(default_factory=list)  # mean training loss a sample, by epoch
    end: dict[str, Row] = field(default_factory=dict)  # network -> its metrics at the end of the run
    seconds: float = 0.0  # training alone; of a reused stage, of the training that took place
    evaluation_seconds: float = 0.0


@dataclass(frozen=True)
class EvaluatedEpoch:
    """An epoch that selection rules choose from."""

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


class Journal:
    """What a cell has done so far.

    Attributes:
        calls: the numbered calls, in order: kind, and the digest of what they depend on.
        stages: the runs of stages. epochs: the evaluated epochs of those with a predictor.
        columns: per-sample values that the method logged, (N,), on the CPU. values: single numbers that it logged.
        seconds: of `each` and `once`. waited: seconds, for stages that another worker was training.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.stages: list[StageRun] = []
        self.epochs: list[EvaluatedEpoch] = []
        self.columns: dict[str, Tensor] = {}
        self.values: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.waited = 0.0
        self._progress = progress or (lambda *_: None)

    def number(self, kind: str, signature: Mapping[str, Any]) -> int:
        """The number of a call that begins, from 1; `signature` is what it depends on."""
        self.calls.append({"kind": kind, "signature": digest_of(signature)})
        return len(self.calls)

    def note(self, call: int, **what: Any) -> None:
        """Keep something of a call with it."""
        self.calls[call - 1] |= what

    def begin_run(self, call: int, nets: Mapping[str, nn.Module], epochs: int, *, evaluated: bool) -> StageRun:
        """A run of a stage begins."""
        sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
        run = StageRun(call, sizes, epochs, evaluated)
        self.stages.append(run)
        return run

    def report(self, run: StageRun, epoch: int, epochs: int) -> None:
        """Tell whoever watches how far a run has come."""
        self._progress(f"stage {self.stages.index(run) + 1}", epoch, epochs)
