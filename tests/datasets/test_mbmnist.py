"""Multi-bias MNIST: its images against a loop, its seven biases, its files; the network that it is trained with."""

import contextlib
import gzip
import hashlib
import io
import math
import os
import re
import socket
import struct
import sys
import zipfile
from itertools import combinations, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from scipy.stats import binom, chi2_contingency, chisquare
from torch import nn

from debiasbench.data.cache import Cached
from debiasbench.data.colouring import PGD_PALETTE
from debiasbench.data.mnist_files import EMNIST_LETTERS, FASHION_MNIST, KMNIST, MNIST, Collection
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.grid import expand
from debiasbench.nets.build import build_net
from debiasbench.nets.small import SimConv2
from debiasbench.randomness import derived_generator
from debiasbench.testing import (
    DATASET_BUILD_CHECKS,
    check_columns,
    check_counts,
    check_dataset_declaration,
    check_headline,
    check_net_runs,
    check_ratio,
    make_task,
)

MBMNIST, _ = datasets.get("mbmnist")
module = sys.modules[MBMNIST.__module__]
COLLECTIONS = (MNIST, FASHION_MNIST, KMNIST, EMNIST_LETTERS)
NOWHERE = Path("nowhere")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "cache"))


def idx(array):
    """The bytes of an IDX file of uint8."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def small_arrays():
    """(Collection, part) -> random images and labels, a few of each class."""
    random = np.random.default_rng(0)
    arrays = {}
    for collection in COLLECTIONS:
        for part, n in ((collection.train, 70), (collection.test, 40)):
            n_classes, first = (26, 1) if collection is EMNIST_LETTERS else (10, 0)
            labels = np.concatenate([np.arange(n_classes), random.integers(0, n_classes, n - n_classes)]) + first
            images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
            arrays[collection.name, part] = images, random.permutation(labels).astype(np.uint8)
    return arrays


@pytest.fixture(scope="session")
def arrays():
    """The contents of the small files."""
    return small_arrays()


@pytest.fixture
def small(tmp_path, monkeypatch, arrays):
    """A root with small files in place of the four collections, whose checksums are taken for the published ones."""
    root = tmp_path / "root"
    for collection in COLLECTIONS:
        for part in (collection.train, collection.test):
            images, labels = arrays[collection.name, part]
            for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
                path = root / collection.name / "raw" / f"{name}.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(gzip.compress(idx(array)))
                monkeypatch.setitem(collection.files, name, ("1 kB", hashlib.sha256(idx(array)).hexdigest()))
    return root


def built(root, **parameters):
    """The splits made of the files below `root`."""
    return MBMNIST(root=str(root), **parameters).build(NOWHERE)


# ---- against a slow reference ------------------------------------------------------------------------------


def reference(arrays, split, *, rho, data_seed=0):
    """Images and biases of a split, put together one by one from what the module's documentation says."""
    part_of = [collection.test if split == "test" else collection.train for collection in COLLECTIONS]
    grey, labels = zip(*[arrays[c.name, part] for c, part in zip(COLLECTIONS, part_of, strict=True)], strict=True)
    n_train = 63  # nine tenths of 70
    digits = {"train": range(n_train), "test": range(40)}.get(split, range(n_train, 70))
    ratio = rho if split in ("train", "valid") else 0.9
    generator = derived_generator("data", data_seed, ["train", "valid", "test", "tune"].index(split))
    n = len(digits)

    biases = []
    for _ in range(7):
        chances = torch.rand(n, generator=generator, dtype=torch.float64).tolist()
        shifts = torch.randint(1, 10, (n,), generator=generator).tolist()
        column = []
        for digit, chance, shift in zip(digits, chances, shifts, strict=True):
            label = int(labels[0][digit])
            column.append((label + shift) % 10 if chance < ratio else label)
        biases.append(column)

    glyphs = [list(digits)]
    for tile in (1, 2, 3):
        numbers = torch.randint(2**62, (n,), generator=generator).tolist()
        first = 1 if tile == 3 else 0  # letters are numbered from 1
        rows = []
        for value, number in zip(biases[tile - 1], numbers, strict=True):
            members = [row for row, label in enumerate(labels[tile]) if label - first == value]
            rows.append(members[number % len(members)])
        glyphs.append(rows)

    noise = [torch.randn(n, 3, generator=generator).numpy() for _ in range(4)]
    x = np.zeros((n, 3, 56, 56), np.uint8)
    for sample in range(n):
        for tile, (top, left) in enumerate([(0, 0), (0, 28), (28, 0), (28, 28)]):
            image = grey[tile][glyphs[tile][sample]]
            tint = module.PALETTES[tile][biases[3 + tile][sample]]
            for channel in range(3):
                strength = np.float32(tint[channel]) / np.float32(255)
                strength = strength + np.float32(1e-4) * noise[tile][sample, channel]
                for row in range(28):
                    stored = image[:, row] if tile == 3 else image[row]  # letters are stored transposed
                    values = stored.astype(np.float32) / np.float32(255) * strength
                    x[sample, channel, top + row, left : left + 28] = np.clip(values, 0, 1) * np.float32(255)
    return x, np.array(biases).T


