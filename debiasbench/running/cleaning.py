"""What may be deleted of a results folder and of the cache, and deleting it: `debiasbench clean`.

All of it can be made again, at the price of time. Only files with the names that the suite gives are looked at;
records, weights, logs, tables, figures and data are none of them. What another process is using stays: a claimed cell,
an entry whose lock is held. That is asked again for each thing when it is deleted, under the lock that its users take.
No link is followed.
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

YOUNG = 3600.0  # seconds: what was written to since then may still be written

_REUSED = re.compile(r"([0-9a-f]{64})\.(safetensors|lock)")
_CACHED = re.compile(r"(.+-[0-9a-f]{16})\.(json|uint8|uint8\.lock|partial)")
_CHECKPOINT = re.compile(rf"{re.escape(JOURNAL)}|[^.].*\.safetensors")
_LEFT = {  # by a process that was killed
    "a write that was cut off": re.compile(rf"\..+{re.escape(UNFINISHED)}"),
    "a mark of a run": re.compile(rf"{re.escape(PRESENT)}[0-9a-f]{{16}}|\.now-\d+-\d+"),
}


@dataclass(frozen=True)
class Folders:
    """Where to look; one cache may serve several results folders."""

    results: Path
    cache: Path


@dataclass(frozen=True)
class Removable:
    """Files that go together.

    Attributes:
        kind: one of `KINDS`. place: the folder or file that a table shows. files: in the order in which they go.
        size: of all, in bytes. root: the folder that they must be in. why: they may go.
        stays: why they must not; empty if they may go.
    """

    kind: str
    place: Path
    files: tuple[Path, ...]
    size: int
    root: Path
    why: str = ""
    stays: str = ""


def find(folders: Folders, kinds: Iterable[str] = ()) -> list[Removable]:
    """What there is of these kinds (of all, if none is given), also what must stay. Nothing is deleted.

    Raises:
        BenchmarkError: there is no such results folder.
    """
    asked = set(kinds) or set(KINDS)
    if asked != {"cache"} and not folders.results.is_dir():
        raise BenchmarkError(f"There is no results folder {folders.results}. Name one, or use --what cache.")
    return [found for kind, look in KINDS.items() if kind in asked for found in look(folders)]


def remove(found: Iterable[Removable], folders: Folders) -> tuple[int, list[str]]:
    """Delete what may go, if that still holds -> bytes that became free, and a line for each thing that is left."""
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
    """Ends of stages."""
    folder, links = folders.results / "reuse", list[Path]()
    for key, files in _named(_REUSED, _files(folder, folders.results, links)).items():
        lock = folder / f"{key}.lock"
        files = [*(path for path in files if path != lock), lock]
        why = "equal first stages are trained again where they are needed"
        yield Removable("reuse", folder, tuple(files), _size(files), folders.results, why, _use_of_lock(lock))
    yield from _refused("reuse", links, folders.results)


def _checkpoints(folders: Folders) -> Iterator[Removable]:
    """What cells have left in their folders while they ran."""
    running, links = folders.results / "running", list[Path]()
    for folder, every in _walk(running, folders.results, links):
        files = [path for path in every if _CHECKPOINT.fullmatch(path.name)]
        if not files or len(folder.relative_to(running).parts) != 3:  # dataset, method, cell
            continue
        files.sort(key=lambda path: path.name != JOURNAL)  # what it names is there as long as it is
        why = "nobody runs its cell, which would go on from here and then starts anew"
        if _is_finished(folders.results, folder):
            why = "its cell is finished"
        stays = _use_of_claim(_claim_of(folder))
        yield Removable("checkpoints", folder, tuple(files), _size(files), folders.results, why, stays)
    yield from _refused("checkpoints", links, folders.results)


def _cache(folders: Folders) -> Iterator[Removable]:
    """Entries of the cache, also what is left of one that was not finished."""
    links = list[Path]()
    for name, files in _named(_CACHED, _files(folders.cache, folders.cache, links)).items():
        entry, lock = folders.cache / f"{name}.uint8", folders.cache / f"{name}.uint8.lock"
        files = sorted((path for path in files if path != lock), key=lambda path: path.suffix != ".json")
        files = [*files, lock]  # the JSON first: without it an entry is not there
        why = "made again when it is needed" if entry in files else "left of an entry that was not finished"
        stays = _use_of_lock(lock) or _use_of_entry(entry, folders)
        yield Removable("cache", entry, tuple(files), _size(files), folders.cache, why, stays)
    yield from _refused("cache", (link for link in links if _CACHED.fullmatch(link.name)), folders.cache)


def _temporary(folders: Folders) -> Iterator[Removable]:
    """What writes and claims have left that ended with their process."""
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
    """Keep others from what is to be deleted; yields why it stays after all, or "" if it may go."""
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
    """Hold a lock; yields why it cannot be had, or ""."""
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as held:
        stays = ""
        try:
            held.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            stays = "a process is using it"
        except (OSError, NotImplementedError) as error:
            stays = f"its lock cannot be had ({error})"
        yield stays


def _use_of_lock(lock: Path) -> str:
    """Why what a lock protects must stay, or ""."""
    if not lock.exists():  # to ask would make it
        return ""
    with _locked(lock) as stays:
        return stays


def _use_of_claim(claim: Path) -> str:
    """Why what a claim protects must stay, or "".

    A claim of this machine holds as long as its process is there: on a full disk it cannot be renewed.
    """
    holder, writer = holder_of(claim), read_claim(claim)
    if holder is None and writer is not None and writer.is_here and not writer.has_ended:
        holder = writer
    return f"its cell runs ({holder.host})" if holder is not None else ""


def _use_of_entry(entry: Path, folders: Folders) -> str:
    """Why an entry of the cache must stay, or "": here, processes that read it are known; elsewhere, running cells."""
    if entry.resolve() in _mapped_files():
        return "a process is reading it"
    if next(running_cells(folders.results), None) is not None:
        return f"cells of {folders.results} run, and may be reading it"
    return ""


def _mapped_files() -> set[Path]:
    """The files of caches that processes of this machine have mapped, as far as Linux shows them to us."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # of other users, or its process has ended
            for line in maps.read_text("utf-8", "surrogateescape").splitlines():
                if line.endswith(".uint8"):
                    found.add(Path(f"/{line.partition('/')[2]}"))
    return found


