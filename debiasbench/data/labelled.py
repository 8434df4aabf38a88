"""Labelled image files, as people keep them in folders or in a table; tables, and the names that they give."""

from __future__ import annotations

import csv
import difflib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from debiasbench.data.images import contents, has_images, image_files, left_out
from debiasbench.errors import BenchmarkError
from debiasbench.files import absent
from debiasbench.parameters import write_value

SPLITS: Mapping[str, tuple[str, ...]] = {  # the usual names of each, in any case
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
NUMBERED = {"0": "train", "1": "valid", "2": "test"}  # in tables, as GroupDRO has them
SHORT = {"tr": "train", "va": "valid", "te": "test"}  # as SubpopBench has them
ALSO_SPLITS = ("holdout", "heldout", "hold-out", "held-out", "hold_out", "held_out", "extra", "unseen")  # not read
MISSING = frozenset({  # how tables and people write that a value is not known, in any case and without brackets
    "na", "n/a", "n.a.", "#na", "#n/a", "#n/a n/a", "nat", "null", "#null!", r"\n", "nil", "none", "1.#ind", "-1.#ind",
    "1.#qnan", "-1.#qnan", "unknown", "not known", "unk", "missing", "undefined", "undetermined", "not available",
    "not applicable", "unlabeled", "unlabelled", "no label", "n.d.",
})  # fmt: skip
SHOWN = 10  # mistakes told in one message
# What nobody sees, too, which Python does not take for blanks: without width, or turning the direction of writing
BLANKS = r"[\s\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]+"
Row = tuple[Path, str, str]  # the file, its label, and its bias or ""


@dataclass(frozen=True)
class Labelled:
    """The images of each split, each with label and bias; and what is to be said of how they were read."""

    rows: Mapping[str, list[Row]]
    notes: list[str]


@lru_cache(maxsize=10_000)
def split_named(name: str) -> str | None:
    """Train, valid or test by one of its usual names; None if it is none of them."""
    word = tidied(name).lower()
    return next((split for split, names in SPLITS.items() if word in names), None)


@lru_cache(maxsize=10_000)
def split_in_table(name: str) -> str | None:
    """As `split_named`, in tables, which number splits or shorten their names as well."""
    word = tidied(name).lower()
    return NUMBERED.get(word) or SHORT.get(word) or split_named(word)


@lru_cache(maxsize=10_000)  # a million rows have few names
def tidied(name: str) -> str:
    """A name without the blanks around it."""
    return re.sub(f"^{BLANKS}|{BLANKS}$", "", name)


@lru_cache(maxsize=10_000)
def is_missing(name: str) -> bool:
    """Whether a value says that it is not known: by a word, by a mark such as - or ?, as no number, or as -1."""
    word = tidied(name).lower().strip("<>()[]")
    if word in MISSING or re.fullmatch(r"[-\u2013\u2014?.]*", word):
        return True
    try:
        number = float(word)
    except ValueError:
        return False
    return number == -1 or math.isnan(number)


def alike(names: Iterable[str]) -> list[list[str]]:
    """Names that differ in blanks, case, Unicode form, or as numbers are written, and in nothing else."""
    groups = defaultdict(set)
    for name in names:
        groups[_essence(name)].add(name)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def _essence(name: str) -> str:
    text = re.sub(BLANKS, "", unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()))
    try:
        return str(float(text))
    except ValueError:
        return text


def _quoted(names: Iterable[str]) -> str:
    """Names for people, so that blanks are seen; those that look equal with their code points."""
    names = list(names)
    same = len({unicodedata.normalize("NFKC", name) for name in names}) < len(names)
    return " and ".join(ascii(name) if same else repr(name) for name in names)


# ---- folders --------------------------------------------------------------------------------------------------------


