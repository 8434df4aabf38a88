"""Waterbirds: its table and groups, what is another draw, downloads. The images are stand-ins that the tests write."""

import functools
import http.server
import os
import shutil
import sys
import tarfile
import threading
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from debiasbench.cli import main
from debiasbench.data.checks import check_splits
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.evaluation import Evaluation
from debiasbench.grid import expand
from debiasbench.testing import DATASET_BUILD_CHECKS, check_columns, check_headline, check_ratio

WATERBIRDS, _ = datasets.get("waterbirds")
module = sys.modules[WATERBIRDS.__module__]
NOWHERE = Path("nowhere")
HEADER = "img_id,img_filename,y,split,place,place_filename"
FOLDER = "waterbird_complete95_forest2water2"
# (y, place) of each row, by split; with an order that is not that of the groups
ROWS = {0: [(0, 0), (1, 1), (0, 0), (0, 1), (0, 0), (1, 1), (1, 0)], 1: [(0, 0), (0, 1), (1, 0), (1, 1)],
        2: [(1, 1), (0, 1), (1, 0), (0, 0), (0, 0)]}  # fmt: skip
SMALL_GROUPS = {"train": (3, 1, 1, 2), "valid": (1, 1, 1, 1), "test": (2, 1, 1, 1)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "cache"))


def write(folder, *, rows=ROWS, ending="jpg"):
    """The table, and stand-ins for the images: one grey level each, which tells its row; the splits are mixed."""
    lines = [HEADER]
    numbered = [(split, number) for split, some in rows.items() for number in range(len(some))]
    for level, (split, number) in enumerate(sorted(numbered, key=lambda one: (one[1], one[0]))):
        name = f"{split:03}.Some_Bird/Some_Bird_{number}.{ending}"
        y, place = rows[split][number]
        lines.append(f"{level + 1},{name},{y},{split},{place},/o/ocean/{number}.jpg")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 10 * level + 5, np.uint8)).save(path)
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def small(tmp_path):
    """A data folder with a few birds."""
    write(tmp_path / FOLDER)
    return tmp_path


def built(data_dir, **parameters):
    dataset = WATERBIRDS(size=16, **parameters)
    return check_splits(dataset, dataset.build(data_dir))


# ---- the table ------------------------------------------------------------------------------------------------------


def test_labels_places_and_images_are_those_of_the_table(small):
    """Each by its name; a sample conflicts where bird and place differ."""
    splits = built(small)
    lines = [line.split(",") for line in (small / FOLDER / "metadata.csv").read_text("utf-8").splitlines()[1:]]
    for split, part in zip(ROWS, splits.named().values(), strict=True):
        rows = [row for row in lines if row[3] == str(split)]
        assert part.y.tolist() == [int(row[2]) for row in rows]
        assert part.bias[:, 0].tolist() == [int(row[4]) for row in rows]
        assert part.conflicting[:, 0].tolist() == [row[2] != row[4] for row in rows]
        levels = part.x[:, 0].double().mean((1, 2))
        assert levels.sub(5).div(10).round().add(1).tolist() == [int(row[0]) for row in rows]
        assert part.x.shape[1:] == (3, 16, 16)
    for check in (check_columns, check_headline, check_ratio):
        check(WATERBIRDS(size=16), splits)
    for again in DATASET_BUILD_CHECKS:
        again(WATERBIRDS(size=16), splits, small)


@pytest.mark.parametrize(("size", "whole"), [(224, 256), (112, 128), (28, 32)])
def test_the_central_seven_eighths_are_kept(tmp_path, size, whole):
    """Of each image as a square: GroupDRO's loader resizes to 256 pixels and keeps 224."""
    margin = (whole - size) // 2
    picture = np.full((whole, whole, 3), 255, np.uint8)
    picture[margin:-margin, margin:-margin] = 40
    picture[margin, margin] = 90
    write(tmp_path / FOLDER, ending="png")
    for path in (tmp_path / FOLDER).rglob("*.png"):
        Image.fromarray(picture).save(path)
    part = WATERBIRDS(size=size).build(tmp_path).train
    assert part.x.shape[1:] == (3, size, size)
    assert part.x[0, :, 0, 0].tolist() == [90] * 3
    assert part.x.flatten(1).sum(1).tolist() == [3 * (40 * size * size + 50)] * len(part)


