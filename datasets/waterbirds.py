"""Waterbirds: does the bird live on water? In training, nearly all birds are pasted onto the place where they live.

Input: uint8 (3, size, size). Each image is resized to a square, without keeping its aspect ratio, and the central seven
eighths of each side are kept, as in GroupDRO's loader: 224 of 256 pixels. Label: landbird (0) or waterbird (1). Bias:
the place, land (0) or water (1). A sample conflicts if the two differ: 240 of the 4,795 training images.

Layout, as in the authors' archive: waterbird_complete95_forest2water2/metadata.csv with the columns img_id,
img_filename, y, split (0 train, 1 validation, 2 test), place and place_filename, and the images beside it. Published
groups (landbird on land and on water, waterbird on land and on water): training 3,498 / 184 / 56 / 1,057, validation
467 / 466 / 133 / 133, test 2,255 / 2,255 / 642 / 642. No checksum of metadata.csv was published, so the published data
are recognised by these twelve numbers. Another draw by the authors' script has other numbers and is marked in every
table. Images that are not .jpg are marked, too. Validation and test are balanced within each label. So validation does
not have the bias of training, and whatever selects on it uses that.

Headlines: acc_worst (worst of the four groups), and acc_adjusted, the average that papers report: groups weighted as in
training. Recipe: that of GroupDRO's README (ResNet-50 with ImageNet weights, SGD 1e-3, L2 1e-4, batches of 128, 300
epochs), without augmentation. JTT's authors use 1e-5 and L2 1.0, T = 60 and factor 100 (`jtt:T=60,lambda_up=100` on
`waterbirds:learning_rate=1e-5,weight_decay=1`). Expected accuracy of the worst group, from tables of others and not
checked: ERM 72.6, JTT 86.7, GroupDRO 91.4, DFR 92.9.

`debiasbench prepare waterbirds` tries the authors' two addresses, which could not be tested. The Hugging Face hub has
grodino/waterbirds and a copy, salman53/waterbirds. They are Parquet, which is a different file, and were not verified;
without a checksum nothing is downloaded from the hub. Unpack them by hand into the layout above.
Source: S. Sagawa et al., ICLR 2020; birds of CUB-200-2011 and backgrounds of Places, both for research only.
"""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from debiasbench.data.downloads import fetch
from debiasbench.data.images import decode, has_images, remarks, shortfalls
from debiasbench.data.unpack import unpack
from debiasbench.datasets import Dataset, NeededFile, Recipe, at_least
from debiasbench.errors import BenchmarkError
from debiasbench.samples import Samples, Splits

FOLDER = "waterbird_complete95_forest2water2"
ARCHIVE = f"{FOLDER}.tar.gz"
MIRRORS = (
    f"https://nlp.stanford.edu/data/dro/{ARCHIVE}",
    f"https://downloads.cs.stanford.edu/nlp/data/dro/{ARCHIVE}",
)
SOURCE = f"{ARCHIVE} of GroupDRO's authors (https://github.com/kohpangwei/group_DRO)"
GROUPS = {  # split -> number of samples by 2 label + place, as published
    "train": (3_498, 184, 56, 1_057), "valid": (467, 466, 133, 133), "test": (2_255, 2_255, 642, 642),
}  # fmt: skip
ALLOWED = {"y": ("0", "1"), "split": ("0", "1", "2"), "place": ("0", "1")}  # columns of metadata.csv -> values
SHOWN = 5  # mistakes that a message shows


