"""The small networks: SimConv-1, SimConv-2, the multi-layer perceptron and a linear layer; and SimConv's dropout."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debiasbench.nets.base import Net


class HalfDropout(nn.Module):
    """Element-wise dropout with p = 0.5, with a mask of random bits.

    Drawing one bit per value instead of one float makes the mask almost free: with `nn.Dropout` it takes half of a
    SimConv step on a CPU. On a GPU this uses torch's dropout, which is one kernel.

    `inplace` writes into the input, which nothing else may need (such as the output of batch normalisation).
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """Zero half of the values and double the others; in eval mode, return x."""
        if not self.training:
            return x
        if x.is_cuda:
            return F.dropout(x)
        return x.mul_(half_mask(x)) if self.inplace else x * half_mask(x)


_BIT_TABLES: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _bit_table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(256, 8): row b holds the eight bits of byte b, as 0 or 2."""
    key = (device, dtype)
    if key not in _BIT_TABLES:
        bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
        _BIT_TABLES[key] = (2 * bits).to(device, dtype)
    return _BIT_TABLES[key]


def half_mask(like: Tensor) -> Tensor:
    """A mask of zeros and twos, each with probability 1/2, in the shape and memory layout of `like`."""
    n_values = like.numel()
    words = torch.empty((n_values + 63) // 64, dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None)  # the full range: 64 fair bits per word
    table = _bit_table(like.device, like.dtype)
    flat = table.index_select(0, words.view(torch.uint8).int()).view(-1)[:n_values]
    return flat.as_strided(like.shape, like.stride()) if _dense(like) else flat.view(like.shape)


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


class SimConv1(Net):
    """The paper's network for Colored MNIST (appendix B; equal in the official code): 38,210 parameters.

    Input (B, 3, 28, 28), no padding; spatial 28 -> 25 -> 12 -> 9 -> 4 -> 1. The third block has ReLU *before*
    batch normalisation, so features can be negative. Dropout comes before ReLU instead of after it. This gives the same
    values (a mask is never negative) and lets both work in place, which saves a tenth of a step.
    """

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *[nn.Conv2d(shape[0], 8, 4), nn.BatchNorm2d(8), HalfDropout(True), nn.ReLU(True), nn.AvgPool2d(2)],
            *[nn.Conv2d(8, 32, 4), nn.BatchNorm2d(32), HalfDropout(True), nn.ReLU(True), nn.AvgPool2d(2)],
            *[nn.Conv2d(32, 64, 4), nn.ReLU(), nn.BatchNorm2d(64), HalfDropout()],
        )
        self.n_features = 64
        self.head = nn.Linear(64, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, 28, 28) -> (B, 64)."""
        return self.body(x).mean((2, 3))  # the CUDA gradient of adaptive pooling is not deterministic


class SimConv2(Net):
    """The paper's network for Multi-bias MNIST (appendix B): 140,634 parameters.

    Input (B, 3, 56, 56). The printed pooling, 3 x 3 with stride 3, runs out of pixels: below 87 there is no output.
    `pool=2` (default here) pools 2 x 2 (56 -> 50 -> 25 -> 19 -> 9 -> 5 -> 3). `pool=3` pools 3 x 3 as printed, with
    padded convolutions that keep the size (56 -> 18 -> 6). Blocks 3 and 4 have ReLU *before* batch normalisation.
    """

    def __init__(self, shape: tuple[int, ...], n_classes: int, *, pool: int = 2) -> None:
        super().__init__()
        padding: int | str = 0 if pool == 2 else "same"
        self.body = nn.Sequential(
            *[nn.Conv2d(shape[0], 8, 7, padding=padding), nn.BatchNorm2d(8), HalfDropout(True), nn.ReLU(True)],
            nn.AvgPool2d(pool),
            *[nn.Conv2d(8, 32, 7, padding=padding), nn.BatchNorm2d(32), HalfDropout(True), nn.ReLU(True)],
            nn.AvgPool2d(pool),
            *[nn.Conv2d(32, 64, 5, padding=padding), nn.ReLU(), nn.BatchNorm2d(64), HalfDropout()],
            *[nn.Conv2d(64, 128, 3, padding=padding), nn.ReLU(), nn.BatchNorm2d(128), HalfDropout()],
        )
        self.n_features = 128
        self.head = nn.Linear(128, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, 56, 56) -> (B, 128)."""
        return self.body(x).mean((2, 3))


class Linear(Net):
    """A linear layer on unchanged features (D,): D x C + C parameters, all in the head."""

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        (self.n_features,) = shape
        self.head = nn.Linear(self.n_features, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the features (B, D) unchanged."""
        return x


class MLP(Net):
    """Three hidden layers on flat pixels, as in the official LfF and Disen code, or on features (D,).

    The official networks divide images that are already in [0, 1] by 255 once more. This one does the same, because
    the published results include it. Features are not changed.
    """

    def __init__(self, shape: tuple[int, ...], n_classes: int, *, width: int = 100) -> None:
        super().__init__()
        n_inputs = prod(shape)
        self.divisor = 255 if len(shape) == 3 else 1
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in, n_out in [(n_inputs, 100), (100, 100), (100, width)]:
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.n_features = width
        self.head = nn.Linear(width, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1], or features (B, D) -> (B, width)."""
        return self.body(x.contiguous() / self.divisor)
