"""Train cells on a Ray cluster: each cell is a Ray task, in which a worker process trains it.

Ray finds a machine with a free core or share of a GPU. Plug-ins and the local modules that they import are sent along.
A cell whose machine is lost goes on elsewhere, from its checkpoint on shared storage.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from debiasbench.about import with_package
from debiasbench.cell import Cell
from debiasbench.code import PLUGINS, files_of_modules, files_of_plugin
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.own import own_functions
from debiasbench.nets.own import own_net
from debiasbench.plugins import is_shipped
from debiasbench.running.executor import Settings
from debiasbench.running.nodes import other_versions, shared_folders, unreachable, versions
from debiasbench.running.process import GRACE, WorkerProcess
from debiasbench.running.supervision import Supervisor, for_worker

ANSWER = 10.0  # seconds for a head node to accept a connection
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # gRPC servers answer it
PROBE = 60.0  # seconds for a node to answer whether it can take part
SENT = ("DEBIASBENCH_CACHE",)  # environment variables that are passed on to workers elsewhere
OVER = ("finished", "lost", "refused", "stopped", "died")  # the last message of a task is one of these


class RayExecutor(Supervisor):
    """Trains cells as Ray tasks. Without an address: on this machine's cluster, or on one started for this run."""

    name = "ray"

    def __init__(self, address: str, device: str, workers: int | None, per_device: int = 1) -> None:
        """Connect to the cluster.

        Args:
            address: HOST:PORT of the head node; "" for any cluster here.
            device: "auto" (GPUs if the cluster has any), "cpu" or "cuda".
            workers: cells at a time; None: the present number of the cluster's cores or shares of GPUs.
            per_device: cells that share a GPU.

        Raises:
            BenchmarkError: Ray is not installed, there is no cluster at the address, or it has no such device.
        """
        if importlib.util.find_spec("ray") is None:
            raise BenchmarkError(
                "--executor ray needs the package ray, which is not installed: pip install 'debiasbench[ray]'."
            )
        _connect(address)
        import ray

        resources = ray.cluster_resources()
        n_cpus, n_gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not n_gpus):
            raise BenchmarkError(
                f"--device {device}: the cluster has {n_cpus} cores and {n_gpus} GPUs. Allowed: auto, cpu, cuda (Ray "
                "chooses which)."
            )
        kind = "cuda" if n_gpus and device != "cpu" else "cpu"
        if per_device < 1 or (kind == "cpu" and per_device > 1):
            raise BenchmarkError(f"--per-device must be at least 1, and 1 without GPUs. Got {per_device}.")
        self.per_device = per_device
        self.devices = (kind,) * (workers or (n_gpus * per_device if kind == "cuda" else n_cpus) or 1)

    def check(self, cells: Sequence[Cell], settings: Settings) -> None:
        """Ask every node for its versions and for the folders of the run."""
        self._sent = plugin_files(cells)
        mark = settings.results_dir / f".seen-{secrets.token_hex(8)}"
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        try:
            refusals = _probe(shared_folders(cells, settings.data_dir, settings.results_dir), mark)
        finally:
            mark.unlink(missing_ok=True)
        if refusals:
            raise BenchmarkError("\n".join(dict.fromkeys(refusals)))

    def start(self, number: int) -> RayTask:
        """A task that trains one cell."""
        device = "cuda:0" if self.devices[number] == "cuda" else "cpu"
        settings = self.process_settings(device, share=self.per_device) | {"versions": versions()}
        variables = {name: os.environ[name] for name in SENT if name in os.environ}
        return RayTask(settings, self._sent, variables, gpus=1 / self.per_device if device != "cpu" else 0)

    def request(self, cell: Cell) -> dict[str, Any]:
        """The request with the digests of the cell's code, which must equal those on the machine that trains it."""
        return super().request(cell) | {"code": cell.code()}


