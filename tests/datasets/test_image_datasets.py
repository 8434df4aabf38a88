"""BAR, BFFHQ, CelebA and folders of one's own: layout, labels, groups, and what damaged data say."""

import gzip
import hashlib
import re
import shutil
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from debiasbench.cli import main
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.grid import dataset_from_spec
from debiasbench.report import inspection
from debiasbench.report.inspection import sides_of
from debiasbench.samples import Samples
from debiasbench.schedule import learning_rate_at
from debiasbench.testing import check_data_seed


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "cache"))


def save_picture(path, value=0, size=(24, 20)):
    """A picture of one grey level, which tells which file it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, dtype=np.uint8)).save(path)


def new(name, **options):
    return datasets.get(name)[0](**options)


# ---- BAR ----------------------------------------------------------------------------------------------------------

ACTIONS = ("climbing", "diving", "fishing", "pole vaulting", "racing", "throwing")


@pytest.fixture
def small_bar(tmp_path):
    folder = tmp_path / "BAR"
    for label, action in enumerate(ACTIONS):
        for number in range(10):
            save_picture(folder / "train" / f"{action}_{number}.jpg", 20 * label + 4 + number, (30 + number, 20))
        save_picture(folder / "test" / f"{action}_7.jpg", 20 * label + 10)
    return folder


def test_bar_takes_its_labels_from_the_names(tmp_path, small_bar):
    """The class is the name up to the last underscore, and may hold a space; a tenth of each class is validation."""
    splits = new("bar", size=16).build(tmp_path)
    assert {name: len(part) for name, part in splits.named().items()} == {"train": 54, "valid": 6, "test": 6}
    for part in splits.named().values():
        assert torch.equal(part.x.float().mean((1, 2, 3)).div(20).long(), part.y)
        assert (part.bias == -1).all()
        assert not part.conflicting.any()
    assert splits.valid.y.tolist() == [0, 1, 2, 3, 4, 5]
    assert not splits.official


def test_bar_has_no_bias_labels_so_what_needs_them_declines(tmp_path, small_bar):
    """JTT's 1 / ratio does not exist; with lambda_up it runs."""
    from debiasbench.grid import expand

    grid = expand(["vanilla", "jtt", "jtt:lambda_up=20"], ["bar"], seeds=1)
    assert [cell.method_title for cell in grid.cells] == ["vanilla", "jtt:lambda_up=20"]
    (skip,) = grid.skips
    assert "the ratio of bar is unknown: give jtt:lambda_up=" in skip.reason


def test_bar_split_follows_the_data_seed(tmp_path, small_bar):
    first, again, other = (new("bar", size=16, data_seed=seed).build(tmp_path) for seed in (0, 0, 1))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    check_data_seed(new("bar", size=16), first, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("swimming_1.jpg", "the name must be <action>_<n>.jpg"), ("climbing.jpg", "the name must be <action>_<n>.jpg")],
)
def test_bar_names_that_do_not_parse_are_refused(tmp_path, small_bar, name, message):
    save_picture(small_bar / "train" / name)
    with pytest.raises(BenchmarkError, match=message):
        new("bar", size=16).build(tmp_path)


def test_bar_without_a_class_or_a_folder(tmp_path, small_bar):
    for path in (small_bar / "train").glob("racing*"):
        path.unlink()
    with pytest.raises(BenchmarkError, match="has no image of racing"):
        new("bar", size=16).build(tmp_path)
    shutil.rmtree(small_bar / "test")
    (needed,) = new("bar").needed_files(tmp_path)
    assert needed.path == small_bar / "test"


def test_prepare_tells_a_part_from_the_whole(tmp_path, small_bar, shared_data, capsys):
    """A subset trains, but it is not what was published."""
    from debiasbench.cli import main

    assert new("bar").shortfalls(tmp_path) == [
        f"{small_bar / 'train'}: 60 of 1,941 images", f"{small_bar / 'test'}: 6 of 654 images",
    ]  # fmt: skip
    assert main(["prepare", "bar", "--data-dir", str(tmp_path)]) == 0
    assert "bar: usable, but a part:" in capsys.readouterr().out
    assert main(["prepare", "--check", "bar", "--data-dir", str(tmp_path)]) == 0
    assert "bar: not complete (subset)" in capsys.readouterr().out
    assert main(["prepare", "--check", "bar", "celeba", "cifar10", "--data-dir", str(shared_data)]) == 0
    shown = capsys.readouterr().out
    assert "bar: complete" in shown
    assert "celeba: not complete (subset)" in shown
    assert "cifar10: not complete (subset)" in shown


def test_bar_as_published(shared_data):
    """Trap 39: 1,746 / 195 / 654, stratified; names give the published counts. Half of these images are re-encoded."""
    splits = new("bar", size=16).build(shared_data)
    assert {name: len(part) for name, part in splits.named().items()} == new("bar").official_counts
    assert not splits.official  # no checksums were published, so re-encoded images cannot be told from others
    assert splits.note.startswith("Counts are as published;")
    train = splits.train.y.bincount() + splits.valid.y.bincount()
    assert train.tolist() == [326, 520, 163, 279, 336, 317]
    assert splits.test.y.bincount().tolist() == [105, 159, 42, 131, 132, 85]
    assert splits.valid.y.bincount().tolist() == [33, 52, 16, 28, 34, 32]


# ---- BFFHQ --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_bffhq(tmp_path):
    folder = tmp_path / "bffhq"
    number = 0
    for label, bias, n in ((0, 0, 4), (1, 1, 4), (0, 1, 1), (1, 0, 1)):
        side = "align" if label == bias else "conflict"
        for _ in range(n):
            number += 1
            save_picture(folder / "0.5pct" / side / str(label) / f"{number}_{label}_{bias}.png", number)
        for split in ("valid", "test"):
            number += 1
            save_picture(folder / split / f"{number}_{label}_{bias}.png", number)
    return folder


def test_bffhq_reads_attributes_from_the_names(tmp_path, small_bffhq):
    splits = new("bffhq").build(tmp_path)
    for split, part in splits.named().items():
        place = small_bffhq / ("0.5pct" if split == "train" else split)
        found = {}
        for path in place.rglob("*.png"):
            number, label, bias = map(int, path.stem.split("_"))
            found[number] = (label, bias)
        numbers = part.x[:, 0, 0, 0].tolist()
        assert sorted(numbers) == sorted(found)
        assert [found[number] for number in numbers] == list(
            zip(part.y.tolist(), part.bias[:, 0].tolist(), strict=True)
        )
    assert int(splits.train.conflicting.sum()) == 2
    assert not splits.official


def test_bffhq_reports_the_whole_test_split_and_its_conflicting_half(tmp_path, small_bffhq):
    """PGD's acc_unbiased keeps all test images, Disen's acc_conflict only the conflicting ones."""
    from debiasbench.evaluation.evaluation import Evaluation

    dataset = new("bffhq")
    splits = dataset.build(tmp_path)
    logits = torch.nn.functional.one_hot(splits.test.bias[:, 0], 2).float()  # predicts the bias
    metrics = Evaluation(dataset, splits).metrics("test", logits)
    assert (metrics["acc_unbiased"], metrics["acc_conflict"], metrics["acc_aligned"]) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("name", ["1_0.png", "1_2_0.png", "1_0_0_0.png", "a.png"])
def test_bffhq_names_that_do_not_parse_are_refused(tmp_path, small_bffhq, name):
    save_picture(small_bffhq / "test" / name)
    with pytest.raises(BenchmarkError, match="the name must be <id>_<attr0>_<attr1>"):
        new("bffhq").build(tmp_path)


def test_bffhq_images_in_the_wrong_folder_are_refused(tmp_path, small_bffhq):
    """Aligned images among the conflicting ones would change the ratio."""
    save_picture(small_bffhq / "0.5pct" / "conflict" / "1" / "99_1_1.png")
    with pytest.raises(BenchmarkError, match=r"99_1_1\.png is not in the folder that its attributes give \(align\)"):
        new("bffhq").build(tmp_path)


def test_bffhq_images_of_two_sizes_are_refused(tmp_path, small_bffhq):
    for path in (small_bffhq / "test").glob("*.png"):
        save_picture(path, size=(10, 10))
    with pytest.raises(BenchmarkError, match="are of another size than those for training"):
        new("bffhq").build(tmp_path)


