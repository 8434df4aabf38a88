"""Two-class Colored MNIST, as in IRM and EIIL: some labels are wrong, and the colour is reversed in test.

Input: uint8 (3, 14, 14), every second pixel of a digit, in red or green on black (`pixels=28`: all pixels). Label: 1
for the digits 5 to 9, wrong with probability `label_noise` in every split. Bias: the colour. It is dealt after the
label noise: red (0) agrees with label 0, and green (1) with label 1. So with the usual 25 % of wrong labels, the digit
gives the label 75 times in 100, and the colour 85 times in training but 10 times in test. A classifier that uses only
the digit can reach 75 %, and one that follows the colour reaches 10 %.

Splits: the first 50,000 of MNIST's training images are for training. They form two environments: in images 0, 2, 4, ...
the colour agrees with probability `first`, in images 1, 3, 5, ... with probability `second`. `environments=both` joins
them (EIIL's setting: nothing says which image is in which); `first` and `second` use one alone, 25,000 images.
Validation: the last 10,000 training images, coloured as in training. `tune`: the same images with a colour that is
independent of the label. (IRM has no validation images: there the last 10,000 are its test environment.) Test: MNIST's
10,000 test images, where the colour agrees with probability `agreement=0.1`. A sample conflicts if its colour does not
agree with its label.

`data_seed` draws everything. The authors shuffle before they separate the environments; here the order of MNIST is
kept, in which writers and digits are mixed. They leave out the blue channel, which is empty.

Recipe: ours, for any method of the suite, with LfF's multi-layer perceptron. (EIIL's code takes 501 steps of Adam at
4.9e-4 with L2 1.1e-3, each on all images, with a network of two layers of 390, which is not included here.) Expected on
test, from the table of a third paper and not checked: EIIL 68.4 %, IRM 66.9 %.
Source: M. Arjovsky et al., 2019; E. Creager et al., ICML 2021; Y. LeCun, C. Cortes, C. Burges, MNIST; CC BY-SA 3.0.
"""

from pathlib import Path

import torch
from torch import Tensor

from debiasbench.data.colouring import bernoulli_conflicts, colour
from debiasbench.data.mnist_files import MNIST, prepare
from debiasbench.datasets import Dataset, NeededFile, Recipe, between, one_of
from debiasbench.randomness import derived_generator
from debiasbench.samples import Samples, Splits

RED_AND_GREEN = ((255, 0, 0), (0, 255, 0))
N_TRAIN = 50_000


class CMNIST2(Dataset):
    """Colored MNIST with two classes, wrong labels, and a colour that is reversed in test."""

    name = "cmnist2"
    display = "Two-class Colored MNIST"
    class_names = ("0 to 4", "5 to 9")
    bias_names = ("colour",)
    bias_values = (("red", "green"),)
    n_bias_values = 2
    headline = ("acc_avg",)
    ratio_parameters = ("first", "second")
    citation = """@article{arjovsky2019invariant,
  title={Invariant Risk Minimization},
  author={Arjovsky, Martin and Bottou, L{\\'e}on and Gulrajani, Ishaan and Lopez-Paz, David},
  journal={arXiv preprint arXiv:1907.02893}, year={2019}}"""
    recipe = Recipe(
        net="mlp", epochs=20, batch_size=256, optimizer="adam", learning_rate=1e-3, schedule="constant", augment=False,
    )  # fmt: skip

    pixels: int = one_of(14, 28, default=14)  # per side
    environments: str = one_of("both", "first", "second", default="both")
    first: float = between(0, 1, default=0.9)  # how often colour and label agree in the first environment
    second: float = between(0, 1, default=0.8)  # the same in the second environment
    agreement: float = between(0, 1, default=0.1)  # the same in test
    label_noise: float = between(0, 1, default=0.25)  # fraction of wrong labels, in every split

    @property
    def official_counts(self) -> dict[str, int]:
        return {"train": N_TRAIN // (2 if len(self._turns) == 1 else 1), "valid": 10_000, "test": 10_000}

    @property
    def conflict_ratio(self) -> float:
        return round(1 - sum(self._turns) / len(self._turns), 12)  # so that JTT's factor is 1 / .1 and not 1 / .0999...

    @property
    def _turns(self) -> tuple[float, ...]:
        """How often the colour agrees in each environment; successive images take turns in this order."""
        return {"both": (self.first, self.second), "first": (self.first,), "second": (self.second,)}[self.environments]

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
        """50,000 (or 25,000) / 10,000 / 10,000 samples, and `tune`: validation images with an independent colour."""
        digits, test = self._read(data_dir, MNIST.train), self._read(data_dir, MNIST.test)
        chosen = slice(int(self.environments == "second"), N_TRAIN, 3 - len(self._turns))
        parts = {
            "train": (digits, chosen, self._turns),
            "valid": (digits, slice(N_TRAIN, None), self._turns),
            "test": (test, slice(None), (self.agreement,)),
            "tune": (digits, slice(N_TRAIN, None), (0.5,)),
        }
        return Splits.of({split: self._part(number, *part) for number, (split, part) in enumerate(parts.items())})

    def _part(self, number: int, digits: tuple[Tensor, Tensor], rows: slice, turns: tuple[float, ...]) -> Samples:
        """One split. Successive images take turns among the values of `turns`: how often the colour agrees."""
        grey, digit = digits[0][rows], digits[1][rows]
        generator = derived_generator("data", self.data_seed, number)
        y = bernoulli_conflicts((digit >= 5).long(), self.label_noise, generator, n_values=2)
        bias = torch.empty_like(y)
        for turn, agreement in enumerate(turns):
            bias[turn :: len(turns)] = bernoulli_conflicts(y[turn :: len(turns)], 1 - agreement, generator, n_values=2)
        return Samples(colour(grey, bias, RED_AND_GREEN, 0.0, generator), y, bias[:, None])

    def _read(self, data_dir: Path, part: str) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, pixels, pixels) and digits int64 (N,)."""
        folder, step = self.folder(data_dir), 28 // self.pixels
        images = MNIST.images(folder, part)[:, ::step, ::step].copy()
        return torch.from_numpy(images), torch.from_numpy(MNIST.labels(folder, part))
