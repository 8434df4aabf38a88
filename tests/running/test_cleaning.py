"""What `debiasbench clean` shows and deletes; and what it never does."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from made_records import failed_record, made_record, stored

from debiasbench import cli
from debiasbench.data.cache import cached, mapped
from debiasbench.errors import BenchmarkError
from debiasbench.files import atomic_file
from debiasbench.grid import expand
from debiasbench.records import EpochFacts, pack, record_path, running_path
from debiasbench.running import claims, cleaning
from debiasbench.running.claims import Claims, Presence, claim_path
from debiasbench.running.cleaning import KINDS, Folders, find, remove
from debiasbench.training.checkpoints import Checkpoints
from debiasbench.training.reuse import Reuse

EPOCHS = [EpochFacts(1, {"acc_avg": 0.5}, {"acc_avg": 0.5})]
LONG_AGO = time.time() - 100 * cleaning.YOUNG


@pytest.fixture(scope="module")
def cells():
    return expand(["vanilla", "pgd"], ["cmnist5k"], seeds=2).cells


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A results folder and a cache in which nothing may be deleted yet."""
    monkeypatch.setenv("DEBIASBENCH_CACHE", str(tmp_path / "cache"))
    found = Folders(tmp_path / "results", tmp_path / "cache")
    for folder in (found.results, found.cache):
        folder.mkdir()
    return found


@pytest.fixture(scope="module")
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def clean(folders, *words):
    return cli.main(["clean", str(folders.results), *words])


