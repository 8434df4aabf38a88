"""debiasbench: a benchmark suite for mitigating dataset bias.

import debiasbench
table = debiasbench.run(methods=["vanilla", "pgd"], datasets=["cmnist5k"], seeds=3)
debiasbench.compare(table)
debiasbench.figures.accuracies(table)
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from debiasbench import about
from debiasbench.about import PROTOCOL_VERSION

if TYPE_CHECKING:
    from debiasbench import figures
    from debiasbench.api import compare, load_predictor, load_results, run, tune

__version__: str
__all__ = ["PROTOCOL_VERSION", "__version__", "compare", "figures", "load_predictor", "load_results", "run", "tune"]


def _hide_bare_datasets_folder() -> None:
    """Keep our folder `datasets/` from passing for the Hugging Face package of that name.

    From a clone's root, `import datasets` would find the bare folder, and libraries that probe for the package
    would take it for installed. Where the real package is installed it wins by itself, and nothing is done.
    """
    if "datasets" in sys.modules:
        return
    try:
        spec = importlib.util.find_spec("datasets")
    except (ImportError, ValueError):
        return
    if spec is not None and spec.origin is None:
        sys.modules["datasets"] = None  # type: ignore[assignment]


_hide_bare_datasets_folder()


def __getattr__(name: str) -> Any:
    """The Python interface and the version, found when first used: `import debiasbench` stays quick."""
    if name == "__version__":
        return about.version()
    if name in ("compare", "load_predictor", "load_results", "run", "tune"):
        from debiasbench import api

        return getattr(api, name)
    if name == "figures":
        return importlib.import_module("debiasbench.figures")
    raise AttributeError(f"module 'debiasbench' has no attribute '{name}'")