def _is_finished(results: Path, folder: Path) -> bool:
    """Whether the cell that has this folder has a record that is done, loose or in an archive."""
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
    """The claim of the cell that has this folder."""
    return folder.with_name(f"{folder.name}.claim")


def _is_claim(path: Path, folders: Folders) -> bool:
    return path.suffix == ".claim" and path.is_relative_to(folders.results / "running")


def _now(folder: Path) -> float:
    """The time of the file system of a folder; of this machine, where nothing can be written."""
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
    """Name of an entry -> its files, by the first group of the pattern; other files are left out."""
    entries: dict[str, list[Path]] = {}
    for path in files:
        if named := pattern.fullmatch(path.name):
            entries.setdefault(named[1], []).append(path)
    return entries


def _files(folder: Path, root: Path, links: list[Path]) -> list[Path]:
    """The plain files of one folder, sorted."""
    return next((files for _, files in _walk(folder, root, links)), [])


def _walk(start: Path, root: Path, links: list[Path]) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder from `start` on with its plain files, sorted; links below the root are told in `links` instead."""
    waiting = [start]
    while waiting:
        folder = waiting.pop()
        if _leads_away(folder, root):
            links.append(folder)
            continue
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            continue  # it is not there, or cannot be read
        links += [path for path in entries if path.is_symlink()]
        entries = [path for path in entries if not path.is_symlink()]
        waiting += [path for path in reversed(entries) if path.is_dir()]
        yield folder, [path for path in entries if path.is_file()]


def _leads_away(path: Path, root: Path) -> bool:
    """Whether a link stands on the way from the root, which may be one, to a path, itself included."""
    straight = Path(os.path.realpath(root)) / path.relative_to(root)
    return (path != root and path.is_symlink()) or Path(os.path.realpath(path)) != straight


def _refused(kind: str, links: Iterable[Path], root: Path) -> Iterator[Removable]:
    for link in links:
        stays = "it is a link, and not followed: delete by hand what it leads to"
        yield Removable(kind, link, (), 0, root, stays=stays)


def _size(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files if path.is_file())


def _delete(path: Path) -> int:
    """Delete a file, if it is there -> the bytes that it had."""
    size = _size([path])
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if path.suffix != ".lock":  # which Windows keeps while it is held
            raise
    return size


def _remove_empty(folder: Path, running: Path) -> None:
    """Remove the folder of a cell, and those of its method and its dataset, where nothing is in them any more."""
    while folder.is_relative_to(running) and folder != running:
        try:
            folder.rmdir()
        except OSError:  # something is
            return
        folder = folder.parent
