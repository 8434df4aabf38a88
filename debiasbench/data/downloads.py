"""Downloads for the `prepare` of datasets: complete or not at all, verified, retried, with mirrors if there are any.

The library pooch does the work. A failure is one `BenchmarkError` that names the addresses, the file, and what to do by
hand. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from debiasbench import about
from debiasbench.errors import BenchmarkError
from debiasbench.files import alone, check_space, explained_errors, readable_size

TIMEOUT = 30.0  # seconds without an answer from the server
RETRIES = 2  # of each address, if the same request may succeed later
CHUNK = 1 << 18  # bytes read at once
HUB_FILE = re.compile(r"hf://datasets/(?P<repo_id>[\w.-]+/[\w.-]+)(@(?P<revision>[^/@]+))?/(?P<filename>.+)")

Downloader = Callable[[str, str, Any], None]  # pooch's: (address, file to write, a pooch)


def fetch(urls: str | Sequence[str], path: Path, *, sha256: str | None, size: int | None = None) -> Path:
    """Download a file to `path`, unless the right file is already there.

    Args:
        urls: address of the file, or several, tried in order: https; if `sha256` is given, also http, and
            hf://datasets/OWNER/NAME@REVISION/FILE for the Hugging Face hub (without @REVISION: the newest).
        path: the file; its folder is created.
        sha256: SHA-256 of the file, in hexadecimal; None if none is published. Then any file at `path` (of `size`, if
            given) counts as right.
        size: size of the file, in bytes.

    Raises:
        BenchmarkError: the file cannot be downloaded or written, or has the wrong contents.
    """
    return _obtain(_http_sources([urls] if isinstance(urls, str) else urls, path, sha256, size), path, sha256, size)


def _http_sources(urls: Sequence[str], path: Path, sha256: str | None, size: int | None) -> dict[str, Downloader]:
    """Address -> its downloader; addresses whose files could not be trusted are refused."""

    def over_http(url: str, file: str, _: Any) -> None:
        import pooch

        with meter(f"fetching {path.name} from {url}", size) as show:
            bar = _Bar(show)
            pooch.HTTPDownloader(
                progressbar=bar, chunk_size=CHUNK, timeout=TIMEOUT, hooks={"response": _refusing(path, size)},
                headers={"User-Agent": f"debiasbench/{about.version()}", "Accept-Encoding": "identity"},
            )(url, file, None)  # fmt: skip
        found = Path(file).stat().st_size
        if found != (expected := size or bar.total or found):
            raise ValueError(f"the download stopped after {found} of {expected} bytes")

    return dict.fromkeys([_address(url, sha256 is not None) for url in urls], over_http)


def _address(url: str, has_checksum: bool) -> str:
    """The address to request; hf:// becomes that of the hub (or of the mirror in $HF_ENDPOINT).

    Raises:
        BenchmarkError: the address is of another kind, or of one that needs a checksum, and there is none.
    """
    scheme = urllib.parse.urlsplit(url).scheme
    on_hub = HUB_FILE.fullmatch(url)
    if on_hub and has_checksum:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(**on_hub.groupdict(), repo_type="dataset")
    if scheme != "https" and (scheme != "http" or not has_checksum):
        raise BenchmarkError(
            "Only https addresses are fetched, and http with a checksum, as files of the hub "
            f"(hf://datasets/OWNER/NAME@REVISION/FILE). Got {url!r}."
        )
    return url


def fetch_from_drive(
    file_id: str, path: Path, *, sha256: str, size: int | None = None, mirrors: Sequence[str] = ()
) -> Path:
    """Download a public file from Google Drive to `path`, with gdown; otherwise like `fetch`.

    `mirrors` are addresses as in `fetch`. They are tried first, because Drive refuses files that are requested often.
    An interrupted download is resumed by the next call, which gdown supports.

    Raises:
        BenchmarkError: gdown is not installed, and no mirror has the file; otherwise as in `fetch`.
    """
    page = f"https://drive.google.com/file/d/{file_id}/view"
    if _is_right(path, sha256, size):
        return path
    try:
        gdown = importlib.import_module("gdown")
    except ImportError:
        gdown = None
    usable = gdown is not None and "timeout" in inspect.signature(gdown.download).parameters
    lacking = (
        'gdown (6.5 or later), which downloads from Google Drive, is not installed: pip install "debiasbench[drive]"'
    )
    if not (usable or mirrors):
        raise BenchmarkError(f"{path.name} is on Google Drive, and {lacking}. {_by_hand(path)}: {page}")

    def from_drive(url: str, file: str, _: Any) -> None:
        if gdown is None or not usable:
            raise _RefusedError(lacking)
        whole = Path(file).with_name("whole")  # always the same name: gdown finds the part downloaded before
        try:
            with meter(f"fetching {path.name} from {url}", size) as show:
                gdown.download(
                    id=file_id, output=str(whole), quiet=True, resume=True, progress=show, timeout=TIMEOUT
                )  # fmt: skip
        except gdown.DownloadError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise _RefusedError(f"{reason} (too many may have downloaded it: try again after a day)") from None
        whole.replace(file)

    sources = _http_sources(mirrors, path, sha256, size)
    return _obtain({**sources, page: from_drive}, path, sha256, size)


@contextlib.contextmanager
def meter(title: str, total: int | None) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on a terminal, one line elsewhere; yields a function of (bytes done, total bytes)."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from debiasbench.console import console as new_console

    console = new_console(stderr=True)
    if not console.is_terminal:
        size = f" ({readable_size(total)})" if total is not None else ""
        console.print(title + size, soft_wrap=True)
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(console.shown(title), total=total)
        yield lambda done, in_all: progress.update(task, completed=done, total=in_all)


# ---- one file -------------------------------------------------------------------------------------------------------


class _RefusedError(Exception):
    """The server's answer is not the file, and asking again would not help."""


