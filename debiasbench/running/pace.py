"""How fast a cell is, from what is heard of it."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class Pace:
    """How long an epoch of a cell takes, evaluation and all.

    It is measured from one end of an epoch to another: neither loading data, nor what was left of the epoch in which
    the cell is first heard of, is the time of an epoch.

    Attributes:
        stage, epoch: where the cell was when it was last heard of; epochs of the stage that have ended.
        n_epochs: epochs that have ended between `first` and `last`.
        first, last: when an epoch was heard to end, on the monotonic clock (seconds); None: not yet.
    """

    stage: str = ""
    epoch: int = 0
    n_epochs: int = 0
    first: float | None = None
    last: float | None = None

    def hear(self, stage: str, epoch: int) -> None:
        """Where the cell is now."""
        ended = epoch - (self.epoch if stage == self.stage else 0)
        self.stage, self.epoch = stage, epoch
        if ended <= 0:  # a sign of life within an epoch, or gone back to a checkpoint
            return
        self.last = time.monotonic()
        if self.first is None:
            self.first = self.last
        else:
            self.n_epochs += ended

    @property
    def seconds_an_epoch(self) -> float | None:
        """None while no whole epoch was seen."""
        if self.first is None or self.last is None or not self.n_epochs:
            return None
        return (self.last - self.first) / self.n_epochs
