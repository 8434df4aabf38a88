"""Dominoes: two halves against a loop, the strength of each feature, counts, files, the cache."""

import gzip
import hashlib
import pickle
import struct
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from debiasbench.data.checks import check_splits
from debiasbench.data.mnist_files import FASHION_MNIST, MNIST
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.randomness import derived_generator
from debiasbench.testing import DATASET_BUILD_CHECKS, DATASET_CHECKS

DOMINOES, _ = datasets.get("dominoes")
module = sys.modules[DOMINOES.__module__]
NOWHERE = Path("nowhere")
SPLITS = ["train", "valid", "test", "tune"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "cache"))


def some(random, n, shape):
    """Random images, and labels of which each of ten is there."""
    labels = np.concatenate([np.arange(10), random.integers(0, 10, n - 10)])
    return random.integers(0, 256, (n, *shape), dtype=np.uint8), random.permutation(labels).astype(np.uint8)


@pytest.fixture(scope="session")
def arrays():
    """(Collection, part) -> images and labels."""
    random = np.random.default_rng(0)
    return {
        (name, part): some(random, n, shape)
        for name, shape in (("mnist", (28, 28)), ("fashion", (28, 28)), ("cifar", (3, 32, 32)))
        for part, n in (("train", 95), ("test", 40))
    }


@pytest.fixture
def small(tmp_path, monkeypatch, arrays):
    """A root with small files in place of the three collections; of MNIST's the checksums are taken for right."""
    root = tmp_path / "root"
    for name, collection in (("mnist", MNIST), ("fashion", FASHION_MNIST)):
        folder = root / collection.name / "raw"
        folder.mkdir(parents=True)
        for part, word in (("train", "train"), ("test", "t10k")):
            for kind, array in zip(("images-idx3", "labels-idx1"), arrays[name, part], strict=True):
                data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
                (folder / f"{word}-{kind}-ubyte.gz").write_bytes(gzip.compress(data))
                known = ("1 kB", hashlib.sha256(data).hexdigest())
                monkeypatch.setitem(collection.files, f"{word}-{kind}-ubyte", known)
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    x, y = arrays["cifar", "train"]
    for number, rows in enumerate(np.array_split(np.arange(len(y)), 5), start=1):
        write_batch(folder / f"data_batch_{number}", x[rows], y[rows])
    write_batch(folder / "test_batch", *arrays["cifar", "test"])
    return root


def write_batch(path, x, y):
    path.write_bytes(pickle.dumps({"data": x.reshape(len(x), -1), "labels": y.tolist()}))


def built(root, **parameters):
    return DOMINOES(root=str(root), **parameters).build(NOWHERE)


# ---- against a slow reference ---------------------------------------------------------------------------------------

PAIRS = {"mnist": (0, 1), "fashion": (3, 4), "cifar": (1, 9)}  # 0 and 1; dress and coat; automobile and truck


def reference(arrays, split, *, upper="mnist", classes=2, target="lower", t=1.0, b=0.9, noise=0.0, data_seed=0):
    """Images, labels and biases of a split, one by one from what the module's documentation says."""
    part = "test" if split == "test" else "train"
    kinds = ("cifar", upper) if target == "lower" else (upper, "cifar")
    wanted = {kind: PAIRS[kind] if classes == 2 else tuple(range(10)) for kind in kinds}
    halves = {
        kind: [(image, wanted[kind].index(label)) for image, label in zip(*arrays[kind, part], strict=True)
               if label in wanted[kind]]
        for kind in kinds
    }  # fmt: skip
    shown = halves[kinds[0]]
    n_train = len(shown) * 9 // 10
    shown = {"train": shown[:n_train], "test": shown}.get(split, shown[n_train:])
    strength = b if split in ("train", "valid") else 0.0
    generator = derived_generator("data", data_seed, SPLITS.index(split))
    n = len(shown)

    def seen(truth, ratio):
        chances = torch.rand(n, generator=generator, dtype=torch.float64).tolist()
        shifts = torch.randint(1, classes, (n,), generator=generator).tolist()
        return [
            (one + shift) % classes if chance < ratio else one
            for one, chance, shift in zip(truth, chances, shifts, strict=True)
        ]

    other = (classes - 1) / classes
    truth = seen([label for _, label in shown], (1 - t) * other)
    bias = seen(truth, (1 - strength) * other)
    y = seen(truth, noise)
    x = np.zeros((n, 3, 64, 32), np.uint8)
    for number, draw in enumerate(torch.randint(2**62, (n,), generator=generator).tolist()):
        members = [image for image, label in halves[kinds[1]] if label == bias[number]]
        pictures = {kinds[0]: shown[number][0], kinds[1]: members[draw % len(members)]}
        x[number, :, 2:30, 2:30] = pictures[upper]
        x[number, :, 32:] = pictures["cifar"]
    return x, y, bias


