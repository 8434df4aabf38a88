"""What `debiasbench doctor` says: of machines that are well, and of each kind of ill ones."""

import errno
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from debiasbench.cli import main
from debiasbench.errors import BenchmarkError
from debiasbench.methods import registry as methods
from debiasbench.running import doctor
from debiasbench.running.doctor import Finding, Gpus, Requirement
from debiasbench.running.preparation import DataState

PROJECT = tomllib.loads((Path(doctor.PACKAGE).parent / "pyproject.toml").read_text("utf-8"))["project"]


def no_file(number):
    """A function that fails as the system does with this error."""

    def fail(*given, **options):
        raise OSError(number, os.strerror(number))

    return fail


# ---- as a whole -----------------------------------------------------------------------------------------------------


def test_a_machine_that_is_well_can_run_the_demo_and_nothing_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    for what in ("torch", "processor", "memory", "data of cmnist5k", "results folder", "locks", "executor slurm"):
        assert any(line.split(maxsplit=1)[1].startswith(what) for line in told.splitlines()), what
    assert told.endswith("The demo can run: debiasbench run\n")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_well_says_what_to_do(tmp_path):
    findings = list(doctor.examine(tmp_path / "data", tmp_path / "results"))
    assert doctor.can_run(findings)
    assert [one for one in findings if (one.state == "ok") == bool(one.advice)] == []
    assert len({one.what for one in findings}) == len(findings)


def test_nothing_asks_the_network(tmp_path, monkeypatch):
    def refuse(*given, **options):
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert "asked" not in str(list(doctor.examine(tmp_path, tmp_path)))


