"""Batches: the order of the samples of an epoch, their rows, and what a loss sees of a step."""

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

AT_ONCE = 10_000_000  # values of images that a GPU augments at once: of fewer, starting its kernels takes the time


@dataclass(frozen=True)
class Source:
    """Where the batches of a cell come from: the training samples, the seed, and whether a batch tells the bias."""

    samples: Samples
    seed: int
    with_bias: bool = False

    @property
    def device(self) -> torch.device:
        """Where batches are; images that do not fit there may be on the host."""
        return self.samples.y.device


class Batch(SimpleNamespace):
    """What a loss sees of one step.

    Attributes:
        x: float32 (B, C, H, W), augmented and normalised; for text, token numbers (B, L), -1 where it is padded; of
            features, float32 (B, D).
        y: int64 (B,). index: int64 (B,), into the training set.
        step, epoch: int64 (), 0-based in the stage. n_steps: int64 (), steps of the whole stage.
        y_all: int64 (N,), all labels of the training set.
        bias: int64 (B, A), only for a method that declares `needs_bias_labels`.
        views: float32 (V, B, C, H, W), of a stage with `views=V`; the first is x.
        Declared columns, by name: (B, ...). Declared noise, by name: (B,).
    """

    __slots__ = ("_place",)  # what a batch holds else, `vars(batch)`, are tensors alone

    x: Tensor
    y: Tensor
    index: Tensor
    step: Tensor
    epoch: Tensor
    n_steps: Tensor
    y_all: Tensor
    _place: tuple[int, ...] | None

    def __init__(self, place: tuple[int, ...] | None = None, /, **values: Tensor) -> None:
        """`place`: (seed, call, epoch, step), and which part, which the permutation follows where it is not given."""
        super().__init__(**values)
        self._place = place

    @cached_property
    def perm(self) -> Tensor:
        """int64 (B,), a permutation of the batch; drawn when it is asked for."""
        if self._place is None:
            raise AttributeError
        generator = derived_generator("permutation", *self._place, device=self.index.device)
        return torch.randperm(len(self.index), generator=generator, device=self.index.device)

    def parts(self, n: int) -> Iterator[Batch]:
        """At most `n` parts of like size, of two samples and more; what is not a sample's own is the same in each."""
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

    if TYPE_CHECKING:  # of names that it does not declare, a SimpleNamespace says Any

        def __getattribute__(self, name: str) -> Tensor: ...

    def __getattr__(self, name: str) -> Tensor:
        """Declared columns are found; of others, say what a batch holds, and why `bias` is not there."""
        if name == "bias":
            raise AttributeError("batch.bias is only there for a method that declares needs_bias_labels = True")
        known = sorted({*vars(self), "perm"} - {name})
        raise AttributeError(f"a batch has no '{name}'; it has {', '.join(known)}")


@dataclass(frozen=True)
class Contents:
    """What a stage puts into its batches besides the samples.

    Attributes:
        columns: per-sample values (N, ...), on the device, gathered by name.
        noise: distributions of a number a sample, drawn anew each time that the sample is.
        views: how many augmented views there are of each image.
        inputs: per-sample values (N, ...) in place of the images, which are then neither gathered nor augmented.
    """

    columns: Mapping[str, Tensor] = field(default_factory=dict)
    noise: Noise = field(default_factory=dict)
    views: int = 1
    inputs: Tensor | None = None

    def check(self, samples: Samples, recipe: Recipe) -> None:
        """Refuse what cannot be put into a batch.

        Raises:
            ValueError: columns of another length; names that a batch has already.
            BenchmarkError: views of what has none, which the recipe may decide.
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
        """Noise of the `n` samples of an epoch, in the order of its batches; a function of its place alone."""
        drawn = {}
        for number, (name, distribution) in enumerate(sorted(self.noise.items())):
            with torch.random.fork_rng(devices=[]):  # distributions draw from the global generator
                torch.default_generator.manual_seed(derived_seed("noise", seed, call, epoch, number))
                drawn[name] = distribution.sample((n,)).to(device)
        return drawn


def n_at_once(samples: Samples, recipe: Recipe, contents: Contents) -> int:
    """How many batches are gathered and augmented together: on a GPU, as many small images as keep it busy."""
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
    """What batches hold of the samples `index`, a row each; x are their rows as stored, augmented here.

    `place` is (seed, call, epoch, step): all randomness follows it.
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


