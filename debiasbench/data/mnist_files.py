"""Collections in the format of MNIST: the places of their files, their checksums, and their download."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from debiasbench.data.downloads import fetch
from debiasbench.datasets import NeededFile
from debiasbench.errors import BenchmarkError
from debiasbench.files import explained_errors, write_atomically


@dataclass(frozen=True)
class Collection:
    """Grey images of 28 x 28 pixels and their labels, as IDX files, in torchvision's layout: `<name>/raw/<file>`.

    Attributes:
        name: name of the folder.
        files: file name -> (size of its .gz, SHA-256 of the unpacked bytes).
        mirrors: addresses of folders that hold `archives`, tried in this order.
        archives: downloaded file -> its SHA-256: the .gz of each file, or one .zip of all.
        train, test: prefix of the file names of that part.
        source: the source, for messages.
    """

    name: str
    files: dict[str, tuple[str, str]]
    mirrors: tuple[str, ...]
    archives: dict[str, str]
    train: str = "train"
    test: str = "t10k"
    source: str = ""

    def missing(self, folder: Path) -> list[NeededFile]:
        """The files that are missing in `folder`, both plain and as .gz."""
        return [
            NeededFile(folder / f"{name}.gz", size, f"{self.mirrors[0]}{self.source}", downloads=True)
            for name, (size, _) in self.files.items()
            if _find(folder, name) is None
        ]

    def present(self, folder: Path) -> list[Path]:
        """The files that are in `folder`, complete or not."""
        return [path for name in self.files if (path := _find(folder, name))]

    def images(self, folder: Path, part: str) -> np.ndarray:
        """Images uint8 (N, 28, 28), read-only; `part` is `train` or `test` of the collection."""
        return self._read(folder, f"{part}-images-idx3-ubyte")

    def labels(self, folder: Path, part: str) -> np.ndarray:
        """Labels int64 (N,), as in the files."""
        return self._read(folder, f"{part}-labels-idx1-ubyte").astype(np.int64)

    def _read(self, folder: Path, name: str) -> np.ndarray:
        path = _find(folder, name)
        if path is None:
            raise BenchmarkError(
                f"{folder / name} is missing, plain and as .gz: fetch it with debiasbench prepare, or put it there."
            )
        return read_idx(path, sha256=self.files[name][1])

    def download(self, folder: Path) -> None:
        """Download and verify the files that are missing in `folder`; existing files are kept.

        Raises:
            BenchmarkError: a file cannot be downloaded or written.
        """
        missing = [file.path for file in self.missing(folder)]
        in_one = next((name for name in self.archives if name.endswith(".zip")), None)
        if in_one is None:
            for path in missing:
                self._fetch(path.name, folder)
        elif missing:
            archive = self._fetch(in_one, folder)
            with explained_errors(str(folder), "--data-dir"), zipfile.ZipFile(archive) as contents:
                inside = {PurePosixPath(member).name: member for member in contents.namelist()}
                for path in missing:
                    write_atomically(path, contents.read(inside[path.name]))
            archive.unlink()

    def _fetch(self, name: str, folder: Path) -> Path:
        return fetch([f"{mirror}{name}" for mirror in self.mirrors], folder / name, sha256=self.archives[name])


def prepare(collections: dict[Path, Collection]) -> None:
    """Download the collections that have missing files into their folders.

    Raises:
        BenchmarkError: as in `Collection.download`.
    """
    for folder, collection in collections.items():
        collection.download(folder)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


# The archives of the first three have the MD5 sums listed in torchvision; the SHA-256 were computed from such files.
MNIST = Collection(
    "MNIST",
    {
        "train-images-idx3-ubyte": ("9.9 MB", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        "train-labels-idx1-ubyte": ("29 kB", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        "t10k-images-idx3-ubyte": ("1.6 MB", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        "t10k-labels-idx1-ubyte": ("5 kB", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    },
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    archives={
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
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
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    archives={
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
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
    mirrors=(
        "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
    ),
    archives={
        "t10k-images-idx3-ubyte.gz": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
        "t10k-labels-idx1-ubyte.gz": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        "train-images-idx3-ubyte.gz": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
        "train-labels-idx1-ubyte.gz": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
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
    mirrors=("https://biometrics.nist.gov/cs_links/EMNIST/",),
    archives={"gzip.zip": "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e"},
    train="emnist-letters-train",
    test="emnist-letters-test",
    source="gzip.zip (one archive of 562 MB, of which these files are kept)",
)


_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4"}  # data type byte -> numpy


def read_idx(path: Path, *, sha256: str | None = None) -> np.ndarray:
    """Read an IDX file (MNIST's format), plain or gzip-ed.

    Raises:
        BenchmarkError: the file is empty, truncated or not an IDX file, or its unpacked bytes have another SHA-256.
    """
    mend = "Delete it and fetch it again (debiasbench prepare)."
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise BenchmarkError(f"Cannot read {path}: {error}. {mend}") from None
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES:
        raise BenchmarkError(f"{path} is not an IDX file ({len(data)} bytes once unpacked). {mend}")
    start = 4 + 4 * data[3]
    kind = np.dtype(_IDX_TYPES[data[2]])
    shape = struct.unpack(f">{data[3]}I", data[4:start]) if len(data) >= start else (-1,)
    expected = start + int(np.prod(shape)) * kind.itemsize
    if len(data) != expected or -1 in shape:
        raise BenchmarkError(f"{path} is cut off or damaged: {len(data)} bytes once unpacked, not {expected}. {mend}")
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise BenchmarkError(f"{path} has a wrong checksum: it is not the published file. {mend}")
    return np.frombuffer(data, kind, offset=start).reshape(shape)
