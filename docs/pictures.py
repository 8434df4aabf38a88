"""Draw the pictures of the README: `python docs/pictures.py`, which needs a browser for the second.

cmnist5k.png is what `debiasbench inspect cmnist5k` draws; report.png is the top of the page that `debiasbench report`
makes of the committed records.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from debiasbench.datasets import registry as datasets
from debiasbench.experiments import read_experiment
from debiasbench.report.inspection import inspect
from debiasbench.report.make import Shown, make

DOCS = Path(__file__).parent
WIDTH, HEIGHT = 1100, 1295  # of the screenshot, pixels


def main() -> None:
    """Write both."""
    folder = DOCS / "pictures"
    with tempfile.TemporaryDirectory() as scratch:
        dataset = datasets.get("cmnist5k")[0]()
        _, (sheet,) = inspect(dataset, "cmnist5k", data_dir=Path(scratch), results_dir=Path(scratch))
        shutil.copy(sheet, folder / "cmnist5k.png")
        records = shutil.copy(DOCS / "reproduction" / "records" / "field.zip", Path(scratch, "results.zip"))
        report = make(Path(records), reference="vanilla", shown=Shown(methods=tuple(read_experiment("demo").methods)))
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if browser is None:
            sys.exit("There is no browser: report.png stays as it is.")
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        (page,) = report.paths["report"]
        picture = folder / "report.png"
        subprocess.run([browser, *words, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    main()
