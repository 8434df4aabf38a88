"""Folders of features: their files, checked and converted once, the table beside them, and how they were made.

Reading never runs code: pickled arrays and arrays of Python objects are refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from debiasbench.data.cache import Cached, cached
from debiasbench.data.images import contents
from debiasbench.data.labelled import (
    SHORT,
    SPLITS,
    columns_of,
    is_missing,
    no_label,
    read_table,
    refuse_lines,
    refuse_twice,
    remarks_on,
    split_in_table,
    split_named,
    tidied,
)
from debiasbench.errors import BenchmarkError
from debiasbench.parameters import write_value
from debiasbench.plain import from_plain

ENDINGS = (".npy", ".safetensors")
VERSION = 1  # of the conversion of files to features
BLOCK = 2**22  # values converted between two writes
FLOATS = ("float16", "bfloat16", "float32", "float64")
EMBEDDING = "embedding.json"  # says how the files beside it were made
PRECISION = 1e-12  # relative; a feature with a smaller standard deviation is constant
NO_BIAS = frozenset({  # columns that identify a sample or its group, or its label under another name
    "", "id", "index", "name", "file", "filename", "file_name", "path", "image", "image_id", "img_id", "img_filename",
    "place_filename", "sample", "text", "g", "group", "yy", "label",
})  # fmt: skip
CONFLICT = "conflict"
MOST_VALUES = 100  # of a bias

# ---- arrays ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Array:
    """An array in a file; only the indexed rows are read.

    Attributes:
        shape: (N, D).
        dtype: type in the file, one of `FLOATS`.
        sha256: SHA-256 of the file.
        take: function from row numbers, int64 (n,), to rows (n, D), float32 or float64.
    """

    path: Path
    shape: tuple[int, int]
    dtype: str
    sha256: str
    take: Callable[[np.ndarray], np.ndarray]


def read_array(path: Path) -> Array:
    """The array of floating-point numbers (N, D) in an .npy or .safetensors file.

    Raises:
        BenchmarkError: the file is truncated or of another kind, or does not hold such an array; names the file.
    """
    try:
        shape, dtype, take = _of_npy(path) if path.suffix.lower() == ".npy" else _of_safetensors(path)
    except BenchmarkError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise BenchmarkError(f"{path} cannot be read ({str(error).strip() or type(error).__name__}).") from None
    if dtype not in FLOATS:
        raise BenchmarkError(
            f"{path} holds {dtype}, and features are floating-point numbers ({', '.join(FLOATS)}). If they are "
            'features all the same, save them with .astype("float32").'
        )
    if len(shape) != 2:
        raise BenchmarkError(
            f"{path} must hold an array (N, D), one row per sample. Got {shape}: pool or flatten it first."
        )
    if min(shape) < 1:
        raise BenchmarkError(f"{path} is empty: it holds an array {shape}.")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Array(path, (shape[0], shape[1]), dtype, sha256, take)


Opened = tuple[tuple[int, ...], str, Callable[[np.ndarray], np.ndarray]]  # shape, type, rows


def _of_npy(path: Path) -> Opened:
    """Map the array in an .npy file. numpy would unpickle other contents, and explains truncated files badly."""
    size = path.stat().st_size
    if not size:
        raise BenchmarkError(f"{path} is empty.")
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        offset = file.tell()
    if dtype.hasobject:
        raise BenchmarkError(
            f"{path} holds Python objects, and reading them could run any code. Save an array of numbers."
        )
    needed = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size < needed:
        raise BenchmarkError(f"{path} is cut off: it has {size:,} bytes of {needed:,}. Fetch or write it again.")
    if needed == offset:  # an empty array cannot be mapped
        raise BenchmarkError(f"{path} is empty: it holds an array {shape}.")
    array = np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
    wide = np.float64 if dtype.itemsize > 4 else np.float32
    return shape, dtype.name, lambda rows: array[rows].astype(wide)


def _of_safetensors(path: Path) -> Opened:
    """Map the array in a .safetensors file with a single tensor."""
    from safetensors import safe_open

    if not path.stat().st_size:
        raise BenchmarkError(f"{path} is empty.")
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if len(names) != 1:
            raise BenchmarkError(
                f"{path} holds {len(names)} tensors ({', '.join(names[:5]) or 'none'}), and it is unclear which one "
                "has the features. Save that one alone."
            )
        tensor = file.get_tensor(names[0])
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    dtype = str(tensor.dtype).removeprefix("torch.")
    return tuple(tensor.shape), dtype, lambda rows: tensor[torch.from_numpy(rows)].to(wide).numpy()


# ---- features -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Some rows of an array: `places` is int64 (n,), in the order of the samples."""

    array: Array
    places: np.ndarray

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the rows in blocks (n, D), float32 or float64.

        Raises:
            BenchmarkError: a value is NaN, infinite or too large for float32; says where.
        """
        step = max(1, BLOCK // self.array.shape[1])
        for start in range(0, len(self.places), step):
            rows = self.places[start : start + step]
            block = self.array.take(rows)
            bad = np.argwhere(~(np.abs(block) <= np.finfo(np.float32).max))  # nan is never smaller
            if len(bad):
                row, column = bad[0]
                raise BenchmarkError(
                    f"{self.array.path}: {len(bad):,} values are NaN, infinite or too large for float32, the first in "
                    f"row {rows[row] + 1:,}, column {column + 1:,} ({block[row, column]:g}). Compute them again, or "
                    "remove the samples (there and in the table)."
                )
            yield block

    def identity(self) -> str:
        """Identifies the file and the rows."""
        return f"{self.array.sha256} {hashlib.sha256(self.places.tobytes()).hexdigest()}"

    @functools.cached_property
    def spread(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each feature, float64 (D,); the deviation is 1 for constant features."""
        total = sum(block.sum(0, dtype=np.float64) for block in self.blocks())
        mean = total / len(self.places)
        squares = sum(((block - mean) ** 2).sum(0) for block in self.blocks())
        deviation = np.sqrt(squares / len(self.places))
        return mean, np.where(deviation > PRECISION * np.abs(mean), deviation, 1.0)


