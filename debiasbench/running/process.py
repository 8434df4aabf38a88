"""One worker process: start it, send requests, read its messages, and end it in any case."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from debiasbench.about import with_package

COMMAND = [sys.executable, "-m", "debiasbench.running.worker"]
GRACE = 10.0  # seconds for a worker to write a checkpoint, or to exit when nothing is left to do


class WorkerProcess:
    """A worker process, which answers requests with messages, each one line of JSON."""

    waits = is_lost = False  # see `supervision.Process`: it starts at once, on this machine

    def __init__(self, settings: Mapping[str, Any], variables: Mapping[str, str] | None = None) -> None:
        """Start the process. `variables`: environment variables that are added to, or replace, those of this process.

        Raises:
            OSError: the process could not be started.
        """
        environment = {**os.environ, **(variables or {})}
        environment["PYTHONPATH"] = with_package(environment.get("PYTHONPATH", ""))
        environment["PYTHONSAFEPATH"] = environment["PYTHONUTF8"] = "1"
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(settings["threads"])
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
            env=environment,
            start_new_session=True,  # the parent handles Ctrl-C
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._was_killed = False
        # in its own thread, because a child of the worker may keep the pipe open long after the worker has ended
        threading.Thread(target=self._listen, daemon=True).start()
        self.send(settings)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def send(self, request: Mapping[str, Any]) -> None:
        """Send a request; if the process has ended, nothing happens."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def next_message(self, timeout: float) -> dict[str, Any] | None:
        """The next message; None if none came within `timeout` seconds, or no more can come."""
        try:
            line = self._lines.get(timeout=timeout)
            message = json.loads(line) if line else None
        except (queue.Empty, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def ask_to_stop(self) -> None:
        """Ask it to end at the next step, with a checkpoint, by closing its input."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()

    def kill(self) -> None:
        """Kill it now, with all processes that it has started."""
        self._was_killed = self._was_killed or not self.is_over
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()

    def end(self, grace: float | None = None) -> None:
        """Close its input, so that it exits by itself; kill it if it does not within `grace` seconds (`GRACE`)."""
        self.ask_to_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE if grace is None else grace)
        self.kill()  # also processes that it has left behind
        self._process.wait()

    @property
    def was_killed_by_others(self) -> bool:
        """Whether it was killed, and not by this process: usually because memory ran out."""
        return not self._was_killed and self._process.wait() == -9  # SIGKILL, which has no name on Windows

    def cause_of_death(self) -> str:
        """How it ended, in words."""
        code = self._process.wait()
        cause = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        return cause + (" (killed from outside, perhaps because memory ran out)" if self.was_killed_by_others else "")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, OSError), self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)
