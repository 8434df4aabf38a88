"""Version of the suite and of its protocol, and where it is."""

import os
from pathlib import Path

PACKAGE = Path(__file__).parent  # its parent is the clone, or where packages are installed

__version__ = "0.1.0"
# Raised when evaluation, sampling or randomness change so that numbers move: part of every cell's identity.
PROTOCOL_VERSION = 1


def with_package(python_path: str) -> str:
    """PYTHONPATH by which a process finds the suite as this one does, whether installed or run from a clone."""
    return os.pathsep.join(filter(None, [str(PACKAGE.parent), python_path]))
