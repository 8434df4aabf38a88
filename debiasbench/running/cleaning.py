"""Find and delete files of a results folder and of the cache that can be made again: `debiasbench clean`.

Making them again takes time. Only files with names that the suite gives are considered, and never records, weights,
logs, tables, figures or data. Files in use by another process stay: those of a claimed cell, or of an entry whose lock
is held. This is checked again for each item when it is deleted, under the lock that its users take. Links are not
followed.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from debiasbench.archives import is_there
from debiasbench.errors import BenchmarkError
from debiasbench.files import UNFINISHED
from debiasbench.records import read_record
from debiasbench.running.claims import PRESENT, alone_with_claims, holder_of, now_at, read_claim, running_cells
from debiasbench.training.checkpoints import JOURNAL

YOUNG = 3600.0  # seconds; files written more recently may still be in use

_REUSED = re.compile(r"([0-9a-f]{64})\.(safetensors|lock)")
_CACHED = re.compile(r"(.+-[0-9a-f]{16})\.(json|uint8|uint8\.lock|partial)")
_CHECKPOINT = re.compile(rf"{re.escape(JOURNAL)}|[^.].*\.safetensors")
_LEFT = {  # files that a killed process leaves behind
    "a write that was cut off": re.compile(rf"\..+{re.escape(UNFINISHED)}"),
    "a mark of a run": re.compile(rf"{re.escape(PRESENT)}[0-9a-f]{{16}}|\.now-\d+-\d+"),
}


@dataclass(frozen=True)
class Folders:
    """The folders to search; several results folders may share one cache."""

    results: Path
    cache: Path


@dataclass(frozen=True)
class Removable:
    """Files that are deleted together.

    Attributes:
        kind: one of `KINDS`. place: the folder or file that a table shows. files: in the order of deletion.
        size: of all files, in bytes. root: the folder that they must be in. why: the reason why they may be deleted.
        stays: the reason why they must stay; empty if they may be deleted.
    """

    kind: str
    place: Path
    files: tuple[Path, ...]
    size: int
    root: Path
    why: str = ""
    stays: str = ""


def find(folders: Folders, kinds: Iterable[str] = ()) -> list[Removable]:
    """All items of these kinds (of all kinds, if none is given), including those that must stay. Nothing is deleted.

    Raises:
        BenchmarkError: the results folder does not exist.
    """
    asked = set(kinds) or set(KINDS)
    if asked != {"cache"} and not folders.results.is_dir():
        raise BenchmarkError(f"There is no results folder {folders.results}. Name one, or use --what cache.")
    return [found for kind, look in KINDS.items() if kind in asked for found in look(folders)]


def remove(found: Iterable[Removable], folders: Folders) -> tuple[int, list[str]]:
    """Delete the items that may still be deleted -> bytes freed, and a line for each item that is left."""
    freed, left = 0, []
    for one in found:
        if one.stays:
            continue
        try:
            with _reserved(one, folders) as stays:
                if stays:
                    left.append(f"{one.place} stays: {stays}")
                else:
                    freed += sum(map(_delete, one.files))
        except OSError as error:
            left.append(f"{error.filename or one.place} could not be deleted: {error.strerror or error}")
        if one.kind != "cache":
            _remove_empty(one.files[0].parent, folders.results / "running")
    return freed, left


# ---- the kinds ------------------------------------------------------------------------------------------------------


def _reuse(folders: Folders) -> Iterator[Removable]:
    """Stored ends of stages."""
    folder, links = folders.results / "reuse", list[Path]()
    for key, files in _named(_REUSED, _files(folder, folders.results, links)).items():
        lock = folder / f"{key}.lock"
        files = [*(path for path in files if path != lock), lock]
        why = "equal first stages are trained again where they are needed"
        yield Removable("reuse", folder, tuple(files), _size(files), folders.results, why, _use_of_lock(lock))
    yield from _refused("reuse", links, folders.results)


def _checkpoints(folders: Folders) -> Iterator[Removable]:
    """Checkpoints that cells wrote into their folders while they ran."""
    running, links = folders.results / "running", list[Path]()
    for folder, every in _walk(running, folders.results, links):
        files = [path for path in every if _CHECKPOINT.fullmatch(path.name)]
        if not files or len(folder.relative_to(running).parts) != 3:  # dataset, method, cell
            continue
        files.sort(key=lambda path: path.name != JOURNAL)  # first, so that it never names a file that is gone
        why = "no run is working on its cell, which starts from the beginning without it"
        if _is_finished(folders.results, folder):
            why = "its cell is finished"
        stays = _use_of_claim(_claim_of(folder))
        yield Removable("checkpoints", folder, tuple(files), _size(files), folders.results, why, stays)
    yield from _refused("checkpoints", links, folders.results)


def _cache(folders: Folders) -> Iterator[Removable]:
    """Entries of the cache, and remains of unfinished entries."""
    links = list[Path]()
    for name, files in _named(_CACHED, _files(folders.cache, folders.cache, links)).items():
        entry, lock = folders.cache / f"{name}.uint8", folders.cache / f"{name}.uint8.lock"
        files = sorted((path for path in files if path != lock), key=lambda path: path.suffix != ".json")
        files = [*files, lock]  # the JSON file first: without it an entry does not count
        why = "made again when it is needed" if entry in files else "part of an entry that was not finished"
        stays = _use_of_lock(lock) or _use_of_entry(entry, folders)
        yield Removable("cache", entry, tuple(files), _size(files), folders.cache, why, stays)
    yield from _refused("cache", (link for link in links if _CACHED.fullmatch(link.name)), folders.cache)


def _temporary(folders: Folders) -> Iterator[Removable]:
    """Temporary files and void claims of processes that have ended."""
    found = [path for _, files in _walk(folders.results, folders.results, []) for path in files]
    for root, files in ((folders.results, found), (folders.cache, _files(folders.cache, folders.cache, []))):
        now = _now(root)
        for path in files:
            why = next((why for why, pattern in _LEFT.items() if pattern.fullmatch(path.name)), "")
            stays = "it may be in use still" if why and _is_young(path, now) else ""
            if not why and _is_claim(path, folders) and not _use_of_claim(path):
                why = "a void claim"
            if why:
                place = path if stays else path.parent
                yield Removable("temporary", place, (path,), _size([path]), root, why, stays)


KINDS: dict[str, Callable[[Folders], Iterator[Removable]]] = {
    "reuse": _reuse,
    "checkpoints": _checkpoints,
    "cache": _cache,
    "temporary": _temporary,
}


# ---- what is in use -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _reserved(one: Removable, folders: Folders) -> Iterator[str]:
    """Lock an item against its users before it is deleted; yields why it must stay, or "" if it may be deleted."""
    if any(_leads_away(file, one.root) for file in one.files):
        yield "a link leads out of the folder"
        return
    with contextlib.ExitStack() as held:
        stays = ""
        if one.kind in ("reuse", "cache"):
            stays = held.enter_context(_locked(one.files[-1]))
        if one.kind == "cache" and not stays:
            stays = _use_of_entry(one.place, folders)
        if one.kind == "checkpoints" or _is_claim(one.files[0], folders):
            held.enter_context(alone_with_claims(folders.results))
            stays = _use_of_claim(_claim_of(one.place) if one.kind == "checkpoints" else one.files[0])
        yield stays


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[str]:
    """Hold a lock; yields why it cannot be acquired, or ""."""
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as held:
        stays = ""
        try:
            held.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            stays = "a process is using it"
        except (OSError, NotImplementedError) as error:
            stays = f"its lock cannot be taken ({error})"
        yield stays


def _use_of_lock(lock: Path) -> str:
    """Why an item that a lock protects must stay, or ""."""
    if not lock.exists():  # trying to acquire it would create it
        return ""
    with _locked(lock) as stays:
        return stays


def _use_of_claim(claim: Path) -> str:
    """Why an item that a claim protects must stay, or "".

    A claim from this machine is valid as long as its process exists, because it cannot be renewed on a full disk.
    """
    holder, writer = holder_of(claim), read_claim(claim)
    if holder is None and writer is not None and writer.is_here and not writer.has_ended:
        holder = writer
    return f"its cell runs ({holder.host})" if holder is not None else ""


def _use_of_entry(entry: Path, folders: Folders) -> str:
    """Why an entry of the cache must stay, or "": a process here reads it, or running cells anywhere may read it."""
    if entry.resolve() in _mapped_files():
        return "a process is reading it"
    if next(running_cells(folders.results), None) is not None:
        return f"cells of {folders.results} run, and may be reading it"
    return ""


def _mapped_files() -> set[Path]:
    """The cache files that processes of this machine have mapped into memory, as far as Linux shows them."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # a process of another user, or one that has ended
            for line in maps.read_text("utf-8", "surrogateescape").splitlines():
                if line.endswith(".uint8"):
                    found.add(Path(f"/{line.partition('/')[2]}"))
    return found