def test_a_bug_report_names_neither_home_nor_user(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home" / "jane")
    monkeypatch.setattr(doctor.getpass, "getuser", lambda: "jane")
    words = [
        "--data-dir",
        str(tmp_path / "home" / "jane" / "data"),
        "--results-dir",
        str(tmp_path / "jane" / "results"),
    ]
    assert main(["doctor", "--json", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["demo_can_run"] is True
    texts = {one["what"]: one["text"] for one in told["findings"]}
    assert "jane" not in str(told)
    assert texts["data folder"].startswith("~")
    assert "$USER" in texts["results folder"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/jane/data, 3 entries", "~/data, 3 entries"),
        ("/home/jane", "~"),
        ("/home/janet/data", "/home/janet/data"),
        ("/scratch/jane/results: full", "/scratch/$USER/results: full"),
        ("/scratch/jane-2 and jane", "/scratch/jane-2 and jane"),
    ],
)
def test_names_are_taken_out_whole(text, shown, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/jane"))
    monkeypatch.setattr(doctor.getpass, "getuser", lambda: "jane")
    assert doctor.anonymous(Finding("x", text))["text"] == shown


@pytest.mark.parametrize("problem", [KeyError("no such user"), OSError("no name")])
def test_a_user_without_home_and_name_is_no_error(problem, monkeypatch):
    def fail():
        raise problem

    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    monkeypatch.setattr(doctor.getpass, "getuser", fail)
    assert doctor.anonymous(Finding("x", "/a/b"))["text"] == "/a/b"


@pytest.mark.parametrize("part", ["gpus", "requirements", "memory", "of_system"])
@pytest.mark.parametrize("error", [RuntimeError("it broke\nand more"), SystemExit(3), OSError(5, "I/O error")])
def test_what_one_part_raises_hides_no_other(part, error, tmp_path, monkeypatch):
    def fail(*given):
        raise error

    monkeypatch.setattr(doctor, part, fail)
    findings = list(doctor.examine(tmp_path, tmp_path))
    (told,) = [one for one in findings if "cannot be checked" in one.text]
    assert type(error).__name__ in told.text
    assert "\n" not in told.text
    assert {"debiasbench", "data folder", "executor slurm"} <= {one.what for one in findings}
    assert not doctor.can_run(findings)


def test_without_torch_it_says_so_and_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "torch" else "99.0")
    assert main(["doctor", "--results-dir", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "torch                  is not installed: needed for all training." in told
    assert 'pip install "torch>=' in told
    assert "executor local" in told
    assert told.endswith("The demo cannot run: see the problems above.\n")


def test_what_plugins_print_stays_out_of_the_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "of_system", lambda: sys.stdout.write("hello") and Finding("system", "any"))
    main(["doctor", "--json", "--results-dir", str(tmp_path)])
    told = capsys.readouterr()
    assert json.loads(told.out)
    assert "hello" in told.err


# ---- versions -------------------------------------------------------------------------------------------------------


def test_every_package_of_the_project_is_known():
    of_project = doctor.requirements()
    assert {one.name for one in of_project} == set(doctor.NEEDED_FOR)
    assert {one.name for one in of_project if not one.extra} >= doctor.NOT_FOR_THE_DEMO
    for one in of_project:
        assert doctor.is_allowed("9999", one.allowed)
        assert not doctor.is_allowed("0", one.allowed)
    assert doctor.python_range() == PROJECT["requires-python"]


def test_in_a_wheel_the_requirements_are_those_of_the_metadata(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path / "debiasbench")
    texts = [
        "torch>=2.11",
        'umap-learn>=0.5.7; extra == "george"',
        "gdown >= 6.5 ; extra == 'drive'",
        'x>=1; extra == "dev"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: texts)
    expected = [("torch", ">=2.11", ""), ("umap-learn", ">=0.5.7", "george"), ("gdown", ">=6.5", "drive")]
    assert doctor.requirements() == [Requirement(*one) for one in expected]
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'another'\n", encoding="utf-8")
    assert len(doctor.requirements()) == 3


@pytest.mark.parametrize(
    ("version", "allowed", "is_allowed"),
    [
        ("2.11.0", ">=2.11", True),
        ("2.11.0+cu128", ">=2.11", True),
        ("2.9.1", ">=2.11", False),
        ("3", ">=2.11.5", True),
        ("2.11", ">=2.11.0", True),
        ("3.13.2", ">=3.11,<3.14", True),
        ("3.14.0", ">=3.11,<3.14", False),
        ("3.10.9", ">=3.11,<3.14", False),
        ("anything", "", True),
        ("unknown", ">=1", False),
    ],
)
def test_versions_are_compared_by_their_numbers(version, allowed, is_allowed):
    assert doctor.is_allowed(version, allowed) is is_allowed


@pytest.mark.parametrize(
    ("needed", "version", "state", "said", "advice"),
    [
        (Requirement("torch", ">=2.11"), "2.12.0+cpu", "ok", "2.12.0+cpu", ""),
        (Requirement("torch", ">=2.11"), None, "problem", "is not installed", 'pip install "torch>=2.11"'),
        (
            Requirement("torch", ">=2.11"),
            "2.5.1",
            "problem",
            "2.5.1 is not among",
            'pip install --upgrade "torch>=2.11"',
        ),
        (
            Requirement("jinja2", ">=3.1"),
            "2.0",
            "problem",
            "needed for report.html",
            'pip install --upgrade "jinja2>=3.1"',
        ),
        (Requirement("wilds", ">=2.0"), None, "note", "CivilComments", 'pip install "wilds>=2.0"'),
        (Requirement("pooch", ">=1.7"), "1.0", "note", "downloads", 'pip install --upgrade "pooch>=1.7"'),
        (Requirement("gdown", ">=6.5", "drive"), None, "note", "celeba", 'pip install "debiasbench[drive]"'),
        (Requirement("gdown", ">=6.5", "drive"), "5.1", "note", "celeba", 'pip install --upgrade "debiasbench[drive]"'),
    ],
)
def test_a_package_is_missing_too_old_or_well(needed, version, state, said, advice):
    found = doctor.of_package(needed, version)
    assert (found.what, found.state, found.advice) == (needed.name, state, advice)
    assert said in found.text


@pytest.mark.parametrize(
    ("version", "state"), [("3.11.7", "ok"), ("3.13.0", "ok"), ("3.14.0", "note"), ("3.10.1", "note")]
)
def test_other_versions_of_python_were_not_tried(version, state):
    assert doctor.of_python(version, ">=3.11,<3.14").state == state


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libcudart.so.12: cannot open shared object file"),
        RuntimeError("operator torchvision::nms does not exist"),
        OSError("[WinError 126] fbgemm.dll"),
    ],
)
@pytest.mark.parametrize(("name", "state"), [("torch", "problem"), ("torchvision", "note")])
def test_a_package_that_cannot_be_imported_is_told(name, state, error, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    (found,) = doctor.of_imports([name])
    assert (found.what, found.state) == (name, state)
    assert str(error) in found.text


# ---- processor and memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_cores", "allowed", "advice"),
    [(16, None, ""), (16, 16.0, ""), (16, 2.5, "--workers 2,"), (4, 0.5, "--workers 1,"), (2, 8.0, "")],
)
def test_a_container_may_have_less_than_all_cores(n_cores, allowed, advice):
    found = doctor.of_processor(n_cores, allowed, 1)
    assert found.advice.startswith(advice)
    assert (found.state == "note") == bool(advice)


@pytest.mark.parametrize(
    ("free", "n_workers", "advice"),
    [(64e9, 16, ""), (4e9, 16, "--workers 8,"), (0.1e9, 2, "--workers 1,"), (1e9, 2, ""), (None, 2, "")],
)
def test_memory_for_a_worker_a_core(free, n_workers, advice):
    found = doctor.of_memory(None if free is None else int(free), int(128e9), n_workers=n_workers)
    assert found.advice.startswith(advice)
    assert (found.state == "note") == bool(advice)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, (8_000 * 1024, 16_000 * 1024)),
        ({"memory.max": ["max"], "memory.current": ["5"]}, (8_000 * 1024, 16_000 * 1024)),
        ({"memory.max": ["2048", "max"], "memory.current": ["1024", "9999"]}, (1024, 2048)),
        ({"memory.max": ["1000"], "memory.current": ["2000"]}, (0, 1000)),
    ],
)
def test_memory_is_that_of_the_container(limits, expected, tmp_path, monkeypatch):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 16000 kB\nMemFree: 1 kB\nMemAvailable: 8000 kB\n", encoding="utf-8")
    monkeypatch.setattr(doctor, "of_group", lambda name: limits.get(name, []))
    assert doctor.memory(info) == expected


