"""The data of a cell as tensors: `Samples` are columns, `Splits` are the samples of each part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from debiasbench.errors import BenchmarkError
from debiasbench.reading import Rows, read_ahead

ROUNDED_TO = 32  # tokens: few different lengths, little padding
INPUTS = {"images": torch.uint8, "text": torch.int32, "features": torch.float32}  # what x can hold -> its type


@dataclass(frozen=True)
class Samples:
    """Columns of equal length N.

    Attributes:
        x: uint8 (N, C, H, W) in 0..255 for images; int32 (N, L) for texts, token numbers that are padded with -1;
            float32 (N, D) for features. It may stay in the host's memory, or on disk (a mapped tensor), when the other
            columns are on a device: see `read`.
        y: int64 (N,), the label, 0-based.
        bias: int64 (N, A), one column a bias; -1 where it is not known.
        conflict: bool (N, A), for biases whose values are not those of the label; else a sample conflicts if its
            bias is known and differs from its label.
        x_sha256: of the bytes of x, where that is known already (large data are not read to be fingerprinted).
        length: int64 (N,), on the host: tokens of each text. None for images and features.
        groups: bool (N, G), on the host, of a dataset whose evaluation groups overlap: who is in each of its
            `group_names`. Else groups are (label, bias).
    """

    x: Tensor
    y: Tensor
    bias: Tensor
    conflict: Tensor | None = None
    x_sha256: str = ""
    length: Tensor | None = None
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == len(self.bias) or self.bias.ndim != 2:
            raise BenchmarkError(
                f"Samples need columns of equal length and bias as (N, A): x {tuple(self.x.shape)}, "
                f"y {tuple(self.y.shape)}, bias {tuple(self.bias.shape)}."
            )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def conflicting(self) -> Tensor:
        """Bool (N, A): the bias is known and disagrees with the label."""
        if self.conflict is not None:
            return self.conflict
        return (self.bias != self.y[:, None]) & (self.bias >= 0)

    def to(self, device: torch.device, *, with_x: bool = True) -> Samples:
        """The same columns on another device; without `with_x`, x stays where it is."""
        conflict = None if self.conflict is None else self.conflict.to(device)
        x = self.x.to(device) if with_x else self.x
        y, bias = self.y.to(device), self.bias.to(device)
        return Samples(x, y, bias, conflict, self.x_sha256, self.length, self.groups)

    def read(self, plan: Sequence[Rows], indices: Sequence[Tensor] | None = None) -> Iterator[Tensor]:
        """X of each batch of a plan, on the device of the labels. Texts are cut to what the batch needs (`widths`).

        Where x is on the host and the labels are on a GPU, the next batches are read while one is worked on.

        Args:
            plan: slices, or int64 indices on the host.
            indices: the same indices on the device of the labels, where they are there too.
        """
        widths = self.widths(plan)
        xs = [self.x if width is None else self.x[:, :width] for width in widths]
        if self.x.device == self.y.device:
            for x, rows in zip(xs, plan if indices is None else indices, strict=True):
                yield x[rows.to(x.device)] if isinstance(rows, Tensor) else x[rows]
        else:
            yield from read_ahead(xs, plan, self.y.device)

    def widths(self, plan: Sequence[Tensor | slice]) -> Sequence[int | None]:
        """How many tokens each batch of a plan needs: its longest text, rounded up to a multiple of 32.

        All batches at once, as lengths are on the host and the plan may be on the device. None for images and features.
        """
        if self.length is None:
            return [None] * len(plan)
        if plan and isinstance(plan[0], Tensor):
            sizes = [len(index) for index in plan]  # type: ignore[arg-type]
            lengths = self.length[torch.cat(list(plan)).cpu()].split(sizes)  # type: ignore[arg-type]
        else:
            lengths = tuple(self.length[rows] for rows in plan)
        return [min(-(-int(some.max()) // ROUNDED_TO) * ROUNDED_TO, self.x.shape[1]) for some in lengths]

    def map(
        self,
        function: Callable[[int, slice | Tensor, Tensor], Tensor],
        batch_size: int,
        what: str = "The function must return (B, ...)",
    ) -> Tensor:
        """`function(number of the batch, rows, x) -> (B, ...)` over all samples, joined in their order.

        Images and features go in their order; texts of like length go together. `what`: what it must do.

        Raises:
            BenchmarkError: it returns something else than a tensor with a row a sample, or of another shape or type
                than before.
        """
        plan: list[Any]
        if self.length is None:
            plan = [slice(start, start + batch_size) for start in range(0, len(self), batch_size)]
        else:
            plan = list(self.length.argsort(descending=True, stable=True).split(batch_size))
        joined, n_done = torch.empty(0), 0
        for number, x in enumerate(self.read(plan)):
            part: Any = function(number, plan[number], x)
            if not isinstance(part, Tensor) or part.ndim == 0 or len(part) != len(x):
                raise BenchmarkError(
                    f"{what}: a tensor with a row for each sample, here {len(x)}. Got "
                    f"{tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__}."
                )
            if not n_done:  # one place for all: small results that are kept one by one keep the memory between them
                joined = part.new_empty((len(self), *part.shape[1:]))
            if (part.shape[1:], part.dtype) != (joined.shape[1:], joined.dtype):
                raise BenchmarkError(
                    f"{what}: of one shape and type for all batches. Got rows {tuple(joined.shape[1:])} of "
                    f"{joined.dtype} first, and then {tuple(part.shape[1:])} of {part.dtype}."
                )
            joined[n_done : n_done + len(part)] = part
            n_done += len(part)
        if self.length is None:
            return joined
        result = torch.empty_like(joined)
        result[torch.cat(plan).to(joined.device)] = joined
        return result

    def fingerprint(self) -> str:
        """SHA-256 over the shapes, types and bytes of all columns."""
        digest = hashlib.sha256()
        for column in fields(self):
            tensor = getattr(self, column.name)
            if not isinstance(tensor, Tensor):
                continue
            digest.update(f"{column.name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            if column.name == "x" and self.x_sha256:
                digest.update(self.x_sha256.encode())
            else:
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """The parts of a dataset.

    `valid` has the bias of the training data. `tune`, where there is one, holds validation samples with the bias
    taken out: it serves to choose settings that no publication gives, never to report.
    `official` says whether counts and digests are those of the data as published; `note` says what is not.
    """

    train: Samples
    valid: Samples
    test: Samples
    tune: Samples | None = None
    official: bool = True
    note: str = ""
    _fingerprint: list[str] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def of(cls, named: Mapping[str, Samples], *, official: bool = True, note: str = "") -> Splits:
        """From split name -> samples; `tune` may be missing. The inverse of `named`."""
        values: dict[str, Any] = {**named, "official": official, "note": note}
        return cls(**values)

    def named(self) -> dict[str, Samples]:
        """Split name -> samples, for the splits that exist."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test, "tune": self.tune}
        return {name: samples for name, samples in parts.items() if samples is not None}

    def to(self, device: torch.device, *, fraction: float = 0.5) -> Splits:
        """The same splits on another device; x moves if all of it takes at most this fraction of its free memory.

        Splits that are one and the same (a validation split that is the test split) move once, and stay the same.
        """
        different = {id(samples): samples for samples in self.named().values()}
        n_bytes = sum(samples.x.nbytes for samples in different.values())
        fits = device.type != "cuda" or n_bytes <= fraction * torch.cuda.mem_get_info(device)[0]
        moved = {key: samples.to(device, with_x=fits) for key, samples in different.items()}
        parts: dict[str, Any] = {name: moved[id(samples)] for name, samples in self.named().items()}
        return Splits(**parts, official=self.official, note=self.note, _fingerprint=self._fingerprint)

    @property
    def valid_is_test(self) -> bool:
        """Whether the "validation" split is the test split (as in LfF's code): nothing may be selected by it."""
        return self.valid is self.test or self.valid.fingerprint() == self.test.fingerprint()

    def fingerprint(self) -> str:
        """SHA-256 of the fingerprints of train, valid and test (tune does not touch a result)."""
        if not self._fingerprint:
            parts = [part.fingerprint() for name, part in self.named().items() if name != "tune"]
            self._fingerprint.append(hashlib.sha256("".join(parts).encode()).hexdigest())
        return self._fingerprint[0]


def stratified(y: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places (int64, rising) of all but `fraction` of each class, and of that fraction, drawn at random and rounded."""
    taken = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        members = torch.nonzero(y == label)[:, 0]
        order = torch.randperm(len(members), generator=generator)
        taken[members[order[: round(fraction * len(members))]]] = True
    return torch.nonzero(~taken)[:, 0], torch.nonzero(taken)[:, 0]


def draw_of_class(labels: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """For each of `wanted` (N,), the row of a sample with that label, drawn with replacement: int64 (N,).

    `labels` must have each of the wanted ones.
    """
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    drawn = torch.randint(2**62, wanted.shape, generator=generator) % counts[wanted]  # a bias of 1e-15
    return order[starts[wanted] + drawn]
