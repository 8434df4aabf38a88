"""CIFAR-10 and Corrupted CIFAR-10: corruptions against slow references, reading, dealing of conflicts, the cache."""

import colorsys
import hashlib
import io
import multiprocessing
import os
import pickle
import shutil
import sys
import tarfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from debiasbench.data import cifar, corruptions
from debiasbench.data.cifar import Cifar10, missing_files, read_cifar10
from debiasbench.data.colouring import block_conflicts
from debiasbench.data.corruptions import CONSTANTS, NAMES, corrupt, corrupted
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.randomness import derived_seed
from debiasbench.schedule import learning_rate_at
from debiasbench.testing import DATASET_BUILD_CHECKS, DATASET_CHECKS, check_builds_the_same_again

CCIFAR, CIFAR10 = (datasets.get(name)[0] for name in ("ccifar", "cifar10"))
PLUGIN = sys.modules[CCIFAR.__module__]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def real():
    """The real CIFAR-10, or the part of it that is there."""
    given = os.environ.get("DEBIASBENCH_DATA")
    if not given:
        pytest.skip("CIFAR-10 is needed: set DEBIASBENCH_DATA to the folder that holds cifar-10-batches-py")
    missing = missing_files(Path(given))
    if missing:
        pytest.skip(f"CIFAR-10 is needed: {missing[0].path} is missing")
    return read_cifar10(Path(given))


def smooth(seed=0, size=32):
    """A picture with large and small structure, uint8 (size, size, 3)."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((size, size))
    return np.clip(np.asarray(coarse) + generator.normal(0, 12, (size, size, 3)), 0, 255).astype(np.uint8)


def apply(name, image, level=5, seed=0, textures=None):
    return corrupt(image, name, level, np.random.default_rng(seed), textures)


def images_and_labels(n, seed):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    return images, [int(label) for label in np.arange(n) % 10]


def write_batches(folder, n_each=40, n_test=100):
    """The layout that torchvision unpacks, with few images; returns the training and test images and labels."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    x, y = images_and_labels(5 * n_each, 0)
    test_x, test_y = images_and_labels(n_test, 1)
    for number in range(5):
        rows = slice(number * n_each, (number + 1) * n_each)
        write_batch(batches / f"data_batch_{number + 1}", x[rows], y[rows])
    write_batch(batches / "test_batch", test_x, test_y)
    return x, y, test_x, test_y


def write_batch(path, images, labels):
    batch = {"batch_label": path.name, "data": images.reshape(len(images), -1), "labels": labels}
    path.write_bytes(pickle.dumps(batch, protocol=4))


def write_mosaics(folder, n=230, n_test=100):
    """The layout of lossless pictures; 230 images fill two rows of tiles and a part of the third."""
    mosaics = folder / "cifar10_webp"
    mosaics.mkdir(parents=True)
    parts = {"data_batch_1": images_and_labels(n, 0), "test_subset": images_and_labels(n_test, 1)}
    for name, (images, labels) in parts.items():
        rows = -(-len(images) // 100)
        picture = np.zeros((rows * 32, 3200, 3), dtype=np.uint8)
        for number, image in enumerate(images):
            top, left = number // 100 * 32, number % 100 * 32
            picture[top : top + 32, left : left + 32] = image.transpose(1, 2, 0)
        Image.fromarray(picture).save(mosaics / f"{name}.webp", lossless=True)
        lines = [f"{number},{label},some_{number}.png" for number, label in enumerate(labels)]
        (mosaics / f"{name}.csv").write_text("\n".join(["index,label,filename", *lines]) + "\n", encoding="utf-8")
    return parts


FIRST_SEED = {"conflict": 20, "valid": 40, "test": 60}  # no image is in two splits


def write_archive(folder, n=3, share="0.5pct", size=32):
    """Disen's layout: some images a class; bias = label for aligned ones, else the next."""
    shift = {f"{share}/align": 0, f"{share}/conflict": 1, f"{share}/valid": 0, "test": 3}
    for part, distance in shift.items():
        for label in range(10):
            place = folder / part / str(label)
            place.mkdir(parents=True)
            for number in range(n if part.endswith(("align", "test")) else 1):
                picture = smooth(seed=100 * label + number + FIRST_SEED.get(part.rpartition("/")[2], 0), size=size)
                Image.fromarray(picture).save(place / f"{number}_{label}_{(label + distance) % 10}.png")


# ---- corruptions ----------------------------------------------------------------------------------------------------


def test_level_5_has_the_constants_of_the_specification():
    """Section 2.3 of the methods' specification, and its pairs of class and corruption."""
    assert {name: values[4] for name, values in CONSTANTS.items()} == {
        "snow": (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8), "frost": (0.75, 0.45), "fog": (1.5, 1.75), "brightness": 0.3,
        "contrast": 0.15, "spatter": (0.65, 0.1, 0.5, 0.68, 0.6, True), "elastic": (3.2, 0.96, 0.96), "jpeg": 40,
        "pixelate": 0.65, "saturate": (2.5, 0.2),
    }  # fmt: skip
    pairs = dict(zip(CCIFAR().class_names, NAMES, strict=True))
    assert pairs["airplane"] == "snow"
    assert pairs["dog"] == "spatter"
    assert pairs["truck"] == "saturate"
    assert all(len(values) == corruptions.LEVELS for values in CONSTANTS.values())


@pytest.mark.parametrize("name", NAMES)
def test_corruptions_are_pure_functions_of_image_and_seed(name):
    """uint8 of the same shape; the argument is left alone; level 5 changes a picture by much, and visibly."""
    image = smooth()
    before = image.copy()
    for level in range(1, 6):
        changed = apply(name, image, level)
        assert changed.dtype == np.uint8
        assert changed.shape == (32, 32, 3)
        assert np.array_equal(changed, apply(name, image, level))
    assert np.array_equal(image, before)
    assert 3 < np.abs(changed.astype(int) - image).mean() < 90
    random = name in ("snow", "frost", "fog", "spatter", "elastic")
    assert random != np.array_equal(changed, apply(name, image, seed=1))


@pytest.mark.parametrize("level", [1, 5])
def test_contrast_against_its_formula(level):
    image = smooth()
    factor = CONSTANTS["contrast"][level - 1]
    expected = np.empty((32, 32, 3))
    for channel in range(3):
        mean = sum(int(value) for value in image[..., channel].ravel()) / 1024
        for row, column in np.ndindex(32, 32):
            expected[row, column, channel] = (image[row, column, channel] - mean) * factor + mean
    difference = expected - apply("contrast", image, level)
    assert difference.min() > -1e-9  # cut off, not rounded
    assert difference.max() < 1 + 1e-9


@pytest.mark.parametrize(("name", "place"), [("brightness", 2), ("saturate", 1)])
@pytest.mark.parametrize("level", [1, 5])
def test_colours_change_in_hsv(name, place, level):
    """Each pixel through Python's own colorsys; grey and black pixels among them."""
    image = smooth()
    image[:2], image[2:4] = 77, 0
    constants = CONSTANTS[name][level - 1]
    factor, added = (1, constants) if name == "brightness" else constants
    changed = apply(name, image, level)
    for row, column in np.ndindex(32, 32):
        hsv = list(colorsys.rgb_to_hsv(*(image[row, column] / 255)))
        hsv[place] = min(max(hsv[place] * factor + added, 0), 1)
        expected = np.array(colorsys.hsv_to_rgb(*hsv)) * 255
        difference = expected - changed[row, column]
        assert difference.min() > -1e-6
        assert difference.max() < 1 + 1e-6


def test_jpeg_and_pixelate_are_pillows():
    """Quality 40; 20 x 20 pixels by box filters. Pixels of a pixelated image stand together in ones and twos."""
    image = smooth()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=40)
    assert np.array_equal(apply("jpeg", image), np.asarray(Image.open(buffer)))
    box = Image.Resampling.BOX
    small = Image.fromarray(image).resize((20, 20), box)
    changed = apply("pixelate", image)
    assert np.array_equal(changed, np.asarray(small.resize((32, 32), box)))
    assert np.array_equal(apply("pixelate", np.full_like(image, 9)), np.full_like(image, 9))
    assert len(np.unique(changed[:, :, 0], axis=0)) <= 20


