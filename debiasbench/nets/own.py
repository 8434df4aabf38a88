"""Networks outside the suite, one file each; the files can also hold metrics and selection rules.

Like `debiasbench/methods.py`, this file is a one-file package: `debiasbench.nets.own.<file>` is the file of that name
in a folder of $DEBIASBENCH_NETS_PATH, to which `--nets-dir` adds. The networks of the suite are not modules of it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from debiasbench.code import digest_of_module
from debiasbench.errors import BenchmarkError
from debiasbench.nets.base import Net
from debiasbench.plugins import NETS_PACKAGE, Registry, folders_of

__all__ = ["Net", "registry"]

__path__ = folders_of("DEBIASBENCH_NETS_PATH")


class Networks(Registry):
    """Classes of networks by name; `modules`: imported ones, which may hold functions; `files`: those of folders."""

    def __init__(self) -> None:
        super().__init__(NETS_PACKAGE, "Net", "DEBIASBENCH_NETS_PATH", group="debiasbench.nets")
        self.modules: list[ModuleType] = []
        self.files: list[str] = []

    def check(self) -> None:
        """Refuse folders, and files in them, that cannot be used: their contents may affect every cell.

        Broken modules of installed packages are ignored, because the user may not have asked for them.

        Raises:
            BenchmarkError: lists all such folders and files.
        """
        self.classes()
        problems = [
            f"There is no folder {folder}: correct $DEBIASBENCH_NETS_PATH, which names it."
            for folder in sys.modules[self.package].__path__
            if not Path(folder).is_dir()
        ]
        problems += [
            f"The file {name}.py of --nets-dir cannot be used: {self.broken[name].strip().splitlines()[-1]}. Correct "
            "it, or move it out of that folder."
            for name in self.files
            if name in self.broken
        ]
        problems += [f"The net '{name}' cannot be used: {why}" for name, why in self.unusable.items()]
        if problems:
            raise BenchmarkError("\n".join(problems))

    def _forget(self) -> None:
        self.modules, self.files = [], []
        super()._forget()

    def _import(self, name: str, module_name: str, base: type[Any]) -> None:
        self.files.append(name)
        super()._import(name, module_name, base)
        if name not in self.broken:
            self.modules.append(sys.modules[module_name])
            digest_of_module(module_name)  # digest of the source at import, also if it holds only functions

    def _register(self, cls: type[Any], base: type[Any], where: str) -> None:
        if isinstance(cls, ModuleType):  # from an entry point
            self._take(cls, base)
            self.modules.append(cls)
        else:
            super()._register(cls, base, where)

    def _problem_of(self, cls: type[Any], aliases: Any) -> str | None:
        if cls.features is Net.features:
            return f"{cls.__name__} ({cls.__module__}) lacks features(self, x), from images to what the head reads."
        return super()._problem_of(cls, aliases)


registry = Networks()


def own_net(name: str) -> type[Net] | None:
    """The class of a network outside the suite; None if there is none of this name."""
    return registry.classes().get(name)
