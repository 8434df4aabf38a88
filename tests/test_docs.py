"""What the documents say is what the code does."""

import functools
import importlib.util
import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from debiasbench.cli import main
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


@functools.cache  # one class for all checks
def first_example():
    """The class in the first block of the document on methods, which is a file as it stands."""
    text = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    namespace = {"__name__": "first_example"}
    exec(compile(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], "twice.py", "exec"), namespace)
    module = types.ModuleType("first_example")
    vars(module).update(namespace)
    sys.modules["first_example"] = module
    return namespace["Twice"]


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_the_first_example_passes_the_contract_suite(check):
    check(first_example())


def test_the_document_on_methods_begins_with_a_short_one_the_command_and_its_table(tmp_path, capsys):
    """The command plans these cells with the block as a file; vanilla has the numbers that it has elsewhere."""
    text = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    first, command, *_ = re.findall(r"```(python|sh)\n(.*?)```", text, re.DOTALL)
    assert (first[0], command[0]) == ("python", "sh")
    assert len([line for line in first[1].splitlines() if line.strip()]) <= 16
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "twice.py").write_text(first[1], encoding="utf-8")
    words = [word.replace("mine", str(tmp_path / "mine")) for word in shlex.split(command[1])]
    assert words[0] == "debiasbench"
    assert main([*words[1:], "--dry-run", "--results-dir", str(tmp_path / "results")]) == 0
    assert "6 cells to run, 0 finished before" in capsys.readouterr().out
    rows = dict(re.findall(r"^\| (\w+) \| \**([\d.]+ ± [\d.]+)\** \| 3 \|$", text, re.MULTILINE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert rows.keys() == {"vanilla", "twice"}
    assert re.search(rf"^\| `vanilla` \|.*\| {rows['vanilla']} \|", readme, re.MULTILINE)
    assert text.index("| vanilla |") < text.index("## ")


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_links_lead_to_files(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text) + re.findall(r'<img src="([^"]+)"', text):
        assert (document.parent / target).exists() or (ROOT / target).exists(), f"{document.name}: {target}"


def headings(document):
    """The anchors of a document's headings, by GitHub's rules: each space is a hyphen, and other marks go."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_links_lead_to_headings(document):
    """On GitHub; the site's own rules are held by its build, and differ where two hyphens meet."""
    for target, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#([^)\s]+)\)", document.read_text(encoding="utf-8")):
        page = document.parent / target if target else document
        assert page.suffix != ".md" or anchor in headings(page), f"{document.name}: {target}#{anchor}"


@pytest.mark.parametrize("document", ["README.md", "docs/datasets.md"])
def test_every_dataset_has_a_row(document):
    """In the tables of datasets of both; and nothing else has one."""
    from debiasbench.datasets import registry

    text = (ROOT / document).read_text(encoding="utf-8")
    rows = text.partition("| `cmnist5k` |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", f"| `cmnist5k` |{rows}", re.MULTILINE)
    found = [name for some in named for name in re.findall(r"\w+", some)]
    assert sorted(found) == sorted(name for name, cls in registry.classes().items() if is_shipped(cls))


@pytest.mark.parametrize("document", ["README.md", "docs/command-line.md", "docs/quick-start.md", "docs/tuning.md"])
def test_every_option_that_a_document_names_exists(document):
    from debiasbench.cli import build_parser

    known = set(build_parser()._every_option())
    for option in set(re.findall(r"[` ](--[a-z][a-z-]*)", (ROOT / document).read_text(encoding="utf-8"))):
        assert option in known, f"{document} names {option}"


def test_every_command_and_option_of_run_has_a_row():
    from debiasbench.cli import build_parser

    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    parser = build_parser()
    (commands,) = [one for one in parser._actions if hasattr(one, "choices") and isinstance(one.choices, dict)]
    for command in commands.choices:
        assert f"`debiasbench {command}" in text, f"docs/command-line.md does not name {command}"
    options = {name for one in commands.choices["run"]._actions for name in one.option_strings if name.startswith("--")}
    lacking = sorted(name for name in options - {"--help"} if f"`{name}" not in text and f" {name}" not in text)
    assert not lacking, f"docs/command-line.md does not name {', '.join(lacking)}"