@pytest.mark.parametrize("content", [None, "", "MemTotal: many kB", "MemTotal:", "MemTotal: 5 kB"])
def test_memory_that_cannot_be_told_is_no_error(content, tmp_path):
    if content is not None:
        (tmp_path / "meminfo").write_text(content, encoding="utf-8")
    assert doctor.memory(tmp_path / "meminfo") == (None, None)


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ("0::/slurm/job_7\n", ["200000 100000", "max 100000"]),
        ("1:cpu:/\n0::/slurm\n", ["max 100000"]),
        ("0::/\n", []),
        ("1:cpu:/old\n", []),
        ("", []),
    ],
)
def test_limits_of_groups_are_read_from_the_own_one_upwards(own, found, tmp_path):
    groups = tmp_path / "cgroup"
    (groups / "slurm" / "job_7").mkdir(parents=True)
    (groups / "slurm" / "job_7" / "cpu.max").write_text("200000 100000\n", encoding="utf-8")
    (groups / "slurm" / "cpu.max").write_text("max 100000\n", encoding="utf-8")
    (tmp_path / "own").write_text(own, encoding="utf-8")
    assert doctor.of_group("cpu.max", groups=groups, own=tmp_path / "own") == found
    assert doctor.of_group("cpu.max", groups=groups, own=tmp_path / "not there") == []


@pytest.mark.parametrize(
    ("texts", "cores"),
    [
        (["200000 100000", "max 100000"], 2.0),
        (["max 100000"], None),
        ([], None),
        (["50000 100000", "20000 100000"], 0.2),
    ],
)
def test_cores_that_groups_allow(texts, cores, monkeypatch):
    monkeypatch.setattr(doctor, "of_group", lambda _: texts)
    assert doctor.cores_of_group() == cores


# ---- GPUs -----------------------------------------------------------------------------------------------------------

H100 = ["NVIDIA H100, 81559 MiB, 550.54"]
OLD = "The NVIDIA driver on your system is too old (found version 11040)."


