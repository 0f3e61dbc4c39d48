"""What a region would show were it seen whole and intact: weights of its parts, and the part that left the view.

The template that frames are compared with is the mean of those that looked, and these are not the same everywhere: near
the border, where only the first frames looked, it shows less damage, and where damage is strong, more. A region's
signal must not depend on that. So the field is divided into cells of a few lattice periods, whose course over the
frames tells the level from which each started: then all cells count by their area (contrast) or by the mass that they
had (intensity), and what has drifted out of view is taken to have followed its own cell's curve.

Contrast is seen where columns are. Those that a region's border leaves inside may lie off its middle, and where damage
has a slope they do not show its mean: within a cell the curve is taken to change as from cell to cell, and each part is
moved from where its lattice was seen to the middle of its area.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.spatial

from atomdiffuser.damage.cells import Courses, courses_of_cells
from atomdiffuser.damage.regions import RegionSet

CELL_BLOCKS = 2  # side of a cell in blocks
WITHIN_CELL = 0.06  # 1 σ of a cell's level that is never known better, for damage that varies within it
NEAR_CELLS = 1.5  # reach over which cells tell of one another
SLOPE_CELLS, SLOPE_RIDGE = 0.8, 0.05  # reach of a slope, and how far noise and small fields flatten it
DENSITY_LIMITS = (0.25, 4.0)  # of a cell's weight, over the typical cell's, for the same area
FACTOR_LIMITS, LARGEST_SIGMA = (0.5, 2.0), 0.5
WITNESSES = ("lattice", "signal_ratio")


@dataclass(frozen=True)
class Balanced:
    """How atoms count, and what a frame does not show.

    `weights` (atoms,) are factors of the sums that they are named after; other sums stay as they are. `completion` are
    by witness ("lattice", "signal_ratio") factors (t, regions) from what a frame shows of a region to the whole of it.
    `sigma` is the relative 1 σ that weights and completion leave in a region's course; it does not change its sign from
    one frame to the next.
    """

    weights: dict[str, np.ndarray]
    completion: dict[str, np.ndarray]
    sigma: dict[str, np.ndarray]


def balance(sums: dict[str, np.ndarray], regions: RegionSet, block_px: int) -> Balanced:
    """Weigh atoms by where their cells started.

    Parameters
    ----------
    sums
        As from `observables.sum_frame`, (t, atoms); NaN where a frame was not used.
    regions
        Whose atoms have been cut into blocks of `block_px`.
    """
    used = np.isfinite(sums["n"]).all(1)
    if used.sum() < 3:
        return as_they_are(len(used), len(regions.regions))
    seen = lambda name: sums[name] if used.all() else sums[name][used]
    field = _field(regions, CELL_BLOCKS * block_px)
    cells = field.cells
    of_cells = lambda name: seen(name) @ cells
    at = (np.flatnonzero(used) - np.flatnonzero(used)[0] + 1.0) / len(used)  # the first frame has been exposed once

    energy = of_cells("ll") - of_cells("noise_ll")
    lattice = courses_of_cells(of_cells("raw_l"), energy, of_cells("v_ll"), at, field.near)
    level = cells @ lattice.level  # of each atom
    area = seen("crystal").max(0)
    density = energy.sum(0) / np.maximum(of_cells("crystal").sum(0), 1)
    typical = np.median(density[density > 0]) if (density > 0).any() else 1.0
    # κ = Σ q·raw_l / Σ q·s·energy: with q = 1/(s·density) each pixel of the crystal counts alike
    share = 1 / (level * np.clip(cells @ density / typical, *DENSITY_LIMITS))
    weights = {"raw_l": share, "ll": share * level, "noise_ll": share * level, "v_ll": share**2, "l": level}

    # in a strip of a cell a few cut columns are much of the signal: what is taken for theirs follows the cell's course
    course = lattice.level * lattice.curve
    expected, raw_l, v_ll = (energy * course).sum(), of_cells("raw_l").sum(), of_cells("v_ll").sum()
    clear = expected > 0 and np.sqrt(v_ll) < expected  # without a lattice there is none to take off
    kappa = course * (raw_l / expected if clear else 0.0)
    matter = of_cells("raw") - kappa * of_cells("l")
    mass = courses_of_cells(matter, of_cells("template") - of_cells("l_template"), of_cells("variance"), at, field.near)
    weights |= dict.fromkeys(("template", "l_template"), cells @ mass.level)

    shown, places = _where_lattice_is(seen, field, block_px)
    shown *= weights["ll"]  # what an atom adds to κ, its noise apart
    full = {"lattice": _completed(lattice, field, shown, area, places, regions, used)}
    del shown, places
    n = seen("n")
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.nan_to_num(seen("template").sum(0) * weights["template"] / n.sum(0))
    full["signal_ratio"] = _completed(mass, field, n * mean, n.max(0) * mean, None, regions, used)
    return Balanced(weights, *({name: full[name][i] for name in WITNESSES} for i in (0, 1)))


def as_they_are(n_frames: int, n_regions: int) -> Balanced:
    """Nothing is weighed or completed."""
    filled = lambda value: {name: np.full((n_frames, n_regions), value) for name in WITNESSES}
    return Balanced({}, filled(1.0), filled(0.0))


def _where_lattice_is(
    seen: Callable[[str], np.ndarray], field: _Field, block_px: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(t, atoms) energy of each atom's lattice, at least 0, and its place along y and x [px]: its middle where none."""
    energy = seen("ll") - seen("noise_ll")
    places = []
    for name, middle in zip(("ll_y", "ll_x"), field.middle.T, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            place = np.nan_to_num(seen(name) / energy, copy=False)
        np.clip(place, middle - block_px, middle + block_px, out=place)
        np.copyto(place, middle, where=energy <= 0)
        places.append(place)
    return np.maximum(energy, 0, out=energy), places


@dataclass(frozen=True)
class _Field:
    """Atoms and cells: `cells` (atoms, cells) 1 for the cell that the middle of an atom lies in; `near` (cells, cells)
    how near cells are, 0 for itself; `middle` (atoms, 2) centres of area [px]; `slope` (2, cells, cells) turns values
    of cells into their slopes [1/px].
    """

    cells: np.ndarray
    near: np.ndarray
    middle: np.ndarray
    slope: np.ndarray


def _field(regions: RegionSet, size_px: int) -> _Field:
    inside = regions.atoms >= 0
    label = regions.atoms[inside]
    count = np.bincount(label)
    middle = np.stack([np.bincount(label, at) / count for at in np.nonzero(inside)], 1)
    place, number = np.unique(middle // size_px, axis=0, return_inverse=True)
    cells = np.eye(len(place))[number.ravel()]
    apart = scipy.spatial.distance.cdist(place, place, "sqeuclidean")
    near = np.where(apart > 0, np.exp(-0.5 * apart / NEAR_CELLS**2), 0.0)
    centre = (cells * count[:, None]).T @ middle / (count @ cells)[:, None]
    weight = np.exp(-0.5 * apart / SLOPE_CELLS**2) * (apart < 9 * SLOPE_CELLS**2)
    slope = np.zeros((2, len(place), len(place)))
    for c in range(len(place)):
        offset = centre - (weight[c] @ centre) / weight[c].sum()
        normal = (offset * weight[c][:, None]).T @ offset + SLOPE_RIDGE * size_px**2 * np.eye(2)
        slope[:, c] = np.linalg.solve(normal, (offset * weight[c][:, None]).T)
    return _Field(cells, near, middle, slope)


def _completed(
    found: Courses, field: _Field, seen: np.ndarray, whole: np.ndarray, places: list[np.ndarray] | None, regions, used
) -> tuple[np.ndarray, np.ndarray]:
    """(t, regions) mean course over all of a region over its mean over what is seen, and the relative 1 σ that is left.

    `seen` (t, atoms) and `whole` (atoms,) are weights, `places` (t, atoms) each where in an atom that is which is seen.
    Levels that are off weigh cells wrongly, which matters as far as their courses differ, and make a step of cells that
    leave; what is out of view is known as well as its cell's curve is.
    """
    factors, sigmas = np.ones((len(used), len(regions.regions))), np.zeros((len(used), len(regions.regions)))
    slopes = _slopes(found.curve, field, seen, places) if places is not None else None
    level_sigma = np.hypot(found.level_sigma, WITHIN_CELL)
    for r, member in enumerate(regions.membership):
        own = seen[:, member] @ field.cells[member]
        all_of_it = whole[None, member] @ field.cells[member]
        with np.errstate(divide="ignore", invalid="ignore"):
            full, here = (w / w.sum(-1, keepdims=True) for w in (all_of_it, own))
            everywhere, visible = ((w * found.curve).sum(-1) for w in (full, here))
            if slopes is not None and places is not None:
                of_cell = field.cells[member]
                middles = [(whole * m)[None, member] @ of_cell for m in field.middle.T]
                everywhere = everywhere + slopes.off_centre(middles, all_of_it)
                visible = visible + slopes.off_centre([(seen[:, member] * p[:, member]) @ of_cell for p in places], own)
            relative = found.curve / everywhere[:, None]
            weighed = ((full * (relative - 1) * level_sigma) ** 2).sum(-1)
            first = here[np.isfinite(here).all(-1).argmax()]  # a region may come into view later
            leaving = (((here - first) * found.level_sigma) ** 2).sum(-1)
            hidden = (((full - here) * found.curve_sigma / everywhere[:, None]) ** 2).sum(-1)
            factor, sigma = everywhere / visible, np.sqrt(weighed + leaving + hidden)
        factors[used, r] = np.clip(np.where(np.isfinite(factor), factor, 1.0), *FACTOR_LIMITS)
        sigmas[used, r] = np.minimum(np.where(np.isfinite(sigma), sigma, 0.0), LARGEST_SIGMA)
    return factors, sigmas


@dataclass(frozen=True)
class _Slopes:
    """Slope of the curve in each cell along y and x (t, cells) [1/px], and the centre of what was seen of it (cells,):
    a cell's own curve is that at this centre.
    """

    slope: list[np.ndarray]
    centre: list[np.ndarray]

    def off_centre(self, moments: list[np.ndarray], weight: np.ndarray) -> np.ndarray:
        """(t,) what slopes add to the mean curve of a region, whose cells count with `weight` (…, cells), and which is
        seen where the `moments`, weight times place along y and x, say.
        """
        away = ((s * (m - c * weight)).sum(-1) for s, m, c in zip(self.slope, moments, self.centre, strict=True))
        return sum(away) / weight.sum(-1)


def _slopes(curve: np.ndarray, field: _Field, seen: np.ndarray, places: list[np.ndarray]) -> _Slopes:
    total = (seen @ field.cells).sum(0)
    moments = (np.einsum("ta,ta->a", seen, place) for place in places)
    centre = [moment @ field.cells / np.maximum(total, 1e-300) for moment in moments]
    return _Slopes([(slope @ curve.T).T * (total > 0) for slope in field.slope], centre)
