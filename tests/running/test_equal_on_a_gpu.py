"""Equal seeds, equal results: how torch is told to compute while a cell runs, on a pretended GPU and on a CPU."""

import contextlib
import os
import warnings

import pytest
import torch
from pretended_device import PretendedDevice

from debiasbench.cell import Cell
from debiasbench.grid import expand
from debiasbench.losses import mean_cross_entropy
from debiasbench.methods import Method
from debiasbench.recipe import Recipe
from debiasbench.records import read_record
from debiasbench.running import runner as runner_module
from debiasbench.running.runner import Runner, settled, undetermined_operations
from debiasbench.testing import Tiny

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def flags():
    """How torch computes."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "refusing": not torch.is_deterministic_algorithms_warn_only_enabled(),
        "filling": torch.utils.deterministic.fill_uninitialized_memory,
        "matmul": torch.backends.cuda.matmul.allow_tf32,
        "cudnn": torch.backends.cudnn.allow_tf32,
        "cudnn deterministic": torch.backends.cudnn.deterministic,
        "cudnn tries": torch.backends.cudnn.benchmark,
        "workspace": os.environ.get(WORKSPACE),
        "telling": torch.is_warn_always_enabled(),
    }


STRICT = {"matmul": False, "cudnn": False, "cudnn deterministic": True, "cudnn tries": False}
ON_A_GPU = STRICT | {
    "deterministic": True, "refusing": False, "filling": False, "workspace": ":4096:8", "telling": True,
}  # fmt: skip


@pytest.fixture
def current(monkeypatch):
    """Which device is the current one, as it is made and put back, on a machine that has none."""
    seen = []

    @contextlib.contextmanager
    def device(name):
        seen.append(name)
        yield
        seen.append("before")

    monkeypatch.setattr(torch.cuda, "device", device)
    return seen


@pytest.fixture
def others_settings(monkeypatch, current):
    """A process, such as a notebook, whose user wants it fast, and leaves it as it is found."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    with settled(None, "cpu"):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.deterministic = False
        yield flags()


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_a_gpu_computes_alike_each_time(others_settings, current, device):
    with settled(None, device):
        assert flags() == ON_A_GPU
        assert current == [device]  # for what says "cuda" alone
    assert flags() == others_settings
    assert current == [device, "before"]


def test_a_cpu_computes_as_it_did(others_settings, current):
    """Deterministic forms of operations are for a GPU: on a CPU all are, and numbers stay what they were."""
    with settled(1, "cpu"):
        assert not current
        assert flags() == others_settings | STRICT
        assert torch.get_num_threads() == 1
    assert flags() == others_settings