@pytest.mark.parametrize(
    ("known", "state", "said", "advice"),
    [
        (Gpus(), "ok", "the CPU (torch is built for the CPU alone)", ""),
        (Gpus("CUDA 12.8"), "ok", "the CPU (torch is built for CUDA 12.8)", ""),
        (Gpus("CUDA 12.8", {"cuda:0": "H100, 80 GB"}, of_driver=H100), "ok", "H100, 80 GB, usable (CUDA 12.8)", ""),
        (Gpus("ROCm 6.2", {"cuda:0": "MI300, 192 GB"}), "ok", "MI300, 192 GB, usable (ROCm 6.2)", ""),
        (Gpus("", of_driver=H100), "note", "built for the CPU alone", "Install a torch that is built for CUDA"),
        (Gpus("CUDA 12.8", of_driver=H100, variable=""), "note", "CUDA_VISIBLE_DEVICES is ''", "Unset CUDA_VISIBLE"),
        (Gpus("CUDA 12.8", of_driver=H100, variable="-1"), "note", "CUDA_VISIBLE_DEVICES is '-1'", "Unset"),
        (Gpus("CUDA 12.8", of_driver=H100, variable="1,0"), "note", "CUDA_VISIBLE_DEVICES is '1,0'", "Unset"),
        (Gpus("CUDA 12.8", of_driver=H100, variable="0", refusal=OLD), "note", OLD, "Update the driver"),
        (Gpus("CUDA 12.8", of_driver=H100, variable="GPU-1f", refusal=OLD), "note", OLD, "Update the driver"),
        (Gpus("CUDA 12.8", of_driver=H100, refusal=OLD), "note", OLD, "Update the driver"),
        (Gpus("CUDA 12.8", of_driver=H100), "note", "does not say why", "Update the driver"),
        (Gpus("CUDA 12.8", of_driver=[], driver_refusal="no driver"), "note", "fails (no driver)", "Repair the driver"),
        (
            Gpus("CUDA 12.8", {"cuda:0": "B200, 180 GB"}, {"cuda:0": "no kernel image is available"}, of_driver=H100),
            "problem",
            "cannot compute on it (no kernel image is available)",
            "--device cpu",
        ),
    ],
)
def test_why_torch_sees_no_gpu(known, state, said, advice):
    *of_driver, found = doctor.of_gpus(known)
    assert [one.text for one in of_driver] == list(known.of_driver or ())
    assert found.state == state
    assert said in found.text
    assert found.advice.startswith(advice)
    assert bool(found.advice) == (state != "ok")


@pytest.mark.parametrize(
    ("done", "lines", "refusal"),
    [
        ((0, "NVIDIA H100, 81559 MiB, 550.54\nNVIDIA A100, 40960 MiB, 550.54\n", ""), 2, ""),
        ((0, "\n", ""), 0, ""),
        ((9, "NVIDIA-SMI has failed because it couldn't communicate with the driver\n", ""), 0, "couldn't communicate"),
        ((127, "", ""), 0, "exit code 127"),
        (subprocess.TimeoutExpired("nvidia-smi", 20), 0, "timed out"),
        (PermissionError(13, "Permission denied"), 0, "Permission denied"),
    ],
)
def test_what_the_driver_says(done, lines, refusal, monkeypatch):
    def run(*words, **options):
        if isinstance(done, Exception):
            raise done
        return subprocess.CompletedProcess(words, *done)

    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor.subprocess, "run", run)
    of_driver, said = doctor.nvidia_smi()
    assert len(of_driver) == lines
    assert refusal in said
    assert bool(said) == bool(refusal)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert doctor.nvidia_smi() == (None, "")


@pytest.mark.parametrize("error", ["CUDA out of memory", "no kernel image is available for execution"])
def test_a_gpu_that_cannot_compute_is_found_by_computing(error, monkeypatch):
    import torch

    def fail(*given, **options):
        raise RuntimeError(f"{error}\nand much more")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    known = SimpleNamespace(name="G", total_memory=8_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: known)
    monkeypatch.setattr(torch, "ones", fail)
    found = doctor.gpus()
    assert found.seen == {"cuda:0": "G, 8 GB", "cuda:1": "G, 8 GB"}
    assert found.failing == {"cuda:0": error, "cuda:1": error}


# ---- plug-ins and data ----------------------------------------------------------------------------------------------


def registry_of(**values):
    """A registry with nothing in it but what is given."""
    usual = {"kind": "method", "package": "debiasbench.methods", "variable": "X_PATH", "broken": {}, "unusable": {}}
    usual |= {"classes": lambda: {"vanilla": object}, "aliases": dict}
    return SimpleNamespace(**(usual | values))


def test_the_plugins_of_the_suite_are_well():
    (found,) = doctor.of_registry(methods, ["vanilla", "pgd:norm=l1", "pgd-loss"])
    assert found.state == "ok"


