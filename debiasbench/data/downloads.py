"""Downloads: fetched whole or not at all, verified, resumed where they broke off, and unpacked with care.

For the `prepare` of datasets. What goes wrong is one `BenchmarkError` that names the address, the file, and what to do
by hand. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib
import inspect
import json
import os
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debiasbench.about import __version__
from debiasbench.errors import BenchmarkError
from debiasbench.files import (
    alone,
    check_space,
    disk_is_full,
    explained_errors,
    not_written,
    open_for_writing,
    readable_size,
)

TIMEOUT = 30.0  # seconds that a server may be silent
CHUNK = 1 << 18  # bytes read at once


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
    with explained_errors(str(path), "--data-dir"), alone(path):
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
    with explained_errors(str(path), "--data-dir"), alone(path):
        if not _is_right(path, sha256, size):
            _download_from_drive(gdown, file_id, path, sha256, size, timeout)
    return path


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
        if isinstance(error, OSError) and disk_is_full(error):
            raise not_written(error, f"What torchvision downloads of {name}", "--data-dir") from None
        reason = str(error).strip() or type(error).__name__
        raise BenchmarkError(
            f"torchvision could not download {name}: {reason}\nTry again later, or fetch the files elsewhere and put "
            f"{by_hand}."
        ) from None
    finally:
        socket.setdefaulttimeout(silence)


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
def meter(title: str, total: int | None, start: int = 0) -> Iterator[Callable[[int, int | None], None]]:
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
        from debiasbench.files import write_atomically

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
            check_space(part.path.parent, expected - start, part.path.name)
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
    with open_for_writing(part.file, append=bool(start)) as file, meter(title, total, start) as show:
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
        with meter(f"fetching {path.name} from {page}", size) as show:
            gdown.download(
                id=file_id, output=str(unverified), quiet=True, resume=True, progress=show, timeout=timeout
            )  # fmt: skip
    except (gdown.DownloadError, OSError) as error:  # the errors of requests are OSErrors
        if isinstance(error, OSError) and disk_is_full(error):
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise BenchmarkError(
            f"{page} could not be fetched: {reason}. Try again (after a day, if Google says that too many have fetched "
            f"it): it goes on where it stopped; if it refuses to, delete {unverified}*.part. {_by_hand(page, path)}"
        ) from None
    unverified.chmod(0o644)  # gdown's are the user's alone
    _publish(unverified, path, page, sha256, size)
