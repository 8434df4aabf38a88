"""Batches: the order of the samples of an epoch, their rows, and what a loss sees of a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from debiasbench.data.augment import augmented
from debiasbench.errors import DivergedError
from debiasbench.randomness import derived_generator, derived_seed
from debiasbench.recipe import Recipe
from debiasbench.samples import Samples

State = dict[str, Tensor]
Loss = Callable[[Any, "Batch", State], Tensor | tuple[Tensor, State]]
Layout = Callable[[torch.Generator], list[Tensor]]
Sample = Tensor | Layout | None

READERS, AHEAD = 4, 8  # threads and batches, where images are read from the host while the device works


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
        x: float32 (B, C, H, W), augmented and normalised; for text, token numbers (B, L), -1 where it is padded.
        y: int64 (B,). index: int64 (B,), into the training set. perm: int64 (B,), a permutation of the batch.
        step, epoch: int64 (), 0-based in the stage. n_steps: int64 (), steps of the whole stage.
        y_all: int64 (N,), all labels of the training set.
        bias: int64 (B, A), only for a method that declares `needs_bias_labels`.
        Declared columns, by name: (B, ...).
    """

    x: Tensor
    y: Tensor
    index: Tensor
    perm: Tensor
    step: Tensor
    epoch: Tensor
    n_steps: Tensor
    y_all: Tensor

    def __getattr__(self, name: str) -> Tensor:
        """Declared columns are found; of others, say what a batch holds, and why `bias` is not there."""
        if name == "bias":
            raise AttributeError("batch.bias is only there for a method that declares needs_bias_labels = True")
        raise AttributeError(f"a batch has no '{name}'; it has {', '.join(sorted(vars(self)))}")


def fetched(samples: Samples, plan: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The indices and the rows of x (on the device) of each batch of a plan.

    Where x did not fit on the device, the next batches are read while one is trained on.
    """
    widths = samples.widths(plan)
    if samples.x.device == samples.y.device:
        for index, width in zip(plan, widths, strict=True):
            yield index, samples.rows(index, width)
        return
    hosts = [index.cpu() for index in plan]  # all at once: each of these waits for the device
    with ThreadPoolExecutor(READERS) as pool:
        coming = deque(map(pool.submit, repeat(samples.rows), hosts[:AHEAD], widths))
        try:
            for number, index in enumerate(plan):
                x = coming.popleft().result()
                if number + AHEAD < len(hosts):
                    coming.append(pool.submit(samples.rows, hosts[number + AHEAD], widths[number + AHEAD]))
                yield index, x
        finally:
            for future in coming:
                future.cancel()


def make_batch(
    source: Source,
    recipe: Recipe,
    index: Tensor,
    x: Tensor,
    place: tuple[int, int, int, int],
    *,
    n_steps: Tensor,
    columns: Mapping[str, Tensor],
) -> Batch:
    """Augment one batch; x are its rows as stored. `place` is (seed, call, epoch, step): all randomness follows it.

    Dropout layers draw from the global generators, so these are set as well: call it inside `fork_rng`.
    """
    device = index.device
    batch = Batch(
        x=augmented(x, recipe, derived_generator("augment", *place, device=device)),
        y=source.samples.y[index],
        index=index,
        perm=torch.randperm(
            len(index), generator=derived_generator("permutation", *place, device=device), device=device
        ),
        step=torch.tensor(place[3], device=device),
        n_steps=n_steps,
        epoch=torch.tensor(place[2], device=device),
        y_all=source.samples.y,
        **{name: column[index] for name, column in columns.items()},
    )
    if source.with_bias:
        batch.bias = source.samples.bias[index]
    # torch.manual_seed would do, but it walks the stack at each call until CUDA is in use
    torch.default_generator.manual_seed(derived_seed("dropout", *place))
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(derived_seed("dropout", *place))
    return batch


def plan_epoch(
    sample: Sample,
    *,
    n_samples: int,
    batch_size: int,
    generator: torch.Generator,
    drop_last: bool = False,
    draws: int | None = None,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Lay out one epoch as batches of indices.

    sample: None: each sample once, shuffled. Float (N,): `draws` (default N) independent draws with replacement,
        in proportion to the values. Int64 (N,): so many copies of each sample, shuffled. Callable: lays out the
        batches itself, from a generator; `len()` of it, where it has one, is how many an epoch has.

    The last batch is kept as a smaller one unless `drop_last`; a tail of one sample joins the batch before it, as
    batch normalisation cannot train on one.
    """
    if callable(sample):
        return [batch.to(device) for batch in sample(generator)]
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
    batches = list(order.to(device).split(batch_size))
    if len(batches) > 1 and drop_last and len(batches[-1]) < batch_size:
        batches.pop()
    elif len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


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
    """Refuse samplings that would train on something else than meant."""
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