@pytest.mark.parametrize(("rho", "data_seed"), [(0.3, 0), (0.1, 5)])
@pytest.mark.parametrize("split", ["train", "valid", "test", "tune"])
def test_samples_are_those_of_a_loop(small, arrays, split, rho, data_seed):
    """Section 2.2: tiles, classes, colours and noise of every sample, to the bit."""
    samples = built(small, rho=rho, data_seed=data_seed).named()[split]
    x, biases = reference(arrays, split, rho=rho, data_seed=data_seed)
    np.testing.assert_array_equal(samples.bias.numpy(), biases)
    np.testing.assert_array_equal(samples.x.numpy(), x)
    labels = arrays["MNIST", "t10k" if split == "test" else "train"][1]
    assert samples.y.tolist() == labels[{"train": slice(63), "test": slice(40)}.get(split, slice(63, 70))].tolist()


def test_blocks_leave_no_seam(small, monkeypatch, tmp_path):
    """But for the noise, images do not depend on how many are made at a time."""
    monkeypatch.setattr(module, "NOISE", 0.0)
    whole = built(small).train.x.clone()
    monkeypatch.setattr(module, "BLOCK", 10)
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "other"))
    assert torch.equal(built(small).train.x, whole)


def test_each_tile_has_its_own_order_of_the_same_colours():
    """Section 2.2: ten colours each, and none twice in an image all of whose biases agree."""
    assert len(module.PALETTES) == 4
    assert module.PALETTES[0] == PGD_PALETTE
    for palette in module.PALETTES:
        assert sorted(palette) == sorted(PGD_PALETTE)
    for value in range(10):
        assert len({palette[value] for palette in module.PALETTES}) == 4


@pytest.mark.parametrize(("rho", "share"), [(0, 0.0), (1, 1.0)])
def test_extreme_ratios_are_allowed(small, rho, share):
    """All samples agree in everything, or in nothing; test stays at 90 %."""
    splits = built(small, rho=rho)
    for part in (splits.train, splits.valid):
        assert part.conflicting.double().mean() == share
    assert 0.8 < splits.test.conflicting.double().mean() < 0.97


@pytest.mark.parametrize("rho", [1.5, -0.1, float("nan")])
def test_other_ratios_are_refused(rho):
    """Rho is a share."""
    with pytest.raises(BenchmarkError, match="rho"):
        MBMNIST(rho=rho)


# ---- seeds and the cache -----------------------------------------------------------------------------------


