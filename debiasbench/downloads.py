"""Downloads: fetched whole or not at all, verified, resumed where they broke off, and unpacked with care.

For the `prepare` of datasets. What goes wrong is one `BenchmarkError` that names the address, the file, and what to do
by hand. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import importlib
import inspect
import json
import lzma
import os
import re
import shutil
import socket
import stat
import struct
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from debiasbench import __version__
from debiasbench.errors import BenchmarkError

TIMEOUT = 30.0  # seconds that a server may be silent
CHUNK = 1 << 18  # bytes read at once
_FULL = (errno.ENOSPC, errno.EDQUOT)


# ---- files ----------------------------------------------------------------------------------------------------------


def fetch(
    url: str, path: Path, *, sha256: str | None = None, size: int | None = None, timeout: float = TIMEOUT
) -> Path:
    """Download `url` to `path`; what is there and right is not fetched again.

    The download grows in `<path>.part` and goes on from there when it is asked for again. It gets its name when its
    length and checksum are right.

    Args:
        url: http or https.
        path: the file; its folder is made.
        sha256: of the file, in hexadecimal. Without it, any file at `path` (of `size`, if given) counts as right.
        size: of the file, in bytes.
        timeout: seconds that the server may be silent.

    Raises:
        BenchmarkError: the file cannot be fetched or written, or is not what it should be.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise BenchmarkError(f"Only http and https addresses are fetched. Got {url!r}.")
    if _is_right(path, sha256, size):
        return path
    check_writable(path.parent)
    with _explained(path), _alone(path):
        if not _is_right(path, sha256, size):  # another process may have fetched it meanwhile
            part = _Part(url, path, sha256, size)
            _download(part, timeout)
            part.finish()
    return path


def fetch_from_drive(
    file_id: str, path: Path, *, sha256: str | None = None, size: int | None = None, timeout: float = TIMEOUT
) -> Path:
    """Download a public file of Google Drive to `path`, through gdown; else as `fetch`.

    Raises:
        BenchmarkError: gdown is not installed; and as `fetch`.
    """
    if _is_right(path, sha256, size):
        return path
    try:
        gdown = importlib.import_module("gdown")
    except ImportError:
        gdown = None
    if gdown is None or "timeout" not in inspect.signature(gdown.download).parameters:
        raise BenchmarkError(
            f"{path.name} is on Google Drive, and gdown (6.5 or later), which downloads from there, is not installed: "
            f'pip install "debiasbench[drive]". {_by_hand(_drive_page(file_id), path)}'
        )
    check_writable(path.parent)
    with _explained(path), _alone(path):
        if not _is_right(path, sha256, size):
            _download_from_drive(gdown, file_id, path, sha256, size, timeout)
    return path


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, before anything is downloaded. It need not be there yet.

    Raises:
        BenchmarkError: neither the folder nor the nearest one above it that is there can be written.
    """
    place = folder.absolute()
    try:
        while not (place.exists() or place.is_symlink()) and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise BenchmarkError(
            f"{folder} cannot be written ({error.strerror}: {place}): give another folder with --data-dir, or make "
            "room or rights there."
        ) from None


@contextlib.contextmanager
def torchvision_download(name: str, by_hand: str) -> Iterator[None]:
    """What torchvision raises inside, while it downloads from its mirrors, becomes one clear error.

    Args:
        name: of the collection, for people.
        by_hand: which files to fetch instead, and into which folder.
    """
    silence = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none: a mirror that falls silent would hang forever
    try:
        yield
    except (RuntimeError, OSError, EOFError, http.client.HTTPException, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise BenchmarkError(
                f"The disk is full: torchvision cannot download {name}. Make room, then run the same command again."
            ) from None
        reason = str(error).strip() or type(error).__name__
        raise BenchmarkError(
            f"torchvision could not download {name}: {reason}\nTry again later, or fetch the files elsewhere and put "
            f"{by_hand}."
        ) from None
    finally:
        socket.setdefaulttimeout(silence)


def open_for_writing(path: Path, *, append: bool = False) -> IO[bytes]:
    """As `open(path, "wb")`; apart, so that tests can fill the disk."""
    return path.open("ab" if append else "wb")


def readable_size(n_bytes: int) -> str:
    """A number of bytes for people: "9.9 MB"."""
    number, unit = float(n_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007 - the unit that is reached is what is wanted
        if number < 999.5:
            break
        number /= 1000
    return f"{number:.3g} {unit}"


def _is_right(path: Path, sha256: str | None, size: int | None) -> bool:
    if not path.is_file() or (size is not None and path.stat().st_size != size):
        return False
    return sha256 is None or _sha256(path) == sha256.lower()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _by_hand(url: str, path: Path) -> str:
    return f"By hand: fetch {url} with a browser and save it as {path}."


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the file system's refusals into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise BenchmarkError(
                f"The disk is full: {path} cannot be written. Make room, or give another folder with --data-dir; then "
                "run the same command again."
            ) from None
        raise BenchmarkError(f"{path} cannot be written ({error}).") from None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time works on `path`; two would write into the same part."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        yield
        with contextlib.suppress(OSError):  # Windows keeps what is open
            lock.unlink()  # whoever waited for it finds the work done


def _check_space(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BenchmarkError(
            f"There is too little room in {folder} for {what}: {readable_size(needed)} are needed, "
            f"{readable_size(free)} are free. Make room, or give another folder with --data-dir."
        )


@contextlib.contextmanager
def _meter(title: str, total: int | None, start: int = 0) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on a terminal, one line elsewhere; yields a function of (bytes done, bytes in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        sizes = [readable_size(total)] if total is not None else []
        sizes += [f"going on after {readable_size(start)}"] if start else []
        text = title + (f" ({', '.join(sizes)})" if sizes else "")
        console.print(text, markup=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total, completed=start)
        yield lambda done, in_all: progress.update(task, completed=done, total=in_all)


# ---- one download ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A download that is under way: `<path>.part`, and beside it a note of what it is a part of.

    The note holds the server's mark of the file's version (ETag, or date). A part is only gone on with if the server
    still has that version, or if a checksum will tell: halves of two versions are never joined unnoticed.
    """

    url: str
    path: Path
    sha256: str | None
    size: int | None

    @property
    def file(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + ".part.json")

    def version(self) -> str | None:
        """The mark of the version that was begun, if it is known."""
        try:
            note = json.loads(self.note.read_text())
            return note["version"] if note["url"] == self.url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def length(self) -> int:
        """How many bytes there are to go on from."""
        if not self.file.is_file() or not (self.sha256 or self.version()):
            return 0
        return self.file.stat().st_size

    def restart(self, version: str | None) -> None:
        """Nothing of it is there; a download of `version` begins."""
        from debiasbench.records import write_atomically

        self.discard()  # before the note: old bytes never stand beside a new note
        if version:
            write_atomically(self.note, json.dumps({"url": self.url, "version": version}).encode())

    def discard(self) -> None:
        for file in (self.file, self.note):
            file.unlink(missing_ok=True)

    def finish(self) -> None:
        """Verify the part and give it its name.

        Raises:
            BenchmarkError: it is not the file; the part is deleted then.
        """
        _publish(self.file, self.path, self.url, self.sha256, self.size)
        self.discard()


