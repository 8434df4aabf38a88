"""CIFAR-10 without an added bias: the unbiased control of the PGD paper's Table 12.

Input: uint8 (3, 32, 32). Label: one of ten classes. Bias: none is known (-1). Splits: the first 45,000 and the last
5,000 of the 50,000 training images, and the 10,000 test images. A debiasing method should not do worse here than plain
training, for which the paper reports 94.24 %.

Recipe: that of Corrupted CIFAR-10 (PGD paper, Table 6), but with the usual stem for small images. ImageNet's stem
reduces 32 x 32 pixels to one and does not reach the paper's accuracy.

Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009; its author states no licence.
"""

from pathlib import Path

import torch

from debiasbench.data.cifar import (
    CIFAR_RECIPE,
    CLASS_NAMES,
    COUNTS,
    download,
    missing_files,
    present_files,
    read_cifar10,
    shortfalls,
)
from debiasbench.datasets import Dataset, NeededFile
from debiasbench.samples import Samples, Splits


class CIFAR10(Dataset):
    """CIFAR-10, which has no known bias."""

    name = "cifar10"
    display = "CIFAR-10"
    class_names = CLASS_NAMES
    headline = ("acc_avg",)
    official_counts = COUNTS
    citation = """@techreport{krizhevsky2009learning,
  title={Learning multiple layers of features from tiny images},
  author={Krizhevsky, Alex}, institution={University of Toronto}, year={2009}}"""
    recipe = CIFAR_RECIPE.replace(net="resnet18-small")

    @property
    def has_bias_labels(self) -> bool:
        return False

    def folder(self, data_dir: Path) -> Path:
        """The data folder; CIFAR-10 is a folder in it, as in torchvision."""
        return super().folder(data_dir) if self.root else data_dir

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The batches of CIFAR-10."""
        return missing_files(self.folder(data_dir))

    def present_files(self, data_dir: Path) -> list[Path]:
        return present_files(self.folder(data_dir))

    def shortfalls(self, data_dir: Path) -> list[str]:
        return shortfalls(self.folder(data_dir))

    def prepare(self, data_dir: Path) -> None:
        """Download CIFAR-10 from its mirrors."""
        if self.needed_files(data_dir):
            download(self.folder(data_dir))

    def draws(self, data_dir: Path) -> bool:
        return False

    def build(self, data_dir: Path) -> Splits:
        """45,000 / 5,000 / 10,000 samples."""
        plain = read_cifar10(self.folder(data_dir))
        splits = {
            split: Samples(x, y, torch.full((len(y), 1), -1)) for split, (x, y) in plain.parts().items()
        }  # fmt: skip
        return Splits.of(splits, official=plain.complete, note=plain.note)
