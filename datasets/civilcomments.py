"""CivilComments-WILDS: is an online comment toxic? Comments that mention certain identities are toxic more often.

Input: token numbers, int32 (300,), made once by the tokenizer of `encoder`. Label: toxic if at least half of the
annotators say so. Eight identities: a comment mentions one if at least half of its annotators say so. It may mention
several.

Evaluation is that of WILDS. For each identity, the comments that mention it form two groups, toxic and not: 16
overlapping groups. `acc_worst` is the lowest accuracy of a group, `acc_avg` is plain accuracy over all comments.
`acc_overlapavg` is CNC's average over the 16 groups. It counts some comments several times and most not at all, so
never compare it with `acc_avg`. A group without comments is left out (the code of WILDS counts it as 0).

Bias, for methods that use bias labels in training: `groups=black` (WILDS) or `groups=identity_any` (JTT's GroupDRO).
With the label it gives four groups, numbered bias + 2 label. No comment is "conflicting", because mentioning an
identity belongs to neither label.

Layout, as in WILDS: civilcomments_v1.0/all_data_with_identities.csv with 269,038 / 45,180 / 133,782 comments. The
loader of WILDS fails under pandas 3, so the file is read here.

Recipe: the settings of WILDS (AdamW, linear decay, gradients clipped at 1) with bert-base-uncased, which the PGD paper
and others use. `preset=wilds` is the default of WILDS (DistilBERT, and its rule for weight decay), `preset=jtt` is
JTT's second training, and `preset=paper` is the optimiser printed in the PGD paper's Table 6 (SGD, constant rate).
Source: D. Borkan et al., WWW 2019; P. W. Koh et al., ICML 2021; CC0.
"""

import hashlib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from debiasbench.data.cache import Cached
from debiasbench.data.encoders import download_encoder, missing_encoder, tokenised, tokenizer_of
from debiasbench.datasets import Dataset, NeededFile, Recipe, at_least, one_of
from debiasbench.errors import BenchmarkError
from debiasbench.samples import Samples, Splits

if TYPE_CHECKING:
    import pandas as pd  # imported where needed: it takes a third of a second, which runs on other datasets save

FOLDER = "civilcomments_v1.0"
FILE = "all_data_with_identities.csv"
IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
SPLITS = {"train": "train", "valid": "val", "test": "test"}  # our name -> the name in the file
COLUMNS = ("comment_text", "split", "toxicity", *IDENTITIES, "identity_any")
SHOWN = 5  # rows that a message names
MEND = "Fetch the file again, or mend it."


