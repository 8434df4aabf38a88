"""The figure that all drawing makes. Imported when one is drawn: matplotlib is there by then (`drawing.library`)."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from debiasbench.drawing import plain_settings

PIXELS = 150  # an inch, where a notebook shows a figure: a column of a paper is 502 wide


class OwnFigure(Figure):
    """A figure that a notebook shows by itself: without pyplot, whatever backend the environment names."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        with plain_settings():
            self.savefig(file, format="png", dpi=PIXELS)
        return file.getvalue()
