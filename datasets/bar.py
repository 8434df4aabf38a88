"""Biased Action Recognition (BAR): six actions, in training photographs at typical places, in test ones elsewhere.

Input: uint8 (3, size, size). Each photograph is resized to a square, without keeping its aspect ratio. Label: the
action, which is the file name up to the last underscore. Bias: the place. No file records it, so it is unknown (-1)
everywhere, and anything that needs bias labels or the conflict ratio declines BAR. The authors chose training images
with the typical place and test images with other places, so `acc_avg` on test is the accuracy on conflicting samples.

Layout, as in the repository alinlab/BAR: BAR/train/*.jpg (1,941) and BAR/test/*.jpg (654), with names <action>_<n>.jpg.
One action is "pole vaulting", with a space. A tenth of the training images of each action becomes the validation split:
1,746 / 195 / 654 (PGD paper). `data_seed` draws it. The BAR that later papers split anew (folders with 1 % and 5 % of
conflicts) is another dataset.

Recipe: PGD paper, Table 6. The magnitudes of its augmentation are not published, so those of BFFHQ are used. The paper
does not say whether the network is pretrained. Its 63 % for vanilla is only plausible with ImageNet weights, so these
are the default (`bar:pretrained=none` starts from random weights, `bar:pretrained=FILE` reads a file). Results are
known to depend strongly on the learning rate: treat differences below two points as noise.
Source: J. Nam et al., NeurIPS 2020; the images have various terms and are for research.
"""

from pathlib import Path

import torch

from debiasbench.data.downloads import fetch
from debiasbench.data.images import decode, has_images, image_files, other_files, remarks, shortfalls
from debiasbench.data.unpack import unpack
from debiasbench.datasets import Dataset, NeededFile, Recipe, at_least
from debiasbench.errors import BenchmarkError
from debiasbench.randomness import derived_generator
from debiasbench.samples import Samples, Splits, stratified

ACTIONS = ("climbing", "diving", "fishing", "pole vaulting", "racing", "throwing")
ARCHIVE = "https://github.com/alinlab/BAR/archive/b12b7c05514201dfae596c6af4739701fc871b0e.zip"
SOURCE = "the repository alinlab/BAR (https://github.com/alinlab/BAR)"


class BAR(Dataset):
    """Biased Action Recognition with the split of its authors."""

    name = "bar"
    display = "BAR"
    class_names = ACTIONS
    bias_names = ("place",)
    headline = ("acc_avg",)
    official_counts = {"train": 1_746, "valid": 195, "test": 654}
    citation = """@inproceedings{nam2020lff,
  title={Learning from Failure: De-biasing Classifier from Biased Classifier},
  author={Nam, Junhyun and Cha, Hyuntak and Ahn, Sungsoo and Lee, Jaeho and Shin, Jinwoo},
  booktitle={Advances in Neural Information Processing Systems}, year={2020}}"""
    recipe = Recipe(
        net="resnet18", pretrained="imagenet", epochs=100, batch_size=16, learning_rate=5e-4, weight_decay=1e-5,
        milestones=(0.2, 0.4, 0.6, 0.8), gamma=0.1, pad_crop=4, flip=True,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010),
    )  # fmt: skip

    size: int = at_least(16, default=224)  # pixels per side; the photographs have many sizes

    @property
    def has_bias_labels(self) -> bool:
        return False

    def folder(self, data_dir: Path) -> Path:
        return super().folder(data_dir) if self.root else data_dir / "BAR"

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The two folders."""
        folder = self.folder(data_dir)
        return [
            NeededFile(path, f"{n:,} images", SOURCE, downloads=True)
            for path, n in _published(folder).items()
            if not has_images(path)
        ]

    def shortfalls(self, data_dir: Path) -> list[str]:
        """Compare the number of images."""
        return shortfalls(_published(self.folder(data_dir)))

    def prepare(self, data_dir: Path) -> None:
        """Download the archive of the repository and unpack it."""
        folder = self.folder(data_dir)
        archive = fetch(ARCHIVE, folder / "BAR.zip", sha256=None)  # none was published for this archive
        unpack(archive, folder, strip=1)
        archive.unlink()

    def build(self, data_dir: Path) -> Splits:
        """1,746 / 195 / 654 photographs."""
        folder = self.folder(data_dir)
        paths = {part: image_files(folder / part) for part in ("train", "test")}
        y = {part: torch.tensor([action_of(path) for path in files]) for part, files in paths.items()}
        absent = [action for label, action in enumerate(ACTIONS) if not (y["train"] == label).any()]
        if absent:
            raise BenchmarkError(f"{folder / 'train'} has no image of {', '.join(absent)} (<action>_<n>.jpg).")
        rest, tenth = stratified(y["train"], 0.1, derived_generator("data", self.data_seed))
        paths |= {"train": [paths["train"][row] for row in rest], "valid": [paths["train"][row] for row in tenth]}
        y |= {"train": y["train"][rest], "valid": y["train"][tenth]}
        images = {split: decode(f"{self.name}-{split}", some, size=self.size) for split, some in paths.items()}
        splits = {
            split: Samples(one.x, y[split], torch.full((len(one.x), 1), -1), x_sha256=one.sha256)
            for split, one in images.items()
        }
        counts = {split: len(samples) for split, samples in splits.items()}
        as_published = "as published" if counts == self.official_counts else "not as published"
        others = other_files(folder / "train", folder / "test")
        note = f"Counts are {as_published}; no checksums of the images were published, so they are not verified."
        return Splits.of(
            splits,
            official=False,  # without published checksums, images that were encoded again look like the originals
            note=" ".join([note, *remarks(images.values(), others)]),
        )


def _published(folder: Path) -> dict[Path, int]:
    """Folder -> number of images, as published."""
    return {folder / "train": 1_941, folder / "test": 654}


def action_of(path: Path) -> int:
    """The label of `<action>_<n>.jpg`."""
    action = path.stem.rpartition("_")[0]
    if action not in ACTIONS:
        raise BenchmarkError(f"{path}: the name must be <action>_<n>.jpg with an action of {', '.join(ACTIONS)}.")
    return ACTIONS.index(action)
