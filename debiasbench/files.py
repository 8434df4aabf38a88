"""Files: written completely or not at all, and the messages if they cannot be written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from debiasbench.errors import BenchmarkError

UNFINISHED = ".writing"  # suffix of files being written, or left by a killed process


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all (see `atomic_file`)."""
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file, which replaces `path` at the end; so no process ever sees an incomplete file."""
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Make a system error name the intended file if it names a temporary one or none."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).endswith(UNFINISHED):
            error.filename = str(path)
        raise


# entries that archivers, disks and file managers leave in folders
SYSTEM_ENTRIES = frozenset({
    "__macosx", "lost+found", "$recycle.bin", "system volume information", "@eadir", "@tmp", "@recycle", "#recycle",
    "#snapshot", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
})  # fmt: skip


def is_ignored(name: str) -> bool:
    """Whether an entry of a folder is hidden or belongs to the system, so that it is not the user's data."""
    return name.startswith(".") or name.lower() in SYSTEM_ENTRIES


_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # not allowed as file names on Windows


def file_name(text: str) -> str:
    """A title as a file name for every system; titles that differ only in unusual characters may share a name.

    It never points elsewhere: it has no separator or drive, and is neither empty nor only dots. It has at most 121
    characters.
    """
    name = re.sub(r"[^A-Za-z0-9_.,=+-]", "-", text.replace(":", "+", 1))[:120]
    if _DEVICES.match(name):
        return f"-{name}"
    return name[:-1] + "-" if name.endswith(".") else name or "-"


def file_names(titles: Iterable[str]) -> dict[str, str]:
    """A file name for each title, as in `file_name`, unique even if upper and lower case count as the same.

    If several titles would have the same name, a digest is appended to each.
    """
    names = {title: file_name(title) for title in titles}
    several = Counter(name.lower() for name in names.values())
    digests = {title: hashlib.sha256(title.encode("utf-8", "surrogatepass")).hexdigest()[:8] for title in names}
    return {title: name if several[name.lower()] == 1 else f"{name}-{digests[title]}" for title, name in names.items()}


def to_path(given: str | Path) -> Path:
    """The path that a setting means. Every path from a user passes through here and is unchanged until then.

    Raises:
        BenchmarkError: as in `expanded`; or a link in it is broken.
    """
    path = expanded(given)
    if broken_link(path) is not None:  # e.g. to a disk that is not mounted: nothing exists there, nor can be made
        raise BenchmarkError(f"{absent(path)} Repair the link, or give another path.")
    return path


def expanded(given: str | Path) -> Path:
    """Like `to_path`, without the check for broken links.

    It is for data that are reported with all other missing files (`NeededFile`), or whose absence does not matter.

    `~` and `~user` are expanded, because a shell does not do so inside `root=~/x`, and files and environment variables
    are read without a shell. `$NAME` is not replaced, because shells do that everywhere, and a folder may have such a
    name. If the locale cannot encode the text, file names are UTF-8.

    Raises:
        BenchmarkError: the path begins with `~`, and there is no such home.
    """
    text = str(given)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        text = os.fsdecode(text.encode("utf-8", "surrogateescape"))
    if not text.startswith("~"):
        path = Path(text)
        return path.absolute() if path.parts[:1] and path.parts[0].startswith("~") else path  # keeps ./~x
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise BenchmarkError(
            f"The path {text} begins with {Path(text).parts[0]}, and no such home folder is known. Write the whole "
            f"path, or ./{text} for a folder of that name."
        ) from None


def broken_link(path: Path) -> Path | None:
    """The broken link, if there is one: the path itself or a folder above it."""
    return next((one for one in (path, *path.parents) if os.path.islink(one) and not os.path.exists(one)), None)  # noqa: PTH110, PTH114 - these raise nothing


