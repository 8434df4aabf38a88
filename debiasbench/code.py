"""Digests of the source code of plug-ins, without comments.

Docstrings, comments, layout and display titles do not count, so equal code has an equal digest on every version of
Python. A digest is computed when the plug-in is imported, and kept: a file that is edited later may differ from the
code that runs.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from debiasbench.about import PACKAGE

# modules of the one-file packages, which do not count as the suite
PLUGINS = ("debiasbench.methods.", "debiasbench.datasets.", "debiasbench.nets.own.")


def digest_of_plugin(cls: type[Any]) -> str | None:
    """Digest of the modules in which a class and its bases are defined, and of the local modules that these import.

    None if there is none: for a class of the suite itself, or one without a source file.
    """
    return _digest_of(tuple(dict.fromkeys(one.__module__ for one in cls.__mro__)), cls.__module__)


@functools.cache
def _digest_of(modules: tuple[str, ...], within: str) -> str | None:
    """Digest of those modules that belong neither to the suite nor to an installed package other than `within`'s."""
    own = [name for name in modules if not _of_suite(name) and not _installed(name, within=within)]
    parts = [digest_of_module(name) for name in own]
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return hashlib.sha256(" ".join(sorted(known)).encode()).hexdigest()


@functools.cache
def digest_of_module(module: str) -> str | None:
    """Digest of a module and of all local modules that it imports; None if it has no source file.

    A module is local if it belongs neither to Python, nor to an installed package (other than that of `module` itself),
    nor to the suite.
    """
    try:
        found = {
            name: hashlib.sha256(" ".join(_words(tree)).encode()).hexdigest() for name, _, tree in _local_parts(module)
        }
    except (OSError, SyntaxError, ValueError):
        return None
    if module not in found:
        return None
    return hashlib.sha256(" ".join(f"{name} {digest}" for name, digest in sorted(found.items())).encode()).hexdigest()


def files_of_plugin(cls: type[Any]) -> dict[str, Path]:
    """Module -> source file, for the code that a class is made of (see the digest), without installed packages.

    Raises:
        OSError, SyntaxError, ValueError: a file cannot be read.
    """
    return files_of_modules(one.__module__ for one in cls.__mro__)


def files_of_modules(modules: Iterable[str]) -> dict[str, Path]:
    """The same for modules."""
    files: dict[str, Path] = {}
    for module in dict.fromkeys(modules):
        if not _of_suite(module) and not _installed(module, within=""):
            files |= {name: file for name, file, _ in _local_parts(module, packages=True)}
    return files


def _local_parts(module: str, *, packages: bool = False) -> Iterator[tuple[str, Path, ast.AST]]:
    """A module and all local modules that it imports, each with its file and syntax tree.

    `packages`: also the packages that contain them, whose own source runs first.
    """
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _file_of(name)
        if name in seen or file is None or (name != module and (_of_suite(name) or _installed(name, within=module))):
            continue
        seen.add(name)
        tree = ast.parse(file.read_bytes())
        yield name, file, tree
        waiting += _imported(tree, name)
        waiting += [name.rpartition(".")[0]] if packages and "." in name else []


@functools.cache
def digest_of_suite() -> str:
    """Digest of all source files of the suite, without plug-ins."""
    plugins = {PACKAGE / "methods", PACKAGE / "datasets"}  # their folders in a wheel
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if not plugins & set(path.parents)]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def is_local(module: str) -> bool:
    """Whether a module belongs to the suite, is a plug-in, or belongs to no installed package."""
    return _of_suite(module) or not _installed(module, within="")


def _words(node: ast.AST) -> Iterator[str]:
    """A syntax tree as words: names of nodes and their fields, without positions, empty fields and docstrings."""
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        parts = value if isinstance(value, list) else [value]
        if name == "body" and parts and _is_text(parts[0]):  # a docstring
            parts = parts[1:]
        if name == "body" and isinstance(node, ast.ClassDef):
            parts = [part for part in parts if not _only_names(part)]
        if name in ("kind", "type_comment", "type_ignores", "ctx") or not parts or value is None:
            continue
        yield f"{name}("
        for part in parts:
            if isinstance(node, ast.JoinedStr) and isinstance(part, ast.Constant) and part.value == "":
                continue  # some versions of Python have it in the format of an f-string
            if isinstance(part, ast.AST):
                yield from _words(part)
            else:
                yield repr(part)
        yield ")"


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _only_names(node: Any) -> bool:
    """Whether a statement of a class only sets the names under which it is displayed."""
    names = {getattr(target, "id", "") for target in node.targets} if isinstance(node, ast.Assign) else set()
    return bool(names) and names <= {"display", "alias_display", "alias_citation"}


def _imported(tree: ast.AST, module: str) -> list[str]:
    """Names of the modules that a module imports anywhere, and of imported names that may be modules."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = getattr(sys.modules.get(module), "__package__", None) or module.rpartition(".")[0]
            try:
                start = "." * node.level + (node.module or "")
                base = importlib.util.resolve_name(start, package) if node.level else start
            except ImportError:
                continue
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def _of_suite(module: str) -> bool:
    return module.partition(".")[0] == "debiasbench" and not module.startswith(PLUGINS)


def _installed(module: str, *, within: str) -> bool:
    """Whether a module belongs to Python or to an installed package other than that of the module `within`."""
    file = _file_of(module)
    if file is None:
        return True
    if module.startswith(PLUGINS) or module.partition(".")[0] == within.partition(".")[0]:
        return False
    return bool(_places_of_packages() & set(file.parents))


@functools.cache
def _places_of_packages() -> frozenset[Path]:
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()]  # Debian's dist-packages, and the user's
    return frozenset(Path(path).resolve() for path in paths)


def _file_of(module: str) -> Path | None:
    """The source file of a module, imported or not; None if it has none. Nothing is imported to find it."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        place = getattr(loaded, "__file__", None)
        return Path(place).resolve() if place and place.endswith(".py") else None
    top, _, rest = module.partition(".")
    if top in sys.builtin_module_names:
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin).resolve() if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        start = Path(folder, *rest.split("."))
        for file in (start.with_suffix(".py"), start / "__init__.py"):
            if file.is_file():
                return file.resolve()
    return None