def test_worst_group_and_adjusted_accuracy_of_who_looks_at_the_place(small):
    """Groups of training weigh 3, 1, 1, 2; of birds at the usual place all are right, of others none."""
    splits = built(small)
    metrics = Evaluation(WATERBIRDS(), splits).metrics(
        "test", torch.nn.functional.one_hot(splits.test.bias[:, 0], 2).float()
    )
    assert WATERBIRDS.headline == ("acc_worst", "acc_adjusted")
    assert [metrics[name] for name in WATERBIRDS.headline] == [0.0, pytest.approx((3 + 2) / 7)]
    assert metrics["acc_avg"] == pytest.approx(3 / 5)


# ---- what is published ----------------------------------------------------------------------------------------------


def columns_of(groups):
    """(y, split, place) of each row, from the sizes of the groups."""
    return np.concatenate([
        np.tile([label, split, place], (n, 1))
        for split, sizes in enumerate(groups)
        for (label, place), n in zip(product((0, 1), (0, 1)), sizes, strict=True)
    ])  # fmt: skip


PUBLISHED = [(3_498, 184, 56, 1_057), (467, 466, 133, 133), (2_255, 2_255, 642, 642)]


def test_published_groups_are_known():
    """4,795 / 1,199 / 5,794; 240 of training conflict."""
    assert WATERBIRDS().official_counts == {"train": 4_795, "valid": 1_199, "test": 5_794}
    splits = module._splits(NOWHERE, columns_of(PUBLISHED))
    assert splits.official
    assert splits.note.startswith("Groups are as published")
    assert int(splits.train.conflicting.sum()) == 240
    assert len(splits.train) * WATERBIRDS().conflict_ratio == pytest.approx(240, abs=1)


@pytest.mark.parametrize("split", range(3))
@pytest.mark.parametrize("moved", [(0, 1), (3, 2)])
def test_one_sample_in_another_group_is_another_draw(split, moved):
    """Though all counts of splits are right."""
    groups = [list(sizes) for sizes in PUBLISHED]
    groups[split][moved[0]] -= 1
    groups[split][moved[1]] += 1
    splits = module._splits(NOWHERE, columns_of(groups))
    assert not splits.official
    name = ("train", "valid", "test")[split]
    shown = [" / ".join(f"{n:,}" for n in sizes) for sizes in (groups[split], PUBLISHED[split])]
    assert splits.note.endswith(f"Groups (2 label + place): {name} {shown[0]}, published {shown[1]}.")


@pytest.mark.parametrize(("ending", "official"), [("jpg", True), ("JPG", True), ("png", False)])
def test_images_that_were_made_of_the_published_ones_are_not_official(tmp_path, monkeypatch, ending, official):
    monkeypatch.setattr(module, "GROUPS", SMALL_GROUPS)
    write(tmp_path / FOLDER, ending=ending)
    assert built(tmp_path).official is official


def test_a_part_is_not_official(small):
    splits = built(small)
    assert not splits.official
    assert "published 3,498 / 184 / 56 / 1,057" in splits.note
    (told,) = WATERBIRDS().shortfalls(small)
    assert told.endswith("16 of 11,788 images")


@pytest.fixture(scope="session")
def other_draw():
    """A real table of another draw than the published one, without images."""
    folder = Path(os.environ.get("DEBIASBENCH_DATA", "no-such-folder")) / "waterbirds"
    if not (folder / "metadata.csv").is_file():
        pytest.skip("needs a table of Waterbirds: set DEBIASBENCH_DATA to a folder that holds waterbirds/metadata.csv")
    return folder


def test_another_draw_is_not_official(other_draw):
    """Its own groups in training and validation, and the published ones in test."""
    splits = WATERBIRDS(root=str(other_draw)).build_labels(NOWHERE)
    groups = [(2 * part.y + part.bias[:, 0]).bincount().tolist() for part in splits.named().values()]
    assert groups == [[3_525, 186, 54, 1_030], [452, 452, 147, 148], [2_255, 2_255, 642, 642]]
    assert {name: len(part) for name, part in splits.named().items()} == WATERBIRDS().official_counts
    assert not splits.official
    assert "train 3,525 / 186 / 54 / 1,030, published" in splits.note
    assert "test" not in splits.note
    assert not module._splits(NOWHERE, module.read_metadata(other_draw / "metadata.csv")[1]).official  # with images


