"""Check what machines of a cluster must have in common with the one that started the run: versions, code, folders."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from debiasbench.cell import Cell
from debiasbench.code import digest_of_suite
from debiasbench.errors import BenchmarkError
from debiasbench.files import to_path

INSTALLED = ("torch", "torchvision", "numpy")  # results depend on their versions


def versions() -> dict[str, str]:
    """The versions that results depend on, besides data and plug-ins: packages, and a digest of the suite's source."""
    # not its version, which changes with commits that leave the source as it is, and says little in a copy without git
    found = {"debiasbench": f"source {digest_of_suite()[:12]}"}
    for name in INSTALLED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def other_versions(expected: Mapping[str, str] | None) -> str:
    """Why this machine cannot take part; "" if it can. `expected`: the versions of the run; None: any."""
    here = versions() if expected else {}
    apart = [f"{name} {here[name]} (the run has {one})" for name, one in (expected or {}).items() if here[name] != one]
    if not apart:
        return ""
    return f"{socket.gethostname()} has {', '.join(apart)}. Install equal versions on every machine."


def other_code(cell: Cell, expected: Mapping[str, str | None] | None) -> str:
    """Why a cell cannot be trained here: its code differs from that of the run; "" if it can."""
    if not expected:
        return ""
    try:
        here = cell.code()
    except BenchmarkError as error:
        return f"On {socket.gethostname()}: {error}"
    for kind in {**expected, **here}:
        if here.get(kind) != expected.get(kind):
            what = cell.name_of_part(kind)
            return f"The {what} on {socket.gethostname()} differs from that of the run: make them equal."
    return ""


def shared_folders(cells: Sequence[Cell], data_dir: Path, results_dir: Path) -> list[Path]:
    """The existing folders that every machine must see."""
    roots = {to_path(cell.root) for cell in cells if cell.root}
    return [one for one in dict.fromkeys([results_dir, data_dir, *sorted(roots)]) if one.exists()]


def unreachable(folders: Iterable[Path], mark: Path) -> str:
    """Why this machine cannot use the folders of a run; "" if it can. `mark`: a file that the run has just created."""
    lacks = [str(folder) for folder in folders if not folder.exists()]
    if not lacks and not mark.exists():
        lacks = [f"{mark.parent} as the run does"]
    if not lacks:
        return ""
    return f"{socket.gethostname()} does not see {', '.join(lacks)}: results and data must be on shared storage."