def test_bffhq_stand_in(shared_data):
    """The official layout, filled with other faces: counts of its README, and marked as not official."""
    splits = new("bffhq", root=str(shared_data / "bffhq_standin_from_celeba" / "bffhq")).build(shared_data)
    assert {name: len(part) for name, part in splits.named().items()} == {"train": 300, "valid": 100, "test": 142}
    assert int(splits.train.conflicting.sum()) == 2
    assert not splits.official
    cells = 2 * splits.test.y + splits.test.bias[:, 0]
    assert sorted(cells.bincount().tolist()) == [22, 40, 40, 40]


# ---- CelebA -------------------------------------------------------------------------------------------------------

HEADER = "5_o_Clock_Shadow Blond_Hair Male Young"


def write_celeba(folder, rows):
    """rows: (name, blond, male, part)."""
    folder.mkdir(exist_ok=True)
    lines = [f"{name} -1 {2 * blond - 1} {2 * male - 1}  1" for name, blond, male, _ in rows]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(rows)), HEADER, *lines]) + "\n", encoding="utf-8")
    (folder / "list_eval_partition.txt").write_text(
        "".join(f"{name} {part}\n" for name, *_, part in rows), encoding="utf-8"
    )


CELEBA_ROWS = [
    (f"{number:06}.jpg", blond, male, part)
    for number, (part, blond, male) in enumerate(
        [(part, blond, male) for part in (0, 0, 1, 2) for blond in (0, 1) for male in (0, 1)], start=1
    )
]


@pytest.fixture
def small_celeba(tmp_path):
    folder = tmp_path / "celeba"
    write_celeba(folder, CELEBA_ROWS)
    for number, (name, *_) in enumerate(CELEBA_ROWS):
        save_picture(folder / "img_align_celeba" / name, 10 * number, (17, 21))
    return folder


def test_celeba_labels_groups_and_parts(tmp_path, small_celeba):
    """Rows and files by name (000001.jpg is the first row); groups 2 blond + male; -1 is 0."""
    from debiasbench.evaluation.evaluation import Evaluation

    dataset = new("celeba")
    splits = dataset.build(tmp_path)
    assert {name: len(part) for name, part in splits.named().items()} == {"train": 8, "valid": 4, "test": 4}
    for number, part in enumerate(splits.named().values()):
        rows = [place for place, row in enumerate(CELEBA_ROWS) if row[3] == number]
        assert part.x.shape[1:] == (3, 17, 17)  # the central square
        assert (part.x[:, 0, 8, 8].float() / 10).round().tolist() == rows
        assert part.y.tolist() == [CELEBA_ROWS[row][1] for row in rows]
        assert part.bias[:, 0].tolist() == [CELEBA_ROWS[row][2] for row in rows]
        assert part.conflicting[:, 0].tolist() == [CELEBA_ROWS[row][1:3] == (1, 1) for row in rows]
    logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 0]), 2).float()
    evaluation = Evaluation(dataset, splits)
    groups = evaluation.groups("test", logits)
    assert [(2 * row["y"] + row["bias"], row["acc"]) for row in groups] == [(0, 1), (1, 1), (2, 1), (3, 0)]
    metrics = evaluation.metrics("test", logits)
    assert [metrics[name] for name in dataset.headline] == [0.0, 0.75, 0.75]
    assert metrics["acc_conflict"] == 0.0
    assert metrics["n_conflict"] == 1


def test_average_and_group_mean_are_told_apart():
    """Trap 33: cells of .96, .99, .86, .477 on CelebA's test sizes are .9545 on average and .8218 by groups."""
    from debiasbench.evaluation.metrics import accuracies

    sizes, shares = [9_767, 7_535, 2_480, 180], [0.96, 0.99, 0.86, 0.477]
    groups = np.repeat(np.arange(4), sizes)
    correct = np.concatenate([np.arange(n) < round(share * n) for n, share in zip(sizes, shares, strict=True)])
    found = accuracies(correct, groups // 2, (groups % 2)[:, None], bias_names=("male",), unbiased=False)
    assert found["acc_avg"] == pytest.approx(0.9545, abs=1e-4)
    assert found["acc_groupmean"] == pytest.approx(0.8218, abs=5e-4)
    assert found["acc_worst"] == pytest.approx(0.477, abs=3e-3)
    assert found["n_worst"] == 180


def test_celeba_jtt_takes_its_authors_factor():
    """The fraction of conflicting samples was not built in, so 1 / ratio does not exist."""
    from debiasbench.grid import expand

    (cell,) = expand(["jtt"], ["celeba"], seeds=1).cells
    assert (cell.method_parameters["lambda_up"], cell.method_parameters["T"]) == (50.0, 1)
    first = cell.build_method().recipe_of_first(cell.build_recipe())
    assert (first.optimizer, first.learning_rate, first.weight_decay, first.batch_size) == ("sgd", 1e-5, 0.1, 64)
    assert (first.schedule, first.clip_norm, first.momentum) == ("constant", None, 0.9)
    assert cell.build_recipe().optimizer == "adam"


def test_celeba_resnet18_is_a_preset():
    from debiasbench.grid import expand

    cells = expand(["vanilla"], ["celeba", "celeba:preset=resnet18"], seeds=1).cells
    assert [cell.recipe["net"] for cell in cells] == ["resnet50", "resnet18"]
    assert {cell.recipe["pretrained"] for cell in cells} == {"imagenet"}


def _cut(path, n):
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[:n]) + "\n", encoding="utf-8")


def _append(path, line):
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")


def _halve(path):
    path.write_bytes(path.read_bytes()[:400])


CELEBA_DAMAGES = {
    "a missing row": (lambda f: _cut(f / "list_attr_celeba.txt", 17), "has 15 rows, but its first line says 16"),
    "a missing row of the partition": (lambda f: _cut(f / "list_eval_partition.txt", 15), "are not of the same images"),
    "a missing image": (lambda f: (f / "img_align_celeba/000005.jpg").unlink(), "1 of 16 images are missing"),
    "a name twice": (
        lambda f: write_celeba(f, [*CELEBA_ROWS[:-1], CELEBA_ROWS[0]]), "has 000001.jpg twice",
    ),
    "no such attribute": (
        lambda f: (f / "list_attr_celeba.txt").write_text("0\nMale Young\n", encoding="utf-8"), "Blond_Hair is missing",
    ),
    "half a line": (
        lambda f: (f / "list_attr_celeba.txt").write_text(f"1\n{HEADER}\n000001.jpg -1 1\n", encoding="utf-8"),
        "line 3: a name and 4",
    ),
    "empty list": (
        lambda f: (f / "list_attr_celeba.txt").write_text("", encoding="utf-8"), "is not an attribute list of CelebA",
    ),
    "a part that does not exist": (
        lambda f: (f / "list_eval_partition.txt").write_text("000001.jpg 3\n", encoding="utf-8"),
        "line 1: a name and 0, 1 or 2",
    ),
    "a part without images": (
        lambda f: write_celeba(f, [(*row[:3], min(row[3], 1)) for row in CELEBA_ROWS]), r"no image of part 2 \(test\)",
    ),
    "half a line of a .csv": (
        lambda f: (_as_csv(f), _append(f / "list_attr_celeba.csv", "000017.jpg,1")), "line 18: a name and 4 values",
    ),
    "a part that does not exist in a .csv": (
        lambda f: (_as_csv(f), _append(f / "list_eval_partition.csv", "000017.jpg,3")), "line 18: a name and 0, 1 or 2",
    ),
    "a .csv of something else": (
        lambda f: (_as_csv(f), (f / "list_attr_celeba.csv").write_text("a,b\n1,2\n", encoding="utf-8")),
        "image_id and Blond_Hair and Male is missing",
    ),
    "images elsewhere": (
        lambda f: (f / "img_align_celeba").rename(f / "faces"), r"There are no images in .*img_align_celeba\. Unpack",
    ),
    "an image cut off": (
        lambda f: _halve(f / "img_align_celeba" / "000005.jpg"),
        r"000005\.jpg cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", CELEBA_DAMAGES)
def test_damaged_celeba_is_told_by_name(tmp_path, small_celeba, damage):
    harm, message = CELEBA_DAMAGES[damage]
    harm(small_celeba)
    with pytest.raises(BenchmarkError, match=message):
        new("celeba").build(tmp_path)


def test_celeba_official_lists_give_the_published_groups(shared_data, tmp_path):
    """Trap 32: 71,629 / 66,874 / 22,880 / 1,387 in training; blond men 180 in test and 182 in validation."""
    celeba = sys.modules[datasets.get("celeba")[0].__module__]
    wanted = ("Blond_Hair", "Male", "Smiling")
    names, attributes = celeba.read_attributes(shared_data / "celeba" / "official_lists", *wanted)
    parts = celeba.read_partition(shared_data / "celeba" / "official_lists")
    part = np.array([parts[name] for name in names])
    groups = 2 * attributes[:, 0] + attributes[:, 1]
    counted = [np.bincount(groups[part == number]).tolist() for number in range(3)]
    assert counted == [
        [71_629, 66_874, 22_880, 1_387], [8_535, 8_276, 2_874, 182], [9_767, 7_535, 2_480, 180],
    ]  # fmt: skip
    assert names[0] == "000001.jpg"
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        packed = (shared_data / "celeba" / "official_lists" / f"{name}.gz").read_bytes()
        assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == celeba.DRIVE[name][1]
    for attribute, values in zip(wanted, attributes.T, strict=True):
        assert celeba._digest(names, values, part) == celeba.ATTRIBUTES[attribute]
    some = names[:9], attributes[:9, 0], part[:9]
    digest = celeba._digest(*some)
    attributes[7, 0] = 1 - attributes[7, 0]
    assert celeba._digest(*some) != digest


def test_celeba_subset(shared_data):
    """The subset's own lists: counts of its README, not official."""
    splits = new("celeba").build(shared_data)
    assert not splits.official
    groups = [(2 * part.y + part.bias[:, 0]).bincount().tolist() for part in splits.named().values()]
    assert groups == [[1203, 1098, 389, 58], [260, 279, 88, 12], [278, 242, 82, 11]]
    assert splits.train.x.shape[1:] == (3, 89, 89)


def write_attributes(folder, attributes, n=24):
    """The images 1 to n, and a list with some attributes: name -> whether it has it, of the number of the image."""
    header, numbers = " ".join(attributes), range(1, n + 1)
    lines = [f"{k:06}.jpg " + " ".join("1" if has(k) else "-1" for has in attributes.values()) for k in numbers]
    folder.mkdir(exist_ok=True)
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(n), header, *lines]) + "\n", encoding="utf-8")
    parts = "".join(f"{k:06}.jpg {min(k // 14, 1) + k // 20}\n" for k in numbers)
    (folder / "list_eval_partition.txt").write_text(parts, encoding="utf-8")
    for k in numbers:
        save_picture(folder / "img_align_celeba" / f"{k:06}.jpg", 10 * k, (178, 178))


