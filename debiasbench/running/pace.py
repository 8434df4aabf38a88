"""Measure how fast a cell trains, from its progress messages."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class Pace:
    """The time that an epoch of a cell takes, including evaluation.

    It is measured between the ends of epochs. So it does not include loading data, or the rest of the epoch in which
    the first message came.

    Attributes:
        stage, epoch: the stage in the last message, and the number of its epochs that had ended.
        n_epochs: number of epochs that ended between `first` and `last`.
        first, last: times of the first and the last message that an epoch had ended, on the monotonic clock (seconds);
            None: not yet.
    """

    stage: str = ""
    epoch: int = 0
    n_epochs: int = 0
    first: float | None = None
    last: float | None = None

    def hear(self, stage: str, epoch: int) -> None:
        """Note the present position of the cell."""
        ended = epoch - (self.epoch if stage == self.stage else 0)
        self.stage, self.epoch = stage, epoch
        if ended <= 0:  # a message within an epoch, or after going back to a checkpoint
            return
        self.last = time.monotonic()
        if self.first is None:
            self.first = self.last
        else:
            self.n_epochs += ended

    @property
    def seconds_an_epoch(self) -> float | None:
        """Mean seconds per epoch; None before a whole epoch was seen."""
        if self.first is None or self.last is None or not self.n_epochs:
            return None
        return (self.last - self.first) / self.n_epochs
