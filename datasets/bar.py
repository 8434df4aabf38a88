"""Biased Action Recognition (BAR): six actions, in training photographs at their usual places, in test elsewhere.

Input: uint8 (3, size, size), each photograph resized to a square (the aspect is not kept). Label: the action, from
the file name up to the last underscore. Bias: the place, which no file records: unknown (-1) everywhere, so that
whatever needs bias labels, or the fraction of conflicting samples, declines. The authors chose training images with the
typical place and test images with others, so `acc_avg` on test is accuracy on conflicting samples.

Layout, as the repository alinlab/BAR: BAR/train/*.jpg (1,941) and BAR/test/*.jpg (654), with names <action>_<n>.jpg;
one action is "pole vaulting", with a space. A tenth of each action's training images is for validation: 1,746 / 195
/ 654 (PGD paper). The split is drawn from `data_seed`. The re-split BAR of later papers (folders of 1 % and 5 %
conflicts) is another dataset.

Recipe: PGD paper, Table 6; its magnitudes of augmentation are not published, so those of BFFHQ are used. The paper
does not say whether the network is pretrained; its 63 % for vanilla is only plausible with ImageNet weights, which
are therefore the default (`bar:pretrained=none` starts at random, `bar:pretrained=FILE` reads them). Results are
known to depend strongly on the learning rate: take differences below two points for noise.
Source: J. Nam et al., NeurIPS 2020; images under mixed terms, for research.
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
    """Biased Action Recognition in its authors' split."""

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

    size: int = at_least(16, default=224)  # pixels a side: the photographs have many sizes

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
        """By the number of images."""
        return shortfalls(_published(self.folder(data_dir)))

    def prepare(self, data_dir: Path) -> None:
        """The repository's archive, unpacked."""
        folder = self.folder(data_dir)
        archive = fetch(ARCHIVE, folder / "BAR.zip", sha256=None)  # nobody published one of this archive
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
            official=False,  # nobody published checksums: images that were re-encoded cannot be told from others
            note=" ".join([note, *remarks(images.values(), others)]),
        )


def _published(folder: Path) -> dict[Path, int]:
    """The number of images by folder."""
    return {folder / "train": 1_941, folder / "test": 654}


def action_of(path: Path) -> int:
    """The label of `<action>_<n>.jpg`."""
    action = path.stem.rpartition("_")[0]
    if action not in ACTIONS:
        raise BenchmarkError(f"{path}: the name must be <action>_<n>.jpg with an action of {', '.join(ACTIONS)}.")
    return ACTIONS.index(action)