WANTED = {  # in 13 training images: Smiling 6, of which Young 4; others 7, of which Young 2
    "Smiling": lambda k: k % 2 == 0, "Young": lambda k: k in (2, 4, 6, 8, 9, 11) or k > 20,
    "Wearing_Hat": lambda k: k % 2 == 1 if k < 9 else k % 2 == 0, "Bald": lambda _: False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("target", "bias", "note"),
    [
        ("Smiling", "Young", "not smiling with young, smiling without young"),
        ("Young", "Smiling", "not young with smiling, young without smiling"),
        ("Wearing_Hat", "Smiling", "not wearing hat without smiling, wearing hat with smiling"),
        ("Smiling", "Bald", "nothing"),
    ],
)
def test_any_attribute_of_celeba_may_be_target_or_bias(tmp_path, target, bias, note):
    """The list has these four only; what is rarer in training than if independent conflicts, in every split."""
    write_attributes(tmp_path / "celeba", WANTED)
    dataset = new("celeba", target=target, bias=bias)
    splits = dataset.build(tmp_path)
    assert splits.note == f"Conflicting, as rarer in training than if independent: {note}."
    numbers = {"train": range(1, 14), "valid": range(14, 20), "test": range(20, 25)}
    y, b = ([int(WANTED[name](k)) for k in numbers["train"]] for name in (target, bias))
    pairs = list(zip(y, b, strict=True))
    rare = {pair for pair in pairs if pairs.count(pair) < y.count(pair[0]) * b.count(pair[1]) / len(pairs)}
    for split, part in splits.named().items():
        assert part.y.tolist() == [WANTED[target](k) for k in numbers[split]]
        assert part.bias[:, 0].tolist() == [WANTED[bias](k) for k in numbers[split]]
        found = list(zip(part.y.tolist(), part.bias[:, 0].tolist(), strict=True))
        assert part.conflicting[:, 0].tolist() == [pair in rare for pair in found]


def test_pairs_of_real_attributes_have_two_groups_that_conflict(shared_data):
    """One of each label, by the lists of the subset; those of the usual pair are the blond men alone."""
    celeba = sys.modules[datasets.get("celeba")[0].__module__]
    names, attributes = celeba.read_attributes(shared_data / "celeba", *celeba.ATTRIBUTES)
    columns = dict(zip(celeba.ATTRIBUTES, attributes.T, strict=True))
    assert len(names) == 4_000
    for target, bias in (("Smiling", "Male"), ("Male", "Blond_Hair"), ("Wearing_Lipstick", "Young"), ("Bald", "Male")):
        rare, (note,) = new("celeba", target=target, bias=bias)._rare(columns[target], columns[bias])
        counts = np.bincount(2 * columns[target] + columns[bias], minlength=4).reshape(2, 2)
        expected = np.outer(counts.sum(1), counts.sum(0)) / 4_000
        assert (rare.numpy() == (counts < expected)).all()
        assert rare.sum(0).tolist() == rare.sum(1).tolist() == [1, 1]
        assert note.count(target.replace("_", " ").lower()) == 2
    rare, notes = new("celeba")._rare(columns["Blond_Hair"], columns["Male"])
    assert (rare.tolist(), notes) == ([[False, False], [False, True]], [])


def test_the_usual_pair_of_celeba_is_what_it_was(tmp_path, small_celeba):
    """Names, identity of its cells and fingerprint, also where it is written out; the swapped pair is another."""
    from debiasbench.grid import expand
    from debiasbench.records import read_records

    usual, written, swapped = new("celeba"), new("celeba", target="Blond_Hair", bias="Male"), new(
        "celeba", target="Male", bias="Blond_Hair"
    )  # fmt: skip
    assert (usual.class_names, usual.bias_names) == (("not blond", "blond"), ("male",))
    assert usual.key() == written.key() == {"data_seed": 0}
    assert swapped.key() == {"data_seed": 0, "target": "Male", "bias": "Blond_Hair"}
    assert (swapped.class_names, swapped.bias_names) == (("not male", "male"), ("blond hair",))
    splits = usual.build(tmp_path)
    for part in splits.named().values():
        blond_men = (part.y == 1) & (part.bias[:, 0] == 1)
        assert Samples(part.x, part.y, part.bias, blond_men[:, None], part.x_sha256).fingerprint() == part.fingerprint()
    assert splits.note == ""
    assert written.build(tmp_path).fingerprint() == splits.fingerprint() != swapped.build(tmp_path).fingerprint()
    records = Path(__file__).parents[2] / "docs" / "reproduction" / "records" / "short.zip"
    before = [record.cell for record in read_records(records)[0] if record.cell.dataset == "celeba"]
    assert len(before) == 4
    for cell in before:
        (now,) = expand([cell.method_title], [cell.dataset_title], seeds=1).cells
        assert (now.dataset_title, now.dataset_parameters) == (cell.dataset_title, cell.dataset_parameters)
        assert now.dataset_version == cell.dataset_version
    cells = expand(
        ["vanilla"], ["celeba", "celeba:target=Blond_Hair", "celeba:target=Smiling,bias=Male"], seeds=1
    ).cells
    assert [cell.dataset_title for cell in cells] == ["celeba", "celeba:target=Smiling"]
    assert cells[1].build_dataset().values() == new("celeba", target="Smiling").values()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("target=Smilling", "The 'target' parameter of celeba must be .*Got 'Smilling'. Did you mean 'Smiling'?"),
        (
            "target=blond_hair",
            "The 'target' parameter of celeba must be .*Got 'blond_hair'. Did you mean 'Blond_Hair'?",
        ),
        ("bias=Yuong", "The 'bias' parameter of celeba must be .*Got 'Yuong'. Did you mean 'Young'?"),
        ("bias=Wearing Hat", "The 'bias' parameter of celeba must be .*Got 'Wearing Hat'. Did you mean 'Wearing_Hat'?"),
        ("target=Male", "The 'target' and the 'bias' of celeba must be two attributes. Got Male for both: .*"),
        (
            "bias=Blond_Hair",
            "The 'target' and the 'bias' of celeba must be two attributes. Got Blond_Hair for both: .*",
        ),
        (
            "target=Bald,bias=Bald",
            "The 'target' and the 'bias' of celeba must be two attributes. Got Bald for both: .*",
        ),
    ],
)
def test_attributes_that_cannot_be_meant_are_one_error(options, message):
    from debiasbench.grid import expand

    with pytest.raises(BenchmarkError) as error:
        expand(["vanilla", "pgd"], [f"celeba:{options}"], seeds=2)
    (line,) = str(error.value).splitlines()
    assert re.fullmatch(message.replace("?", r"\?"), line)


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"target": "Young"}, "Male"), ({"target": "Chubby", "bias": "Young"}, "Chubby"),
        ({"target": "Chubby", "bias": "Goatee"}, "Chubby and Goatee"),
    ],
)  # fmt: skip
def test_a_list_without_the_wanted_attributes_names_them(tmp_path, options, missing):
    write_attributes(tmp_path / "celeba", WANTED)
    with pytest.raises(BenchmarkError, match=f"these names; {missing} is missing"):
        new("celeba", **options).build(tmp_path)


