"""Image files -> uint8 tensors, decoded in parallel and only once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

from debiasbench.data.cache import Cached, cached, with_progress
from debiasbench.errors import BenchmarkError
from debiasbench.files import absent, is_ignored

Image.init()
# The formats that Pillow reads, except PostScript, which is a program that another program would run, and except
# formats that it recognises but does not decode (it decodes WMF only on Windows).
FORMATS = tuple(sorted(set(Image.OPEN) - {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}))
ENDINGS = frozenset(ending for ending, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))
VERSION = 2  # of the conversion of files to pixels
BLOCK = 512  # images decoded between two writes
SHOWN = 10  # bad files named in one message

TURNS = {  # EXIF orientation -> operation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
CONVERSIONS = {  # of images that 8-bit RGB cannot hold
    "deep": "more than 8 bits, scaled to 8 (the highest value is white)",
    "transparent": "transparent in places, put on white",
    "several": "several pictures in one file, of which the first is read",
}


class Contents(NamedTuple):
    """The contents of a folder: folders, readable images and other files, each in the order of their names."""

    folders: list[Path]
    images: list[Path]
    others: list[Path]


def contents(folder: Path) -> Contents:
    """The contents of a folder, without hidden and system files.

    Raises:
        BenchmarkError: the folder does not exist or cannot be read, or a link in it is broken.
    """
    if not folder.is_dir():
        raise BenchmarkError(absent(folder, "folder"))
    found, broken = Contents([], [], []), []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted((entry for entry in entries if not is_ignored(entry.name)), key=lambda one: one.name):
                path = Path(entry.path)
                if entry.is_dir():
                    found.folders.append(path)
                elif entry.is_file():  # not a pipe or socket
                    (found.images if _is_image(entry.name) else found.others).append(path)
                elif entry.is_symlink():
                    broken.append(path)
    except OSError as error:
        raise BenchmarkError(f"{folder} cannot be read ({error}).") from None
    if broken:
        more = f" The same holds for {len(broken) - 1:,} more in {folder}." if len(broken) > 1 else ""
        raise BenchmarkError(f"{absent(broken[0])}{more} Repair the link, or remove it.")
    return found


def image_files(*folders: Path, below: bool = False) -> list[Path]:
    """The image files of each folder (`below`: and of its subfolders), in the order of their names.

    Raises:
        BenchmarkError: a folder does not exist, has no image, or has a broken link.
    """
    paths = []
    for folder in folders:
        found = _files(folder, below=below)
        if not found.images:
            raise BenchmarkError(f"There are no images in {folder}. {left_out(found.others)}".rstrip())
        paths += sorted(found.images)
    return paths


def other_files(*folders: Path, below: bool = False) -> list[Path]:
    """The files of each folder (`below`: and of its subfolders) that are not readable images."""
    return [path for folder in folders for path in _files(folder, below=below).others]


def left_out(others: Iterable[Path]) -> str:
    """A sentence for a note on the files that are not read, by their extensions; empty if there are none."""
    kinds = Counter(path.suffix.lower() or "without an ending" for path in others)
    shown_kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items(), key=lambda one: (-one[1], one[0])))
    return f"Files left out, because they cannot be read as images: {shown_kinds}." if kinds else ""


def _files(folder: Path, *, below: bool) -> Contents:
    found = contents(folder)
    for inner in found.folders if below else ():
        _, images, others = _files(inner, below=True)
        found.images.extend(images)
        found.others.extend(others)
    return found


def has_images(folder: Path) -> bool:
    """Whether there is an image in a folder or below it."""
    return folder_of_images(folder) is not None


def folder_of_images(folder: Path) -> Path | None:
    """The first folder with images: this one or one below it."""
    return next((Path(place) for place, n in _images_below(folder) if n), None)


def shortfalls(published: Mapping[Path, int]) -> list[str]:
    """Messages for folders whose number of images (in them and below) differs from the published number."""
    found = {folder: sum(n for _, n in _images_below(folder)) for folder in published}
    return [f"{folder}: {found[folder]:,} of {n:,} images" for folder, n in published.items() if found[folder] != n]


def _images_below(folder: Path) -> Iterator[tuple[str, int]]:
    """Each folder and its number of image files; with `os.walk`, because `pathlib` takes seconds for 200,000 paths."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_ignored(name))  # os.walk continues with these
        yield place, sum(_is_image(name) and not is_ignored(name) for name in names)


def _is_image(name: str) -> bool:
    """Whether the extension is that of an image."""
    return os.path.splitext(name)[1].lower() in ENDINGS  # noqa: PTH122 - see above


def read_image(
    path: Path, *, size: int | None = None, square: bool = False, done: list[str] | None = None
) -> np.ndarray:
    """Read one image as RGB uint8 (3, H, W), rotated by its EXIF orientation if readable; other modes are converted.

    Args:
        path: a file in one of `FORMATS`, judged by its contents.
        size: resize to size x size (bilinear, without keeping the aspect ratio).
        square: crop to the central square first.
        done: receives the names of the `CONVERSIONS` that were applied.

    Raises:
        BenchmarkError: the file is truncated, not an image, or has values whose white is unknown; names the file.
    """
    conversions: list[str] = []
    try:
        with Image.open(path, formats=FORMATS) as file:
            image = _upright_rgb(file, conversions)
    except BenchmarkError as error:
        raise BenchmarkError(f"{path} {error}") from None
    except Exception as error:  # a damaged file can raise anything
        raise BenchmarkError(f"{_problem(path, error)} Fetch or unpack it again, or remove it.") from None
    if done is not None:
        done += conversions
    if square:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if size and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def _problem(path: Path, error: Exception) -> str:
    """The reason why the decoder refused a file."""
    if isinstance(error, FileNotFoundError):
        return absent(path)
    if isinstance(error, UnidentifiedImageError):
        return f"{path} is not an image, or not of a kind that Pillow reads."
    return f"{path} cannot be read ({str(error).strip() or type(error).__name__})."