class CivilComments(Dataset):
    """Toxic comments, biased by the identities they mention."""

    name = "civilcomments"
    display = "CivilComments"
    input = "text"
    class_names = ("non-toxic", "toxic")
    n_bias_values = 2
    defines_conflicts = False
    group_names = tuple(f"{identity}, {label}" for identity in IDENTITIES for label in ("non-toxic", "toxic"))
    headline = ("acc_worst", "acc_avg")
    official_counts = {"train": 269_038, "valid": 45_180, "test": 133_782}
    citation = """@inproceedings{koh2021wilds,
  title={WILDS: A Benchmark of in-the-Wild Distribution Shifts},
  author={Koh, Pang Wei and Sagawa, Shiori and Marklund, Henrik and Xie, Sang Michael and Zhang, Marvin and others},
  booktitle={International Conference on Machine Learning}, year={2021}}"""
    recipe = Recipe(
        net="transformer", precision="auto", epochs=5, batch_size=16, optimizer="adamw", learning_rate=1e-5,
        weight_decay=0.01, schedule="linear", clip_norm=1.0, augment=False,
    )  # fmt: skip
    presets = {
        "wilds": {"encoder": "distilbert-base-uncased", "recipe": {"decayed": "wilds"}},
        "jtt": {"groups": "identity_any", "recipe": {"epochs": 3}},
        "paper": {"recipe": {"optimizer": "sgd", "momentum": 0.9, "schedule": "constant", "clip_norm": None}},
    }

    encoder: str = "bert-base-uncased"  # for transformers: a name on the Hugging Face hub, or a folder
    max_length: int = at_least(4, default=300)  # tokens; longer comments are cut off
    groups: str = one_of("black", "identity_any", default="black")

    @property
    def own_recipe(self) -> Recipe:
        """The recipe with the network that belongs to the tokenizer."""
        return self.recipe.replace(pretrained=self.encoder)

    @property
    def bias_names(self) -> tuple[str, ...]:
        return (self.groups,)

    @property
    def bias_values(self) -> tuple[tuple[str, ...], ...]:
        return ((f"not {self.groups}", self.groups),)

    def file(self, data_dir: Path) -> Path:
        """The CSV: in the folder of WILDS below the data folder or `root`, or in `root` itself."""
        folder = super().folder(data_dir) if self.root else data_dir
        inside = folder / FILE
        return inside if self.root and inside.is_file() else folder / FOLDER / FILE

    def folder(self, data_dir: Path) -> Path:
        return self.file(data_dir).parent

    def needed_files(self, data_dir: Path) -> list[NeededFile]:
        """The CSV, and the encoder."""
        path = self.file(data_dir)
        source = (
            "https://worksheets.codalab.org (WILDS; its host is often down), or the CivilComments of wilds.stanford.edu"
        )
        needed = [] if path.is_file() else [NeededFile(path, "0.2 GB, 448,000 comments", source, downloads=True)]
        return needed + missing_encoder(self.encoder)

    def prepare(self, data_dir: Path) -> None:
        """Download the comments with the package wilds, and the encoder from the Hugging Face hub; try both."""
        problems = []
        for fetch in (partial(_download, self.file(data_dir)), partial(download_encoder, self.encoder)):
            try:
                fetch()
            except BenchmarkError as error:
                problems.append(str(error))
        if problems:
            raise BenchmarkError("\n".join(problems))

    def draws(self, data_dir: Path) -> bool:
        return False

    def build(self, data_dir: Path) -> Splits:
        """The splits of the file."""
        return self._splits(data_dir, tokenizer_of(self.encoder, self.max_length))

    def build_labels(self, data_dir: Path) -> Splits:
        """Like `build`, but without tokens if the encoder cannot be used."""
        try:
            tokenizer = tokenizer_of(self.encoder, self.max_length)
        except BenchmarkError as error:
            splits = self._splits(data_dir, None)
            return replace(splits, note=f"{splits.note} Texts were not made tokens: {error}")
        return self._splits(data_dir, tokenizer)

    def _splits(self, data_dir: Path, tokenizer: Any) -> Splits:
        path = self.file(data_dir)
        table = read(path, [column for column in COLUMNS if column != "comment_text"])
        check(table, path)
        file_sha256 = _digest(path)
        texts = _Texts(path)
        splits = {}
        for split, word in SPLITS.items():
            rows = (table["split"] == word).to_numpy().nonzero()[0]
            if not len(rows):
                raise BenchmarkError(f"{path} has no comment whose split is {word!r}. {MEND}")
            tokens = None
            if tokenizer is not None:
                tokens = tokenised(
                    f"{self.name}-{split}", f"{file_sha256} {split}", lambda rows=rows: texts.of(rows), len(rows),
                    tokenizer, self.max_length,
                )  # fmt: skip
            splits[split] = self._samples(table.iloc[rows], tokens)
        counts = {split: len(samples) for split, samples in splits.items()}
        as_published = "as published" if counts == self.official_counts else "not as published"
        shown = " / ".join(f"{n:,}" for n in counts.values())
        return Splits.of(
            splits,
            official=False,  # no checksums were published
            note=f"Counts are {as_published} ({shown}); no checksum of the file was published, so it is not verified.",
        )

    def _samples(self, table: "pd.DataFrame", tokens: Cached | None) -> Samples:
        y = torch.from_numpy((table["toxicity"] >= 0.5).to_numpy().astype("int64"))
        mentioned = torch.from_numpy((table[list(IDENTITIES)] >= 0.5).to_numpy())  # an empty cell means not mentioned
        bias = torch.from_numpy((table[[self.groups]] >= 0.5).to_numpy().astype("int64"))
        groups = torch.stack([mentioned & (y == 0)[:, None], mentioned & (y == 1)[:, None]], 2).flatten(1)
        conflict = torch.zeros_like(bias, dtype=torch.bool)
        if tokens is None:
            return Samples(torch.empty(len(y), 0, dtype=torch.int32), y, bias, conflict, groups=groups)
        return Samples(tokens.x, y, bias, conflict, tokens.sha256, length=(tokens.x >= 0).sum(1), groups=groups)