@pytest.mark.parametrize(
    ("values", "state", "said"),
    [
        (
            {"broken": {"mine": "Traceback ...\nImportError: no foo\n"}},
            "note",
            "could not be imported (ImportError: no foo)",
        ),
        ({"unusable": {"mine": "lacks fit"}}, "note", "lacks fit"),
        ({"classes": dict}, "problem", "is of the demo, and is not there"),
        ({"aliases": lambda: {"x": ("vanilla", {})}, "classes": dict}, "problem", "is of the demo"),
    ],
)
def test_plugins_that_are_not_well(values, state, said):
    found = list(doctor.of_registry(registry_of(**values), ["vanilla"]))
    (told,) = [one for one in found if one.state != "ok"]
    assert told.state == state
    assert said in told.text


def test_two_files_of_one_name_and_folders_that_are_not_there(tmp_path, monkeypatch):
    def fail():
        raise BenchmarkError("Two files define the method module 'x'. Rename one.")

    (found,) = doctor.of_registry(registry_of(classes=fail), ["vanilla"])
    assert (found.state, found.text) == ("problem", "Two files define the method module 'x'. Rename one.")
    package = SimpleNamespace(__path__=[str(tmp_path), str(tmp_path / "gone")])
    monkeypatch.setattr(doctor.importlib, "import_module", lambda _: package)
    told = next(iter(doctor.of_registry(registry_of(), ["vanilla"])))
    assert (told.state, told.text) == ("note", f"there is no folder {tmp_path / 'gone'}")
    assert "X_PATH" in told.advice


GOOD_NET = """
from torch import nn
from debiasbench.nets.own import Net
from debiasbench.evaluation.own import metric

class Mine(Net):
    name = "NAME"
    features = nn.Identity()

@metric
def sureness(logits):
    return float(logits.max())
"""


def test_networks_are_listed_with_what_is_in_their_files(own_files):
    (bare,) = doctor.of_nets()
    assert re.fullmatch(r"\d+ of the suite in \S.*own nets", bare.text)
    folder = own_files(one=GOOD_NET.replace("NAME", "mine"))
    (found,) = doctor.of_nets()
    assert found.state == "ok"
    assert found.text.endswith(f"of the suite, and outside it 1 net, 1 metric in {folder}")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"one": "import nothing_of_this_name"}, "The file one.py of --nets-dir cannot be used: ModuleNotFoundError"),
        ({"one": GOOD_NET.replace("NAME", "simconv1")}, "The suite has a net 'simconv1' already"),
        ({"one": GOOD_NET.replace("NAME", "a b")}, "The net 'a b' cannot be used"),
        (
            {"one": GOOD_NET.replace("NAME", "x"), "two": GOOD_NET.replace("NAME", "x")},
            "The net name 'x' is used twice",
        ),
    ],
)
def test_networks_that_keep_runs_from_starting_are_problems(own_files, files, said):
    own_files(**files)
    told = [one for one in doctor.of_nets() if one.state != "ok"]
    assert [one.state for one in told] == ["problem"]
    assert said in told[0].text
    assert not doctor.can_run(told)


@pytest.mark.parametrize(
    ("state", "word", "said", "advice"),
    [
        (DataState("bar", "complete"), "ok", "complete", ""),
        (DataState("celeba", "subset", "10 of 20\nmore"), "ok", "usable, but a part: 10 of 20", ""),
        (DataState("bar", "absent", "a\nb", "x", "downloads them"), "note", "absent: 2", "prepare bar downloads them"),
        (DataState("bffhq", "incomplete", "a", "x", "nothing: by hand"), "note", "incomplete: 1", "to fetch by hand"),
        (DataState("mine", "error", "PermissionError: no"), "note", "PermissionError: no", "prepare --check mine"),
    ],
)
def test_the_data_of_a_dataset(state, word, said, advice):
    found = doctor.of_data(state, needed=False)
    assert found.state == word
    assert found.text.startswith(said)
    assert found.advice.endswith(advice)
    assert bool(found.advice) == (word == "note")
    needed = doctor.of_data(state, needed=True)
    assert needed == Finding(found.what, found.text, "problem" if word == "note" else "ok", found.advice)