def from_folders(root: Path) -> Labelled:
    """Images in root/<split>/<class>/*, or root/<split>/<class>/<bias>/*.

    Raises:
        BenchmarkError: a folder or image whose meaning cannot be told, or that would be left out.
    """
    found: dict[str, list[Row]] = {split: [] for split in SPLITS}
    others: list[Path] = []
    splits, rest = _splits(root)
    for split, place in splits.items():
        inside = contents(place)
        if inside.images:
            raise BenchmarkError(
                f"{place} holds {len(inside.images):,} images that are in no folder of a class "
                f"({inside.images[0].name}, ...). Put them into {place.name}/<class>/, or take them out."
            )
        others += inside.others
        for folder in inside.folders:
            if is_missing(folder.name):
                raise BenchmarkError(f"{folder}: {no_label(folder.name)} Take the folder out, or name it otherwise.")
            below, beside, _ = contents(folder)
            if below and beside:
                raise BenchmarkError(
                    f"{folder} holds images ({beside[0].name}, ...) and folders ({below[0].name}, ...): which is meant "
                    "cannot be told. Folders below a class are values of the bias: put all its images there, or none."
                )
            for leaf, bias in [(path, path.name) for path in below] or [(folder, "")]:
                inner = contents(leaf)
                deeper = [path for path in inner.folders if has_images(path)]
                if deeper:
                    raise BenchmarkError(
                        f"{deeper[0]} holds images below <class>/<bias>, where none are read. Move them up, or take "
                        "them out."
                    )
                found[split] += [(path, folder.name, bias) for path in image_files(leaf)]
                others += inner.others
    classes = {tidied(label) for part in found.values() for _, label, _ in part}
    unread = [folder.name for folder in rest if _looks_like_split(folder, classes)]
    if unread:
        raise BenchmarkError(
            f"{root} has images in folders that look like splits and are none: {', '.join(unread)}. Splits are "
            f"{_allowed()}, each with a folder for each class. Rename or move the folders, or list the images that are "
            "meant in a table (images.csv)."
        )
    return _named(found, left_out(others))