# ---- mistakes -------------------------------------------------------------------------------------------------------


def change(folder, old, new, n=1):
    path = folder / "metadata.csv"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, n), encoding="utf-8")


def cut(folder, keep):
    path = folder / "metadata.csv"
    path.write_text("".join(line for line in path.read_text("utf-8").splitlines(True) if keep(line)), encoding="utf-8")


FIRST = "000.Some_Bird/Some_Bird_0.jpg"


def first(values):
    """A function that gives the first row other values of y, split and place."""
    return lambda folder: change(folder, f"{FIRST},0,0,0,", f"{FIRST},{values},")


def table(data):
    return lambda folder: (folder / "metadata.csv").write_bytes(data)


DAMAGES = {
    "no table": (lambda f: (f / "metadata.csv").unlink(), r"metadata\.csv is missing: fetch it with debiasbench"),
    "an empty table": (table(b""), r"lacks the columns img_filename, y, split, place"),
    "no column y": (lambda f: change(f, ",y,", ",label,"), r"lacks the columns y\. Needed: .*Got img_id, img_filename"),
    "no column split": (lambda f: change(f, ",split,", ",part,"), r"lacks the columns split\."),
    "no column place": (lambda f: change(f, ",place,", ",background,"), r"lacks the columns place\."),
    "a label of 2": (first("2,0,0"), r"line 2: y must be 0 or 1\. Got '2'"),
    "a split of 3": (first("0,3,0"), r"line 2: split must be 0 or 1 or 2\. Got '3'"),
    "a place in words": (first("0,0,sea"), r"line 2: place must be 0 or 1\. Got 'sea'"),
    "half a line": (lambda f: change(f, f"{FIRST},0,0,0,/o/ocean/0.jpg", "000.Some"), r"line 2: y must be .* Got None"),
    "no name": (lambda f: change(f, FIRST, ""), "line 2: img_filename is empty"),
    "a name twice": (
        lambda f: change(f, "Some_Bird_1.jpg,1,0", "Some_Bird_0.jpg,1,0"), rf"line 5: {FIRST} is in line 2 already",
    ),
    "no validation": (lambda f: cut(f, lambda line: ",001." not in line), r"\.csv has no row of the valid split"),
    "an open quote": (lambda f: change(f, FIRST, f'"{FIRST}'), r"metadata\.csv cannot be read as a table"),
    "no text": (table(b"\xff\xfe\x00\xd8"), "cannot be read as a table"),
    "an image missing": (
        lambda f: (f / "002.Some_Bird/Some_Bird_1.jpg").unlink(),
        r"1 of 16 images .* are missing: .*Some_Bird_1\.jpg\. Unpack",
    ),
    "an image cut off": (
        lambda f: (f / "002.Some_Bird/Some_Bird_1.jpg").write_bytes(b"\xff\xd8\xff"), r"Some_Bird_1\.jpg",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_are_told_by_name_and_line(small, damage):
    harm, message = DAMAGES[damage]
    harm(small / FOLDER)
    with pytest.raises(BenchmarkError, match=message):
        built(small)


def test_all_mistakes_of_a_table_are_told_at_once(small):
    change(small / FOLDER, ",0,0,0,", ",9,9,9,", n=2)
    with pytest.raises(BenchmarkError) as error:
        built(small)
    assert len(str(error.value).splitlines()) == 1 + 5 + 1  # the file, five mistakes, and that there is one more
    assert str(error.value).endswith("... and 1 more.")


@pytest.mark.parametrize("size", [8, 0, -224])
def test_other_sizes_are_refused(size):
    with pytest.raises(BenchmarkError, match="The 'size' parameter of waterbirds must be a number of at least 16"):
        WATERBIRDS(size=size)


def test_what_is_needed_is_told(small, tmp_path, capsys):
    assert WATERBIRDS().needed_files(small) == []
    for path in list((small / FOLDER).glob("*.Some_Bird")):
        shutil.rmtree(path)
    (images,) = WATERBIRDS().needed_files(small)
    assert (images.path, images.downloads, images.for_x_alone) == (small / FOLDER, True, True)
    assert [file.path for file in WATERBIRDS().needed_files(NOWHERE)] == [
        NOWHERE / FOLDER / "metadata.csv",
        NOWHERE / FOLDER,
    ]
    assert main(["inspect", "waterbirds", "--data-dir", str(small), "--results-dir", str(tmp_path / "r")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "There are no images, so none were read." in shown
    assert (
        main(
            [
                "run",
                "--methods",
                "vanilla",
                "--datasets",
                "waterbirds",
                "--data-dir",
                str(small),
                "--results-dir",
                str(tmp_path / "r"),
            ]
        )
        == 2
    )


# ---- recipe and download --------------------------------------------------------------------------------------------


def test_the_recipe_is_that_of_groupdros_readme():
    (cell,) = expand(["vanilla"], ["waterbirds"], seeds=1).cells
    recipe = cell.build_recipe()
    assert (recipe.net, recipe.pretrained, recipe.optimizer, recipe.momentum) == ("resnet50", "imagenet", "sgd", 0.9)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_size, recipe.epochs) == (1e-3, 1e-4, 128, 300)
    assert not recipe.augment
    (cell,) = expand(["jtt:T=60,lambda_up=100"], ["waterbirds:learning_rate=1e-5,weight_decay=1"], seeds=1).cells
    assert (cell.recipe["learning_rate"], cell.recipe["weight_decay"]) == (1e-5, 1.0)


@pytest.fixture
def stanford(small, tmp_path, monkeypatch):
    """A server of this machine in place of the authors' two, with their archive at both; its log of paths."""
    served, asked = tmp_path / "served", []
    paths = [served / address.removeprefix("https://") for address in module.MIRRORS]
    for path in paths:
        path.parent.mkdir(parents=True)
        with tarfile.open(path, "w:gz") as archive:
            archive.add(small / FOLDER, FOLDER)
    shutil.rmtree(small / FOLDER)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    send = requests.adapters.HTTPAdapter.send

    def here(self, request, **options):  # a server with a certificate cannot be had here
        request.url = request.url.replace("https://", f"http://127.0.0.1:{server.server_port}/")
        return send(self, request, **options)

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)  # between attempts
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", here)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=served)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield paths, asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("lost", [0, 1])
def test_the_archive_comes_from_the_first_address_that_has_it(small, stanford, lost):
    paths, asked = stanford
    for path in paths[:lost]:
        path.unlink()
    WATERBIRDS().prepare(small)
    assert [path.split("/")[1] for path in asked if FOLDER in path][-1] == (
        "nlp.stanford.edu",
        "downloads.cs.stanford.edu",
    )[lost]
    assert len({path.split("/")[1] for path in asked}) == lost + 1
    assert WATERBIRDS().needed_files(small) == []
    assert not list((small / FOLDER).glob("*.tar.gz"))
    assert len(built(small).train) == len(ROWS[0])


def test_an_archive_that_nobody_has_is_told_with_every_address(small, stanford):
    for path in stanford[0]:
        path.unlink()
    with pytest.raises(BenchmarkError) as error:
        WATERBIRDS().prepare(small)
    for address in module.MIRRORS:
        assert f"{address}: HTTP 404" in str(error.value)
    assert "By hand: fetch it with a browser" in str(error.value)


def test_an_archive_that_broke_off_leaves_nothing(small, stanford):
    for path in stanford[0]:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BenchmarkError, match=f"{FOLDER}.tar.gz"):
        WATERBIRDS().prepare(small)
    assert [file.path.name for file in WATERBIRDS().needed_files(small)] == ["metadata.csv", FOLDER]


def test_the_archives_own_folder_becomes_root_whatever_that_is_called(small, stanford):
    dataset = WATERBIRDS(root=str(small / "birds"), size=16)
    dataset.prepare(NOWHERE)
    assert (small / "birds" / "metadata.csv").is_file()
    assert len(dataset.build(NOWHERE).test) == len(ROWS[2])