def test_two_builds_are_equal_without_each_others_cache(small, monkeypatch, tmp_path):
    """Nothing but the files, the ratio and the data seed matters; the second build reads the first one's cache."""
    first = built(small)
    for check in DATASET_BUILD_CHECKS:
        check(MBMNIST(root=str(small)), first, NOWHERE)
    torch.rand(3)
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "other"))
    again = built(small)
    for name, part in first.named().items():
        assert part.fingerprint() == again.named()[name].fingerprint()
        assert part.x_sha256 == hashlib.sha256(part.x.numpy().tobytes()).hexdigest()


def test_data_seed_changes_all_but_the_labels(small):
    """Section 2 of the definitions: the data seed is what biases, glyphs and noise follow."""
    one, other = built(small), built(small, data_seed=1)
    assert one.fingerprint() != other.fingerprint()
    for name, part in one.named().items():
        assert torch.equal(part.y, other.named()[name].y)
        assert not torch.equal(part.bias, other.named()[name].bias)
        assert not torch.equal(part.x, other.named()[name].x)
    aligned, otherwise = built(small, rho=0), built(small, rho=0, data_seed=1)
    assert torch.equal(aligned.train.bias, otherwise.train.bias)
    assert not torch.equal(aligned.train.x[:, :, :28, 28:], otherwise.train.x[:, :, :28, 28:])  # another object


def test_parts_have_their_own_draws(small):
    """Validation is not tune, nor the beginning of training."""
    splits = built(small, rho=0.9)
    assert not torch.equal(splits.valid.bias, splits.tune.bias)
    assert not torch.equal(splits.valid.conflicting, splits.train.conflicting[:7])


def test_images_are_made_once_for_all_processes(small, tmp_path, monkeypatch):
    """A second build maps the first one's images; test and tune are the same for every ratio."""
    built(small)
    entries = sorted((tmp_path / "cache").glob("*.uint8"))
    assert [path.name.rsplit("-", 1)[0] for path in entries] == [
        f"mbmnist-{split}" for split in ("test", "train", "tune", "valid")
    ]
    assert entries[1].stat().st_size == 63 * 3 * 56 * 56
    monkeypatch.setattr(module, "blocks", None)
    built(small)  # makes nothing
    monkeypatch.undo()


def test_other_ratios_share_the_test_split(small, tmp_path):
    """Test and tune do not depend on rho: their images are kept once."""
    one, other = built(small), built(small, rho=0.2)
    assert len(list((tmp_path / "cache").glob("*.uint8"))) == 6
    assert one.test.fingerprint() == other.test.fingerprint()
    assert one.train.fingerprint() != other.train.fingerprint()


# ---- files -------------------------------------------------------------------------------------------------


def test_all_missing_files_are_named(small, tmp_path):
    """One message with every file that is not there."""
    assert len(MBMNIST().needed_files(tmp_path)) == 16
    assert MBMNIST().present_files(tmp_path) == []
    assert MBMNIST(root=str(small)).needed_files(NOWHERE) == []
    assert len(MBMNIST(root=str(small)).present_files(NOWHERE)) == 16
    with pytest.raises(BenchmarkError) as caught:
        MBMNIST().build(tmp_path)
    for collection in COLLECTIONS:
        for name in collection.files:
            assert str(tmp_path / collection.name / "raw" / name) in str(caught.value)
    gone = [small / "KMNIST/raw/t10k-images-idx3-ubyte.gz", small / "EMNIST/raw/emnist-letters-train-labels-idx1-ubyte"]
    gone[0].unlink()
    gone[1].with_name(f"{gone[1].name}.gz").unlink()
    with pytest.raises(BenchmarkError, match=r"2 files.*debiasbench prepare mbmnist") as caught:
        built(small)
    assert len(str(caught.value).splitlines()) == 3
    assert all(str(path) in str(caught.value) for path in gone)


def test_unpacked_files_are_found_as_well(small, monkeypatch, tmp_path):
    """Torchvision leaves MNIST's files beside their archives, and of EMNIST only the unpacked ones."""
    packed = built(small).fingerprint()
    for path in (small / "EMNIST/raw").glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    path = small / "KMNIST/raw/train-images-idx3-ubyte.gz"
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "other"))
    assert built(small).fingerprint() == packed


