"""Colouring of grey digits: what the Colored MNIST datasets share."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from debiasbench.recipe import Recipe

Palette = tuple[tuple[int, ...], ...]  # one colour per value, as RGB in 0..255

TEST_RATIO = 0.9  # conflict ratio: with ten values, the bias is then independent of the label
# PGD paper, Table 6, and the augmentation of the official code.
COLOURED_MNIST_RECIPE = Recipe(
    net="simconv1", epochs=100, batch_size=128, learning_rate=0.02, weight_decay=1e-3,
    crop_scale=(0.9, 1.1), saturation=0.05, hue=0.05, rotation=10.0,
)  # fmt: skip

# Colours of the digits 0..9 in the official PGD generator, as RGB in 0..255. They are fixed there, although the paper
# says that they were randomly selected.
PGD_PALETTE: Palette = (
    (220, 20, 60), (0, 128, 128), (253, 233, 16), (0, 149, 182), (237, 145, 33),
    (145, 30, 188), (70, 240, 240), (250, 197, 187), (210, 245, 60), (128, 0, 0),
)  # fmt: skip
# Those in the official LfF generator.
LFF_PALETTE: Palette = (
    (251, 80, 43), (253, 233, 90), (172, 118, 148), (200, 212, 153), (22, 198, 250),
    (82, 245, 114), (6, 60, 193), (142, 26, 194), (53, 100, 5), (213, 52, 68),
)  # fmt: skip


def random_palette(generator: Generator) -> Palette:
    """Draw ten colours uniformly among those bright enough to be visible on black."""
    drawn = torch.randint(0, 256, (200, 3), generator=generator)
    bright = drawn[drawn.amax(1) >= 128]
    return tuple(tuple(colour.tolist()) for colour in bright[:10])


def bernoulli_conflicts(y: Tensor, ratio: float, generator: Generator, *, n_values: int = 10) -> Tensor:
    """Bias labels (N,): each sample conflicts with probability `ratio`; its value is then uniform among the others."""
    conflicting = torch.rand(len(y), generator=generator, dtype=torch.float64) < ratio
    return _with_conflicts(y, conflicting, generator, n_values)


def exact_conflicts(y: Tensor, ratio: float, generator: Generator, *, n_values: int = 10) -> Tensor:
    """Bias labels (N,): in each class, exactly round(ratio N_c) randomly drawn samples conflict."""
    conflicting = torch.zeros(len(y), dtype=torch.bool)
    for label in range(n_values):
        members = torch.nonzero(y == label)[:, 0]
        order = torch.randperm(len(members), generator=generator)
        conflicting[members[order[: round(ratio * len(members))]]] = True
    return _with_conflicts(y, conflicting, generator, n_values)


def block_conflicts(y: Tensor, ratio: float) -> Tensor:
    """Bias labels (N,) as the official LfF generator assigns them: in blocks of the dataset order, without randomness.

    Within a class, blocks end at round(N_c * cumulative fraction). The fraction is 1 - ratio for the aligned value and
    ratio / 9 for each other value; blocks are in the order of the bias values.
    """
    bias = torch.empty_like(y)
    for label in range(10):
        fraction = torch.full((10,), ratio / 9, dtype=torch.float64)
        fraction[label] = 1 - ratio
        members = torch.nonzero(y == label)[:, 0]
        ends = torch.round(fraction.cumsum(0) * len(members)).long()
        bias[members] = torch.searchsorted(ends, torch.arange(len(members)), right=True).clamp_max(9)
    return bias


def _with_conflicts(y: Tensor, conflicting: Tensor, generator: Generator, n_values: int) -> Tensor:
    shift = torch.randint(1, n_values, (len(y),), generator=generator)  # uniform over the other values
    return torch.where(conflicting, (y + shift) % n_values, y)


def colour(grey: Tensor, bias: Tensor, palette: Palette, noise: float, generator: Generator) -> Tensor:
    """Grey digits uint8 (N, 28, 28) -> coloured on black, uint8 (N, 3, 28, 28).

    The colour of each sample is its palette entry plus normal noise in each channel, with standard deviation `noise`
    for colours in [0, 1]. Values are truncated to whole grey levels, as in torchvision's ToPILImage.
    """
    colours = torch.tensor(palette, dtype=torch.float32)[bias] / 255
    colours = colours + noise * torch.randn(colours.shape, generator=generator)
    parts = [
        (some_grey[:, None].float() / 255 * some_colours[:, :, None, None]).clamp_(0, 1).mul_(255).to(torch.uint8)
        for some_grey, some_colours in zip(grey.split(5000), colours.split(5000), strict=True)
    ]
    return torch.cat(parts)
