"""How a network is trained: the columns of the paper's Table 6, as one value that the dataset owns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from debiasbench.parameters import Parameters, above, at_least, between, one_of

if TYPE_CHECKING:
    import torch


class Recipe(Parameters):
    """Network, optimiser, schedule and augmentation of one training stage.

    Lengths are counted in epochs (passes of `draws` samples), or in optimiser steps if `steps` is given.
    `milestones` are fractions of the stage, so a shorter stage keeps the shape of its schedule: 100 epochs with a
    decay every 40 epochs are (0.4, 0.8).
    """

    name = "recipe"

    net: str = "simconv1"
    size: int | None = between(16, 4096, default=None)  # pixels per side of the network's input; none: as in the data
    pretrained: str = "none"  # "none": random weights; "imagenet": torchvision's; otherwise a file or an encoder
    precision: str = one_of("fp32", "tf32", "bf16", "auto", default="fp32")  # of matrix products. tf32: factors of
    # 10 bits on CUDA, otherwise fp32; bf16: by autocast, half the memory; auto: bf16 on CUDA, otherwise fp32
    recompute: bool = False  # ResNets: compute blocks again in the backward pass; less memory, equal results
    epochs: int = at_least(1, default=100)
    steps: int | None = at_least(1, default=None)  # optimiser steps of a stage; overrides `epochs`
    batch_size: int = between(2, 65536, default=128)
    accumulate: int = between(1, 65536, default=1)  # parts of a batch whose gradients are added up before a step, which
    # saves memory; batch normalisation, and losses that compare samples of a batch, see one part at a time
    drop_last: bool = False  # drop the last, smaller batch of an epoch
    optimizer: str = one_of("sgd", "adam", "adamw", default="sgd")
    learning_rate: float = above(0, default=0.02)
    momentum: float = between(0, 1, default=0.9)  # for SGD
    weight_decay: float = at_least(0, default=0.0)  # coupled (L2) for sgd and adam
    decayed: str = one_of("matrices", "wilds", default="matrices")  # for adamw; wilds: all but parameters named bias
    # or LayerNorm.weight, as in WILDS' examples
    schedule: str = one_of("step", "cosine", "linear", "constant", default="step")
    milestones: tuple[float, ...] = (0.4, 0.8)  # for schedule=step: multiply the learning rate by gamma at each
    gamma: float = between(0, 1, default=0.1)
    warm_up: float = between(0, 1, default=0.0)  # fraction of steps in which the learning rate rises linearly
    clip_norm: float | None = above(0, default=None)  # maximum norm of the gradient of each network
    label_smoothing: float = between(0, 1, default=0.0)  # of cross-entropy, only in training losses

    augment: bool = True
    crop_scale: tuple[float, ...] | None = None  # RandomResizedCrop: area as a fraction of the image
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    pad_crop: int = between(0, 4096, default=0)  # RandomCrop after zero padding, in pixels
    flip: bool = False
    saturation: float = at_least(0, default=0.0)  # ColorJitter: factor in [1 - s, 1 + s]
    hue: float = between(0, 0.5, default=0.0)  # ColorJitter: shift in turns
    rotation: float = between(0, 180, default=0.0)  # degrees to either side; nearest neighbour, filled with 0
    rand_augment: int = between(0, 14, default=0)  # RandAugment after all of these: operations per image
    rand_magnitude: int = between(0, 30, default=9)  # strength of these operations
    mean: tuple[float, ...] | None = None  # per channel, for pixels in [0, 1]
    std: tuple[float, ...] | None = None

    eval_every: int = at_least(1, default=1)  # epochs between evaluations of a stage with a predictor

    def check_channels(self, n_channels: int) -> None:
        """Refuse images with a number of channels that the augmentation or the normalisation does not take.

        Raises:
            BenchmarkError: names the fields that do not take it.
        """
        from debiasbench.errors import BenchmarkError

        allowed = {"saturation": (3,), "hue": (3,), "rand_augment": (1, 3)} if self.augment else {}
        for name, counts in allowed.items():
            if getattr(self, name) and n_channels not in counts:
                raise BenchmarkError(
                    f"The recipe's '{name}' needs images with {' or '.join(map(str, counts))} channels. These have "
                    f"{n_channels}: set {name}=0."
                )
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            if numbers is not None and len(numbers) not in (1, n_channels):
                raise BenchmarkError(
                    f"The recipe's '{name}' has {len(numbers)} numbers, but the images have {n_channels} channels: "
                    f"give 1 number, or {n_channels}."
                )

    def check(self) -> None:
        """Refuse combinations of values that do not go together."""
        from debiasbench.errors import BenchmarkError

        if self.accumulate > self.batch_size // 2:
            raise BenchmarkError(
                f"The recipe's 'accumulate' leaves each part of a batch at least two samples, as batch normalisation "
                f"needs: at most {self.batch_size // 2} with batch_size={self.batch_size}. Got {self.accumulate}."
            )
        if (self.mean is None) != (self.std is None):
            raise BenchmarkError("The recipe needs both 'mean' and 'std', or neither.")
        for key in ("crop_scale", "crop_ratio"):
            value = getattr(self, key)
            if value is not None and (len(value) != 2 or not 0 < value[0] <= value[1]):
                raise BenchmarkError(f"The '{key}' of a recipe must be two increasing numbers above 0. Got {value!r}.")
        if self.std is not None and min(self.std, default=1.0) <= 0:
            raise BenchmarkError(f"The 'std' of a recipe must be numbers above 0. Got {self.std!r}.")
        if any(not 0 <= at <= 1 for at in self.milestones):
            raise BenchmarkError(
                f"The 'milestones' of a recipe are fractions of the stage in [0, 1]. Got {self.milestones!r}."
            )

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The precision as a context for the forward pass."""
        import torch

        enabled = self.effective_precision(device.type) == "bf16"
        return torch.autocast(device.type, torch.bfloat16, enabled=enabled)

    @contextmanager
    def tf32(self, device: torch.device) -> Iterator[None]:
        """A context for both passes. With `precision=tf32`, a GPU rounds the factors of products in it."""
        import torch

        if self.effective_precision(device.type) != "tf32":
            yield
            return
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before

    def effective_precision(self, device_kind: str) -> str:
        """The precision that is really used on "cpu" or "cuda": "fp32", "tf32" or "bf16"."""
        if self.precision == "auto":
            return "bf16" if device_kind == "cuda" else "fp32"
        return "fp32" if self.precision == "tf32" and device_kind != "cuda" else self.precision

    def input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the network gets for samples of `shape`. Images (C, H, W) are resized, others are not."""
        return (*shape[:1], self.size, self.size) if self.size and len(shape) == 3 else shape