def absent(path: Path, what: str = "file") -> str:
    """The message for a path that does not exist; for a broken link, with the link and its target."""
    link = broken_link(path)
    if link is not None:
        return f"{link} is a link to {link.readlink()}, which is not there."
    return f"There is no {what} {path}."


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file; `what` is its name in the message, with a capital letter.

    Raises:
        BenchmarkError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise BenchmarkError(f"{what} {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    except RecursionError:
        raise BenchmarkError(f"{path} is not valid TOML: it is nested too deeply.") from None
    except tomllib.TOMLDecodeError as error:
        raise BenchmarkError(f"{path} is not valid TOML: {error}") from None
    except ValueError:  # Python reads no number with thousands of digits
        raise BenchmarkError(f"{path} is not valid TOML: it has a number with thousands of digits.") from None


# ---- folders that cannot be written ---------------------------------------------------------------------------------


def check_writable(folder: Path, option: str, *, what: str = "") -> None:
    """Refuse a folder that cannot be written, before any work is done for it; nothing is created.

    Args:
        folder: the folder, which need not exist yet.
        option: the command-line option that chooses another folder.
        what: name of the folder in the message; default: its path.

    Raises:
        BenchmarkError: the folder, or the nearest existing one above it, cannot be written.
    """
    if broken_link(folder) is not None:
        raise BenchmarkError(
            f"{what or folder} cannot be written ({absent(folder).rstrip('.')}): repair the link, or give another "
            f"folder with {option}."
        )
    with explained_errors(what or str(folder), option):
        place = nearest_there(folder)
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            error.filename = str(place)  # not the file used for the test
            raise


def nearest_there(folder: Path) -> Path:
    """The folder, or the nearest existing one above it, in which it would be created."""
    place = folder.absolute()
    while not (place.exists() or place.is_symlink()) and place != place.parent:
        place = place.parent
    return place


@contextlib.contextmanager
def explained_errors(what: str, option: str, *, needed: int | None = None) -> Iterator[None]:
    """Turn system errors while writing into one clear error.

    Args:
        what: what is written, for the message.
        option: the command-line option that chooses another folder.
        needed: total bytes, if known.

    Raises:
        BenchmarkError: the error of `not_written`.
    """
    try:
        yield
    except OSError as error:
        raise not_written(error, what, option, needed=needed) from None


def not_written(error: OSError, what: str, option: str, *, needed: int | None = None) -> BenchmarkError:
    """The error for every refusal of the system to write; arguments as in `explained_errors`."""
    if disk_is_full(error):
        need = f" ({readable_size(needed)} are needed)" if needed is not None else ""
        return BenchmarkError(
            f"{what} cannot be written: the disk is full{need}. Make room, or give another folder with {option}; then "
            "run the same command again."
        )
    return BenchmarkError(
        f"{what} cannot be written ({error}): give another folder with {option}, or make this one writable."
    )


def disk_is_full(error: OSError) -> bool:
    """Whether the disk or the user's quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def open_for_writing(path: Path) -> IO[bytes]:
    """Like `open(path, "wb")`; a separate function, so that tests can simulate a full disk."""
    return path.open("wb")


def readable_size(n_bytes: int) -> str:
    """A readable number of bytes: "9.9 MB"."""
    number, unit = float(n_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007 - the last unit is used
        if number < 999.5:
            break
        number /= 1000
    return f"{number:.3g} {unit}"


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let only one process at a time work on `path`; two would write into the same temporary files."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        yield
        with contextlib.suppress(OSError):  # Windows does not delete open files
            lock.unlink()  # a process that waited finds the work done


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to write `needed` bytes into a folder whose disk has no space for them."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BenchmarkError(
            f"There is too little space in {folder} for {what}: {readable_size(needed)} are needed, "
            f"{readable_size(free)} are free. Make room, or give another folder with --data-dir."
        )


DATA_VARIABLE = "DEBIASBENCH_DATA"


def default_data_dir() -> Path:
    """$DEBIASBENCH_DATA, or `data` below the current folder."""
    return expanded(os.environ.get(DATA_VARIABLE) or "data")
