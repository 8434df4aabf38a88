"""Image files -> uint8 tensors, decoded in parallel and only once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError, features

from debiasbench.data.cache import Cached, cached, shown
from debiasbench.errors import BenchmarkError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VERSION = 1  # of how files become pixels
BLOCK = 512  # images decoded before they are written
SHOWN = 10  # bad files named in one message


def image_files(folder: Path, *, below: bool = False) -> list[Path]:
    """The image files of a folder (`below`: and of its subfolders), in the order of their names.

    Raises:
        BenchmarkError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise BenchmarkError(f"There is no folder {folder}.")
    found = folder.rglob("*") if below else folder.iterdir()
    paths = sorted(path for path in found if path.suffix.lower() in ENDINGS and not path.name.startswith("."))
    if not paths:
        raise BenchmarkError(f"There are no images in {folder} ({', '.join(ENDINGS)}).")
    return paths


def has_images(folder: Path) -> bool:
    """Whether there is an image in a folder, or below it."""
    return next(_images_below(folder), None) is not None


def shortfalls(published: Mapping[Path, int]) -> list[str]:
    """Which folders hold (in themselves and below) another number of images than was published."""
    found = {folder: sum(1 for _ in _images_below(folder)) for folder in published}
    return [f"{folder}: {found[folder]:,} of {n:,} images" for folder, n in published.items() if found[folder] != n]


def _images_below(folder: Path) -> Iterator[str]:
    """Names of the image files; by `os.walk`, as 200,000 paths take `pathlib` seconds."""
    for _, _, names in os.walk(folder):
        yield from (name for name in names if name.lower().endswith(ENDINGS) and not name.startswith("."))


def read_image(path: Path, *, size: int | None = None, square: bool = False) -> np.ndarray:
    """One image as RGB uint8 (3, H, W): turned as its EXIF says, grey and CMYK converted.

    size: resize to size x size (bilinear, the aspect is not kept). square: first cut out the central square.

    Raises:
        BenchmarkError: the file is cut off or no image; names it.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = "is no image" if isinstance(error, UnidentifiedImageError) else f"cannot be read ({error})"
        raise BenchmarkError(f"{path} {what}. Fetch or unpack it again, or take it out.") from None
    if square:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if size and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def decode(name: str, paths: Sequence[Path], *, size: int | None = None, square: bool = False) -> Cached:
    """All images of a split as one array (N, 3, H, W), from the cache if they were decoded before.

    Without `size` they must all have one size.

    Raises:
        BenchmarkError: files that cannot be read, each by name; images of several sizes; the cache cannot be written.
    """
    first = read_image(paths[0], size=size, square=square)
    identity = {
        "files": _digest_of_files(paths), "size": size, "square": square, "version": VERSION,
        "pillow": PIL.__version__, "jpeg": features.version("jpg"),
    }  # fmt: skip
    shape = (len(paths), *first.shape)
    return cached(name, identity, shape, lambda: _decoded(name, paths, shape, size=size, square=square))


def _digest_of_files(paths: Sequence[Path]) -> str:
    """Names, sizes and times: what changes when a file does."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(os.fsencode(path.resolve()) + f" {status.st_size} {status.st_mtime_ns};".encode())
    return digest.hexdigest()


def _decoded(
    name: str, paths: Sequence[Path], shape: tuple[int, ...], *, size: int | None, square: bool
) -> Iterator[np.ndarray]:
    problems: list[str] = []

    def one(path: Path) -> np.ndarray | None:
        try:
            image = read_image(path, size=size, square=square)
        except BenchmarkError as error:
            problems.append(str(error))
            return None
        if image.shape != shape[1:]:
            problems.append(
                f"{path} is {image.shape[2]} x {image.shape[1]} pixels, but {paths[0].name} is {shape[3]} x {shape[2]}."
            )
            return None
        return image

    blocks = [paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        for block in shown(blocks, f"Decoding {len(paths):,} images of {name}"):
            images = [image for image in pool.map(one, block) if image is not None]
            if not problems:  # go on reading after a bad file, so that all bad files are told at once
                yield np.stack(images)
    if problems:
        more = f"\n... and {len(problems) - SHOWN} more." if len(problems) > SHOWN else ""
        raise BenchmarkError("\n".join(sorted(problems)[:SHOWN]) + more)