def batches_of_epoch(  # noqa: PLR0913 - where it is, keyword-only
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
    """The batches of an epoch, from step `step` of a stage of `n_steps`: call it inside `fork_rng`.

    Nothing here makes the host wait for the device but the copy of the plan, once an epoch. Dropout layers draw from
    the global generators, which are set for each batch.

    Args:
        plan: int64 (B,) a batch, on the host.
        skip: how many batches of the epoch were trained on before, by an earlier process.
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
    number = step - skip % n  # an earlier process may have ended within a chunk: that is augmented as a whole again
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
    """Refuse to go on with a loss that is no number.

    Raises:
        DivergedError: it is nan or infinite.
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

    sample: None: each sample once, shuffled. Float (N,): `draws` (default N) independent draws with replacement,
        in proportion to the values. Int64 (N,): so many copies of each sample, shuffled. Callable: lays out the
        batches itself, from a generator; `len()` of it, where it has one, is how many an epoch has.

    The last batch is kept as a smaller one unless `drop_last`; a tail of one sample joins the batch before it, as
    batch normalisation cannot train on one.
    """
    if callable(sample):
        laid_out = [batch.cpu() for batch in sample(generator)]
        if not laid_out or min(map(len, laid_out)) == 0:
            raise ValueError(
                "The function that is given as sample= must lay out at least one batch, and none is empty."
            )
        return laid_out
    if sample is None:
        order = torch.randperm(n_samples, generator=generator)
    elif sample.dtype == torch.int64:
        order = torch.arange(n_samples).repeat_interleave(sample.cpu())
        order = order[torch.randperm(len(order), generator=generator)]
    else:
        # float64: in float32 the running sum of many small probabilities loses some of them
        edges = sample.detach().cpu().double().cumsum(0)
        points = torch.rand(draws or n_samples, generator=generator, dtype=torch.float64) * edges[-1]
        order = torch.searchsorted(edges, points, right=True).clamp_max(n_samples - 1)
    batches = list(order.split(batch_size))
    if len(batches) > 1 and drop_last and len(batches[-1]) < batch_size:
        return batches[:-1]
    return joined_tail(batches)


def joined_tail(parts: Sequence[Tensor]) -> list[Tensor]:
    """Parts of which none is a single sample: one at the end joins the part before it."""
    if len(parts) > 1 and len(parts[-1]) == 1:
        return [*parts[:-2], torch.cat(list(parts[-2:]))]
    return list(parts)


def n_batches(n_draws: int, batch_size: int, *, drop_last: bool = False) -> int:
    """How many batches `plan_epoch` lays out of `n_draws` samples."""
    full, rest = divmod(n_draws, batch_size)
    alone = full == 0  # a single batch is kept, however small
    return full + (rest > 0 and (alone or not (drop_last or rest == 1)))


def draws_of(sample: Sample, n_samples: int, draws: int | None) -> int | None:
    """How many samples an epoch has; None where a function lays them out."""
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
        raise ValueError("sample must not be negative anywhere, and above 0 somewhere.")
    tables = tables_in(state, n_samples)
    if tables:
        raise ValueError(
            f"State tables ({', '.join(tables)}) cannot go with sampling that repeats samples: two rows of one batch "
            "would write to one place. Use sample=None, or keep the table in another stage."
        )


def tables_in(state: Mapping[str, Tensor], n_samples: int) -> list[str]:
    """Names of the per-sample tables in a state."""
    return [name for name, value in state.items() if value.ndim and len(value) == n_samples]