def features(name: str, rows: Rows, *, standard: Rows | None = None) -> Cached:
    """Features float32 (n, D); from the cache, if they were made before.

    Args:
        name: readable name of the entry on disk.
        rows: which features.
        standard: rows whose mean and standard deviation standardise each feature; default: features stay unscaled.

    Raises:
        BenchmarkError: a value is not finite, or the cache cannot be written.
    """
    identity = {
        "version": VERSION, "features": rows.identity(), "standard": standard and standard.identity(),
    }  # fmt: skip

    def converted() -> Iterator[np.ndarray]:
        for block in rows.blocks():
            scaled = block if standard is None else (block - standard.spread[0]) / standard.spread[1]
            yield np.ascontiguousarray(scaled, dtype="<f4").view(np.uint8)

    entry = cached(name, identity, (len(rows.places), 4 * rows.array.shape[1]), converted)
    return Cached(entry.x.view(torch.float32), entry.sha256)


# ---- the files of a folder ------------------------------------------------------------------------------------------


def files_of_splits(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """Split -> its file of features; and the other files of features.

    Raises:
        BenchmarkError: several files mean the same split, or one file name means two splits.
    """
    found: dict[str, Path] = {}
    others = []
    for path in contents(root).others:
        if path.suffix.lower() not in ENDINGS:
            continue
        words = re.split(r"[^a-z0-9]+", path.stem.lower())
        splits = {split for word in words if (split := SHORT.get(word) or split_named(word)) is not None}
        if len(splits) > 1:
            raise BenchmarkError(f"{path}: its name contains several splits ({', '.join(sorted(splits))}). Rename it.")
        if not splits:
            others.append(path)
            continue
        (split,) = splits
        if split in found:
            raise BenchmarkError(
                f"{root} holds {found[split].name} and {path.name}, which both mean {split}. Remove one."
            )
        found[split] = path
    return found, others


def read_arrays(root: Path, n_lines: Mapping[str, int], table: str) -> tuple[dict[str, Array], list[str]]:
    """The array of each split that has lines in the table, and notes on the files.

    Args:
        root: the folder.
        n_lines: number of lines per split.
        table: name of the table, for messages.

    Raises:
        BenchmarkError: a file is missing or damaged, or does not match the table or the other files.
    """
    paths, others = files_of_splits(root)
    arrays = {}
    for split, n in n_lines.items():
        if split not in paths:
            if not n:
                continue
            raise BenchmarkError(
                f"{root} has no features of {split}: a file {split}.npy or feats_{split}.npy (or .safetensors) is "
                f"needed for its {n:,} lines in {table}. There: {_names([*paths.values(), *others]) or 'none'}."
            )
        array = arrays[split] = read_array(paths[split])
        if array.shape[0] != n:
            raise BenchmarkError(
                f"{array.path} has {array.shape[0]:,} rows, and {table} {n:,} lines of {split}: they do not match, "
                "because each row needs one line."
            )
    if len({array.shape[1] for array in arrays.values()}) > 1:
        told = ", ".join(f"{array.path.name} {array.shape[1]:,}" for array in arrays.values())
        raise BenchmarkError(f"{root}: the files have different numbers of features a row: {told}.")
    notes = []
    converted = [f"{array.path.name} from {array.dtype}" for array in arrays.values() if array.dtype != "float32"]
    if converted:
        notes.append(f"Converted to float32: {', '.join(converted)}.")
    if others:
        notes.append(f"Files left out, because their names contain no split: {_names(others)}.")
    return arrays, notes


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)


