"""The ten corruptions of Corrupted CIFAR-10 ("type 0" of LfF's generator), at 32 pixels.

They are the corruptions of ImageNet-C (D. Hendrycks, T. Dietterich, ICLR 2019) with the constants of its CIFAR-10
variant. They are reimplemented from the constants and the published description, because no maintained library has
these constants (see `docs/design.md`). All take and return uint8 (H, W, 3) and truncate to whole grey levels, as the
generator does.

Differences from the generator:
- snow: the motion blur is implemented here (a half Gaussian along a line, edges repeated) instead of calling
  ImageMagick. The two results were compared: they differ by one level in one pixel of a thousand;
- frost: unless the five photographs are given, textures drawn from a fixed seed replace them. They have the mean
  colour, contrast and coarseness of the photographs. This is a departure; the dataset says so;
- spatter at levels 1 to 3 (water): the distance to the edges is exact, not OpenCV's approximation.

The generator has no seed. Here the randomness of an image depends only on numbers that are passed with it, so no result
depends on the order or the number of processes.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import scipy  # it loads its modules at first use; every command imports this file
from PIL import Image, features

from debiasbench import drawing

VERSION = 1  # of the corruptions; part of the identity of generated data
LEVELS = 5
SIZE = 32  # pixels per side, which the constants are for
BLOCK = 500  # images written at once
FROST_SEED = 0

Textures = Sequence[np.ndarray]  # uint8 (H, W, 3) each, larger than the images
Corruption = Callable[[np.ndarray, Any, np.random.Generator, Textures], np.ndarray]

# Constants of levels 1 to 5, from the ImageNet-C generator for CIFAR-10.
CONSTANTS: dict[str, tuple[Any, ...]] = {
    # mean and deviation of the flakes, zoom, threshold, length and deviation of the blur, weight of the image
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),  # weights of the image and the frost
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),  # thickness, decay of the roughness
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to the value of HSV
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor of the distance to the channel's mean
    # mean and deviation of the liquid, its smoothing, threshold, (water: opacity; mud: smoothing), mud?
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, False), (0.65, 0.1, 0.8, 0.7, 0.5, False), (0.65, 0.3, 1, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True), (0.65, 0.1, 0.5, 0.68, 0.6, True),
    ),
    # strength and smoothness of the displacement, reach of the affine part; in pixels
    "elastic": ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
    "jpeg": (80, 65, 58, 50, 40),  # quality
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # size
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),  # factor on the HSV saturation, then added value
}  # fmt: skip
NAMES = tuple(CONSTANTS)  # in the order of the CIFAR-10 classes that they are aligned with

GREY = np.array([0.299, 0.587, 0.114])
MUD = np.array([63, 42, 20]) / 255
WATER = np.array([175, 238, 238]) / 255

# Statistics of the five photographs at a fifth of their size: mean and deviation of R, G, B, and the share of clouds in
# the variance (so that smoothing leaves as much as in the photographs). Measured; the second and third are equal.
FROST_LOOKS = (
    ((78, 149, 166), (27, 16, 15), 0.65),
    ((201, 205, 215), (21, 22, 23), 0.55),
    ((201, 205, 215), (21, 22, 23), 0.55),
    ((138, 153, 166), (29, 29, 30), 0.45),
    ((112, 123, 135), (44, 43, 42), 0.45),
)


def corrupt(
    image: np.ndarray, name: str, level: int, generator: np.random.Generator, textures: Textures | None = None
) -> np.ndarray:
    """Corrupt one image, uint8 (H, W, 3); `textures` are for frost, by default drawn ones."""
    textures = drawn_textures() if textures is None else textures
    changed = CORRUPTIONS[name](image, CONSTANTS[name][level - 1], generator, textures)
    if changed.dtype == np.uint8:
        return changed
    return (np.clip(changed, 0, 1) * 255).astype(np.uint8)  # truncated, not rounded, as in the generator


def corrupted(
    images: np.ndarray,
    kinds: np.ndarray,
    *,
    level: int,
    numbers: Sequence[int],
    textures: Textures | None = None,
    note: str = "CIFAR-10",
) -> Iterator[np.ndarray]:
    """Corrupt images uint8 (N, 3, H, W), in blocks (B, 3, H, W); `kinds` (N,) are indices of the corruptions.

    The randomness of image i depends only on `numbers` and i. `note` names the data to the waiting user.
    """
    from debiasbench.data.cache import with_progress  # both import torch, which the corruptions do not need
    from debiasbench.randomness import derived_seed

    for first in with_progress(range(0, len(images), BLOCK), f"Corrupting {len(images):,} images of {note}"):
        block = np.empty_like(images[first : first + BLOCK])
        for row in range(len(block)):
            seed = derived_seed("data", *numbers, first + row)
            generator = np.random.Generator(np.random.PCG64(seed))
            image = np.ascontiguousarray(images[first + row].transpose(1, 2, 0))
            changed = corrupt(image, NAMES[kinds[first + row]], level, generator, textures)
            block[row] = changed.transpose(2, 0, 1)
        yield block


def identity(textures: Textures | None = None) -> dict[str, Any]:
    """What the corrupted pixels depend on besides images and seeds: the code, the libraries, the textures."""
    import hashlib

    import PIL

    digest = hashlib.sha256()
    for texture in drawn_textures() if textures is None else textures:
        digest.update(f"{texture.shape};".encode() + np.ascontiguousarray(texture).tobytes())
    versions = [VERSION, np.__version__, scipy.__version__, drawing.library().__version__, PIL.__version__]
    return {"corruptions": [*versions, features.version("jpg")], "textures": digest.hexdigest()}


# ---- snow -------------------------------------------------------------------------------------------------------


def snow(image: np.ndarray, constants: Any, generator: np.random.Generator, _: Textures) -> np.ndarray:
    """Whiten the colours; add flakes, blurred along a random downward direction, and their rotation by 180 degrees."""
    mean, deviation, zoom, threshold, length, spread, weight = constants
    flakes = _zoomed(generator.normal(mean, deviation, image.shape[:2]), zoom)
    flakes[flakes < threshold] = 0
    layer = (np.clip(flakes, 0, 1) * 255).astype(np.uint8)  # 8 bit before and after the blur, as in the generator
    blurred = motion_blur(layer, length, spread, generator.uniform(-135, -45))
    layer = np.rint(257 * blurred) // 257 / 255  # 16 bit, then truncated to 8, as ImageMagick writes it
    x = image / 255
    white = np.maximum(x, (x @ GREY)[..., None] * 1.5 + 0.5)
    return weight * x + (1 - weight) * white + (layer + layer[::-1, ::-1])[..., None]


def _zoomed(field: np.ndarray, factor: float) -> np.ndarray:
    """The middle of a square field, enlarged to the size of the field (bilinear)."""
    size = len(field)
    inner = int(np.ceil(size / factor))
    top = (size - inner) // 2
    large = scipy.ndimage.zoom(field[top : top + inner, top : top + inner], factor, order=1)
    cut = (len(large) - size) // 2
    return large[cut : cut + size, cut : cut + size]


def motion_blur(layer: np.ndarray, length: int, spread: float, angle: float) -> np.ndarray:
    """Weighted mean of a grey layer (H, W) along a line of 2 `length` + 1 pixels that starts at each pixel.

    The weights are half a Gaussian with deviation `spread`; `angle` is in degrees. Beyond the edges, the edge pixels
    are repeated. ImageMagick describes its motion blur like this.
    """
    steps = np.arange(2 * length + 1)
    weights = np.exp(-(steps**2) / (2 * spread**2))
    radians = np.deg2rad(angle)
    down = np.ceil(steps * np.sin(radians) - 0.5).astype(int)
    right = np.ceil(steps * np.cos(radians) - 0.5).astype(int)
    height, width = layer.shape
    rows = np.clip(np.arange(height)[:, None] + down, 0, height - 1)
    columns = np.clip(np.arange(width)[:, None] + right, 0, width - 1)
    along = layer[rows[:, None, :], columns[None, :, :]]  # (H, W, steps)
    return along @ (weights / weights.sum())


# ---- frost and fog ----------------------------------------------------------------------------------------------


def frost(image: np.ndarray, constants: Any, generator: np.random.Generator, textures: Textures) -> np.ndarray:
    """Blend a random crop of a random texture into the image."""
    height, width = image.shape[:2]
    texture = textures[int(generator.integers(len(textures)))]
    top, left = (generator.integers(side - size) for side, size in zip(texture.shape, (height, width), strict=False))
    return (constants[0] * image + constants[1] * texture[top : top + height, left : left + width]) / 255


@functools.cache
def drawn_textures() -> tuple[np.ndarray, ...]:
    """Five fixed textures of ice, uint8 (120, 180, 3): clouds under needles in all directions."""
    return tuple(_drawn(number, *look) for number, look in enumerate(FROST_LOOKS))


def _drawn(number: int, mean: tuple[int, ...], deviation: tuple[int, ...], coarse: float) -> np.ndarray:
    generator = np.random.default_rng([FROST_SEED, number])
    shape = (120, 180)
    clouds = scipy.ndimage.gaussian_filter(generator.normal(size=shape), 6, mode="wrap")
    needles = np.full(shape, -np.inf)
    for angle in range(0, 180, 30):
        lines = scipy.ndimage.gaussian_filter(generator.normal(size=(220, 220)), (0.4, 1.2))
        turned = scipy.ndimage.rotate(lines, angle, reshape=False, order=1)[50:170, 20:200]
        needles = np.maximum(needles, turned / turned.std())
    parts = [(part - part.mean()) / part.std() for part in (clouds, needles)]
    field = np.sqrt(coarse) * parts[0] + np.sqrt(1 - coarse) * parts[1]
    values = np.array(mean) + np.array(deviation) * field[..., None]
    return np.clip(values, 0, 255).astype(np.uint8)


def fog(image: np.ndarray, constants: Any, generator: np.random.Generator, _: Textures) -> np.ndarray:
    """Add haze of random density, then darken to the maximum of the image."""
    thickness, decay = constants
    x = image / 255
    height, width = image.shape[:2]
    haze = plasma(SIZE, decay, generator)[:height, :width]
    return (x + thickness * haze[..., None]) * x.max() / (x.max() + thickness)


def plasma(size: int, decay: float, generator: np.random.Generator) -> np.ndarray:
    """A random height map (size, size) in [0, 1] by the diamond-square algorithm, on a torus.

    Each halving of the step divides the roughness by `decay` squared, because the generator multiplies a factor by a
    uniform number whose range is the same factor.
    """
    heights = np.zeros((size, size))
    step, roughness = size, 1.0

    def noisy_mean(*neighbours: np.ndarray) -> np.ndarray:
        return sum(neighbours) / 4 + generator.uniform(-roughness, roughness, neighbours[0].shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        below, right = np.roll(corners, -1, 0), np.roll(corners, -1, 1)
        centres = noisy_mean(corners, below, right, np.roll(below, -1, 1))
        heights[half::step, half::step] = centres
        heights[::step, half::step] = noisy_mean(corners, right, centres, np.roll(centres, 1, 0))
        heights[half::step, ::step] = noisy_mean(corners, below, centres, np.roll(centres, 1, 1))
        step, roughness = half, roughness / decay**2
    heights -= heights.min()
    return heights / heights.max()


# ---- colours ----------------------------------------------------------------------------------------------------


def brightness(image: np.ndarray, constants: Any, _: np.random.Generator, __: Textures) -> np.ndarray:
    """Increase the value in HSV."""
    return _in_hsv(image, 2, 1, constants)


def saturate(image: np.ndarray, constants: Any, _: np.random.Generator, __: Textures) -> np.ndarray:
    """Change the saturation in HSV."""
    return _in_hsv(image, 1, *constants)


def _in_hsv(image: np.ndarray, channel: int, factor: float, added: float) -> np.ndarray:
    drawing.library()
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

    hsv = rgb_to_hsv(image / 255)
    hsv[..., channel] = np.clip(hsv[..., channel] * factor + added, 0, 1)
    rgb: np.ndarray = hsv_to_rgb(hsv)
    return rgb


def contrast(image: np.ndarray, constants: Any, _: np.random.Generator, __: Textures) -> np.ndarray:
    """Move pixels towards the mean of their channel."""
    x = image / 255
    mean = x.mean((0, 1))
    return (x - mean) * constants + mean


# ---- spatter ----------------------------------------------------------------------------------------------------


def spatter(image: np.ndarray, constants: Any, generator: np.random.Generator, _: Textures) -> np.ndarray:
    """Add drops of water (levels 1 to 3) or mud (4 and 5)."""
    mean, deviation, smoothing, threshold, last, mud = constants
    liquid = scipy.ndimage.gaussian_filter(
        generator.normal(mean, deviation, image.shape[:2]), smoothing, mode="nearest"
    )
    x = image / 255
    if mud:
        cover = scipy.ndimage.gaussian_filter((liquid > threshold).astype(float), last, mode="nearest")
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return x * (1 - cover) + MUD * cover
    return x + last * _water(np.where(liquid < threshold, 0, liquid))[..., None] * WATER


def _water(liquid: np.ndarray) -> np.ndarray:
    """Lightness of the water at each pixel, in [0, 1]: drops with a shaded rim."""
    depth = (np.clip(liquid, 0, 1) * 255).astype(np.uint8)
    edges = canny(depth, 50, 150)
    if not edges.any():
        return np.zeros(liquid.shape)
    distance = np.minimum(scipy.ndimage.distance_transform_edt(~edges), 20)
    levels = _equalized(scipy.ndimage.uniform_filter(distance, 3, mode="mirror").astype(np.uint8))
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    shaded = np.clip(scipy.ndimage.correlate(levels.astype(float), relief, mode="mirror"), 0, 255)
    light = depth * scipy.ndimage.uniform_filter(shaded, 3, mode="mirror")
    return light / max(light.max(), 1e-9)


def canny(grey: np.ndarray, low: float, high: float) -> np.ndarray:
    """Canny edges of uint8 (H, W), bool: ridges of the gradient above `low` that are connected to one above `high`.

    The gradient is Sobel's, its size |dx| + |dy|, its direction one of four. The image is not smoothed first.
    """
    right, down = (scipy.ndimage.sobel(grey.astype(int), axis=axis, mode="nearest") for axis in (1, 0))
    size = abs(right) + abs(down)
    around = np.pad(size, 1)

    def neighbour(rows: int, columns: int) -> np.ndarray:
        return around[1 + rows : 1 + rows + len(size), 1 + columns : 1 + columns + size.shape[1]]

    slope = abs(down) / np.maximum(abs(right), 1e-9)
    falling = (size > neighbour(-1, -1)) & (size > neighbour(1, 1))
    rising = (size > neighbour(-1, 1)) & (size > neighbour(1, -1))
    ridge = np.select(
        [slope < np.tan(np.pi / 8), slope > np.tan(3 * np.pi / 8)],
        [
            (size > neighbour(0, -1)) & (size >= neighbour(0, 1)),
            (size > neighbour(-1, 0)) & (size >= neighbour(1, 0)),
        ],
        np.where((right < 0) == (down < 0), falling, rising),
    )
    parts, _ = scipy.ndimage.label(ridge & (size > low), np.ones((3, 3)))
    strong = np.unique(parts[ridge & (size > high)])
    return np.isin(parts, strong[strong > 0])


def _equalized(levels: np.ndarray) -> np.ndarray:
    """Histogram equalisation of uint8 levels: the darkest becomes 0, the others follow the cumulative counts."""
    counts = np.bincount(levels.ravel(), minlength=256)
    first = counts[counts > 0][0]
    if first == levels.size:
        return levels
    table = np.rint(255 * (counts.cumsum() - first) / (levels.size - first))
    return np.clip(table, 0, 255).astype(np.uint8)[levels]


# ---- geometry and coding ----------------------------------------------------------------------------------------


def elastic(image: np.ndarray, constants: Any, generator: np.random.Generator, _: Textures) -> np.ndarray:
    """Apply a random affine map, then a random displacement of each pixel."""
    strength, smoothness, reach = constants
    height, width = image.shape[:2]
    middle, side = np.array([width // 2, height // 2]), min(height, width) // 3
    corners = middle + side * np.array([[1, 1], [1, -1], [-1, -1]])  # as (x, y)
    moved = corners + generator.uniform(-reach, reach, corners.shape)
    # where each pixel of the result comes from: the affine map from the moved corners back to the corners
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    down, right = np.mgrid[:height, :width].astype(float)
    source_right, source_down = (right * back[0, axis] + down * back[1, axis] + back[2, axis] for axis in (0, 1))
    x = _sampled(image / 255, source_down, source_right, "mirror")
    shift_right, shift_down = (
        strength * scipy.ndimage.gaussian_filter(generator.uniform(-1, 1, (height, width)), smoothness, truncate=3)
        for _ in range(2)
    )
    return _sampled(x, down + shift_down, right + shift_right, "reflect")


def _sampled(x: np.ndarray, down: np.ndarray, right: np.ndarray, mode: str) -> np.ndarray:
    """Pixels (H, W, 3) at the places (down, right), bilinear; `mode` is scipy's, for values beyond the edges."""
    channels = [scipy.ndimage.map_coordinates(x[..., c], (down, right), order=1, mode=mode) for c in range(x.shape[2])]
    return np.stack(channels, -1)


def jpeg(image: np.ndarray, constants: Any, _: np.random.Generator, __: Textures) -> np.ndarray:
    """Encode as JPEG and decode."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=constants)
    return np.array(Image.open(buffer))


def pixelate(image: np.ndarray, constants: Any, _: np.random.Generator, __: Textures) -> np.ndarray:
    """Shrink and enlarge again, with box filters."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((int(width * constants), int(height * constants)), Image.Resampling.BOX)
    return np.array(small.resize((width, height), Image.Resampling.BOX))


CORRUPTIONS: dict[str, Corruption] = {
    "snow": snow, "frost": frost, "fog": fog, "brightness": brightness, "contrast": contrast, "spatter": spatter,
    "elastic": elastic, "jpeg": jpeg, "pixelate": pixelate, "saturate": saturate,
}  # fmt: skip
