"""The data of a cell as tensors: `Samples` are columns, `Splits` are the samples of each split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from debiasbench.errors import BenchmarkError
from debiasbench.reading import Rows, read_ahead

ROUNDED_TO = 32  # tokens; gives few different lengths and little padding
INPUTS = {"images": torch.uint8, "text": torch.int32, "features": torch.float32}  # kind of input -> dtype of x


@dataclass(frozen=True)
class Samples:
    """Columns of equal length N.

    Attributes:
        x: for images uint8 (N, C, H, W) in 0..255; for texts int32 (N, L), token numbers padded with -1; for features
            float32 (N, D). It may stay in host memory, or on disk (a mapped tensor), while the other columns are on a
            device: see `read`.
        y: int64 (N,), the label, starting at 0.
        bias: int64 (N, A), one column per bias; -1 if unknown.
        conflict: bool (N, A), for biases whose values are not those of the label. If None, a sample conflicts if its
            bias is known and differs from its label. It does not count where the bias is unknown.
        x_sha256: digest of the bytes of x, if already known (large data are not read to be fingerprinted).
        length: int64 (N,), on the host: the number of tokens of each text. None for images and features.
        groups: bool (N, G), on the host, for datasets whose evaluation groups overlap: which samples are in each of
            `group_names`. If None, groups are (label, bias).
    """

    x: Tensor
    y: Tensor
    bias: Tensor
    conflict: Tensor | None = None
    x_sha256: str = ""
    length: Tensor | None = None
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("x", "y", "bias", "conflict", "length", "groups"):
            column = getattr(self, name)
            if not isinstance(column, Tensor) and not (column is None and name in ("conflict", "length", "groups")):
                raise BenchmarkError(f"Samples: {name} must be a torch.Tensor. Got {type(column).__name__}.")
            if column is not None and (problem := _unfit(column)):
                raise BenchmarkError(f"Samples: {name} must be a plain tensor with one row per sample. {problem}")
        if not isinstance(self.x_sha256, str):
            raise BenchmarkError(f"Samples: x_sha256 must be text. Got {self.x_sha256!r}.")
        if self.bias.ndim == 1:
            raise BenchmarkError(
                f"Samples: bias must be (N, A), one column for each bias. Got {tuple(self.bias.shape)}: bias[:, None]."
            )
        if not len(self.x) == len(self.y) == len(self.bias) or self.bias.ndim != 2:
            raise BenchmarkError(
                f"Samples need columns of equal length and bias as (N, A): x {tuple(self.x.shape)}, "
                f"y {tuple(self.y.shape)}, bias {tuple(self.bias.shape)}."
            )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def conflicting(self) -> Tensor:
        """Bool (N, A): whether each bias is known and disagrees with the label."""
        if self.conflict is not None:
            return self.conflict & (self.bias >= 0)
        return (self.bias != self.y[:, None]) & (self.bias >= 0)

    def to(self, device: torch.device, *, with_x: bool = True) -> Samples:
        """The same columns on another device; with `with_x=False`, x stays where it is."""
        conflict = None if self.conflict is None else self.conflict.to(device)
        x = self.x.to(device) if with_x else self.x
        y, bias = self.y.to(device), self.bias.to(device)
        return Samples(x, y, bias, conflict, self.x_sha256, self.length, self.groups)

    def read(self, plan: Sequence[Rows], indices: Sequence[Tensor] | None = None) -> Iterator[Tensor]:
        """Yield x of each batch of a plan, on the device of the labels. Texts are cut to the length the batch needs.

        If x is on the host and the labels are on a GPU, the next batches are read while the current one is in use.

        Args:
            plan: slices, or int64 indices on the host.
            indices: the same indices on the device of the labels, if available.
        """
        widths = self.widths(plan)
        xs = [self.x if width is None else self.x[:, :width] for width in widths]
        if self.x.device == self.y.device:
            for x, rows in zip(xs, plan if indices is None else indices, strict=True):
                yield x[rows.to(x.device)] if isinstance(rows, Tensor) else x[rows]
        else:
            yield from read_ahead(xs, plan, self.y.device)

    def widths(self, plan: Sequence[Tensor | slice]) -> Sequence[int | None]:
        """The number of tokens that each batch of a plan needs: its longest text, rounded up to a multiple of 32.

        It is computed for all batches at once, because lengths are on the host and the plan may be on the device. None
        for images and features.
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
        """Apply a function to all samples in batches, and join its results in the order of the samples.

        Batches of images and features follow the order of the samples; batches of texts hold texts of similar length.

        Args:
            function: (number of the batch, rows, x) -> (B, ...).
            batch_size: samples in a batch.
            what: what the function must do, for messages.

        Raises:
            BenchmarkError: the function returns anything but a tensor with one row per sample, or another shape or
                type than for the batches before.
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
            if not n_done:  # one tensor for all: many small results, kept one by one, would fragment the memory
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
        """SHA-256 of the shapes, types and bytes of all columns."""
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


def _unfit(column: Tensor) -> str:
    """Why a tensor cannot be a column, and what to do; "" if it can."""
    if column.is_nested or column.layout is not torch.strided:
        return "It is sparse or nested: make it dense (.to_dense(), .to_padded_tensor(...))."
    if column.requires_grad:
        return "It requires gradients: .detach() takes them off."
    if column.device.type == "meta":
        return "It is on the device meta, and has no values."
    return "" if column.ndim else "It is a single number."


@dataclass(frozen=True)
class Splits:
    """The splits of a dataset.

    `valid` has the bias of the training data. `tune`, if there is one, holds validation samples without the bias. It is
    used to choose settings without a published value, never to report results. `official` says whether counts and
    digests are those of the published data; `note` says what differs.
    """

    train: Samples
    valid: Samples
    test: Samples
    tune: Samples | None = None
    official: bool = True
    note: str = ""
    _fingerprint: list[str] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("train", "valid", "test", "tune"):
            part = getattr(self, name)
            if not isinstance(part, Samples) and not (part is None and name == "tune"):
                raise BenchmarkError(f"Splits: {name} must be Samples. Got {type(part).__name__}.")
        if not isinstance(self.official, bool):
            raise BenchmarkError(f"Splits: official must be True or False. Got {self.official!r}.")
        if not isinstance(self.note, str):
            raise BenchmarkError(f"Splits: note must be text. Got {self.note!r}.")

    @classmethod
    def of(cls, named: Mapping[str, Samples], *, official: bool = True, note: str = "") -> Splits:
        """Make splits from a mapping of split name -> samples; `tune` may be missing. The inverse of `named`."""
        if not {"train", "valid", "test"} <= set(named) <= {"train", "valid", "test", "tune"}:
            raise BenchmarkError(
                f"Splits: train, valid and test are needed, and tune is optional. Got {', '.join(named) or 'none'}."
            )
        values: dict[str, Any] = {**named, "official": official, "note": note}
        return cls(**values)

    def named(self) -> dict[str, Samples]:
        """Split name -> samples, for the splits that exist."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test, "tune": self.tune}
        return {name: samples for name, samples in parts.items() if samples is not None}

    def to(self, device: torch.device, *, fraction: float = 0.5) -> Splits:
        """The same splits on another device. x moves if all of it takes at most `fraction` of the free memory there.

        Splits that are the same object (a validation split that is the test split) move once and stay the same object.
        """
        different = {id(samples): samples for samples in self.named().values()}
        n_bytes = sum(samples.x.nbytes for samples in different.values())
        fits = device.type != "cuda" or n_bytes <= fraction * torch.cuda.mem_get_info(device)[0]
        moved = {key: samples.to(device, with_x=fits) for key, samples in different.items()}
        parts: dict[str, Any] = {name: moved[id(samples)] for name, samples in self.named().items()}
        return Splits(**parts, official=self.official, note=self.note, _fingerprint=self._fingerprint)

    @property
    def valid_is_test(self) -> bool:
        """Whether the "validation" split is the test split (as in LfF's code): nothing may be selected on it."""
        return self.valid is self.test or self.valid.fingerprint() == self.test.fingerprint()

    def fingerprint(self) -> str:
        """SHA-256 of the fingerprints of train, valid and test (tune does not affect results)."""
        if not self._fingerprint:
            parts = [part.fingerprint() for name, part in self.named().items() if name != "tune"]
            self._fingerprint.append(hashlib.sha256("".join(parts).encode()).hexdigest())
        return self._fingerprint[0]


def stratified(y: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split each class at random: the rows of all but `fraction` of each class, and the rows of that fraction.

    Args:
        y: int64 (N,), the labels.
        fraction: of each class, in [0, 1]; the number of samples is rounded.
        generator: draws the samples.

    Returns:
        Two tensors of rows, int64, in ascending order.
    """
    taken = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        members = torch.nonzero(y == label)[:, 0]
        order = torch.randperm(len(members), generator=generator)
        taken[members[order[: round(fraction * len(members))]]] = True
    return torch.nonzero(~taken)[:, 0], torch.nonzero(taken)[:, 0]


def draw_of_class(labels: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """For each of the labels `wanted` (N,), draw the row of a sample with that label, with replacement: int64 (N,).

    `labels` must contain each of the wanted labels.
    """
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    drawn = torch.randint(2**62, wanted.shape, generator=generator) % counts[wanted]  # not exactly uniform, by 1e-15
    return order[starts[wanted] + drawn]
