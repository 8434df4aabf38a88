"""Dominoes: a digit or a piece of clothing above a photograph of CIFAR-10; you set how well each predicts the class.

Input: uint8 (3, 64, 32): MNIST or Fashion-MNIST (`upper`), padded by two pixels and grey, above CIFAR-10. One half is
the target and the other the bias. By default the target is the photograph (`target=lower`), which is harder to learn.
Classes in their order, and what stands for each, above and below:
- `classes=2`: 0 or dress with automobile, 1 or coat with truck, the pairs of Shah et al. and Kirichenko et al.;
- `classes=10`: class k of one collection with class k of the other.

How a sample is made. It has a class. Each half shows this class with a probability of its own; otherwise it shows a
class drawn uniformly, which may be the true one. These probabilities are `target_strength` and `bias_strength`, from 0
(independent of the class) to 1 (always shows it). Last, the label is wrong with probability `label_noise` (then it is
uniformly one of the others), which neither half predicts. So for two classes whose bias agrees in 95 % of the samples,
set `bias_strength=0.9`; with C classes, the fraction (1 - strength) (C - 1) / C shows another class. A sample conflicts
if its bias half shows another class than its label.

Splits: each image of the target half is used once. The first nine tenths of its training files are for training, the
rest for validation, and its test files for test. The other half is drawn with replacement: for training and validation
from its training files, for test from its test files. In the test split the strength of the bias is 0, so the bias is
independent of the label. `tune` is the validation split drawn anew in the same way. Target strength and label noise are
the same in every split.

No files of it were published, and nearly every paper has its own version. This is our definition, version 1. The images
are made once for each `data_seed` and kept in the cache. Recipe: that of Corrupted CIFAR-10 without mirroring, because
digits have a direction. No published recipe is meant for all variants.
Source: H. Shah et al., NeurIPS 2020; MNIST, Y. LeCun, C. Cortes, C. Burges, CC BY-SA 3.0; Fashion-MNIST, Zalando SE,
MIT; CIFAR-10, A. Krizhevsky, whose author states no licence.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from debiasbench.data.cache import cached
from debiasbench.data.cifar import (
    CIFAR_RECIPE,
    CLASS_NAMES,
    digest_of,
    download,
    missing_files,
    present_files,
    read_cifar10,
    shortfalls,
)
from debiasbench.data.colouring import bernoulli_conflicts
from debiasbench.data.mnist_files import FASHION_MNIST, MNIST, Collection, prepare
from debiasbench.datasets import Dataset, NeededFile, between, one_of
from debiasbench.errors import BenchmarkError
from debiasbench.randomness import derived_generator
from debiasbench.samples import Samples, Splits, draw_of_class

UPPER = {"mnist": MNIST, "fashion": FASHION_MNIST}
CLOTHES = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
NAMES = {"mnist": tuple("0123456789"), "fashion": CLOTHES, "cifar": CLASS_NAMES}
PAIRS = {"mnist": (0, 1), "fashion": (3, 4), "cifar": (1, 9)}  # for classes=2
BLOCK = 4096  # images made at once


class Half(NamedTuple):
    """The images of one half, with the shape of their collection, and the class of each, int64 (N,)."""

    x: Tensor
    y: Tensor

    def chosen(self, classes: tuple[int, ...]) -> "Half":
        """The images of these classes, which are numbered in the given order."""
        number = torch.full((10,), -1)
        number[list(classes)] = torch.arange(len(classes))
        y = number[self.y]
        return Half(self.x[y >= 0], y[y >= 0])


class Dominoes(Dataset):
    """A digit or a garment above a photograph: two features, each as predictive as you set it."""

    name = "dominoes"
    display = "Dominoes"
    version = 1
    unbiased_test = True
    ratio_parameters = ("bias_strength",)
    headline = ("acc_unbiased",)
    citation = """@inproceedings{shah2020pitfalls,
  title={The Pitfalls of Simplicity Bias in Neural Networks},
  author={Shah, Harshay and Tamuly, Kaustav and Raghunathan, Aditi and Jain, Prateek and Netrapalli, Praneeth},
  booktitle={Advances in Neural Information Processing Systems}, year={2020}}"""
    recipe = CIFAR_RECIPE.replace(flip=False)

    upper: str = one_of("mnist", "fashion", default="mnist")
    classes: int = one_of(2, 10, default=2)
    target: str = one_of("upper", "lower", default="lower")  # the half that gives the label; the other is the bias
    target_strength: float = between(0, 1, default=1.0)  # 0: independent of the class; 1: always shows it
    bias_strength: float = between(0, 1, default=0.9)  # the same, in training and validation
    label_noise: float = between(0, 1, default=0.0)  # fraction of wrong labels, in every split

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(NAMES[self._kinds[0]][one] for one in self._chosen(self._kinds[0]))

    @property
    def bias_names(self) -> tuple[str, ...]:
        return ("upper" if self.target == "lower" else "lower",)

    @property
    def bias_values(self) -> tuple[tuple[str, ...], ...]:
        return (tuple(NAMES[self._kinds[1]][one] for one in self._chosen(self._kinds[1])),)

    @property
    def n_bias_values(self) -> int:
        return self.classes

    @property
    def official_counts(self) -> dict[str, int]:
        """Counts for the complete files. Classes are equally large, except in MNIST."""
        kind = self._kinds[0]
        n_train, n_test = 50_000 if kind == "cifar" else 60_000, 10_000
        if self.classes == 2:
            n_train, n_test = (12_665, 2_115) if kind == "mnist" else (n_train // 5, n_test // 5)
        return {"train": n_train * 9 // 10, "valid": n_train - n_train * 9 // 10, "test": n_test}

    @property
    def conflict_ratio(self) -> float:
        """How often the bias differs from the label, which may itself be wrong."""
        other = self._other(self.bias_strength)
        agrees = (1 - other) * (1 - self.label_noise) + other * self.label_noise / (self.classes - 1)
        return round(1 - agrees, 12)

    def folder(self, data_dir: Path) -> Path:
        """The folder that holds CIFAR-10, and MNIST/raw or FashionMNIST/raw, as in torchvision."""
        return super().folder(data_dir) if self.root else data_dir

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The four files of the upper half, uncompressed or as .gz, and those of CIFAR-10."""
        return self._collection.missing(self._raw(data_dir)) + missing_files(self.folder(data_dir))

    def present_files(self, data_dir: Path) -> list[Path]:
        """Those of these files that are there: the folder holds other datasets as well."""
        return self._collection.present(self._raw(data_dir)) + present_files(self.folder(data_dir))

    def shortfalls(self, data_dir: Path) -> list[str]:
        return shortfalls(self.folder(data_dir))

    def prepare(self, data_dir: Path) -> None:
        """Download both collections from their mirrors."""
        prepare({self._raw(data_dir): self._collection})
        if missing_files(self.folder(data_dir)):
            download(self.folder(data_dir))

    def build(self, data_dir: Path) -> Splits:
        """Nine tenths, one tenth, and the test files of the target half; `tune` is validation without the bias."""
        raw, upper = self._raw(data_dir), self._collection
        plain = read_cifar10(self.folder(data_dir))
        parts = {"train": (upper.train, plain.train), "test": (upper.test, plain.test)}
        halves = {  # part -> the target half and the other
            part: self._halves(
                Half(torch.from_numpy(upper.images(raw, name).copy()), torch.from_numpy(upper.labels(raw, name))),
                Half(*photographs), part,
            )
            for part, (name, photographs) in parts.items()
        }  # fmt: skip
        n_train = len(halves["train"][0].y) * 9 // 10
        first, last = slice(0, n_train), slice(n_train, None)
        splits = {
            "train": self._part(0, "train", halves["train"], first, self.bias_strength),
            "valid": self._part(1, "valid", halves["train"], last, self.bias_strength),
            "test": self._part(2, "test", halves["test"], slice(None), 0.0),
            "tune": self._part(3, "tune", halves["train"], last, 0.0),
        }
        note = f"As this suite defines it (version {self.version}): nobody published it as files. {plain.note}"
        return Splits.of(splits, official=plain.complete, note=note.strip())

    @property
    def _kinds(self) -> tuple[str, str]:
        """The collections of the target half and of the other half."""
        return ("cifar", self.upper) if self.target == "lower" else (self.upper, "cifar")

    @property
    def _collection(self) -> Collection:
        return UPPER[self.upper]

    def _raw(self, data_dir: Path) -> Path:
        return self.folder(data_dir) / self._collection.name / "raw"

    def _chosen(self, kind: str) -> tuple[int, ...]:
        """The classes used of a collection, in the order of the labels."""
        return PAIRS[kind] if self.classes == 2 else tuple(range(10))

    def _other(self, strength: float) -> float:
        """How often a feature of this strength shows another class."""
        return (1 - strength) * (self.classes - 1) / self.classes

    def _halves(self, upper: Half, lower: Half, part: str) -> tuple[Half, Half]:
        """The target half and the other half, with only the classes that are used.

        Raises:
            BenchmarkError: a class has no images (in a subset of the files).
        """
        images = {self.upper: upper, "cifar": lower}
        for kind, half in images.items():
            empty = [NAMES[kind][one] for one in self._chosen(kind) if not (half.y == one).any()]
            if empty:
                raise BenchmarkError(
                    f"{self.name} needs images of {', '.join(empty)}, and the {part} files of {kind} that are there "
                    "have none: a subset must have some of each class."
                )
        target, other = (images[kind].chosen(self._chosen(kind)) for kind in self._kinds)
        return target, other

    def _drawn(self, shown: Tensor, strength: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw label and bias, int64 (N,), of samples whose target half shows the class `shown`."""

        def seen(truth: Tensor, ratio: float) -> Tensor:
            return bernoulli_conflicts(truth, ratio, generator, n_values=self.classes)

        # classes are about equally frequent, so drawing a class for an image equals drawing an image for a class
        truth = seen(shown, self._other(self.target_strength))
        bias = seen(truth, self._other(strength))
        return seen(truth, self.label_noise), bias

    def _part(self, number: int, split: str, halves: tuple[Half, Half], rows: slice, strength: float) -> Samples:
        """One split: the images of the target half in `rows`, with a bias of this strength."""
        target, other = halves
        generator = derived_generator("data", self.data_seed, number)
        y, bias = self._drawn(target.y[rows], strength, generator)
        of_target = torch.arange(len(target.y))[rows]
        of_other = draw_of_class(other.y, bias, generator)
        upper, lower = (target, other) if self.target == "upper" else (other, target)
        of_upper, of_lower = (of_target, of_other) if self.target == "upper" else (of_other, of_target)
        x = upper.x[of_upper], lower.x[of_lower]
        entry = cached(
            f"{self.name}-{split}", {"version": self.version, "halves": digest_of(*x)}, (len(y), 3, 64, 32),
            lambda: blocks(*x),
        )  # fmt: skip
        return Samples(entry.x, y, bias[:, None], x_sha256=entry.sha256)


def blocks(upper: Tensor, lower: Tensor) -> Iterator[np.ndarray]:
    """Yield images uint8 (at most BLOCK, 3, 64, 32): grey (N, 28, 28) above photographs (N, 3, 32, 32)."""
    for grey, photographs in zip(upper.split(BLOCK), lower.split(BLOCK), strict=True):
        x = torch.zeros(len(grey), 3, 64, 32, dtype=torch.uint8)
        x[:, :, 2:30, 2:30] = grey[:, None]
        x[:, :, 32:] = photographs
        yield x.numpy()