def _splits(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """Split -> its folder; and the other folders.

    Raises:
        BenchmarkError: several folders are one split.
    """
    splits: dict[str, Path] = {}
    rest = []
    for folder in contents(root).folders:
        split = split_named(folder.name)
        if split is None:
            rest.append(folder)
        elif split in splits:
            raise BenchmarkError(
                f"{root} holds {splits[split].name} and {folder.name}, which both mean {split}. Put all its images "
                "into one, or take one out."
            )
        else:
            splits[split] = folder
    return splits, rest


def _looks_like_split(folder: Path, classes: set[str]) -> bool:
    """Whether a folder with images is called nearly like a split, or it or a folder below it has folders of classes."""
    return has_images(folder) and (_is_nearly_split(folder.name) or _has_classes(folder, classes))


def _has_classes(folder: Path, classes: set[str]) -> bool:
    return any(
        tidied(inner.name) in classes or _is_nearly_split(inner.name) or _has_classes(inner, classes)
        for inner in contents(folder).folders
        if has_images(inner)
    )


def _is_nearly_split(name: str) -> bool:
    """Whether a word of a name is that of a split, or nearly: val2017, my-test, val_set, testset, vali, tests."""
    name, names = tidied(name).lower(), [name for names in SPLITS.values() for name in names]
    if re.search(rf"(?<![a-z])({'|'.join([*names, *ALSO_SPLITS])})(s|sets?)?(?![a-z])", name):
        return True
    return any(_is_slip(word, split) for word in re.findall("[a-z]{3,}", name) for split in names if len(split) > 3)


def _is_slip(word: str, split: str) -> bool:
    """Whether a word is the beginning of a name, or the name with letters in another order, one too few or too many.

    Only with the same first letter (strain is no train), and never with another letter in place of one (text, trail).
    """
    longer, shorter = sorted((word, split), key=len, reverse=True)
    return word[0] == split[0] and (
        (len(word) > 3 and split.startswith(word))
        or sorted(word) == sorted(split)
        or shorter in [longer[:place] + longer[place + 1 :] for place in range(1, len(longer))]
    )


def _allowed() -> str:
    """The names of splits, for messages."""
    return ", ".join(f"{split} (or {', '.join(others)})" for split, (_, *others) in SPLITS.items())


# ---- a table --------------------------------------------------------------------------------------------------------


COLUMNS = ("file", "label", "split", "bias")  # of a table of images, by their usual names
_LABELS = ("label", "y", "target", "class", "class_name", "label_name", "category", "category_name")
CALLED: Mapping[str, tuple[str, ...]] = {  # what people call the columns of tables, by ours
    "file": ("filename", "file_name", "path", "filepath", "file_path", "image", "image_path", "img", "img_path",
             "img_filename", "image_id"),
    "label": _LABELS,
    "y": _LABELS,
    "split": ("partition", "set", "subset", "fold", "part", "phase"),
    "bias": ("background", "place", "a", "attribute", "group", "spurious", "confounder", "environment", "env",
             "domain", "color", "colour"),
}  # fmt: skip


def from_table(root: Path, table: Path, named: Mapping[str, str]) -> Labelled:
    """Images as a table lists them.

    Args:
        root: what the files are below.
        table: a CSV file.
        named: each of `COLUMNS` -> what the table calls it. Without a column for the bias of its usual name, no bias
            is known.

    Raises:
        BenchmarkError: the table cannot be read, columns are missing, or lines of it cannot be meant; names them.
    """
    columns, lines = read_table(table)
    given = table.relative_to(root) if table.is_relative_to(root) else table
    of = columns_of(
        table, columns, named, needed="file, label, split; if known, bias", optional=("bias",),
        spec=f"imagefolder:table={write_value(given.as_posix())}",
    )  # fmt: skip
    refuse_twice(table, columns, of.values())
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    problems: list[str] = []
    seen: dict[Path, int] = {}  # the line of each file
    for number, line in enumerate(lines, start=2):
        file, label, split = (line[of[role]] or "" for role in ("file", "label", "split"))
        path, part = root / file, split_in_table(split)
        if part is None:
            problems.append(f"line {number}: split must be {', '.join(SPLITS)}, or 0, 1, 2. Got {split!r}.")
        elif is_missing(label):
            problems.append(f"line {number}: {no_label(label)} Take the line out, or name the class otherwise.")
        elif not path.is_file():
            problems.append(f"line {number}: {absent(path)}")
        elif path in seen:
            problems.append(f"line {number}: {file} is in line {seen[path]} already.")
        else:
            seen[path] = number
            rows[part].append((path, label, line.get(of["bias"]) or ""))
    refuse_lines(table, problems)
    unused = [name for name in columns if name and name not in of.values()]
    told = f"Columns not used: {', '.join(unused)}." if unused else ""
    if unused and of["bias"] not in columns:
        told += f" If one is the bias: imagefolder:bias={write_value(_likely(CALLED['bias'], unused) or 'COLUMN')}"
    return _named(rows, told)


def columns_of(
    table: Path, columns: Sequence[str], named: Mapping[str, str], *, needed: str, spec: str,
    optional: Sequence[str] = (),
) -> dict[str, str]:  # fmt: skip
    """Role -> its column, tidied and in lower case.

    Args:
        table: for messages, as `needed` (its columns in words) and `spec` (the dataset and the table, as typed).
        columns: that it has.
        named: role, which is the usual name of its column -> what the table calls it.
        optional: roles whose column may be missing, if it was not called otherwise.

    Raises:
        BenchmarkError: columns are missing, or one has two roles; names those that are there, and what may be meant.
    """
    of = {role: tidied(name).lower() for role, name in named.items()}
    missing = [role for role, name in of.items() if name not in columns and not (name == role in optional)]
    if missing:
        lacking = ", ".join(of[role] if of[role] == role else f"{of[role]} (given as {role}=)" for role in missing)
        raise BenchmarkError(
            f"{table} lacks the columns {lacking}. Needed: {needed}. Columns there: {', '.join(columns) or 'none'}. "
            f"To say which is which: {spec},{_meant(columns, of, missing)}"
        )
    shared = [name for name, n in Counter(of.values()).items() if n > 1]
    if shared:
        roles = [role for role, name in of.items() if name == shared[0]]
        raise BenchmarkError(
            f"The column {shared[0]} of {table} cannot be {' and '.join(roles)} at once: name another for one of them. "
            f"Columns there: {', '.join(columns)}."
        )
    return of


def _meant(columns: Sequence[str], of: Mapping[str, str], missing: Sequence[str]) -> str:
    """`file=path,label=COLUMN`: the columns of a table that may be meant by the roles that it has none for."""
    free = [name for name in columns if name and name not in of.values()]
    meant = []
    for role in missing:
        column = _likely([of[role], role, *CALLED[role]], free)
        free = [name for name in free if name != column]
        meant.append(f"{role}={write_value(column or 'COLUMN')}")
    return ",".join(meant)


def _likely(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The column that is called by one of these names, or else nearly as the first; None if there is none."""
    found = [name for name in names if name in columns] or difflib.get_close_matches(names[0], columns)
    return found[0] if found else None


def read_table(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a table, tidied and in lower case, and its lines, each as column -> text.

    Raises:
        BenchmarkError: it is not there, or cannot be read.
    """
    if not table.is_file():
        raise BenchmarkError(absent(table))
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [tidied(name).lower() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            return columns, list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchmarkError(f"{table} cannot be read as a table ({error}).") from None


def refuse_twice(table: Path, columns: Sequence[str], used: Iterable[str]) -> None:
    """Refuse a table with several columns of one name.

    Raises:
        BenchmarkError: one that is used is there twice; names it.
    """
    twice = [name for name in used if columns.count(name) > 1]
    if twice:
        raise BenchmarkError(f"{table} has several columns {twice[0]}: which is meant cannot be told. Keep one.")


def refuse_lines(table: Path, problems: Sequence[str]) -> None:
    """Tell what is wrong with the lines of a table, the first of them.

    Raises:
        BenchmarkError: something is.
    """
    if problems:
        more = f"\n... and {len(problems) - SHOWN} more." if len(problems) > SHOWN else ""
        raise BenchmarkError(f"{table}:\n" + "\n".join(problems[:SHOWN]) + more)


# ---- names ----------------------------------------------------------------------------------------------------------


def no_label(label: str, what: str = "image") -> str:
    """What is said of a label that says that it is missing."""
    return f"{label!r} as a label says that it is missing, and every {what} needs one."


def _named(rows: Mapping[str, list[Row]], *notes: str) -> Labelled:
    """The rows with tidied names and without a bias that is missing, and what is to be said of the names."""
    written: dict[str, set[str]] = defaultdict(set)  # tidied name -> as it was written
    unknown: Counter[str] = Counter()
    named: dict[str, list[Row]] = {}
    for split, part in rows.items():
        named[split] = []
        for path, label, bias in part:
            if is_missing(bias):
                unknown.update([bias] if bias else [])
                bias = ""
            for name in (label, bias) if bias else (label,):
                written[tidied(name)].add(name)
            named[split].append((path, tidied(label), tidied(bias)))
    return Labelled(named, [note for note in [*notes, *remarks_on(written, unknown)] if note])


def remarks_on(written: Mapping[str, set[str]], unknown: Mapping[str, int]) -> list[str]:
    """Sentences for a note on names: those taken for unknown, those that are one, and those that nearly are.

    Args:
        written: tidied name -> as it was written.
        unknown: name of a bias that is missing -> how often.
    """
    told = []
    if unknown:
        told.append(f"Bias taken for unknown: {', '.join(f'{n:,} {name!r}' for name, n in sorted(unknown.items()))}.")
    told += [
        f"{_quoted(sorted(one))} are one name: blanks around a name do not count."
        for one in written.values()
        if len(one) > 1
    ]
    told += [
        f"{_quoted(one)} count as different names, though they differ only in blanks, case, Unicode form or as numbers "
        "are written: make them equal if they mean one thing."
        for one in alike(written)
    ]
    return told