def test_motion_blur_against_a_loop():
    """Half a Gaussian along a line; edges are repeated; what is constant stays so."""
    layer = np.random.default_rng(0).integers(0, 256, (9, 12)).astype(np.uint8)
    length, spread = 4, 3.0
    weights = [np.exp(-(step**2) / (2 * spread**2)) for step in range(2 * length + 1)]
    for angle in (-135.0, -90.0, -61.3):
        blurred = corruptions.motion_blur(layer, length, spread, angle)
        for row, column in np.ndindex(*layer.shape):
            total = 0.0
            for step, weight in enumerate(weights):
                down = int(np.ceil(step * np.sin(np.pi * angle / 180) - 0.5))
                right = int(np.ceil(step * np.cos(np.pi * angle / 180) - 0.5))
                total += weight * layer[min(max(row + down, 0), 8), min(max(column + right, 0), 11)]
            assert blurred[row, column] == pytest.approx(total / sum(weights))
    assert np.allclose(corruptions.motion_blur(np.full((5, 5), 40), 14, 12, -70), 40)


def test_snow_only_whitens():
    """No pixel gets darker; on black it is equal to itself turned by 180 degrees, and as grey as snow."""
    image = smooth()
    assert (apply("snow", image).astype(int) >= image.astype(int) - 1).all()
    black = apply("snow", np.zeros_like(image))
    assert np.array_equal(black, black[::-1, ::-1])
    assert (black == black[..., :1]).all()
    assert black.min() >= 25  # 0.2 * 0.5 of whitened black
    assert black.max() > 60


def test_zoom_keeps_the_size_and_the_middle():
    field = np.add.outer(np.arange(32.0), np.zeros(32))
    assert np.array_equal(corruptions._zoomed(field, 1), field)
    for factor in (1.25, 1.75, 2.25):
        large = corruptions._zoomed(field, factor)
        assert large.shape == (32, 32)
        assert large.mean() == pytest.approx(15.5, abs=1)
        assert np.diff(large[:, 0]).mean() == pytest.approx(1 / factor, rel=0.1)


def test_frost_lays_a_cut_out_over_the_image():
    """0.75 of the image and 0.45 of a cut-out that lies within a texture; each texture is used."""
    image = smooth()
    texture = np.zeros((50, 60, 3), dtype=np.uint8)
    texture[..., 0] = 4 * np.arange(50)[:, None]
    texture[..., 1] = 4 * np.arange(60)
    changed = apply("frost", np.zeros_like(image), textures=[texture])
    top, left = (round(changed[0, 0, channel] / 0.45 / 4) for channel in (0, 1))
    expected = (0.45 * texture[top : top + 32, left : left + 32]).astype(int)
    assert np.abs(changed.astype(int) - expected).max() <= 1
    flat = [np.full((40, 40, 3), value, dtype=np.uint8) for value in (10, 200)]
    seen = {tuple(apply("frost", image, seed=seed, textures=flat)[0, 0]) for seed in range(20)}
    weighted = [np.minimum(0.75 * image[0, 0] + 0.45 * value, 255).astype(int) for value in (10, 200)]
    assert seen == {tuple(int(value) for value in one) for one in weighted}