def _is_finished(results: Path, folder: Path) -> bool:
    """Whether the cell with this folder has a finished record, in a folder or in an archive."""
    dataset, method = folder.parent.parent.name, folder.parent.name
    records = results / "records"
    places = (
        records / dataset / method,
        records / dataset / f"{method}.zip",
        records / f"{dataset}.zip" / method,
        results / "records.zip" / dataset / method,
    )
    for path in (place / f"{folder.name}.json" for place in places):
        with contextlib.suppress(BenchmarkError):
            if is_there(path) and read_record(path).done:
                return True
    return False


def _claim_of(folder: Path) -> Path:
    """The claim of the cell with this folder."""
    return folder.with_name(f"{folder.name}.claim")


def _is_claim(path: Path, folders: Folders) -> bool:
    return path.suffix == ".claim" and path.is_relative_to(folders.results / "running")


def _now(folder: Path) -> float:
    """The present time on the file system of a folder; this machine's time, if the folder cannot be written."""
    try:
        return now_at(folder)
    except OSError:
        return time.time()


def _is_young(path: Path, now: float) -> bool:
    try:
        return abs(now - path.stat().st_mtime) < YOUNG
    except OSError:  # it is gone
        return True


# ---- files ----------------------------------------------------------------------------------------------------------


def _named(pattern: re.Pattern[str], files: Sequence[Path]) -> dict[str, list[Path]]:
    """Name of an entry (the first group of the pattern) -> its files; files that do not match are left out."""
    entries: dict[str, list[Path]] = {}
    for path in files:
        if named := pattern.fullmatch(path.name):
            entries.setdefault(named[1], []).append(path)
    return entries