def _upright_rgb(file: Image.Image, done: list[str]) -> Image.Image:
    """The pixels of an open file; of its first picture, if it has several."""
    # the other pictures in a photograph (MPO) or a layered image (PSD) are its previews and layers
    if file.format not in ("MPO", "PSD") and getattr(file, "is_animated", False):
        done.append("several")
    file.load()  # this also turns a TIFF upright
    turn = TURNS.get(_orientation(file))
    image = _rgb(file, done)
    return image if turn is None else image.transpose(turn)


def _orientation(file: Image.Image) -> int:
    """The orientation in EXIF (or XMP); 1, upright, if that is damaged."""
    try:
        return int(file.getexif().get(0x0112, 1))
    except Exception:  # a damaged block can raise anything
        return 1


def _rgb(file: Image.Image, done: list[str]) -> Image.Image:
    _refuse_without_white(file)
    if file.mode in ("I", "F") or file.mode.startswith("I;16"):
        return Image.fromarray(_scaled(file, done)).convert("RGB")
    if file.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in file.info:
        image = file.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            done.append("transparent")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")
    return file.convert("RGB")


def _refuse_without_white(file: Image.Image) -> None:
    """Refuse values of unknown range.

    Raises:
        BenchmarkError: it is unknown which value is white.
    """
    wide = file.mode == "I" and file.format not in ("PNG", "PPM")  # these have 16 bits
    signed = file.format == "TIFF" and 2 in file.tag_v2.get(339, ())  # type: ignore[attr-defined]
    # a FITS file holds signed measurements; Pillow reads the two bytes of each in the wrong order
    measured = file.format == "FITS" and file.mode.startswith("I;16")
    if file.mode == "F" or wide or signed or measured:
        kind = "floating-point values" if file.mode == "F" else "whole numbers of 32 bits or with a sign"
        values = np.asarray(file)
        reach = f" ({values.min():g} to {values.max():g})" if file.mode in ("I", "F") else ""  # the others are misread
        raise BenchmarkError(
            f"holds {kind}{reach}, and nothing says which is white. Save it with 8 or 16 bits, or remove it."
        )


def _scaled(file: Image.Image, done: list[str]) -> np.ndarray:
    """Grey values of more than 8 bits as uint8 (H, W): their upper 8 bits, as Pillow does for colours."""
    values = np.asarray(file)
    tags = file.tag_v2 if file.format == "TIFF" else {}  # type: ignore[attr-defined]
    bits = tags.get(258, (16,))[0]
    done.append("deep")
    grey = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if tags.get(262) == 0:  # black is the highest value
        grey = 255 - grey
    clear = values == file.info.get("transparency", -1)
    if clear.any():
        done.append("transparent")
        grey[clear] = 255
    return grey


def remarks(images: Iterable[Cached], others: Iterable[Path] = ()) -> list[str]:
    """Sentences for a note: which conversions were applied to images, and which files were left out."""
    counts: Counter[str] = Counter()
    for one in images:
        counts.update(one.counts)
    told = [f"{counts[kind]:,} {words}" for kind, words in CONVERSIONS.items() if counts[kind]]
    converted = f"Images converted: {'; '.join(told)}." if told else ""
    return [sentence for sentence in (converted, left_out(others)) if sentence]


def decode(name: str, paths: Sequence[Path], *, size: int | None = None, square: bool = False) -> Cached:
    """All images of a split as one array (N, 3, H, W), from the cache if they were decoded before.

    Without `size`, all images must have the same size.

    Raises:
        BenchmarkError: files cannot be read (lists them); the sizes of images differ; the cache cannot be written.
    """
    done: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings name no file; relevant problems are reported with the file
        first = read_image(paths[0], size=size, square=square)
        identity = {
            "files": _digest_of_files(paths), "size": size, "square": square, "version": VERSION,
            "pillow": PIL.__version__, "jpeg": features.version("jpg"),
        }  # fmt: skip
        shape = (len(paths), *first.shape)
        return cached(
            name, identity, shape, lambda: _decoded(name, paths, shape, done, size=size, square=square),
            counts=lambda: Counter(done),
        )  # fmt: skip


def _digest_of_files(paths: Sequence[Path]) -> str:
    """Digest of names, sizes and times, which change when a file does."""
    digest = hashlib.sha256()
    for path in paths:
        with contextlib.suppress(OSError):  # decoding reports it
            status = path.stat()
            digest.update(os.fsencode(path.resolve()) + f" {status.st_size} {status.st_mtime_ns};".encode())
    return digest.hexdigest()


def _decoded(
    name: str, paths: Sequence[Path], shape: tuple[int, ...], done: list[str], *, size: int | None, square: bool
) -> Iterator[np.ndarray]:
    problems: list[str] = []

    def one(path: Path) -> np.ndarray | None:
        try:
            image = read_image(path, size=size, square=square, done=done)
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
        for block in with_progress(blocks, f"Decoding {len(paths):,} images of {name}"):
            images = [image for image in pool.map(one, block) if image is not None]
            if not problems:  # reading continues after a bad file, so that all are reported at once
                yield np.stack(images)
    if problems:
        more = f"\n... and {len(problems) - SHOWN} more." if len(problems) > SHOWN else ""
        raise BenchmarkError("\n".join(sorted(problems)[:SHOWN]) + more)
