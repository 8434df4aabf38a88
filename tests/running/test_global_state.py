"""What a method does to its data or to its process never reaches the next cell."""

import dataclasses
import importlib
import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from debiasbench.errors import BenchmarkError
from debiasbench.running.global_state import GlobalState, Watch, handed
from debiasbench.samples import Splits
from debiasbench.testing import Tiny


@pytest.fixture
def built(tmp_path):
    return Tiny().build(tmp_path)


def test_labels_are_copies_and_images_are_not(built):
    copies = handed(built)
    assert copies.fingerprint() == built.fingerprint()
    for name, part in built.named().items():
        other = copies.named()[name]
        assert other.x is part.x
        assert other.y is not part.y
        assert torch.equal(other.y, part.y)
        assert torch.equal(other.bias, part.bias)
    copies.train.y[:] = 0
    assert bool((built.train.y != 0).any())


def test_a_validation_split_that_is_the_test_split_stays_it(built):
    copies = handed(Splits(built.train, built.test, built.test))
    assert copies.valid is copies.test


WRITES = {
    "y": lambda splits: splits.train.y.__setitem__(slice(0, 3), 1),
    "bias": lambda splits: splits.train.bias.fill_(0),
    "x": lambda splits: splits.train.x[0].zero_(),
    "x through numpy": lambda splits: splits.train.x.numpy().__setitem__(
        (0, 0, 14, 14), 255 - int(splits.train.x[0, 0, 14, 14])
    ),
    "y through numpy": lambda splits: splits.train.y.numpy().__setitem__(0, 3 - int(splits.train.y[0])),
    "x of test": lambda splits: splits.test.x.add_(1),
    "y of valid": lambda splits: splits.valid.y.neg_(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_writing_into_handed_tensors_is_told_by_name(built, write):
    watch = Watch(built)
    watch.check("mine")
    write(built)
    with pytest.raises(BenchmarkError, match=r"mine changes what it was given \(.* of (train|valid|test)\)"):
        watch.check("mine")


def test_reading_is_no_writing(built):
    watch = Watch(built)
    _ = built.train.y.clone().fill_(0), built.train.x.float().mul_(2), built.train.y.numpy().sum()
    watch.check("mine")


CHANGES = {
    "torch's default dtype": lambda _: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda _: torch.set_default_device("meta"),
    "grad mode": lambda _: torch.set_grad_enabled(False),
    "anomaly mode": lambda _: torch.autograd.set_detect_anomaly(True),
    "deterministic algorithms": lambda _: torch.use_deterministic_algorithms(True),
    "float32 matmul precision": lambda _: torch.set_float32_matmul_precision("medium"),
    "the mkldnn flag": lambda _: torch.backends.mkldnn.set_flags(_enabled=False),
    "the cudnn flags": lambda _: torch.backends.cudnn.set_flags(_benchmark=True),
    "autocast": lambda _: torch.set_autocast_enabled("cpu", True),
    "hooks of all modules or optimizers": lambda _: torch.nn.modules.module.register_module_forward_hook(print),
    "the number of threads": lambda _: torch.set_num_threads(torch.get_num_threads() + 1),
    "the current folder": os.chdir,
    "the environment": lambda _: os.environ.update(DEBIASBENCH_ODD="1"),
    "the module path": lambda folder: sys.path.insert(0, str(folder)),
    "the filters of warnings": lambda _: warnings.simplefilter("ignore"),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("name", CHANGES)
def test_global_state_is_put_back_and_named(tmp_path, name):
    folder = str(Path.cwd())
    state = GlobalState()
    assert state.put_back() == []
    CHANGES[name](tmp_path)
    assert name in state.put_back()  # some switches of torch set the environment too
    assert state.put_back() == []
    assert str(Path.cwd()) == folder
    assert torch.ones(1).dtype == torch.float32
    assert torch.ones(1).device.type == "cpu"
    assert torch.is_grad_enabled()


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A function: lines -> a new module with them is imported."""
    monkeypatch.syspath_prepend(tmp_path)

    def imports(*lines):
        monkeypatch.delitem(sys.modules, "a_library", raising=False)
        (tmp_path / "a_library.py").write_text("\n".join(["import os", "import warnings", *lines]), encoding="utf-8")
        importlib.invalidate_caches()
        importlib.import_module("a_library")

    yield imports
    sys.modules.pop("a_library", None)


def test_what_an_import_adds_is_put_back_and_is_nobodys_deed(library):
    """Else each worker would be replaced after its first cell: sklearn sets variables, sympy adds a filter."""
    state, filters = GlobalState(), list(warnings.filters)
    library("os.environ['A_LIBRARY'] = '1'", "warnings.filterwarnings('ignore', 'words of a library')")
    assert state.put_back() == []
    assert "A_LIBRARY" not in os.environ
    assert warnings.filters == filters


def test_what_an_import_changes_is_named(library, monkeypatch):
    monkeypatch.setenv("A_LIBRARY", "1")
    state = GlobalState()
    library("os.environ['A_LIBRARY'] = '2'", "warnings.resetwarnings()")
    assert state.put_back() == ["the environment", "the filters of warnings"]
    assert os.environ["A_LIBRARY"] == "1"


def test_generators_and_denormals_are_put_back():
    def numbers():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]  # noqa: NPY002

    state = GlobalState()
    first = numbers()
    torch.set_flush_denormal(True)
    assert state.put_back() == []  # any cell may draw
    assert numbers() == first
    assert float(torch.tensor(1e-40) * 1) > 0


def test_a_folder_that_was_deleted_is_left(tmp_path):
    state = GlobalState()
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert state.put_back() == ["the current folder"]


def test_everything_of_samples_is_watched(built):
    """A new column is watched too, without anybody thinking of it."""
    watched = {name.partition(" ")[0] for name in Watch(built)._tensors}
    tensors = {
        item.name
        for item in dataclasses.fields(built.train)
        if isinstance(getattr(built.train, item.name), torch.Tensor)
    }
    assert watched == tensors
