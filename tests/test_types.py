"""Types are checked where researchers read and write: in methods, datasets and examples."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("debiasbench", "methods", "datasets", "examples")
# file -> a class of it, and a parameter that is a number
PLUGINS = {
    "methods/pgd.py": ("PGD", "alpha"),
    "datasets/cmnist.py": ("CMNIST", "rho"),
    "examples/methods/focal.py": ("Focal", "gamma"),
}


def mypy(folder, *options):
    """Run mypy as it is set up: (file, line, code) of each error."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", "/dev/null", *options],
        cwd=folder, capture_output=True, text=True, timeout=300, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    errors = re.findall(r"^(.+?):(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    return {(Path(file).as_posix(), int(line), code) for file, line, code in errors}


@pytest.fixture
def copied(tmp_path):
    """A copy of all that is checked."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_a_planted_error_is_seen_in_a_method_a_dataset_and_an_example(copied):
    """Functions must have types, and parameters have those that they declare."""
    expected = set()
    for name, (cls, parameter) in PLUGINS.items():
        source = (copied / name).read_text(encoding="utf-8")
        planted = f"\n\ndef untyped(x):\n    return x\n\n\n{cls}({parameter}='much')\n"
        (copied / name).write_text(source + planted, encoding="utf-8")
        n_lines = len(source.splitlines())
        expected |= {(name, n_lines + 3, "no-untyped-def"), (name, n_lines + 7, "arg-type")}
    found = mypy(copied, "--follow-imports", "skip")  # torch's own files would take half a minute
    assert {error for error in found if error[0] in PLUGINS} == expected


def test_our_folder_is_not_taken_for_hugging_face_datasets(tmp_path):
    """Also where a dataset and a method have one file name."""
    for folder in ("methods", "datasets", "examples/methods"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "mine.py").write_text("size: int = 'large'\n", encoding="utf-8")
    (tmp_path / "debiasbench").mkdir()
    (tmp_path / "debiasbench" / "__init__.py").write_text(
        "import datasets\n\ndatasets.load_dataset('mine')\n", encoding="utf-8"
    )
    assert mypy(tmp_path) == {
        (f"{folder}/mine.py", 1, "assignment") for folder in ("methods", "datasets", "examples/methods")
    }