def test_drawn_frost_looks_as_the_photographs_do():
    """Mean colour and contrast as measured; always the same; coarser and finer structure."""
    textures = corruptions.drawn_textures()
    assert len(textures) == 5
    for texture, (mean, deviation, _) in zip(textures, corruptions.FROST_LOOKS, strict=True):
        assert np.allclose(texture.mean((0, 1)), mean, atol=2)
        assert np.allclose(texture.std((0, 1)), deviation, rtol=0.15)
    again = corruptions.drawn_textures.__wrapped__()
    assert all(np.array_equal(one, other) for one, other in zip(textures, again, strict=True))


def test_fog_is_brightest_where_it_is_thickest():
    """On white the result is (1 + 1.5 h) / 2.5 for a height map h in [0, 1]; black stays black."""
    white = apply("fog", np.full((32, 32, 3), 255, dtype=np.uint8))
    heights = corruptions.plasma(32, 1.75, np.random.default_rng(0))
    expected = (1 + 1.5 * heights) / 2.5 * 255
    assert np.abs(white - expected[..., None]).max() < 1.001
    assert white.min() == 102
    assert white.max() == 255
    assert apply("fog", np.zeros((32, 32, 3), dtype=np.uint8)).max() == 0


def test_plasma_against_a_loop():
    """Diamond-square, point by point: the mean of four neighbours on a torus, and noise that gets less."""
    size, decay = 8, 2.0
    generator = np.random.default_rng(3)
    heights = np.zeros((size, size))
    step, roughness = size, 1.0
    while step > 1:
        half = step // 2
        shape = (size // step, size // step)
        for first, second in (((half, half), "square"), ((0, half), "diamond"), ((half, 0), "diamond")):
            noise = generator.uniform(-roughness, roughness, shape)
            offsets = [(-half, -half), (-half, half), (half, -half), (half, half)]
            if second == "diamond":
                offsets = [(-half, 0), (half, 0), (0, -half), (0, half)]
            for i, j in np.ndindex(*shape):
                row, column = first[0] + i * step, first[1] + j * step
                around = [heights[(row + down) % size, (column + right) % size] for down, right in offsets]
                heights[row, column] = sum(around) / 4 + noise[i, j]
        step, roughness = half, roughness / decay**2
    heights -= heights.min()
    assert np.allclose(corruptions.plasma(size, decay, np.random.default_rng(3)), heights / heights.max())
    fine = [np.abs(np.diff(corruptions.plasma(32, d, np.random.default_rng(0)), axis=0)).mean() for d in (1.3, 3.0)]
    assert fine[0] > 2 * fine[1]


def test_mud_covers_some_pixels_and_leaves_the_others():
    """A covered pixel is at least 80 % mud; between 1 and 20 % are covered."""
    image = np.full((32, 32, 3), 200, dtype=np.uint8)
    shares = []
    for seed in range(20):
        changed = apply("spatter", image, seed=seed).astype(float)
        covered = (changed != 200).any(-1)
        mud = np.array([63, 42, 20])
        assert (changed[covered] <= 0.2 * 200 + 0.8 * mud + 1e-9).all()
        assert (changed[covered] >= mud - 1).all()
        shares.append(covered.mean())
    assert 0.01 < np.mean(shares) < 0.2


def test_water_lightens_some_pixels():
    """Levels 1 to 3: never darker, in water's colour, at most half of it; there may be no drop at all."""
    image = np.full((32, 32, 3), 60, dtype=np.uint8)
    for level in (1, 2, 3):
        added = np.stack([apply("spatter", image, level, seed).astype(int) - 60 for seed in range(10)])
        assert added.min() >= -1
        assert added.max() == pytest.approx(0.5 * 238, abs=1)
        assert 0.001 < (added > 0).mean() < 0.5
    assert not corruptions._water(np.zeros((32, 32))).any()


def test_canny_finds_a_step_once():
    """One pixel wide, along the whole step; nothing where nothing changes, and weak steps only beside strong ones."""
    grey = np.zeros((12, 12), dtype=np.uint8)
    grey[:, 6:] = 200
    edges = corruptions.canny(grey, 50, 150)
    assert edges.sum(1).tolist() == [1] * 12
    assert edges[:, 5:7].any(1).all()
    weak = grey // 8  # a gradient of 4 * 25 = 100
    assert not corruptions.canny(weak, 50, 150).any()
    weak[:3] = grey[:3]
    assert corruptions.canny(weak, 50, 150)[6:].any()


def test_equalized_levels_use_the_whole_range():
    levels = np.random.default_rng(0).integers(100, 120, (32, 32)).astype(np.uint8)
    equal = corruptions._equalized(levels)
    assert (equal.min(), equal.max()) == (0, 255)
    for value in (100, 107, 119):
        below = (levels <= value).sum() - (levels == 100).sum()
        assert (equal[levels == value] == np.rint(255 * below / (levels != 100).sum())).all()
    assert np.array_equal(corruptions._equalized(np.full((4, 4), 7, np.uint8)), np.full((4, 4), 7))


def test_elastic_takes_its_corners_where_they_were_moved():
    """On a ramp of x and y, the value at a moved corner is that of the corner: both parts, with and without."""
    ramp = np.zeros((32, 32, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = 8 * np.arange(32), 8 * np.arange(32)[:, None]
    same = corruptions.elastic(ramp, (0, 0, 0), np.random.default_rng(0), ())
    assert np.allclose(same * 255, ramp)
    for seed in range(5):
        changed = corruptions.elastic(ramp, (0, 0, 2.0), np.random.default_rng(seed), ()) * 255 / 8
        corners = np.array([(26, 26), (26, 6), (6, 6)])
        moved = corners + np.random.default_rng(seed).uniform(-2, 2, (3, 2))
        for (right, down), corner in zip(moved, corners, strict=True):
            i, j = int(down), int(right)
            high, wide = down - i, right - j
            window = changed[i : i + 2, j : j + 2, :2]
            value = (1 - high) * ((1 - wide) * window[0, 0] + wide * window[0, 1])
            value += high * ((1 - wide) * window[1, 0] + wide * window[1, 1])
            assert np.allclose(value, corner, atol=1e-6)
    displaced = corruptions.elastic(ramp, (3.2, 0.96, 0), np.random.default_rng(0), ()) * 255 / 8
    inner = (displaced - ramp / 8)[4:-4, 4:-4, :2]
    assert 0.2 < inner.std() < 1.5
    assert np.abs(inner).max() <= 3.2
    flat = np.full((32, 32, 3), 99, dtype=np.uint8)
    assert np.abs(apply("elastic", flat).astype(int) - 99).max() <= 1


def test_each_image_is_corrupted_by_itself(monkeypatch):
    """The result of an image depends on its place and the numbers, not on blocks or on the others."""
    x, _ = images_and_labels(30, 0)
    kinds = np.arange(30) % 10
    whole = np.concatenate(list(corrupted(x, kinds, level=5, numbers=(0, 1))))
    monkeypatch.setattr(corruptions, "BLOCK", 7)
    blocks = list(corrupted(x, kinds, level=5, numbers=(0, 1)))
    assert [len(block) for block in blocks] == [7, 7, 7, 7, 2]
    assert np.array_equal(np.concatenate(blocks), whole)
    other = x.copy()
    other[:20] = 0
    again = np.concatenate(list(corrupted(other, np.where(np.arange(30) < 20, 1, kinds), level=5, numbers=(0, 1))))
    assert np.array_equal(again[20:], whole[20:])
    for numbers in ((0, 2), (1, 1)):
        changed = np.concatenate(list(corrupted(x, kinds, level=5, numbers=numbers)))
        assert not np.array_equal(changed[0], whole[0])
        assert np.array_equal(changed[3], whole[3])  # brightness draws nothing


def test_other_processes_give_the_same_pixels():
    """Each image corrupted in one of two new processes, in turn."""
    images = [smooth(seed) for seed in range(10)]
    generators = [np.random.default_rng(seed) for seed in range(10)]
    here = [corrupt(*each) for each in zip(images, NAMES, [5] * 10, generators, strict=True)]
    generators = [np.random.default_rng(seed) for seed in range(10)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = list(pool.map(corrupt, images, NAMES, [5] * 10, generators))
    assert all(np.array_equal(one, other) for one, other in zip(here, there, strict=True))


# ---- reading CIFAR-10 -----------------------------------------------------------------------------------------------


def test_batches_are_read_in_their_order(tmp_path):
    """Five for training, one for test; few images are not the published files, and the note says how many."""
    x, y, test_x, test_y = write_batches(tmp_path)
    for folder in (tmp_path, tmp_path / "cifar-10-batches-py"):
        plain = read_cifar10(folder)
        assert np.array_equal(plain.train[0].numpy(), x)
        assert plain.train[1].tolist() == y
        assert np.array_equal(plain.test[0].numpy(), test_x)
        assert plain.test[1].tolist() == test_y
        assert not plain.complete
        assert "200 training and 100 test images" in plain.note
    assert {split: len(labels) for split, (_, labels) in plain.parts().items()} == {
        "train": 180, "valid": 20, "test": 100
    }  # fmt: skip


class _Python2Pickler(pickle._Pickler):
    """Writes as Python 2 did: bytes and text are one kind of string, and numpy.core is where arrays come from."""

    dispatch = pickle._Pickler.dispatch.copy()

    def _save_string(self, value):
        data = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(b"T" + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = _save_string

    def save_global(self, obj, name=None):
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{obj.__name__}\n".encode())
        self.memoize(obj)


def test_batches_of_python_2_are_read(tmp_path):
    """The published files are such: byte strings without a kind, protocol 2."""
    x, y, _, _ = write_batches(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    with path.open("wb") as file:
        _Python2Pickler(file, protocol=2).dump({"data": x[:40].reshape(40, -1), "labels": y[:40]})
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert np.array_equal(read_cifar10(tmp_path).train[0].numpy(), x)


def test_complete_files_are_known_by_their_sums(tmp_path, monkeypatch):
    """With the sums that torchvision knows, the files count as published."""
    import torchvision

    write_batches(tmp_path)
    sums = [
        [path.name, hashlib.md5(path.read_bytes()).hexdigest()]
        for path in sorted((tmp_path / "cifar-10-batches-py").iterdir())
    ]
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", sums[5:])
    assert read_cifar10(tmp_path).complete
    assert read_cifar10(tmp_path).note == ""


def test_mosaics_are_read_tile_by_tile(tmp_path):
    """Row by row, 100 a row; the last row may be shorter. Batches count first, where both are there."""
    parts = write_mosaics(tmp_path)
    for folder in (tmp_path, tmp_path / "cifar10_webp"):
        plain = read_cifar10(folder)
        for (x, y), name in ((plain.train, "data_batch_1"), (plain.test, "test_subset")):
            assert np.array_equal(x.numpy(), parts[name][0])
            assert y.tolist() == parts[name][1]
    assert "subset" in plain.note
    write_batches(tmp_path)
    assert len(read_cifar10(tmp_path).train[1]) == 200


def test_missing_files_are_named(tmp_path):
    """Nothing; a batch; the test images of the mosaics."""
    (needed,) = missing_files(tmp_path)
    assert needed.path == tmp_path / "cifar-10-batches-py"
    assert needed.downloads
    with pytest.raises(BenchmarkError, match=r"cifar-10-batches-py is missing.*debiasbench prepare.*root=DIR"):
        read_cifar10(tmp_path)
    write_mosaics(tmp_path)
    (tmp_path / "cifar10_webp" / "test_subset.webp").unlink()
    (needed,) = missing_files(tmp_path)
    assert needed.path.name == "test_*.webp"
    assert not needed.downloads
    write_batches(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    assert [file.path.name for file in missing_files(tmp_path)] == ["data_batch_3"]
    with pytest.raises(BenchmarkError, match="data_batch_3 is missing"):
        read_cifar10(tmp_path)


def _damaged(kind, path):
    x, y = images_and_labels(4, 0)
    flat = x.reshape(4, -1)
    contents = {
        "empty": b"",
        "cut off": path.read_bytes()[:1000],
        "no pickle": b"hello",
        "no dictionary": pickle.dumps([1]),
        "no data": pickle.dumps({"labels": y}),
        "short rows": pickle.dumps({"data": flat[:, :3000], "labels": y}),
        "float": pickle.dumps({"data": flat.astype(np.float32), "labels": y}),
        "list": pickle.dumps({"data": [1, 2], "labels": y}),
        "fewer labels": pickle.dumps({"data": flat, "labels": y[:3]}),
        "no labels": pickle.dumps({"data": flat, "labels": None}),
        "label 10": pickle.dumps({"data": flat, "labels": [0, 1, 10, 2]}),
        "code": pickle.dumps({"data": flat, "labels": Path.home}),
    }
    path.write_bytes(contents[kind])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "is not a batch of CIFAR-10, or is cut off"), ("cut off", "or is cut off"),
        ("no pickle", "is not a batch"), ("no dictionary", "is not a batch"), ("no data", "is not a batch.*data"),
        ("short rows", r"uint8 of shape \(N, 3072\). Got uint8 \(4, 3000\)"), ("float", "Got float32"),
        ("list", "Got list"), ("fewer labels", "one label an image, 4. Got 3"), ("no labels", "Got NoneType"),
        ("label 10", "labels must be 0 to 9. Got 10"), ("code", "where only arrays are allowed"),
    ],
)  # fmt: skip
def test_damaged_batches_are_told(tmp_path, kind, words):
    """What is wrong, in which file, and what to do; nothing of a pickle is run."""
    write_batches(tmp_path)
    _damaged(kind, tmp_path / "cifar-10-batches-py" / "data_batch_2")
    with pytest.raises(BenchmarkError, match=rf"data_batch_2.*{words}") as error:
        read_cifar10(tmp_path)
    assert "etch it again" in str(error.value)


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    """The file that it would make is not there."""

    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was_here",))

    write_batches(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({"data": Attack()}))
    with pytest.raises(BenchmarkError, match="where only arrays are allowed"):
        read_cifar10(tmp_path)
    assert not (tmp_path / "was_here").exists()


def test_damaged_mosaics_are_told(tmp_path):
    """A table of another length, of other columns, of other labels, or none; a picture of another width, or none."""
    write_mosaics(tmp_path)
    table, picture = (tmp_path / "cifar10_webp" / f"data_batch_1.{ending}" for ending in ("csv", "webp"))
    lines = table.read_text(encoding="utf-8").splitlines()
    for some in (lines[:150], lines + lines[1:100]):
        table.write_text("\n".join(some), encoding="utf-8")
        with pytest.raises(BenchmarkError, match=r"do not belong together: 3200 x 96.*201 to 300.*the table has"):
            read_cifar10(tmp_path)
    table.write_text("\n".join(["index,class,filename", *lines[1:]]), encoding="utf-8")
    with pytest.raises(BenchmarkError, match="has no column 'label'"):
        read_cifar10(tmp_path)
    table.write_text("\n".join([*lines[:-1], "229,cat,x.png"]), encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"labels must be 0 to 9\. Got 'cat'"):
        read_cifar10(tmp_path)
    table.unlink()
    with pytest.raises(BenchmarkError, match=r"or its data_batch_1\.csv cannot be read"):
        read_cifar10(tmp_path)
    table.write_text("\n".join(lines), encoding="utf-8")
    Image.new("RGB", (3168, 96)).save(picture)
    with pytest.raises(BenchmarkError, match="do not belong together: 3168 x 96"):
        read_cifar10(tmp_path)
    picture.write_bytes(b"no")
    with pytest.raises(BenchmarkError, match=r"data_batch_1\.webp is not an image"):
        read_cifar10(tmp_path)


def test_prepare_fetches_the_archive_and_unpacks_it(tmp_path, monkeypatch):
    """Where nothing is missing, nothing is fetched; a download that fails says what to do by hand."""
    write_batches(tmp_path / "packed")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "packed" / "cifar-10-batches-py", "cifar-10-batches-py")
    calls = []

    def fetch(urls, path, *, sha256):
        calls.append(path)
        assert (urls, sha256) == (cifar.MIRRORS, cifar.ARCHIVE_SHA256)
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(tmp_path / "x.tar.gz", path))

    with monkeypatch.context() as patched:
        patched.setattr(cifar, "fetch", fetch)
        for number, dataset in enumerate((CIFAR10(), CCIFAR(), CIFAR10(root=str(tmp_path / "r")))):
            data_dir = tmp_path / str(number)
            folder = tmp_path / "r" if dataset.root else data_dir
            assert dataset.present_files(data_dir) == []
            dataset.prepare(data_dir)
            dataset.prepare(data_dir)
            assert calls == [folder / "cifar-10-python.tar.gz"]
            assert [path.name for path in folder.iterdir()] == ["cifar-10-batches-py"]
            assert dataset.needed_files(data_dir) == []
            assert len(dataset.present_files(data_dir)) == 6
            calls.clear()
    monkeypatch.setattr(cifar, "MIRRORS", ("https://127.0.0.1:1/a.tar.gz", "https://127.0.0.1:1/b.tar.gz"))
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)  # between attempts
    told = r"(?s)could not be fetched:.*/a\.tar\.gz: .*/b\.tar\.gz: .*By hand: .* save it as .*cifar-10-python\.tar\.gz"
    with pytest.raises(BenchmarkError, match=told):
        CIFAR10(root=str(tmp_path / "cifar-10-batches-py")).prepare(tmp_path)


# ---- the datasets ---------------------------------------------------------------------------------------------------


def test_cifar10_has_no_bias(tmp_path):
    """The control of Table 12: bias unknown, the CIFAR stem, plain accuracy."""
    x, y, test_x, _ = write_batches(tmp_path)
    dataset = CIFAR10()
    splits = dataset.build(tmp_path)
    for check in DATASET_CHECKS:
        check(dataset, splits)
    for check in DATASET_BUILD_CHECKS:
        check(dataset, splits, tmp_path)
    assert np.array_equal(splits.train.x.numpy(), x[:180])
    assert splits.valid.y.tolist() == y[180:]
    assert np.array_equal(splits.test.x.numpy(), test_x)
    assert {int(part.bias.max()) for part in splits.named().values()} == {-1}
    assert not dataset.has_bias_labels
    assert dataset.conflict_ratio is None
    assert not splits.official
    assert "180" not in splits.note
    assert "200 training" in splits.note
    assert dataset.recipe.net == "resnet18-small"
    assert dataset.official_counts == {"train": 45_000, "valid": 5_000, "test": 10_000}


def test_recipes_are_those_of_table_6():
    """Adam 1e-3, weight decay 1e-3, batches of 256, 200 epochs, halved each 40."""
    recipe = CCIFAR.recipe
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("adam", 1e-3, 1e-3)
    assert (recipe.batch_size, recipe.epochs, recipe.net) == (256, 200, "resnet18")
    rates = [learning_rate_at(recipe, epoch / 200) for epoch in (0, 39, 40, 80, 120, 199)]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5])
    assert CIFAR10.recipe == recipe.replace(net="resnet18-small")
    disen = recipe.replace(**CCIFAR.presets["disen"]["recipe"])
    rates = [learning_rate_at(disen, step / 50_000) for step in (19_999, 20_001, 49_999)]
    assert rates == pytest.approx([5e-4, 2.5e-4, 6.25e-5])
    assert disen.steps == 50_000