def files_of(*roots):
    return {path for root in roots for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def reused(folders, name="a"):
    """An end of a stage, made as a cell makes it (its content does not matter)."""
    with Reuse(folders.results / "reuse", data="", device=None).entry(name * 64) as entry:
        entry.path.write_bytes(b"x" * 1000)
    return entry.path


def checkpoint(folders, cell):
    """The folder of a cell that was interrupted, made as a cell makes it."""
    folder = running_path(record_path(folders.results, cell))
    checkpoints = Checkpoints(folder, {})
    checkpoints.keep("net", b"y" * 2000)
    checkpoints.write({"calls": []})
    return folder


def claimed(folders, cell, *, machine="", pid=None, age=0.0):
    """The claim of a run (of this machine, if no other is named) that renewed it `age` seconds ago."""
    path = claim_path(folders.results, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    me = Claims(folders.results)._me
    holder = replace(me, machine=machine or me.machine, host=machine or me.host, pid=pid or me.pid)
    path.write_text(json.dumps(vars(holder)), encoding="utf-8")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def entry_of_cache(folders, name="images"):
    """An entry, made as a dataset makes it; it is mapped as long as what is returned lives."""
    found = cached(name, {}, (3, 5), lambda: [np.zeros((3, 5), np.uint8)])
    (path,) = folders.cache.glob(f"{name}-*.uint8")
    return path, found


def cut_off(folder, name="s0-1.json"):
    """What a process that is killed in mid-write leaves."""
    with atomic_file(folder / name) as file:
        temporary = next(path for path in folder.iterdir() if path.name.startswith(f".{name}."))
        file.write(b"z" * 300)
    temporary.write_bytes(b"z" * 300)  # as it was then
    (folder / name).unlink()
    os.utime(temporary, (LONG_AGO, LONG_AGO))
    return temporary


def some_of_everything(folders, cells, gone):
    """One of each kind -> the files that may go, by kind."""
    stage, (entry, _) = reused(folders), entry_of_cache(folders)
    folder = checkpoint(folders, cells[0])
    return {
        "reuse": {stage, stage.with_suffix(".lock")},
        "checkpoints": files_of(folder),
        "cache": {entry.with_suffix(suffix) for suffix in (".uint8", ".uint8.lock", ".json")},
        "temporary": {cut_off(folders.results / "tables", "t.md"), claimed(folders, cells[0], pid=gone)},
    }


def never_deleted(folders, cells):
    """Files of every sort that stay, whatever is asked."""
    results = folders.results
    stored(results, made_record(cells[1], EPOCHS, {"last": 0}))
    paths = [
        results / "grid.json", results / "report.html", results / "records" / "mine.safetensors",
        results / "records" / "cmnist5k" / "vanilla" / "s9-1.weights.safetensors", results / "logs" / "a" / "s0.log",
        results / "figures" / "f.pdf", results / "reuse" / "notes.txt", results / "reuse" / f"{'c' * 63}.safetensors",
        results / "running" / "loose.safetensors", results / "running" / "cmnist5k" / "journal.json",
        results / ".hidden.json", results / ".x.json.backup01", folders.cache / "photograph.jpg",
        folders.cache / "photographs-0123.uint8", folders.cache / "below" / "images-0123456789abcdef.uint8",
    ]  # fmt: skip
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    return files_of(results, folders.cache)


# ---- what may go ----------------------------------------------------------------------------------------------------


def test_nothing_is_deleted_unless_somebody_says_so(folders, cells, gone, capsys):
    some_of_everything(folders, cells, gone)
    before = files_of(folders.results, folders.cache)
    assert clean(folders) == 0
    told = capsys.readouterr().out
    assert files_of(folders.results, folders.cache) == before
    for word in (*KINDS, "1 kB", "a void claim", "no run is working on its cell"):
        assert word in told
    assert "Nothing was deleted: --yes deletes it, --what chooses." in told


@pytest.mark.parametrize("kinds", [*([kind] for kind in KINDS), ["reuse", "temporary"], list(KINDS)])
def test_what_was_chosen_is_deleted_and_nothing_else(kinds, folders, cells, gone, capsys):
    kept = never_deleted(folders, cells)
    every = some_of_everything(folders, cells, gone)
    kept |= {path for kind, paths in every.items() if kind not in kinds for path in paths}
    assert clean(folders, "--yes", "--what", *kinds) == 0
    assert files_of(folders.results, folders.cache) == kept
    assert "Deleted: " in capsys.readouterr().out
    assert clean(folders, "--yes", "--what", *kinds) == 0
    assert "There is nothing to delete." in capsys.readouterr().out


def test_sizes_are_those_of_the_files(folders, cells, gone):
    every = some_of_everything(folders, cells, gone)
    found = find(folders)
    for kind, paths in every.items():
        assert sum(one.size for one in found if one.kind == kind) == sum(path.stat().st_size for path in paths)
    freed, left = remove(found, folders)
    assert (freed, left) == (sum(one.size for one in found), [])


def test_a_cell_that_was_cleaned_starts_anew_and_leaves_no_folders(folders, cells):
    folder = checkpoint(folders, cells[0])
    assert Checkpoints(folder, {}).read() == {"calls": []}
    assert clean(folders, "--yes") == 0
    assert Checkpoints(folder, {}).read() is None
    assert [path.name for path in (folders.results / "running").iterdir()] == [".lock"]


def test_files_of_others_keep_the_folder_of_a_cell(folders, cells):
    folder = checkpoint(folders, cells[0])
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    assert clean(folders, "--yes") == 0
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("place", ["records", "records.zip", "records/cmnist5k.zip", "records/cmnist5k/vanilla.zip"])
def test_a_checkpoint_of_a_finished_cell_is_told_apart(place, folders, cells):
    checkpoint(folders, cells[0])
    checkpoint(folders, cells[1])
    stored(folders.results, made_record(cells[0], EPOCHS, {"last": 0}))
    stored(folders.results, failed_record(cells[1]))
    if place.endswith(".zip"):
        folder = folders.results / place.removesuffix(".zip")
        pack(folder, folders.results / place)
        for path in files_of(folder):
            if path.suffix == ".json":
                path.unlink()
    whys = {one.place: one.why for one in find(folders, ["checkpoints"])}
    assert whys[running_path(record_path(folders.results, cells[0]))] == "its cell is finished"
    assert whys[running_path(record_path(folders.results, cells[1]))].startswith("no run is working on its cell")


# ---- what is in use -------------------------------------------------------------------------------------------------

# which claim, and whether its cell stays
CLAIMS = {
    "a run here that was just renewed": ({}, True),
    "a run here that cannot renew it": ({"age": 10_000}, True),
    "a run here that is gone": ({"pid": "gone"}, False),
    "a run elsewhere": ({"machine": "elsewhere"}, True),
    "a run elsewhere that does not renew it": ({"machine": "elsewhere", "age": 10_000}, False),
}


@pytest.mark.parametrize("which", CLAIMS)
def test_a_cell_that_runs_stays_and_so_does_its_claim(which, folders, cells, gone, capsys):
    values, stays = CLAIMS[which]
    folder = checkpoint(folders, cells[0])
    claim = claimed(folders, cells[0], **(values | ({"pid": gone} if "pid" in values else {})))
    assert clean(folders, "--yes") == 0
    assert folder.exists() == claim.exists() == stays
    assert (f"stays: {folder} (checkpoints): its cell runs" in capsys.readouterr().out) == stays


def test_a_claim_that_says_nothing_holds_as_long_as_it_is_young(folders, cells):
    folder, claim = checkpoint(folders, cells[0]), claim_path(folders.results, cells[0])
    claim.write_text("{", encoding="utf-8")
    (found,) = find(folders, ["checkpoints"])
    assert found.stays == "its cell runs (?)"
    os.utime(claim, (LONG_AGO, LONG_AGO))
    assert clean(folders, "--yes") == 0
    assert not folder.exists()


def test_what_is_locked_stays(folders, capsys):
    stage, (entry, _) = reused(folders), entry_of_cache(folders)
    del _
    other = reused(folders, "b")
    with FileLock(stage.with_suffix(".lock")), FileLock(f"{entry}.lock"):
        assert clean(folders, "--yes") == 0
        told = capsys.readouterr().out
        assert "(reuse): a process is using it" in told
        assert f"stays: {entry} (cache): a process is using it" in told
        assert stage.exists()
        assert entry.with_suffix(".json").exists()
        assert not other.exists()
    assert clean(folders, "--yes") == 0
    assert files_of(folders.results, folders.cache) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which files processes have mapped")
def test_an_entry_that_is_read_stays(folders):
    entry, found = entry_of_cache(folders)
    del found
    before = find(folders, ["cache"])
    reading = mapped(entry)
    (found,) = find(folders, ["cache"])
    assert found.stays == "a process is reading it"
    assert remove(before, folders) == (0, [f"{entry} stays: a process is reading it"])
    assert len(reading) == 15
    del reading
    (found,) = find(folders, ["cache"])
    assert found.stays == ""


def test_the_cache_stays_while_cells_run(folders, cells):
    entry_of_cache(folders)
    claim = claimed(folders, cells[0], machine="elsewhere")
    (found,) = find(folders, ["cache"])
    assert found.stays == f"cells of {folders.results} run, and may be reading it"
    claim.unlink()
    (found,) = find(folders, ["cache"])
    assert found.stays == ""


@pytest.mark.parametrize("name", ["records/s0-1.json", "reuse/x.safetensors", "running/a/b/c/journal.json"])
def test_what_may_be_being_written_stays(name, folders):
    path = folders.results / name
    path.parent.mkdir(parents=True)
    with atomic_file(path):
        (found,) = find(folders, ["temporary"])
        assert found.stays == "it may be in use still"
        assert remove([found], folders) == (0, [])
    assert path.exists()
    temporary = cut_off(path.parent, path.name)
    (found,) = find(folders, ["temporary"])
    assert (found.files, found.stays) == ((temporary,), "")


@pytest.mark.parametrize("name", [".present-0123456789abcdef", ".now-12-34", "cmnist5k/vanilla/.now-1-2"])
def test_marks_of_runs_that_were_killed_go_and_those_of_others_stay(name, folders, capsys):
    mark = folders.results / "running" / name
    mark.parent.mkdir(parents=True)
    with Presence(folders.results) as there:
        mark.touch()
        assert clean(folders, "--yes") == 0
        assert mark.exists()
        assert f"stays: {mark} (temporary): it may be in use still" in capsys.readouterr().out
        os.utime(mark, (LONG_AGO, LONG_AGO))
        assert clean(folders, "--yes") == 0
        assert not mark.exists()
        there.check()


def test_of_a_cache_what_was_not_finished_goes(folders):
    partial = folders.cache / "images-0123456789abcdef.partial"
    partial.write_bytes(b"x" * 100)
    with FileLock(partial.with_suffix(".uint8.lock")):
        (found,) = find(folders, ["cache"])
        assert found.stays == "a process is using it"
    (found,) = find(folders, ["cache"])
    assert (found.why, found.size) == ("part of an entry that was not finished", 100)
    assert clean(folders, "--yes") == 0
    assert list(folders.cache.iterdir()) == []


@pytest.mark.parametrize("kind", ["reuse", "cache", "checkpoints", "temporary"])
def test_what_is_taken_into_use_after_it_was_shown_stays(kind, folders, cells, gone):
    """Somebody may think for an hour before he says yes."""
    every = some_of_everything(folders, cells, gone)
    found = [one for one in find(folders, [kind]) if "void claim" in one.why or kind != "temporary"]
    lock = {"reuse": next(iter(every["reuse"])).with_suffix(".lock"), "cache": Path(f"{found[0].place}.lock")}.get(kind)
    if lock is None:
        with Claims(folders.results) as taking:
            assert taking.take(cells[0])
            freed, left = remove(found, folders)
    else:
        with FileLock(lock):
            freed, left = remove(found, folders)
    assert freed == 0
    (line,) = left
    assert " stays: " in line
    assert all(path.exists() for one in found for path in one.files if path.suffix != ".claim")


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("no flock")])
def test_without_locks_nothing_can_be_told(error, folders, monkeypatch):
    import filelock

    class NoLock:
        def __init__(self, path, **options):
            pass

        def __enter__(self):
            raise error

        def __exit__(self, *given):
            pass

    stage = reused(folders)
    monkeypatch.setattr(filelock, "FileLock", NoLock)
    (found,) = find(folders, ["reuse"])
    assert found.stays == f"its lock cannot be taken ({error})"
    assert stage.exists()


