"""CelebA: is the hair blond? Hair colour and gender are correlated: only one blond face in seventeen is male.

Input: uint8 (3, S, S), the central square of the aligned image (178 of 178 x 218 pixels), resized to 224 on the device.
Label: Blond_Hair. Bias: Male. Groups are numbered 2 blond + male, as in GroupDRO, JTT, CNC and GEORGE (BPA and WILDS
number them blond + 2 male). Neither gender is typical of other hair (52 to 48). So only blond men count as conflicting
here: they are the one small group, and the worst group of plain training. Their fraction is a property of the data and
was not built in, so `conflict_ratio` is unknown, and JTT takes the factor of its authors instead.

Label and bias can be any two of the 40 attributes: `celeba:target=Smiling,bias=Male`. Then two groups conflict, one of
each label: those that are rarer in training than they would be if the attributes were independent. The note of the data
names them. What was published for blond hair (numbers, JTT's factor, the recipe) was not published for other
attributes.

Layout, as in torchvision: celeba/img_align_celeba/<n>.jpg, celeba/list_attr_celeba.txt, celeba/list_eval_partition.txt.
Other packings are read as well: the authors' folders Img, Anno and Eval; a folder img_align_celeba inside another of
that name, and lists as .csv, as on Kaggle; lists as .gz; images with another extension than in the list (.png, .JPG).
162,770 / 19,867 / 19,962 images; training groups 71,629 / 66,874 / 22,880 / 1,387. A subset works if it has its own
lists, which need only the two attributes. Every table marks it as a subset.

Headlines: acc_worst (worst of the four groups, the paper's Table 3), acc_avg, and the mean over groups (acc_groupmean;
the "unbiased" accuracy of BPA and of the paper's Table 15). Recipe: Table 6, no augmentation. `preset=resnet18` has the
network of Table 15.
Source: Z. Liu et al., ICCV 2015; for non-commercial research only.
"""

import csv
import gzip
import hashlib
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from debiasbench.data.downloads import fetch_from_drive
from debiasbench.data.images import contents, decode, folder_of_images, remarks, shortfalls
from debiasbench.data.unpack import unpack
from debiasbench.datasets import Dataset, NeededFile, Recipe, one_of
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
# Attribute -> digest of what the authors' lists say about it, whatever the format of the file: the first 16 digits of
# the SHA-256 of "<name> <0 or 1> <part>\n", row by row
ATTRIBUTES = {
    "5_o_Clock_Shadow": "cd8bbcfa6e215b84", "Arched_Eyebrows": "4ad8e2e4f123566b", "Attractive": "eec8f4343bb0bfe6",
    "Bags_Under_Eyes": "70ec82981d0600ee", "Bald": "be95c4b1fc4f8cb2", "Bangs": "75a629d7d8970191",
    "Big_Lips": "f3f59348bb61aa99", "Big_Nose": "e346e3414cb1642c", "Black_Hair": "a19e32f3810960c5",
    "Blond_Hair": "5ccb101795677d6e", "Blurry": "9c38970794fd848d", "Brown_Hair": "1176d4fb4c1e8ace",
    "Bushy_Eyebrows": "bd6e08f922a75706", "Chubby": "0ae2e43d753eafdc", "Double_Chin": "d9577bf63a069931",
    "Eyeglasses": "baafe2ad711885df", "Goatee": "e95144b0afcb04de", "Gray_Hair": "47d40c06f1ea0721",
    "Heavy_Makeup": "3700e37d60dfb83d", "High_Cheekbones": "6fd86786f73030b9", "Male": "3641cd222ec921a3",
    "Mouth_Slightly_Open": "cfbcde9c7ca39983", "Mustache": "58a762629c35e694", "Narrow_Eyes": "245eb1211b03d471",
    "No_Beard": "d570c56f2751d90d", "Oval_Face": "cd641f153ac6cd76", "Pale_Skin": "1a7f89a3409b6ddb",
    "Pointy_Nose": "5b6589610935a6aa", "Receding_Hairline": "b3b1b0fe6cea4e9d", "Rosy_Cheeks": "2c3b26599200385e",
    "Sideburns": "5d5729f15e20f0bf", "Smiling": "3518d38999bb7e9b", "Straight_Hair": "84bdfa29cd62bbcf",
    "Wavy_Hair": "d65ac7e93052d609", "Wearing_Earrings": "44d4e5a4b128d63b", "Wearing_Hat": "bdb3d11116148030",
    "Wearing_Lipstick": "25dd9cd149de6f67", "Wearing_Necklace": "016986cdef902a88",
    "Wearing_Necktie": "fb0cd6ff5cf45150", "Young": "d606ffa53221f84a",
}  # fmt: skip
BLOND, MALE = "Blond_Hair", "Male"
IMAGES = "img_align_celeba"
IMAGE_PLACES = (IMAGES, f"Img/{IMAGES}", f"{IMAGES}_png", f"Img/{IMAGES}_png")
LIST_PLACES = ("", "Anno", "Eval")


