"""The common part of methods, datasets and networks as plug-ins: where their files are, and how names find them."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Container, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from debiasbench.about import PACKAGE
from debiasbench.code import digest_of_plugin
from debiasbench.errors import BenchmarkError
from debiasbench.escaping import one_line
from debiasbench.files import absent, broken_link, to_path
from debiasbench.parameters import (
    Parameters,
    default_of,
    field_types,
    fields_of,
    read_value,
    split_spec,
    suggestion,
    write_value,
)


def folders(module_file: str, variable: str) -> list[str]:
    """The folders of a one-file package's modules: beside it in a wheel, at the top of a clone, and those in $variable.

    `module_file` is the `__file__` of `debiasbench/methods.py` or `debiasbench/datasets.py`.
    """
    beside = Path(module_file).with_suffix("")
    own = beside if beside.is_dir() else beside.parent.parent / beside.name
    return [str(own), *folders_of(variable)]


def folders_of(variable: str) -> list[str]:
    """The folders listed in an environment variable."""
    return [str(to_path(folder)) for folder in os.environ.get(variable, "").split(os.pathsep) if folder]


def add_folder(kind: str, folder: str | Path) -> None:
    """Search one more folder for plug-ins, here and in worker processes (which inherit the variable).

    Args:
        kind: "method", "dataset" or "net".
        folder: the folder.

    Raises:
        BenchmarkError: it is not a folder.
    """
    path = to_path(folder).resolve()
    if not path.is_dir():
        raise BenchmarkError(f"--{kind}s-dir: '{folder}' is not a folder.")
    package, variable = _package(kind), _variable(kind)
    known = os.environ.get(variable, "")
    if package in sys.modules:
        if str(path) in sys.modules[package].__path__:
            return
        sys.modules[package].__path__.append(str(path))
    if str(path) not in known.split(os.pathsep):
        os.environ[variable] = f"{known}{os.pathsep}{path}" if known else str(path)


NETS_PACKAGE = "debiasbench.nets.own"  # the suite's networks are modules of debiasbench.nets
LIBRARIES = ("torchvision", "timm")  # their models are networks
MODELS = tuple(f"{library}:NAME" for library in LIBRARIES)  # their names in messages


def _package(kind: str) -> str:
    return NETS_PACKAGE if kind == "net" else f"debiasbench.{kind}s"


def _variable(kind: str) -> str:
    return f"DEBIASBENCH_{kind.upper()}S_PATH"


def unknown(name: str, kind: str, known: Iterable[str], perhaps: str = "") -> BenchmarkError:
    """The error for a name that no plug-in of the kind has, with the most similar known names."""
    known = sorted(known)
    of_library = kind == "net" and ":" in name
    similar = suggestion(f"{name.partition(':')[0]}:NAME", MODELS) if of_library else suggestion(name, known)
    place = "a folder of yours, and" if kind == "net" else f"{kind}s/, or"
    return BenchmarkError(
        f"Unknown {kind} '{name}'.{similar} Known: {', '.join(known) or 'none'}.{perhaps} "
        f"(To add one: a file in {place} --{kind}s-dir.)"
    )


# ---- names, before anything is imported ------------------------------------------------------------------------------

# classes made or changed by a call, or renamed: their source does not show their names
_MADE = re.compile(
    r"\btype\([^()]*,|(?<![.\w])(setattr|exec|eval|globals|locals|vars)\(|new_class|make_dataclass|"
    r"\.(name|aliases)\s*=[^=]"
)


def check_names(kind: str, names: Iterable[str]) -> None:
    """Refuse unknown names, as far as the source of plug-ins shows them: importing it imports torch and takes seconds.

    Args:
        kind: "method", "dataset" or "net".
        names: names of plug-ins, without parameters.

    Raises:
        BenchmarkError: names are unknown; lists them.
    """
    if _package(kind) in sys.modules:  # already imported: its registry knows better
        return
    if kind == "net":
        places = folders_of(_variable(kind))
        names = [name for name in names if name.partition(":")[0] not in LIBRARIES]  # these check their names
        of_suite = _nets_of_suite() | {*MODELS}
    else:
        places, of_suite = folders(str(PACKAGE / f"{kind}s.py"), _variable(kind)), set()
    plugin_files = _files_in(places)
    written = _written_names(plugin_files, f"debiasbench.{kind}s")
    if written is None:
        return
    known = written.keys() | of_suite
    files = {module for module, _, _ in plugin_files}  # the import of such a file reports what it lacks
    problems = [str(unknown(name, kind, known)) for name in dict.fromkeys(names) if name not in known | files]
    if problems:
        raise BenchmarkError("\n".join(problems))


File = tuple[str, Path, int]  # of a plug-in: module, path, and time of change


def _files_in(places: Iterable[str]) -> tuple[File, ...]:
    """The files of plug-ins in folders."""
    files = []
    for folder in places:
        for one in pkgutil.iter_modules([folder]):
            file = Path(folder, one.name, "__init__.py") if one.ispkg else Path(folder, f"{one.name}.py")
            files.append((one.name, file, file.stat().st_mtime_ns if file.exists() else 0))
    return tuple(files)


@functools.lru_cache(3)  # for methods, datasets and nets: used to check names, then to import
def _written_names(plugin_files: tuple[File, ...], group: str) -> dict[str, str] | None:
    """Name or alias of each plug-in, as written in its file -> its module.

    None if the files do not show this: a name is computed, a name or module exists twice, a call makes a class, a file
    is not Python, or installed packages have plug-ins, as entry points of the `group`.
    """
    if entry_points(group=group) or len({module for module, _, _ in plugin_files}) < len(plugin_files):
        return None
    names: dict[str, str] = {}
    try:
        for module, file, _ in plugin_files:
            text = file.read_text(encoding="utf-8")
            if _MADE.search(text):
                return None
            for name in itertools.chain.from_iterable(map(_names_of, filter(_is_class, ast.walk(ast.parse(text))))):
                if names.setdefault(name, module) != module:
                    return None
    except (OSError, SyntaxError, ValueError):
        return None
    return names


def _nets_of_suite() -> set[str]:
    """The names of the suite's networks, as written in nets/build.py."""
    tree = ast.parse((PACKAGE / "nets" / "build.py").read_text(encoding="utf-8"))
    table = next(one.value for one in tree.body if isinstance(one, ast.AnnAssign) and ast.unparse(one.target) == "NETS")
    return {ast.literal_eval(key) for key in getattr(table, "keys", ())}