@pytest.fixture
def generated(tmp_path):
    """A CCIFAR of 180 / 20 / 100 images: function of its parameters."""
    arrays = write_batches(tmp_path)
    return lambda **parameters: (CCIFAR(**parameters).build(tmp_path), arrays)


def test_generated_samples_are_the_corrupted_images(generated, tmp_path):
    """Each image with the corruption that its bias names, by the seed, the split and its place; conflicts in blocks."""
    splits, (x, y, test_x, _) = generated(rho=0.3)
    dataset = CCIFAR(rho=0.3)
    for check in DATASET_CHECKS:
        check(dataset, splits)
    for check in DATASET_BUILD_CHECKS:
        check(dataset, splits, tmp_path)
    clean = {"train": x[:180], "valid": x[180:], "test": test_x, "tune": x[180:]}
    for number, split in enumerate(("train", "valid", "test", "tune")):
        part = splits.named()[split]
        for row in range(0, len(part), 9):
            seed = derived_seed("data", 0, number, row)
            generator = np.random.Generator(np.random.PCG64(seed))
            image = np.ascontiguousarray(clean[split][row].transpose(1, 2, 0))
            expected = corrupt(image, NAMES[int(part.bias[row, 0])], 5, generator)
            assert np.array_equal(part.x[row].numpy(), expected.transpose(2, 0, 1))
        for label in range(10):
            assert (part.bias[part.y == label, 0].diff() >= 0).all()  # dealt in blocks
    assert splits.train.y.tolist() == y[:180]
    assert abs(int(splits.train.conflicting.sum()) - 54) <= 10
    assert int(splits.test.conflicting.sum()) == 90
    assert int(splits.tune.conflicting.sum()) >= 16  # of 20
    assert torch.equal(splits.tune.y, splits.valid.y)


