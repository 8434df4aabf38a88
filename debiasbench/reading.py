"""Rows that stay on the host, brought to a GPU while it computes.

Threads gather the next batches into page-locked memory, and copies go on a stream of their own, so that neither the
host nor what the device computes waits for them. torch keeps page-locked memory for reuse, once the copies from it have
ended: with as many batches on their way as `AHEAD` it is a ring of so many buffers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

READERS, AHEAD = 4, 8  # threads, and batches that are on their way

Rows = slice | Tensor  # of a column: a slice, or int64 indices (B,) on the host


class Lane:
    """Copies to a GPU beside what it computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def send(self, rows: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Start to copy from page-locked memory -> what will be there, and when it is."""
        with torch.cuda.stream(self.stream):
            return rows.to(self.device, non_blocking=True), self.stream.record_event()

    def receive(self, rows: Tensor, copied: torch.cuda.Event) -> Tensor:
        """What was sent, for the stream that computes: that one waits for the copy, the host does not."""
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(copied)
        rows.record_stream(computing)  # else its memory could be given away while it is still read
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
        xs: a column on the host for each batch, (N, ...): views of one, as texts are cut to what a batch needs.
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
