"""Cells on a Ray cluster, whose nodes are processes of this machine: equal results, whatever becomes of a node."""

import socket
import sys

import pytest

from debiasbench.errors import BenchmarkError
from debiasbench.experiments import Experiment
from debiasbench.grid import expand
from debiasbench.records import find_record, read_record
from debiasbench.running import nodes, ray_cluster
from debiasbench.running.executor import kind_of
from debiasbench.running.run import RunOptions, plan_grid, run_grid

pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)

METHOD = """
import time
from debiasbench.methods import Method
from beside.losses import loss
from debiasbench.methods.packed_parts.deep.more import TIMES

class Packed(Method):
    name = "packed"
    hangs: bool = False
    def fit(self, task):
        while self.hangs:
            time.sleep(1.0)
        net = task.new_net()
        task.train(net, loss, predict=net)
        return net
"""
DATASET = """
from debiasbench.testing import Tiny

class Far(Tiny):
    name = "far"
"""
HELPER = "from debiasbench.losses import mean_cross_entropy as loss\n"
MEMORY = 80_000_000  # bytes that a node has for objects


@pytest.fixture(scope="module")
def cluster():
    """A head without cores, and a node with one; neither knows of plug-ins."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        started = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY},
        )
        started.first = started.add_node(num_cpus=1, object_store_memory=MEMORY)
        yield started
        import ray

        ray.shutdown()
        started.shutdown()


@pytest.fixture(scope="module", autouse=True)
def plugins(tmp_path_factory):
    """A method with a module beside it, and a dataset, known to this process alone."""
    folder = tmp_path_factory.mktemp("plugins")
    for place, text in (
        ("methods/packed.py", METHOD),
        ("datasets/far.py", DATASET),
        ("methods/packed_parts/__init__.py", ""),
        ("methods/packed_parts/deep/__init__.py", "from .values import *\n"),
        ("methods/packed_parts/deep/values.py", "TIMES = 1\n"),
        ("methods/packed_parts/deep/more.py", "from . import TIMES\n"),
        ("modules/beside/__init__.py", ""),
        ("modules/beside/losses.py", HELPER),
    ):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        for kind in ("methods", "datasets"):
            package = sys.modules[f"debiasbench.{kind}"]
            patched.setattr(package, "__path__", [*package.__path__, str(folder / kind)])
            patched.setattr(package.registry, "_scanned", None)
            patched.setenv(f"DEBIASBENCH_{kind.upper()}_PATH", str(folder / kind))
        patched.syspath_prepend(str(folder / "modules"))
        yield
    for kind in ("methods", "datasets"):
        sys.modules[f"debiasbench.{kind}"].registry._scanned = None  # the names of these are known no more
    for name in list(sys.modules):
        if name.startswith(("debiasbench.methods.packed", "debiasbench.datasets.far", "beside")):
            del sys.modules[name]


def ready(results, *methods, steps=4, **options):
    asked = Experiment("", list(methods), [f"far:steps={steps}"], seeds=1)
    return plan_grid(asked, RunOptions(results, results, **{"device": "cpu", **options}))


def records_of(grid):
    found = [read_record(find_record(grid.options.results_dir, cell)) for cell in grid.plan.grid.cells]
    return {record.cell.method_title: record for record in found}


def run(results, *methods, handle=lambda _: None, **options):
    grid = ready(results, *methods, **options)
    run_grid(grid, handle)
    return records_of(grid)


@pytest.mark.slow
def test_results_are_those_of_this_machine_and_plug_ins_go_along(tmp_path, cluster):
    here = run(tmp_path / "here", "packed", "pgd", workers=0)
    there = run(tmp_path / "there", "packed", "pgd", executor=f"ray:{cluster.address}")
    assert {title: record.result for title, record in there.items()} == {
        title: record.result for title, record in here.items()
    }
    assert {(record.provenance.executor, bool(record.provenance.host)) for record in there.values()} == {("ray", True)}


@pytest.mark.slow
def test_a_cell_whose_node_dies_goes_on_elsewhere(tmp_path, cluster):
    told = []

    def handle(event):
        told.append(event)
        if event.kind == "epoch" and event.epoch == 4 and cluster.first is not None:
            second = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
            cluster.remove_node(cluster.first, allow_graceful=False)
            cluster.first = None
            cluster.second = second

    settings = {"steps": 160, "checkpoint_every": 0.02}
    record = run(tmp_path / "there", "packed", executor=f"ray:{cluster.address}", handle=handle, **settings)["packed"]
    assert any("It goes on elsewhere" in event.message for event in told if event.kind == "note")
    assert record.provenance.resumed
    assert record.result == run(tmp_path / "here", "packed", workers=0, **settings)["packed"].result


@pytest.mark.slow
def test_a_run_that_is_stopped_leaves_a_checkpoint_for_any_executor(tmp_path, cluster):
    def stop(event):
        if event.kind == "epoch" and event.epoch == 3:
            raise KeyboardInterrupt

    settings = {"steps": 160, "checkpoint_every": 3600.0}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "there", "packed", executor=f"ray:{cluster.address}", handle=stop, **settings)
    assert list((tmp_path / "there" / "running").rglob("journal.json"))
    assert not list((tmp_path / "there" / "running").rglob("*.claim"))
    record = run(tmp_path / "there", "packed", workers=0, **settings)["packed"]
    assert record.provenance.resumed
    assert record.result == run(tmp_path / "here", "packed", workers=0, **settings)["packed"].result


@pytest.mark.slow
def test_a_cell_that_hangs_is_ended(tmp_path, cluster):
    records = run(tmp_path, "packed:hangs=true", "packed", cell_timeout=20.0, executor=f"ray:{cluster.address}")
    assert records["packed:hangs=true"].failure.type == "TimedOut"
    assert records["packed"].done


def test_a_task_says_something_while_its_worker_is_silent(monkeypatch):
    """Else Ray could not interrupt it."""

    class Silent:
        said = iter([{"event": "ready"}, None, None, {"event": "finished", "path": "x"}])
        is_over = False

        def __init__(self, *_):
            pass

        def send(self, _):
            pass

        def next_message(self, timeout):
            return next(self.said)

        def end(self):
            pass

    monkeypatch.setattr(ray_cluster, "WorkerProcess", Silent)
    events = [message["event"] for message in ray_cluster.train({}, {}, {}, {})]
    assert events == ["ready", "silent", "silent", "finished"]


def test_what_a_plug_in_is_made_of_goes_along_with_the_packages_that_it_is_in(tmp_path):
    (cell,) = expand(["packed"], ["far:steps=4"], seeds=1, data_seeds=None, epochs=None, shared_recipes=False).cells
    files = ray_cluster.plugin_files([cell])
    parts = ("__init__", "deep/__init__", "deep/more", "deep/values")
    assert files.keys() == {
        "datasets/far.py", "methods/packed.py", "modules/beside/__init__.py", "modules/beside/losses.py",
        *(f"methods/packed_parts/{name}.py" for name in parts),
    }  # fmt: skip
    variables = ray_cluster.unpacked(files, tmp_path)
    assert variables["DEBIASBENCH_METHODS_PATH"] == str(tmp_path / "methods")
    assert (tmp_path / "methods" / "packed_parts" / "deep" / "more.py").read_bytes() == b"from . import TIMES\n"


@pytest.mark.slow
def test_nodes_that_cannot_take_part_are_told_before_anything_trains(tmp_path, cluster, monkeypatch):
    other = {**nodes.versions(), "torch": "1.0"}
    monkeypatch.setattr(ray_cluster, "versions", lambda: other)
    with pytest.raises(BenchmarkError, match=r"^\S+ has torch \S+ \(the run has 1\.0\)\. Install equal versions"):
        ready(tmp_path, "packed", executor=f"ray:{cluster.address}")
    for options, said in (
        ({"device": "cuda"}, r"^--device cuda: the cluster has \d cores and 0 GPUs\."),
        ({"per_device": 2}, r"^--per-device must be at least 1, and 1 without GPUs\. Got 2"),
        ({"workers": 0}, r"^--workers must be at least 1 with --executor ray"),
    ):
        with pytest.raises(BenchmarkError, match=said):
            ready(tmp_path, "packed", executor=f"ray:{cluster.address}", **options)


def test_an_address_that_is_none_of_a_cluster_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(BenchmarkError, match="no answer within"):
        ready(tmp_path, "packed", executor=f"ray:127.0.0.1:{silent.getsockname()[1]}")
    for address, said in (
        ("127.0.0.1:1", r"^There is no Ray cluster at 127\.0\.0\.1:1 \("),
        ("nowhere.invalid:6379", r"^There is no Ray cluster at nowhere\.invalid:6379 \("),
        ("10.0.0.1", r"^--executor ray:HOST:PORT needs both"),
        ("10.0.0.1:65536", r"^--executor ray:HOST:PORT needs both"),
        ("ray://127.0.0.1:10001", r"is a client's address"),
    ):
        with pytest.raises(BenchmarkError, match=said) as caught:
            ready(tmp_path, "packed", executor=f"ray:{address}")
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BenchmarkError, match=r"pip install 'debiasbench\[ray\]'"):
        ready(tmp_path, "packed", executor="ray")


@pytest.mark.parametrize("name", ["rey", "local:4", "ray:", "slurm:gpu", "", "Ray"])
def test_an_executor_that_is_none_is_refused(name):
    with pytest.raises(BenchmarkError, match=r"^Unknown executor '.*'.*Allowed: local, ray, ray:HOST:PORT, slurm\."):
        kind_of(name)


def test_a_machine_that_sees_other_folders_cannot_take_part(tmp_path):
    mark = tmp_path / "mark"
    mark.touch()
    assert nodes.unreachable([tmp_path], mark) == ""
    assert f"does not see {tmp_path / 'data'}: results" in nodes.unreachable([tmp_path, tmp_path / "data"], mark)
    mark.unlink()  # a folder of the same name, on a disk of its own
    assert f"does not see {tmp_path} as the run does" in nodes.unreachable([tmp_path], mark)