class RayTask:
    """One cell as a Ray task, in the form that a supervisor needs; the task is submitted with the cell."""

    def __init__(
        self, settings: Mapping[str, Any], files: Mapping[str, bytes], variables: Mapping[str, str], gpus: float
    ) -> None:
        """`files`: source files to send along, see `plugin_files`."""
        self._given, self._gpus = (settings, files, variables), gpus
        self._messages: Any = None  # Ray's generator
        self._coming: Any = None  # its next message; for a cancelled task, available once the task has ended
        self._cause = ""
        self.waits, self.is_over, self.is_lost, self.was_killed_by_others = True, False, False, False

    def send(self, request: Mapping[str, Any]) -> None:
        """Submit the task."""
        import ray

        task = ray.remote(train).options(
            num_cpus=1, num_gpus=self._gpus, num_returns="streaming", max_retries=0, name="debiasbench",
            runtime_env=_environment(),
        )  # fmt: skip
        self._messages, self._coming, self.waits = task.remote(*self._given, request), None, True

    def next_message(self, timeout: float) -> dict[str, Any] | None:
        """The next message of the worker process."""
        import ray

        if self.is_over:
            return None
        try:
            if self._coming is None:
                ready, _ = ray.wait([self._messages], timeout=timeout)
                if not ready:
                    return None
                self._coming = next(self._messages)
            message: dict[str, Any] = ray.get(self._coming, timeout=timeout)
            self._coming = None
        except StopIteration:
            self.is_over = True
            return None
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayError as error:
            self.is_over, self._cause = True, _said(error)
            self.is_lost = isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.NodeDiedError)
            self.was_killed_by_others = isinstance(error, ray.exceptions.OutOfMemoryError)
            return None
        self.waits = False
        if message["event"] in ("finished", "lost"):
            message["leaves"] = True
        elif message["event"] == "died":
            self.is_over, self._cause = True, message["cause"]
            self.was_killed_by_others = message["was_killed"]
        return None if message["event"] in ("died", "silent") else message

    def ask_to_stop(self) -> None:
        """Make Ray interrupt the task, which ends its worker."""
        self._cancel(force=False)

    def kill(self) -> None:
        """Make Ray kill the process of the task; its worker then exits by itself."""
        self._cancel(force=True)

    def end(self) -> None:
        """Interrupt the task, and kill it if it takes too long to end."""
        if self._messages is None or self.is_over:
            return
        self.ask_to_stop()
        deadline = time.monotonic() + GRACE
        while not self.is_over and time.monotonic() < deadline:
            self.next_message(1.0)
        self.kill()

    def cause_of_death(self) -> str:
        """The cause that Ray reports, or that of the worker."""
        return self._cause or "its task has ended"

    def _cancel(self, *, force: bool) -> None:
        import ray

        if self._messages is not None and not self.is_over:
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                ray.cancel(self._messages, force=force)


def train(
    settings: Mapping[str, Any], files: Mapping[str, bytes], variables: Mapping[str, str], request: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """In a Ray task: train one cell in a worker process and yield its messages, or "silent" if there is none.

    Ray interrupts a generator only when it yields.
    """
    folder = Path(tempfile.mkdtemp(prefix="debiasbench-"))
    process = None
    try:
        process = WorkerProcess(settings, {**variables, **unpacked(files, folder)})
        process.send(request)
        while True:
            is_over = process.is_over
            message = process.next_message(1.0)
            if message is not None:
                yield message
                if message["event"] in OVER:
                    return
            elif is_over:
                cause = f"{process.cause_of_death()}, on {socket.gethostname()}"
                yield {"event": "died", "cause": cause, "was_killed": process.was_killed_by_others}
                return
            else:
                yield {"event": "silent"}
    finally:  # also if Ray interrupts the task
        if process is not None:
            process.end()
        shutil.rmtree(folder, ignore_errors=True)


def plugin_files(cells: Sequence[Cell]) -> dict[str, bytes]:
    """The source files of the cells' plug-ins outside the suite, and of the local modules that they import.

    Plug-ins include networks, metrics and rules.

    Returns:
        "methods/mine.py", "modules/helpers/__init__.py" -> content.
    """
    classes: set[type[Any]] = {type(one) for cell in cells for one in (cell.build_method(), cell.build_dataset())}
    classes |= {net for cell in cells if (net := own_net(cell.recipe["net"])) is not None}
    functions = [one for kind in ("metric", "rule") for one in own_functions(kind).values()]
    files = files_of_modules(one.__module__ for one in functions)
    for cls in classes:
        if not is_shipped(cls):
            files |= files_of_plugin(cls)
    found: dict[str, bytes] = {}
    for module, file in files.items():
        within = module.removeprefix("debiasbench.") if module.startswith(PLUGINS) else f"modules.{module}"
        place = within.replace(".", "/")
        found[f"{place}/__init__.py" if file.name == "__init__.py" else f"{place}.py"] = file.read_bytes()
    return found


def unpacked(files: Mapping[str, bytes], folder: Path) -> dict[str, str]:
    """Write the files that were sent along; returns environment variables with which a worker finds them."""
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    places = {
        "DEBIASBENCH_METHODS_PATH": folder / "methods", "DEBIASBENCH_DATASETS_PATH": folder / "datasets",
        "DEBIASBENCH_NETS_PATH": folder / "nets" / "own", "PYTHONPATH": folder / "modules",
    }  # fmt: skip
    before = os.environ.get("PYTHONPATH", "")
    variables = {name: str(place) if place.is_dir() else "" for name, place in places.items()}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [variables["PYTHONPATH"], before]))
    return variables