# ---- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table of labels and biases: the values for the rows of each split, in order.

    Attributes:
        y: split -> labels.
        biases: name -> split -> values, "" where unknown.
        conflicts: name of a bias -> split -> "0" or "1"; only biases that have such a column.
        notes: notes on names and columns.
    """

    y: Mapping[str, list[str]]
    biases: Mapping[str, Mapping[str, list[str]]]
    conflicts: Mapping[str, Mapping[str, list[str]]]
    notes: list[str]


def read_metadata(path: Path, named: Sequence[str] = (), *, y: str = "y", split: str = "split") -> Table:
    """Read a table with columns for label, split, biases and, optionally, which samples conflict.

    Args:
        path: path of the table.
        named: the columns that are biases; default: all except `NO_BIAS`.
        y: name of the column of labels.
        split: name of the column of splits.

    Raises:
        BenchmarkError: the table, or a column or line of it, cannot be read; names it.
    """
    columns, lines = read_table(path)
    of = columns_of(
        path, columns, {"y": y, "split": split}, needed="y, split, and a column for each bias",
        spec=f"features:table={write_value(path.name)}",
    )  # fmt: skip
    biases = _bias_columns(path, columns, named, of)
    said_in = {name: word for name in biases if (word := conflict_column(name, biases)) in columns}
    refuse_twice(path, columns, (*of.values(), *biases, *said_in.values()))
    labels = _of_splits()
    values = {name: _of_splits() for name in biases}
    conflicts = {name: _of_splits() for name in said_in}
    written: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in ("y", *biases)}
    unknown: Counter[str] = Counter()
    problems = []
    for number, line in enumerate(lines, start=2):
        if None in line or None in line.values():
            problems.append(f"line {number}: its number of values differs from the number of columns.")
            continue
        label, part = line[of["y"]], split_in_table(line[of["split"]])
        odd = [line[column] for column in said_in.values() if tidied(line[column]) not in ("0", "1")]
        if part is None:
            told = f"line {number}: split must be {', '.join(SPLITS)}, or 0, 1, 2. Got {line[of['split']]!r}."
            problems.append(told)
        elif is_missing(label):
            problems.append(f"line {number}: {no_label(label, 'row')} Remove it, here and in the file.")
        elif odd:
            problems.append(f"line {number}: {CONFLICT} must be 0 or 1. Got {odd[0]!r}.")
        else:
            labels[part].append(tidied(label))
            written["y"][tidied(label)].add(label)
            for name in biases:
                value = "" if is_missing(line[name]) else tidied(line[name])
                values[name][part].append(value)
                if value:
                    written[name][value].add(line[name])
                elif line[name]:
                    unknown[line[name]] += 1
            for name, column in said_in.items():
                conflicts[name][part].append(tidied(line[column]))
    refuse_lines(path, problems)
    for name in biases:
        if len(written[name]) > MOST_VALUES:
            raise BenchmarkError(
                f"The column {name} of {path} has {len(written[name]):,} different values, too many for a bias "
                f"(at most {MOST_VALUES}). Name the columns that are one: features:bias=NAME"
            )
    notes = [note for names in written.values() for note in remarks_on(names, {})] + remarks_on({}, unknown)
    used = {*of.values(), *biases, *said_in.values()}
    others = [column or "one without a name" for column in columns if column not in used]
    if others:
        notes.append(f"Columns not used: {', '.join(others)}.")
    unknown_bias = {"bias": {one: [""] * len(rows) for one, rows in labels.items()}}
    return Table(labels, values or unknown_bias, conflicts, notes)


def conflict_column(bias: str, biases: Sequence[str]) -> str:
    """The name of the column that says which samples conflict in a bias."""
    return f"{CONFLICT}.{bias}" if len(biases) > 1 else CONFLICT


def _of_splits() -> dict[str, list[str]]:
    return {split: [] for split in SPLITS}


def _bias_columns(path: Path, columns: Sequence[str], named: Sequence[str], of: Mapping[str, str]) -> list[str]:
    """The columns that are biases: the named ones, or all that can be biases.

    `of` maps "y" and "split" to their columns.
    """
    if not named:
        no_bias = {*of, *of.values(), CONFLICT, *NO_BIAS}
        found = [name for name in columns if name not in no_bias and not name.startswith(f"{CONFLICT}.")]
        return list(dict.fromkeys(found))
    biases = [tidied(name).lower() for name in named]
    wrong = [name for name in biases if name not in columns or name in of.values()]
    if wrong or len(set(biases)) < len(biases):
        raise BenchmarkError(
            f"bias={'/'.join(named)} must name columns of {path}, each once: {', '.join(columns)} (but "
            f"{' and '.join(of.values())}). Wrong: {', '.join(wrong) or 'one is named twice'}."
        )
    return biases


# ---- how they were made ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedding:
    """How the features of a folder were made: `embedding.json`, as `debiasbench embed` writes it beside them.

    Attributes:
        encoder: kind and name of the encoder, without a path of a machine.
        weights_sha256: SHA-256 of its weights and buffers.
        code_sha256: SHA-256 of its file, if it has one.
        preprocessing: for images: size, mean and std; empty for text.
        dataset: title of the embedded dataset.
        fingerprint: fingerprint of its data.
        official: whether these are the published data.
        note: note on its data.
        class_names: names of the labels 0, 1, ...
        bias_names: the columns of the table that are biases.
        bias_values: for each bias, the names of the values 0, 1, ...; empty if they have none.
        files: name -> SHA-256.
        conflict_ratio: the ratio that the dataset was built for, if known.
        versions: versions of the packages.
        device: kind of device that the encoder ran on.
    """

    encoder: str
    weights_sha256: str
    code_sha256: str
    preprocessing: dict[str, Any]
    dataset: str
    fingerprint: str
    official: bool
    note: str
    class_names: tuple[str, ...]
    bias_names: tuple[str, ...]
    files: dict[str, str]
    conflict_ratio: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    bias_values: tuple[tuple[str, ...], ...] = ()

    def says_the_same(self, other: Embedding) -> bool:
        """Whether both are from equal data and the same encoder; versions and device may differ."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("encoder", "weights_sha256", "code_sha256", "preprocessing", "dataset", "fingerprint")
        )

    def told(self) -> str:
        """A summary in sentences, for a note."""
        weights, data = self.weights_sha256[:16], self.fingerprint[:16]
        return f"Made by {self.encoder} (weights {weights}) from {self.dataset} (data {data}). {self.note}".rstrip()

    def check(self, arrays: Iterable[Array]) -> None:
        """Refuse files that differ from those listed here.

        Raises:
            BenchmarkError: a file differs; names the first.
        """
        for array in arrays:
            if self.files.get(array.path.name) != array.sha256:
                raise BenchmarkError(
                    f"{array.path} is not the file that {EMBEDDING} beside it describes. Embed again, or "
                    f"remove {EMBEDDING}."
                )


def read_embedding(folder: Path) -> Embedding | None:
    """How the features of a folder were made; None if the folder does not say.

    Raises:
        BenchmarkError: the file cannot be read.
    """
    path = folder / EMBEDDING
    if not path.is_file():
        return None
    try:
        embedding: Embedding = from_plain(Embedding, json.loads(path.read_text(encoding="utf-8")), "embedding")
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path} cannot be read ({error}). Compute the features again, or remove it.") from None
    return embedding
