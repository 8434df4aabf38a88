"""Multi-bias MNIST: a digit beside a piece of clothing, a Japanese character and a letter, each in a colour.

Input: uint8 (3, 56, 56), four tiles of 28 x 28 on black: the digit (top left), a Fashion-MNIST object (top right), a
Kuzushiji-MNIST character (bottom left), a letter A to J of EMNIST (bottom right). Label: the digit. Seven biases: the
classes of the other three glyphs, and the colours of all four. Each agrees with the digit with probability 1 - `rho`,
independently of the others; otherwise it is uniform over the other nine values. In test, all seven have 90 % conflicts.

The PGD paper describes this dataset (rho of 10, 20 and 30 %), but nothing of it was ever released. This is our
definition, version 1. Where the paper leaves something open, we chose. So the order of methods, and the gaps between
them, can be compared with the paper's; absolute numbers cannot. Our choices:

1. The places of the tiles, and the first ten letters. EMNIST's images are stored transposed and are turned upright.
2. Glyphs are drawn with replacement from those of their class: for training and validation from the training files, for
   test from the test files, so no glyph of the test split was seen in training.
3. Each tile has its own order of the ten colours of Colored MNIST, such that no two tiles share a colour when all
   biases agree: "the same colour everywhere" is not a feature. As in Colored MNIST, noise has standard deviation 1e-4
   and is drawn per sample, tile and channel, and pixels are clipped to 8 bits.
4. Splits as in Colored MNIST: the first 54,000 and the last 6,000 of MNIST's training images, and its 10,000 test
   images. `tune` is the validation split drawn anew with 90 % conflicts. (The paper writes 55,000 / 5,000 for both
   datasets.)

Network: SimConv-2. As printed in the paper it runs out of pixels at this size; see `net=simconv2` (default) and
`net=simconv2-pool3`. Recipe: Table 6. It lacks the step of the decay, which is taken from the text (every 40 epochs).
The augmentation is that of Colored MNIST.

Sources: MNIST, Y. LeCun, C. Cortes, C. Burges, CC BY-SA 3.0; Fashion-MNIST, Zalando SE, MIT; KMNIST, ROIS-DS Center for
Open Data in the Humanities, CC BY-SA 4.0; EMNIST, G. Cohen, S. Afshar, J. Tapson, A. van Schaik.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from debiasbench.data.cache import cached
from debiasbench.data.colouring import COLOURED_MNIST_RECIPE, PGD_PALETTE, TEST_RATIO, bernoulli_conflicts, colour
from debiasbench.data.mnist_files import EMNIST_LETTERS, FASHION_MNIST, KMNIST, MNIST, Collection, prepare
from debiasbench.datasets import Dataset, NeededFile, between
from debiasbench.errors import BenchmarkError
from debiasbench.randomness import derived_generator
from debiasbench.samples import Samples, Splits, draw_of_class

# In the order of the tiles, row by row. The biases are the glyphs without the digit, then the colours, in this order.
TILES = {"digit": MNIST, "fashion": FASHION_MNIST, "kana": KMNIST, "letter": EMNIST_LETTERS}
# One palette per tile. The orders were drawn once, such that no column contains a number twice.
PALETTES = tuple(
    tuple(PGD_PALETTE[place] for place in order)
    for order in (
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
        (9, 3, 8, 6, 1, 4, 7, 0, 2, 5),
        (2, 5, 6, 7, 0, 8, 1, 9, 4, 3),
        (6, 4, 0, 1, 9, 2, 8, 5, 3, 7),
    )
)
NOISE = 1e-4
BLOCK = 4096  # images made at once; noise is drawn per block, so another size would be another version of the data


class MBMNIST(Dataset):
    """Multi-bias MNIST: seven biases in images of four tiles."""

    name = "mbmnist"
    display = "Multi-bias MNIST"
    version = 1
    class_names = tuple("0123456789")
    bias_names = ("fashion", "kana", "letter", "digit_colour", "fashion_colour", "kana_colour", "letter_colour")
    n_bias_values = 10
    unbiased_test = True
    headline = ("acc_unbiased",)
    official_counts = {"train": 54_000, "valid": 6_000, "test": 10_000}
    citation = """@inproceedings{ahn2023pgd,
  title={Mitigating Dataset Bias by Using Per-Sample Gradient},
  author={Ahn, Sumyeong and Kim, Seongyoon and Yun, Se-Young},
  booktitle={International Conference on Learning Representations}, year={2023}}"""
    recipe = COLOURED_MNIST_RECIPE.replace(net="simconv2", batch_size=32, learning_rate=0.01, weight_decay=1e-4)

    rho: float = between(0, 1, default=0.1)  # fraction of conflicting training samples, for each bias

    @property
    def conflict_ratio(self) -> float:
        """The ratio of each of the seven biases."""
        return self.rho

    def in_words(self) -> dict[str, str]:
        return {"rho": f"{100 * self.rho:g} %"}

    def folder(self, data_dir: Path) -> Path:
        """The folder that holds MNIST/raw, FashionMNIST/raw, KMNIST/raw and EMNIST/raw, as in torchvision."""
        return super().folder(data_dir) if self.root else data_dir

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The four files of each of the four collections, uncompressed or as .gz."""
        return [file for folder, files in self._collections(data_dir).items() for file in files.missing(folder)]

    def present_files(self, data_dir: Path) -> list[Path]:
        """Those of these files that are there: the folder holds other datasets as well."""
        return [path for folder, files in self._collections(data_dir).items() for path in files.present(folder)]

    def prepare(self, data_dir: Path) -> None:
        """Download the incomplete collections from their mirrors."""
        prepare(self._collections(data_dir))

    def build(self, data_dir: Path) -> Splits:
        """54,000 / 6,000 / 10,000 samples, and `tune`: the validation digits with 90 % conflicts."""
        missing = self.needed_files(data_dir)
        if missing:
            raise BenchmarkError(
                f"{len(missing)} files of {self.name} are missing, plain and as .gz; fetch them with debiasbench "
                f"prepare {self.name}, or put them there:\n" + "\n".join(str(file.path) for file in missing)
            )
        folders = list(self._collections(data_dir))
        n_train = len(MNIST.labels(folders[0], MNIST.train)) * 9 // 10
        first, last = slice(0, n_train), slice(n_train, None)
        parts = {
            "train": (first, self.rho),
            "valid": (last, self.rho),
            "test": (slice(None), TEST_RATIO),
            "tune": (last, TEST_RATIO),
        }
        splits = {
            split: self._part(folders, number, split, *part) for number, (split, part) in enumerate(parts.items())
        }
        return Splits.of(splits, note=f"As this suite defines it (version {self.version}): nothing was ever released.")

    def _collections(self, data_dir: Path) -> dict[Path, Collection]:
        return {self.folder(data_dir) / files.name / "raw": files for files in TILES.values()}

    def _part(self, folders: list[Path], number: int, split: str, digits: slice, ratio: float) -> Samples:
        """One split: the digits in the slice `digits`, with a fraction `ratio` of conflicts in each bias."""
        sources = [
            (files, folder, files.test if split == "test" else files.train)
            for files, folder in zip(TILES.values(), folders, strict=True)
        ]
        labels = [torch.from_numpy(files.labels(folder, part)) for files, folder, part in sources]
        labels[3] = labels[3] - 1  # A is 1 in EMNIST; K to Z get numbers that no bias has
        y = labels[0][digits]
        generator = derived_generator("data", self.data_seed, number)
        bias = torch.stack([bernoulli_conflicts(y, ratio, generator) for _ in self.bias_names], 1)
        rows = [torch.arange(len(labels[0]))[digits]]
        rows += [draw_of_class(labels[tile], bias[:, tile - 1], generator) for tile in (1, 2, 3)]

        # The draws are part of the identity: if torch's generators ever change, the images of an old entry would not
        # belong to these labels.
        drawn = hashlib.sha256(torch.cat([y[:, None], bias, torch.stack(rows, 1)], 1).numpy().tobytes()).hexdigest()
        identity = {
            "dataset": self.name,
            "version": self.version,
            "split": split,
            "rho": ratio,
            "data_seed": self.data_seed,
            "drawn": drawn,
            "files": {
                f"{files.name}/{name}": sha256
                for files in TILES.values()
                for name, (_, sha256) in files.files.items()
            },
        }  # fmt: skip
        # the generator continues after the draws above; nothing else draws from it afterwards
        entry = cached(
            f"{self.name}-{split}", identity, (len(y), 3, 56, 56), lambda: blocks(sources, rows, bias[:, 3:], generator)
        )
        return Samples(entry.x, y, bias, x_sha256=entry.sha256)


def blocks(
    sources: list[tuple[Collection, Path, str]], rows: list[Tensor], colours: Tensor, generator: torch.Generator
) -> Iterator[np.ndarray]:
    """Yield the images for `cached`, uint8 (at most BLOCK, 3, 56, 56) at once.

    sources: (collection, folder, part) per tile. rows: per tile, the rows of its images (N,). colours: int64 (N, 4).
    """
    glyphs = [files.images(folder, part) for files, folder, part in sources]
    glyphs[3] = glyphs[3].transpose(0, 2, 1)
    for start in range(0, len(colours), BLOCK):
        block = slice(start, start + BLOCK)
        x = torch.empty(len(colours[block]), 3, 56, 56, dtype=torch.uint8)
        for tile in range(4):
            grey = torch.from_numpy(glyphs[tile][rows[tile][block].numpy()])
            top, left = 28 * (tile // 2), 28 * (tile % 2)
            x[:, :, top : top + 28, left : left + 28] = colour(
                grey, colours[block, tile], PALETTES[tile], NOISE, generator
            )
        yield x.numpy()
