"""Colored MNIST of two classes: wrong labels, two environments, a colour that turns round; against a loop."""

import gzip
import hashlib
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from debiasbench.data.mnist_files import MNIST
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.randomness import derived_generator
from debiasbench.testing import DATASET_BUILD_CHECKS, DATASET_CHECKS, check_net_runs

CMNIST2, _ = datasets.get("cmnist2")
module = sys.modules[CMNIST2.__module__]
NOWHERE = Path("nowhere")
N_TRAIN, N_ALL, N_TEST = 61, 90, 40  # of the small files


@pytest.fixture(scope="session")
def arrays():
    """Part -> random images and digits."""
    random = np.random.default_rng(0)
    return {
        part: (random.integers(0, 256, (n, 28, 28), dtype=np.uint8), random.integers(0, 10, n, dtype=np.uint8))
        for part, n in (("train", N_ALL), ("t10k", N_TEST))
    }


@pytest.fixture
def small(tmp_path, monkeypatch, arrays):
    """A root with small files in place of MNIST's, whose checksums are taken for the published ones."""
    monkeypatch.setattr(module, "N_TRAIN", N_TRAIN)
    for part, (images, digits) in arrays.items():
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", digits)):
            data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
            monkeypatch.setitem(MNIST.files, name, ("1 kB", hashlib.sha256(data).hexdigest()))
    return tmp_path


def built(root, **parameters):
    return CMNIST2(root=str(root), **parameters).build(NOWHERE)


