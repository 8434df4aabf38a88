"""The versions of the suite and of its protocol, and where the suite is."""

import functools
import os
import re
from pathlib import Path

PACKAGE = Path(__file__).parent  # its parent is the clone, or the folder of installed packages

# Raised when a change of evaluation, sampling or randomness changes results; part of the identity of every cell.
PROTOCOL_VERSION = 1


@functools.cache
def version() -> str:
    """Version of the suite: of the present checkout in a clone, elsewhere of the installed package.

    It is derived from the tag as by setuptools-scm: 0.2.1.dev5+g1a2b3c4d5 is the fifth commit after v0.2.0. Without a
    tag it begins with 0.dev, and it is 0.dev0 if unknown. It ends in `.changes` if files of the clone were edited.
    """
    return _checked_out() or _installed() or "0.dev0"


def git(*words: str) -> str:
    """The output of git in the clone that the suite runs from; "" outside a clone.

    Raises:
        OSError, subprocess.SubprocessError: git is not installed, or fails.
    """
    import subprocess

    root = PACKAGE.parent
    if not (root / ".git").exists():  # an installed package may lie within another project's checkout
        return ""
    command = ["git", "-C", str(root), *words]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=20
    ).stdout.strip()


def _checked_out() -> str:
    """Version of a clone; "" outside a clone, and if git cannot tell."""
    import subprocess

    try:
        described = git("describe", "--always", "--tags", "--long", "--dirty", "--abbrev=40", "--match=v[0-9]*")
        found = re.fullmatch(r"(?:v(.+)-(\d+)-g)?([0-9a-f]{9})[0-9a-f]*(-dirty)?", described)
        if not found:
            return ""
        tag, distance, node, changes = found.groups()
        if distance == "0" and not changes:
            return str(tag)
        local = f"+g{node}{'.changes' if changes else ''}"
        if not tag:
            return f"0.dev{git('rev-list', '--count', 'HEAD')}{local}"
        following = re.sub(r"\d+$", lambda last: str(int(last[0]) + 1), tag)
        return f"{following}.dev{distance}{local}"
    except (OSError, subprocess.SubprocessError):
        return ""


def _installed() -> str:
    """Version of the distribution in this folder, as another may be installed as well; "" if there is none."""
    from importlib import metadata

    return next((one.version for one in metadata.distributions(name="debiasbench", path=[str(PACKAGE.parent)])), "")


def with_package(python_path: str) -> str:
    """PYTHONPATH with which a process finds the same suite as this one, whether installed or run from a clone."""
    return os.pathsep.join(filter(None, [str(PACKAGE.parent), python_path]))