def test_full_size_has_its_share_of_conflicts_in_every_part():
    """Of 45,000 and 5,000 in CIFAR-10's proportions: 225 and 25 at 0.5 %, up to rounding; none is left out."""
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(0))
    y = (torch.arange(50_000) % 10)[order]
    for rho in (0.005, 0.01, 0.05):
        for part in (y[:45_000], y[45_000:]):
            conflicts = int((block_conflicts(part, rho) != part).sum())
            assert conflicts == pytest.approx(rho * len(part), abs=5)
        counts = torch.bincount(y[:45_000] * 10 + block_conflicts(y[:45_000], rho), minlength=100).view(10, 10)
        off = counts[~torch.eye(10, dtype=torch.bool)]
        assert (off - rho / 9 * 4500).abs().max() <= 1.2


def test_the_note_says_what_was_made(generated):
    """The source, that there was no archive, the drawn frost, the counts of a subset."""
    splits, _ = generated()
    assert not splits.official
    for words in ("Generated", "level 5", "no archive at 0.5pct", "frost is drawn", "200 training and 100 test images"):
        assert words in splits.note
    assert "archive" not in generated(source="generated", level=2)[0].note


def test_only_photographs_at_the_highest_level_are_official(generated, tmp_path, monkeypatch):
    """Complete CIFAR-10, level 5, and the generator's own frost."""
    frost = tmp_path / "frost"
    frost.mkdir()
    digests = {}
    for number, name in enumerate(PLUGIN.PHOTOGRAPHS):
        Image.fromarray(smooth(number, size=200)).save(frost / name)
        digests[name] = hashlib.sha256((frost / name).read_bytes()).hexdigest()
    dataset = CCIFAR(frost="photographs")
    with pytest.raises(BenchmarkError, match=r"frost1\.png has a wrong checksum"):
        generated(frost="photographs")
    monkeypatch.setattr(PLUGIN, "PHOTOGRAPHS", digests)
    whole = read_cifar10
    monkeypatch.setattr(
        PLUGIN, "read_cifar10", lambda folder: Cifar10(whole(folder).train, whole(folder).test, True, "")
    )
    assert dataset.needed_files(tmp_path) == []
    splits, _ = generated(frost="photographs")
    assert splits.official
    assert "frost" not in splits.note
    drawn, _ = generated()
    assert not drawn.official
    assert splits.fingerprint() != drawn.fingerprint()
    frosted = splits.train.bias[:, 0] == NAMES.index("frost")
    assert torch.equal(splits.train.x[~frosted], drawn.train.x[~frosted])
    assert not generated(frost="photographs", level=4)[0].official
    image = PLUGIN.photograph(frost / "frost1.png")
    assert np.array_equal(image, smooth(0, size=200)[2::5, 2::5])
    (frost / "frost3.png").unlink()
    assert [file.path.name for file in dataset.needed_files(tmp_path)] == ["frost3.png"]
    with pytest.raises(BenchmarkError, match=r"frost3\.png cannot be read.*frost=drawn"):
        generated(frost="photographs")