@pytest.mark.parametrize(("target", "bias", "official"), [
    ("Smiling", "Young", True), ("Young", "Wearing_Hat", True), ("Bald", "Young", False), ("Smiling", "Bald", False),
])  # fmt: skip
def test_a_pair_of_celeba_is_official_if_both_its_columns_are(tmp_path, monkeypatch, target, bias, official):
    """Whatever the other columns say; here that of Bald is not the one that is taken for published."""
    celeba = sys.modules[datasets.get("celeba")[0].__module__]
    write_attributes(tmp_path / "celeba", WANTED)
    names, attributes = celeba.read_attributes(tmp_path / "celeba", *WANTED)
    parts = np.array([celeba.read_partition(tmp_path / "celeba")[name] for name in names])
    for attribute, values in zip(WANTED, attributes.T, strict=True):
        if attribute != "Bald":
            monkeypatch.setitem(celeba.ATTRIBUTES, attribute, celeba._digest(names, values, parts))
    assert new("celeba", target=target, bias=bias).build(tmp_path).official is official


def test_celeba_lists_may_be_packed(tmp_path, small_celeba):
    plain = new("celeba").build(tmp_path).fingerprint()
    for path in small_celeba.glob("*.txt"):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert new("celeba").build(tmp_path).fingerprint() == plain


def _as_csv(folder, *, index=False):
    """The lists as Kaggle has them, or as pandas writes them with its index."""
    texts = {}
    for name, head in (("list_attr_celeba", f"image_id {HEADER}"), ("list_eval_partition", "image_id partition")):
        path = folder / f"{name}.txt"
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [head.split(), *(rows[2:] if "attr" in name else rows)]
        if index:
            rows = [[str(number - 1) if number else "", *row] for number, row in enumerate(rows)]
        texts[folder / f"{name}.csv"] = "".join(",".join(row) + "\r\n" for row in rows)
        path.unlink()
    for path, text in texts.items():
        path.write_bytes(text.encode("utf-8-sig" if index else "utf-8"))


def _nest(folder):
    (folder / "img_align_celeba").rename(folder / "moved")
    (folder / "img_align_celeba").mkdir()
    (folder / "moved").rename(folder / "img_align_celeba" / "img_align_celeba")


def _rename(folder, ending):
    for path in list((folder / "img_align_celeba").iterdir()):
        path.rename(path.with_suffix(ending))


def _as_the_authors(folder):
    for name, place in (
        ("img_align_celeba", "Img"),
        ("list_attr_celeba.txt", "Anno"),
        ("list_eval_partition.txt", "Eval"),
    ):
        (folder / place).mkdir()
        (folder / name).rename(folder / place / name)


def _pngs(folder):
    _rename(folder, ".png")
    (folder / "img_align_celeba").rename(folder / "img_align_celeba_png")


CELEBA_LAYOUTS = {
    "Kaggle": lambda folder: (_nest(folder), _as_csv(folder)),
    "lists with an index": lambda folder: _as_csv(folder, index=True),
    "the authors' folders": _as_the_authors,
    "files of a Mac": lambda folder: (_nest(folder), save_picture(folder / "img_align_celeba/__MACOSX/1.png")),
    "JPG": lambda folder: _rename(folder, ".JPG"),
    "png": lambda folder: _rename(folder, ".png"),
    "folder of png": _pngs,
}


@pytest.mark.parametrize("layout", CELEBA_LAYOUTS)
def test_celeba_is_read_as_people_have_it(tmp_path, small_celeba, layout):
    """Nothing is missing, and the samples are equal; another ending than in the lists is told."""
    plain = new("celeba").build(tmp_path)
    CELEBA_LAYOUTS[layout](small_celeba)
    assert new("celeba").needed_files(tmp_path) == []
    assert new("celeba").shortfalls(tmp_path)[0].endswith("16 of 202,599 images")
    found = new("celeba").build(tmp_path)
    assert found.fingerprint() == plain.fingerprint()
    renamed = layout in ("JPG", "png", "folder of png")
    assert ("16 images have another ending than in the lists" in found.note) == renamed


def test_celeba_takes_the_file_that_the_list_names(tmp_path, small_celeba):
    plain = new("celeba").build(tmp_path).fingerprint()
    for path in list((small_celeba / "img_align_celeba").iterdir()):
        save_picture(path.with_suffix(".png"), 255)
    assert new("celeba").build(tmp_path).fingerprint() == plain


# ---- a user's own images --------------------------------------------------------------------------------------------


def write_folders(root, *, with_bias, splits=("train", "valid", "test")):
    for split in splits:
        for label, name in enumerate(("land", "water")):
            for bias in ("land", "water") if with_bias else ("",):
                for number in range(5 if bias in ("", name) else 1):
                    save_picture(root / split / name / bias / f"{number}.png", 100 * label + number)