def test_an_own_workspace_stays(others_settings, monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with settled(None, "cuda"):
        assert flags()["workspace"] == ":16:8"


def test_what_fails_leaves_no_trace(others_settings):
    def fails():
        with settled(None, "cuda"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert flags() == others_settings


# ---- within a cell --------------------------------------------------------------------------------------------------


SEEN = {}  # part of a cell -> flags


class Noting(Method):
    """Notes how torch computes in each part of a cell; an operation without deterministic form, if it is asked to."""

    name = "noting"
    undetermined: bool = False

    def fit(self, task):
        net = task.new_net()
        net.head.weight.register_hook(lambda _: self.note("backward"))
        task.train(net, self.loss, predict=self.predict)
        task.each(lambda _, y: (self.note("each"), y)[1])
        loop = task.batches(epochs=1)
        for _ in loop:
            self.note("loop")
        task.evaluate(self.predict, {"net": net})
        self.note("fit")
        return self.predict

    def note(self, part):
        SEEN.setdefault(part, flags())

    def loss(self, nets, batch, state):
        self.note("loss")
        if self.undetermined:
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
        return mean_cross_entropy(nets, batch, state)

    def predict(self, nets, x):
        self.note("evaluation")
        return nets.net(x)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A cell of `Noting` by a runner -> its record, and how torch computed."""
    monkeypatch.setattr(Cell, "build_dataset", lambda _: Tiny())

    def run(device, *, precision="fp32", seed=0, **parameters):
        monkeypatch.setattr(Cell, "build_method", lambda _: Noting(**parameters))
        spec = f"cmnist5k:net=mlp,epochs=1,augment=false,precision={precision}"
        (cell,) = expand(["vanilla"], [spec], seeds=[seed]).cells
        SEEN.clear()
        record = read_record(Runner(tmp_path, tmp_path, device=device).run(cell))
        assert record.done, record.failure.traceback
        return record, dict(SEEN)

    return run


def test_every_part_of_a_cell_on_a_gpu_computes_alike(run, others_settings):
    with PretendedDevice():
        record, seen = run("cuda")
    assert set(seen) == {"loss", "backward", "evaluation", "each", "loop", "fit"}
    assert all(found == ON_A_GPU for found in seen.values()), seen
    assert flags() == others_settings
    assert record.provenance.precision == "fp32"
    assert record.provenance.undetermined == ()


def test_a_cell_on_a_cpu_is_not_made_slower(run, others_settings):
    record, seen = run("cpu")
    assert all(found == others_settings | STRICT for found in seen.values()), seen
    assert flags() == others_settings
    assert record.provenance.undetermined is None


def test_tf32_is_of_networks_that_train_and_predict(run, others_settings):
    """Scores are of full precision whatever the recipe, as they are under bf16."""
    with PretendedDevice():
        record, seen = run("cuda", precision="tf32")
    tf32 = ON_A_GPU | {"matmul": True, "cudnn": True}
    rounded = {part for part, found in seen.items() if found == tf32}
    assert rounded == {"loss", "backward", "evaluation", "loop"}
    assert all(seen[part] == ON_A_GPU for part in ("each", "fit"))
    assert flags() == others_settings
    assert record.provenance.precision == record.precision == "tf32"


def test_tf32_is_nothing_to_a_cpu(run, others_settings):
    record, seen = run("cpu", precision="tf32")
    assert all(found == others_settings | STRICT for found in seen.values()), seen
    assert record.precision == "fp32"
    assert record.result == run("cpu")[0].result


@pytest.mark.parametrize(
    ("precision", "kind", "effective"),
    [
        ("tf32", "cuda", "tf32"), ("tf32", "cpu", "fp32"), ("auto", "cuda", "bf16"), ("auto", "cpu", "fp32"),
        ("bf16", "cpu", "bf16"), ("fp32", "cuda", "fp32"),
    ],
)  # fmt: skip
def test_effective_precision(precision, kind, effective):
    assert Recipe(precision=precision).effective_precision(kind) == effective


# ---- what no option of torch determines -----------------------------------------------------------------------------


def test_a_record_says_what_is_undetermined(run):
    """In each cell of a process, also where torch has warned before."""
    with PretendedDevice():
        records = [run("cuda", seed=seed, undetermined=seed != 1)[0] for seed in range(3)]
    assert [record.provenance.undetermined for record in records] == [("put_",), (), ("put_",)]
    assert run("cpu", undetermined=True)[0].provenance.undetermined is None


def test_a_cell_that_was_interrupted_is_exact_where_all_is_determined():
    places = ["after 3 calls"]
    assert runner_module._told_of(places, exact=True) == places
    assert "may round differently" in runner_module._told_of(places, exact=False)[0]


MESSAGES = {
    "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use": "cumsum_cuda_kernel",
    "Flash Attention defaults to a non-deterministic algorithm. To explicitly enable": "Flash Attention",
    "Memory Efficient attention defaults to a non-deterministic algorithm. To": "Memory Efficient attention",
    "cuDNN Attention defaults to a non-deterministic algorithm. To explicitly": "cuDNN Attention",
}


def test_what_torch_warns_of_is_noted_and_other_warnings_are_shown():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with undetermined_operations() as found:
            for _ in range(2):
                for message in MESSAGES:
                    warnings.warn(message, stacklevel=1)
            warnings.warn("something else is not deterministic", stacklevel=1)
        warnings.warn(next(iter(MESSAGES)), stacklevel=1)
    assert found == set(MESSAGES.values())
    assert [str(one.message) for one in shown] == ["something else is not deterministic", next(iter(MESSAGES))]