def test_generated_data_are_made_once(generated, tmp_path, monkeypatch):
    """A second build corrupts nothing; other seeds, levels, ratios and images are other entries."""
    first, _ = generated()
    made = []
    original = corruptions.corrupted
    monkeypatch.setattr(corruptions, "corrupted", lambda *a, **k: made.append(k["numbers"]) or original(*a, **k))
    again, _ = CCIFAR().build(tmp_path), None
    assert made == []
    assert again.fingerprint() == first.fingerprint()
    assert first.train.x_sha256 == again.train.x_sha256 != ""
    fingerprints = {first.fingerprint()}
    for parameters in ({"data_seed": 1}, {"level": 4}, {"rho": 0.2}):
        fingerprints.add(CCIFAR(**parameters).build(tmp_path).fingerprint())
    assert len(fingerprints) == 4
    assert (1, 0) in made
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    write_batch(path, *images_and_labels(40, 77))
    assert CCIFAR().build(tmp_path).fingerprint() not in fingerprints
    monkeypatch.setattr(corruptions, "VERSION", 99)
    made.clear()
    CCIFAR().build(tmp_path)
    assert [numbers[1] for numbers in made] == [0, 1, 2, 3]


def test_the_archive_is_read(tmp_path):
    """Labels and biases from the names; training is align and conflict; the note says so; no tune."""
    write_archive(tmp_path / "cifar10c")
    dataset = CCIFAR()
    assert dataset.needed_files(tmp_path) == []
    assert dataset.present_files(tmp_path)
    splits = dataset.build(tmp_path)
    for check in DATASET_CHECKS:
        check(dataset, splits)
    check_builds_the_same_again(dataset, splits, tmp_path)
    assert {name: len(part) for name, part in splits.named().items()} == {"train": 40, "valid": 10, "test": 30}
    assert int(splits.train.conflicting.sum()) == 10
    assert torch.equal(splits.test.bias[:, 0], (splits.test.y + 3) % 10)
    assert torch.equal(splits.valid.bias[:, 0], splits.valid.y)
    label = int(splits.test.y[0])
    assert np.array_equal(splits.test.x[0].numpy(), smooth(100 * label + FIRST_SEED["test"]).transpose(2, 0, 1))
    assert not splits.official
    assert "archive" in splits.note
    assert "30 aligned and 10 conflicting" in splits.note
    elsewhere = CCIFAR(root=str(tmp_path / "cifar10c"), source="archive").build(tmp_path / "nowhere")
    assert elsewhere.fingerprint() == splits.fingerprint()


