"""Colored MNIST as in the PGD paper: all of MNIST; the digit is the label and the colour is the bias.

Input: uint8 (3, 28, 28), a digit in one colour on black. Label: the digit (with `target=colour` the colour, and the
digit is the bias; Tables 13 and 14). Splits: the first 54,000 and the last 6,000 of MNIST's training images, and its
10,000 test images. Each sample conflicts with probability `rho` (90 % in test); its colour is then drawn uniformly from
the others.

This is the official PGD generator: a fixed palette (`palette=random` draws one, as the paper's text says), noise with
standard deviation 1e-4 (0.01 according to the paper's text), pixels clipped to 8 bits. The official code never seeds
it, and all runs share one file. Here `data_seed` seeds it, separately from the training seed. `preset=lff` is the
official LfF generator instead: other colours, conflicts dealt in blocks, noise by severity, all 60,000 training images,
its multi-layer perceptron, and its "validation" split, which is the test images.

The paper writes 55,000 / 5,000, but its own Table 14 sums to 54,000, and the code splits 90 / 10. Recipe: Table 6 and
the official code.
Source: Y. LeCun, C. Cortes, C. Burges, MNIST; CC BY-SA 3.0.
"""

from pathlib import Path

import torch
from torch import Tensor

from debiasbench.data.colouring import (
    COLOURED_MNIST_RECIPE,
    LFF_PALETTE,
    PGD_PALETTE,
    TEST_RATIO,
    bernoulli_conflicts,
    block_conflicts,
    colour,
    random_palette,
)
from debiasbench.data.mnist_files import MNIST, prepare
from debiasbench.datasets import Dataset, NeededFile, between, one_of
from debiasbench.randomness import derived_generator
from debiasbench.samples import Samples, Splits

LFF_NOISE = {1: 0.05, 2: 0.02, 3: 0.01, 4: 0.005, 5: 0.002}


class CMNIST(Dataset):
    """Colored MNIST by the official PGD (or LfF) generator."""

    name = "cmnist"
    display = "Colored MNIST"
    class_names = tuple("0123456789")
    bias_names = ("bias",)
    n_bias_values = 10
    unbiased_test = True
    headline = ("acc_unbiased",)
    citation = """@article{lecun1998mnist,
  title={Gradient-based learning applied to document recognition},
  author={LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal={Proceedings of the IEEE}, year={1998}}"""
    recipe = COLOURED_MNIST_RECIPE
    presets = {
        "lff": {
            "generator": "lff",
            "recipe": {
                "net": "mlp", "batch_size": 256, "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0,
                "schedule": "constant", "augment": False,
            },
        }
    }  # fmt: skip

    rho: float = between(0, 1, default=0.005)  # fraction of bias-conflicting training samples
    target: str = one_of("digit", "colour", default="digit")
    palette: str = one_of("fixed", "random", default="fixed")
    generator: str = one_of("pgd", "lff", default="pgd")
    severity: int = between(1, 5, default=4)  # for generator=lff; lower values add more noise to the colour

    @property
    def official_counts(self) -> dict[str, int]:
        if self.generator == "lff":
            return {"train": 60_000, "valid": 10_000, "test": 10_000}
        return {"train": 54_000, "valid": 6_000, "test": 10_000}

    @property
    def conflict_ratio(self) -> float:
        return self.rho

    def in_words(self) -> dict[str, str]:
        return {"rho": f"{100 * self.rho:g} %"}

    def folder(self, data_dir: Path) -> Path:
        """The folder of MNIST, as in torchvision."""
        return super().folder(data_dir) if self.root else data_dir / "MNIST" / "raw"

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The four files of MNIST, uncompressed or as .gz."""
        return MNIST.missing(self.folder(data_dir))

    def prepare(self, data_dir: Path) -> None:
        """Download MNIST from its mirrors."""
        prepare({self.folder(data_dir): MNIST})

    def build(self, data_dir: Path) -> Splits:
        """54,000 / 6,000 / 10,000 samples, and `tune`: the validation images with 90 % conflicts."""
        grey, y = self._read(data_dir, "train")
        test_grey, test_y = self._read(data_dir, "t10k")
        if self.generator == "lff":
            parts = {"train": (grey, y, self.rho), "valid": (test_grey, test_y, TEST_RATIO)}
        else:
            n_train = len(y) * 9 // 10
            parts = {
                "train": (grey[:n_train], y[:n_train], self.rho),
                "valid": (grey[n_train:], y[n_train:], self.rho),
                "test": (test_grey, test_y, TEST_RATIO),
                "tune": (grey[n_train:], y[n_train:], TEST_RATIO),
            }
        splits = {split: self._coloured(number, *part) for number, (split, part) in enumerate(parts.items())}
        if self.generator == "lff":
            splits["test"] = splits["valid"]
        return Splits.of(splits)

    def _coloured(self, number: int, grey: Tensor, digit: Tensor, ratio: float) -> Samples:
        generator = derived_generator("data", self.data_seed, number)
        if self.generator == "lff":
            colours, palette, noise = block_conflicts(digit, ratio), LFF_PALETTE, LFF_NOISE[self.severity]
        else:
            colours, palette, noise = bernoulli_conflicts(digit, ratio, generator), PGD_PALETTE, 1e-4
        if self.palette == "random":
            palette = random_palette(derived_generator("data", self.data_seed))
        x = colour(grey, colours, palette, noise, generator)
        label, bias = (digit, colours) if self.target == "digit" else (colours, digit)
        return Samples(x, label, bias[:, None])

    def _read(self, data_dir: Path, part: str) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, 28, 28) and labels int64 (N,) of "train" or "t10k"."""
        folder = self.folder(data_dir)
        return torch.from_numpy(MNIST.images(folder, part).copy()), torch.from_numpy(MNIST.labels(folder, part))
