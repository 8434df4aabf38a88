"""Your own images, from folders or a table, with no code written.

    --datasets "imagefolder:root=photos,title=birds"

Input: uint8 (3, size, size), each image resized to a square (the aspect is not kept). Label and bias as given:

- folders: root/<split>/<class>/* or, with bias labels, root/<split>/<class>/<bias>/*; splits train, test, and
  valid if there is one;
- a table: root/images.csv (or `table=FILE`, below root), with the columns file (below root), label, split (train,
  valid or test) and, if known, bias.

Classes and bias values are numbered in the order of their names. If the bias values are named like the classes, a
sample conflicts when the two differ; else when its bias is not the most frequent one of its class in training.
Without a validation split a tenth of each training class becomes one, drawn from `data_seed`.

`title` names the data in tables and records: give each folder its own. `rho`, the fraction of conflicting samples
as far as you know it, is for methods that use it (JTT). Recipe: that of BAR, from ImageNet weights
(`pretrained=none` starts at random); every field can be given inline (`net=resnet50,epochs=30`). Headline: `acc_avg`;
with bias labels all group metrics are there as well.
"""

import csv
from collections import defaultdict
from functools import cached_property
from pathlib import Path

import torch

from debiasbench.data.images import ENDINGS, decode, image_files
from debiasbench.datasets import Dataset, NeededFile, Recipe, at_least, between
from debiasbench.errors import BenchmarkError
from debiasbench.randomness import derived_generator
from debiasbench.samples import Samples, Splits, stratified

SPLITS = ("train", "valid", "test")
Row = tuple[Path, str, str]  # the file, its label, and its bias or ""