class _Texts:
    """The comments of the file, read when they are first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> np.ndarray:
        if self.texts is None:
            column = read(self.path, ["comment_text"])["comment_text"]
            empty = (column == "").to_numpy().nonzero()[0]
            if len(empty):
                raise BenchmarkError(f"{self.path}: no text in {_named(empty)}. {MEND}")
            self.texts = column.to_numpy(dtype=object)
        return self.texts[rows]


def read(path: Path, columns: list[str]) -> "pd.DataFrame":
    """Read some columns of the CSV. Text stays text, even "null" or "NA".

    Raises:
        BenchmarkError: a column is missing, or the file is cut off.
    """
    import pandas as pd

    try:
        header = pd.read_csv(path, nrows=0).columns
        missing = [column for column in columns if column not in header]
        if missing:
            raise BenchmarkError(f"{path} has no column {', '.join(missing)}. It needs {', '.join(COLUMNS)}. {MEND}")
        words = {column: str for column in ("comment_text", "split") if column in columns}
        empty = {column: [] if column in words else ["", "NA", "nan", "NaN"] for column in columns}
        return pd.read_csv(path, usecols=columns, dtype=words, na_values=empty, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise BenchmarkError(f"{path} is cut off or no CSV ({error}). {MEND}") from None


def check(table: "pd.DataFrame", path: Path) -> None:
    """Refuse invalid splits, labels and identities."""
    import pandas as pd

    words = set(SPLITS.values())
    unknown = (~table["split"].isin(words)).to_numpy().nonzero()[0]
    if len(unknown):
        given = sorted(set(table["split"].iloc[unknown].astype(str)))[:SHOWN]
        raise BenchmarkError(
            f"{path}: the split must be {', '.join(sorted(words))}. Got {given} in {_named(unknown)}. {MEND}"
        )
    for column in ("toxicity", *IDENTITIES, "identity_any"):
        if not pd.api.types.is_numeric_dtype(table[column]):
            wrong = pd.to_numeric(table[column], errors="coerce").isna() & table[column].notna()
            raise BenchmarkError(
                f"{path}: {column} must be numbers. Got others in {_named(wrong.to_numpy().nonzero()[0])}."
            )
    wrong = (~table["toxicity"].between(0, 1)).to_numpy().nonzero()[0]  # also true for an empty cell
    if len(wrong):
        raise BenchmarkError(f"{path}: toxicity must be a fraction in [0, 1]. It is not in {_named(wrong)}. {MEND}")


def _named(places: np.ndarray) -> str:
    """Row numbers for a message, from indices that start at 0: the first comment is row 1."""
    some = ", ".join(str(place + 1) for place in places[:SHOWN])
    return f"{len(places):,} comments (row {some}{', ...' if len(places) > SHOWN else ''})"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(path: Path) -> None:
    """Download the file with the package wilds if it is missing.

    The reader of wilds fails under pandas 3 after the download, so only the file counts.
    """
    if path.is_file():
        return
    os.environ.setdefault("OUTDATED_IGNORE", "1")  # otherwise wilds asks a package index for its latest version
    import wilds

    reason = ""
    try:
        wilds.get_dataset("civilcomments", root_dir=str(path.parent.parent), download=True)
    except Exception as error:  # a failed download can end in any error
        reason = f" ({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__})"
    if not path.is_file():
        raise BenchmarkError(
            f"The package wilds could not download CivilComments{reason}; its host is often down. Fetch the dataset "
            f"elsewhere and put the file at {path}."
        )
