"""Copies of rows from the host to a GPU while it computes.

Threads gather the next batches into page-locked memory, and a separate stream copies them, so that neither the host nor
the computation on the device waits. torch reuses page-locked memory once the copies from it have ended. As `AHEAD`
batches are in transit, this amounts to a ring of `AHEAD` buffers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

READERS, AHEAD = 4, 8  # threads, and batches in transit

Rows = slice | Tensor  # of a column: a slice, or int64 indices (B,) on the host


class Lane:
    """Copies to a GPU, parallel to its computation."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def send(self, rows: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Start a copy from page-locked memory -> the copy, and the event of its completion."""
        with torch.cuda.stream(self.stream):
            return rows.to(self.device, non_blocking=True), self.stream.record_event()

    def receive(self, rows: Tensor, copied: torch.cuda.Event) -> Tensor:
        """Hand a copy to the computing stream, which waits for it; the host does not wait."""
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(copied)
        rows.record_stream(computing)  # otherwise its memory could be reused while it is still read
        return rows


def page_locked(x: Tensor, rows: Rows) -> Tensor:
    """Some rows of x (N, ...), gathered into page-locked memory: (B, ...)."""
    n = len(range(*rows.indices(len(x)))) if isinstance(rows, slice) else len(rows)
    gathered = torch.empty((n, *x.shape[1:]), dtype=x.dtype, pin_memory=True)
    if isinstance(rows, slice):
        return gathered.copy_(x[rows])
    return torch.index_select(x, 0, rows, out=gathered)


def read_ahead(xs: Sequence[Tensor], plan: Sequence[Rows], device: torch.device) -> Iterator[Tensor]:
    """The rows of each batch of a plan, on a GPU.

    Args:
        xs: a column on the host for each batch, (N, ...); these are views of one, because texts are cut per batch.
        plan: the rows of each batch.
        device: the GPU.
    """
    lane = Lane(device)

    def send(number: int) -> tuple[Tensor, torch.cuda.Event]:
        return lane.send(page_locked(xs[number], plan[number]))

    with ThreadPoolExecutor(READERS) as pool:
        coming = deque(pool.submit(send, number) for number in range(min(AHEAD, len(plan))))
        try:
            for number in range(len(plan)):
                sent = coming.popleft().result()
                if number + AHEAD < len(plan):
                    coming.append(pool.submit(send, number + AHEAD))
                yield lane.receive(*sent)
        finally:
            for future in coming:
                future.cancel()