def _is_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef)


def _names_of(node: Any) -> list[str]:
    """The name and aliases in a class statement; ValueError if they are not written as text."""
    if node.keywords or (node.bases and node.decorator_list):
        raise ValueError
    found: list[Any] = []
    for line in node.body:
        if isinstance(line, ast.FunctionDef | ast.ClassDef):
            continue
        value = getattr(line, "value", None)
        places = getattr(line, "targets", [getattr(line, "target", line)])
        stored = {one.id for place in places for one in ast.walk(place) if isinstance(one, ast.Name)}
        if stored & {"name", "aliases"}:
            texts: list[Any] = value.keys if isinstance(value, ast.Dict) else [value]
            found += map(ast.literal_eval, texts)
    if not all(isinstance(one, str) for one in found):
        raise ValueError
    return found


class Registry:
    """Names -> plug-in classes of one kind; modules are imported at first use, and failures are kept."""

    def __init__(self, package: str, contract: str, variable: str, group: str = "") -> None:
        """`group` is the group of entry points; default: the name of the package."""
        self.package, self.contract, self.variable, self.group = package, contract, variable, group or package
        self.kind = contract.lower()
        self.broken: dict[str, str] = {}  # module -> traceback
        self.unusable: dict[str, str] = {}  # name of an imported class -> why it cannot be used
        self._classes: dict[str, type[Any]] = {}
        self._aliases: dict[str, tuple[str, dict[str, Any]]] = {}
        self._scanned: tuple[str, ...] | None = None
        self._alone: dict[tuple[tuple[str, ...], str], tuple[type[Any], dict[str, Any]]] = {}  # by (folders, name)

    def add_folder(self, folder: str | Path) -> None:
        """Like `plugins.add_folder`."""
        add_folder(self.kind, folder)

    def classes(self) -> dict[str, type[Any]]:
        """All plug-ins that can be imported, by name."""
        package = importlib.import_module(self.package)
        path = tuple(package.__path__)
        if self._scanned != path:
            self._forget()
            self._scan(package)
            self._classes = dict(sorted(self._classes.items()))
            self._scanned = path
        return dict(self._classes)

    def aliases(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Short names for settings of a plug-in: alias -> (name, parameters)."""
        self.classes()
        return dict(sorted(self._aliases.items()))

    def get(self, name: str) -> tuple[type[Any], dict[str, Any]]:
        """The class of a name or alias, and the parameters that an alias stands for.

        Only the module of this class is imported, if the files of the plug-ins show which one it is.

        Raises:
            BenchmarkError: no plug-in has this name, its file could not be imported, it cannot be used, or two plug-ins
                share a name.
        """
        package = importlib.import_module(self.package)
        path = tuple(package.__path__)
        if self._scanned != path:
            alone = self._alone.get((path, name)) or self._import_alone(package, name)
            if alone:
                self._alone[path, name] = alone
                return alone
        classes = self.classes()
        if name in classes:
            return classes[name], {}
        if name in self._aliases:
            owner, values = self._aliases[name]
            return classes[owner], values
        if name in self.broken:
            raise BenchmarkError(
                f"The file of {self.kind} '{name}' could not be imported: {_last_line(self.broken[name])} "
                f"(the traceback: debiasbench list --tracebacks)"
            )
        if name in self.unusable:
            raise BenchmarkError(f"The {self.kind} '{name}' cannot be used: {self.unusable[name]}")
        broken = [f"{module} ({_last_line(text)})" for module, text in self.broken.items()]
        perhaps = f" It may be in a file that could not be imported: {', '.join(broken)}." if broken else ""
        near = [one for one in self.unusable if suggestion(name, [one])]
        perhaps += "".join(f" '{one_line(one)}' cannot be used: {self.unusable[one]}" for one in near)
        raise unknown(name, self.kind, [*classes, *self._aliases], perhaps)

    def _forget(self) -> None:
        self._classes, self._aliases, self.broken, self.unusable = {}, {}, {}, {}
        self._scanned = None

    def _import_alone(self, package: ModuleType, name: str) -> tuple[type[Any], dict[str, Any]] | None:
        """Like `get`, but importing only the module of this name; None if that does not provide it."""
        module = (_written_names(_files_in(package.__path__), self.group) or {}).get(name)
        if module is None:
            return None
        self._forget()
        self._import(module, f"{self.package}.{module}", getattr(package, self.contract))
        owner, values = self._aliases.get(name, (name, {}))
        return (self._classes[owner], values) if owner in self._classes else None

    def _scan(self, package: ModuleType) -> None:
        base = getattr(package, self.contract)
        files: dict[str, str] = {}
        found = [(folder, module.name) for folder in package.__path__ for module in pkgutil.iter_modules([folder])]
        for where, name in found:
            if name in files:
                raise BenchmarkError(
                    f"Two files define the {self.kind} module '{name}': {files[name]} and {where}. Rename one."
                )
            files[name] = where
            if broken_link(file := Path(where, f"{name}.py")):
                self.broken[name] = absent(file)
                continue
            self._import(name, f"{self.package}.{name}", base)
        for entry in entry_points(group=self.group):
            try:
                self._register(entry.load(), base, entry.value)
            except BenchmarkError:
                raise
            except (Exception, SystemExit, KeyboardInterrupt):  # a broken installed package must not stop the rest
                self.broken[entry.name] = traceback.format_exc()

    def _import(self, name: str, module_name: str, base: type[Any]) -> None:
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # one broken file must not stop the rest; its
            self.broken[name] = traceback.format_exc()  # traceback is shown on request
            if isinstance(error, TypeError) and "non-frozen dataclass" in str(error):
                self.broken[name] += f"(remove the line @dataclass: a {self.contract} is a frozen dataclass by itself)"
            return
        problem = self._take(module, base)
        if problem:
            self.broken[name] = problem

    def _take(self, module: ModuleType, base: type[Any]) -> str:
        """Register the plug-ins that a module defines; returns the problem if it defines some but none has a name."""
        own: list[Any] = [
            value
            for value in vars(module).values()
            if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
        ]
        named = [value for value in own if value.__dict__.get("name")]
        for value in named:
            self._register(value, base, module.__name__)
        nameless = [value for value in own if not inspect.isabstract(value)]
        if not nameless or named:
            return ""
        has = "has the name of its parent" if nameless[0].name else "has no name"
        return f"{nameless[0].__name__} {has}: give it one of its own, name = ..."

    def _register(self, cls: type[Any], base: type[Any], where: str) -> None:
        if not isinstance(cls, type) or base not in cls.__mro__:
            raise BenchmarkError(f"{where} is not a {self.contract}: it must be a subclass of {base.__qualname__}.")
        aliases = cls.__dict__.get("aliases", {})  # not inherited: a parent's aliases mean the parent
        problem = self._problem_of(cls, aliases)
        if problem:
            self.unusable[str(cls.name)] = problem
            return
        for name in [cls.name, *aliases]:
            other = self._classes.get(name)
            if (other is not None and other is not cls) or name in self._aliases:
                taken = other or self._classes[self._aliases[name][0]]
                raise BenchmarkError(
                    f"The {self.kind} name '{name}' is used twice: by {taken.__module__} and {cls.__module__}."
                )
        self._classes[cls.name] = cls
        digest_of_plugin(cls)  # digest of the source at import
        for alias, values in aliases.items():
            self._aliases[alias] = (cls.name, values)

    def _problem_of(self, cls: type[Any], aliases: Mapping[str, Any]) -> str | None:
        """Why a class cannot be a plug-in, or None if it can."""
        if inspect.isabstract(cls):
            lacking = ", ".join(sorted(cls.__abstractmethods__))
            return f"{cls.__name__} ({cls.__module__}) lacks {lacking}, which every {self.kind} defines."
        for name in [cls.name, *aliases]:
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,59}", name) or name == "all":
                return (
                    f"a name is at most 60 letters, digits, '-', '_' or '.', begins with a letter or digit, and is not "
                    f"'all', as it names options and folders. {cls.__name__} ({cls.__module__}) has {name!r}."
                )
        return self._problem_of_display(cls, aliases)

    def _problem_of_display(self, cls: type[Any], aliases: Mapping[str, Any]) -> str | None:
        """Why its titles or citations for papers, or those of its aliases, cannot be used; None if they can."""
        own, of_aliases = vars(cls).get("display", ""), vars(cls).get("alias_display", {})
        if not isinstance(of_aliases, dict) or not set(of_aliases) <= set(aliases):
            known = ", ".join(aliases) or "none"
            return f"alias_display says what papers call its aliases ({known}). Got {of_aliases!r}."
        for one in [own, *of_aliases.values()]:
            if not isinstance(one, str | property) or (isinstance(one, str) and one != one_line(one).strip()):
                return f'a display title is text on one line, such as "PGD". {cls.__name__} has {one!r}.'
        cited = vars(cls).get("alias_citation", {})
        if not isinstance(cited, dict) or not set(cited) <= set(aliases) or set(map(type, cited.values())) - {str}:
            return f"alias_citation is the BibTeX of its aliases ({', '.join(aliases) or 'none'}). Got {cited!r}."
        return None


def version_of(cls: type[Any], plugin: Any = None, *where: Any) -> int | str:
    """The version of a plug-in. It includes those of parents that are plug-ins: raising a parent's changes both.

    Args:
        cls: the class.
        plugin: an instance of it with its values, if they are known.
        where: arguments of `version_for`, if the version depends on the values (for a method: the dataset).
    """
    named: list[Any] = [one for one in cls.__mro__[1:] if one.__dict__.get("name") not in (None, "", cls.name)]
    parents = [one for one in named if hasattr(one, "version")]
    if not parents:
        return _own_version(cls, plugin, where)
    of_parents = (f"{one.name} {_own_version(one, plugin, where)}" for one in parents)
    return ", ".join([str(_own_version(cls, plugin, where)), *of_parents])


def _own_version(cls: type[Any], plugin: Any, where: tuple[Any, ...]) -> int:
    """The version from the nearest class that has one; from its `version_for` if it has that and values are known."""
    classes: tuple[Any, ...] = cls.__mro__
    for one in classes:
        if plugin is not None and "version_for" in vars(one) and one.name:  # not that of the contract
            following: int = one.version_for(plugin, *where)
            return following
        if "version" in vars(one):
            break
    version: int = cls.version
    return version


def is_shipped(cls: type[Any]) -> bool:
    """Whether a plug-in is a file of the suite; then its `version` says whether its numbers changed."""
    package, _, _ = cls.__module__.rpartition(".")
    if package not in ("debiasbench.methods", "debiasbench.datasets"):
        return False
    file, folder = sys.modules[cls.__module__].__file__, sys.modules[package].__path__[0]
    return file is not None and Path(file).resolve().parent == Path(folder).resolve()


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def read_parameters(
    cls: type[Parameters],
    options: Mapping[str, str],
    extra: type[Parameters] | None = None,
    among: Container[str] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read inline texts as typed values of `cls` and, for keys that `cls` lacks, of `extra` (the recipe).

    `among` are the keys of `extra` that may be given; default: all of its fields.

    Returns (values of cls, values of extra).

    Raises:
        BenchmarkError: keys are unknown or texts cannot be read; one message lists all of them.
    """
    known = {
        c: [f.name for f in fields_of(c) if c is cls or among is None or f.name in among] for c in (cls, extra) if c
    }
    own: dict[str, Any] = {}
    other: dict[str, Any] = {}
    problems = []
    for key, text in options.items():
        owner = next((c for c, keys in known.items() if key in keys), None)
        if owner is None:
            keys = list(dict.fromkeys(itertools.chain(*known.values())))
            problems.append(
                f"Unknown parameter '{key}' of {cls.name}.{suggestion(key, keys)} Known: {', '.join(keys)}."
            )
            continue
        try:
            value = read_value(text, field_types(owner)[key], f"'{key}' parameter of {cls.name}")
            # checked alone, so that several mistakes are all reported
            (own if owner is cls else other)[key] = value
        except BenchmarkError as error:
            problems.append(str(error))
    if problems:
        raise BenchmarkError("\n".join(problems))
    return own, other


def title_of(name: str, values: Mapping[str, Any], bases: Mapping[str, Mapping[str, Any]]) -> str:
    """The shortest inline text that gives these values: `pgd:score=loss`, `pgd:preset=official`.

    `bases` maps a preset's name ("" for none) to the values that it stands for.
    """
    texts = []
    for preset, base in bases.items():
        parts = [f"preset={preset}"] if preset else []
        parts += [f"{key}={write_value(value)}" for key, value in values.items() if base.get(key) != value]
        texts.append((len(parts), name + (":" + ",".join(parts) if parts else "")))
    return min(texts)[1]


def display_of(plugin: Any, title: str) -> str:
    """The name in papers for a method or dataset with these parameters: `PGD, norm=l1`, `Colored MNIST, 0.5 %`.

    Args:
        plugin: the class of a method, or a dataset with its values.
        title: the title from `title_of`, which contains the values that differ from the defaults.
    """
    cls: Any = plugin if isinstance(plugin, type) else type(plugin)
    words: dict[str, str] = {} if plugin is cls else plugin.in_words()
    name, given = split_spec(title)
    if name != cls.name:  # not a title from the suite
        return title
    options = {key: write_value(values[0]) for key, values in given.items() if key not in words}
    display = (plugin.display if "display" in vars(cls) else "") or name  # not inherited: a parent is another one
    for alias, values in vars(cls).get("aliases", {}).items():
        stands_for = {key: write_value(value) for key, value in values.items()}
        if alias in cls.alias_display and stands_for.items() <= options.items():
            display = cls.alias_display[alias]
            options = {key: value for key, value in options.items() if key not in stands_for}
    return ", ".join([display, *filter(None, words.values()), *(f"{key}={value}" for key, value in options.items())])


def defaults(cls: type[Parameters]) -> dict[str, Any]:
    """Field -> class default."""
    return {item.name: default_of(item) for item in fields_of(cls)}
