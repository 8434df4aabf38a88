"""Checkpoints of a running cell, in its own folder, so that it can resume after an interruption.

`journal.json` says what is finished and names a file for everything that is kept: the newest weights of each network,
the newest state of each stage, results of `each` and `once`, and the run in progress. Files are written first and never
changed; `journal.json` replaces its predecessor last. So the files that it names are complete, whenever a process ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from debiasbench.files import write_atomically

JOURNAL = "journal.json"
N_FOLDERS = 2  # above the folder of a cell: of its method and of its dataset


class Checkpoints:
    """The folder of a running cell.

    Attributes:
        fraction: the share of a cell's time that writing may take. After a write of one second, the next one comes no
            sooner than 1 / fraction seconds later.
        n_written: how often this process has written `journal.json`.
        unused: why an existing checkpoint is not resumed; "" otherwise.
    """

    fraction = 0.005

    def __init__(self, folder: Path, header: Mapping[str, Any], *, interval: float = 60.0) -> None:
        """Set up; nothing is read or written yet.

        Args:
            folder: the folder of the cell.
            header: what the cell depends on; a checkpoint with any difference is not resumed.
            interval: seconds between two checkpoints within a call.
        """
        self.folder, self.interval, self.header = folder, interval, json.loads(json.dumps(header))
        self.n_written, self.unused = 0, ""
        self._files: dict[str, str] = {}  # key -> name
        self._pending: dict[str, bytes] = {}
        self._cost = 0.0
        self._last = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The journal of an earlier process, if it can be resumed; otherwise the first checkpoint replaces it."""
        try:
            content = json.loads((self.folder / JOURNAL).read_bytes())
            journal: dict[str, Any] = content["journal"]
            differing = [key for key, value in self.header.items() if content["header"].get(key) != value]
            if differing:
                self.unused = f"other {', '.join(differing)}"
            elif content["checksum"] != _checksum(json.dumps(journal)):
                self.unused = "it is damaged"
            else:
                self._files = dict(content["files"])
                return journal
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.unused = f"it cannot be read ({error})"
        return None

    def bytes_of(self, key: str) -> bytes | None:
        """The contents of the file kept under a key; None if there is none."""
        if key not in self._files:
            return None
        with contextlib.suppress(OSError):
            return (self.folder / Path(self._files[key]).name).read_bytes()  # always of this folder
        return None

    def keep(self, key: str, data: bytes) -> None:
        """Write a file with the next checkpoint; it replaces the file of the key."""
        self._pending[key] = data

    def forget(self, key: str) -> None:
        """Drop the file of a key with the next checkpoint, because it is no longer needed."""
        self._files.pop(key, None)
        self._pending.pop(key, None)

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint within a call."""
        return time.monotonic() - self._last >= max(self.interval, self._cost / self.fraction)

    @property
    def is_cheap(self) -> bool:
        """Whether `fraction` allows a checkpoint at the end of a call."""
        return bool(time.monotonic() - self._last >= self._cost / self.fraction)

    def write(self, journal: Mapping[str, Any], started: float | None = None) -> None:
        """Write pending files, then the journal. If that fails, the checkpoint is lost, but the cell goes on.

        `started` is when the work for the checkpoint began (`time.monotonic`); default: now.
        """
        started = time.monotonic() if started is None else started
        pending = dict(self._pending)  # a snapshot can be forgotten at any time
        names = {key: f"{key}.{self.n_written}-{time.time_ns()}.safetensors" for key in pending}
        try:
            for key, name in names.items():
                self._write_file(self.folder / name, pending[key])
            files = self._files | names
            text = json.dumps(journal)
            content = {"header": self.header, "files": files, "checksum": _checksum(text), "journal": json.loads(text)}
            self._write_file(self.folder / JOURNAL, json.dumps(content).encode())
            self._files = files
            self._pending.clear()
            self.n_written += 1
            for path in self.folder.iterdir():
                if path.name != JOURNAL and path.name not in files.values():
                    path.unlink(missing_ok=True)
        except OSError:
            for name in names.values():  # they take space that a record may need
                with contextlib.suppress(OSError):
                    (self.folder / name).unlink(missing_ok=True)
        self._last = time.monotonic()
        self._cost = self._last - started

    def _write_file(self, path: Path, data: bytes) -> None:
        write_atomically(path, data)

    def clear(self) -> None:
        """Remove everything, because the cell is finished or starts over."""
        self._files, self._pending = {}, {}
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.folder.parents[:N_FOLDERS]:
            with contextlib.suppress(OSError):  # not empty: other cells use it
                folder.rmdir()


def _checksum(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
