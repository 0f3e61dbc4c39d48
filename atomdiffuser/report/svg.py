"""Matplotlib figures as small inline SVG that takes its colours from the page, so that it follows light and dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from atomdiffuser.report.colours import SERIES

# stand-in colours, exchanged for the page's CSS variables in the finished SVG
INK, MUTED, LINE, PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
CONTRAST, INTENSITY, WARN = "#0d0e0f", "#101112", "#131415"
CRYSTALLINITY, ALONG_Y, ALONG_X = "#161718", "#191a1b", "#1c1d1e"
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--surface",
    CONTRAST: "--contrast", INTENSITY: "--intensity", WARN: "--look",
    CRYSTALLINITY: "--crystallinity", ALONG_Y: "--along-y", ALONG_X: "--along-x",
}  # fmt: skip
_VARIABLES |= {colour: f"--s{i}" for i, colour in enumerate(SERIES)}
WITNESS_COLOUR = {"contrast": CONTRAST, "intensity": INTENSITY, "crystallinity": CRYSTALLINITY}

PX_PER_INCH = 106

_STYLE = {
    "svg.fonttype": "none",
    "axes.formatter.use_mathtext": True,
    "axes.formatter.limits": (-3, 4),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.use": True,
    "path.simplify_threshold": 0.3,
}


class _PlainTicks(ScalarFormatter):
    """Tick labels as plain text, the power of ten beside the axis as a formula: to set each label as a formula in the
    same font took half of the time of a figure.
    """

    def __call__(self, x: float, pos: int | None = None) -> str:
        return super().__call__(x, pos).removeprefix(r"$\mathdefault{").removesuffix("}$")


@contextmanager
def figure(width_in: float, height_in: float) -> Iterator[Figure]:
    """A figure in the reports' style that never touches a display or pyplot's global state."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width_in, height_in))


def to_svg(figure: Figure, prefix: str, description: str) -> str:
    """The figure as inline SVG, deterministic, with `description` as its accessible name."""
    buffer = io.StringIO()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if type(axis.get_major_formatter()) is ScalarFormatter:
            axis.set_major_formatter(_PlainTicks())
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # it would style the whole page
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    # coordinates to a hundredth of a point; what is written between the tags keeps its digits
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(?<=\d\.\d\d)\d+", "", tag[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    # several figures share a page: their ids must not collide
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r"font-family: [^;\"]*;?\s*", "", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    # as wide as its text stays the size of the page's own
    width_px = round(figure.get_figwidth() * PX_PER_INCH)
    label = html.escape(description, quote=True)
    head = f'<svg role="img" aria-label="{label}" class="figure" style="max-width:{width_px}px"'
    text = re.sub(r'^<svg xmlns:xlink="[^"]*" width="[^"]*" height="[^"]*"', head, text)
    return text.replace('xmlns="http://www.w3.org/2000/svg"', 'xmlns:xlink="http://www.w3.org/1999/xlink"', 1)
