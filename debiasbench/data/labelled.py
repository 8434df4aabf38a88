"""Labelled image files in folders or listed in a table; the reading of tables and of names in them."""

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

SPLITS: Mapping[str, tuple[str, ...]] = {  # the usual names of each split, in any letter case
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
NUMBERED = {"0": "train", "1": "valid", "2": "test"}  # in tables, as in GroupDRO
SHORT = {"tr": "train", "va": "valid", "te": "test"}  # as in SubpopBench
ALSO_SPLITS = ("holdout", "heldout", "hold-out", "held-out", "hold_out", "held_out", "extra", "unseen")  # not read
MISSING = frozenset({  # words for an unknown value, in any letter case and without brackets
    "na", "n/a", "n.a.", "#na", "#n/a", "#n/a n/a", "nat", "null", "#null!", r"\n", "nil", "none", "1.#ind", "-1.#ind",
    "1.#qnan", "-1.#qnan", "unknown", "not known", "unk", "missing", "undefined", "undetermined", "not available",
    "not applicable", "unlabeled", "unlabelled", "no label", "n.d.",
})  # fmt: skip
SHOWN = 10  # mistakes listed in one message
# Includes invisible characters that Python does not count as blanks: of zero width, or changing the writing direction
BLANKS = r"[\s\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]+"
Row = tuple[Path, str, str]  # the file, its label, and its bias or ""


@dataclass(frozen=True)
class Labelled:
    """The images of each split with label and bias, and notes on how they were read."""

    rows: Mapping[str, list[Row]]
    notes: list[str]


@lru_cache(maxsize=10_000)
def split_named(name: str) -> str | None:
    """The split (train, valid or test) that a usual name means; None for any other name."""
    word = tidied(name).lower()
    return next((split for split, names in SPLITS.items() if word in names), None)


@lru_cache(maxsize=10_000)
def split_in_table(name: str) -> str | None:
    """Like `split_named`, for tables, which also number splits or shorten their names."""
    word = tidied(name).lower()
    return NUMBERED.get(word) or SHORT.get(word) or split_named(word)


@lru_cache(maxsize=10_000)  # a million rows have few names
def tidied(name: str) -> str:
    """A name without surrounding blanks."""
    return re.sub(f"^{BLANKS}|{BLANKS}$", "", name)


@lru_cache(maxsize=10_000)
def is_missing(name: str) -> bool:
    """Whether a value means unknown: a word, a mark such as - or ?, NaN, or -1."""
    word = tidied(name).lower().strip("<>()[]")
    if word in MISSING or re.fullmatch(r"[-\u2013\u2014?.]*", word):
        return True
    try:
        number = float(word)
    except ValueError:
        return False
    return number == -1 or math.isnan(number)


def alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in blanks, letter case, Unicode form, or the writing of a number."""
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
    """Names for messages, with visible blanks; with code points if they look equal."""
    names = list(names)
    same = len({unicodedata.normalize("NFKC", name) for name in names}) < len(names)
    return " and ".join(ascii(name) if same else repr(name) for name in names)


# ---- folders --------------------------------------------------------------------------------------------------------


def from_folders(root: Path) -> Labelled:
    """Images in root/<split>/<class>/*, or root/<split>/<class>/<bias>/*.

    Raises:
        BenchmarkError: the meaning of a folder or image is unclear, or it would be left out.
    """
    found: dict[str, list[Row]] = {split: [] for split in SPLITS}
    others: list[Path] = []
    splits, rest = _splits(root)
    for split, place in splits.items():
        inside = contents(place)
        if inside.images:
            raise BenchmarkError(
                f"{place} holds {len(inside.images):,} images that are not in the folder of a class "
                f"({inside.images[0].name}, ...). Put them into {place.name}/<class>/, or remove them."
            )
        others += inside.others
        for folder in inside.folders:
            if is_missing(folder.name):
                raise BenchmarkError(f"{folder}: {no_label(folder.name)} Remove the folder, or name it otherwise.")
            below, beside, _ = contents(folder)
            if below and beside:
                raise BenchmarkError(
                    f"{folder} holds images ({beside[0].name}, ...) and folders ({below[0].name}, ...): it is unclear "
                    "which of them count. Folders below a class are values of the bias: put all its images there, or "
                    "none."
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
            f"{root} has images in folders that look like splits but are not: {', '.join(unread)}. Splits are "
            f"{_allowed()}, each with a folder for each class. Rename or move the folders, or list the images that are "
            "meant in a table (images.csv)."
        )
    return _named(found, left_out(others))


def _splits(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """Split -> its folder; and the other folders.

    Raises:
        BenchmarkError: several folders mean the same split.
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
                "into one, or remove one."
            )
        else:
            splits[split] = folder
    return splits, rest


def _looks_like_split(folder: Path, classes: set[str]) -> bool:
    """Whether a folder has images, and a name close to a split's or folders of classes in it or below."""
    return has_images(folder) and (_is_nearly_split(folder.name) or _has_classes(folder, classes))


def _has_classes(folder: Path, classes: set[str]) -> bool:
    return any(
        tidied(inner.name) in classes or _is_nearly_split(inner.name) or _has_classes(inner, classes)
        for inner in contents(folder).folders
        if has_images(inner)
    )


def _is_nearly_split(name: str) -> bool:
    """Whether a name contains the word for a split, or nearly: val2017, my-test, val_set, testset, vali, tests."""
    name, names = tidied(name).lower(), [name for names in SPLITS.values() for name in names]
    if re.search(rf"(?<![a-z])({'|'.join([*names, *ALSO_SPLITS])})(s|sets?)?(?![a-z])", name):
        return True
    return any(_is_slip(word, split) for word in re.findall("[a-z]{3,}", name) for split in names if len(split) > 3)


def _is_slip(word: str, split: str) -> bool:
    """Whether a word is a prefix of a split name, or the name with reordered letters or one letter more or less.

    The first letter must be the same (strain is not train), and no letter may be replaced by another (text, trail).
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


COLUMNS = ("file", "label", "split", "bias")  # of a table of images, with their usual names
_LABELS = ("label", "y", "target", "class", "class_name", "label_name", "category", "category_name")
CALLED: Mapping[str, tuple[str, ...]] = {  # our name of a column -> other usual names
    "file": ("filename", "file_name", "path", "filepath", "file_path", "image", "image_path", "img", "img_path",
             "img_filename", "image_id"),
    "label": _LABELS,
    "y": _LABELS,
    "split": ("partition", "set", "subset", "fold", "part", "phase"),
    "bias": ("background", "place", "a", "attribute", "group", "spurious", "confounder", "environment", "env",
             "domain", "color", "colour"),
}  # fmt: skip


def from_table(root: Path, table: Path, named: Mapping[str, str]) -> Labelled:
    """Images listed in a table.

    Args:
        root: the folder that the files are in or below.
        table: a CSV file.
        named: each of `COLUMNS` -> its name in the table. If the bias has its usual name and the table has no such
            column, no bias is known.

    Raises:
        BenchmarkError: the table cannot be read, columns are missing, or lines of it are wrong; names them.
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
            problems.append(f"line {number}: {no_label(label)} Remove the line, or name the class otherwise.")
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
        table: for messages, as are `needed` (its columns in words) and `spec` (the dataset and the table, as typed).
        columns: the columns of the table.
        named: role (the usual name of its column) -> the name in the table.
        optional: roles whose column may be missing, if the user gave it no other name.

    Raises:
        BenchmarkError: columns are missing, or one has two roles; lists the existing columns and likely candidates.
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
    """`file=path,label=COLUMN`: likely columns of a table for the roles whose column is missing."""
    free = [name for name in columns if name and name not in of.values()]
    meant = []
    for role in missing:
        column = _likely([of[role], role, *CALLED[role]], free)
        free = [name for name in free if name != column]
        meant.append(f"{role}={write_value(column or 'COLUMN')}")
    return ",".join(meant)


def _likely(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The column with one of these names, or else with a name close to the first; None if there is none."""
    found = [name for name in names if name in columns] or difflib.get_close_matches(names[0], columns)
    return found[0] if found else None


def read_table(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a table, tidied and in lower case, and its lines, each as column -> text.

    Raises:
        BenchmarkError: the table does not exist or cannot be read.
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
    """Refuse a table that has several columns of the same name, if that name is used.

    Raises:
        BenchmarkError: a used column exists twice; names it.
    """
    twice = [name for name in used if columns.count(name) > 1]
    if twice:
        raise BenchmarkError(f"{table} has several columns {twice[0]}: it is unclear which one is meant. Keep one.")


def refuse_lines(table: Path, problems: Sequence[str]) -> None:
    """Report the problems of the lines of a table, up to the first `SHOWN`.

    Raises:
        BenchmarkError: there is a problem.
    """
    if problems:
        more = f"\n... and {len(problems) - SHOWN} more." if len(problems) > SHOWN else ""
        raise BenchmarkError(f"{table}:\n" + "\n".join(problems[:SHOWN]) + more)


# ---- names ----------------------------------------------------------------------------------------------------------


def no_label(label: str, what: str = "image") -> str:
    """The message for a label that means a missing value."""
    return f"{label!r} as a label says that it is missing, and every {what} needs one."


def _named(rows: Mapping[str, list[Row]], *notes: str) -> Labelled:
    """The rows with tidied names and with "" for missing biases, and notes on the names."""
    written: dict[str, set[str]] = defaultdict(set)  # tidied name -> as written
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
    """Sentences for a note on names: those taken for unknown, those treated as the same, and those that look alike.

    Args:
        written: tidied name -> as written.
        unknown: name that means a missing bias -> how often.
    """
    told = []
    if unknown:
        told.append(
            f"Bias values counted as unknown: {', '.join(f'{n:,} {name!r}' for name, n in sorted(unknown.items()))}."
        )
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
