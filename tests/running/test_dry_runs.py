"""A dry run downloads nothing: it says which files a run would download, how large they are, and from where."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from debiasbench.cli import main
from debiasbench.grid import expand
from debiasbench.records import DataFacts, EpochFacts, Provenance, Record, Result, Seconds, record_path, write_record
from debiasbench.running.plan import plan


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """The addresses that were asked for; nothing is had from them."""
    asked = []
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def none(url, *_, **__):
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", none)
    return asked


@pytest.fixture
def photos(tmp_path):
    """The spec of a few images of one's own, by default with ImageNet weights."""
    for split, label, number in ((s, c, n) for s in ("train", "valid", "test") for c in ("ant", "bee") for n in "012"):
        path = tmp_path / "photos" / split / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        value = 40 * int(number) + 100 * (label == "bee") + len(split)
        Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(path)
    return f"imagefolder:root={tmp_path / 'photos'},title=insects,size=32"


def planned(tmp_path, capsys, *datasets, command="run", methods=("vanilla",)):
    words = ["--methods", *methods, "--datasets", *datasets, "--seeds", "1", "--results-dir", str(tmp_path / "results")]
    assert main([command, *words, "--dry-run", *(["--draws", "2"] if command == "tune" else [])]) == 0
    return " ".join(capsys.readouterr().out.split())


NEEDED = {
    "": r"resnet18-f37072fd\.pth \(44\.661 MB\)",
    ",net=resnet50": r"resnet50-0676ba61\.pth \(97\.781 MB\)",
    ",net=torchvision:mobilenet_v3_small": r"mobilenet_v3_small-047dcff4\.pth \(9\.829 MB\)",
}


@pytest.mark.parametrize("command", ["run", "tune"])
@pytest.mark.parametrize("net", NEEDED)
def test_a_dry_run_says_which_weights_a_run_would_download(tmp_path, capsys, downloads, photos, net, command):
    quoted = net.replace("torchvision:mobilenet_v3_small", '"torchvision:mobilenet_v3_small"')
    said = planned(tmp_path, capsys, f"{photos}{quoted}", command=command)
    place = re.escape(str(tmp_path / "hub" / "checkpoints"))
    address = r"from https://download\.pytorch\.org/models/\S+\.pth"
    assert re.search(rf"note: A run would first download {NEEDED[net]} {address} to {place}\.", said)
    assert "cells to run" in said
    assert downloads == []
    assert not (tmp_path / "hub").exists()


def test_files_that_several_cells_need_are_told_once(tmp_path, capsys, downloads, photos):
    said = planned(tmp_path, capsys, photos, f"{photos},epochs=3", f"{photos},net=resnet50", methods=("vanilla", "rwy"))
    assert said.count("A run would first download") == 2
    assert said.count("resnet18-f37072fd.pth (") == 1
    assert downloads == []


def test_where_nothing_is_needed_nothing_is_told(tmp_path, capsys, downloads, photos):
    assert "download" not in planned(tmp_path, capsys, f"{photos},pretrained=none")
    assert "download" not in planned(tmp_path, capsys, "cmnist5k")
    assert downloads == []


def test_a_run_downloads_them_before_anything_trains(tmp_path, capsys, downloads, photos):
    assert main(["run", "--methods", "vanilla", "--datasets", photos, "--results-dir", str(tmp_path / "results")]) == 2
    assert "The ImageNet weights of resnet18 could not be downloaded" in capsys.readouterr().err
    assert [url.rpartition("/")[2] for url in downloads] == ["resnet18-f37072fd.pth"]


def test_weights_that_are_there_are_checked_in_a_dry_run_as_well(tmp_path, capsys, downloads, photos):
    place = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"a web page")
    words = ["--methods", "vanilla", "--datasets", photos, "--results-dir", str(tmp_path / "results"), "--dry-run"]
    assert main(["run", *words]) == 2
    assert "could not be downloaded or read" in capsys.readouterr().err
    assert downloads == []


@pytest.mark.parametrize("model", ["vit_h_14", "regnet_y_128gf"])  # large: they are not built for it
def test_a_dry_run_refuses_weights_that_do_not_exist(tmp_path, capsys, downloads, photos, model):
    words = ["--methods", "vanilla", "--datasets", f'{photos},net="torchvision:{model}"', "--dry-run"]
    assert main(["run", *words, "--results-dir", str(tmp_path / "results")]) == 2
    assert f"torchvision's {model} has none" in capsys.readouterr().err


def test_finished_cells_are_finished_where_their_weights_are_not_there(tmp_path, downloads, photos):
    """On the machine where a grid is looked at, which need not be the one that trained it."""
    grid = expand(["vanilla"], [photos], seeds=2)
    fingerprint = grid.cells[0].build_dataset().build(tmp_path).fingerprint()
    for cell, data in zip(grid.cells, (fingerprint, "other data"), strict=True):
        result = Result(
            DataFacts(data, True), {"last": 0}, (EpochFacts(1, {}, {"acc_avg": 0.5}),), pretrained_sha256="ab" * 32
        )
        provenance = Provenance("2026-11-26T00:00:00+00:00", Seconds(1.0), {"protocol": 1})
        write_record(record_path(tmp_path / "results", cell), Record(cell.hash, cell, provenance, result))
    found = plan(grid, data_dir=tmp_path, results_dir=tmp_path / "results", fetch=False)
    assert (list(found.finished), found.to_run) == ([grid.cells[0].hash], [grid.cells[1]])
    assert downloads == []
