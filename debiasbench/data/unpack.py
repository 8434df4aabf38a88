"""Safe unpacking of archives."""

from __future__ import annotations

import contextlib
import lzma
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from debiasbench.data.downloads import CHUNK, meter
from debiasbench.errors import BenchmarkError
from debiasbench.files import alone, check_space, explained_errors, open_for_writing

# ---- archives -------------------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path, *, strip: int = 0) -> Path:
    """Unpack a zip or tar (plain, .gz, .bz2, .xz) into `folder`; does nothing if all of its files exist.

    All entries are checked before anything is written. They are unpacked into a temporary folder first and then moved
    into place. Files of the same name are replaced, others stay. `__MACOSX` folders are left out.

    Args:
        archive: the file; its contents decide the kind, not its name.
        folder: the target folder.
        strip: number of leading folders to remove from each entry (1 for archives from GitHub).

    Raises:
        BenchmarkError: the archive is damaged, has an entry that leaves the folder or is not a regular file, or the
            disk is too small.
    """
    folder = folder.absolute()
    with (
        explained_errors(str(folder), "--data-dir"), _explained_archive(archive),
        _contents(archive) as (members, open_member),
    ):  # fmt: skip
        entries = [entry for member in members if (entry := _entry(archive, member, strip)) is not None]
        if not entries:
            raise _damaged(archive, "it is empty")
        if all(_is_there(entry, folder) for entry in entries):
            return folder
        with alone(folder / "unpacking" if folder.is_dir() else folder):
            # Inside the folder, if it exists: it may be a separate disk, and renaming works only within a disk.
            place = folder if folder.is_dir() else folder.parent
            temporary = place / f".{folder.name}.unpacking"
            shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
            check_space(place, sum(entry.size for entry in entries), f"the contents of {archive.name}")
            try:
                _unpack(archive, entries, open_member, temporary)
                _move(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class _Entry:
    path: PurePosixPath  # below the folder, without the stripped part
    size: int
    is_folder: bool
    member: Any  # the member in zipfile or tarfile


_Contents = tuple[list[Any], Callable[[Any], IO[bytes] | None]]


@contextlib.contextmanager
def _contents(archive: Path) -> Iterator[_Contents]:
    """Open an archive: its members, and a function that opens one."""
    with archive.open("rb") as file:
        is_zip = file.read(2) == b"PK"  # zipfile's own test mistakes a tar that ends with a zip for a zip
    if is_zip:
        with zipfile.ZipFile(archive) as packed:
            yield packed.infolist(), packed.open
    else:
        with tarfile.open(archive) as unpacked:
            members = unpacked.getmembers()
            _check_end(unpacked)
            yield members, unpacked.extractfile


def _check_end(packed: tarfile.TarFile) -> None:
    """Refuse a truncated tar, which tarfile takes for a shorter one, and read on to the checksum of its compression."""
    file = packed.fileobj
    assert file is not None
    file.seek(packed.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("unexpected end of data")
    while file.read(CHUNK):
        pass


@contextlib.contextmanager
def _explained_archive(archive: Path) -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error, NotImplementedError,
    ) as error:  # fmt: skip
        raise _damaged(archive, str(error)) from None
    except OSError as error:
        if error.errno is None:  # from the unpacker, such as a wrong gzip checksum; errors of the system have a number
            raise _damaged(archive, str(error)) from None
        if error.filename is not None and Path(error.filename) == archive:
            raise BenchmarkError(f"{archive} cannot be read ({error.strerror}).") from None
        raise


def _damaged(archive: Path, reason: str) -> BenchmarkError:
    first_line = reason.partition("\n")[0].rstrip(":.") or "it ends too early"
    return BenchmarkError(
        f"{archive} is damaged, or not a zip or tar file ({first_line}). Delete it and fetch it again."
    )


def _entry(archive: Path, member: Any, strip: int) -> _Entry | None:
    """The entry for a member; None if the member is left out.

    Raises:
        BenchmarkError: the member must not be unpacked.
    """
    if isinstance(member, zipfile.ZipInfo):
        name, size, is_folder, problem = _zip_member(member)
    else:
        name, size, is_folder, problem = _tar_member(member)
    parts = PurePosixPath(name).parts
    if name.startswith("/"):
        problem = "has an absolute path"
    elif ".." in parts:
        problem = "leads out of the folder"
    elif "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name):
        problem = "has a name that other systems read as another place"
    elif parts and not is_folder and len(parts) <= strip:
        problem = f"is outside of the {strip} leading folders that are to be taken off"
    if problem:
        raise BenchmarkError(
            f"{archive} is not unpacked: its entry {name!r} {problem}. Nothing was written; is it the right archive?"
        )
    if parts[:1] == ("__MACOSX",) or len(parts) <= strip:
        return None
    return _Entry(PurePosixPath(*parts[strip:]), size, is_folder, member)


def _zip_member(member: zipfile.ZipInfo) -> tuple[str, int, bool, str]:
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 if the archive was not made on Unix
    problem = ""
    if stat.S_ISLNK(kind):
        problem = "is a link"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        problem = "is not a regular file or folder"
    elif member.flag_bits & 1:
        problem = "is encrypted"
    # orig_filename, because zipfile cuts filename at a zero byte
    return member.orig_filename, member.file_size, member.is_dir(), problem


def _tar_member(member: tarfile.TarInfo) -> tuple[str, int, bool, str]:
    problem = ""
    if member.issym() or member.islnk():
        problem = "is a link"
    elif not (member.isreg() or member.isdir()):
        problem = "is not a regular file or folder"
    return member.name, 0 if member.isdir() else member.size, member.isdir(), problem


def _is_there(entry: _Entry, folder: Path) -> bool:
    path = folder / entry.path
    return path.is_dir() if entry.is_folder else path.is_file() and path.stat().st_size == entry.size


def _unpack(archive: Path, entries: list[_Entry], open_member: Callable[[Any], IO[bytes] | None], folder: Path) -> None:
    folder.mkdir(parents=True)
    done = 0
    with meter(f"unpacking {archive.name}", total := sum(entry.size for entry in entries)) as show:
        for entry in entries:
            path = folder / entry.path
            if entry.is_folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            source = open_member(entry.member)
            assert source is not None  # entries that are not regular files were refused
            with source, open_for_writing(path) as file:
                shutil.copyfileobj(source, file, CHUNK)
            if path.stat().st_size != entry.size:
                raise _damaged(archive, f"{entry.path} has {path.stat().st_size} bytes instead of {entry.size}")
            show(done := done + entry.size, total)


def _move(source: Path, target: Path) -> None:
    """Rename `source` to `target`; if both are folders, merge them."""
    if source.is_dir() and target.is_dir():
        for path in sorted(source.iterdir()):
            _move(path, target / path.name)
    else:
        source.replace(target)