@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
@pytest.mark.parametrize("collection", COLLECTIONS, ids=lambda collection: collection.name)
def test_damaged_files_are_named(small, collection, kind):
    """Cut off, or a whole file with another content: said at once, and nothing is kept of it."""
    path = small / collection.name / "raw" / f"{collection.train}-{kind}-ubyte.gz"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(BenchmarkError, match=path.name):
        built(small)
    other = bytearray(gzip.decompress(good))
    other[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(other)))
    with pytest.raises(BenchmarkError, match=rf"{path.name}.*checksum"):
        built(small)
    path.write_bytes(good)
    built(small)


@pytest.fixture
def mirror(small, monkeypatch):
    """In place of the mirrors: what is fetched comes from `small`; a list of (collection, file)."""
    asked = []
    named = {address: collection for collection in COLLECTIONS for address in collection.mirrors}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("gzip/emnist-balanced-mapping.txt", "of another part")
        for path in sorted((small / "EMNIST" / "raw").iterdir()):
            archive.write(path, f"gzip/{path.name}")
    data = {("EMNIST", "gzip.zip"): packed.getvalue()}
    for collection in COLLECTIONS[:3]:
        for name in collection.archives:
            data[collection.name, name] = (small / collection.name / "raw" / name).read_bytes()
    for (collection_name, name), contents in data.items():
        (collection,) = (one for one in COLLECTIONS if one.name == collection_name)
        monkeypatch.setitem(collection.archives, name, hashlib.sha256(contents).hexdigest())

    def fetch(urls, path, *, sha256):
        folder, _, name = urls[0].rpartition("/")
        collection = named[f"{folder}/"]
        assert urls == [f"{mirror}{name}" for mirror in collection.mirrors]
        asked.append((collection.name, name))
        assert hashlib.sha256(data[collection.name, name]).hexdigest() == sha256
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[collection.name, name])
        return path

    monkeypatch.setattr("debiasbench.data.mnist_files.fetch", fetch)
    return asked


@pytest.mark.parametrize("option", ["data_dir", "root"])
def test_prepare_fetches_what_is_missing(option, small, tmp_path, mirror):
    """Each file from its collection's mirrors, into the data folder or into `root`; of EMNIST its one archive."""
    place = tmp_path / "data"
    dataset, data_dir = (MBMNIST(root=str(place)), NOWHERE) if option == "root" else (MBMNIST(), place)
    dataset.prepare(data_dir)
    assert dataset.needed_files(data_dir) == []
    of_files = [(collection.name, name) for collection in COLLECTIONS[:3] for name in collection.archives]
    assert sorted(mirror) == sorted([*of_files, ("EMNIST", "gzip.zip")])
    kept = {path.name for path in (place / "EMNIST" / "raw").iterdir()}
    assert kept == {f"{name}.gz" for name in EMNIST_LETTERS.files}  # nothing else of 562 MB
    assert dataset.build(data_dir).fingerprint() == built(small).fingerprint()

    mirror.clear()
    (place / "EMNIST/raw/emnist-letters-test-images-idx3-ubyte.gz").unlink()
    (place / "KMNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    dataset.prepare(data_dir)
    assert mirror == [("KMNIST", "t10k-labels-idx1-ubyte.gz"), ("EMNIST", "gzip.zip")]
    mirror.clear()
    dataset.prepare(data_dir)
    assert mirror == []


@pytest.mark.parametrize("name", ["cmnist", "mbmnist"])
def test_prepare_says_what_went_wrong(tmp_path, monkeypatch, name):
    """Each mirror with its reason, and what to do by hand."""
    cls, _ = datasets.get(name)

    def unknown(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)  # between attempts
    told = r"gz could not be fetched:\n(  https://.*/mnist/train-images-idx3-ubyte.gz: .*not known\n){2}.*By hand: .*"
    with pytest.raises(BenchmarkError, match=told + re.escape(str(tmp_path / "MNIST" / "raw"))):
        cls().prepare(tmp_path)


def test_every_collection_has_a_checksum_of_each_archive():
    for collection in COLLECTIONS[:3]:
        assert set(collection.archives) == {f"{name}.gz" for name in collection.files}
    assert set(EMNIST_LETTERS.archives) == {"gzip.zip"}
    for collection in COLLECTIONS:
        assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in collection.archives.values())
        assert all(address.endswith("/") for address in collection.mirrors)


