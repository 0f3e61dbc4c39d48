"""Pictures of maps that belong to a whole series: damage rate, critical fluence, onset, and the motion of columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps

from atomdiffuser.report import images
from atomdiffuser.report.colours import change_lut
from atomdiffuser.report.damage_maps import DamageMaps
from atomdiffuser.report.facts import SeriesFacts
from atomdiffuser.report.formatting import known, number, p_value, plural, unit_text

SIDE_PX = 300
HATCH_PX = 10
DISC_PX = (2, 7)
"""Smallest and largest radius of a column's disc [px of the picture]."""
MAP_QUALITY = 82


@dataclass(frozen=True)
class MapPicture:
    """A coloured map, its scale as a CSS gradient, and ticks as (place in %, text)."""

    title: str
    src: str
    alt: str
    gradient: str
    ticks: tuple[tuple[float, str], ...]
    caption: str


def damage_pictures(maps: DamageMaps | None, facts: SeriesFacts, shape: tuple[int, int]) -> list[MapPicture]:
    """Rate, critical fluence and onset, each where the results have it."""
    if maps is None:
        return []
    unit = unit_text(str(maps.attributes.get("unit", facts.axis_unit)))
    stride = int(maps.attributes.get("map_stride", 1))
    found = []
    if (rate := maps.get("rate")) is not None:
        top = _round_up(float(np.nanpercentile(np.abs(rate), 99)))
        # red is loss, as in the decay maps: a positive rate is a loss
        picture = _coloured((rate / top + 1) / 2, change_lut()[::-1], stride, shape)
        alt = f"Rate of contrast loss, median {number(np.nanmedian(rate))} % per 1000 {unit}"
        ticks = ((0.0, f"−{number(top)}"), (50.0, "0"), (100.0, f"+{number(top)}"))
        caption = f"% per 1000 {unit}; positive: contrast is lost"
        found.append(MapPicture("Rate of contrast loss", picture, alt, _gradient(change_lut()[::-1]), ticks, caption))
    if (critical := maps.get("critical_fluence")) is not None:
        positive = np.where(critical > 0, critical, np.nan)
        low, high = (10.0 ** f(np.log10(v)) for f, v in zip((np.floor, np.ceil), _ends(positive), strict=True))
        decades = max(1.0, np.log10(high / low))
        picture = _coloured(np.log10(positive / low) / decades, _cividis(), stride, shape)
        alt = f"Where contrast falls to 1/e, median {number(np.nanmedian(positive))} {unit}"
        ticks = tuple((100 * i / decades, number(low * 10.0**i)) for i in range(round(decades) + 1))
        found.append(MapPicture("Critical fluence", picture, alt, _gradient(_cividis()), ticks, f"{unit}, logarithmic"))
    if (onset := maps.get("onset")) is not None:
        top = max(1, facts.n_frames - 1)
        picture = _coloured(onset / top, _cividis(), stride, shape)
        alt = f"First frame with a change beyond noise, median {number(np.nanmedian(onset))}"
        ticks = ((0.0, "0"), (100.0, number(top)))
        found.append(MapPicture("Onset", picture, alt, _gradient(_cividis()), ticks, "frame number"))
    return found


