"""What a running cell has finished, in a folder of its own, so that it goes on after an interruption.

`journal.json` says what is finished and names a file for each thing that is kept: the newest weights of each network,
the newest state of each stage, results of `each` and `once`, the run that is under way. Files are written first and
never changed, `journal.json` replaces its predecessor last: whenever a process ends, what it names is whole.
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
N_FOLDERS = 2  # above that of a cell: its method's and its dataset's


class Checkpoints:
    """The folder of a running cell.

    Attributes:
        fraction: of a cell's time that writing may take: after one that took a second, the next is 1 / fraction later.
        n_written: how often `journal.json` was, by this process.
        unused: why nothing is gone on from, although something was there; "" otherwise.
    """

    fraction = 0.005

    def __init__(self, folder: Path, header: Mapping[str, Any], *, interval: float = 60.0) -> None:
        """Nothing is read or written yet.

        Args:
            folder: the cell's own.
            header: what the cell follows from; where any of it differs nothing is gone on from.
            interval: seconds between two checkpoints within a call.
        """
        self.folder, self.interval, self.header = folder, interval, json.loads(json.dumps(header))
        self.n_written, self.unused = 0, ""
        self._files: dict[str, str] = {}  # key -> name
        self._pending: dict[str, bytes] = {}
        self._cost = 0.0
        self._last = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """What an earlier process left, if it can be gone on from; else the first checkpoint takes its place."""
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
        """The file that is kept under a key; None where there is none."""
        if key not in self._files:
            return None
        with contextlib.suppress(OSError):
            return (self.folder / Path(self._files[key]).name).read_bytes()  # whatever is written there: of this folder
        return None

    def keep(self, key: str, data: bytes) -> None:
        """Have a file written with the next checkpoint, in place of what the key had."""
        self._pending[key] = data

    def forget(self, key: str) -> None:
        """What a key has is not needed any more, from the next checkpoint on."""
        self._files.pop(key, None)
        self._pending.pop(key, None)

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint within a call."""
        return time.monotonic() - self._last >= max(self.interval, self._cost / self.fraction)

    @property
    def is_cheap(self) -> bool:
        """Whether one at the end of a call costs no more than it may."""
        return bool(time.monotonic() - self._last >= self._cost / self.fraction)

    def write(self, journal: Mapping[str, Any], started: float | None = None) -> None:
        """Write what is pending, and then the journal. What cannot be written costs the checkpoint, not the cell.

        `started`: when the work for it began (`time.monotonic`); by default now.
        """
        started = time.monotonic() if started is None else started
        pending = dict(self._pending)  # a snapshot may be forgotten at any time
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
            for name in names.values():  # they take the room that a record may need
                with contextlib.suppress(OSError):
                    (self.folder / name).unlink(missing_ok=True)
        self._last = time.monotonic()
        self._cost = self._last - started

    def _write_file(self, path: Path, data: bytes) -> None:
        write_atomically(path, data)

    def clear(self) -> None:
        """Remove everything: the cell is finished, or starts anew."""
        self._files, self._pending = {}, {}
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.folder.parents[:N_FOLDERS]:
            with contextlib.suppress(OSError):  # of other cells, too
                folder.rmdir()


def _checksum(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
