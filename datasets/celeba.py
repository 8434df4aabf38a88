"""CelebA: is the hair blond? Hair colour and gender are tied: of the blond faces only one in seventeen is male.

Input: uint8 (3, S, S), the central square of the aligned image (178 of 178 x 218 pixels; resized to 224 on the
device). Label: Blond_Hair. Bias: Male. Groups are numbered 2 blond + male, as by GroupDRO, JTT, CNC and GEORGE
(BPA and WILDS number them blond + 2 male). Neither gender is typical of other hair (52 to 48), so here only blond
men count as conflicting: the one small group, and the worst group of plain training. Their fraction is a fact of the
data and was not built in, so `conflict_ratio` is unknown: JTT takes its authors' factor instead.

Layout, as torchvision and the authors have it: celeba/img_align_celeba/<n>.jpg, celeba/list_attr_celeba.txt,
celeba/list_eval_partition.txt (plain or .gz). 162,770 / 19,867 / 19,962 images; training groups 71,629 / 66,874 /
22,880 / 1,387. A subset works with lists of its own and is marked as one in every table.

Headlines: acc_worst (worst of the four groups, the paper's Table 3), acc_avg, and the mean over groups
(acc_groupmean; the "unbiased" accuracy of BPA and the paper's Table 15). Recipe: Table 6, no augmentation.
`preset=resnet18` has the network of Table 15.
Source: Z. Liu et al., ICCV 2015; for non-commercial research only.
"""

import gzip
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from debiasbench.data.downloads import fetch_from_drive
from debiasbench.data.images import decode, has_images, shortfalls
from debiasbench.data.unpack import unpack
from debiasbench.datasets import Dataset, NeededFile, Recipe
from debiasbench.errors import BenchmarkError
from debiasbench.samples import Samples, Splits

PARTS = ("train", "valid", "test")  # 0, 1, 2 in the partition list
SOURCE = "the CelebA pages of its authors (mmlab.ie.cuhk.edu.hk/projects/CelebA.html), folder Img and Anno"
MIRRORS = {"img_align_celeba.zip": ["https://s3.amazonaws.com/pytorch-tutorial-assets/img_align_celeba.zip"]}
DRIVE = {  # file -> (its id, SHA-256), as TensorFlow Datasets has them
    "img_align_celeba.zip": (
        "0B7EVK8r0v71pZjFTYXZWM3FlRnM", "46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74",
    ),
    "list_attr_celeba.txt": (
        "0B7EVK8r0v71pblRyaVFSWGxPY0U", "f0e5da289d5ccf75ffe8811132694922b60f2af59256ed362afa03fefba324d0",
    ),
    "list_eval_partition.txt": (
        "0B7EVK8r0v71pY0NSMzRuSXJEVkk", "fc955bcb3ef8fbdf7d5640d9a8693a8431b5f2ee291a5c1449a1549e7e073fe7",
    ),
}  # fmt: skip
OFFICIAL_TRAIN_GROUPS = [71_629, 66_874, 22_880, 1_387]