def test_names_of_the_files_are_torchvisions():
    """What torchvision downloads and unpacks is found."""
    for collection in COLLECTIONS[:3]:
        resources = getattr(torchvision.datasets, collection.name).resources
        assert {name.removesuffix(".gz") for name, _ in resources} == set(collection.files)
    names = set()
    for train in (True, False):
        emnist = object.__new__(torchvision.datasets.EMNIST)
        emnist.root, emnist.train, emnist.split = "data", train, "letters"
        names |= {Path(emnist.images_file), Path(emnist.labels_file)}
    assert names == {Path("data/EMNIST/raw") / name for name in EMNIST_LETTERS.files}


# ---- the contract, recipe and network ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [check_dataset_declaration, check_columns, check_headline, check_net_runs],
    ids=lambda check: check.__name__,
)
def test_small_data_keep_the_contract(small, check):
    """Those checks that do not count samples; tests/test_contract.py does all on the real files."""
    check(MBMNIST(root=str(small)), built(small))


def test_metrics_are_given_for_each_bias(small):
    """Section 4 of the definitions: with several biases each has its accuracies, and there are no groups."""
    from debiasbench.evaluation.evaluation import Evaluation

    metrics = Evaluation(MBMNIST(), built(small)).metrics("test", torch.zeros(40, 10))
    for bias in MBMNIST.bias_names:
        assert {f"acc_aligned.{bias}", f"acc_conflict.{bias}"} <= set(metrics)
    assert len(MBMNIST.bias_names) == 7
    assert "acc_worst" not in metrics
    assert metrics["acc_unbiased"] == metrics["acc_avg"]


def test_recipe_is_that_of_table_6():
    """Section 1.5: SGD with momentum 0.9, batches of 32, 0.01, 1e-4, a tenth every 40 of 100 epochs."""
    recipe = MBMNIST.recipe
    assert (recipe.optimizer, recipe.momentum, recipe.batch_size) == ("sgd", 0.9, 32)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.epochs) == (0.01, 1e-4, 100)
    assert (recipe.schedule, recipe.milestones, recipe.gamma) == ("step", (0.4, 0.8), 0.1)
    other = datasets.get("cmnist")[0].recipe
    for key in ("augment", "crop_scale", "crop_ratio", "saturation", "hue", "rotation", "pad_crop", "flip", "mean"):
        assert getattr(recipe, key) == getattr(other, key)
    cells = expand(["vanilla"], ["mbmnist", "mbmnist:net=simconv2-pool3"], seeds=[0]).cells
    assert sorted(cell.recipe["net"] for cell in cells) == ["simconv2", "simconv2-pool3"]


def test_a_network_is_trained_on_it(small, new_method):
    """The whole way of a method, on images that are mapped from disk."""
    dataset = MBMNIST(root=str(small))
    method = new_method("vanilla")
    task = make_task(method, dataset=dataset, splits=built(small), recipe=dataset.recipe.replace(epochs=1))
    assert method.fit(task) is task.predictor
    assert math.isfinite(task.journal.epochs[-1].test["acc_unbiased"])


