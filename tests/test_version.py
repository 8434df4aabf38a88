"""The version follows from the tag: in clones of every kind as git says it, elsewhere as it was installed."""

import re
import shutil
import subprocess
import tomllib
import warnings
from pathlib import Path

import pytest

import debiasbench
from debiasbench import about
from debiasbench.cli import main
from debiasbench.running import nodes, runner

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def git(folder, *words):
    """Run git there, away from the settings of whoever runs the tests, and return what it prints."""
    person = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "tag.gpgsign=false"]
    command = ["git", *person, "-c", "commit.gpgsign=false", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, encoding="utf-8").stdout.strip()


def commit(folder, text="text"):
    (folder / "debiasbench").mkdir(exist_ok=True)
    with (folder / "debiasbench" / "file.py").open("a", encoding="utf-8") as file:
        file.write(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", text)


@pytest.fixture
def clone(tmp_path):
    """A repository of one commit without a tag."""
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


@pytest.fixture
def version_in(monkeypatch):
    """The version that the suite has where its package is in a folder."""

    def version(folder):
        monkeypatch.setattr(about, "PACKAGE", Path(folder) / "debiasbench")
        return about.version.__wrapped__()  # it is told once a process

    return version


def built(folder):
    """The version of a wheel that is built there."""
    scm = pytest.importorskip("setuptools_scm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a shallow clone: its commits are not all there to be counted
        return scm.get_version(str(folder), **PROJECT["tool"]["setuptools_scm"])


def node(folder):
    return "+g" + git(folder, "rev-parse", "HEAD")[:9]


def edit(folder):
    (folder / "debiasbench" / "file.py").write_text("edited", encoding="utf-8")


def tag(folder, name, *options):
    git(folder, "tag", *options, name)


STATES = {  # what was done to a repository of one commit -> its version, before the node and the mark of edited files
    "a tag": ([("tag", "v0.2.0")], "0.2.0"),
    "an annotated tag": ([("tag", "v0.2.0", "--message=text")], "0.2.0"),
    "a release candidate": ([("tag", "v0.3.0rc1")], "0.3.0rc1"),
    "two tags": ([("tag", "v0.9.0"), ("commit",), ("tag", "v0.10.0")], "0.10.0"),
    "commits after a tag": ([("tag", "v0.2.0"), ("commit",), ("commit",)], "0.2.1.dev2+"),
    "a commit after a round number": ([("tag", "v1.9"), ("commit",)], "1.10.dev1+"),
    "a commit after a release candidate": ([("tag", "v0.3.0rc1"), ("commit",)], "0.3.0rc2.dev1+"),
    "a tag, and edited": ([("tag", "v0.2.0"), ("edit",)], "0.2.1.dev0+.changes"),
    "a commit after a tag, and edited": ([("tag", "v0.2.0"), ("commit",), ("edit",)], "0.2.1.dev1+.changes"),
    "no tag": ([("commit",)], "0.dev2+"),
    "no tag, and edited": ([("edit",)], "0.dev1+.changes"),
    "tags that are no versions": ([("tag", "paper-2023"), ("tag", "very-old"), ("commit",)], "0.dev2+"),
}


@pytest.mark.parametrize("state", STATES)
def test_a_clone_has_the_version_of_its_tag(state, clone, version_in):
    steps, expected = STATES[state]
    for name, *arguments in steps:
        {"tag": tag, "commit": commit, "edit": edit}[name](clone, *arguments)
    expected = expected.replace("+", node(clone))
    assert version_in(clone) == expected
    assert re.sub(r"\.d\d{8}$", ".changes", built(clone)) == expected


@pytest.mark.parametrize(("tags", "expected"), [(["first"], "0.dev1+"), (["first", "last"], "0.3.0"), ([], "0.dev1+")])
def test_a_shallow_clone_has_a_version(tags, expected, clone, version_in, tmp_path):
    if "first" in tags:
        tag(clone, "v0.2.0")
    commit(clone)
    if "last" in tags:
        tag(clone, "v0.3.0")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", clone.as_uri(), str(shallow))
    expected = expected.replace("+", node(shallow))
    assert version_in(shallow) == built(shallow) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [([], "0.dev0"), ([("tag", "v0.2.0")], "0.2.0"), ([("tag", "v0.2.0"), ("commit",)], "0.2.1.dev1+")],
)
def test_an_archive_of_the_repository_builds_with_its_version(steps, expected, clone, tmp_path):
    """As a hosting service makes it for download: without git."""
    if "$Format" not in (ROOT / ".git_archival.txt").read_text(encoding="utf-8"):
        pytest.skip("these sources come from such an archive themselves")
    for name in (".gitattributes", ".git_archival.txt"):
        (clone / name).write_bytes((ROOT / name).read_bytes())
    commit(clone)
    for name, *arguments in steps:
        {"tag": tag, "commit": commit}[name](clone, *arguments)
    git(clone, "archive", "--output", str(tmp_path / "archive.zip"), "HEAD")
    shutil.unpack_archive(tmp_path / "archive.zip", tmp_path / "unpacked")
    assert built(tmp_path / "unpacked") == expected.replace("+", node(clone))


def test_a_copy_without_git_builds(tmp_path):
    assert built(tmp_path) == "0.dev0"


def test_a_folder_within_another_repository_is_none_of_its_versions(clone, version_in):
    tag(clone, "v7.0")
    assert version_in(clone / "environment") == built(clone / "environment") == "0.dev0"


def install(folder, version, kind="dist-info"):
    """What pip leaves beside a package: `egg-info` in a clone, `dist-info` elsewhere."""
    info = folder / ("debiasbench.egg-info" if kind == "egg-info" else f"debiasbench-{version}.{kind}")
    info.mkdir(parents=True)
    name = "PKG-INFO" if kind == "egg-info" else "METADATA"
    (info / name).write_text(f"Metadata-Version: 2.1\nName: debiasbench\nVersion: {version}\n", encoding="utf-8")


@pytest.mark.parametrize("kind", ["dist-info", "egg-info"])
def test_without_git_the_version_is_that_of_what_was_installed(kind, tmp_path, version_in, monkeypatch):
    install(tmp_path / "here", "0.4.0", kind)
    install(tmp_path / "elsewhere", "9.9.9")
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert version_in(tmp_path / "here") == "0.4.0"
    assert version_in(tmp_path / "nowhere") == "0.dev0"


def test_a_clone_is_ahead_of_what_was_installed_from_it(clone, version_in, monkeypatch, tmp_path):
    install(clone, "0.2.0", "egg-info")
    tag(clone, "v0.3.0")
    assert version_in(clone) == "0.3.0"
    monkeypatch.setenv("PATH", str(tmp_path))  # no git: what was installed is all that is known
    assert version_in(clone) == "0.2.0"


def test_a_repository_without_commits_is_no_error(tmp_path, version_in):
    git(tmp_path, "init", "--quiet")
    assert version_in(tmp_path) == "0.dev0"


def test_records_and_the_command_line_tell_the_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"debiasbench {about.version()}\n"
    assert debiasbench.__version__ == about.version() != ""


def test_the_commit_of_records_is_that_of_the_clone(clone, monkeypatch):
    monkeypatch.setattr(about, "PACKAGE", clone / "debiasbench")
    monkeypatch.setattr(runner, "_COMMIT", [])
    assert runner.git_commit() == git(clone, "rev-parse", "HEAD")
    monkeypatch.setattr(runner, "_COMMIT", [])
    edit(clone)
    assert runner.git_commit() == git(clone, "rev-parse", "HEAD") + "+changes"
    monkeypatch.setattr(runner, "_COMMIT", [])
    monkeypatch.setattr(about, "PACKAGE", clone / "environment" / "debiasbench")
    assert runner.git_commit() == ""


def test_machines_need_equal_source_not_equal_words_for_it(monkeypatch):
    """A clone, a copy of it without git and a wheel of it may take part in one run."""
    ours = nodes.versions()
    monkeypatch.setattr(about, "version", lambda: "0.dev0")
    assert nodes.other_versions(ours) == ""
    monkeypatch.setattr(nodes, "digest_of_suite", lambda: "0" * 64)
    assert "has debiasbench source 000000000000 (the run has source" in nodes.other_versions(ours)
