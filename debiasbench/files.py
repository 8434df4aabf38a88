"""Files: written whole or not at all, and what is said where they cannot be."""

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

UNFINISHED = ".writing"  # ends the names of files that are being written, or were when their process was killed


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all (see `atomic_file`)."""
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes its place in the end: nobody ever sees half of it."""
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
    """Let a refusal of the system name the file that was meant, where it names a temporary one or none."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).endswith(UNFINISHED):
            error.filename = str(path)
        raise


# what archivers, disks and file managers leave in folders
SYSTEM_ENTRIES = frozenset({
    "__macosx", "lost+found", "$recycle.bin", "system volume information", "@eadir", "@tmp", "@recycle", "#recycle",
    "#snapshot", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
})  # fmt: skip


def is_ignored(name: str) -> bool:
    """Whether an entry of a folder is hidden or the system's, and none of the user's data."""
    return name.startswith(".") or name.lower() in SYSTEM_ENTRIES


_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # no file names on Windows


def file_name(text: str) -> str:
    """A title as a file name on every system; titles that differ in odd characters alone may have one name.

    It never leads anywhere: no separator, no drive, and neither empty nor dots alone. At most 121 characters.
    """
    name = re.sub(r"[^A-Za-z0-9_.,=+-]", "-", text.replace(":", "+", 1))[:120]
    if _DEVICES.match(name):
        return f"-{name}"
    return name[:-1] + "-" if name.endswith(".") else name or "-"


def file_names(titles: Iterable[str]) -> dict[str, str]:
    """A file name for each title, as `file_name` makes them, unlike all others also where upper and lower case are one.

    Where several titles would have one name, each has a digest behind it.
    """
    names = {title: file_name(title) for title in titles}
    several = Counter(name.lower() for name in names.values())
    digests = {title: hashlib.sha256(title.encode("utf-8", "surrogatepass")).hexdigest()[:8] for title in names}
    return {title: name if several[name.lower()] == 1 else f"{name}-{digests[title]}" for title, name in names.items()}


def to_path(given: str | Path) -> Path:
    """The path that a setting means: every path that a user gives comes through here, and stays as given until then.

    Raises:
        BenchmarkError: as `expanded`; or a link in it leads nowhere.
    """
    path = expanded(given)
    if broken_link(path) is not None:  # of a disk that is not mounted, say: nothing is there, and nothing can be made
        raise BenchmarkError(f"{absent(path)} Mend the link, or give another path.")
    return path


def expanded(given: str | Path) -> Path:
    """As `to_path`, of data whose lack is told with all that is missing (`NeededFile`) or does not matter.

    `~` and `~user` are homes: a shell leaves them alone inside `root=~/x`, and files and environment variables know no
    shell. `$NAME` is not replaced: shells do that everywhere, and a folder may be called so. Where the locale cannot
    write the text, file names are UTF-8.

    Raises:
        BenchmarkError: it begins with `~`, and there is no such home.
    """
    text = str(given)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        text = os.fsdecode(text.encode("utf-8", "surrogateescape"))
    if not text.startswith("~"):
        path = Path(text)
        return path.absolute() if path.parts[:1] and path.parts[0].startswith("~") else path  # ./~x stays what it is
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise BenchmarkError(
            f"The path {text} begins with {Path(text).parts[0]}, and no such home folder is known. Write the whole "
            f"path, or ./{text} for a folder of that name."
        ) from None


def broken_link(path: Path) -> Path | None:
    """The link that leads nowhere, if there is one: the path itself or a folder above it."""
    return next((one for one in (path, *path.parents) if os.path.islink(one) and not os.path.exists(one)), None)  # noqa: PTH110, PTH114 - these raise nothing


def absent(path: Path, what: str = "file") -> str:
    """What is said of a path at which nothing is: a link that leads nowhere names itself and its aim."""
    link = broken_link(path)
    if link is not None:
        return f"{link} is a link to {link.readlink()}, which is not there."
    return f"There is no {what} {path}."


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file. what: it is called in the message, with a capital letter.

    Raises:
        BenchmarkError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise BenchmarkError(f"{what} {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    except RecursionError:
        raise BenchmarkError(f"{path} is no valid TOML: it is nested too deeply.") from None
    except tomllib.TOMLDecodeError as error:
        raise BenchmarkError(f"{path} is no valid TOML: {error}") from None
    except ValueError:  # Python reads none of thousands of digits
        raise BenchmarkError(f"{path} is no valid TOML: it has a number of thousands of digits.") from None


# ---- where nothing can be written -----------------------------------------------------------------------------------


def check_writable(folder: Path, option: str, *, what: str = "") -> None:
    """Refuse a folder that cannot be written, before any work is done for it; nothing is made.

    Args:
        folder: it need not be there yet.
        option: of the command line, names another folder.
        what: the folder is called in the message; its path, if not given.

    Raises:
        BenchmarkError: neither the folder nor the nearest one above it that is there can be written.
    """
    if broken_link(folder) is not None:
        raise BenchmarkError(
            f"{what or folder} cannot be written ({absent(folder).rstrip('.')}): mend the link, or give another folder "
            f"with {option}."
        )
    with explained_errors(what or str(folder), option):
        place = nearest_there(folder)
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            error.filename = str(place)  # not the file that was tried
            raise


def nearest_there(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there: where it would be made."""
    place = folder.absolute()
    while not (place.exists() or place.is_symlink()) and place != place.parent:
        place = place.parent
    return place


@contextlib.contextmanager
def explained_errors(what: str, option: str, *, needed: int | None = None) -> Iterator[None]:
    """Turn the system's refusals to write into one clear error.

    Args:
        what: is written, for people.
        option: of the command line, names another folder.
        needed: bytes in all, if that is known.

    Raises:
        BenchmarkError: as `not_written` words it.
    """
    try:
        yield
    except OSError as error:
        raise not_written(error, what, option, needed=needed) from None


def not_written(error: OSError, what: str, option: str, *, needed: int | None = None) -> BenchmarkError:
    """What is said wherever the system refuses to write; arguments as those of `explained_errors`."""
    if disk_is_full(error):
        need = f" ({readable_size(needed)} are needed)" if needed is not None else ""
        return BenchmarkError(
            f"{what} cannot be written: the disk is full{need}. Make room, or give another folder with {option}; then "
            "run the same command again."
        )
    return BenchmarkError(
        f"{what} cannot be written ({error}): give another folder with {option}, or the right to write there."
    )


def disk_is_full(error: OSError) -> bool:
    """Whether there is no room left, on the disk or in the user's quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def open_for_writing(path: Path) -> IO[bytes]:
    """As `open(path, "wb")`; apart, so that tests can fill the disk."""
    return path.open("wb")


def readable_size(n_bytes: int) -> str:
    """A number of bytes for people: "9.9 MB"."""
    number, unit = float(n_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007 - the unit that is reached is what is wanted
        if number < 999.5:
            break
        number /= 1000
    return f"{number:.3g} {unit}"


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time works on `path`; two would write into the same part."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        yield
        with contextlib.suppress(OSError):  # Windows keeps what is open
            lock.unlink()  # whoever waited for it finds the work done


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to write `needed` bytes into a folder whose disk has no room for them."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BenchmarkError(
            f"There is too little room in {folder} for {what}: {readable_size(needed)} are needed, "
            f"{readable_size(free)} are free. Make room, or give another folder with --data-dir."
        )


DATA_VARIABLE = "DEBIASBENCH_DATA"


def default_data_dir() -> Path:
    """$DEBIASBENCH_DATA, or `data` below the current folder."""
    return expanded(os.environ.get(DATA_VARIABLE) or "data")
