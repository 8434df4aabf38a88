"""RandAugment (Cubuk, Zoph, Shlens, Le; NeurIPS 2020 workshops) for whole batches on their device.

The operations and their ranges are torchvision's. torchvision draws one operation for a whole batch; here each image
has its own. Images are first rounded to 8 bits, as in files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    from types import ModuleType

STEPS = 30  # the largest magnitude

Operation = Callable[["ModuleType", Tensor, float], Tensor]  # (torchvision's functions, uint8 (B, C, H, W), strength)


def _shear(x: float, y: float) -> Operation:
    def operation(vision: ModuleType, image: Tensor, strength: float) -> Tensor:
        angle = math.degrees(math.atan(0.3 * strength))
        return vision.affine(image, 0.0, [0, 0], 1.0, [x * angle, y * angle], center=[0, 0])

    return operation


def _translate(x: int, y: int) -> Operation:
    def operation(vision: ModuleType, image: Tensor, strength: float) -> Tensor:
        height, width = image.shape[2:]
        shift = [int(150 / 331 * strength * x * width), int(150 / 331 * strength * y * height)]
        return vision.affine(image, 0.0, shift, 1.0, [0.0, 0.0])

    return operation


def _adjust(what: str) -> Operation:
    return lambda vision, image, strength: getattr(vision, f"adjust_{what}")(image, 1 + 0.9 * strength)


SIGNED: tuple[Operation, ...] = (  # in both directions: strength in -1 .. 1
    _shear(1, 0), _shear(0, 1), _translate(1, 0), _translate(0, 1),
    lambda vision, image, strength: vision.rotate(image, 30 * strength),
    _adjust("brightness"), _adjust("saturation"), _adjust("contrast"), _adjust("sharpness"),
)  # fmt: skip
UNSIGNED: tuple[Operation, ...] = (  # strength in 0 .. 1
    lambda _, image, __: image,
    lambda vision, image, strength: vision.posterize(image, 8 - round(4 * strength)),
    lambda vision, image, strength: vision.solarize(image, 255 * (1 - strength)),
    lambda vision, image, _: vision.autocontrast(image),
    lambda vision, image, _: vision.equalize(image),
)
OPERATIONS = (  # each of the fourteen equally often
    *((operation, sign) for operation in SIGNED for sign in (1, -1)), *((operation, 1) for operation in 2 * UNSIGNED),
)  # fmt: skip


def rand_augmented(image: Tensor, n_operations: int, magnitude: int, generator: Generator) -> Tensor:
    """Apply `n_operations` random operations to each image, one after the other; each is drawn from the fourteen.

    Args:
        image: float (B, 3, H, W) in [0, 1].
        n_operations: number of operations per image.
        magnitude: 0 to 30.
        generator: on the device of the image.
    """
    from torchvision.transforms.v2 import functional as vision  # takes a second to import

    levels = image.mul(255).round_().to(torch.uint8)
    for _ in range(n_operations):
        drawn = torch.randint(len(OPERATIONS), (len(levels),), generator=generator, device=levels.device)
        order = drawn.argsort(stable=True)
        sizes = torch.bincount(drawn, minlength=len(OPERATIONS)).tolist()
        parts = zip(OPERATIONS, levels[order].split(sizes), strict=True)
        done = [apply(vision, part, sign * magnitude / STEPS) for (apply, sign), part in parts if len(part)]
        levels = torch.cat(done)[order.argsort()]
    return levels.to(image.dtype).div_(255)