@pytest.mark.parametrize(
    ("parameters", "short"),
    [
        ({}, {}),
        ({"upper": "fashion", "target": "upper"}, {}),
        ({"classes": 10, "bias_strength": 0.5, "data_seed": 4}, {"b": 0.5}),
        (
            {"classes": 10, "target": "upper", "target_strength": 0.6, "label_noise": 0.3, "bias_strength": 0.8},
            {"t": 0.6, "noise": 0.3, "b": 0.8},
        ),
        ({"upper": "fashion", "classes": 10, "label_noise": 0.5}, {"noise": 0.5}),
    ],
    ids=str,
)
@pytest.mark.parametrize("split", SPLITS)
def test_samples_are_those_of_a_loop(small, arrays, split, parameters, short):
    samples = built(small, **parameters).named()[split]
    shared = {key: value for key, value in parameters.items() if key in ("upper", "classes", "target", "data_seed")}
    x, y, bias = reference(arrays, split, **shared, **short)
    assert samples.y.tolist() == y
    assert samples.bias[:, 0].tolist() == bias
    np.testing.assert_array_equal(samples.x.numpy(), x)
    assert samples.conflicting[:, 0].tolist() == [one != other for one, other in zip(y, bias, strict=True)]


# ---- strengths ------------------------------------------------------------------------------------------------------


STRENGTHS = [(1.0, 0.9, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.7, 0.5, 0.2), (1.0, 1.0, 0.4)]


@pytest.mark.parametrize(("classes", "strengths"), [*product((2, 10), STRENGTHS)])
def test_each_half_tells_as_much_as_its_strength_says(classes, strengths):
    """A strength of s: right in s + (1 - s) / C, of labels that are not wrong; and what the dataset says conflicts."""
    target, bias_strength, noise = strengths
    dataset = DOMINOES(classes=classes, target_strength=target, bias_strength=bias_strength, label_noise=noise)
    n = 40_000
    shown = torch.arange(n) % classes
    y, bias = dataset._drawn(shown, bias_strength, torch.Generator().manual_seed(1))
    right = [strength + (1 - strength) / classes for strength in (target, bias_strength)]
    for seen, agrees in zip((shown, bias), right, strict=True):
        expected = agrees * (1 - noise) + (1 - agrees) * noise / (classes - 1)
        assert (seen == y).double().mean() == pytest.approx(expected, abs=0.013)
    assert dataset.conflict_ratio == pytest.approx(1 - expected, abs=1e-9)
    assert y.bincount().double().std() < 0.03 * n  # no class is left out


def test_two_classes_at_95_per_cent_are_a_strength_of_09():
    assert DOMINOES().conflict_ratio == 0.05
    assert DOMINOES(classes=10).conflict_ratio == 0.09


def test_in_test_and_tune_the_bias_says_nothing(small):
    """Whatever its strength in training; the strength of the target and the wrong labels stay."""
    splits = built(small, bias_strength=1.0, classes=10)
    assert not splits.train.conflicting.any()
    assert not splits.valid.conflicting.any()
    assert 0.6 < splits.test.conflicting.double().mean() <= 1
    one, other = built(small, label_noise=1.0), built(small)
    assert torch.equal(one.test.y, 1 - other.test.y)


# ---- classes, files, the cache --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "classes", "bias"),
    [
        ({}, ("automobile", "truck"), "upper"),
        ({"target": "upper"}, ("0", "1"), "lower"),
        ({"target": "upper", "upper": "fashion"}, ("dress", "coat"), "lower"),
    ],
)
def test_two_classes_are_the_pairs_of_the_papers(parameters, classes, bias):
    dataset = DOMINOES(**parameters)
    assert (dataset.class_names, dataset.bias_names, dataset.n_bias_values) == (classes, (bias,), 2)
    ten = DOMINOES(**parameters, classes=10)
    assert (ten.n_classes, ten.n_bias_values) == (10, 10)


def test_counts_follow_from_the_files():
    """Nine tenths, a tenth and the test files of the target half."""
    found = {
        (target, upper, classes): tuple(DOMINOES(target=target, upper=upper, classes=classes).official_counts.values())
        for target, upper, classes in product(("lower", "upper"), ("mnist", "fashion"), (2, 10))
    }
    for upper in ("mnist", "fashion"):
        assert found["lower", upper, 2] == (9_000, 1_000, 2_000)
        assert found["lower", upper, 10] == (45_000, 5_000, 10_000)
        assert found["upper", upper, 10] == (54_000, 6_000, 10_000)
    assert found["upper", "mnist", 2] == (11_398, 1_267, 2_115)
    assert found["upper", "fashion", 2] == (10_800, 1_200, 2_000)