def reference(arrays, split, *, pixels=14, environments="both", data_seed=0):
    """Images, labels and colours of a split, one by one from what the module's documentation says."""
    images, digits = arrays["t10k" if split == "test" else "train"]
    agreements = {"both": [0.9, 0.8], "first": [0.9], "second": [0.8]}[environments]
    if split == "train":
        rows = [row for row in range(N_TRAIN) if environments == "both" or row % 2 == (environments == "second")]
    else:
        rows = range(N_TEST) if split == "test" else range(N_TRAIN, N_ALL)
        agreements = {"valid": agreements, "test": [0.1], "tune": [0.5]}[split]
    generator = derived_generator("data", data_seed, ["train", "valid", "test", "tune"].index(split))

    def chances(n):
        drawn = torch.rand(n, generator=generator, dtype=torch.float64).tolist()
        torch.randint(1, 2, (n,), generator=generator)  # which of the other classes: there is one
        return drawn

    y = [int(digits[row] >= 5) ^ (chance < 0.25) for row, chance in zip(rows, chances(len(rows)), strict=True)]
    colours = [0] * len(y)
    for turn, agreement in enumerate(agreements):
        numbers = range(turn, len(y), len(agreements))
        for number, chance in zip(numbers, chances(len(numbers)), strict=True):
            colours[number] = y[number] ^ (chance < 1 - agreement)
    x = np.zeros((len(y), 3, pixels, pixels), np.uint8)
    for number, row in enumerate(rows):
        x[number, colours[number]] = images[row][:: 28 // pixels, :: 28 // pixels]
    return x, [int(one) for one in y], [int(one) for one in colours]


@pytest.mark.parametrize(
    "parameters",
    [{}, {"pixels": 28}, {"environments": "first"}, {"environments": "second", "data_seed": 3}],
    ids=str,
)
@pytest.mark.parametrize("split", ["train", "valid", "test", "tune"])
def test_samples_are_those_of_a_loop(small, arrays, split, parameters):
    """Labels, colours and pixels; a grey level may be lost where a float is cut off."""
    samples = built(small, **parameters).named()[split]
    x, y, colours = reference(arrays, split, **parameters)
    assert samples.y.tolist() == y
    assert samples.bias[:, 0].tolist() == colours
    assert int((samples.x.int() - torch.from_numpy(x).int()).abs().max()) <= 1
    assert samples.conflicting[:, 0].tolist() == [one != other for one, other in zip(y, colours, strict=True)]


def test_full_size_has_the_counts_and_the_strengths_of_the_field(mnist_data_dir):
    """50,000 / 10,000 / 10,000; 25 % wrong labels, the colour with the noisy label in 85 % and in 10 %."""
    dataset = CMNIST2()
    splits = dataset.build(mnist_data_dir)
    assert splits.official
    assert {name: len(part) for name, part in splits.named().items()} == dataset.official_counts | {"tune": 10_000}
    assert dataset.official_counts == {"train": 50_000, "valid": 10_000, "test": 10_000}
    digits = torch.from_numpy(MNIST.labels(mnist_data_dir / "MNIST" / "raw", "train"))
    train, test = splits.train, splits.test
    right = train.y == (digits[:50_000] >= 5)
    agrees = ~train.conflicting[:, 0]
    assert right.double().mean() == pytest.approx(0.75, abs=0.01)
    assert agrees[0::2].double().mean() == pytest.approx(0.9, abs=0.01)
    assert agrees[1::2].double().mean() == pytest.approx(0.8, abs=0.01)
    # the colour is dealt by the label as it is, right or wrong
    assert agrees[right].double().mean() == pytest.approx(agrees[~right].double().mean().item(), abs=0.015)
    assert (~splits.valid.conflicting).double().mean() == pytest.approx(0.85, abs=0.02)
    assert (~test.conflicting).double().mean() == pytest.approx(0.1, abs=0.015)
    assert (~splits.tune.conflicting).double().mean() == pytest.approx(0.5, abs=0.025)
    assert train.x.shape == (50_000, 3, 14, 14)
    assert int(train.x[:, 2].max()) == 0
    assert not (train.x[:, 0].flatten(1).any(1) & train.x[:, 1].flatten(1).any(1)).any()  # red or green, never both


@pytest.mark.parametrize(
    ("environments", "ratio", "n"), [("both", 0.15, 50_000), ("first", 0.1, 25_000), ("second", 0.2, 25_000)]
)
def test_environments_are_joined_or_alone(mnist_data_dir, environments, ratio, n):
    dataset = CMNIST2(environments=environments)
    splits = dataset.build(mnist_data_dir)
    assert dataset.conflict_ratio == ratio
    assert dataset.official_counts["train"] == len(splits.train) == n
    for part in (splits.train, splits.valid):
        assert part.conflicting.double().mean() == pytest.approx(ratio, abs=0.02)


@pytest.mark.parametrize(("noise", "agrees"), [(0.0, 1.0), (1.0, 0.0)])
def test_extreme_strengths_are_allowed(small, arrays, noise, agrees):
    splits = built(small, label_noise=noise, first=agrees, second=agrees, agreement=agrees)
    truth = torch.from_numpy(arrays["train"][1][:N_TRAIN] >= 5).long()
    assert torch.equal(splits.train.y, truth if noise == 0 else 1 - truth)
    for part in (splits.train, splits.valid, splits.test):
        assert (part.bias[:, 0] == part.y).double().mean() == agrees


def test_data_follow_the_data_seed_alone(small):
    first = built(small)
    for check in DATASET_BUILD_CHECKS:
        check(CMNIST2(root=str(small)), first, NOWHERE)
    assert not torch.equal(first.train.y, built(small, data_seed=1).train.y)  # which labels are wrong


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"pixels": 16}, "must be one of 14, 28. Got 16."),
        ({"environments": "bth"}, "one of both, first, second. Got 'bth'. Did you mean 'both'?"),
        ({"first": 1.1}, "a number in [0, 1]"), ({"second": -0.1}, "a number in [0, 1]"),
        ({"agreement": float("nan")}, "a number, and not nan"), ({"label_noise": 2}, "a number in [0, 1]"),
    ],
    ids=str,
)  # fmt: skip
def test_other_values_are_refused(parameters, words):
    with pytest.raises(BenchmarkError) as error:
        CMNIST2(**parameters)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"The '{next(iter(parameters))}' parameter of cmnist2 must be")
    assert words in line


@pytest.mark.parametrize("name", MNIST.files)
def test_a_missing_or_damaged_file_is_named(small, name):
    path = small / f"{name}.gz"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(BenchmarkError, match=name):
        built(small)
    path.unlink()
    (needed,) = CMNIST2(root=str(small)).needed_files(NOWHERE)
    assert needed.path == path
    assert needed.downloads


@pytest.mark.parametrize("net", ["mlp", "resnet18-small"])
@pytest.mark.parametrize("pixels", [14, 28])
def test_networks_take_both_sizes(small, pixels, net):
    dataset = CMNIST2(root=str(small), pixels=pixels)
    recipe = dataset.recipe.replace(net=net)
    splits = dataset.build(NOWHERE)

    class Other(CMNIST2):
        name = "cmnist2-other"
        own_recipe = recipe

    check_net_runs(Other(), splits)


def test_the_contract_holds(mnist_data_dir):
    dataset = CMNIST2(environments="second", label_noise=0.1)
    splits = dataset.build(mnist_data_dir)
    for check in DATASET_CHECKS:
        check(dataset, splits)
