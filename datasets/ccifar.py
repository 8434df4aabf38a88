"""Corrupted CIFAR-10: the object is the label and the corruption of the image is the bias.

Input: uint8 (3, 32, 32). Label: the class in CIFAR-10. Bias: snow, frost, fog, brightness, contrast, spatter, elastic,
jpeg, pixelate or saturate. The first corruption goes with the first class, and so on ("type 0" of LfF). A fraction
`rho` of the training and validation samples has another corruption. So do 90 % of the test samples, which makes the
corruption independent of the object there.

There are two sources. `source=auto` takes the first one that is available, and the note of the data says which it was:
- archive: the files of Disen's authors, in folders cifar10c/<pct>/{align,conflict}/<class>/*,
  cifar10c/<pct>/valid/<class>/* and cifar10c/test/<class>/*, with names <..>_<label>_<bias>.<ending>. `rho` chooses
  <pct>. The archive has one level and one draw, so another `level`, `frost` or `data_seed` means generated. Its number
  of images was never published (recalled: 44,832 + 228 for training at 0.5 %), so it never counts as verified.
- generated: CIFAR-10 with LfF's protocol, made once and kept in the cache. `level` is the strength of the corruption
  (LfF's severity plus one; the archive is said to have 5, the strongest). Conflicts are dealt in blocks, in dataset
  order. LfF's generator has no validation images of its own. Here the last 5,000 training images are split off first,
  so both parts have the same fraction of conflicts. It has no seed either. Here `data_seed` draws flakes, fog and
  drops.

The generator makes frost from five photographs. `frost=drawn` (default) uses drawn textures instead: a departure, which
the note reports. `frost=photographs` reads the photographs from frost/frost1.png, frost2.png, frost3.png, frost4.jpg
and frost5.jpg in the data folder; the package imagecorruptions ships them (Apache-2.0). The file
`debiasbench/data/corruptions.py` lists the other differences.

Source: A. Krizhevsky, CIFAR-10; J. Nam et al., 2020; J. Lee et al., 2021. Recipe: PGD paper, Table 6. The magnitudes of
its augmentation are not published, so Disen's are used. `preset=disen` is the recipe that Disen uses for its own method
at 0.5 % (Disen's vanilla has no decay of the learning rate).
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from debiasbench.data import corruptions
from debiasbench.data.cache import Cached, cached
from debiasbench.data.cifar import (
    CIFAR_RECIPE,
    CLASS_NAMES,
    COUNTS,
    digest_of,
    download,
    missing_files,
    present_files,
    read_cifar10,
    shortfalls,
)
from debiasbench.data.colouring import TEST_RATIO, block_conflicts
from debiasbench.data.images import decode, has_images, image_files, other_files, read_image, remarks
from debiasbench.data.unpack import unpack
from debiasbench.datasets import Dataset, NeededFile, between, one_of
from debiasbench.errors import BenchmarkError
from debiasbench.samples import Samples, Splits

ARCHIVE = (
    "the Corrupted CIFAR-10 archive in https://drive.google.com/drive/folders/1JEOqxrhU_IhkdcRohdbuEtFETUxfNmNT (the "
    "link of the repository kakaoenterprise/Learning-Debiased-Disentangled)"
)
ARCHIVE_RATIOS = (0.005, 0.01, 0.02, 0.05)
SPLITS = ("train", "valid", "test", "tune")  # the index of each seeds its random draws
# file -> SHA-256
PHOTOGRAPHS = {
    "frost1.png": "ff9f907860bd7a835d459e32f9d588062b7f61ee267343cc7222b56753a14755",
    "frost2.png": "fe211a89b336999c207a852ce05818d4545d0b57c5beadd824b4cc9d9a9b6137",
    "frost3.png": "2d0d50b4a9bb213f38b024ef7768731bb83cc08d2f26b5766bbc167cdfa0e504",
    "frost4.jpg": "3f8b91ca1a9fa7167b09e773da53f5ae60d0a1fd88f02a783f6e328a72887f6e",
    "frost5.jpg": "5fc6a19df4a429ba68abdcc8f8a4278d4c9f81c9ccafd2c92ab0c8cf8992ebd2",
}


class CCIFAR(Dataset):
    """Corrupted CIFAR-10 from the archive of Disen's authors, or generated with LfF's protocol."""

    name = "ccifar"
    display = "Corrupted CIFAR-10"
    class_names = CLASS_NAMES
    bias_names = ("corruption",)
    bias_values = (corruptions.NAMES,)
    n_bias_values = 10
    unbiased_test = True
    headline = ("acc_unbiased",)
    official_counts = COUNTS
    citation = """@inproceedings{nam2020learning,
  title={Learning from Failure: Training Debiased Classifier from Biased Classifier},
  author={Nam, Junhyun and Cha, Hyuntak and Ahn, Sungsoo and Lee, Jaeho and Shin, Jinwoo},
  booktitle={NeurIPS}, year={2020}}"""
    recipe = CIFAR_RECIPE
    presets = {
        "disen": {
            "recipe": {
                "steps": 50_000,
                "drop_last": True,
                "weight_decay": 0.0,
                "learning_rate": 5e-4,
                "milestones": (0.4, 0.6, 0.8),
            }
        }
    }

    rho: float = between(0, 1, default=0.005)  # fraction of bias-conflicting training samples
    source: str = one_of("auto", "archive", "generated", default="auto")
    level: int = between(1, corruptions.LEVELS, default=5)  # strength, for source=generated
    frost: str = one_of("drawn", "photographs", default="drawn")  # for source=generated

    @property
    def conflict_ratio(self) -> float:
        return self.rho

    def in_words(self) -> dict[str, str]:
        return {"rho": f"{100 * self.rho:g} %"}

    def check(self) -> None:
        if self.source == "archive" and (self.rho not in ARCHIVE_RATIOS or (self.level, self.frost) != (5, "drawn")):
            raise BenchmarkError(
                f"The archive of {self.name} has rho {', '.join(f'{ratio:g}' for ratio in ARCHIVE_RATIOS)} and its own "
                f"corruptions: 'level' and 'frost' do not apply. Got rho={self.rho:g}, level={self.level}, "
                f"frost={self.frost}. Choose one of these, or source=generated."
            )

    def folder(self, data_dir: Path) -> Path:
        """The folder of the archive."""
        return super().folder(data_dir) if self.root else data_dir / "cifar10c"

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The folders of the archive if it is used, otherwise CIFAR-10 (and the photographs of frost)."""
        if self._from_archive(data_dir):
            packed = self._packed(data_dir)
            source = f"{packed}: debiasbench prepare {self.name} unpacks it" if packed.is_file() else ARCHIVE
            folders = self._archive(data_dir).values()
            return [NeededFile(path, "images", source, packed.is_file()) for path in folders if not has_images(path)]
        return missing_files(self._plain(data_dir)) + [
            NeededFile(path, "0.1 to 1.2 MB", "the folder frost of the Python package imagecorruptions")
            for path in self._photographs(data_dir)
            if not path.is_file()
        ]

    def present_files(self, data_dir: Path) -> list[Path]:
        if self._from_archive(data_dir):
            return super().present_files(data_dir)
        return present_files(self._plain(data_dir))

    def shortfalls(self, data_dir: Path) -> list[str]:
        """Those of CIFAR-10; the number of images in the archive was never published."""
        return [] if self._from_archive(data_dir) else shortfalls(self._plain(data_dir))

    def prepare(self, data_dir: Path) -> None:
        """Unpack the archive if it lies beside its folder; otherwise download CIFAR-10 from its mirrors."""
        packed = self._packed(data_dir)
        if self._from_archive(data_dir) and packed.is_file():
            unpack(packed, packed.parent)
        elif not self._from_archive(data_dir) and missing_files(self._plain(data_dir)):
            download(self._plain(data_dir))

    def build(self, data_dir: Path) -> Splits:
        """45,000 / 5,000 / 10,000 samples; if generated, also `tune`: the validation images with 90 % conflicts."""
        return self._read(data_dir) if self._from_archive(data_dir) else self._generate(data_dir)

    # ---- the archive ------------------------------------------------------------------------------------------------

    @property
    def _share(self) -> str:
        return f"{100 * self.rho:g}pct"

    def _from_archive(self, data_dir: Path) -> bool:
        if self.source == "auto":  # generate what the archive does not have
            own = (self.level, self.frost, self.data_seed) != (corruptions.LEVELS, "drawn", 0)
            return not own and ((self.folder(data_dir) / self._share).is_dir() or self._packed(data_dir).is_file())
        return self.source == "archive"

    def _packed(self, data_dir: Path) -> Path:
        folder = self.folder(data_dir).absolute()
        return folder.with_name(f"{folder.name}.zip")

    def _archive(self, data_dir: Path) -> dict[str, Path]:
        """Name of a part -> its folder."""
        folder = self.folder(data_dir)
        share = folder / self._share
        parts = {"align": share / "align", "conflict": share / "conflict"}
        return parts | {"valid": share / "valid", "test": folder / "test"}

    def _read(self, data_dir: Path) -> Splits:
        needed = self.needed_files(data_dir)
        if needed:
            missing = ", ".join(str(file.path) for file in needed)
            raise BenchmarkError(f"{missing} is missing in {ARCHIVE}. Unpack it again, or give source=generated.")
        paths = {part: image_files(folder, below=True) for part, folder in self._archive(data_dir).items()}
        misplaced = [
            path
            for side in ("align", "conflict")
            for path in paths[side]
            if (len(set(attributes_of(path))) == 1) != (side == "align")
        ]
        if misplaced:
            raise BenchmarkError(f"{misplaced[0]} is not in the folder that its name gives. Unpack the archive again.")
        n_aligned, n_conflict = len(paths["align"]), len(paths["conflict"])
        paths = {"train": paths["align"] + paths["conflict"], "valid": paths["valid"], "test": paths["test"]}
        images = {split: self._decoded(split, some) for split, some in paths.items()}
        splits = {}
        for split, one in images.items():
            attributes = torch.tensor([attributes_of(path) for path in paths[split]])
            splits[split] = Samples(one.x, attributes[:, 0], attributes[:, 1:], x_sha256=one.sha256)
        others = other_files(*self._archive(data_dir).values(), below=True)
        note = (
            f"Read from the archive's files ({n_aligned:,} aligned and {n_conflict:,} conflicting training images); "
            "its counts and checksums were never published."
        )
        return Splits.of(splits, official=False, note=" ".join([note, *remarks(images.values(), others)]))

    def _decoded(self, split: str, paths: list[Path]) -> Cached:
        shape = read_image(paths[0]).shape
        if shape != (3, corruptions.SIZE, corruptions.SIZE):
            raise BenchmarkError(
                f"{paths[0]} is {shape[2]} x {shape[1]} pixels; the archive's images are {corruptions.SIZE} x "
                f"{corruptions.SIZE}. Is this {ARCHIVE}?"
            )
        return decode(f"{self.name}-{split}", paths)

    # ---- the generator ----------------------------------------------------------------------------------------------

    def _plain(self, data_dir: Path) -> Path:
        """The folder of CIFAR-10, or the one above it."""
        return self.folder(data_dir) if self.root else data_dir

    def _photographs(self, data_dir: Path) -> list[Path]:
        if self.frost != "photographs":
            return []
        return [self._plain(data_dir) / "frost" / name for name in PHOTOGRAPHS]

    def _generate(self, data_dir: Path) -> Splits:
        plain = read_cifar10(self._plain(data_dir))
        textures = [photograph(path) for path in self._photographs(data_dir)] or None
        parts = plain.parts() | {"tune": plain.parts()["valid"]}
        splits = {split: self._corrupted(split, *part, textures) for split, part in parts.items()}
        notes = [
            f"Generated by LfF's protocol at level {self.level}",
            f"no archive at {self._share} was found" if self.source == "auto" else "",
            "frost is drawn, not made of its photographs" if textures is None else "",
        ]
        note = f"{', '.join(text for text in notes if text)}. {plain.note}".strip()
        # the published data have the highest level, and frost made of photographs
        official = plain.complete and self.level == corruptions.LEVELS and textures is not None
        return Splits.of(splits, official=official, note=note)

    def _corrupted(self, split: str, x: Tensor, y: Tensor, textures: list[np.ndarray] | None) -> Samples:
        bias = block_conflicts(y, self.rho if split in ("train", "valid") else TEST_RATIO)
        numbers = (self.data_seed, SPLITS.index(split))
        identity = {
            "plain": digest_of(x, bias), "level": self.level, "seed": numbers, **corruptions.identity(textures)
        }  # fmt: skip
        entry = cached(
            f"{self.name}-{split}",
            identity,
            tuple(x.shape),
            lambda: corruptions.corrupted(
                x.numpy(),
                bias.numpy(),
                level=self.level,
                numbers=numbers,
                textures=textures,
                note=f"{self.name} {split}",
            ),
        )
        return Samples(entry.x, y, bias[:, None], x_sha256=entry.sha256)


def attributes_of(path: Path) -> tuple[int, int]:
    """(label, bias) from `<..>_<label>_<bias>`."""
    fields = path.stem.split("_")[-2:]
    if len(fields) != 2 or not set(fields) <= set("0123456789"):
        raise BenchmarkError(f"{path}: the name must be <..>_<label>_<bias>, both 0 to 9. Rename it, or take it out.")
    return int(fields[0]), int(fields[1])


def photograph(path: Path) -> np.ndarray:
    """Read one of the generator's photographs of ice and keep every fifth pixel: uint8 (H, W, 3)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read ({error}). Put it there, or give frost=drawn.") from None
    if hashlib.sha256(data).hexdigest() != PHOTOGRAPHS[path.name]:
        raise BenchmarkError(f"{path} has a wrong checksum: it is not the published file. Replace it, or frost=drawn.")
    # the middle pixel of each five: the same as bilinear resizing to a fifth without smoothing
    return np.ascontiguousarray(read_image(path).transpose(1, 2, 0)[2::5, 2::5])