@pytest.mark.parametrize("upper", ["mnist", "fashion"])
def test_real_files_have_these_counts(shared_data, upper):
    """The digits and clothes are complete, CIFAR-10 is a subset: marked as one."""
    dataset = DOMINOES(upper=upper, target="upper")
    splits = dataset.build(shared_data)
    counts = {name: len(part) for name, part in splits.named().items() if name != "tune"}
    assert counts == dataset.official_counts
    assert not splits.official
    assert "CIFAR-10 is a subset from cifar10_webp" in splits.note
    for check in DATASET_CHECKS:
        check(dataset, check_splits(dataset, splits))


def test_two_builds_are_equal_without_each_others_cache(small, monkeypatch, tmp_path):
    first = built(small)
    for check in DATASET_BUILD_CHECKS:
        check(DOMINOES(root=str(small)), first, NOWHERE)
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "other"))
    again = built(small)
    assert again.fingerprint() == first.fingerprint()
    for part in again.named().values():
        assert part.x_sha256 == hashlib.sha256(part.x.numpy().tobytes()).hexdigest()


def test_images_are_made_once(small, tmp_path, monkeypatch):
    """Wrong labels change none of them."""
    first = built(small)
    assert len(list((tmp_path / "cache").glob("dominoes-*.uint8"))) == 4
    monkeypatch.setattr(module, "blocks", None)  # makes nothing
    again, noisy = built(small), built(small, label_noise=0.5)
    assert again.fingerprint() == first.fingerprint()
    assert torch.equal(noisy.train.x, first.train.x)
    assert not torch.equal(noisy.train.y, first.train.y)


def test_blocks_leave_no_seam(small, monkeypatch, tmp_path):
    whole = built(small, classes=10).train.x.clone()
    monkeypatch.setattr(module, "BLOCK", 7)
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "other"))
    assert torch.equal(built(small, classes=10).train.x, whole)


def test_all_missing_files_are_told(small, tmp_path):
    """Those of both halves: the four of the collection above, and CIFAR-10."""
    for upper, folder in (("mnist", "MNIST"), ("fashion", "FashionMNIST")):
        needed = DOMINOES(upper=upper).needed_files(tmp_path)
        assert [file.path.parts[-3:-1] for file in needed[:4]] == [(folder, "raw")] * 4
        assert [file.path.name for file in needed[4:]] == ["cifar-10-batches-py"]
        assert all(file.downloads for file in needed)
        assert DOMINOES(upper=upper, root=str(small)).needed_files(NOWHERE) == []
        assert len(DOMINOES(upper=upper, root=str(small)).present_files(NOWHERE)) == 10


@pytest.mark.parametrize(
    "name", ["MNIST/raw/train-images-idx3-ubyte.gz", "MNIST/raw/t10k-labels-idx1-ubyte.gz",
             "cifar-10-batches-py/data_batch_2", "cifar-10-batches-py/test_batch"],
)  # fmt: skip
def test_damaged_files_are_named(small, name):
    path = small / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BenchmarkError, match=path.name):
        built(small)


@pytest.mark.parametrize(("classes", "label", "word"), [(2, 9, "truck"), (10, 4, "deer"), (2, 1, "automobile")])
@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("target", ["lower", "upper"])
def test_a_class_without_images_is_named(small, arrays, classes, label, word, part, target):
    """Of a subset of CIFAR-10, whichever half it is."""
    x, y = arrays["cifar", part]
    x, y = x[y != label], y[y != label]
    folder = small / "cifar-10-batches-py"
    for path in [folder / "test_batch"] if part == "test" else sorted(folder.glob("data_batch_*")):
        write_batch(path, x, y)
    with pytest.raises(BenchmarkError, match=rf"dominoes needs images of {word}, and the {part} files of cifar"):
        built(small, classes=classes, target=target)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"upper": "fasion"}, "one of mnist, fashion. Got 'fasion'. Did you mean 'fashion'?"),
        ({"classes": 5}, "one of 2, 10. Got 5."), ({"target": "loewr"}, "Did you mean 'lower'?"),
        ({"target_strength": 1.2}, "a number in [0, 1]"), ({"bias_strength": -0.1}, "a number in [0, 1]"),
        ({"label_noise": float("nan")}, "a number, and not nan"),
    ],
    ids=str,
)  # fmt: skip
def test_other_values_are_refused(parameters, words):
    with pytest.raises(BenchmarkError) as error:
        DOMINOES(**parameters)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"The '{next(iter(parameters))}' parameter of dominoes must be")
    assert words in line


def test_prepare_fetches_what_is_missing_of_both_halves(small, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(module, "prepare", lambda collections: asked.extend(collections))
    monkeypatch.setattr(module, "download", asked.append)
    DOMINOES(upper="fashion").prepare(tmp_path)
    assert asked == [tmp_path / "FashionMNIST" / "raw", tmp_path]
    asked.clear()
    DOMINOES(root=str(small)).prepare(NOWHERE)
    assert asked == [small / "MNIST" / "raw"]  # which fetches what is missing there: nothing