@pytest.mark.parametrize("name", ["simconv2", "simconv2-pool3"])
def test_simconv2_has_140634_parameters(name):
    """Trap 16: the count that follows from the paper's table, however it is pooled; it runs on 56 x 56."""
    net = build_net(name, (3, 56, 56), 10)
    assert sum(p.numel() for p in net.parameters()) == 140_634
    x = torch.rand(4, 3, 56, 56)
    for _ in range(3):
        net(x)  # batch statistics
    net.eval()
    assert net.features(x).shape == (4, 128)
    assert torch.equal(net.head(net.features(x)), net(x))
    assert net(x).shape == (4, 10)
    assert net.features(x).min() < 0  # the last ReLU is before the last normalisation


def test_simconv2_has_relu_before_normalisation_in_blocks_3_and_4():
    """Trap 16: the order of the blocks as published."""
    kinds = [type(layer).__name__ for layer in SimConv2((3, 56, 56), 10).body]
    first = ["Conv2d", "BatchNorm2d", "HalfDropout", "ReLU", "AvgPool2d"]  # dropout and ReLU commute
    third = ["Conv2d", "ReLU", "BatchNorm2d", "HalfDropout"]
    assert kinds == first + first + third + third


@pytest.mark.parametrize(
    ("pool", "sizes"), [(2, [50, 25, 19, 9, 5, 3]), (3, [56, 18, 18, 6, 6, 6])], ids=["pool 2", "pool 3"]
)
def test_simconv2_maps_have_these_sizes(pool, sizes):
    """Trap 17: with 2 x 2 pooling the last map is 3 x 3."""
    net, x, seen = SimConv2((3, 56, 56), 10, pool=pool).eval(), torch.rand(1, 3, 56, 56), []
    for layer in net.body:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.AvgPool2d):
            seen.append(x.shape[-1])
    assert seen == sizes
    assert x.shape == (1, 128, sizes[-1], sizes[-1])


@pytest.mark.parametrize("size", [56, 86, 87])
def test_simconv2_as_printed_needs_87_pixels(size):
    """Trap 17: 3 x 3 pooling and no padding run out of pixels below 87."""
    net = SimConv2((3, size, size), 10, pool=3).eval()
    for layer in net.body:
        if isinstance(layer, nn.Conv2d):
            layer.padding = (0, 0)
    fails = pytest.raises(RuntimeError, match="size") if size < 87 else contextlib.nullcontext()
    with fails:
        assert net(torch.rand(1, 3, size, size)).shape == (1, 10)


# ---- the real files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_dir():
    """The data folder that holds all four collections; tests that need it are skipped where it is not given."""
    given = os.environ.get("DEBIASBENCH_DATA")
    if not given:
        pytest.skip("the real collections are needed: set DEBIASBENCH_DATA to the folder that holds MNIST/raw")
    missing = MBMNIST().needed_files(Path(given))
    if missing:
        pytest.skip(f"the real collections are needed: {missing[0].path} is missing")
    return Path(given)


@pytest.fixture(scope="module")
def drawn(data_dir):
    """A ratio -> the splits with their true columns; of the images there are none."""

    def draw(rho):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "cached", no_images)
            return MBMNIST(rho=rho).build(data_dir)

    return draw


def no_images(name, identity, shape, chunks):
    """In place of `cached`: an entry that takes no memory."""
    return Cached(torch.zeros(1, dtype=torch.uint8).expand(shape), "none")


@pytest.fixture(scope="module")
def files(data_dir):
    """(Collection, part) -> images and labels of the real files, read once."""
    return {
        (collection.name, part): (
            read(data_dir, collection, "images", part),
            read(data_dir, collection, "labels", part),
        )
        for collection in COLLECTIONS
        for part in (collection.train, collection.test)
    }


def read(data_dir, collection, kind, part):
    """Images or labels of the real files."""
    return getattr(collection, kind)(data_dir / collection.name / "raw", part)


@pytest.fixture(scope="module")
def glyphs(files):
    """(Tile, split) -> images of the real files, upright, and their labels from 0."""
    result = {}
    for tile, collection in enumerate(COLLECTIONS):
        for split, part in (("train", collection.train), ("test", collection.test)):
            images, labels = files[collection.name, part]
            result[tile, split] = (images.swapaxes(1, 2), labels - 1) if tile == 3 else (images, labels)
    return result