def _publish(file: Path, path: Path, url: str, sha256: str | None, size: int | None) -> None:
    """Verify a finished download and rename it to `path`, or delete it."""
    found = file.stat().st_size
    problem = ""
    if size is not None and found != size:
        problem = f"has {found} bytes instead of {size}"
    elif sha256 is not None and (digest := _sha256(file)) != sha256.lower():
        problem = f"has the SHA-256 {digest} instead of {sha256}"
    if problem:
        for rest in (file, file.with_name(file.name + ".json")):
            rest.unlink(missing_ok=True)
        raise BenchmarkError(
            f"What came from {url} {problem} and was deleted. Try again; if it is the same then, the file was changed "
            f"there: another source is needed for {path}."
        )
    with file.open("rb+") as written:
        os.fsync(written.fileno())
    file.replace(path)


def _download(part: _Part, timeout: float) -> None:
    """Complete `part.file`."""
    if not _receive(part, timeout, part.length()) and not _receive(part, timeout, 0):
        raise BenchmarkError(
            f"{part.url} could not be fetched: the server sent another part of it than was asked for. "
            f"{_by_hand(part.url, part.path)}"
        )


def _receive(part: _Part, timeout: float, start: int) -> bool:
    """One request for all from byte `start`; False if the server has nothing that continues the part."""
    headers = {"User-Agent": f"debiasbench/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version := part.version():
            headers["If-Range"] = version  # another version by now: the server sends all of it
    with _open(part, headers, timeout) as response:
        if response.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return start == _length_told_by_416(response, part)
        if response.headers.get_content_type() == "text/html" and part.path.suffix not in (".html", ".htm"):
            raise BenchmarkError(
                f"{part.url} gave a web page instead of {part.path.name}: it may ask for a login or a click. "
                f"{_by_hand(part.url, part.path)}"
            )
        version, total = _version(response), _total(response, start)
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            if _first_byte(response) != start or (part.version() and version and version != part.version()):
                return False
        else:
            start = 0
        if part.size is not None and total not in (None, part.size):
            part.discard()
            raise BenchmarkError(
                f"{part.url} has {total} bytes instead of {part.size}: the file was changed there. Another source is "
                f"needed for {part.path}."
            )
        expected = part.size if total is None else total
        if expected is not None:
            _check_space(part.path.parent, expected - start, part.path.name)
        if not start:
            part.restart(version)
        received = _write(part, response, start, total)
    if expected is not None and received < expected:
        raise _broken(part, f"it broke off after {received} of {expected} bytes")
    return True


def _write(part: _Part, response: Any, start: int, total: int | None) -> int:
    """Append what comes to the part; returns its length."""
    received = start
    title = f"fetching {part.path.name} from {part.url}"
    with open_for_writing(part.file, append=bool(start)) as file, _meter(title, total, start) as show:
        while received != total:
            try:
                chunk = response.read1(CHUNK if total is None else min(CHUNK, total - received))
            except (OSError, http.client.HTTPException) as error:
                file.flush()
                raise _broken(part, f"it broke off after {received} bytes ({_reason(error)})") from None
            if not chunk:
                break
            file.write(chunk)
            received += len(chunk)
            show(received, total)
    return received


@contextlib.contextmanager
def _open(part: _Part, headers: dict[str, str], timeout: float) -> Iterator[Any]:
    """The server's answer: what was asked for, or that there are no bytes so far on (416)."""
    request = urllib.request.Request(part.url, headers=headers)
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or "Range" not in headers:
            with error:
                raise BenchmarkError(
                    f"{part.url} could not be fetched: HTTP {error.code} ({error.reason}). Try again later. "
                    f"{_by_hand(part.url, part.path)}"
                ) from None
        response = error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BenchmarkError(
            f"{part.url} could not be fetched: {_reason(error)}. Is there a network, and the address right? "
            f"{_by_hand(part.url, part.path)}"
        ) from None
    with response:
        yield response


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects to http and https alone, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = (urllib.parse.urlsplit(url).scheme for url in (req.full_url, newurl))
        if new not in ("http", "https") or (old, new) == ("https", "http"):
            reason = f"a redirection from {old} to {new}, to {newurl}, is not followed"
            raise urllib.error.HTTPError(req.full_url, code, reason, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _broken(part: _Part, what: str) -> BenchmarkError:
    return BenchmarkError(
        f"The download of {part.url} is not complete: {what}. Run the same command again: it goes on from there, where "
        f"the server lets it. {_by_hand(part.url, part.path)}"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
        return "the server does not answer"
    return str(getattr(error, "reason", error)) or type(error).__name__


def _version(response: Any) -> str | None:
    """What tells versions of the file apart: a strong ETag, else the date."""
    tag: str = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _first_byte(response: Any) -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _total(response: Any, start: int) -> int | None:
    """The length of the whole file, if the server tells it."""
    is_part = response.status == http.HTTPStatus.PARTIAL_CONTENT
    if is_part and (found := re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))):
        return int(found[1])
    length = response.headers.get("Content-Length", "")
    if not length.isdecimal() or response.headers.get("Transfer-Encoding"):
        return None
    return int(length) + (start if is_part else 0)


def _length_told_by_416(response: Any, part: _Part) -> int | None:
    found = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else part.size


def _drive_page(file_id: str) -> str:
    return f"https://drive.google.com/file/d/{file_id}/view"


def _download_from_drive(
    gdown: Any, file_id: str, path: Path, sha256: str | None, size: int | None, timeout: float
) -> None:
    page = _drive_page(file_id)
    unverified = path.with_name(path.name + ".unverified")  # gdown names its parts <this><8 letters>.part
    try:
        with _meter(f"fetching {path.name} from {page}", size) as show:
            gdown.download(
                id=file_id, output=str(unverified), quiet=True, resume=True, progress=show, timeout=timeout
            )  # fmt: skip
    except (gdown.DownloadError, OSError) as error:  # the errors of requests are OSErrors
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise BenchmarkError(
            f"{page} could not be fetched: {reason}. Try again (after a day, if Google says that too many have fetched "
            f"it): it goes on where it stopped; if it refuses to, delete {unverified}*.part. {_by_hand(page, path)}"
        ) from None
    unverified.chmod(0o644)  # gdown's are the user's alone
    _publish(unverified, path, page, sha256, size)


# ---- archives -------------------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path, *, strip: int = 0) -> Path:
    """Unpack a zip or tar (plain, .gz, .bz2, .xz) into `folder`; does nothing if all of its files are there.

    All entries are looked at before anything is written, and all is unpacked beside before anything moves into place.
    Files of the same name are replaced, others stay. The `__MACOSX` of Macs is left out.

    Args:
        archive: the file; by its contents, not its name.
        folder: where the entries belong.
        strip: so many leading folders are taken off each entry (1 for GitHub's archives).

    Raises:
        BenchmarkError: the archive is damaged, has an entry that leaves the folder or is no plain file, or the disk is
            too small.
    """
    folder = folder.absolute()
    with _explained(folder), _explained_archive(archive), _contents(archive) as (members, open_member):
        entries = [entry for member in members if (entry := _entry(archive, member, strip)) is not None]
        if not entries:
            raise _damaged(archive, "it is empty")
        if all(_is_there(entry, folder) for entry in entries):
            return folder
        check_writable(folder)
        with _alone(folder / "unpacking" if folder.is_dir() else folder):
            # Inside where the folder is there: it may be a disk of its own, and renaming works on one disk only.
            place = folder if folder.is_dir() else folder.parent
            temporary = place / f".{folder.name}.unpacking"
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            _check_space(place, sum(entry.size for entry in entries), f"the contents of {archive.name}")
            try:
                _unpack(archive, entries, open_member, temporary)
                _move(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class _Entry:
    path: PurePosixPath  # below the folder, without what is stripped
    size: int
    is_folder: bool
    member: Any  # what zipfile or tarfile calls it


_Contents = tuple[list[Any], Callable[[Any], IO[bytes] | None]]


@contextlib.contextmanager
def _contents(archive: Path) -> Iterator[_Contents]:
    """The members of an archive, and a function that opens one."""
    with archive.open("rb") as file:
        is_zip = file.read(2) == b"PK"  # zipfile's own test also takes a tar for a zip that ends with one
    if is_zip:
        with zipfile.ZipFile(archive) as packed:
            yield packed.infolist(), packed.open
    else:
        with tarfile.open(archive) as unpacked:
            members = unpacked.getmembers()
            _check_end(unpacked)
            yield members, unpacked.extractfile


def _check_end(packed: tarfile.TarFile) -> None:
    """Refuse a tar without its end, which tarfile takes for shorter, and read on to the checksum of what packs it."""
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
        if error.errno is None:  # the unpacker's own, such as gzip's wrong checksum; the system's have numbers
            raise _damaged(archive, str(error)) from None
        if error.filename is not None and Path(error.filename) == archive:
            raise BenchmarkError(f"{archive} cannot be read ({error.strerror}).") from None
        raise


def _damaged(archive: Path, reason: str) -> BenchmarkError:
    first_line = reason.partition("\n")[0].rstrip(":.") or "it ends too early"
    return BenchmarkError(f"{archive} is damaged, or no zip or tar ({first_line}). Delete it and fetch it again.")


def _entry(archive: Path, member: Any, strip: int) -> _Entry | None:
    """What becomes of a member; None if nothing does.

    Raises:
        BenchmarkError: it must not be unpacked.
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
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was not made on Unix
    problem = ""
    if stat.S_ISLNK(kind):
        problem = "is a link"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        problem = "is no plain file or folder"
    elif member.flag_bits & 1:
        problem = "is encrypted"
    # orig_filename: zipfile cuts the other at a zero byte
    return member.orig_filename, member.file_size, member.is_dir(), problem


def _tar_member(member: tarfile.TarInfo) -> tuple[str, int, bool, str]:
    problem = ""
    if member.issym() or member.islnk():
        problem = "is a link"
    elif not (member.isreg() or member.isdir()):
        problem = "is no plain file or folder"
    return member.name, 0 if member.isdir() else member.size, member.isdir(), problem


def _is_there(entry: _Entry, folder: Path) -> bool:
    path = folder / entry.path
    return path.is_dir() if entry.is_folder else path.is_file() and path.stat().st_size == entry.size


def _unpack(archive: Path, entries: list[_Entry], open_member: Callable[[Any], IO[bytes] | None], folder: Path) -> None:
    folder.mkdir(parents=True)
    done = 0
    with _meter(f"unpacking {archive.name}", total := sum(entry.size for entry in entries)) as show:
        for entry in entries:
            path = folder / entry.path
            if entry.is_folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            source = open_member(entry.member)
            assert source is not None  # what is no plain file was refused
            with source, open_for_writing(path) as file:
                shutil.copyfileobj(source, file, CHUNK)
            if path.stat().st_size != entry.size:
                raise _damaged(archive, f"{entry.path} has {path.stat().st_size} bytes instead of {entry.size}")
            show(done := done + entry.size, total)


def _move(source: Path, target: Path) -> None:
    """Rename `source` to `target`; a folder that is there already is filled up."""
    if source.is_dir() and target.is_dir():
        for path in sorted(source.iterdir()):
            _move(path, target / path.name)
    else:
        source.replace(target)
