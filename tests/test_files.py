"""What paths mean, and where nothing can be written: one rule and one wording for data, results and cache."""

import argparse
import errno
import os
from pathlib import Path

import pytest

import debiasbench
from debiasbench.cli import build_parser, main
from debiasbench.data.cache import cache_dir
from debiasbench.datasets import registry
from debiasbench.errors import BenchmarkError
from debiasbench.files import check_writable, default_data_dir, explained_errors, to_path
from debiasbench.grid import expand
from debiasbench.plugins import folders


def test_a_folder_that_need_not_be_there_yet_is_checked_and_not_made(tmp_path):
    check_writable(tmp_path / "not" / "yet", "--data-dir")
    check_writable(tmp_path, "--data-dir")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "deep/deeper"])
def test_a_folder_that_cannot_be_written_is_told_with_the_place_and_the_option(below, tmp_path):
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    with pytest.raises(BenchmarkError) as caught:
        check_writable(file / below, "--data-dir")
    for words in (f"{file / below} cannot be written", f"'{file}'", "another folder with --data-dir"):
        assert words in str(caught.value)
    assert file.read_text(encoding="utf-8") == ""
    with pytest.raises(BenchmarkError, match=r"^The results folder x cannot be written .*--results-dir"):
        check_writable(file / below, "--results-dir", what="The results folder x")


def test_a_link_to_nowhere_is_no_folder_to_write_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(BenchmarkError, match="cannot be written"):
        check_writable(tmp_path / "link" / "data", "--data-dir")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_and_a_used_quota_are_told_alike(code):
    told = r"^x cannot be written: the disk is full\. Make room, or give another folder with --y; then run"
    with pytest.raises(BenchmarkError, match=told), explained_errors("x", "--y"):
        raise OSError(code, os.strerror(code))
    told = r"the disk is full \(2 MB are needed\)"
    with pytest.raises(BenchmarkError, match=told), explained_errors("x", "--y", needed=2_000_000):
        raise OSError(code, os.strerror(code))


def test_other_refusals_keep_the_systems_words_and_other_errors_pass():
    told = r"x cannot be written \(.*Read-only file system: 'f'\): .* with --y"
    with pytest.raises(BenchmarkError, match=told), explained_errors("x", "--y"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "f")
    with pytest.raises(KeyError), explained_errors("x", "--y"):
        raise KeyError("z")


# ---- a path as a user gives it ---------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, apart from the current one: a `~` that is taken for a name would be below the latter."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))  # Windows
    return tmp_path / "home"


@pytest.mark.parametrize("given", ["~", "~/x", "~/a b/x y", Path("~/x"), Path("~")], ids=str)
def test_a_tilde_is_the_home(given, home):
    assert to_path(given) == Path(str(given).replace("~", str(home)))


@pytest.mark.parametrize("given", ["a~", "a/~/x", "$HOME/x", "x~1", "%USERPROFILE%", "/~", "", "."])
def test_other_paths_are_taken_as_they_are_written(given, home):
    assert to_path(given) == Path(given)


@pytest.mark.parametrize("name", ["~", "~x", "~/x", "~no-such-user/x"])
def test_a_name_that_begins_with_a_tilde_is_written_with_its_folder(name, home):
    once = to_path(f"./{name}")
    assert once == Path.cwd() / name
    assert to_path(once) == once


@pytest.mark.parametrize("given", ["~no-such-user", "~no-such-user/data", Path("~no-such-user/a/b")], ids=str)
def test_a_home_that_is_not_known_is_told(given, home):
    with pytest.raises(
        BenchmarkError, match=rf"The path {given} begins with ~no-such-user, .* \./{given} for a folder"
    ):
        to_path(given)