def test_folders_without_bias_labels(tmp_path):
    write_folders(tmp_path / "photos", with_bias=False)
    dataset = new("imagefolder", root=str(tmp_path / "photos"), title="birds", size=16)
    splits = dataset.build(tmp_path)
    assert dataset.class_names == ("land", "water")
    assert not dataset.has_bias_labels
    assert splits.train.y.tolist() == [0] * 5 + [1] * 5
    assert (splits.train.x[:, 0, 0, 0] // 100 == splits.train.y).all()
    assert (splits.train.bias == -1).all()


def test_folders_with_bias_labels_named_like_the_classes(tmp_path):
    write_folders(tmp_path / "photos", with_bias=True)
    dataset = new("imagefolder", root=str(tmp_path / "photos"), title="birds", size=16)
    splits = dataset.build(tmp_path)
    assert dataset.has_bias_labels
    assert dataset.n_bias_values == 2
    assert splits.train.bias[:, 0].tolist() == [0] * 5 + [1] + [0] + [1] * 5
    assert torch.equal(splits.train.conflicting[:, 0], splits.train.bias[:, 0] != splits.train.y)


def test_a_table_gives_labels_bias_and_splits(tmp_path):
    """Bias values with names of their own: what is most frequent in a class is aligned."""
    root = tmp_path / "photos"
    lines = ["file,label,split,bias"]
    for number, (label, bias, split) in enumerate(
        [("a", "red", "train")] * 6 + [("a", "blue", "train")] * 2 + [("b", "red", "train")] * 1
        + [("b", "blue", "train")] * 9 + [("a", "", "test"), ("b", "red", "test")]
    ):  # fmt: skip
        save_picture(root / f"{number}.png", number)
        lines.append(f"{number}.png,{label},{split},{bias}")
    (root / "images.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    dataset = new("imagefolder", root=str(root), title="x", size=16, rho=0.1)
    splits = dataset.build(tmp_path)
    assert {name: len(part) for name, part in splits.named().items()} == {"train": 16, "valid": 2, "test": 2}
    assert "No validation split was given" in splits.note
    numbers = splits.train.x[:, 0, 0, 0].tolist()
    assert [number for number, odd in zip(numbers, splits.train.conflicting[:, 0], strict=True) if odd] == [
        number for number in (6, 7, 8) if number in numbers
    ]
    assert splits.test.bias[:, 0].tolist() == [-1, 1]
    assert splits.test.conflicting[:, 0].tolist() == [False, True]
    assert dataset.conflict_ratio == 0.1


TABLES = {
    "no column": ("file,label\n0.png,a\n", "lacks the columns split"),
    "no file": ("file,label,split\n9.png,a,train\n", "line 2: There is no file"),
    "unknown split": ("file,label,split\n0.png,a,train2\n", "line 2: split must be train, valid, test"),
    "two columns": ("file,label,split,bias, Bias\n0.png,a,train,b,c\n", "has several columns bias"),
    "class only in valid": (
        "file,label,split\n0.png,a,train\n1.png,b,valid\n2.png,a,test\n",
        "b occurs in valid, but not in train",
    ),
    "twice": ("file,label,split\n0.png,a,train\n0.png,a,train\n", "line 3: 0.png is in line 2 already"),
    "no test": ("file,label,split\n0.png,a,train\n", "has no test images"),
    "class only in test": ("file,label,split\n0.png,a,train\n1.png,b,test\n", "b occurs in test, but not in train"),
    "empty": ("", "lacks the columns file, label, split"),
}


@pytest.mark.parametrize("mistake", TABLES)
def test_mistakes_in_a_table_are_told(tmp_path, mistake):
    text, message = TABLES[mistake]
    for number in range(3):
        save_picture(tmp_path / f"{number}.png")
    (tmp_path / "images.csv").write_text(text, encoding="utf-8")
    with pytest.raises(BenchmarkError, match=message):
        new("imagefolder", root=str(tmp_path), title="x").build(tmp_path)


# names as people write them


def write_table(root, rows, head="file,label,split,bias"):
    """rows: what follows the name of the file; each gets a picture."""
    for number in range(len(rows)):
        save_picture(root / f"{number}.png", number, (4, 4))
    lines = [head, *(f"{number}.png,{row}" for number, row in enumerate(rows))]
    (root / "images.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def of_table(tmp_path, rows, **options):
    write_table(tmp_path / "table", rows, **options)
    dataset = new("imagefolder", root=str(tmp_path / "table"), title="x", size=16)
    return dataset, dataset.build(tmp_path)


def both(label, bias=""):
    """A row in training and one in each other split."""
    return [f"{label},{split},{bias}" for split in ("train", "valid", "test")]


MISSING = [
    "nan", "NaN", "NA", "N/A", "null", "None", "-1", "?", "unknown", " nan ", "<NA>", "-1.0", "missing",
    "-nan", "-1.", "-1.00", "#N/A N/A", "-1.#IND", "\\N", "(null)", "[UNK]", "???", "--", "\u2014", ".", "unlabeled",
]  # fmt: skip
PRESENT = ["0", "1", "-2", "-10", "inf", "+", "no", "none of these", "nano", "(0)", "n", "black-1"]  # values as others


@pytest.mark.parametrize("written", MISSING)
def test_a_bias_that_is_missing_is_unknown_however_it_is_written(tmp_path, written):
    """And not one more value, which would conflict with every label."""
    dataset, splits = of_table(tmp_path, [*both("a", "a"), *both("b", "b"), *both("a", written), *both("b")])
    assert dataset.n_bias_values == 2
    assert splits.train.bias[:, 0].tolist() == [0, 1, -1, -1]
    assert splits.train.conflicting.sum() == 0
    assert f"Bias values counted as unknown: 3 {written!r}." in splits.note


@pytest.mark.parametrize("written", ["", *MISSING])
def test_a_label_that_is_missing_is_refused(tmp_path, written):
    with pytest.raises(BenchmarkError, match=r"line 8: .* as a label says that it is missing"):
        of_table(tmp_path, [*both("a"), *both("b"), f"{written},train,"])


@pytest.mark.parametrize("written", PRESENT)
def test_what_only_looks_missing_is_a_value(tmp_path, written):
    dataset, splits = of_table(tmp_path, [*both("a", written), *both("b", "other")])
    assert dataset.n_bias_values == 2
    assert (splits.train.bias >= 0).all()


@pytest.mark.parametrize("written", ["nan", "NA", "-1", "unknown"])
def test_folders_of_what_is_missing(tmp_path, written):
    """Below a class they are an unknown bias; as a class they are none."""
    root = tmp_path / "photos"
    write_folders(root, with_bias=True)
    save_picture(root / "train" / "land" / written / "9.png")
    dataset = new("imagefolder", root=str(root), title="x", size=16)
    splits = dataset.build(tmp_path)
    assert dataset.n_bias_values == 2
    assert int((splits.train.bias == -1).sum()) == 1
    assert f"Bias values counted as unknown: 1 {written!r}." in splits.note
    save_picture(root / "train" / written / "land" / "9.png")
    with pytest.raises(BenchmarkError, match=f"{written}: '{written}' as a label says that it is missing"):
        new("imagefolder", root=str(root), title="x", size=16).build(tmp_path)


USUAL = {
    "train": ["training", "Train"],
    "valid": ["val", "validation", "dev", "Val", "VALID"],
    "test": ["testing", "eval", "Test"],
}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in USUAL.items() for name in names])
def test_the_usual_names_of_splits_are_read(tmp_path, split, name):
    """In folders and in a table; a validation split of such a name is not replaced by a tenth of training."""
    write_folders(tmp_path / "photos", with_bias=False)
    expected = new("imagefolder", root=str(tmp_path / "photos"), title="x", size=16).build(tmp_path)
    (tmp_path / "photos" / split).rename(tmp_path / "photos" / "moved")
    (tmp_path / "photos" / "moved").rename(tmp_path / "photos" / name)
    found = new("imagefolder", root=str(tmp_path / "photos"), title="x", size=16).build(tmp_path)
    assert found.fingerprint() == expected.fingerprint()
    assert "No validation split" not in found.note
    rows = [*both("a"), *both("b")]
    plain = of_table(tmp_path, rows)[1].fingerprint()
    assert of_table(tmp_path, [row.replace(f",{split},", f", {name} ,") for row in rows])[1].fingerprint() == plain


def test_two_folders_of_one_split_are_refused(tmp_path):
    write_folders(tmp_path, with_bias=False, splits=("train", "val", "validation", "test"))
    with pytest.raises(BenchmarkError, match="holds val and validation, which both mean valid"):
        new("imagefolder", root=str(tmp_path), title="x").build(tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        "train2/a",
        "holdout",
        "extra/sea",
        "test_old",
        "val-2/land",
        "Training set/land",
        "more/land",
        "more/water ",
        "valset",
        "my_test",
        "images-val",
        "data/val/land",
        "more/of/land",
        "more/old/test2",
        "vali",
        "valida",
        "vals",
        "devs",
        "evals",
        "Trian",
        "tset",
        "validaton/land",
        "trainn_old",
        "held-out sets",
    ],
)
def test_folders_that_look_like_splits_and_are_not_read_are_refused(tmp_path, place):
    """By their name, or as they have folders of classes; one without images is nobody's split."""
    root = tmp_path / "photos"
    write_folders(root, with_bias=False)
    (root / place).mkdir(parents=True)
    (root / place / "notes.txt").write_text("", encoding="utf-8")
    new("imagefolder", root=str(root), title="x", size=16).build(tmp_path)
    save_picture(root / place / "0.png")
    name = place.partition("/")[0]
    with pytest.raises(BenchmarkError, match=rf"look like splits but are not: {name}\. Splits are train \(or"):
        new("imagefolder", root=str(root), title="x", size=16).build(tmp_path)


@pytest.mark.parametrize(
    "place",
    ["masks", "results/figures", "trainer/photos", "developers", "retrained", "contest/a",
     "text", "trail", "strain", "values", "valley", "device", "rest", "state", "invalid"],
)  # fmt: skip
def test_other_folders_are_left_alone(tmp_path, place):
    """Such as what a run in the folder of the images has written there."""
    write_folders(tmp_path, with_bias=False)
    expected = new("imagefolder", root=str(tmp_path), title="x", size=16).build(tmp_path)
    save_picture(tmp_path / place / "0.png")
    found = new("imagefolder", root=str(tmp_path), title="x", size=16).build(tmp_path)
    assert (found.fingerprint(), found.note) == (expected.fingerprint(), expected.note)