@pytest.fixture(scope="module")
def beginning(data_dir, files):
    """Split -> the first 200 real samples of the training and the test split."""
    first = {}

    def some_images(name, identity, shape, chunks):
        if name in ("mbmnist-train", "mbmnist-test"):
            first[name.removeprefix("mbmnist-")] = next(islice(chunks(), 1))[:200]
        return no_images(name, identity, shape, chunks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "cached", some_images)
        patch.setattr(module, "BLOCK", 200)
        patch.setattr(Collection, "images", lambda self, _folder, part: files[self.name, part][0])
        splits = MBMNIST().build(data_dir)
    return {
        split: SimpleNamespace(x=x.astype(np.int64), y=part.y[:200].numpy(), bias=part.bias[:200].numpy())
        for split, x in first.items()
        for part in [splits.named()[split]]
    }


@pytest.fixture(scope="module")
def tenth(drawn):
    """Drawn at 10 %."""
    return drawn(0.1)


def test_counts_and_ratios_are_those_declared(tenth):
    """Section 2.2: 54,000 / 6,000 / 10,000; each of the seven biases has its ratio."""
    check_counts(MBMNIST(), tenth)
    check_ratio(MBMNIST(), tenth)
    for split, ratio in (("train", 0.1), ("valid", 0.1), ("test", 0.9), ("tune", 0.9)):
        part = tenth.named()[split]
        share = part.conflicting.double().mean(0)
        assert share.shape == (7,)
        assert ((share - ratio).abs() < 4 * (0.09 / len(part)) ** 0.5).all()
    assert torch.equal(tenth.tune.y, tenth.valid.y)


@pytest.mark.parametrize(("rho", "aligned"), [(0.1, 25_828), (0.2, 11_325), (0.3, 4_447)])
def test_number_of_fully_aligned_samples(drawn, rho, aligned):
    """Section 2.2: N (1 - rho)^7, within four standard deviations."""
    train = drawn(rho).train
    share = (1 - rho) ** 7
    assert 54_000 * share == pytest.approx(aligned, abs=1)
    counted = int((~train.conflicting).all(1).sum())
    assert abs(counted - 54_000 * share) < 4 * (54_000 * share * (1 - share)) ** 0.5
    of_each = torch.bincount(train.conflicting.sum(1), minlength=8)[:6].numpy()
    expected = binom.pmf(range(6), 7, rho) * 54_000
    assert chisquare(of_each, expected * of_each.sum() / expected.sum()).pvalue > 1e-4


def test_biases_are_independent_of_each_other(drawn, tenth):
    """Section 2.2: neither the conflicts of two biases nor their values, where they conflict, go together."""
    for part in (tenth.train, tenth.test, drawn(0.3).train):
        flags = part.conflicting.double().numpy()
        for one, other in combinations(range(7), 2):
            assert abs(np.corrcoef(flags[:, one], flags[:, other])[0, 1]) < 4.5 / len(part) ** 0.5
    shifts = (tenth.test.bias - tenth.test.y[:, None]) % 10
    for one, other in combinations(range(7), 2):
        table = torch.bincount(shifts[:, one] * 10 + shifts[:, other], minlength=100).view(10, 10).numpy()
        assert chi2_contingency(table).pvalue > 1e-5


def test_conflicts_are_uniform_over_the_other_values(tenth):
    """Section 2.2: each of the nine others equally often, whatever the digit; in test the bias says nothing of it."""
    for part in (tenth.train, tenth.test):
        shifts = (part.bias - part.y[:, None]) % 10
        for column in shifts.T:
            assert chisquare(torch.bincount(column, minlength=10)[1:].numpy()).pvalue > 1e-4
    for column in tenth.test.bias.T:
        table = torch.bincount(tenth.test.y * 10 + column, minlength=100).view(10, 10).numpy()
        assert chi2_contingency(table).pvalue > 1e-4