class CelebA(Dataset):
    """Blond hair in CelebA, biased by gender; or any attribute by any other."""

    name = "celeba"
    display = "CelebA"
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

    target: str = one_of(*ATTRIBUTES, default=BLOND)
    bias: str = one_of(*ATTRIBUTES, default=MALE)

    def check(self) -> None:
        if self.target == self.bias:
            raise BenchmarkError(
                f"The 'target' and the 'bias' of {self.name} must be two attributes. Got {self.target} for both: give "
                f"another one, {self.name}:target=...,bias=..."
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        word = "blond" if self.target == BLOND else _words(self.target)
        return f"not {word}", word

    @property
    def bias_names(self) -> tuple[str, ...]:
        return (_words(self.bias),)

    @property
    def bias_values(self) -> tuple[tuple[str, ...], ...]:
        return ((f"not {self.bias_names[0]}", self.bias_names[0]),)

    def key(self) -> dict[str, Any]:
        """Leave out the usual attributes, so that cells keep the identity they had before there was a choice."""
        usual = {"target": BLOND, "bias": MALE}
        return {name: value for name, value in super().key().items() if usual.get(name) != value}

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The folder of images and the two lists."""
        folder = self.folder(data_dir)
        needed = []
        if _images(folder) is None:
            needed.append(NeededFile(folder / IMAGES, "202,599 images, 1.4 GB (img_align_celeba.zip)", SOURCE, True))
        for name, size in (("list_attr_celeba.txt", "26 MB"), ("list_eval_partition.txt", "2.8 MB")):
            if _find(folder, name) is None:
                needed.append(NeededFile(folder / name, size, SOURCE, True))
        return needed

    def shortfalls(self, data_dir: Path) -> list[str]:
        """Compare the number of images."""
        folder = self.folder(data_dir)
        return shortfalls({_images(folder) or folder / IMAGES: 202_599})

    def prepare(self, data_dir: Path) -> None:
        """Download from the authors' Google Drive; for the images, try the copy of PyTorch's tutorials first."""
        folder = self.folder(data_dir)
        for name, (file_id, sha256) in DRIVE.items():
            images = name == "img_align_celeba.zip"
            if _images(folder) if images else _find(folder, name):
                continue
            path = fetch_from_drive(file_id, folder / name, sha256=sha256, mirrors=MIRRORS.get(name, ()))
            if images:
                unpack(path, folder)
                path.unlink()

    def draws(self, data_dir: Path) -> bool:
        return False

    def build(self, data_dir: Path) -> Splits:
        """Split as the partition list says; each split has the order of the attribute list."""
        folder = self.folder(data_dir)
        names, attributes = read_attributes(folder, self.target, self.bias)
        part_of = read_partition(folder)
        without = [name for name in names if name not in part_of]
        if without or len(part_of) != len(names):
            without = without or sorted(set(part_of) - set(names))
            raise BenchmarkError(
                f"The two lists in {folder} are not of the same images: {len(names):,} rows of attributes, "
                f"{len(part_of):,} of the partition; only in one: {', '.join(without[:3])}, ... Take both lists from "
                "one source."
            )
        paths = _paths(folder, names)
        parts = np.array([part_of[name] for name in names])
        rare, notes = self._rare(*attributes[parts == 0].T)
        images, splits = {}, {}
        for number, split in enumerate(PARTS):
            rows = np.flatnonzero(parts == number)
            if not len(rows):
                raise BenchmarkError(
                    f"{_find(folder, 'list_eval_partition.txt')} has no image of part {number} ({split})."
                )
            one = images[split] = decode(f"{self.name}-{split}", [paths[row] for row in rows], square=True)
            y, bias = torch.from_numpy(attributes[rows]).unbind(1)
            splits[split] = Samples(one.x, y, bias[:, None], rare[y, bias][:, None], one.sha256)
        renamed = [path for path, name in zip(paths, names, strict=True) if path.name != name]
        if renamed:
            notes.append(f"{len(renamed):,} images have another ending than in the lists ({renamed[0].name}).")
        official = (
            all(
                _digest(names, values, parts) == ATTRIBUTES[attribute]
                for attribute, values in zip((self.target, self.bias), attributes.T, strict=True)
            )
            and splits["train"].x.shape[2:] == (178, 178)
            and all(path.suffix.lower() == ".jpg" for path in paths)  # files of other types were made from these
        )
        return Splits.of(splits, official=official, note=" ".join([*notes, *remarks(images.values())]))

    def _rare(self, y: np.ndarray, bias: np.ndarray) -> tuple[Tensor, list[str]]:
        """Which groups conflict, bool (2, 2) by label and bias, and the notes about it.

        y, bias: int64 (N,), of the training samples.
        """
        if (self.target, self.bias) == (BLOND, MALE):
            return torch.tensor([[False, False], [False, True]]), []
        counts = np.bincount(2 * y + bias, minlength=4).reshape(2, 2)
        rare = counts * counts.sum() < counts.sum(1, keepdims=True) * counts.sum(0)
        without = [f"without {self.bias_names[0]}", f"with {self.bias_names[0]}"]
        told = [f"{self.class_names[label]} {without[value]}" for label, value in np.argwhere(rare).tolist()]
        note = f"Conflicting, as rarer in training than if independent: {', '.join(told) or 'nothing'}."
        return torch.from_numpy(rare), [note]


def _words(attribute: str) -> str:
    """The name of an attribute in plain words."""
    return attribute.replace("_", " ").lower()


def _images(folder: Path) -> Path | None:
    """The folder with the images: one of the usual places, or a folder inside it."""
    found = (folder_of_images(folder / place) for place in IMAGE_PLACES)
    return next((place for place in found if place is not None), None)


def _paths(folder: Path, names: list[str]) -> list[Path]:
    """The file of each name, whatever its extension.

    Raises:
        BenchmarkError: some are missing.
    """
    place = _images(folder)
    if place is None:
        raise BenchmarkError(f"There are no images in {folder / IMAGES}. Unpack {IMAGES}.zip there.")
    images = contents(place).images
    there = {path.stem: path for path in images} | {path.name: path for path in images}
    paths = [there.get(name) or there.get(name.rpartition(".")[0]) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        raise BenchmarkError(
            f"{len(missing):,} of {len(names):,} images are missing in {place}: {', '.join(missing[:3])}, ... Unpack "
            f"{IMAGES}.zip again; a subset needs lists of its own."
        )
    return [path for path in paths if path is not None]


def _digest(names: list[str], values: np.ndarray, parts: np.ndarray) -> str:
    """The digest of what the lists say about one attribute, as in `ATTRIBUTES`."""
    rows = zip(names, values.tolist(), parts.tolist(), strict=True)
    text = "".join(f"{name} {value} {part}\n" for name, value, part in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_attributes(folder: Path, *wanted: str) -> tuple[list[str], np.ndarray]:
    """Read list_attr_celeba: the names of the images, and the wanted attributes, 0 or 1, as int64 (N, A)."""
    path, rows = _rows(folder, "list_attr_celeba.txt")
    n = rows.pop(0) if rows and len(rows[0]) == 1 and rows[0][0].isdigit() else None  # the authors' first line
    header, start = (rows.pop(0) if rows else []), (2 if n is None else 3)
    if n is not None:
        header = ["image_id", *header]  # the authors' list does not name this column
    missing = [name for name in ("image_id", *wanted) if name not in header]
    if missing:
        raise BenchmarkError(
            f"{path} is not an attribute list of CelebA: the first line must be the number of images and the second "
            f"the names of the attributes, or, in a .csv, image_id and these names; {' and '.join(missing)} is missing."
        )
    if n is not None and len(rows) != int(n[0]):
        raise BenchmarkError(
            f"{path} has {len(rows):,} rows, but its first line says {int(n[0]):,}: it is cut off or was edited."
        )
    name_column, *columns = (header.index(name) for name in ("image_id", *wanted))
    for number, row in enumerate(rows, start=start):
        if len(row) != len(header) or {row[column] for column in columns} - {"-1", "1", "0"}:
            raise BenchmarkError(
                f"{path}, line {number}: a name and {len(header) - 1} values of -1 or 1 are needed. "
                f"Got {' '.join(row)[:80]}"
            )
    names = [row[name_column] for row in rows]
    _refuse_duplicates(path, names)
    return names, np.array([[int(row[column] == "1") for column in columns] for row in rows], dtype=np.int64)


def read_partition(folder: Path) -> dict[str, int]:
    """Read list_eval_partition.txt or .csv: name -> 0, 1 or 2."""
    path, rows = _rows(folder, "list_eval_partition.txt")
    header, start = ["image_id", "partition"], 1
    if rows and {*header} <= {*rows[0]}:
        header, start = rows.pop(0), 2
    name_column, part_column = header.index("image_id"), header.index("partition")
    for number, row in enumerate(rows, start=start):
        if len(row) != len(header) or row[part_column] not in ("0", "1", "2"):
            raise BenchmarkError(f"{path}, line {number}: a name and 0, 1 or 2 are needed. Got {' '.join(row)[:80]}")
    _refuse_duplicates(path, [row[name_column] for row in rows])
    return {row[name_column]: int(row[part_column]) for row in rows}


def _refuse_duplicates(path: Path, names: list[str]) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise BenchmarkError(f"{path} has {twice[0]} twice: take out one of the rows.")


def _rows(folder: Path, name: str) -> tuple[Path, list[list[str]]]:
    """Read a list: its path, and the fields of each line, separated by commas if there are any, otherwise by blanks.

    Raises:
        BenchmarkError: the list is missing, or cannot be read.
    """
    path = _find(folder, name)
    if path is None:
        raise BenchmarkError(f"{folder / name} is missing.")
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        lines = [line for line in text.splitlines() if line.strip()]
        if any("," in line for line in lines[:1]):
            return path, [[field.strip() for field in row] for row in csv.reader(lines, strict=True)]
        return path, [line.split() for line in lines]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise BenchmarkError(f"{path} cannot be read ({error}). Fetch it again.") from None


def _find(folder: Path, name: str) -> Path | None:
    """Find a list: as text or .csv, compressed or not, beside the images or in the authors' folders."""
    names = [f"{Path(name).stem}{ending}" for ending in (".txt", ".txt.gz", ".csv", ".csv.gz")]
    paths = (folder / place / one for place in LIST_PLACES for one in names)
    return next((path for path in paths if path.is_file()), None)