def damage_map_facts(maps: DamageMaps | None) -> str:
    """Correlation length and edge against interior, in words; empty without."""
    if maps is None:
        return ""
    told = []
    for unit in ("nm", "px"):
        length = maps.attributes.get(f"correlation_length_{unit}")
        if known(length):
            told.append(f"the rate is correlated over {number(length)} {unit}")
            break
    edge = maps.attributes.get("edge_interior")
    if isinstance(edge, dict) and known(edge.get("ratio")):
        text = p_value(edge.get("p_value"))
        p = f" (p {text if text.startswith('<') else f'= {text}'})" if known(edge.get("p_value")) else ""
        told.append(f"the edge is damaged {number(edge['ratio'], 2)} times as fast as the interior{p}")
    text = "; ".join(told)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def column_picture(columns: pd.DataFrame, picture: np.ndarray, factor: int, grey: images.Grey) -> MapPicture:
    """Atomic columns over the reference image, coloured by how far they moved; lost and hopped ones marked."""
    scale = max(1, -(-480 // max(picture.shape)))
    background = np.repeat(np.repeat(grey.to_uint8(picture), scale, 0), scale, 1) // 2
    canvas = np.repeat(background[..., None], 3, axis=2)
    root = np.sqrt(np.maximum(columns["msd_px2"].to_numpy(float), 0))
    top = _round_up(float(np.nanpercentile(root, 98))) if np.isfinite(root).any() else 1.0
    lut = _cividis()
    colours = lut[np.clip(np.nan_to_num(root / top) * 255, 0, 255).astype(int)]
    y, x = ((columns[c].to_numpy(float) + 0.5) * scale / factor for c in ("y_px", "x_px"))
    gone = columns["state"].isin(["lost", "hopped"]).to_numpy()
    radius = _radius(y, x)
    offsets = np.stack(np.mgrid[-radius : radius + 1, -radius : radius + 1], axis=-1).reshape(-1, 2)
    disc = offsets[(offsets**2).sum(1) <= radius**2]
    cross = offsets[np.abs(offsets[:, 0]) == np.abs(offsets[:, 1])]
    for chosen, shape_px, colour in ((~gone, disc, colours), (gone, cross, np.full_like(colours, (255, 120, 90)))):
        for dy, dx in shape_px:
            py, px = (np.rint(v[chosen]).astype(int) + d for v, d in ((y, dy), (x, dx)))
            inside = (py >= 0) & (px >= 0) & (py < canvas.shape[0]) & (px < canvas.shape[1])
            canvas[py[inside], px[inside]] = colour[chosen][inside]
    states = columns["state"].value_counts()
    counts = ", ".join(f"{plural(int(n), 'column')} {state}" for state, n in states.items())
    caption = "root mean square displacement (px); × lost or hopped"
    return MapPicture(
        "Motion of each column", images.webp(canvas, quality=MAP_QUALITY), f"Atomic columns by their motion: {counts}",
        _gradient(lut), ((0.0, "0"), (50.0, number(top / 2)), (100.0, number(top))), caption,
    )  # fmt: skip


def column_facts(columns: pd.DataFrame) -> dict[str, Any]:
    """How many columns kept their place, and how far they moved."""
    states = columns["state"].value_counts()
    seen = columns[columns["state"] != "unseen"]
    msd = seen["msd_px2"].to_numpy(float)
    nm2 = seen["msd_nm2"].to_numpy(float) if "msd_nm2" in seen else np.array([])
    return {
        "n": len(columns),
        **{state: int(states.get(state, 0)) for state in ("kept", "lost", "hopped", "unseen")},
        "msd_px2": float(np.nanmedian(msd)) if np.isfinite(msd).any() else np.nan,
        "msd_nm2": float(np.nanmedian(nm2)) if np.isfinite(nm2).any() else np.nan,
    }


def _radius(y: np.ndarray, x: np.ndarray) -> int:
    """Radius of discs that leave room between neighbours."""
    from scipy.spatial import cKDTree

    points = np.column_stack([y, x])
    if len(points) < 2:
        return DISC_PX[1]
    nearest = cKDTree(points).query(points, k=2)[0][:, 1]
    return int(np.clip(0.3 * np.median(nearest), *DISC_PX))


def _coloured(place: np.ndarray, lut: np.ndarray, stride: int, shape: tuple[int, int]) -> str:
    """A map whose values are places 0 … 1 on the scale, enlarged to be looked at; hatched where NaN."""
    scale = max(1, SIDE_PX // max(place.shape))
    big = np.repeat(np.repeat(place, scale, 0), scale, 1)
    # samples cover stride pixels each: the last may reach beyond the frame
    height, width = (max(1, round(n * scale / stride)) for n in shape)
    big = big[:height, :width]
    colour = lut[np.rint(np.clip(np.nan_to_num(big), 0, 1) * (len(lut) - 1)).astype(int)]
    y, x = np.mgrid[: big.shape[0], : big.shape[1]]
    hatch = np.where((x + y) % HATCH_PX < 2, 225, 150).astype(np.uint8)[..., None]
    return images.webp(np.where(np.isfinite(big)[..., None], colour, hatch).astype(np.uint8), quality=MAP_QUALITY)


def _cividis() -> np.ndarray:
    return colormaps["cividis"](np.arange(256), bytes=True)[:, :3]


def _gradient(lut: np.ndarray) -> str:
    stops = lut[np.linspace(0, len(lut) - 1, 12).astype(int)]
    return f"linear-gradient(to right, {', '.join(f'#{r:02x}{g:02x}{b:02x}' for r, g, b in stops)})"


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [2, 98])
    return float(low), float(max(high, low * 1.0001))


def _round_up(value: float) -> float:
    """The next of 1, 2, 5 × 10ⁿ."""
    if not value > 0:
        return 1.0
    decade = 10.0 ** np.floor(np.log10(value))
    return float(next(s * decade for s in (1, 2, 5, 10) if s * decade >= value * 0.9999))
