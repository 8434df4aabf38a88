"""Coloured characters: Kuzushiji, clothes or letters, each class in its own colour except for a few samples.

Input: uint8 (3, 28, 28), a character in one colour on black. Label: the character. Bias: the colour, which is that of
the label except for the fraction `rho` of the training and validation samples. In the test split all colours are
equally likely, so the colour is independent of the label. Splits: the last tenth of the training files is validation.

Source: KMNIST (ROIS-DS Center for Open Data in the Humanities, CC BY-SA 4.0), Fashion-MNIST (Zalando, MIT), EMNIST
letters (G. Cohen and others; NIST). The recipe is that of Colored MNIST, shortened.
"""

import colorsys
from pathlib import Path

import torch
from torch import Tensor

from debiasbench.data.colouring import COLOURED_MNIST_RECIPE, colour, exact_conflicts
from debiasbench.data.mnist_files import EMNIST_LETTERS, FASHION_MNIST, KMNIST, Collection, prepare
from debiasbench.datasets import Dataset, NeededFile, between, one_of
from debiasbench.randomness import derived_generator
from debiasbench.samples import Samples, Splits

COLLECTIONS = {"kmnist": KMNIST, "fashion": FASHION_MNIST, "letters": EMNIST_LETTERS}
MOST = {"kmnist": 10, "fashion": 10, "letters": 26}


class Coloured(Dataset):
    """Characters, with one colour per class."""

    name = "coloured"
    bias_names = ("colour",)
    unbiased_test = True
    headline = ("acc_unbiased",)
    recipe = COLOURED_MNIST_RECIPE.replace(epochs=20)

    source: str = one_of("kmnist", "fashion", "letters", default="kmnist")
    classes: int = between(2, 26, default=10)  # how many, from the first
    rho: float = between(0, 1, default=0.02)  # fraction of bias-conflicting training samples

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(map(str, range(min(self.classes, MOST[self.source]))))

    @property
    def n_bias_values(self) -> int:
        return self.n_classes

    @property
    def conflict_ratio(self) -> float:
        return self.rho

    @property
    def collection(self) -> Collection:
        """The files of `source`, with their checksums."""
        return COLLECTIONS[self.source]

    def folder(self, data_dir: Path) -> Path:
        return super().folder(data_dir) if self.root else data_dir / self.collection.name / "raw"

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        return self.collection.missing(self.folder(data_dir))

    def prepare(self, data_dir: Path) -> None:
        prepare({self.folder(data_dir): self.collection})

    def build(self, data_dir: Path) -> Splits:
        grey, y = self._read(data_dir, self.collection.train)
        n_train = len(y) * 9 // 10
        return Splits(
            train=self._coloured(0, grey[:n_train], y[:n_train], self.rho),
            valid=self._coloured(1, grey[n_train:], y[n_train:], self.rho),
            test=self._coloured(2, *self._read(data_dir, self.collection.test), 1 - 1 / self.n_classes),
        )

    def _read(self, data_dir: Path, part: str) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, 28, 28) and labels int64 (N,) of the wanted classes."""
        folder = self.folder(data_dir)
        y = torch.from_numpy(self.collection.labels(folder, part)) - int(self.source == "letters")  # there, A is 1
        wanted = y < self.n_classes
        return torch.from_numpy(self.collection.images(folder, part).copy())[wanted], y[wanted]

    def _coloured(self, number: int, grey: Tensor, y: Tensor, ratio: float) -> Samples:
        generator = derived_generator("data", self.data_seed, number)  # independent of the training seed
        bias = exact_conflicts(y, ratio, generator, n_values=self.n_classes)
        hues = [colorsys.hsv_to_rgb(label / self.n_classes, 1.0, 1.0) for label in range(self.n_classes)]
        palette = tuple(tuple(round(255 * part) for part in hue) for hue in hues)
        return Samples(colour(grey, bias, palette, 1e-4, generator), y, bias[:, None])