def test_every_path_of_the_command_line_may_begin_with_a_tilde(home):
    """By its kind, so that an option that is new is looked at too."""

    def paths(parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    yield from paths(command)
            elif action.metavar in ("DIR", "FILE") or action.dest == "folder":
                yield action

    found = list(paths(build_parser()))
    assert {action.dest for action in found} >= {"data_dir", "results_dir", "cache_dir", "methods_dir", "folder"}
    for action in found:
        assert action.type("~/x") == home / "x"


@pytest.mark.parametrize(
    ("variable", "folder"),
    [
        ("DEBIASBENCH_DATA", default_data_dir),
        ("DEBIASBENCH_CACHE", cache_dir),
        ("XDG_CACHE_HOME", lambda: cache_dir().parent),
    ],
)
def test_environment_variables_may_begin_with_a_tilde(variable, folder, home, monkeypatch):
    monkeypatch.delenv("DEBIASBENCH_CACHE", raising=False)
    monkeypatch.setenv(variable, "~/x y")
    assert folder() == home / "x y"


def test_an_empty_variable_is_none(home, monkeypatch):
    monkeypatch.setenv("DEBIASBENCH_DATA", "")
    monkeypatch.setenv("DEBIASBENCH_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_data_dir() == Path("data")
    assert cache_dir() == home / ".cache" / "debiasbench"


def test_folders_of_plugins_may_begin_with_a_tilde(home, monkeypatch):
    monkeypatch.setenv("SOME_PATH", os.pathsep.join(["~/a", "", "/b", "~"]))
    assert folders("/x/methods.py", "SOME_PATH")[1:] == [str(home / "a"), "/b", str(home)]


@pytest.mark.parametrize("name", registry.classes())
def test_the_root_of_every_dataset_may_begin_with_a_tilde(name, home):
    """And is not in its identity: whose home it is changes nothing."""
    title = {"title": "mine"} if name in ("imagefolder", "features") else {}
    dataset = registry.get(name)[0](root="~/mine", **title)
    places = [dataset.folder(Path("data")), *(file.path for file in dataset.needed_files(Path("data")))]
    assert all(str(path).startswith((str(home / "mine"), "bert-base")) for path in places), places
    assert "~" not in str(dataset.key())


def test_paths_in_an_experiment_and_in_python(home, capsys):
    grid = """
    methods = ["vanilla"]
    datasets = ["bar:root=~/photos", "civilcomments:root=~/texts,encoder=~/bert"]
    """
    (home / "grid.toml").write_text(grid, encoding="utf-8")
    assert (
        main(["run", "--experiment", "~/grid.toml", "--dry-run", "--data-dir", "~/none", "--results-dir", "~/r"]) == 2
    )
    shown = capsys.readouterr().err
    for place in ("photos/train", "texts/civilcomments_v1.0/all_data_with_identities.csv", "bert"):
        assert f"  {home / place} (" in shown
    with pytest.raises(BenchmarkError, match=str(home / "r")):
        debiasbench.load_results("~/r")
    with pytest.raises(BenchmarkError, match=str(home / "r.json")):
        debiasbench.load_predictor("~/r.json")
    with pytest.raises(BenchmarkError, match=str(home / "none")):
        debiasbench.run(["vanilla"], ["cmnist"], data_dir=Path("~/none"), results_dir="~/r")
    assert not list(Path().iterdir())  # nothing was made for a `~` here


def test_what_identifies_a_cell_is_what_was_written(home, monkeypatch):
    """`~/x` is the same cell whoever's home it is; what the file holds is compared by its checksum."""
    spec = "bar:root=~/photos,pretrained=~/weights.pth"
    cell = expand(["vanilla"], [spec], seeds=1).cells[0]
    monkeypatch.setenv("HOME", str(home.parent / "another"))
    assert cell.recipe["pretrained"] == "~/weights.pth"
    assert expand(["vanilla"], [spec], seeds=1).cells[0].hash == cell.hash
    assert expand(["vanilla"], ["bar:pretrained=~/weights.pth"], seeds=1).cells[0].hash == cell.hash
