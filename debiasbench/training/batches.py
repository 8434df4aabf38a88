"""Batches: the order of the samples in an epoch, their values, and what a loss receives in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from math import prod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from debiasbench.data.augment import augmented, augments
from debiasbench.errors import BenchmarkError, DivergedError
from debiasbench.nets.base import Nets
from debiasbench.randomness import derived_generator, derived_seed, seed_dropout
from debiasbench.recipe import Recipe
from debiasbench.samples import Samples

State = dict[str, Tensor]
Value = Tensor | dict[str, Tensor]  # one number, or named terms
Loss = Callable[[Nets, "Batch", State], Value | tuple[Value, State]]
Layout = Callable[[torch.Generator], list[Tensor]]
Sample = Tensor | Layout | None
Noise = Mapping[str, torch.distributions.Distribution]

AT_ONCE = 10_000_000  # values of images that a GPU augments at once; with fewer, kernel launches take most of the time


@dataclass(frozen=True)
class Source:
    """The source of a cell's batches: the training samples, the seed, and whether batches include the bias."""

    samples: Samples
    seed: int
    with_bias: bool = False

    @property
    def device(self) -> torch.device:
        """The device of batches; images that do not fit there may be on the host."""
        return self.samples.y.device


class Batch(SimpleNamespace):
    """What a loss receives in one step.

    Attributes:
        x: images, float32 (B, C, H, W), augmented and normalised; or token numbers (B, L), -1 where padded; or
            features, float32 (B, D).
        y: int64 (B,), the labels.
        index: int64 (B,), the positions in the training set.
        step, epoch: int64 (), counted from 0 in the stage.
        n_steps: int64 (), steps of the whole stage.
        y_all: int64 (N,), all labels of the training set.
        bias: int64 (B, A), only for a method that declares `needs_bias_labels`.
        views: float32 (V, B, C, H, W), in a stage with `views=V`; the first is x.
        Declared columns, by name: (B, ...). Declared noise, by name: (B,).
    """

    __slots__ = ("_place",)  # so that `vars(batch)` holds only tensors

    x: Tensor
    y: Tensor
    index: Tensor
    step: Tensor
    epoch: Tensor
    n_steps: Tensor
    y_all: Tensor
    _place: tuple[int, ...] | None

    def __init__(self, place: tuple[int, ...] | None = None, /, **values: Tensor) -> None:
        """`place` is (seed, call, epoch, step), and the part if any; it determines the permutation if none is given."""
        super().__init__(**values)
        self._place = place

    @cached_property
    def perm(self) -> Tensor:
        """A permutation of the batch, int64 (B,); drawn at the first access."""
        if self._place is None:
            raise AttributeError
        generator = derived_generator("permutation", *self._place, device=self.index.device)
        return torch.randperm(len(self.index), generator=generator, device=self.index.device)

    def parts(self, n: int) -> Iterator[Batch]:
        """At most `n` parts of similar size with at least two samples each; values not per sample are in every part."""
        size = max(2, -(-len(self.index) // n))
        common = ("step", "epoch", "n_steps", "y_all")
        values = vars(self)
        for part, rows in enumerate(joined_tail(torch.arange(len(self.index)).split(size))):
            start, length = int(rows[0]), len(rows)
            yield Batch(
                None if self._place is None else (*self._place, part),
                **{
                    name: value if name in common else value.narrow(int(name == "views"), start, length)
                    for name, value in values.items()
                },
            )

    if TYPE_CHECKING:  # undeclared names of a SimpleNamespace would be Any

        def __getattribute__(self, name: str) -> Tensor: ...

    def __getattr__(self, name: str) -> Tensor:
        """Called only for unknown names: says what a batch holds, and why `bias` is not there."""
        if name == "bias":
            raise AttributeError("batch.bias is only there for a method that declares needs_bias_labels = True")
        known = sorted({*vars(self), "perm"} - {name})
        raise AttributeError(f"a batch has no '{name}'; it has {', '.join(known)}")


@dataclass(frozen=True)
class Contents:
    """What a stage puts into its batches besides the samples.

    Attributes:
        columns: per-sample values (N, ...), on the device, gathered by name.
        noise: distributions of one number per sample, drawn anew each time the sample is drawn.
        views: number of augmented views of each image.
        inputs: per-sample values (N, ...) used as x instead of the images, which are then not read or augmented.
    """

    columns: Mapping[str, Tensor] = field(default_factory=dict)
    noise: Noise = field(default_factory=dict)
    views: int = 1
    inputs: Tensor | None = None

    def check(self, samples: Samples, recipe: Recipe) -> None:
        """Refuse contents that a batch cannot have.

        Raises:
            ValueError: a column has another length; a batch already has a name.
            BenchmarkError: there are no different views, for which the recipe may be the reason.
        """
        n_samples = len(samples)
        for name, column in [*self.columns.items(), *([("inputs", self.inputs)] if self.inputs is not None else [])]:
            if len(column) != n_samples:
                raise ValueError(f"Column '{name}' has {len(column)} rows; there are {n_samples} samples.")
        own = {*Batch.__annotations__, "perm", "bias", "views"}
        taken = [name for name in [*self.columns, *self.noise] if name in own]
        taken += [name for name in self.noise if name in self.columns]
        if taken:
            raise ValueError(f"A batch has {', '.join(taken)} already: give the column or the noise another name.")
        for name, distribution in self.noise.items():
            if distribution.batch_shape or distribution.event_shape:
                raise ValueError(f"noise={name} must be a distribution of one number (of shape ()).")
        if self.views < 1:
            raise ValueError(f"views= must be at least 1. Got {self.views}.")
        if self.views > 1 and (self.inputs is not None or samples.x.ndim != 4 or not augments(recipe)):
            raise BenchmarkError(
                f"views={self.views} are augmented anew from one image: they need images and a recipe that augments."
            )

    def noise_of_epoch(self, n: int, seed: int, call: int, epoch: int, device: torch.device) -> dict[str, Tensor]:
        """Noise for the `n` samples of an epoch, in the order of its batches; depends only on (seed, call, epoch)."""
        drawn = {}
        for number, (name, distribution) in enumerate(sorted(self.noise.items())):
            with torch.random.fork_rng(devices=[]):  # distributions draw from the global generator
                torch.default_generator.manual_seed(derived_seed("noise", seed, call, epoch, number))
                drawn[name] = distribution.sample((n,)).to(device)
        return drawn


def n_at_once(samples: Samples, recipe: Recipe, contents: Contents) -> int:
    """How many batches are gathered and augmented together: on a GPU, enough small images to keep it busy."""
    if samples.y.device.type != "cuda" or samples.x.ndim != 4 or contents.inputs is not None:
        return 1
    return max(1, AT_ONCE // (recipe.batch_size * prod(recipe.input_shape(tuple(samples.x.shape[1:])))))


def gathered(
    source: Source,
    recipe: Recipe,
    index: Tensor,
    x: Tensor | None,
    place: tuple[int, int, int, int],
    contents: Contents,
) -> dict[str, Tensor]:
    """The contents of batches for the samples `index`, one row each; `x` are their stored rows, augmented here.

    `place` is (seed, call, epoch, step); it determines all randomness.
    """
    device = index.device
    rows = {"index": index, "y": source.samples.y[index]}
    rows |= {name: column[index] for name, column in contents.columns.items()}
    if source.with_bias:
        rows["bias"] = source.samples.bias[index]
    if x is None:
        assert contents.inputs is not None
        rows["x"] = contents.inputs[index]
        return rows
    rows["x"] = augmented(x, recipe, derived_generator("augment", *place, device=device))
    if contents.views > 1:
        others = [derived_generator("augment", *place, view, device=device) for view in range(1, contents.views)]
        rows["views"] = torch.stack([rows["x"], *(augmented(x, recipe, generator) for generator in others)])
    return rows


def batches_of_epoch(  # noqa: PLR0913 - the position is keyword-only
    source: Source,
    recipe: Recipe,
    plan: list[Tensor],
    contents: Contents,
    *,
    call: int,
    epoch: int,
    step: int,
    n_steps: int,
    skip: int = 0,
) -> Iterator[Batch]:
    """Yield the batches of an epoch, from step `step` of a stage with `n_steps`; call it inside `fork_rng`.

    The host waits for the device only for the copy of the plan, once per epoch. Dropout layers draw from the global
    generators, which are seeded for each batch.

    Args:
        source: where the batches come from.
        recipe: how to train.
        plan: the batches, int64 (B,) each, on the host.
        contents: what batches hold besides the samples.
        call: number of the call.
        epoch: number of the epoch, from 0.
        step: number of the first step, from 0.
        n_steps: number of steps in the stage.
        skip: how many batches of the epoch an earlier process has already trained on.
    """
    device = source.device
    n = n_at_once(source.samples, recipe, contents)
    chunks = [plan[start : start + n] for start in range(0, len(plan), n)]
    hosts = [torch.cat(chunk) for chunk in chunks]
    sizes = list(map(len, hosts))
    indices = torch.cat(plan).to(device).split(sizes)
    drawn = contents.noise_of_epoch(sum(sizes), source.seed, call, epoch, device)
    noise = {name: values.split(sizes) for name, values in drawn.items()}
    same = {
        "y_all": source.samples.y,
        "n_steps": torch.full((), n_steps, device=device),
        "epoch": torch.full((), epoch, device=device),
    }
    done = skip // n
    number = step - skip % n  # if an earlier process ended within a chunk, the whole chunk is augmented again
    xs = source.samples.read(hosts[done:], indices[done:]) if contents.inputs is None else repeat(None)
    for at, x in zip(range(done, len(chunks)), xs, strict=False):
        rows = gathered(source, recipe, indices[at], x, (source.seed, call, epoch, number), contents)
        rows |= {name: values[at] for name, values in noise.items()}
        start = 0
        for size in map(len, chunks[at]):
            if number == recipe.steps:
                return
            if number >= step:
                place = (source.seed, call, epoch, number)
                seed_dropout(device, *place)
                own = {name: value.narrow(int(name == "views"), start, size) for name, value in rows.items()}
                yield Batch(place, **own, **same, step=torch.full((), number, device=device))
            start += size
            number += 1


def check_finite(mean: float, *, call: int, epoch: int, rate: float) -> None:
    """Stop training if the loss is not a finite number.

    Raises:
        DivergedError: the loss is nan or infinite.
    """
    if mean != mean or mean in (float("inf"), float("-inf")):
        raise DivergedError(
            f"The training loss became {mean} in epoch {epoch} of training call {call}. "
            f"Lower the learning rate (now {rate:g}) or look at the loss for logarithms and divisions."
        )


def plan_epoch(
    sample: Sample,
    *,
    n_samples: int,
    batch_size: int,
    generator: torch.Generator,
    drop_last: bool = False,
    draws: int | None = None,
) -> list[Tensor]:
    """Lay out one epoch as batches of indices, on the host.

    The last batch is kept even if smaller, unless `drop_last`. A last batch of one sample joins the batch before it,
    because batch normalisation cannot train on one sample.

    Args:
        sample: None: each sample once, shuffled. Float (N,): `draws` (default N) independent draws with replacement,
            proportional to the values. Int64 (N,): the number of copies of each sample, shuffled. Callable: lays out
            the batches itself, from a generator; its `len()`, if it has one, is their number per epoch.
        n_samples: the number N of samples.
        batch_size: samples per batch.
        drop_last: leave out a smaller last batch.
        draws: number of draws, if `sample` has weights.
        generator: generator of the order.
    """
    if callable(sample):
        laid_out = [batch.cpu() for batch in sample(generator)]
        if not laid_out or min(map(len, laid_out)) == 0:
            raise ValueError(
                "The function that is given as sample= must lay out at least one batch, and no batch may be empty."
            )
        return laid_out
    if sample is None:
        order = torch.randperm(n_samples, generator=generator)
    elif sample.dtype == torch.int64:
        order = torch.arange(n_samples).repeat_interleave(sample.cpu())
        order = order[torch.randperm(len(order), generator=generator)]
    else:
        # float64, because in float32 the cumulative sum loses some of many small probabilities
        edges = sample.detach().cpu().double().cumsum(0)
        points = torch.rand(draws or n_samples, generator=generator, dtype=torch.float64) * edges[-1]
        order = torch.searchsorted(edges, points, right=True).clamp_max(n_samples - 1)
    batches = list(order.split(batch_size))
    if len(batches) > 1 and drop_last and len(batches[-1]) < batch_size:
        return batches[:-1]
    return joined_tail(batches)


def joined_tail(parts: Sequence[Tensor]) -> list[Tensor]:
    """The parts, with a last part of a single sample joined to the part before it."""
    if len(parts) > 1 and len(parts[-1]) == 1:
        return [*parts[:-2], torch.cat(list(parts[-2:]))]
    return list(parts)


def n_batches(n_draws: int, batch_size: int, *, drop_last: bool = False) -> int:
    """The number of batches that `plan_epoch` makes from `n_draws` samples."""
    full, rest = divmod(n_draws, batch_size)
    alone = full == 0  # the only batch is kept, however small
    return full + (rest > 0 and (alone or not (drop_last or rest == 1)))


def draws_of(sample: Sample, n_samples: int, draws: int | None) -> int | None:
    """The number of samples in an epoch; None if a function lays them out."""
    if callable(sample):
        return None
    if sample is None:
        return n_samples
    return int(sample.sum()) if sample.dtype == torch.int64 else draws or n_samples


def check_sample(sample: Any, n_samples: int, state: Mapping[str, Tensor]) -> None:
    """Reject `sample=` values that would silently train on the wrong distribution."""
    if sample is None or callable(sample):
        return
    if not isinstance(sample, Tensor) or sample.shape != (n_samples,):
        shape = tuple(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
        raise TypeError(f"sample must be None, a tensor of shape ({n_samples},) or a function. Got {shape}.")
    if not (sample.is_floating_point() or sample.dtype == torch.int64):
        raise TypeError(f"sample must be float (probabilities) or int64 (copies). Got {sample.dtype}.")
    values = sample.detach().double()
    if not bool(torch.isfinite(values).all()):
        raise DivergedError("The sampling probabilities hold values that are not finite: look at the scores.")
    if bool((values < 0).any()) or not bool((values > 0).any()):
        raise ValueError("sample must be at least 0 everywhere, and above 0 somewhere.")
    tables = tables_in(state, n_samples)
    if tables:
        raise ValueError(
            f"State tables ({', '.join(tables)}) cannot go with sampling that repeats samples: two rows of one batch "
            "would write to one place. Use sample=None, or keep the table in another stage."
        )


def tables_in(state: Mapping[str, Tensor], n_samples: int) -> list[str]:
    """The names of the per-sample tables in a state."""
    return [name for name, value in state.items() if value.ndim and len(value) == n_samples]