class Waterbirds(Dataset):
    """Waterbirds and landbirds, biased by the place they are shown in."""

    name = "waterbirds"
    display = "Waterbirds"
    class_names = ("landbird", "waterbird")
    bias_names = ("place",)
    bias_values = (("land", "water"),)
    n_bias_values = 2
    headline = ("acc_worst", "acc_adjusted")
    official_counts = {split: sum(groups) for split, groups in GROUPS.items()}
    conflict_ratio = 0.05  # built in: 95 % of each label are at its usual place
    citation = """@inproceedings{sagawa2020distributionally,
  title={Distributionally Robust Neural Networks for Group Shifts},
  author={Sagawa, Shiori and Koh, Pang Wei and Hashimoto, Tatsunori B. and Liang, Percy},
  booktitle={International Conference on Learning Representations}, year={2020}}"""
    recipe = Recipe(
        net="resnet50", pretrained="imagenet", epochs=300, batch_size=128, learning_rate=1e-3, weight_decay=1e-4,
        schedule="constant", augment=False, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip

    size: int = at_least(16, default=224)  # pixels per side

    def folder(self, data_dir: Path) -> Path:
        return super().folder(data_dir) if self.root else data_dir / FOLDER

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The table and the images beside it."""
        folder = self.folder(data_dir)
        needed = []
        if not (folder / "metadata.csv").is_file():
            needed.append(NeededFile(folder / "metadata.csv", "1 MB", SOURCE, downloads=True))
        if not has_images(folder):
            needed.append(NeededFile(folder, "11,788 images, 0.5 GB", SOURCE, downloads=True, for_x_alone=True))
        return needed

    def shortfalls(self, data_dir: Path) -> list[str]:
        """Compare the number of images."""
        return shortfalls({self.folder(data_dir): sum(self.official_counts.values())})

    def prepare(self, data_dir: Path) -> None:
        """Download the authors' archive and unpack it."""
        folder = self.folder(data_dir)
        archive = fetch(MIRRORS, folder / ARCHIVE, sha256=None)  # none was published
        unpack(archive, folder, strip=1)
        archive.unlink()

    def draws(self, data_dir: Path) -> bool:
        return False

    def build(self, data_dir: Path) -> Splits:
        """The splits of metadata.csv, each in the order of the table."""
        folder = self.folder(data_dir)
        names, columns = read_metadata(folder / "metadata.csv")
        paths = [folder / name for name in names]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise BenchmarkError(
                f"{len(missing):,} of {len(paths):,} images that {folder / 'metadata.csv'} lists are missing: "
                f"{', '.join(map(str, missing[:3]))}{', ...' if len(missing) > 3 else ''}. Unpack {ARCHIVE} again; a "
                "subset needs a table of its own."
            )
        margin = self.size // 14  # 16 of 256 pixels
        bare = _splits(folder, columns)
        images, splits = {}, {}
        for split, part in bare.named().items():
            rows = _rows(columns, split)
            one = images[split] = decode(
                f"{self.name}-{split}", [paths[row] for row in rows], size=self.size + 2 * margin
            )
            inner = slice(margin, margin + self.size)
            splits[split] = replace(part, x=one.x[:, :, inner, inner], x_sha256=one.sha256)
        note = " ".join([bare.note, *remarks(images.values())])
        jpg = all(path.suffix.lower() == ".jpg" for path in paths)  # files of other types were made from these
        return Splits.of(splits, official=bare.official and jpg, note=note)

    def build_labels(self, data_dir: Path) -> Splits:
        """Like `build`; labels and places alone if the table is there without images."""
        folder = self.folder(data_dir)
        if has_images(folder):
            return self.build(data_dir)
        splits = _splits(folder, read_metadata(folder / "metadata.csv")[1])
        return replace(splits, official=False, note=f"{splits.note} There are no images, so none were read.")


def _rows(columns: np.ndarray, split: str) -> np.ndarray:
    """The rows of a split."""
    return np.flatnonzero(columns[:, 1] == list(GROUPS).index(split))


def _splits(folder: Path, columns: np.ndarray) -> Splits:
    """Labels and places of each split, without images; says whether the groups are as published."""
    splits, other = {}, []
    for split, published in GROUPS.items():
        y, _, place = torch.from_numpy(columns[_rows(columns, split)]).unbind(1)
        if not len(y):
            raise BenchmarkError(f"{folder / 'metadata.csv'} has no row of the {split} split.")
        splits[split] = Samples(torch.empty(len(y), 0, dtype=torch.uint8), y, place[:, None])
        found = tuple((2 * y + place).bincount(minlength=4).tolist())
        if found != published:
            shown = [" / ".join(f"{n:,}" for n in counts) for counts in (found, published)]
            other.append(f"{split} {shown[0]}, published {shown[1]}")
    note = (
        f"Another draw than the published one, or a part of it. Groups (2 label + place): {'; '.join(other)}."
        if other
        else "Groups are as published; no checksum was published, so images are not verified."
    )
    return Splits.of(splits, official=not other, note=note)


def read_metadata(path: Path) -> tuple[list[str], np.ndarray]:
    """Read the names of the images, and (y, split, place) of each, int64 (N, 3).

    Raises:
        BenchmarkError: the table is missing, cannot be read, or has invalid lines, which the message names.
    """
    if not path.is_file():
        raise BenchmarkError(f"{path} is missing: fetch it with debiasbench prepare waterbirds, or put it there.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            given = list(reader.fieldnames or [])
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchmarkError(f"{path} cannot be read as a table ({error}). Fetch it again.") from None
    absent = [name for name in ("img_filename", *ALLOWED) if name not in given]
    if absent:
        raise BenchmarkError(
            f"{path} lacks the columns {', '.join(absent)}. Needed: img_filename, {', '.join(ALLOWED)}. "
            f"Got {', '.join(given) or 'nothing'}. Fetch it again."
        )
    problems: list[str] = []
    seen: dict[str, int] = {}  # name -> its line
    for number, line in enumerate(lines, start=2):
        name = line["img_filename"]
        problems += [
            f"line {number}: {column} must be {' or '.join(values)}. Got {line[column]!r}."
            for column, values in ALLOWED.items()
            if line[column] not in values
        ]
        if not name or name in seen:
            told = f"{name} is in line {seen[name]} already" if name else "img_filename is empty"
            problems.append(f"line {number}: {told}.")
        seen.setdefault(name, number)
    if problems:
        more = f"\n... and {len(problems) - SHOWN} more." if len(problems) > SHOWN else ""
        raise BenchmarkError(f"{path}:\n" + "\n".join(problems[:SHOWN]) + more)
    return list(seen), np.array([[int(line[column]) for column in ALLOWED] for line in lines], dtype=np.int64)