# ---- links ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path):
    """A folder outside, with files of the very names that are deleted inside."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in (
        f"{'a' * 64}.safetensors",
        "journal.json",
        "images-0123456789abcdef.uint8",
        "x.claim",
        ".t.md.1.writing",
    ):
        (folder / name).write_bytes(b"yours")
        os.utime(folder / name, (LONG_AGO, LONG_AGO))
    return folder


LINKS = {
    "reuse": "",
    f"reuse/{'a' * 64}.safetensors": f"{'a' * 64}.safetensors",
    "running": "",
    "running/cmnist5k": "",
    "running/cmnist5k/vanilla/s0-1": "",
    "running/cmnist5k/vanilla/s0-1/journal.json": "journal.json",
    "../cache/images-0123456789abcdef.uint8": "images-0123456789abcdef.uint8",
}


@pytest.mark.parametrize("link", LINKS)
def test_no_link_is_followed(link, folders, elsewhere, capsys):
    before = {path: path.read_bytes() for path in elsewhere.iterdir()}
    path = Path(os.path.normpath(folders.results / link))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(elsewhere / LINKS[link])
    assert clean(folders, "--yes") == 0
    assert f"stays: {path} (" in capsys.readouterr().out
    assert path.is_symlink()
    assert {path: path.read_bytes() for path in elsewhere.iterdir()} == before


@pytest.mark.parametrize("folder", ["tables", "running/cmnist5k"])
def test_nor_for_what_is_temporary(folder, folders, elsewhere):
    path = folders.results / folder
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(elsewhere)
    assert find(folders, ["temporary"]) == []


def test_a_link_that_is_put_there_meanwhile_is_refused(folders, cells, elsewhere):
    folder = checkpoint(folders, cells[0])
    found = find(folders, ["checkpoints"])
    folder.rename(folder.with_name("moved"))
    folder.symlink_to(elsewhere)
    assert remove(found, folders) == (0, [f"{folder} stays: a link leads out of the folder"])
    assert (elsewhere / "journal.json").exists()


@pytest.mark.parametrize("link", ["reuse", "running", f"reuse/{'a' * 64}.safetensors"])
def test_a_link_to_itself_is_no_error(link, folders, capsys):
    path = folders.results / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(path)
    assert clean(folders, "--yes") == 0
    assert f"stays: {path} (" in capsys.readouterr().out


@pytest.mark.parametrize("given", [".", "results", "link", "../{}/results", "results/reuse/.."])
def test_the_folder_itself_may_be_given_in_any_way(given, tmp_path, folders, cells, gone, monkeypatch):
    some_of_everything(folders, cells, gone)
    (tmp_path / "link").symlink_to(folders.results)
    monkeypatch.chdir(folders.results if given == "." else tmp_path)
    assert cli.main(["clean", given.format(tmp_path.name), "--yes"]) == 0
    assert files_of(folders.results, folders.cache) == set()


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "deletes"), [("y", True), ("YES ", True), ("", False), ("n", False), ("yep", False), (EOFError(), False)]
)
def test_somebody_at_a_terminal_is_asked(answer, deletes, folders, monkeypatch):
    def reply(question):
        assert question == "Delete all of it, 1 kB? [y/N] "
        if isinstance(answer, Exception):
            raise answer
        return answer

    stage = reused(folders)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", reply)
    assert clean(folders) == 0
    assert stage.exists() != deletes


@pytest.mark.parametrize("kinds", [[], ["reuse"], ["cache", "temporary"]])
def test_a_results_folder_that_is_not_there_is_refused(kinds, folders, capsys):
    folders.results.rmdir()
    words = ["--what", *kinds] if kinds else []
    assert clean(folders, "--yes", *words) == 2
    assert f"There is no results folder {folders.results}. Name one, or use --what cache." in capsys.readouterr().err
    with pytest.raises(BenchmarkError):
        find(folders, kinds)
    entry_of_cache(folders)
    assert clean(folders, "--yes", "--what", "cache") == 0
    assert list(folders.cache.iterdir()) == []


@pytest.mark.parametrize("number", [1, 5, 30])
def test_what_the_system_does_not_delete_is_told(number, folders, cells, monkeypatch, capsys):
    original = Path.unlink

    def unlink(self, missing_ok=False):
        if self.name == "journal.json":
            raise OSError(number, os.strerror(number), str(self))
        original(self, missing_ok)

    stage, folder = reused(folders), checkpoint(folders, cells[0])
    monkeypatch.setattr(Path, "unlink", unlink)
    assert clean(folders, "--yes") == 1
    told = capsys.readouterr().err
    assert f"{folder / 'journal.json'} could not be deleted: {os.strerror(number)}" in told
    assert not stage.exists()
    assert len(files_of(folder)) == 2  # what the journal names is there as long as it is


def test_the_command_knows_the_kinds():
    assert tuple(KINDS) == cli.KINDS_TO_CLEAN
    assert claims.LEASE < cleaning.YOUNG
