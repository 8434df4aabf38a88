"""A worker process: `python -m debiasbench.running.worker` reads cells as JSON lines and answers with events.

It receives plain values, never live objects, and never imports the caller's main module. The output of a cell goes to
its log, and its standard input is empty. If the caller has ended, or a signal asks the worker to stop, the running cell
ends at its next step, with a checkpoint.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debiasbench.running.process import GRACE

if TYPE_CHECKING:
    from debiasbench.training.journal import Curve


def main() -> None:
    """Run cells until the input ends. Its first line holds the settings."""
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    requests = os.fdopen(os.dup(0), encoding="utf-8", errors="backslashreplace")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a method that reads its input must not read our requests
    os.dup2(2, 1)  # output of a method must not mix with the events
    settle_streams()

    process = os.getpid()

    def send(**event: Any) -> None:
        if os.getpid() != process:
            os._exit(0)  # a copy of this process that a cell forked and let return: it must send nothing
        try:
            out.write(json.dumps(event) + "\n")
        except OSError:  # the caller has ended (then the requests end as well, see _read), or a cell closed the pipe
            if event["event"] != "epoch":  # within training, a cell goes on to a checkpoint or its record
                _alone.set()
                _leave(1)

    settings = json.loads(requests.readline())
    from debiasbench.running.nodes import other_code, other_versions

    refusal = other_versions(settings.get("versions"))
    if refusal:
        send(event="refused", message=refusal)
        _leave(1)
    from debiasbench.cell import Cell
    from debiasbench.files import not_written
    from debiasbench.running.runner import Runner
    from debiasbench.training.journal import StoppedError

    runner = Runner(
        data_dir=Path(settings["data_dir"]),
        results_dir=Path(settings["results_dir"]),
        device=settings["device"],
        save_weights=settings["save_weights"],
        reuse=settings["reuse"],
        resume=settings["resume"],
        checkpoint_every=settings["checkpoint_every"],
        threads=settings["threads"],
        memory_fraction=settings["memory_fraction"],
        executor=settings["executor"],
    )
    for ending in ("SIGTERM", "SIGINT", "SIGHUP"):
        number = getattr(signal, ending, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # ignored, as under nohup
            signal.signal(number, lambda *_: runner.stop())
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, lines, runner.stop), daemon=True).start()

    def told(stage: str, epoch: int, epochs: int, curve: Curve) -> None:
        send(event="epoch", cell=cell.hash, stage=stage, epoch=epoch, epochs=epochs, curve=list(curve))

    send(event="ready")
    while not runner.stopping and (line := lines.get()) is not None:
        request = json.loads(line)
        cell = replace(Cell.from_json(request["cell"]), root=request["root"])
        try:
            refusal = other_code(cell, request.get("code"))
            if refusal:
                send(event="refused", message=refusal)
                break
            log = Path(request["log"])
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as file, _output_to(file):
                path = runner.run(cell, told)
        except StoppedError:
            send(event="stopped", cell=cell.hash)
            break
        except KeyboardInterrupt:  # raised by the cell itself, since the signal has a handler here
            end = {"event": "lost", "message": "The cell raised KeyboardInterrupt."}
        except OSError as error:  # the log or the record itself could not be written
            end = {"event": "lost", "message": str(not_written(error, "The record", "--results-dir"))}
        else:
            end = {"event": "finished", "path": str(path)}
        send(**end, cell=cell.hash, leaves=bool(runner.changed))
        if runner.changed:  # the state was put back, but to be safe the next cell gets a new process
            break
    sys.stdout.flush()
    sys.stderr.flush()
    _leave(0)


def _read(requests: Any, lines: queue.SimpleQueue[str | None], stop: Callable[[], None]) -> None:
    """Pass requests on. When they end, the worker ends: at once if idle, else with a checkpoint or after `GRACE`."""
    with contextlib.suppress(OSError, ValueError):
        for line in requests:
            lines.put(line)
    _alone.set()
    lines.put(None)
    stop()
    time.sleep(GRACE)
    _leave(1)


_alone = threading.Event()  # the caller has ended, wants nothing more (the input has ended), or cannot be reached


def _leave(code: int) -> None:
    """End now, without waiting for threads that a cell left running; its processes do not outlive the run."""
    if os.name == "posix" and _alone.is_set():
        os.killpg(0, signal.SIGKILL)
    os._exit(code)


def settle_streams() -> None:
    """Use UTF-8 whatever the locale; what cannot be encoded (a lone surrogate, for example) is printed as its code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def _output_to(file: Any) -> Iterator[None]:
    """Redirect file descriptors 1 and 2 to `file` within this context."""
    kept = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for descriptor in kept:
            os.close(descriptor)


if __name__ == "__main__":
    main()
