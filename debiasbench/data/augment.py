"""Augmentation of whole batches on their device, with the distributions of torchvision's per-image transforms.

Parameters are drawn per sample. Crop and rotation are one resampling that equals torchvision's two: the rotation
(nearest) picks pixels of the cropped and resized image, so its source coordinates are rounded to the grid of that
image and clamped to the crop before the bilinear sampling of the crop. A single bilinear resampling of both would
differ in a quarter of the pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from debiasbench.data.rand_augment import rand_augmented
from debiasbench.recipe import Recipe

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's grey


def to_input(x: Tensor, recipe: Recipe) -> Tensor:
    """uint8 (B, C, H, W) in 0..255 -> float32 in [0, 1], resized and normalised by the recipe, channels last.

    Token numbers (B, L) and features (B, D) are returned as they are.
    """
    if x.ndim == 2:
        return x
    if _keeps_size(x, recipe):
        x = x.contiguous(memory_format=torch.channels_last)  # copying bytes is faster than copying floats
    image = _resized(x.to(torch.float32).div_(255), recipe)
    return _normalised(image, recipe).contiguous(memory_format=torch.channels_last)


def augmented(x: Tensor, recipe: Recipe, generator: Generator) -> Tensor:
    """Like `to_input`, with the recipe's augmentation (if it is on) drawn from `generator` (on x's device)."""
    if not recipe.augment or x.ndim == 2:
        return to_input(x, recipe)
    image = x.to(torch.float32).div_(255)
    if recipe.crop_scale is None:
        image = _resized(image, recipe)
    if recipe.crop_scale is not None or recipe.rotation:
        image = _crop_and_rotate(image, recipe, generator)
    if recipe.pad_crop:
        image = _pad_crop(image, recipe.pad_crop, generator)
    if recipe.flip:
        flipped = torch.rand(len(image), generator=generator, device=image.device) < 0.5
        image = torch.where(flipped[:, None, None, None], image.flip(3), image)
    if recipe.saturation or recipe.hue:
        image = _colour_jitter(image, recipe.saturation, recipe.hue, generator)
    if recipe.rand_augment:
        image = rand_augmented(image, recipe.rand_augment, recipe.rand_magnitude, generator)
    return _normalised(image, recipe).contiguous(memory_format=torch.channels_last)


def augments(recipe: Recipe) -> bool:
    """Whether two augmented views of one image may differ."""
    random = (
        recipe.crop_scale, recipe.rotation, recipe.pad_crop, recipe.flip, recipe.saturation, recipe.hue,
        recipe.rand_augment,
    )  # fmt: skip
    return recipe.augment and any(random)


def _keeps_size(image: Tensor, recipe: Recipe) -> bool:
    return recipe.size is None or image.shape[2:] == (recipe.size, recipe.size)


def _resized(image: Tensor, recipe: Recipe) -> Tensor:
    """Torchvision's Resize to a square, on the device: bilinear, with antialiasing."""
    if recipe.size is None or _keeps_size(image, recipe):
        return image
    return F.interpolate(image, (recipe.size, recipe.size), mode="bilinear", antialias=True)


