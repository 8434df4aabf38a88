"""The order of imports: import-linter's contracts, each seen to fail, and the doors that plug-ins may use."""

import ast
import importlib.util
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

# Beside what their own contract is made of, plug-ins build on these and on nothing else of the suite.
METHOD_DOORS = {
    "ensembles", "errors", "losses", "methods", "parameters", "randomness", "recipe", "samples", "schedule", "search",
}  # fmt: skip
DOORS = {"methods": METHOD_DOORS, "datasets": METHOD_DOORS - {"search"} | {"datasets", "data"}}
NET_DOORS = {"evaluation.own", "nets.own"}  # of networks, metrics and rules

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
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}, encoding="utf-8",
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
    (copied / "debiasbench" / "helpers.py").write_text("", encoding="utf-8")
    assert "- debiasbench.helpers" in lint_imports(copied)[NAMES["layers"]]


def closed_doors(path, kind):
    """`FILE:LINE imports MODULE` for what a plug-in imports from the suite beside public doors, wherever it does so.

    import-linter does not see plug-ins: their folders are no packages.
    """
    package = f"debiasbench.{kind}"
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            modules = [_module(module, alias.name) for alias in node.names]
        else:
            continue
        found += [(node.lineno, module) for module in modules if not _is_open(module, kind)]
    return [f"{path.name}:{line} imports {module}" for line, module in sorted(set(found))]


def _module(module, name):
    """The module that `from module import name` reads: one of the suite and of the plug-ins, or a name in it."""
    inner = f"{module}.{name}"
    place = ROOT.joinpath(*inner.split("."))
    plugin = ROOT.joinpath(*inner.split(".")[1:])
    known = module == "debiasbench" or any(path.with_suffix(".py").is_file() for path in (place, plugin))
    return inner if known else module


def _is_open(module, kind):
    top, *parts = module.split(".")
    if top != "debiasbench":
        return True
    if kind == "nets":
        return ".".join(parts) in NET_DOORS
    return len(parts) > 0 and parts[0] in DOORS[kind] and (len(parts) == 1 or parts[0] == "data")


@pytest.mark.parametrize("kind", DOORS)
def test_plugins_import_public_doors_only(kind):
    files = [*(ROOT / kind).glob("*.py"), *(ROOT / "examples" / kind).glob("*.py")]
    assert len(files) > 5
    assert [complaint for path in sorted(files) for complaint in closed_doors(path, kind)] == []


def test_networks_metrics_and_rules_import_public_doors_only(tmp_path):
    files = sorted((ROOT / "examples" / "nets").glob("*.py"))
    assert len(files) == 3
    for path in files:
        assert closed_doors(path, "nets") == []
        planted = tmp_path / path.name
        planted.write_text("import debiasbench.nets.build\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
        assert closed_doors(planted, "nets") == [f"{path.name}:1 imports debiasbench.nets.build"]


@pytest.mark.parametrize("kind", IMPORTS)
@pytest.mark.parametrize("plugin", ["methods/pgd.py", "examples/methods/focal.py", "datasets/cmnist.py"])
def test_a_closed_door_is_seen_in_a_plugin(tmp_path, plugin, kind):
    source = (ROOT / plugin).read_text(encoding="utf-8") + "\n\n" + IMPORTS[kind].format("debiasbench.training.task")
    path = tmp_path / "mine.py"
    path.write_text(source, encoding="utf-8")
    folder = Path(plugin).parent.name
    assert closed_doors(path, folder) == [f"mine.py:{len(source.splitlines())} imports debiasbench.training.task"]


@pytest.mark.parametrize(
    ("line", "kind", "imported"),
    [
        ("import debiasbench", "methods", "debiasbench"),
        ("from debiasbench import run", "methods", "debiasbench.run"),
        ("from debiasbench import training as t", "methods", "debiasbench.training"),
        ("from debiasbench.data.cache import cached", "methods", "debiasbench.data.cache"),
        ("from debiasbench.datasets import Dataset", "methods", "debiasbench.datasets"),
        ("from ..records import write_record", "methods", "debiasbench.records"),
        ("from .pgd import PGD", "methods", "debiasbench.methods.pgd"),
        ("from debiasbench.methods import Method, pgd", "methods", "debiasbench.methods.pgd"),
        ("from . import cmnist", "datasets", "debiasbench.datasets.cmnist"),
        ("import numpy, debiasbench.nets.small as s", "datasets", "debiasbench.nets.small"),
    ],
)
def test_each_way_of_importing_is_read(tmp_path, line, kind, imported):
    path = tmp_path / "mine.py"
    path.write_text(line, encoding="utf-8")
    assert closed_doors(path, kind) == [f"mine.py:1 imports {imported}"]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("from debiasbench import losses", "methods"),
        ("import debiasbench.losses", "methods"),
        ("from debiasbench.data import corruptions", "datasets"),
        ("from debiasbench.data.cache import cached", "datasets"),
        ("from ..samples import Samples", "datasets"),
        ("from torch.nn import functional", "methods"),
    ],
)
def test_public_doors_are_open(tmp_path, line, kind):
    path = tmp_path / "mine.py"
    path.write_text(line, encoding="utf-8")
    assert closed_doors(path, kind) == []
