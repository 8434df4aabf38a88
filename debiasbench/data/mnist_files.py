"""Collections in MNIST's format: where their files are, which bytes they must have, how they are fetched."""

from __future__ import annotations

import gzip
import hashlib
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from debiasbench.data.downloads import torchvision_download
from debiasbench.datasets import NeededFile
from debiasbench.errors import BenchmarkError


@dataclass(frozen=True)
class Collection:
    """Grey images of 28 x 28 pixels and their labels, as IDX files, in torchvision's layout: `<name>/raw/<file>`.

    Attributes:
        name: of the folder, and of torchvision's class.
        files: file name -> (size of its .gz, SHA-256 of the unpacked bytes).
        train, test: what the names of the files of that part begin with.
        options: arguments of torchvision's class.
        source: for people.
    """

    name: str
    files: dict[str, tuple[str, str]]
    train: str = "train"
    test: str = "t10k"
    options: dict[str, Any] = field(default_factory=dict)
    source: str = "through torchvision's mirrors"

    def missing(self, folder: Path) -> list[NeededFile]:
        """The files that are not in `folder`, neither plain nor as .gz."""
        return [
            NeededFile(folder / f"{name}.gz", size, f"{self.name}, {self.source}", downloads=True)
            for name, (size, _) in self.files.items()
            if _find(folder, name) is None
        ]

    def present(self, folder: Path) -> list[Path]:
        """The files that are in `folder`, whole or not."""
        return [path for name in self.files if (path := _find(folder, name))]

    def images(self, folder: Path, part: str) -> np.ndarray:
        """Uint8 (N, 28, 28), read-only; `part` is `train` or `test` of the collection."""
        return self._read(folder, f"{part}-images-idx3-ubyte")

    def labels(self, folder: Path, part: str) -> np.ndarray:
        """int64 (N,), as the files have them."""
        return self._read(folder, f"{part}-labels-idx1-ubyte").astype(np.int64)

    def _read(self, folder: Path, name: str) -> np.ndarray:
        path = _find(folder, name)
        if path is None:
            raise BenchmarkError(
                f"{folder / name} is missing, plain and as .gz: fetch it with debiasbench prepare, or put it there."
            )
        return read_idx(path, sha256=self.files[name][1])

    def download(self, data_dir: Path) -> None:
        """Let torchvision download, verify and unpack into `data_dir`; what is there already is kept.

        Raises:
            BenchmarkError: it cannot be downloaded, or not be written.
        """
        import torchvision

        by_hand = f"{', '.join(f'{name}.gz' for name in self.files)} into {data_dir / self.name / 'raw'}"
        with torchvision_download(self.name, by_hand):
            for train in (True, False):  # of EMNIST, torchvision looks only for the files of the part it is asked for
                getattr(torchvision.datasets, self.name)(str(data_dir), train=train, download=True, **self.options)


def prepare(collections: dict[Path, Collection], data_dir: Path, root: str | None) -> None:
    """Download the collections of which files are missing; `collections` are by their folders.

    Raises:
        BenchmarkError: files are missing below a `root`, where torchvision does not put them; or as `download`.
    """
    incomplete = [collection for folder, collection in collections.items() if collection.missing(folder)]
    if root and incomplete:
        raise BenchmarkError("torchvision downloads into the data folder: leave out root=, or fill it by hand.")
    for collection in incomplete:
        collection.download(data_dir)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


MNIST = Collection(
    "MNIST",
    {
        "train-images-idx3-ubyte": ("9.9 MB", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        "train-labels-idx1-ubyte": ("29 kB", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        "t10k-images-idx3-ubyte": ("1.6 MB", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        "t10k-labels-idx1-ubyte": ("5 kB", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    },
)
FASHION_MNIST = Collection(
    "FashionMNIST",
    {
        "train-images-idx3-ubyte": ("26 MB", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        "train-labels-idx1-ubyte": ("30 kB", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        "t10k-images-idx3-ubyte": ("4.4 MB", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        "t10k-labels-idx1-ubyte": ("5 kB", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    },
)
KMNIST = Collection(
    "KMNIST",
    {
        "train-images-idx3-ubyte": ("18 MB", "7112ba9ec422d98de4885262d4a4dff14cc4fefb81c11ace8bf563a8255df5c3"),
        "train-labels-idx1-ubyte": ("29 kB", "2a16eeae62da984b8bd24fa32e31d47291f01dac3fe84d5594f304f71e7d374b"),
        "t10k-images-idx3-ubyte": ("3.0 MB", "76fbd229ce87db80dd281af5e6670de4ad0e42fb30a7bd643972994c47c1f42e"),
        "t10k-labels-idx1-ubyte": ("5 kB", "a11dc742be8e781a40a92f53d6a4957e7b7d36df2faa097659131ebfd8fd60c6"),
    },
)
# Images are stored transposed; labels are 1 (A) to 26 (Z).
EMNIST_LETTERS = Collection(
    "EMNIST",
    {
        "emnist-letters-train-images-idx3-ubyte": (
            "31 MB",
            "7a786db773b2096a7b9a3f3275388a27711f4451548c3ca8be96f09ae94371ae",
        ),
        "emnist-letters-train-labels-idx1-ubyte": (
            "79 kB",
            "e8e94c3f4353d5532fd9604b939cb4c76e7847945b9b0d9ff7884d881dead6bc",
        ),
        "emnist-letters-test-images-idx3-ubyte": (
            "5.0 MB",
            "d5895e82d14765b22a84342337bc5c25f1affd61cc97d3821d4e65504bbf8dbc",
        ),
        "emnist-letters-test-labels-idx1-ubyte": (
            "144 bytes",
            "22dbcde0a929a7f166bdac863b9195b2994d840a1e082f8f6daaeac5606376a6",
        ),
    },
    train="emnist-letters-train",
    test="emnist-letters-test",
    options={"split": "letters"},
    source="through torchvision: one archive of 562 MB, 2.3 GB on disk with all that it unpacks",
)


_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4"}  # data type byte -> numpy


def read_idx(path: Path, *, sha256: str | None = None) -> np.ndarray:
    """Read an IDX file (MNIST's format), plain or gzip-ed.

    Raises:
        BenchmarkError: the file is empty, cut off, no IDX file, or (its unpacked bytes) not of the given SHA-256.
    """
    mend = "Delete it and fetch it again (debiasbench prepare)."
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise BenchmarkError(f"Cannot read {path}: {error}. {mend}") from None
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES:
        raise BenchmarkError(f"{path} is no IDX file ({len(data)} bytes once unpacked). {mend}")
    start = 4 + 4 * data[3]
    kind = np.dtype(_IDX_TYPES[data[2]])
    shape = struct.unpack(f">{data[3]}I", data[4:start]) if len(data) >= start else (-1,)
    expected = start + int(np.prod(shape)) * kind.itemsize
    if len(data) != expected or -1 in shape:
        raise BenchmarkError(f"{path} is cut off or damaged: {len(data)} bytes once unpacked, not {expected}. {mend}")
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise BenchmarkError(f"{path} has a wrong checksum: it is not the published file. {mend}")
    return np.frombuffer(data, kind, offset=start).reshape(shape)