class CelebA(Dataset):
    """Blond hair in CelebA, biased by gender."""

    name = "celeba"
    class_names = ("not blond", "blond")
    bias_names = ("male",)
    n_bias_values = 2
    headline = ("acc_worst", "acc_avg", "acc_groupmean")
    official_counts = {"train": 162_770, "valid": 19_867, "test": 19_962}
    citation = """@inproceedings{liu2015celeba,
  title={Deep Learning Face Attributes in the Wild},
  author={Liu, Ziwei and Luo, Ping and Wang, Xiaogang and Tang, Xiaoou},
  booktitle={International Conference on Computer Vision}, year={2015}}"""
    recipe = Recipe(
        net="resnet50", pretrained="imagenet", size=224, epochs=100, batch_size=256, optimizer="adam",
        learning_rate=1e-4, weight_decay=0.01, schedule="cosine", augment=False,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    presets = {"resnet18": {"recipe": {"net": "resnet18"}}}

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The folder of images and the two lists."""
        folder = self.folder(data_dir)
        needed = []
        if not has_images(folder / "img_align_celeba"):
            needed.append(
                NeededFile(folder / "img_align_celeba", "202,599 images, 1.4 GB (img_align_celeba.zip)", SOURCE, True)
            )
        for name, size in (("list_attr_celeba.txt", "26 MB"), ("list_eval_partition.txt", "2.8 MB")):
            if _find(folder, name) is None:
                needed.append(NeededFile(folder / name, size, SOURCE, True))
        return needed

    def shortfalls(self, data_dir: Path) -> list[str]:
        """By the number of images."""
        return shortfalls({self.folder(data_dir) / "img_align_celeba": 202_599})

    def prepare(self, data_dir: Path) -> None:
        """From the authors' Google Drive, and the images first from the copy that PyTorch's tutorials use."""
        folder = self.folder(data_dir)
        for name, (file_id, sha256) in DRIVE.items():
            images = name == "img_align_celeba.zip"
            if has_images(folder / "img_align_celeba") if images else _find(folder, name):
                continue
            path = fetch_from_drive(file_id, folder / name, sha256=sha256, mirrors=MIRRORS.get(name, ()))
            if images:
                unpack(path, folder)
                path.unlink()

    def draws(self, data_dir: Path) -> bool:
        return False

    def build(self, data_dir: Path) -> Splits:
        """The parts of the partition list, each in the order of the attribute list."""
        folder = self.folder(data_dir)
        names, attributes = read_attributes(folder)
        part_of = read_partition(folder)
        without = [name for name in names if name not in part_of]
        if without or len(part_of) != len(names):
            without = without or sorted(set(part_of) - set(names))
            raise BenchmarkError(
                f"The two lists in {folder} are not of the same images: {len(names):,} rows of attributes, "
                f"{len(part_of):,} of the partition; only in one: {', '.join(without[:3])}, ... Take both lists from "
                "one source."
            )
        there = {path.name for path in (folder / "img_align_celeba").iterdir()}
        missing = [name for name in names if name not in there]
        if missing:
            raise BenchmarkError(
                f"{len(missing):,} of {len(names):,} images are missing in {folder / 'img_align_celeba'}: "
                f"{', '.join(missing[:3])}, ... Unpack img_align_celeba.zip again; a subset needs lists of its own."
            )
        parts = np.array([part_of[name] for name in names])
        splits = {}
        for number, split in enumerate(PARTS):
            rows = np.flatnonzero(parts == number)
            if not len(rows):
                raise BenchmarkError(f"{folder / 'list_eval_partition.txt'} has no image of part {number} ({split}).")
            splits[split] = self._read(folder, split, [names[row] for row in rows], attributes[rows])
        train = splits["train"]
        groups = torch.bincount(2 * train.y + train.bias[:, 0], minlength=4).tolist()
        counts = {split: len(samples) for split, samples in splits.items()}
        found = {name: _find(folder, name) for name in DRIVE if name.startswith("list")}
        lists = all(path is not None and _sha256(path) == DRIVE[name][1] for name, path in found.items())
        whole = counts == self.official_counts and groups == OFFICIAL_TRAIN_GROUPS
        official = whole and lists and train.x.shape[2:] == (178, 178)
        return Splits.of(splits, official=official)

    def _read(self, folder: Path, split: str, names: list[str], attributes: np.ndarray) -> Samples:
        paths = [folder / "img_align_celeba" / name for name in names]
        images = decode(f"{self.name}-{split}", paths, square=True)
        blond, male = torch.from_numpy(attributes).unbind(1)
        conflict = (blond == 1) & (male == 1)
        return Samples(images.x, blond, male[:, None], conflict[:, None], images.sha256)


def read_attributes(folder: Path) -> tuple[list[str], np.ndarray]:
    """Names of the images and (blond, male) of each, int64 (N, 2), from list_attr_celeba.txt."""
    path, lines = _lines(folder, "list_attr_celeba.txt")
    header = lines[1].split() if len(lines) > 1 else []
    missing = [name for name in ("Blond_Hair", "Male") if name not in header]
    if not lines or not lines[0].strip().isdigit() or missing:
        raise BenchmarkError(
            f"{path} is no attribute list of CelebA: the first line must be the number of images, the second the "
            f"names of the attributes{'; ' + ' and '.join(missing) + ' is missing' if missing else ''}."
        )
    columns = [1 + header.index("Blond_Hair"), 1 + header.index("Male")]
    rows = [line.split() for line in lines[2:] if line.strip()]
    if len(rows) != int(lines[0]):
        raise BenchmarkError(
            f"{path} has {len(rows):,} rows, but its first line says {int(lines[0]):,}: it is cut off or was edited."
        )
    for number, row in enumerate(rows, start=3):
        if len(row) != len(header) + 1 or {row[column] for column in columns} - {"-1", "1", "0"}:
            raise BenchmarkError(
                f"{path}, line {number}: a name and {len(header)} values of -1 or 1 are needed. "
                f"Got {' '.join(row)[:80]}"
            )
    names = [row[0] for row in rows]
    _refuse_duplicates(path, names)
    return names, np.array([[int(row[column] == "1") for column in columns] for row in rows], dtype=np.int64)


def read_partition(folder: Path) -> dict[str, int]:
    """Name -> 0, 1 or 2, from list_eval_partition.txt."""
    path, lines = _lines(folder, "list_eval_partition.txt")
    rows = [line.split() for line in lines if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or row[1] not in ("0", "1", "2"):
            raise BenchmarkError(f"{path}, line {number}: a name and 0, 1 or 2 are needed. Got {' '.join(row)[:80]}")
    _refuse_duplicates(path, [name for name, _ in rows])
    return {name: int(part) for name, part in rows}


def _sha256(path: Path) -> str:
    """Of the file, or of what a .gz holds."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_duplicates(path: Path, names: list[str]) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise BenchmarkError(f"{path} has {twice[0]} twice: take out one of the rows.")


def _lines(folder: Path, name: str) -> tuple[Path, list[str]]:
    path = _find(folder, name)
    if path is None:
        raise BenchmarkError(f"{folder / name} is missing.")
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path} cannot be read ({error}). Fetch it again.") from None
    return path, text.splitlines()


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
