"""Derived data on disk, such as decoded or generated images: made once, memory-mapped by every process.

An entry is a file of raw bytes and a JSON file that describes it and is written last. An entry without its JSON, or
with another length than the JSON says, counts as missing. So a half-written entry is never used.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from debiasbench.files import explained_errors, open_for_writing, to_path, write_atomically

CACHE_VARIABLE = "DEBIASBENCH_CACHE"
Part = TypeVar("Part")
VERSION = 1  # of the file format


@dataclass(frozen=True)
class Cached:
    """An entry of the cache.

    Attributes:
        x: a uint8 tensor, mapped from disk: only what you index is read.
        sha256: SHA-256 of its bytes.
        counts: counts from when the entry was made.
    """

    x: Tensor
    sha256: str
    counts: Mapping[str, int] = field(default_factory=dict)


def cache_dir() -> Path:
    """$DEBIASBENCH_CACHE (--cache-dir on the command line), or a cache folder of the user."""
    given = os.environ.get(CACHE_VARIABLE)
    return to_path(given or to_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "debiasbench")


def cached(
    name: str,
    identity: Mapping[str, Any],
    shape: tuple[int, ...],
    chunks: Callable[[], Iterable[np.ndarray]],
    *,
    counts: Callable[[], Mapping[str, int]] = dict,
) -> Cached:
    """The entry for `identity`, made from `chunks()` if it does not exist.

    Args:
        name: readable name of the entry on disk.
        identity: plain values that determine the contents; other values give another entry.
        shape: shape of the whole array, which is uint8.
        chunks: makes the contents, in parts along the first dimension, in order.
        counts: returns counts to keep with the entry; called after the last chunk.

    Raises:
        BenchmarkError: the folder is not writable, or the disk is full.
    """
    from filelock import FileLock

    key = hashlib.sha256(json.dumps([VERSION, dict(identity), shape], sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir() / f"{name}-{key}.uint8"
    option = f"--cache-dir or ${CACHE_VARIABLE}"
    with explained_errors(f"The cache folder {path.parent}", option, needed=math.prod(shape)):
        found = _finished(path, shape)  # before the lock, which a read-only folder does not allow
        if found is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):  # only one of several processes makes it
                found = _finished(path, shape)
                if found is None:
                    sha256 = _write(path, shape, chunks)
                    found = {"identity": dict(identity), "shape": shape, "sha256": sha256, "counts": dict(counts())}
                    write_atomically(path.with_suffix(".json"), json.dumps(found, indent=1).encode())
        return Cached(mapped(path).view(shape), found["sha256"], found.get("counts", {}))


def with_progress(parts: Sequence[Part], note: str) -> Iterable[Part]:
    """Yield the parts of something that is made once, with a bar on a terminal or a line elsewhere."""
    from rich.markup import escape
    from rich.progress import track

    from debiasbench.console import console as new_console

    console = new_console(stderr=True)
    note = f"{note}, once"
    if not console.is_terminal:
        console.print(f"{note}.")
    return track(parts, escape(console.shown(note)), console=console, disable=not console.is_terminal, transient=True)


def mapped(path: Path) -> Tensor:
    """The bytes of a file as a uint8 tensor, read from disk as it is used; writes into it stay in this process.

    The file may be larger than the memory: on Linux the mapping reserves no memory for possible writes.
    """
    with path.open("rb") as file:
        if sys.platform == "linux":
            flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python has the name since 3.13
            memory = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        else:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _finished(path: Path, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """The JSON of an entry, or None if the entry is missing or incomplete."""
    try:
        found: dict[str, Any] = json.loads(path.with_suffix(".json").read_bytes())
        return found if found["sha256"] and path.stat().st_size == math.prod(shape) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, shape: tuple[int, ...], chunks: Callable[[], Iterable[np.ndarray]]) -> str:
    """Write the bytes of an entry and return their SHA-256."""
    partial = path.with_suffix(".partial")
    path.with_suffix(".json").unlink(missing_ok=True)
    digest = hashlib.sha256()
    n_rows = 0
    try:
        with open_for_writing(partial) as file:
            for chunk in chunks():
                assert chunk.dtype == np.uint8, chunk.dtype
                assert chunk.shape[1:] == shape[1:], (chunk.shape, shape)
                data = np.ascontiguousarray(chunk).data
                file.write(data)  # not mapped: so a full disk raises an error and does not kill the process
                digest.update(data)
                n_rows += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        assert n_rows == shape[0], (n_rows, shape)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return digest.hexdigest()