def _normalised(image: Tensor, recipe: Recipe) -> Tensor:
    if recipe.mean is None or recipe.std is None:
        return image
    mean, std = (_constant(values, image.device).view(1, -1, 1, 1) for values in (recipe.mean, recipe.std))
    return (image - mean) / std


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers as a float32 tensor, made once, because the host waits for every copy to a GPU."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def crop_boxes(n: int, height: int, width: int, recipe: Recipe, generator: Generator) -> Tensor:
    """Boxes of torchvision's RandomResizedCrop -> int64 (n, 4) as top, left, height, width.

    Area and aspect ratio are drawn ten times. The first draw that fits the image is taken; if none fits, the largest
    central box with an allowed ratio. With `crop_scale` above 1 most draws do not fit. The official augmentation has
    this too, so it is not a mistake to correct.
    """
    assert recipe.crop_scale is not None
    device = generator.device
    tries = torch.rand(2, n, 10, generator=generator, device=device, dtype=torch.float64)
    low, high = recipe.crop_scale
    area = height * width * (low + (high - low) * tries[0])
    log_low, log_high = math.log(recipe.crop_ratio[0]), math.log(recipe.crop_ratio[1])
    ratio = torch.exp(log_low + (log_high - log_low) * tries[1])
    box_width = torch.round(torch.sqrt(area * ratio)).long()  # half to even, as Python's round
    box_height = torch.round(torch.sqrt(area / ratio)).long()
    fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
    first = fits.long().argmax(1, keepdim=True)  # the first draw that fits; 0 if none does
    box_width, box_height = box_width.gather(1, first)[:, 0], box_height.gather(1, first)[:, 0]

    in_ratio = width / height
    whole_width, whole_height = width, height
    if in_ratio < min(recipe.crop_ratio):
        whole_height = round(width / min(recipe.crop_ratio))
    elif in_ratio > max(recipe.crop_ratio):
        whole_width = round(height * max(recipe.crop_ratio))
    any_fits = fits.any(1)
    box_width = torch.where(any_fits, box_width, whole_width)
    box_height = torch.where(any_fits, box_height, whole_height)
    corner = torch.rand(2, n, generator=generator, device=device, dtype=torch.float64)
    top = torch.where(any_fits, (corner[0] * (height - box_height + 1)).long(), (height - whole_height) // 2)
    left = torch.where(any_fits, (corner[1] * (width - box_width + 1)).long(), (width - whole_width) // 2)
    return torch.stack([top, left, box_height, box_width], 1)


def _crop_and_rotate(image: Tensor, recipe: Recipe, generator: Generator) -> Tensor:
    n, _, height, width = image.shape
    device = image.device
    if recipe.crop_scale is not None:
        boxes = crop_boxes(n, height, width, recipe, generator)
    else:
        boxes = _constant((0, 0, height, width), device).expand(n, 4)
    angle = torch.zeros(n, device=device)
    if recipe.rotation:
        turns = torch.rand(n, generator=generator, device=device) * 2 - 1
        angle = turns * (recipe.rotation * math.pi / 180)
    return resample(image, boxes, angle, size=(recipe.size, recipe.size) if recipe.size else None)


def resample(image: Tensor, boxes: Tensor, angle: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
    """Crop each image to its box, resize it (bilinear), rotate it counter-clockwise (nearest, filled with 0).

    Downsizing a crop uses no antialiasing.

    Args:
        image: float (B, C, H, W).
        boxes: (B, 4) as top, left, height, width.
        angle: (B,) in radians.
        size: height and width of the result; default: those of the image.
    """
    image_height, image_width = image.shape[2:]
    height, width = size or (image_height, image_width)
    device = image.device
    rows = torch.arange(height, device=device) + 0.5 - height / 2  # pixel centres, relative to the middle
    columns = torch.arange(width, device=device) + 0.5 - width / 2
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    place = image.new_empty(2, len(image), height, width)  # column and row of each pixel, before the rotation
    torch.sub(cos * columns, sin * rows[:, None], out=place[0])
    torch.add(sin * columns, cos * rows[:, None], out=place[1])
    top, left, box_height, box_width = boxes.to(image.dtype).T[:, :, None, None]
    inside = _nearest(place[0], width).mul_(_nearest(place[1], height))
    _to_grid(place[0], width, left, box_width, image_width)
    _to_grid(place[1], height, top, box_height, image_height)
    grid = place.permute(1, 2, 3, 0)
    sampled = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.mul_(inside[:, None])


def _nearest(place: Tensor, size: int) -> Tensor:
    """Turn coordinates relative to the middle of the resized crop into its pixels, in place -> 1 inside, else 0.

    Comparing the distance from the middle takes half the time of two comparisons.
    """
    place.add_(size / 2).floor_()
    middle = (size - 1) / 2
    return (place - middle).abs_().neg_().add_(middle + 1).clamp_(0, 1)


def _to_grid(place: Tensor, size: int, start: Tensor, length: Tensor, image_size: int) -> None:
    """Map pixels of the resized crop to the image, clamped to the crop (as resizing does), as -1..1; in place."""
    place.add_(0.5).mul_(length / size).sub_(0.5).clamp_min_(0)
    torch.minimum(place, length - 1, out=place).add_(start)
    place.mul_(2).add_(1).div_(image_size).sub_(1)


def _pad_crop(image: Tensor, pad: int, generator: Generator) -> Tensor:
    """Torchvision's RandomCrop to the same size after zero padding."""
    n, channels, height, width = image.shape
    padded = F.pad(image, (pad, pad, pad, pad))
    shift = torch.randint(0, 2 * pad + 1, (2, n), generator=generator, device=image.device)
    rows = (shift[0][:, None] + torch.arange(height, device=image.device))[:, None, :, None]
    columns = (shift[1][:, None] + torch.arange(width, device=image.device))[:, None, None, :]
    sample = torch.arange(n, device=image.device)[:, None, None, None]
    channel = torch.arange(channels, device=image.device)[None, :, None, None]
    return padded[sample, channel, rows, columns]


def _colour_jitter(image: Tensor, saturation: float, hue: float, generator: Generator) -> Tensor:
    """Torchvision's ColorJitter(saturation=, hue=): both changes, in an order drawn per image.

    A hue shift commutes with scaling and with adding grey. So either order gives
    factor * shifted + (1 - factor) * grey, with the grey of the image before or after the shift.
    """
    draws = torch.rand(3, len(image), 1, 1, 1, generator=generator, device=image.device)
    factor = 1 + saturation * (2 * draws[0] - 1)
    shifted = shift_hue(image, hue * (2 * draws[1] - 1)) if hue else image
    grey = torch.lerp(_grey(shifted), _grey(image), (draws[2] < 0.5).to(image.dtype))
    return torch.lerp(grey, shifted, factor).clamp_(0, 1)


def _grey(image: Tensor) -> Tensor:
    red, green, blue = image.split(1, dim=1)
    return red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]


def shift_hue(image: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue of RGB images (B, 3, H, W) in [0, 1] by `turns` (broadcastable), through HSV."""
    red, green, blue = image.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)  # much faster than a reduction over three channels
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    scale = 1 / chroma.clamp_min(torch.finfo(chroma.dtype).tiny)  # grey has no hue: 0 times a finite number
    hue = ((red - green) * scale).add_(4)  # in sixths of a turn; first as if blue were the highest
    hue = torch.lerp(hue, ((blue - red) * scale).add_(2), _equal(high, green))
    hue = torch.lerp(hue, (green - blue) * scale, _equal(high, red))
    hue.add_(6 * turns[:, 0])
    offsets = _constant((0.0, 4.0, 2.0), image.device).view(3, 1, 1)
    turned = hue[:, None] + offsets  # (B, 3, H, W)
    turned = turned.sub_(torch.floor(turned / 6), alpha=6)  # into 0..6: faster than a remainder or comparisons
    ramp = turned.sub_(3).abs_().sub_(1).clamp_(0, 1)
    return torch.addcmul(low[:, None], ramp, chroma[:, None])


def _equal(one: Tensor, other: Tensor) -> Tensor:
    """1.0 where the two are equal, else 0.0: a weight for `lerp`, which takes a tenth of the time of `where`."""
    return torch.eq(one, other, out=torch.empty_like(one))