def _files(folder: Path, root: Path, links: list[Path]) -> list[Path]:
    """The plain files of one folder, sorted."""
    return next((files for _, files in _walk(folder, root, links)), [])


def _walk(start: Path, root: Path, links: list[Path]) -> Iterator[tuple[Path, list[Path]]]:
    """`start` and each folder below it with its plain files, sorted; links below the root go into `links` instead."""
    waiting = [start]
    while waiting:
        folder = waiting.pop()
        if _leads_away(folder, root):
            links.append(folder)
            continue
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            continue  # it does not exist or cannot be read
        links += [path for path in entries if path.is_symlink()]
        entries = [path for path in entries if not path.is_symlink()]
        waiting += [path for path in reversed(entries) if path.is_dir()]
        yield folder, [path for path in entries if path.is_file()]


def _leads_away(path: Path, root: Path) -> bool:
    """Whether the path or a folder between it and the root is a link; the root itself may be one."""
    straight = Path(os.path.realpath(root)) / path.relative_to(root)
    return (path != root and path.is_symlink()) or Path(os.path.realpath(path)) != straight


def _refused(kind: str, links: Iterable[Path], root: Path) -> Iterator[Removable]:
    for link in links:
        stays = "it is a link, and not followed: delete by hand what it points to"
        yield Removable(kind, link, (), 0, root, stays=stays)


def _size(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files if path.is_file())


def _delete(path: Path) -> int:
    """Delete a file, if it exists -> its size in bytes."""
    size = _size([path])
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if path.suffix != ".lock":  # Windows does not delete a lock that is held
            raise
    return size


def _remove_empty(folder: Path, running: Path) -> None:
    """Remove the folder of a cell, and then those of its method and its dataset, if they are empty."""
    while folder.is_relative_to(running) and folder != running:
        try:
            folder.rmdir()
        except OSError:  # the folder is not empty
            return
        folder = folder.parent