class _Bar:
    """A progress bar for pooch, which sets `total` (0 if the server does not tell it) and passes lengths of chunks."""

    def __init__(self, show: Callable[[int, int | None], None]) -> None:
        self.show, self.total, self.done = show, 0, 0

    def update(self, n_bytes: int) -> None:
        self.done += n_bytes  # pooch counts the last chunk as a full one
        self.show(min(self.done, self.total) if self.total else self.done, self.total or None)

    def reset(self) -> None:
        """Do nothing: pooch then passes the whole length at once, and the bar is already full."""

    def close(self) -> None:
        """Do nothing: the meter closes itself."""


def _obtain(sources: dict[str, Downloader], path: Path, sha256: str | None, size: int | None) -> Path:
    """The file at `path`, downloaded from the first of the `sources` (address -> downloader) that has it."""
    if _is_right(path, sha256, size):
        return path
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")  # this module reports instead
    with explained_errors(str(path), "--data-dir"), alone(path):
        if _is_right(path, sha256, size):  # another process may have downloaded it meanwhile
            return path
        if size is not None:
            check_space(path.parent, size, path.name)
        place = path.with_name(f".{path.name}.fetching")  # what a killed process left here is removed with it
        problems = ""
        for url, downloader in sources.items():
            files = {"registry": {path.name: sha256}, "urls": {path.name: url}}
            try:
                dog = pooch.create(place, "", retry_if_failed=RETRIES, **files)
                found = Path(dog.fetch(path.name, downloader=downloader))
                break
            except (requests.RequestException, ConnectionError, TimeoutError, ValueError, _RefusedError) as error:
                problems += f"\n  {url}: {_reason(error)}"
        else:
            with contextlib.suppress(OSError):
                place.rmdir()  # unless it holds a part downloaded by gdown
            raise BenchmarkError(f"{path.name} could not be fetched:{problems}\nTry again later. {_by_hand(path)}.")
        with found.open("rb+") as file:
            os.fsync(file.fileno())
        found.chmod(0o644)  # only the user can read files from pooch
        found.replace(path)
        shutil.rmtree(place)
    return path


def _is_right(path: Path, sha256: str | None, size: int | None) -> bool:
    if not path.is_file() or (size is not None and path.stat().st_size != size):
        return False
    if sha256 is None:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256.lower()


def _refusing(path: Path, size: int | None) -> Callable[..., None]:
    """A hook for requests that checks each answer, including redirects, before its contents are read."""

    def look(response: Any, **_: Any) -> None:
        length = response.headers.get("Content-Length", "")
        problem = ""
        if response.is_redirect:
            target = urllib.parse.urljoin(response.url, response.headers["Location"])
            if response.url.startswith("https:") and not target.startswith("https:"):
                problem = f"its redirection from https to {target} is not followed"
        elif 400 <= response.status_code < 500 and response.status_code not in (408, 429):
            problem = f"HTTP {response.status_code} ({response.reason})"
        elif response.ok and "text/html" in response.headers.get("Content-Type", "") and "htm" not in path.suffix:
            problem = f"it gave a web page instead of {path.name}: it may ask for a login or a click"
        elif response.ok and size is not None and length.isdecimal() and int(length) != size:
            problem = f"it has {length} bytes instead of {size}: the file was changed there"
        if problem:
            raise _RefusedError(problem)

    return look


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words; for a connection, the system's error below requests and urllib3."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} ({error.response.reason})"
    if not isinstance(error, requests.RequestException):
        return str(error).rstrip(".") or type(error).__name__
    cause: BaseException | None = error
    while isinstance(cause, requests.RequestException) or not isinstance(cause, OSError | None):
        cause = cause.__context__
    if isinstance(cause, TimeoutError):
        return "the server does not answer"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the download stopped"
    return str(cause or error).rstrip(".")


def _by_hand(path: Path) -> str:
    return f"By hand: fetch it with a browser and save it as {path}"
