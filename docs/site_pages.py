"""What the site has beside docs/*.md: mkdocs calls this hook (mkdocs.yml) when it builds.

Pages of methods and datasets are made from their docstrings and declarations, with the measured rows of
docs/methods.md; those of the Python interface from docstrings. README, changelog and the like are taken from the top of
the repository. Nothing of it is written into docs/.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import posixpath
import re
import sys
import tempfile
import types
import typing
from pathlib import Path
from typing import Any

from debiasbench.datasets import Dataset
from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.methods import Method
from debiasbench.methods import registry as methods
from debiasbench.parameters import Parameters, default_of, field_types, fields_of, write_value
from debiasbench.plugins import is_shipped
from debiasbench.report.inspection import inspect as inspect_dataset
from debiasbench.report.tables import markdown

ROOT = Path(__file__).parent.parent
PLUGINS = {"methods": methods, "datasets": datasets}
CONTRACTS = {"methods.Method": Method, "datasets.Dataset": Dataset}
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
TOP = {  # file at the top of the repository: its page
    "README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}  # fmt: skip
REFERENCE = {  # page: its title, and what it documents
    "run": ("Running and loading", ["api"]),
    "figures": ("Figures", ["figures"]),
    "methods": ("Methods", ["methods.Method", "training.task.Task", "training.stage.Stage", "training.batches.Batch"]),
    "networks": ("Networks", ["nets.own", "nets.base"]),
    "datasets": ("Datasets", ["datasets.Dataset", "datasets.NeededFile", "samples"]),
    "parameters": ("Parameters and recipes", ["parameters", "search", "recipe", "schedule"]),
    "losses": ("Losses, ensembles, randomness", ["losses", "ensembles", "randomness"]),
    "data": ("Reading and making data",
             [f"data.{path.stem}" for path in sorted((ROOT / "debiasbench" / "data").glob("[!_]*.py"))]),
    "metrics": ("Metrics and selection", ["evaluation.own", "evaluation.metrics", "evaluation.selection"]),
    "testing": ("Testing plug-ins", ["testing", "errors"]),
}  # fmt: skip


# ---- what mkdocs calls -----------------------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Give every method, every dataset and every page of the interface its place in the navigation."""
    sections = {title: items for section in config.nav for title, items in section.items()}
    sections["Methods"] += [{name: f"methods/{name}.md"} for name in shipped(methods)]
    sections["Datasets"] += [{name: f"datasets/{name}.md"} for name in shipped(datasets)]
    sections["Python"] += [{title: f"python/{page}.md"} for page, (title, _) in REFERENCE.items()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add what is made or taken from elsewhere."""
    from mkdocs.structure.files import File

    for path, content in made_pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    """Lead links of the repository to pages."""
    del files
    return led_to_pages(text, page.file.src_uri, config.repo_url)


# ---- pages -----------------------------------------------------------------------------------------------------------


def shipped(registry: Any) -> dict[str, type[Any]]:
    """The suite's own methods or datasets, by name."""
    return {name: cls for name, cls in sorted(registry.classes().items()) if is_shipped(cls)}


def made_pages() -> dict[str, str | bytes]:
    """Path in the site -> content of every file that is not in docs/."""
    made: dict[str, str | bytes] = {page: (ROOT / file).read_text(encoding="utf-8") for file, page in TOP.items()}
    rows = measured_rows()
    made |= {f"methods/{name}.md": method_page(cls, rows[name]) for name, cls in shipped(methods).items()}
    for name, cls in shipped(datasets).items():
        text, pictures = dataset_page(cls)
        made |= {f"datasets/{name}.md": text} | {f"datasets/{file}": data for file, data in pictures.items()}
    return made | {f"python/{page}.md": reference_page(*of) for page, of in REFERENCE.items()}


def measured_rows() -> dict[str, str]:
    """Method -> heading and row of it in the table of docs/methods.md, as a table."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    text = text[text.index("| method ") :].partition("\n\n")[0]  # not the table of other names
    head, *rows = re.findall(r"(?m)^\| method .*\n\| ---.*$|^\| `.*$", text)
    return {row.split("`")[1]: f"{head}\n{row}" for row in rows}


def method_page(cls: type[Any], row: str) -> str:
    """A method: what its file says, its measured row, its parameters and how it is cited."""
    parts = [
        f"# {cls.name}", described(cls), "## Measured",
        f"{row}\n\nWhat the columns mean, and all methods: [methods](../methods.md).", *declared(cls),
    ]  # fmt: skip
    citations = [one for one in (cls.citation, *cls.alias_citation.values()) if one]
    if citations:
        parts += ["## Citation", *(f"```bibtex\n{one.strip()}\n```" for one in citations)]
    return "\n\n".join(parts) + "\n"


def dataset_page(cls: type[Dataset]) -> tuple[str, dict[str, bytes]]:
    """A dataset: what its file says, counts, and contact sheets where its data come with a package."""
    with tempfile.TemporaryDirectory() as folder:
        counts, paths = counted(cls, Path(folder))
        pictures = {path.name: path.read_bytes() for path in paths}
    parts = [
        f"# {cls.name}", described(cls), "## Counts", counts,
        *(f"![{cls.name}: samples of each class, by bias]({file})" for file in pictures),
        *declared(cls), "## Recipe", recipe_table(cls),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n", pictures


def counted(cls: type[Dataset], folder: Path) -> tuple[str, list[Path]]:
    """Markdown of the counts, and contact sheets. Only data that come with a package are read and shown."""
    try:
        dataset = cls()
        embedded = not dataset.needed_files(folder)
    except BenchmarkError:  # it cannot be without a value that names the user's own data
        dataset, embedded = None, False
    if dataset and embedded:
        tables, paths = inspect_dataset(dataset, cls.name, data_dir=folder, results_dir=folder)
        return "\n\n".join(markdown(table) for table in tables), paths
    picture = " and a picture" if cls.input == "images" else ""
    text = f"`debiasbench inspect {cls.name}` shows those of the files at hand, with conflict ratios{picture}."
    if not dataset or not dataset.official_counts:
        return text, []
    rows = "".join(f"| {split} | {n:,} |\n" for split, n in dataset.official_counts.items())
    return f"As published:\n\n| split | samples |\n| --- | ---: |\n{rows}\n{text}", []


def reference_page(title: str, documented: list[str]) -> str:
    """Docstrings of modules and classes; of the two contracts also what a subclass may declare."""
    parts = [f"# {title}"]
    for name in documented:
        parts.append(f"::: debiasbench.{name}")
        if name in CONTRACTS:
            rows = [f"| `{key}` | {in_table(text)} |" for key, text in comments(CONTRACTS[name], own=True).items()]
            parts += ["**What a subclass may declare**", "\n".join(["| name | meaning |\n| --- | --- |", *rows])]
    return "\n\n".join(parts) + "\n"


def described(cls: type[Any]) -> str:
    """The docstring of the class's file as Markdown."""
    return to_markdown(inspect.getdoc(sys.modules[cls.__module__]) or "")


def declared(cls: type[Parameters]) -> list[str]:
    """Parameters, presets and further names."""
    meanings, parts = comments(cls), []
    rows = [
        f"| `{item.name}` | {code(write_value(default_of(item)))} | {allowed(cls, item)} | "
        f"{in_table(meanings.get(item.name, ''))} |"
        for item in fields_of(cls)
    ]
    if rows:
        head = "| parameter | default | allowed | meaning |\n| --- | --- | --- | --- |"
        parts += ["## Parameters", "\n".join([head, *rows])]
    for title, named in (("Presets", cls.presets), ("Other names", cls.aliases)):
        if named:
            parts += [f"## {title}", "\n".join(f"- `{name}`: {written(values)}" for name, values in named.items())]
    return parts


def allowed(cls: type[Parameters], item: Any) -> str:
    """What a parameter takes, in words."""
    hint = field_types(cls)[item.name]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    limit = item.metadata.get("allowed")
    texts = [KINDS.get(kind, "numbers, written a/b/c") for kind in kinds if kind is not types.NoneType]
    texts = [limit.text] if limit else texts
    return in_table(" or ".join(texts + ["none"] * (types.NoneType in kinds)))


def written(values: dict[str, Any]) -> str:
    """`key=value` of each, as on the command line; recipes behind them."""
    plain = [code(f"{key}={write_value(value)}") for key, value in values.items() if not isinstance(value, dict)]
    nested = [f"{key}: {written(value)}" for key, value in values.items() if isinstance(value, dict)]
    return "; ".join([", ".join(plain)] * bool(plain) + nested)


def comments(cls: type[Parameters], *, own: bool = False) -> dict[str, str]:
    """Annotated attribute -> the comment behind its declaration, in the class or (not `own`) one it inherits from."""
    found: dict[str, str] = {}
    for owner in [cls] if own else reversed(cls.__mro__):
        if issubclass(owner, Parameters):
            source = inspect.getsource(sys.modules[owner.__module__])
            body = next(one.body for one in ast.parse(source).body if getattr(one, "name", "") == owner.__name__)
            found |= {
                node.target.id: comment_behind(source.splitlines(), node)
                for node in body
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            }
    return found


def comment_behind(lines: list[str], node: ast.AnnAssign) -> str:
    """The comment on the last line of a declaration and on lines of their own below it."""
    below = itertools.takewhile(lambda line: line.lstrip().startswith("# "), lines[node.end_lineno :])
    first = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
    texts = [line.partition("# ")[2] for line in (first, *below)]
    return " ".join(text for text in texts if text and text != "fmt: skip") if texts[0] else ""


def recipe_table(cls: type[Dataset]) -> str:
    """How networks are trained on it."""
    rows = [
        f"| `{item.name}` | {code(write_value(getattr(cls.recipe, item.name)))} |" for item in fields_of(cls.recipe)
    ]
    return "\n".join(["| field | value |\n| --- | --- |", *rows])


def code(text: str) -> str:
    """Text as code, in a table as elsewhere; nothing for nothing."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def in_table(text: str) -> str:
    """Text of a cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


# ---- Markdown --------------------------------------------------------------------------------------------------------

_LITERAL = {"_": "\\_", "<": "&lt;", "[": "\\["}


def to_markdown(text: str) -> str:
    """A docstring as it is meant: lists stand apart, signs are no markup, documents are linked."""
    lines, in_list = [], False
    for line in text.splitlines():
        was, in_list = in_list, bool(re.match(r"- |\d+\. ", line)) or (in_list and line.startswith(" "))
        lines += [line] if was == in_list else ["", line]
    parts = re.split(r"(`[^`]*`|(?m:^ {4}.*$))", "\n".join(lines))
    parts[::2] = [re.sub(r"[_<\[]", lambda sign: _LITERAL[sign[0]], part) for part in parts[::2]]
    return re.sub(r"`?\bdocs/([a-z-]+)\.md\b`?", r"[\1](../\1.md)", "".join(parts))


def led_to_pages(text: str, page: str, forge: str | None) -> str:
    """Links (of a page's Markdown, written for the repository) that lead to pages of the site.

    A file without a page is linked in the forge, or is text where there is none.
    """
    file = {made: file for file, made in TOP.items()}.get(page, f"docs/{page}")

    def led(found: re.Match[str]) -> str:
        if found["code"]:
            return found["code"]
        path, hash_sign, anchor = found["target"].partition("#")
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        made = page_of(wanted)
        if made:
            return f"{found['text']}({posixpath.relpath(made, posixpath.dirname(page) or '.')}{hash_sign}{anchor})"
        if not (ROOT / wanted).exists():
            return found[0]  # mkdocs complains
        return f"{found['text']}({forge.rstrip('/')}/blob/main/{wanted})" if forge else found["text"][1:-1]

    link = r"(?P<text>!?\[(?:`[^`]*`|[^\]`])*\])\((?P<target>(?!\w+:|#)[^)\s]+)\)"
    text = re.sub(rf"(?s)(?P<code>```.*?```|`[^`]*`)|{link}", led, text)

    def led_in_html(found: re.Match[str]) -> str:  # which mkdocs leaves as it is: from the page's address
        made = page_of(posixpath.normpath(posixpath.join(posixpath.dirname(file), found[2])))
        address = "." if page == "index.md" else page.removesuffix(".md")
        return found[1] + (posixpath.relpath(made, address) if made else found[2])

    text = re.sub(r'(<(?:img|source)\s[^>]*?\bsrc(?:set)?=")((?!\w+:)[^"]+)', led_in_html, text)
    folder = page.removesuffix(".md")
    return with_names_linked(text, folder) if folder in PLUGINS else text


def page_of(file: str) -> str | None:
    """The page in the site of a file of the repository."""
    folder, _, name = file.partition("/")
    if folder == "docs" and not name.endswith(".py") and not name.startswith("reproduction/"):
        return name
    if folder in PLUGINS:
        modules = {cls.__module__.rpartition(".")[2]: one for one, cls in shipped(PLUGINS[folder]).items()}
        one = modules.get(name.removesuffix(".py"))
        return f"{folder}/{one}.md" if one else None
    return TOP.get(file)


def with_names_linked(text: str, folder: str) -> str:
    """The names in the first column of tables lead to their pages."""
    known = shipped(PLUGINS[folder])

    def linked(name: re.Match[str]) -> str:
        return f"[{name[0]}]({folder}/{name[1]}.md)" if name[1] in known else name[0]

    return re.sub(r"(?m)^\| `[^|]+\|", lambda first: re.sub(r"`([\w-]+)`", linked, first[0]), text)