def test_folders_of_classes_without_splits_are_named(tmp_path):
    for name in ("land", "water"):
        save_picture(tmp_path / name / "0.png")
    with pytest.raises(BenchmarkError, match=r"has no train images: .* Folders there: land, water\."):
        new("imagefolder", root=str(tmp_path), title="x").build(tmp_path)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("train/9.png", r"train holds 1 images that are not in the folder of a class \(9\.png"),
        ("train/land/water/deep/9.png", "deep holds images below <class>/<bias>"),
        ("test/9.tif", "test holds 1 images that are not in the folder of a class"),
    ],
)
def test_images_outside_of_their_folders_are_refused(tmp_path, place, said):
    write_folders(tmp_path / "photos", with_bias=True)
    save_picture(tmp_path / "photos" / place)
    with pytest.raises(BenchmarkError, match=said):
        new("imagefolder", root=str(tmp_path / "photos"), title="x").build(tmp_path)


@pytest.mark.parametrize("blank", [" ", "\t", "\u00a0", "\ufeff", "\u200b", "\u200e", "\u00ad", "\u202c"])
def test_blanks_around_names_do_not_count(tmp_path, blank):
    """In labels, bias and the heading; where two spellings meet it is said."""
    rows = [*both("0", "0"), *both("1", "1"), *both(f"0{blank}", f"{blank}1")]
    dataset, splits = of_table(tmp_path, rows, head=f"file,{blank}label,Split,{blank}Bias")
    assert (dataset.class_names, dataset.n_bias_values) == (("0", "1"), 2)
    assert splits.train.y.tolist() == [0, 1, 0]
    assert splits.train.conflicting[:, 0].tolist() == [False, False, True]
    assert splits.note.count("are one name: blanks around a name do not count.") == 2


def test_folders_whose_names_differ_in_blanks_around_them_are_one_class(tmp_path):
    write_folders(tmp_path / "photos", with_bias=False)
    save_picture(tmp_path / "photos" / "train" / "land " / "9.png")
    dataset = new("imagefolder", root=str(tmp_path / "photos"), title="x", size=16)
    splits = dataset.build(tmp_path)
    assert dataset.class_names == ("land", "water")
    assert splits.train.y.tolist().count(0) == 6
    assert "'land' and 'land ' are one name" in splits.note


ALIKE = {  # two spellings, and how the second is shown
    "case": ("Land", "land", "'land'"),
    "blanks": ("pole vaulting", "polevaulting", "'polevaulting'"),
    "Unicode": ("caf\u00e9", "cafe\u0301", r"'cafe\u0301'"),
    "width": ("A", "\uff21", r"'\uff21'"),
    "numbers": ("1", "1.0", "'1.0'"),
    "what nobody sees": ("ab", "a\u200db", r"'a\u200db'"),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_names_that_are_nearly_one_are_told(tmp_path, kind):
    """As labels, and as a label and a bias; and where the training split has only the other."""
    one, other, shown = ALIKE[kind]
    dataset, splits = of_table(tmp_path, [*both(one), *both(other)])
    assert len(dataset.class_names) == 2
    assert shown in splits.note
    assert "count as different names" in splits.note
    splits = of_table(tmp_path, [*both(one, other), *both("b")])[1]
    assert "count as different names" in splits.note
    with pytest.raises(BenchmarkError, match=r"occurs in test, but not in train.* are nearly one name"):
        of_table(tmp_path, [f"{one},train,", "b,train,", f"{other},test,"])


def test_names_that_differ_are_not_told(tmp_path):
    assert "name" not in of_table(tmp_path, [*both("land", "land"), *both("land 2", "1"), *both("water", "10")])[1].note


def test_what_is_left_out_and_converted_is_told_before_anything_trains(tmp_path, link):
    """In the note of the data, and when a grid is planned."""
    from debiasbench.grid import expand
    from debiasbench.running.plan import plan

    root = tmp_path / "photos"
    write_folders(root, with_bias=False)
    for number in range(3):
        (root / "train" / "land" / f"{number}.heic").write_bytes(b"")
        Image.new("RGBA", (9, 9)).save(root / "train" / "land" / f"t{number}.TIF")
    (root / "test" / "labels.txt").write_text("", encoding="utf-8")
    grid = expand(["vanilla"], [f"imagefolder:root={root},title=birds,size=16,pretrained=none"], seeds=2)
    (notice,) = plan(grid, data_dir=tmp_path, results_dir=tmp_path / "results").grid.notices
    assert notice.startswith("imagefolder:")
    assert "Files left out, because they cannot be read as images: 3 .heic, 1 .txt." in notice
    assert "Images converted: 3 transparent in places, put on white." in notice


@pytest.mark.parametrize(("place", "target"), [("train/more", "/no/such/folder"), ("train/land/9.png", "gone.png")])
def test_a_link_in_folders_that_leads_nowhere_names_itself(tmp_path, link, place, target):
    write_folders(tmp_path / "photos", with_bias=False)
    link(tmp_path / "photos" / place, target)
    with pytest.raises(BenchmarkError, match=f"{place} is a link to {target}, which is not there"):
        new("imagefolder", root=str(tmp_path / "photos"), title="x").build(tmp_path)


def test_a_link_in_a_table_that_leads_nowhere_names_itself(tmp_path, link):
    write_table(tmp_path, [*both("a"), *both("b")])
    (tmp_path / "4.png").unlink()
    link(tmp_path / "4.png", "gone.png")
    with pytest.raises(BenchmarkError, match=r"line 6: .*4\.png is a link to gone\.png, which is not there"):
        new("imagefolder", root=str(tmp_path), title="x").build(tmp_path)


@pytest.fixture
def link():
    """A function that makes a link; skips where there are none."""

    def make(path, target):
        try:
            path.symlink_to(target)
        except OSError:
            pytest.skip("no links can be made here")

    return make


def test_images_beside_folders_are_not_left_out_silently(tmp_path):
    """Are they images of the class, or is the folder a value of the bias?"""
    write_folders(tmp_path / "photos", with_bias=False)
    save_picture(tmp_path / "photos" / "train" / "land" / "old" / "9.png")
    with pytest.raises(BenchmarkError, match=r"holds images .* and folders .*it is unclear which of them count"):
        new("imagefolder", root=str(tmp_path / "photos"), title="x").build(tmp_path)


def test_hidden_files_and_folders_are_left_alone(tmp_path):
    write_folders(tmp_path / "photos", with_bias=False)
    expected = new("imagefolder", root=str(tmp_path / "photos"), title="x", size=16).build(tmp_path).fingerprint()
    save_picture(tmp_path / "photos" / "train" / ".thumbnails" / "9.png")
    save_picture(tmp_path / "photos" / "train" / "land" / ".hidden.png")
    dataset = new("imagefolder", root=str(tmp_path / "photos"), title="x", size=16)
    assert dataset.build(tmp_path).fingerprint() == expected


def test_a_table_that_is_not_there_is_told(tmp_path):
    write_folders(tmp_path / "photos", with_bias=False)
    with pytest.raises(BenchmarkError, match=r"There is no file .*labels\.csv"):
        new("imagefolder", root=str(tmp_path / "photos"), title="x", table="labels.csv").build(tmp_path)


def test_imagefolder_needs_a_place_and_a_title(tmp_path):
    (needed,) = new("imagefolder").needed_files(tmp_path)
    assert "imagefolder:root=FOLDER,title=NAME" in needed.source
    with pytest.raises(BenchmarkError, match="needs a title"):
        new("imagefolder", root=str(tmp_path))
    (needed,) = new("imagefolder", root=str(tmp_path / "none"), title="x").needed_files(tmp_path)
    assert needed.path == tmp_path / "none"
    with pytest.raises(BenchmarkError, match="needs a folder: imagefolder:root=FOLDER,title=NAME"):
        new("imagefolder").build(tmp_path)


# what the columns of a table are called

TYPICAL = [
    f"{label},{split},{bias}" for split in ("train", "valid", "test") for label, bias in
    (("cow", "grass"), ("cow", "grass"), ("cow", "sand"), ("camel", "sand"), ("camel", "sand"), ("camel", "grass"))
]  # fmt: skip


def named_table(root, head, options, rows=TYPICAL):
    """A table with these heads, and the dataset with these options."""
    write_table(root, rows, head)
    (root / "images.csv").rename(root / "list.csv")
    return new("imagefolder", root=str(root), title="animals", size=16, table="list.csv", **options)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("path,target,split,bias", {"file": "path", "label": "target"}),
        ("file,label,fold,background", {"split": "fold", "bias": "background"}),
        ("img_filename,y,split,place", {"file": "img_filename", "label": "y", "bias": "place"}),
        ("Image Path, Class,Part ,Back Ground", {
            "file": "image path", "label": "Class", "split": " part", "bias": "BACK GROUND"
        }),
    ],
)  # fmt: skip
def test_columns_of_other_names_are_named(tmp_path, head, options):
    write_table(tmp_path / "usual", TYPICAL)
    expected = new("imagefolder", root=str(tmp_path / "usual"), title="animals", size=16).build(tmp_path)
    dataset = named_table(tmp_path / "other", head, options)
    assert dataset.build(tmp_path).fingerprint() == expected.fingerprint()
    assert dataset.bias_names == (options.get("bias", "bias"),)
    assert dataset.class_names == ("camel", "cow")
    assert dataset.bias_values == (("grass", "sand"),)


