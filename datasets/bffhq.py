"""Biased FFHQ: faces whose gender and age agree, except in 0.5 % of the training images.

Input: uint8 (3, H, W), resized to 224 x 224 on the device. Label: the first attribute in the file name. Bias: the
second. Both are 0 or 1, and they are equal for aligned samples (0, 0: young women; 1, 1: old men). The PGD paper calls
the target gender and the bias age; other loaders of the same archive say the reverse. Here they are called attr0 and
attr1, in the order of the file names.

Layout, as in the official archive: bffhq/0.5pct/{align,conflict}/<label>/*, bffhq/valid/*, bffhq/test/*, with names
<id>_<attr0>_<attr1>. Counts: 19,200 training images (96 conflicting), 1,000 for validation, 1,000 for test. The whole
test split is kept: `acc_unbiased` is the PGD paper's metric, `acc_conflict` is Disen's, which leaves out aligned test
images. Recipe: PGD paper, Table 6. The magnitudes of its augmentation are not published, so Disen's are used.

Images: FFHQ (NVIDIA), CC BY-NC-SA 4.0; BFFHQ by J. Lee et al., 2021.
"""

from pathlib import Path

import torch
from torch import Tensor

from debiasbench.data.images import decode, has_images, image_files, other_files, remarks, shortfalls
from debiasbench.data.unpack import unpack
from debiasbench.datasets import Dataset, NeededFile, Recipe, one_of
from debiasbench.errors import BenchmarkError
from debiasbench.samples import Samples, Splits

SOURCE = (
    "the archive of BFFHQ in https://drive.google.com/drive/folders/1JEOqxrhU_IhkdcRohdbuEtFETUxfNmNT (the link of "
    "the repository kakaoenterprise/Learning-Debiased-Disentangled); put it beside as bffhq.zip and debiasbench "
    "prepare bffhq unpacks it"
)


class BFFHQ(Dataset):
    """Biased FFHQ from the official archive's folders."""

    name = "bffhq"
    display = "BFFHQ"
    class_names = ("attr0=0", "attr0=1")
    bias_names = ("attr1",)
    n_bias_values = 2
    unbiased_test = True
    ratio_parameters = ("part",)
    headline = ("acc_unbiased",)
    official_counts = {"train": 19_200, "valid": 1_000, "test": 1_000}
    recipe = Recipe(
        net="resnet18", size=224, epochs=160, batch_size=64, optimizer="adam", learning_rate=1e-4, weight_decay=0.0,
        milestones=(0.2, 0.4, 0.6, 0.8), gamma=0.1, pad_crop=4, flip=True,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010),
    )  # fmt: skip

    part: str = one_of("0.5pct", "1pct", "2pct", "5pct", default="0.5pct")  # fraction of conflicting samples

    @property
    def conflict_ratio(self) -> float:
        return float(self.part.removesuffix("pct")) / 100

    def in_words(self) -> dict[str, str]:
        return {"part": f"{100 * self.conflict_ratio:g} %"}

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The training folders, and the folders of validation and test, which have no subfolders."""
        folder = self.folder(data_dir)
        sizes = {
            folder / self.part / "align": "19,104 images at 0.5pct",
            folder / self.part / "conflict": "96 images at 0.5pct",
            folder / "valid": "1,000 images",
            folder / "test": "1,000 images",
        }
        return [NeededFile(path, size, SOURCE) for path, size in sizes.items() if not has_images(path)]

    def shortfalls(self, data_dir: Path) -> list[str]:
        """Compare the number of images; the paper gives none for training parts other than 0.5pct."""
        folder = self.folder(data_dir)
        published = {folder / "valid": 1_000, folder / "test": 1_000}
        if self.part == "0.5pct":
            published |= {folder / self.part / "align": 19_104, folder / self.part / "conflict": 96}
        return shortfalls(published)

    def prepare(self, data_dir: Path) -> None:
        """Unpack the archive if it is there. Its address is a folder of several files, so it cannot be downloaded."""
        folder = self.folder(data_dir).absolute()
        archive = folder.with_name(f"{folder.name}.zip")
        if archive.is_file():
            unpack(archive, archive.parent)

    def draws(self, data_dir: Path) -> bool:
        return False

    def build(self, data_dir: Path) -> Splits:
        """Training images of one part; all validation and test images."""
        folder = self.folder(data_dir)
        train = folder / self.part
        places = {
            "train": (train / "align", train / "conflict"),
            "valid": (folder / "valid",),
            "test": (folder / "test",),
        }
        paths = {split: image_files(*some, below=split == "train") for split, some in places.items()}
        attributes = {split: torch.tensor([attributes_of(path) for path in some]) for split, some in paths.items()}
        _refuse_misplaced(paths["train"], attributes["train"], train)
        images = {split: decode(f"{self.name}-{split}", some) for split, some in paths.items()}
        splits = {}
        for split, one in images.items():
            if one.x.shape[1:] != images["train"].x.shape[1:]:
                raise BenchmarkError(f"The images of {folder / split} are of another size than those for training.")
            splits[split] = Samples(one.x, attributes[split][:, 0], attributes[split][:, 1:], x_sha256=one.sha256)
        counts = {split: len(samples) for split, samples in splits.items()}
        n_conflict = int(splits["train"].conflicting.sum())
        as_published = counts == self.official_counts and (self.part, n_conflict) == ("0.5pct", 96)
        note = (
            f"Counts are {'as published' if as_published else 'not those published for 0.5pct'}; no checksums of "
            "the images were published, so they are not verified."
        )
        others = [path for split, some in places.items() for path in other_files(*some, below=split == "train")]
        return Splits.of(
            splits,
            official=False,  # no checksums were published
            note=" ".join([note, *remarks(images.values(), others)]),
        )


def _refuse_misplaced(paths: list[Path], attributes: Tensor, folder: Path) -> None:
    """The folder, align or conflict, must agree with the attributes in the file names."""
    for path, (label, bias) in zip(paths, attributes.tolist(), strict=True):
        side = "align" if label == bias else "conflict"
        if path.relative_to(folder).parts[0] != side:
            raise BenchmarkError(f"{path} is not in the folder that its attributes give ({side}). Unpack it again.")


def attributes_of(path: Path) -> tuple[int, int]:
    """(attr0, attr1) from `<id>_<attr0>_<attr1>`."""
    fields = path.stem.split("_")
    if len(fields) != 3 or not set(fields[1:]) <= {"0", "1"}:
        raise BenchmarkError(f"{path}: the name must be <id>_<attr0>_<attr1> with attributes 0 or 1.")
    return int(fields[1]), int(fields[2])