def test_the_data_folder(tmp_path, monkeypatch):
    (tmp_path / "MNIST").mkdir()
    assert doctor.of_data_folder(tmp_path).text == f"{tmp_path}, 1 entries"
    missing = doctor.of_data_folder(tmp_path / "gone")
    assert (missing.state, "is not there" in missing.text, "--data-dir" in missing.advice) == ("note", True, True)
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "cannot be read (Not a directory)" in doctor.of_data_folder(tmp_path / "file").text


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_data_folder_that_cannot_be_read_hides_nothing(number, tmp_path, monkeypatch):
    original = Path.iterdir

    def iterdir(self):
        return no_file(number)() if tmp_path in (self, *self.parents) else original(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    (tmp_path / "bar").mkdir()
    findings = {one.what: one for one in doctor.examine(tmp_path, tmp_path.parent)}
    assert f"cannot be read ({os.strerror(number)})" in findings["data folder"].text
    assert findings["data of cmnist5k"].text == "complete"
    assert findings["data of bar"].state == "note"
    assert doctor.can_run(findings.values())


# ---- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_that_can_be_written_holds_nothing_more_afterwards(tmp_path):
    found = doctor.of_folder("results folder", tmp_path, "--results-dir", parts=("records", "logs"))
    assert found.state == "ok"
    assert "disk are free" in found.text
    assert "made when it is needed" in doctor.of_folder("results folder", tmp_path / "a" / "b", "--results-dir").text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "said", "advice"),
    [
        (errno.ENOSPC, "the disk is full", "Make room (debiasbench clean"),
        (errno.EDQUOT, "the disk is full", "Make room (debiasbench clean"),
        (errno.EROFS, f"cannot be written ({os.strerror(errno.EROFS)})", "Another folder with --results-dir"),
        (errno.EACCES, f"cannot be written ({os.strerror(errno.EACCES)})", "Another folder with --results-dir"),
    ],
)
def test_a_disk_that_is_full_or_can_only_be_read(number, said, advice, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "write_on_trial", no_file(number))
    found = doctor.of_folder("results folder", tmp_path, "--results-dir")
    assert found.state == "problem"
    assert said in found.text
    assert found.advice.startswith(advice)
    assert main(["doctor", "--results-dir", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert f"problem  results folder         {tmp_path}" in told
    assert "note     cache folder" in told  # the demo runs without


def test_a_part_of_the_results_folder_that_is_no_folder(tmp_path):
    (tmp_path / "records").write_text("", encoding="utf-8")
    found = doctor.of_folder("results folder", tmp_path, "--results-dir", parts=("logs", "records"))
    assert found.state == "problem"
    assert f"{tmp_path / 'records'} cannot be written (" in found.text
    assert doctor.of_folder("x", tmp_path / "records", "--x").state == "problem"
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert doctor.of_folder("x", tmp_path / "link", "--x").state == "problem"


@pytest.mark.parametrize(("free", "state"), [(0, "problem"), (5_000_000, "problem"), (10**10, "ok")])
def test_little_room_is_told(free, state, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert doctor.of_folder("results folder", tmp_path, "--results-dir").state == state


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOLCK, "No locks available"),
        OSError(errno.ENOSYS, "Not implemented"),
        NotImplementedError("no flock"),
    ],
)
def test_a_file_system_without_locks(error, tmp_path, monkeypatch):
    import filelock

    class NoLock:
        def __init__(self, path, **options):
            pass

        def __enter__(self):
            raise error

        def __exit__(self, *given):
            pass

    assert doctor.of_locks(tmp_path).state == "ok"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(filelock, "FileLock", NoLock)
    found = doctor.of_locks(tmp_path / "results")
    assert found.state == "note"
    assert str(error) in found.text


# ---- executors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "commands", "ray", "slurm"),
    [
        ({}, (), "lacks the package ray", "lacks the package submitit and the command sbatch"),
        ({"ray": "2.50"}, (), "ray 2.50", "lacks the package submitit and the command sbatch"),
        ({"submitit": "1.5"}, (), "lacks the package ray", "lacks the command sbatch"),
        ({}, ("sbatch",), "lacks the package ray", "lacks the package submitit"),
        ({"submitit": "1.5"}, ("sbatch",), "lacks the package ray", "submitit 1.5 and /usr/bin/sbatch"),
    ],
)
def test_executors_and_what_they_lack(installed, commands, ray, slurm):
    found = doctor.of_executors(installed.get, lambda name: f"/usr/bin/{name}" if name in commands else None)
    local, *others = found
    assert local.state == "ok"
    assert [one.text for one in others] == [ray, slurm]
    assert [one.state == "note" for one in others] == [one.text.startswith("lacks") for one in others]
    assert all(bool(one.advice) == (one.state == "note") for one in others)
    assert all(("pip install" in one.advice) == ("package" in one.text) for one in others)
