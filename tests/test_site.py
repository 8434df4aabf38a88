"""The site of documents: its navigation is complete, its pages are there, and links of the repository lead to them.

`mkdocs build --strict` in `.ci/run` builds it.
"""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import yaml

from debiasbench import api
from debiasbench.datasets import registry as datasets
from debiasbench.methods import registry as methods
from debiasbench.report.tables import Column, Table, count

ROOT = Path(__file__).parent.parent
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def site():
    """The hook that mkdocs calls."""
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path):
    return path.read_text(encoding="utf-8")


def in_navigation(items):
    """The pages below an entry of the navigation."""
    if isinstance(items, str):
        return [items]
    return [page for item in items for page in in_navigation(item.values() if isinstance(item, dict) else item)]


def test_every_document_is_in_the_navigation(site):
    listed = in_navigation(SETTINGS["nav"])
    assert len(listed) == len(set(listed))
    documents = {path.name for path in (ROOT / "docs").glob("*.md")}
    lacking = documents - set(listed)
    assert not lacking, f"The nav of mkdocs.yml lacks {', '.join(sorted(lacking))}: give each a place there."
    assert set(listed) - documents == set(site.TOP.values())


def test_every_document_is_named_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lacking = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f"docs/{path.name}" not in text]
    assert not lacking, f"README.md does not name {', '.join(lacking)} of docs/."


def test_every_method_has_a_page_with_its_measured_row(site):
    rows = site.measured_rows()
    assert set(rows) == set(site.shipped(methods))
    for name, cls in site.shipped(methods).items():
        page = site.method_page(cls, rows[name])
        assert page.startswith(f"# {name}\n")
        assert "| accuracy |" in page
        assert f"\n| `{name}` |" in page
        assert all(one.strip() in page for one in (cls.citation, *cls.alias_citation.values()))


def test_every_dataset_has_a_page(site, monkeypatch):
    def draw(dataset, title, *, data_dir, results_dir):
        path = results_dir / f"{title}.png"
        path.write_bytes(b"a picture")
        return [Table("counts", "All of them", [Column("n", "n")], [[count(12345)]], [])], [path]

    monkeypatch.setattr(site, "inspect_dataset", draw)
    shown = set()
    for name, cls in site.shipped(datasets).items():
        page, pictures = site.dataset_page(cls)
        assert page.startswith(f"# {name}\n")
        assert "\n## Counts\n\n" in page
        assert all(f"({file})" in page for file in pictures)
        assert bool(pictures) == ("| 12,345 |" in page)
        shown |= {name} if pictures else set()
    assert shown == {"cmnist5k"}  # data that come with a package; a licence may forbid to show others


def test_a_parameter_is_told_with_its_limit_and_meaning(site):
    page = site.method_page(methods.get("pgd")[0], "")
    assert "| `alpha` | `0.7` | a number in [0, 1] | exponent of GCE; 0 is cross-entropy (Tables 4 and 7) |" in page
    assert "| `order` | `none` | a number above 0 or none | of norm=lp; below 1 a quasi-norm |" in page
    assert "| `score_bias` | `true` | true or false | count the gradient of the layer's bias as well |" in page


@pytest.mark.parametrize(
    ("page", "link", "led"),
    [
        ("adding-a-method.md", "[a](design.md#images)", "[a](design.md#images)"),
        ("design.md", "[a](../README.md)", "[a](index.md)"),
        ("index.md", "[a](docs/design.md#images)", "[a](design.md#images)"),
        ("index.md", "![a](docs/site.css)", "![a](site.css)"),
        ("index.md", "[`SECURITY.md`](SECURITY.md)", "[`SECURITY.md`](security.md)"),
        ("design.md", "[a](../methods/cvar_dro.py)", "[a](methods/cvar-dro.md)"),
        ("methods/pgd.md", "[a](../reproduction.md)", "[a](../reproduction.md)"),
        ("methods/pgd.md", "[a](../../datasets/cmnist.py)", "[a](../datasets/cmnist.md)"),
        ("design.md", "[`tests/`](../tests)", "[`tests/`](https://forge/x/blob/main/tests)"),
        ("design.md", "[a](../missing.md)", "[a](../missing.md)"),
        ("design.md", "[a](https://example.org/x)", "[a](https://example.org/x)"),
        ("design.md", "[a](#words)", "[a](#words)"),
        ("index.md", '<img width="9" src="docs/site.css">', '<img width="9" src="site.css">'),
        ("design.md", '<source srcset="site.css">', '<source srcset="../site.css">'),
        ("design.md", "`[a](../README.md)`", "`[a](../README.md)`"),
    ],
)
def test_links_of_the_repository_lead_to_pages(site, page, link, led):
    assert site.led_to_pages(f"See {link}.", page, "https://forge/x/") == f"See {led}."


def test_a_file_without_a_page_is_text_where_there_is_no_forge(site):
    assert site.led_to_pages("See [`tests/`](../tests).", "design.md", None) == "See `tests/`."


def test_names_in_tables_lead_to_pages(site):
    table = "| `cmnist`, `mbmnist` | digit, `bar` |\n| `nothing` | - |"
    assert site.with_names_linked(table, "datasets") == (
        "| [`cmnist`](datasets/cmnist.md), [`mbmnist`](datasets/mbmnist.md) | digit, `bar` |\n| `nothing` | - |"
    )


@pytest.mark.parametrize(
    ("docstring", "page"),
    [
        ("Text:\n- one\n  more\n- two\nText.", "Text:\n\n- one\n  more\n- two\n\nText."),
        ("1. p_y in [0, 1]\n2. <class>", "\n1. p\\_y in \\[0, 1]\n2. &lt;class>"),
        ("`p_y <x>` and\n\n    <code_block>", "`p_y <x>` and\n\n    <code_block>"),
        ("Ours: docs/reproduction.md.", "Ours: [reproduction](../reproduction.md)."),
    ],
)
def test_docstrings_become_markdown(site, docstring, page):
    assert site.to_markdown(docstring) == page


def test_what_plug_ins_import_is_documented(site):
    files = [path for folder in ("methods", "datasets", "examples") for path in (ROOT / folder).rglob("*.py")]
    imported = set(re.findall(r"(?m)^from debiasbench\.([\w.]+) import", "".join(map(read, files))))
    documented = {name for _, names in site.REFERENCE.values() for name in names}
    documented |= {name.rpartition(".")[0] for name in documented}  # of whose modules some classes are
    own = {f"{kind}.{path.stem}" for kind in ("methods", "datasets") for path in (ROOT / kind).glob("*.py")}
    assert sorted(imported - documented - own) == []


def test_reference_names_exist(site):
    for _, names in site.REFERENCE.values():
        for name in names:
            module, _, last = f"debiasbench.{name}".rpartition(".")
            found = importlib.util.find_spec(f"debiasbench.{name}") if last.islower() else None
            assert found or hasattr(importlib.import_module(module), last), name
    assert not re.search(r"[A-Z]", "".join(site.REFERENCE))


def test_run_tells_of_every_argument_on_a_line_of_its_own():
    told = re.findall(r"(?m)^        (\w+): ", inspect.getsource(api.run).partition("Args:")[2].partition("Raises:")[0])
    assert told == list(inspect.signature(api.run).parameters)
