"""docs/parity.md is about the methods and tests that are there."""

import ast
import functools
import re
from pathlib import Path

import pytest

from debiasbench.methods import registry as methods
from debiasbench.plugins import is_shipped

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`((?:tests/)?[\w/]+\.py)::(\w+)`", DOCUMENT)


def table(title):
    """The rows of the table below a heading, as lists of texts."""
    part = DOCUMENT.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line.strip().strip("|") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")] for line in lines[2:]]


@functools.cache
def functions_of(path):
    """The test functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_method_has_a_row():
    shipped = {name for name, cls in methods.classes().items() if is_shipped(cls)}
    rows = {row[0].strip("`") for row in table("What is compared")} - {"all"}
    assert rows == shipped


def test_every_test_that_is_named_exists():
    for file, name in NAMED:
        path = ROOT / file if file.startswith("tests/") else ROOT / "tests" / "parity" / file
        assert path.is_file(), file
        assert name in functions_of(path), f"{file}::{name}"


def test_every_parity_test_is_named():
    named = {(file, name) for file, name in NAMED if not file.startswith("tests/")}
    there = {
        (path.name, name)
        for path in (ROOT / "tests" / "parity").glob("test_*.py")
        for name in functions_of(path)
        if path.name != Path(__file__).name
    }
    assert named == there


@pytest.mark.parametrize("row", table("What is compared"), ids=lambda row: f"{row[0]} {row[1]}")
def test_every_row_is_whole_and_no_difference_is_above_its_tolerance(row):
    assert len(row) == 8
    assert all(row)
    tolerance, *differences = row[4:7]
    assert any(one != "-" for one in differences)
    for one in differences:
        if one not in ("-", "equal", "digits", "below"):
            assert float(one) <= float(tolerance)


def test_every_departure_names_what_fails():
    rows = table("Tests that detect a departure")
    assert all(row[0] and "::" in row[1] for row in rows)
    assert rows