def tile_of(x, tile):
    """The tile's part of images (N, 3, 56, 56)."""
    top, left = [(0, 0), (0, 28), (28, 0), (28, 28)][tile]
    return x[:, :, top : top + 28, left : left + 28]


def is_made_of(coloured, images, tint):
    """Whether grey images uint8 (N, 28, 28), in the colour `tint` and cut off to whole levels, give `coloured`.

    A level v was grey * tint / 255 in [v, v + 1), up to some deviations of the noise: this bounds grey. Bool (N,).
    """
    tint = np.array(tint)[:, None, None]
    known = tint > 0
    lowest = np.where(known, (coloured - 0.15) * 255 / np.maximum(tint, 1), 0).max(0)
    highest = np.where(known, (coloured + 1.15) * 255 / np.maximum(tint, 1), 255).min(0)
    lowest, highest = np.ceil(lowest).clip(0, 255).astype(np.uint8), np.floor(highest).clip(0, 255).astype(np.uint8)
    return ((images >= lowest) & (images <= highest)).all((1, 2))


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_keep_mnists_order_and_have_their_colours(beginning, glyphs, split):
    """The digit is top left, in MNIST's order."""
    part = beginning[split]
    for sample in range(100):
        tint = module.PALETTES[0][part.bias[sample, 3]]
        image = glyphs[0, split][0][sample]
        assert is_made_of(tile_of(part.x, 0)[sample], image[None], tint).all()
        assert not is_made_of(tile_of(part.x, 0)[sample], image.T[None], tint).any()
    assert (part.y == glyphs[0, split][1][:200]).all()


@pytest.mark.parametrize("tile", [1, 2, 3])
@pytest.mark.parametrize("split", ["train", "test"])
def test_glyphs_are_of_their_class_and_part(beginning, glyphs, split, tile):
    """Section 2.2: training shows images of the training files only, and test of the test files only."""
    part, other = beginning[split], {"train": "test", "test": "train"}[split]
    for sample in range(20):
        value, tint = part.bias[sample, tile - 1], module.PALETTES[tile][part.bias[sample, 3 + tile]]
        coloured = tile_of(part.x, tile)[sample]
        found = {}
        for where in (split, other):
            images, labels = glyphs[tile, where]
            found[where] = is_made_of(coloured, images[labels == value], tint).any()
        assert found == {split: True, other: False}


def test_letters_are_upright(beginning, glyphs):
    """An I is taller than wide; a C is open to the right; an F has more ink above; and so they are in the samples."""
    images, labels = glyphs[3, "train"]
    mean = {letter: images[labels == "ABCDEFGHIJ".index(letter)].mean(0) for letter in "CFI"}
    place = np.arange(28)

    def spread(weights):
        share = weights / weights.sum()
        return (share * place**2).sum() - (share * place).sum() ** 2

    assert spread(mean["I"].sum(1)) > 2 * spread(mean["I"].sum(0))
    middle = mean["C"][10:18]
    assert middle[:, :14].sum() > 1.5 * middle[:, 14:].sum()
    assert mean["F"][:14].sum() > 1.1 * mean["F"][14:].sum()
    part = beginning["train"]
    ink = tile_of(part.x, 3).sum(1)[part.bias[:, 2] == 8]
    assert len(ink) > 5
    assert spread(ink.mean(0).sum(1)) > 2 * spread(ink.mean(0).sum(0))


def test_archives_are_those_that_torchvision_checks(data_dir):
    """The checksums here were taken of files whose archives have the MD5 that torchvision gives."""
    for collection in COLLECTIONS[:3]:
        for name, md5 in getattr(torchvision.datasets, collection.name).resources:
            path = data_dir / collection.name / "raw" / name
            if path.is_file():
                assert hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == md5
                assert hashlib.sha256(path.read_bytes()).hexdigest() == collection.archives[name]
