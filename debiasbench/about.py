"""Version of the suite and of its protocol, and where it is."""

import functools
import os
import re
from pathlib import Path

PACKAGE = Path(__file__).parent  # its parent is the clone, or where packages are installed

# Raised when evaluation, sampling or randomness change so that numbers move: part of every cell's identity.
PROTOCOL_VERSION = 1


@functools.cache
def version() -> str:
    """Version of the suite: in a clone that of what is checked out now, elsewhere that of what was installed.

    It follows from the tag, as setuptools-scm has it: 0.2.1.dev5+g1a2b3c4d5 is the fifth commit after v0.2.0. Without a
    tag it begins with 0.dev; 0.dev0 is said where nothing tells. `.changes` at its end: files of the clone were edited.
    """
    return _checked_out() or _installed() or "0.dev0"


def git(*words: str) -> str:
    """What git says of the clone that the suite is run from; "" outside a clone.

    Raises:
        OSError, subprocess.SubprocessError: there is no git, or it refuses.
    """
    import subprocess

    root = PACKAGE.parent
    if not (root / ".git").exists():  # packages may be installed within a checkout of something else
        return ""
    command = ["git", "-C", str(root), *words]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=20
    ).stdout.strip()


def _checked_out() -> str:
    """Version of a clone; "" outside a clone, and where git cannot say it."""
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
    """Version of the distribution whose files lie here: another one may be installed as well. "" if there is none."""
    from importlib import metadata

    return next((one.version for one in metadata.distributions(name="debiasbench", path=[str(PACKAGE.parent)])), "")


def with_package(python_path: str) -> str:
    """PYTHONPATH by which a process finds the suite as this one does, whether installed or run from a clone."""
    return os.pathsep.join(filter(None, [str(PACKAGE.parent), python_path]))