@pytest.mark.parametrize(
    ("head", "options", "said"),
    [
        ("path,target,fold,background", {},
         "lacks the columns file, label, split. Needed: file, label, split; if known, bias. Columns there: path, "
         "target, fold, background. To say which is which: imagefolder:table=list.csv,file=path,label=target,"
         "split=fold"),
        ("file,thing,split,where", {}, "label=COLUMN"),
        ("file,label,split,background", {"bias": "backgruond"},
         "lacks the columns backgruond (given as bias=). Needed: file, label, split; if known, bias. Columns there: "
         "file, label, split, background."),
        ("file,label,split,background", {"bias": "backgruond"}, "list.csv,bias=background"),
        ("file,label,split,bias", {"label": "clas"}, "imagefolder:table=list.csv,label=label"),
        ("image,y,split,place", {"label": "y"}, "which is which: imagefolder:table=list.csv,file=image"),
        ("file,label,split,bias", {"label": "bias"}, "column bias of .* cannot be label and bias at once"),
        ("file,label,split,place,Place", {"bias": "place"}, "has several columns place"),
    ],
)  # fmt: skip
def test_columns_that_are_not_there_are_told_with_those_that_are(tmp_path, head, options, said):
    rows = [f"{row},x" for row in TYPICAL] if head.count(",") == 4 else TYPICAL
    with pytest.raises(BenchmarkError, match=said if ".*" in said else re.escape(said)):
        named_table(tmp_path / "table", head, options, rows).build(tmp_path)


@pytest.mark.parametrize("place", ["lists/all.csv", "a list.csv", "one,two.csv", "images.csv"])
def test_the_command_in_the_message_reads_the_table(tmp_path, place):
    """What the message says is typed as it stands, wherever the table lies and whatever it is called."""
    root = tmp_path / "photos"
    write_table(root, TYPICAL, "path,target,fold,background")
    (root / place).parent.mkdir(exist_ok=True)
    (root / "images.csv").rename(root / place)
    spec = f"imagefolder:root={root},title=x,size=16"
    with pytest.raises(BenchmarkError) as caught:
        dataset_from_spec(f'{spec},table="{place}"')[0].build(tmp_path)
    said = str(caught.value).rpartition("imagefolder:")[2]
    dataset = dataset_from_spec(f"{spec},{said},bias=background")[0]
    assert [len(part) for part in dataset.build(tmp_path).named().values()] == [6, 6, 6]


@pytest.mark.parametrize("options", [{"label": "target"}, {"bias": "place"}, {"file": "path", "split": "fold"}])
def test_columns_are_those_of_a_table(tmp_path, options):
    write_folders(tmp_path / "photos", with_bias=True)
    (tmp_path / "photos" / "names.csv").write_text("path,target\n", encoding="utf-8")
    told = ", ".join(f"{role}={name}" for role, name in options.items())
    with pytest.raises(BenchmarkError, match=rf"^{told} names columns of a table, and .* imagefolder:table=names\.csv"):
        new("imagefolder", root=str(tmp_path / "photos"), title="x", **options).build(tmp_path)


@pytest.mark.parametrize("numbers", [("0", "1", "2"), ("tr", "va", "te"), ("Train", "Val", "Testing")])
def test_tables_number_splits_or_shorten_their_names(tmp_path, numbers):
    names = dict(zip(("train", "valid", "test"), numbers, strict=True))
    rows = [",".join([label, names[split], bias]) for label, split, bias in (row.split(",") for row in TYPICAL)]
    _, splits = of_table(tmp_path, rows)
    assert [len(part) for part in splits.named().values()] == [6, 6, 6]


def test_columns_that_are_not_used_are_told(tmp_path):
    splits = named_table(tmp_path / "a", "file,label,split,where", {}).build(tmp_path)
    assert "Columns not used: where. If one is the bias: imagefolder:bias=COLUMN" in splits.note
    splits = named_table(tmp_path / "b", "file,label,split,background", {}).build(tmp_path)
    assert "Columns not used: background. If one is the bias: imagefolder:bias=background" in splits.note
    rows = [f"{row},7" for row in TYPICAL]
    splits = named_table(tmp_path / "c", "file,label,split,background,id", {"bias": "background"}, rows).build(tmp_path)
    assert "Columns not used: id." in splits.note
    assert "If one is the bias" not in splits.note


def test_usual_names_of_columns_are_no_part_of_the_identity(tmp_path):
    """Cells from before columns could be named are found again."""
    usual = new("imagefolder", root=str(tmp_path), title="x")
    assert list(usual.key()) == ["data_seed", "title", "table", "size", "rho"]
    assert usual.replace(bias="place").key() == usual.key() | {"bias": "place"}
    assert usual.replace(label="label", file="path").key() == usual.key() | {"file": "path"}


# names of classes and bias values, as they were written


def named_pictures(root, kind):
    """Cows and camels on Grass and in the desert, as folders or a table; the desert camels of test are missing."""
    rows = [row for row in TYPICAL if row != "camel,test,sand"]
    if kind == "folders":
        for number, row in enumerate(rows):
            label, split, bias = row.split(",")
            bias = "deep, Sand" if bias == "sand" else "Grass"
            save_picture(root / split / label / bias / f"{number}.png", number, (4, 4))
        return
    head = "file,label,split,background" if kind == "a named column" else "file,label,split,bias"
    write_table(root, [row.replace("grass", "Grass").replace("sand", '"deep, Sand"') for row in rows], head)


@pytest.mark.parametrize(
    ("kind", "bias"), [("folders", "bias"), ("a table", "bias"), ("a named column", "background")]
)  # fmt: skip
def test_inspect_shows_names_as_they_were_written(tmp_path, capsys, kind, bias):
    named_pictures(tmp_path / "photos", kind)
    options = "" if bias == "bias" else f",bias={bias}"
    spec = f"imagefolder:root={tmp_path / 'photos'},title=animals,size=16{options}"
    assert main(["inspect", spec, "--results-dir", str(tmp_path / "results")]) == 0
    shown = capsys.readouterr().out
    assert "2 classes (camel, cow)" in shown
    assert "0 (camel / deep, Sand; 1 empty)" in shown
    rows = [line.split("\u2502")[1:-1] for line in shown.splitlines() if " / " in line and line.count("\u2502") == 5]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["camel / Grass", "1", "1", "1"], ["camel / deep, Sand", "2", "2", "0"], ["cow / Grass", "2", "2", "2"],
        ["cow / deep, Sand", "1", "1", "1"],
    ]  # fmt: skip
    assert f"label / {bias};" in shown