def _environment() -> dict[str, Any]:
    """Lets tasks find the suite at the path that it has here, if it is there: a clone need not be installed."""
    return {"env_vars": {"PYTHONPATH": with_package("${PYTHONPATH}")}}


def can_take_part(expected: Mapping[str, str], folders: Sequence[str], mark: str) -> str:
    """On a node: why it cannot take part; "" if it can."""
    return other_versions(expected) or unreachable(map(Path, folders), Path(mark))


def _connect(address: str) -> None:
    """Connect to a cluster as its driver.

    Raises:
        BenchmarkError: there is no such cluster.
    """
    import ray

    if address:
        _check_address(address)
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if address and address != there:
            raise BenchmarkError(f"This process is connected to Ray at {there} already, and was asked for {address}.")
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _own_signals():
        try:
            ray.init(address=address or None, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
            raise _no_cluster(address or "this machine", _said(error)) from None


def _check_address(address: str) -> None:
    """Refuse an address that is not HOST:PORT or does not answer: Ray would try for minutes.

    Raises:
        BenchmarkError: the address is refused; it says why.
    """
    if "://" in address:
        raise BenchmarkError(
            f"--executor ray:{address} is a client's address. Run this on a machine of the cluster, with the HOST:PORT "
            "of its head node (as `ray start` printed), or without an address."
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise BenchmarkError(f"--executor ray:HOST:PORT needs both, such as ray:10.0.0.1:6379. Got ray:{address}.")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER) as asked:
            asked.sendall(GREETING)
            if not asked.recv(1):
                raise ConnectionError("what listens there is not Ray")
    except TimeoutError:
        raise _no_cluster(address, f"no answer within {ANSWER:.0f} s") from None
    except OSError as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(place: str, why: str) -> BenchmarkError:
    return BenchmarkError(
        f"There is no Ray cluster at {place} ({why}). Start one: ray start --head; its answer has the address."
    )


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Restore the signal handlers of this process after a library may have changed them."""
    numbers = [number for name in ("SIGTERM", "SIGINT", "SIGHUP") if (number := getattr(signal, name, None))]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _probe(folders: Sequence[Path], mark: Path) -> list[str]:
    """Why nodes of the cluster cannot take part, one line for each such node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(can_take_part).options(
                num_cpus=0, scheduling_strategy=there, max_retries=0, runtime_env=_environment()
            )  # fmt: skip
            asked[node["NodeManagerHostname"], node["NodeID"]] = task.remote(
                versions(), [for_worker(one) for one in folders], for_worker(mark)
            )
    refusals = []
    deadline = time.monotonic() + PROBE
    for (host, _), answer in asked.items():
        try:
            refusals.append(ray.get(answer, timeout=max(0.1, deadline - time.monotonic())))
        except ray.exceptions.GetTimeoutError:
            refusals.append(f"{host} cannot take part: it does not answer within {PROBE:.0f} s.")
        except ray.exceptions.RayError as error:
            refusals.append(f"{host} cannot take part: {_said(error)}")
    return [one for one in refusals if one]


def _said(error: Exception) -> str:
    """The last line of a Ray error, whose message may be a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
