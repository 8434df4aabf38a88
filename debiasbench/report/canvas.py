"""The figure class of all drawing. It is imported when a figure is drawn, after matplotlib (`drawing.library`)."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from debiasbench.drawing import plain_settings

PIXELS = 150  # per inch, when a notebook shows a figure: the column of a paper is 502 pixels wide


class OwnFigure(Figure):
    """A figure that a notebook can display without pyplot, whatever backend the environment names."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        with plain_settings():
            self.savefig(file, format="png", dpi=PIXELS)
        return file.getvalue()