@pytest.mark.parametrize("place", ["label", "bias", "title"])
def test_names_that_no_font_has_are_told_wherever_they_stand(tmp_path, monkeypatch, place):
    monkeypatch.setattr(inspection, "lacking", lambda texts: "\u6f22" if "\u6f22" in texts else "")
    names = {"label": "cow", "bias": "grass", "title": "animals"} | {place: "\u6f22"}
    rows = [row.replace("cow", names["label"]).replace("grass", names["bias"]) for row in TYPICAL]
    write_table(tmp_path / "photos", rows)
    title = "\u6f22" if place == "title" else "animals"
    dataset = new("imagefolder", root=str(tmp_path / "photos"), title=title, size=16)
    (table, _), _ = inspection.inspect(dataset, title, data_dir=tmp_path, results_dir=tmp_path / "results")
    assert "The pictures show boxes for \u6f22: no installed font has them." in table.notes


def test_contact_sheets_name_the_values_of_a_bias(tmp_path):
    named_pictures(tmp_path / "photos", "folders")
    dataset = new("imagefolder", root=str(tmp_path / "photos"), title="animals", size=16)
    names = [name for name, *_ in sides_of(dataset, dataset.build(tmp_path), 0)]
    assert names == ["bias = Grass", "bias = deep, Sand"]


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (("waterbirds", {}), (("land", "water"),)),
        (("celeba", {}), (("not male", "male"),)),
        (("celeba", {"bias": "Wearing_Hat"}), (("not wearing hat", "wearing hat"),)),
        (("cmnist2", {}), (("red", "green"),)),
        (("civilcomments", {}), (("not black", "black"),)),
        (("dominoes", {"target": "upper"}), (("automobile", "truck"),)),
    ],
)
def test_bias_values_have_names_where_they_mean_something(spec, names):
    name, options = spec
    dataset = new(name, **options)
    assert dataset.bias_values == names
    assert [dataset.bias_value(0, value) for value in range(3)] == [*names[0], "2"]


def test_bias_values_without_names_are_numbers():
    assert [new("cmnist").bias_value(0, value) for value in (0, 9)] == ["0", "9"]
    assert new("mbmnist").bias_value(6, 3) == "3"


# ---- prepare ------------------------------------------------------------------------------------------------------


def pack(folder, archive, *, top):
    """A zip of a folder's files, below `top`; the folder goes away."""
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, f"{top}{path.relative_to(folder)}")
    shutil.rmtree(folder)


def test_bffhq_unpacks_an_archive_that_was_put_there(tmp_path, small_bffhq):
    before = new("bffhq").build(tmp_path).fingerprint()
    pack(small_bffhq, tmp_path / "bffhq.zip", top="bffhq/")
    small_bffhq.mkdir()
    (small_bffhq / "valid").mkdir()  # an empty folder is not complete
    assert len(new("bffhq").needed_files(tmp_path)) == 4
    new("bffhq").prepare(tmp_path)
    assert new("bffhq").needed_files(tmp_path) == []
    assert new("bffhq").build(tmp_path).fingerprint() == before


def test_bar_fetches_and_unpacks_the_repositorys_archive(tmp_path, small_bar, monkeypatch):
    before = new("bar", size=16).build(tmp_path).fingerprint()
    pack(small_bar, tmp_path / "served.zip", top="BAR-b12b7c0/")
    module = sys.modules[datasets.get("bar")[0].__module__]
    asked = []

    def fetch(url, path, *, sha256):
        asked.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(tmp_path / "served.zip", path))

    monkeypatch.setattr(module, "fetch", fetch)
    new("bar").prepare(tmp_path)
    assert asked == [module.ARCHIVE]
    assert new("bar").needed_files(tmp_path) == []
    assert not (small_bar / "BAR.zip").exists()
    assert new("bar", size=16).build(tmp_path).fingerprint() == before


def test_celeba_fetches_what_is_missing_and_refuses_what_was_not_published(tmp_path, small_celeba, monkeypatch):
    module = sys.modules[datasets.get("celeba")[0].__module__]
    before = new("celeba").build(tmp_path).fingerprint()
    served = tmp_path / "served"
    served.mkdir()
    shutil.copy(small_celeba / "list_attr_celeba.txt", served)
    (small_celeba / "list_attr_celeba.txt").unlink()
    pack(small_celeba / "img_align_celeba", served / "img_align_celeba.zip", top="img_align_celeba/")
    asked = []

    def download(*, id, output, quiet, resume, progress, timeout):
        asked.append(id)
        shutil.copy(served / id, output)

    gdown = types.SimpleNamespace(download=download, DownloadError=RuntimeError)
    monkeypatch.setitem(sys.modules, "gdown", gdown)
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)  # between attempts
    monkeypatch.setattr(module, "MIRRORS", {})
    assert list(module.DRIVE) == ["img_align_celeba.zip", "list_attr_celeba.txt", "list_eval_partition.txt"]
    sums = {name: sha256 for name, (_, sha256) in module.DRIVE.items()}
    monkeypatch.setattr(module, "DRIVE", {name: (name, sha256) for name, sha256 in sums.items()})
    with pytest.raises(BenchmarkError, match=rf"expected {sums['img_align_celeba.zip']} but got"):
        new("celeba").prepare(tmp_path)
    assert not list(small_celeba.glob("*.zip"))
    sums |= {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in served.iterdir()}
    monkeypatch.setattr(module, "DRIVE", {name: (name, sha256) for name, sha256 in sums.items()})
    new("celeba").prepare(tmp_path)
    assert new("celeba").needed_files(tmp_path) == []
    assert set(asked) == {"img_align_celeba.zip", "list_attr_celeba.txt"}  # the other list is there
    assert not list(small_celeba.glob("*.zip"))
    assert new("celeba").build(tmp_path).fingerprint() == before


def test_celeba_takes_its_images_from_a_copy_before_drive(tmp_path, monkeypatch):
    module = sys.modules[datasets.get("celeba")[0].__module__]
    asked = {}
    monkeypatch.setattr(module, "fetch_from_drive", lambda _, path, **how: asked.update({path.name: how}) or path)
    monkeypatch.setattr(module, "unpack", lambda *_: (tmp_path / "celeba").mkdir())
    monkeypatch.setattr(Path, "unlink", lambda *_: None)
    new("celeba").prepare(tmp_path)
    assert {name: how["sha256"] for name, how in asked.items()} == {
        name: sha for name, (_, sha) in module.DRIVE.items()
    }
    assert [name for name, how in asked.items() if how["mirrors"]] == ["img_align_celeba.zip"]


# ---- recipes ------------------------------------------------------------------------------------------------------

# PGD paper, Table 6: optimizer, batch, learning rate, weight decay, factor and epochs of its decay, epochs, network
TABLE_6 = {
    "cmnist": ("sgd", 128, 0.02, 1e-3, 0.1, 40, 100, "simconv1"),
    "mbmnist": ("sgd", 32, 0.01, 1e-4, 0.1, 40, 100, "simconv2"),
    "ccifar": ("adam", 256, 1e-3, 1e-3, 0.5, 40, 200, "resnet18"),
    "bar": ("sgd", 16, 5e-4, 1e-5, 0.1, 20, 100, "resnet18"),
    "bffhq": ("adam", 64, 1e-4, 0.0, 0.1, 32, 160, "resnet18"),
    "celeba": ("adam", 256, 1e-4, 0.01, None, None, 100, "resnet50"),
}


@pytest.mark.parametrize("name", TABLE_6)
def test_recipes_are_those_of_table_6(name):
    recipe = datasets.get(name)[0].recipe
    optimizer, batch_size, rate, decay, factor, every, epochs, net = TABLE_6[name]
    assert (recipe.optimizer, recipe.batch_size, recipe.net, recipe.epochs) == (optimizer, batch_size, net, epochs)
    assert (recipe.learning_rate, recipe.weight_decay) == (rate, decay)
    assert recipe.momentum == 0.9
    for epoch in range(epochs):
        cosine = rate * (1 + np.cos(np.pi * epoch / epochs)) / 2
        expected = cosine if factor is None else rate * factor ** (epoch // every)
        assert learning_rate_at(recipe, epoch / epochs) == pytest.approx(expected), epoch


def test_resnets_see_224_pixels_and_their_statistics():
    cifar, imagenet = (0.4914, 0.4822, 0.4465), (0.485, 0.456, 0.406)
    for name, mean in (("bffhq", cifar), ("celeba", imagenet)):
        recipe = datasets.get(name)[0].recipe
        assert (recipe.size, recipe.mean) == (224, mean)
    assert new("bar").size == 224
    assert datasets.get("bar")[0].recipe.mean == cifar
    assert not datasets.get("celeba")[0].recipe.augment