class ImageFolder(Dataset):
    """Images from folders or a table."""

    name = "imagefolder"
    bias_names = ("bias",)
    headline = ("acc_avg",)
    recipe = Recipe(
        net="resnet18", pretrained="imagenet", epochs=100, batch_size=16, learning_rate=5e-4, weight_decay=1e-5,
        milestones=(0.2, 0.4, 0.6, 0.8), gamma=0.1, pad_crop=4, flip=True,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip

    title: str = ""  # what the data are called
    table: str = "images.csv"  # used if it is there
    size: int = at_least(16, default=224)  # pixels a side
    rho: float | None = between(0, 1, default=None)  # fraction of bias-conflicting training samples, if you know it

    def check(self) -> None:
        """Data without a name or a place cannot be told apart."""
        if self.root and not self.title:
            raise BenchmarkError(
                "imagefolder needs a title, which names the data in tables and records: "
                f"imagefolder:root={self.root},title=NAME"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted({label for rows in self.rows.values() for _, label, _ in rows})) if self.root else ()

    @property
    def n_bias_values(self) -> int:
        return len(self._bias_values())

    @property
    def has_bias_labels(self) -> bool:
        return bool(self._bias_values())

    @property
    def conflict_ratio(self) -> float | None:
        return self.rho

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The folder, which the user names."""
        if self.root and self.folder(data_dir).is_dir():
            return []
        example = "name it: imagefolder:root=FOLDER,title=NAME"
        root = self.folder(data_dir) if self.root else Path("FOLDER")
        return [NeededFile(root, "train/<class>/*, test/<class>/* or images.csv", example)]

    def draws(self, data_dir: Path) -> bool:
        return "valid" not in self.rows

    def build(self, data_dir: Path) -> Splits:
        """The splits as given; a tenth of training for validation, if there is none."""
        rows = dict(self.rows)
        classes, values = self.class_names, self._bias_values()
        y = {split: torch.tensor([classes.index(label) for _, label, _ in part]) for split, part in rows.items()}
        note = f"{self.title}: {len(classes)} classes."
        if "valid" not in rows:
            rest, tenth = stratified(y["train"], 0.1, derived_generator("data", self.data_seed))
            if not len(tenth):
                raise BenchmarkError(f"{self.root}: no class has the five training images that validation would need.")
            train, labels = rows["train"], y["train"]
            rows |= {"train": [train[row] for row in rest], "valid": [train[row] for row in tenth]}
            y |= {"train": labels[rest], "valid": labels[tenth]}
            note += " No validation split was given: a tenth of training serves."
        bias = {
            split: torch.tensor([[values.index(value) if value else -1] for *_, value in part])
            for split, part in rows.items()
        }
        typical = None  # the bias that is named like the class
        if values != classes:
            counts = torch.zeros(len(classes), max(len(values), 1))
            known = bias["train"][:, 0] >= 0
            counts.index_put_((y["train"][known], bias["train"][known, 0]), torch.ones(()), accumulate=True)
            typical = counts.argmax(1)
        splits = {}
        for split in SPLITS:
            images = decode(f"{self.name}-{split}", [path for path, *_ in rows[split]], size=self.size)
            conflict = None
            if typical is not None:
                conflict = (bias[split] != typical[y[split]][:, None]) & (bias[split] >= 0)
            splits[split] = Samples(images.x, y[split], bias[split], conflict, images.sha256)
        return Splits.of(splits, note=note)

    def _bias_values(self) -> tuple[str, ...]:
        found = {bias for rows in self.rows.values() for *_, bias in rows if bias} if self.root else set()
        return tuple(sorted(found))

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """The images of each split."""
        if not self.root:
            raise BenchmarkError("imagefolder needs a folder: imagefolder:root=FOLDER,title=NAME")
        root = self.folder(Path())
        table = root / self.table
        if self.table != "images.csv" and not table.is_file():
            raise BenchmarkError(f"There is no file {table} (imagefolder:table={self.table}).")
        rows = _from_table(root, table) if table.is_file() else _from_folders(root)
        for split in ("train", "test"):
            if not rows.get(split):
                raise BenchmarkError(
                    f"{root} has no {split} images: {split}/<class>/* is needed, or {self.table} with the columns "
                    "file, label, split and, if known, bias."
                )
        unseen = {label for _, label, _ in rows["test"]} - {label for _, label, _ in rows["train"]}
        if unseen:
            raise BenchmarkError(f"{root}: {', '.join(sorted(unseen))} occurs in test, but not in train.")
        return rows


def _from_folders(root: Path) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = defaultdict(list)
    for split in SPLITS:
        place = root / split
        folders = sorted(place.iterdir()) if place.is_dir() else []
        for folder in [path for path in folders if path.is_dir() and not path.name.startswith(".")]:
            below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
            beside = [path for path in folder.iterdir() if path.suffix.lower() in ENDINGS]
            if below and beside:
                raise BenchmarkError(
                    f"{folder} holds images ({beside[0].name}, ...) and folders ({below[0].name}, ...): which is meant "
                    "cannot be told. Folders below a class are values of the bias: put all its images there, or none."
                )
            for place, bias in [(path, path.name) for path in below] or [(folder, "")]:
                rows[split] += [(path, folder.name, bias) for path in image_files(place)]
    return dict(rows)


def _from_table(root: Path, table: Path) -> dict[str, list[Row]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchmarkError(f"{table} cannot be read as a table ({error}).") from None
    missing = [name for name in ("file", "label", "split") if name not in columns]
    if missing:
        raise BenchmarkError(
            f"{table} lacks the columns {', '.join(missing)}. Needed: file, label, split; if known, bias. "
            f"Got {', '.join(columns) or 'nothing'}."
        )
    rows: dict[str, list[Row]] = defaultdict(list)
    problems: list[str] = []
    seen: dict[Path, int] = {}  # the line of each file
    for number, line in enumerate(lines, start=2):
        path, label, split = root / (line["file"] or ""), line["label"], line["split"]
        if split not in SPLITS or not label:
            problems.append(
                f"line {number}: split must be {', '.join(SPLITS)} and label not empty. Got {split}, {label}."
            )
        elif not path.is_file():
            problems.append(f"line {number}: there is no file {path}.")
        elif path in seen:
            problems.append(f"line {number}: {line['file']} is in line {seen[path]} already.")
        else:
            seen[path] = number
            rows[split].append((path, label, line.get("bias") or ""))
    if problems:
        more = f"\n... and {len(problems) - 10} more." if len(problems) > 10 else ""
        raise BenchmarkError(f"{table}:\n" + "\n".join(problems[:10]) + more)
    return dict(rows)
