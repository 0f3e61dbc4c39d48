"""One colour scale for every decay map of every series, so that two pages can be compared by eye."""

from __future__ import annotations

import numpy as np

CHANGE_LIMIT_PERCENT = 100.0
"""The scale runs from −100 % (gone) over 0 (intact) to +100 %; values beyond are drawn in the end colours."""

CHANGE_POWER = 0.6
"""Distance from the middle grows as |change| to this power: damage worth seeing begins at a few per cent."""

CHANGE_TICKS_PERCENT = (-100, -50, -20, -5, 0, 5, 20, 50, 100)

_LOSS_TO_GAIN = (
    "#590007", "#8b2706", "#be6533", "#d39774", "#eacebd", "#c9dde7", "#71a7c4", "#1d6e9c", "#023e7d", "#001260",
)  # fmt: skip
"""F. Crameri's perceptually uniform, colour-blind safe map *vik* (doi 10.5281/zenodo.1243862), reversed."""

WITNESS = {
    "contrast": {"light": "#a63d2f", "dark": "#f0907f", "dash": "", "marker": "o"},
    "intensity": {"light": "#1f5f99", "dark": "#7db8ea", "dash": "6 3", "marker": "s"},
}
"""Line colours of the two witnesses; dashes and markers tell them apart without colour."""

SERIES = ("#1f5f99", "#a63d2f", "#4f7a28", "#7a4fa3", "#935f00", "#0f7c7c", "#8c4a6b", "#5a5f66")
"""Categorical colours, each at least 4.5:1 against white."""


def change_lut(size: int = 256) -> np.ndarray:
    """(size, 3) uint8 colours of the change from −100 % to +100 %."""
    anchors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in _LOSS_TO_GAIN], dtype=float)
    position = np.linspace(0, len(anchors) - 1, size)
    columns = [np.interp(position, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    return np.rint(np.stack(columns, axis=1)).astype(np.uint8)


def colour_change(change_percent: np.ndarray) -> np.ndarray:
    """(…, 3) uint8 colours of a map of changes [%]; NaN comes out mid-grey."""
    lut = change_lut()
    index = np.rint(np.nan_to_num(scale_position(change_percent), nan=0.5) * (len(lut) - 1)).astype(int)
    colours = lut[index]
    colours[~np.isfinite(change_percent)] = (150, 150, 150)
    return colours


def scale_position(change_percent: np.ndarray | float) -> np.ndarray:
    """Place of a change on the colour bar, 0 (−100 %) … 0.5 (intact) … 1 (+100 %)."""
    share = np.clip(np.asarray(change_percent, dtype=float) / CHANGE_LIMIT_PERCENT, -1, 1)
    return (np.sign(share) * np.abs(share) ** CHANGE_POWER + 1) / 2


def css_gradient() -> str:
    """The scale as a CSS gradient, loss on the left."""
    return f"linear-gradient(to right, {', '.join(_LOSS_TO_GAIN)})"
