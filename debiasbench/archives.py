"""Read files that may be in a .zip: `all.zip/pgd/s0-1a2b3c4d.json` is a path into the archive all.zip.

An archive is read like the folder that it was made from. Nothing is unpacked, and names that lead out of the archive
are ignored, so an archive from somebody else cannot reach anything on this machine.
"""

from __future__ import annotations

import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


class ArchiveError(ValueError):
    """An archive, or a file in it, cannot be read."""


@dataclass(frozen=True)
class Contents:
    """What an archive holds.

    Attributes:
        members: path in the archive -> its entry. folders: folder in the archive ("." for its top) -> names of the
            files in it, sorted. outside: names that lead out of the archive.
    """

    members: dict[str, zipfile.ZipInfo]
    folders: dict[str, tuple[str, ...]]
    outside: tuple[str, ...]


def contents(archive: Path) -> Contents:
    """What an archive holds; cached until the file changes.

    Raises:
        OSError, ArchiveError: it does not exist, or is not an archive.
    """
    return _contents(archive, _state(archive))


def _state(archive: Path) -> tuple[int, ...]:
    """A state of the file that differs once it has changed."""
    state = archive.stat()
    if not archive.is_file():  # a pipe, a device: reading might never end
        raise ArchiveError("it is not a regular file")
    return state.st_mtime_ns, state.st_size, state.st_ino


@functools.lru_cache(maxsize=16)  # each holds its file open
def _opened(archive: Path, _state: tuple[int, ...]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except OSError:
        raise
    except Exception as error:  # on damaged archives the library raises almost anything
        raise ArchiveError(_words(error)) from None


@functools.lru_cache(maxsize=1024)  # a search for many cells looks into all archives for each
def _contents(archive: Path, state: tuple[int, ...]) -> Contents:
    members, outside = {}, []
    folders: dict[str, set[str]] = {}
    for entry in _opened(archive, state).infolist():
        path = PurePosixPath(entry.filename)
        if entry.is_dir():
            continue
        if path.is_absolute() or ".." in path.parts:
            outside.append(entry.filename)
            continue
        members[str(path)] = entry
        folders.setdefault(str(path.parent), set()).add(path.name)
    return Contents(members, {folder: tuple(sorted(names)) for folder, names in folders.items()}, tuple(outside))


def archive_of(path: Path) -> tuple[Path, str] | None:
    """The archive that a path leads into, and the path in it; None for a file outside archives."""
    for parent in path.parents if ".zip" in str(path) else ():  # most lead into none; a grid asks for thousands
        if parent.suffix == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def is_there(path: Path) -> bool:
    """Whether a path leads to a plain file, outside archives or in one that can be read."""
    inside = archive_of(path)
    if inside is None:
        return path.is_file()
    try:
        return inside[1] in contents(inside[0]).members
    except (OSError, ArchiveError):
        return False


def files_in(folder: Path) -> list[Path]:
    """The files of a folder, which may be (in) an archive, sorted; none if it does not exist or cannot be read."""
    inside = (folder, ".") if folder.suffix == ".zip" and folder.is_file() else archive_of(folder)
    try:
        if inside is None:
            return sorted(folder.iterdir())
        return [folder / name for name in contents(inside[0]).folders.get(inside[1], ())]
    except (OSError, ArchiveError):
        return []


def bytes_of(path: Path, most: int | None = None) -> bytes:
    """The content of a file, outside archives or in one, with at most `most` bytes.

    Raises:
        OSError, ArchiveError, ValueError: it does not exist, is not a plain file, is damaged, or is larger.
    """
    inside = archive_of(path)
    if inside is not None:
        return _bytes_in(*inside, most)
    size = path.stat().st_size
    if not path.is_file():  # a pipe, a device: reading might never end
        raise ValueError("it is not a regular file")
    if most is not None and size > most:
        raise ValueError("it is too large")
    return path.read_bytes()


def _bytes_in(archive: Path, name: str, most: int | None) -> bytes:
    known = contents(archive)
    if name not in known.members:
        raise FileNotFoundError(2, "it is not in the archive")
    entry = known.members[name]
    if entry.flag_bits & 1:
        raise ArchiveError("it is encrypted")
    try:
        with _opened(archive, _state(archive)).open(entry) as member:
            # the size that the archive states may be wrong, so it is not used
            content = member.read() if most is None else member.read(most + 1)
    except OSError:
        raise
    except Exception as error:  # truncated, compressed with an unknown method, ...
        raise ArchiveError(f"it cannot be unpacked ({_words(error)})") from None
    if most is not None and len(content) > most:
        raise ValueError("it is too large")
    return content


def _words(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
