"""What the documents say is what the code does."""

import functools
import importlib.util
import re
from pathlib import Path

import pytest

from debiasbench.plugins import is_shipped
from debiasbench.testing import METHOD_CHECKS

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "methods" / "focal.py"


@functools.cache  # one class for all checks, which share a fit of it
def focal():
    """The example's class."""
    spec = importlib.util.spec_from_file_location("focal_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Focal


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_the_example_passes_the_contract_suite(check):
    check(focal())


def test_the_document_shows_the_example_as_it_is():
    assert EXAMPLE.read_text(encoding="utf-8").strip() in (ROOT / "docs" / "adding-a-method.md").read_text(
        encoding="utf-8"
    )
    lines = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 36  # "30 lines", and what the docstring needs


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_links_lead_to_files(document):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists() or (ROOT / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("document", ["README.md", "docs/datasets.md"])
def test_every_dataset_has_a_row(document):
    """In the tables of datasets of both; and nothing else has one."""
    from debiasbench.datasets import registry

    text = (ROOT / document).read_text(encoding="utf-8")
    rows = text.partition("| `cmnist5k` |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", f"| `cmnist5k` |{rows}", re.MULTILINE)
    found = [name for some in named for name in re.findall(r"\w+", some)]
    assert sorted(found) == sorted(name for name, cls in registry.classes().items() if is_shipped(cls))


def test_every_option_of_the_readme_exists():
    from debiasbench.cli import build_parser

    known = set(build_parser()._every_option())
    for option in set(re.findall(r"`(--[a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8"))):
        assert option in known, f"README names {option}"