def test_auto_takes_the_archive_first_and_says_so(tmp_path):
    """Only where the archive has the ratio; `source` forces either; fingerprints tell the data apart."""
    write_archive(tmp_path / "cifar10c")
    write_batches(tmp_path)
    assert "Read from the archive" in CCIFAR().build(tmp_path).note
    other = CCIFAR(rho=0.01).build(tmp_path)
    assert "no archive at 1pct was found" in other.note
    forced = CCIFAR(source="generated").build(tmp_path)
    assert "Generated" in forced.note
    assert forced.fingerprint() != CCIFAR().build(tmp_path).fingerprint()


@pytest.mark.parametrize("part", ["0.5pct/align", "0.5pct/conflict", "0.5pct/valid", "test"])
def test_an_archive_with_a_folder_missing_is_told(tmp_path, part):
    """Never replaced by generated data in silence, though CIFAR-10 is there."""
    write_archive(tmp_path / "cifar10c", n=1)
    write_batches(tmp_path)
    shutil.rmtree(tmp_path / "cifar10c" / part)
    (needed,) = CCIFAR().needed_files(tmp_path)
    assert needed.path == tmp_path / "cifar10c" / part
    with pytest.raises(BenchmarkError, match=rf"{part} is missing in the Corrupted CIFAR-10 archive.*source=generated"):
        CCIFAR().build(tmp_path)
    (tmp_path / "cifar10c" / part).mkdir()
    assert CCIFAR().needed_files(tmp_path) == [needed]  # an empty folder is no better
    with pytest.raises(BenchmarkError, match="is missing in the Corrupted"):
        CCIFAR().build(tmp_path)


