"""The order of imports: import-linter's contracts, each seen to fail."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
NAMES = {contract["type"]: contract["name"] for contract in SETTINGS["contracts"]}

IMPORTS = {
    "plain": "import {}\n",
    "deferred": "def later():\n    import {}\n",
    "for types": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import {}\n",
}


def lint_imports(folder):
    """Run `lint-imports` on the package in a folder: contract that is broken -> what is said of it."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", command, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
    )  # fmt: skip
    verdicts = dict(re.findall(r"^(.+) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE))
    assert set(verdicts) == set(NAMES.values()), done.stdout + done.stderr
    broken = {name for name, verdict in verdicts.items() if verdict == "BROKEN"}
    assert done.returncode == (1 if broken else 0)
    parts = re.split(r"^(.+)\n-+\n", done.stdout.partition("Broken contracts")[2], flags=re.MULTILINE)
    said = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {name: said[name] for name in broken}


@pytest.fixture
def copied(tmp_path):
    """A copy of the package and its contracts, to plant imports in."""
    shutil.copytree(ROOT / "debiasbench", tmp_path / "debiasbench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def plant(folder, importer, imported, kind="plain"):
    """Append an import to the module `importer`."""
    path = folder.joinpath(*importer.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    path.write_text(path.read_text(encoding="utf-8") + "\n\n" + IMPORTS[kind].format(imported), encoding="utf-8")


def test_the_suite_keeps_its_contracts():
    assert lint_imports(ROOT) == {}


def test_the_contracts_ignore_nothing():
    assert set(SETTINGS) == {"root_package", "contracts"}  # so imports under TYPE_CHECKING count
    options = {option for contract in SETTINGS["contracts"] for option in contract}
    assert not {option for option in options if "ignore" in option or "skip" in option or "indirect" in option}


@pytest.mark.parametrize("kind", IMPORTS)
@pytest.mark.parametrize(
    ("contract", "importer", "imported"),
    [
        ("layers", "debiasbench.losses", "debiasbench.data.augment"),
        ("independence", "debiasbench.report.tables", "debiasbench.running.logs"),
        ("protected", "debiasbench", "debiasbench.cli"),
        ("protected", "debiasbench.api", "debiasbench.cli"),
    ],
)
def test_a_forbidden_import_is_seen(copied, contract, importer, imported, kind):
    plant(copied, importer, imported, kind)
    assert f"{importer} -> {imported} (l." in lint_imports(copied)[NAMES[contract]]


@pytest.mark.parametrize("kind", IMPORTS)
@pytest.mark.parametrize(
    ("where", "importer", "imported"),
    [
        ("debiasbench.data", "debiasbench.data.cache", "debiasbench.data.images"),  # within a wing
        ("debiasbench", "debiasbench.errors", "debiasbench.files"),  # within a layer
    ],
)
def test_a_circle_is_seen(copied, where, importer, imported, kind):
    plant(copied, importer, imported, kind)
    said = lint_imports(copied)[NAMES["acyclic_siblings"]]
    one, other = (name.removeprefix(where) for name in (importer, imported))
    assert f"No cycles are allowed in {where}.\n" in said
    assert f"{one} -> {other} (1 import)" in said or f"{other} -> {one} (1 import)" in said


def test_report_and_running_do_not_meet_through_a_third_module(copied):
    plant(copied, "debiasbench.running.logs", "debiasbench")  # whose interface in Python reads reports
    said = lint_imports(copied)[NAMES["independence"]]
    assert "debiasbench.running is not allowed to import debiasbench.report" in said
    assert "debiasbench.running.logs -> debiasbench (l." in said


def test_a_new_module_needs_a_layer(copied):
    (copied / "debiasbench" / "helpers.py").write_text("")
    assert "- debiasbench.helpers" in lint_imports(copied)[NAMES["layers"]]