@pytest.mark.parametrize("name", ["3.png", "a_3_b.png", "0_3_12.png", "0_-1_2.png", "_3.png"])
def test_names_that_do_not_parse_are_told(tmp_path, name):
    write_archive(tmp_path / "cifar10c", n=1)
    Image.fromarray(smooth()).save(tmp_path / "cifar10c" / "test" / "3" / name)
    with pytest.raises(BenchmarkError, match=r"the name must be <\.\.>_<label>_<bias>"):
        CCIFAR().build(tmp_path)


def test_an_archive_of_another_size_is_told(tmp_path):
    write_archive(tmp_path / "cifar10c", n=1, size=64)
    with pytest.raises(BenchmarkError, match="is 64 x 64 pixels; the archive's images are 32 x 32"):
        CCIFAR().build(tmp_path)


def test_what_an_archive_cannot_have_is_refused():
    """Another ratio, another level, another frost."""
    for parameters in ({"rho": 0.03}, {"level": 3}, {"frost": "photographs"}):
        with pytest.raises(BenchmarkError, match=r"rho 0\.005, 0\.01, 0\.02, 0\.05.*source=generated"):
            CCIFAR(source="archive", **parameters)
        CCIFAR(source="auto", **parameters)


@pytest.mark.parametrize("own", [{"level": 3}, {"frost": "photographs"}, {"data_seed": 1}], ids=str)
def test_auto_generates_what_the_archive_does_not_have(tmp_path, own):
    """Another level is never told of data that have the archive's."""
    write_archive(tmp_path / "cifar10c")
    dataset = CCIFAR(**own)
    assert not dataset._from_archive(tmp_path)
    assert all("cifar" in str(file.path) or "frost" in str(file.path) for file in dataset.needed_files(tmp_path))
    assert dataset.needed_files(tmp_path)  # CIFAR-10, which is not there


def test_a_packed_archive_is_used_though_cifar10_is_there(tmp_path):
    """It must be unpacked first; the run says so instead of generating."""
    write_batches(tmp_path)
    write_archive(tmp_path / "cifar10c", n=1)
    with zipfile.ZipFile(tmp_path / "cifar10c.zip", "w") as packed:
        for path in sorted((tmp_path / "cifar10c").rglob("*.png")):
            packed.write(path, path.relative_to(tmp_path))
    shutil.rmtree(tmp_path / "cifar10c")
    needed = CCIFAR().needed_files(tmp_path)
    assert len(needed) == 4
    assert "debiasbench prepare ccifar unpacks it" in needed[0].source
    CCIFAR().prepare(tmp_path)
    assert CCIFAR().needed_files(tmp_path) == []
    assert "Read from the archive" in CCIFAR().build(tmp_path).note


def test_an_archive_with_images_in_the_wrong_folder_is_told(tmp_path):
    write_archive(tmp_path / "cifar10c", n=1)
    Image.fromarray(smooth()).save(tmp_path / "cifar10c" / "0.5pct" / "conflict" / "3" / "9_3_3.png")
    with pytest.raises(BenchmarkError, match=r"9_3_3\.png is not in the folder that its name gives"):
        CCIFAR().build(tmp_path)


# ---- real images ----------------------------------------------------------------------------------------------------


def test_real_cifar10_is_what_its_author_made(real):
    """The first labels, classes in equal parts, and the mean colour that everyone normalises by."""
    assert real.train[1][:5].tolist() == [6, 9, 9, 4, 1]
    assert real.test[1][:2].tolist() == [3, 8]
    counts = torch.bincount(real.test[1])
    assert counts.tolist() == [len(real.test[1]) // 10] * 10
    mean = real.train[0][:2000].double().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor(cifar.CIFAR_RECIPE.mean, dtype=torch.float64), atol=0.01)
    assert real.complete == (len(real.train[1]) == 50_000)


def test_real_images_are_corrupted(real, monkeypatch, tmp_path):
    """A few hundred of them, as users build them; corruptions are told apart by simple statistics."""
    some = Cifar10((real.train[0][:300], real.train[1][:300]), (real.test[0][:100], real.test[1][:100]), False, "300.")
    monkeypatch.setattr(PLUGIN, "read_cifar10", lambda _: some)
    splits = CCIFAR(rho=0.9, source="generated").build(tmp_path)
    x, clean = splits.train.x.double(), some.train[0][:270].double()
    bias = splits.train.bias[:, 0]

    def mean_of(values, name):
        return float(values[bias == NAMES.index(name)].mean())

    brighter, spread = (x - clean).mean((1, 2, 3)), x.std((2, 3)).mean(1) / clean.std((2, 3)).mean(1)
    assert mean_of(brighter, "snow") > 25
    assert mean_of(brighter, "brightness") > 25
    assert mean_of(spread, "contrast") == pytest.approx(0.15, abs=0.02)
    assert mean_of(spread, "fog") < 0.8
    saturation = (x.amax(1) - x.amin(1)).mean((1, 2)) - (clean.amax(1) - clean.amin(1)).mean((1, 2))
    assert mean_of(saturation, "saturate") > 20
    assert mean_of(saturation, "snow") < 0
    changes = (x - clean).abs().mean((1, 2, 3))
    for name in NAMES:
        assert 1.5 < mean_of(changes, name) < 100
