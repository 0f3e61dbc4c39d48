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
    """Sums (t, atoms) in which every atom counts as it must, and by witness ("lattice", "signal_ratio") factors
    (t, regions) that complete what a frame shows of a region to the whole of it.

    `sigma` is the relative 1 σ that weights and completion leave in a region's course; it does not change its sign from
    one frame to the next.
    """

    sums: dict[str, np.ndarray]
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
        return as_they_are(sums, len(used), len(regions.regions))
    seen = sums if used.all() else {name: values[used] for name, values in sums.items()}
    field = _field(regions, CELL_BLOCKS * block_px)
    cells = field.cells
    at = (np.flatnonzero(used) - np.flatnonzero(used)[0] + 1.0) / len(used)  # the first frame has been exposed once

    energy = seen["ll"] - seen["noise_ll"]
    found = {"lattice": courses_of_cells(seen["raw_l"] @ cells, energy @ cells, seen["v_ll"] @ cells, at, field.near)}
    level = cells @ found["lattice"].level  # of each atom
    area = seen["crystal"].max(0)
    density = (energy @ cells).sum(0) / np.maximum((seen["crystal"] @ cells).sum(0), 1)
    typical = np.median(density[density > 0]) if (density > 0).any() else 1.0
    # κ = Σ q·raw_l / Σ q·s·energy: with q = 1/(s·density) each pixel of the crystal counts alike
    share = 1 / (level * np.clip(cells @ density / typical, *DENSITY_LIMITS))
    new = dict(sums)
    new["raw_l"] = sums["raw_l"] * share
    new["ll"], new["noise_ll"] = sums["ll"] * share * level, sums["noise_ll"] * share * level
    new["v_ll"], new["l"] = sums["v_ll"] * share**2, sums["l"] * level
    with np.errstate(divide="ignore", invalid="ignore"):
        places = np.nan_to_num(np.stack([seen["ll_y"], seen["ll_x"]], -1) / energy[..., None], nan=0.0)
    middle = field.middle
    places = np.where((energy > 0)[..., None], np.clip(places, middle - block_px, middle + block_px), middle)
    # what an atom adds to κ, its noise apart
    looks = {"lattice": (np.maximum(energy, 0) * share * level, area, places)}

    # in a strip of a cell a few cut columns are much of the signal: what is taken for theirs follows the cell's course
    course = found["lattice"].level * found["lattice"].curve
    expected = ((energy @ cells) * course).sum()
    clear = expected > 0 and np.sqrt(seen["v_ll"].sum()) < expected  # without a lattice there is none to take off
    kappa = course * (seen["raw_l"].sum() / expected if clear else 0.0)
    matter = (seen["raw"] @ cells) - kappa * (seen["l"] @ cells)
    found["signal_ratio"] = courses_of_cells(
        matter, (seen["template"] - seen["l_template"]) @ cells, seen["variance"] @ cells, at, field.near
    )
    level = cells @ found["signal_ratio"].level
    new["template"], new["l_template"] = sums["template"] * level, sums["l_template"] * level
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.nan_to_num((seen["template"] * level).sum(0) / seen["n"].sum(0))
    looks["signal_ratio"] = seen["n"] * mean, seen["n"].max(0) * mean, None
    full = {name: _completed(found[name], field, *looks[name], regions, used) for name in WITNESSES}
    return Balanced(new, *({name: full[name][i] for name in WITNESSES} for i in (0, 1)))


def as_they_are(sums: dict[str, np.ndarray], n_frames: int, n_regions: int) -> Balanced:
    """Sums of which nothing is weighed or completed."""
    filled = lambda value: {name: np.full((n_frames, n_regions), value) for name in WITNESSES}
    return Balanced(sums, filled(1.0), filled(0.0))


@dataclass(frozen=True)
class _Field:
    """Atoms and cells: `cell` (atoms,) which cell the middle of an atom lies in, `cells` (atoms, cells) the same as
    0 or 1; `near` (cells, cells) how near cells are, 0 for itself; `middle` (atoms, 2) centres of area [px]; `slope`
    (2, cells, cells) turns values of cells into their slopes [1/px].
    """

    cell: np.ndarray
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
    cell = number.ravel()
    cells = np.eye(len(place))[cell]
    apart = scipy.spatial.distance.cdist(place, place, "sqeuclidean")
    near = np.where(apart > 0, np.exp(-0.5 * apart / NEAR_CELLS**2), 0.0)
    centre = (cells * count[:, None]).T @ middle / (count @ cells)[:, None]
    weight = np.exp(-0.5 * apart / SLOPE_CELLS**2) * (apart < 9 * SLOPE_CELLS**2)
    slope = np.zeros((2, len(place), len(place)))
    for c in range(len(place)):
        offset = centre - (weight[c] @ centre) / weight[c].sum()
        normal = (offset * weight[c][:, None]).T @ offset + SLOPE_RIDGE * size_px**2 * np.eye(2)
        slope[:, c] = np.linalg.solve(normal, (offset * weight[c][:, None]).T)
    return _Field(cell, cells, near, middle, slope)


def _completed(
    found: Courses, field: _Field, seen: np.ndarray, whole: np.ndarray, places: np.ndarray | None, regions, used
) -> tuple[np.ndarray, np.ndarray]:
    """(t, regions) mean course over all of a region over its mean over what is seen, and the relative 1 σ that is left.

    `seen` (t, atoms) and `whole` (atoms,) are weights, `places` (t, atoms, 2) where in an atom that is which is seen.
    Levels that are off weigh cells wrongly, which matters as far as their courses differ, and make a step of cells that
    leave; what is out of view is known as well as its cell's curve is.
    """
    factors, sigmas = np.ones((len(used), len(regions.regions))), np.zeros((len(used), len(regions.regions)))
    slopes = _slopes(found.curve, field, seen, places) if places is not None else None
    level_sigma = np.hypot(found.level_sigma, WITHIN_CELL)
    for r, member in enumerate(regions.membership):
        own, cells = seen[:, member], field.cells[member]
        with np.errstate(divide="ignore", invalid="ignore"):
            full, here = (w / w.sum(-1, keepdims=True) for w in (whole[None, member] @ cells, own @ cells))
            everywhere, visible = ((w * found.curve).sum(-1) for w in (full, here))
            if slopes is not None:
                mean = lambda weight, values: (weight * values).sum(-1) / weight.sum(-1)
                everywhere = everywhere + mean(whole[member], slopes.off_centre(field.middle, member))
                visible = visible + mean(own, slopes.off_centre(places, member))
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
    """Slope of the curve in each cell (t, cells, 2) [1/px], and the centre of what was seen of it (cells, 2): a cell's
    own curve is that at this centre.
    """

    slope: np.ndarray
    centre: np.ndarray
    cell: np.ndarray

    def off_centre(self, places: np.ndarray, member: np.ndarray) -> np.ndarray:
        """(t, atoms) what slopes add to the curves of a region's atoms at `places`, (atoms, 2) or (t, atoms, 2)."""
        cell = self.cell[member]
        return ((places[..., member, :] - self.centre[cell]) * self.slope[:, cell]).sum(-1)


def _slopes(curve: np.ndarray, field: _Field, seen: np.ndarray, places: np.ndarray) -> _Slopes:
    total = (seen @ field.cells).sum(0)
    weighted = np.einsum("ta,tad->ad", seen, places)
    centre = field.cells.T @ weighted / np.maximum(total, 1e-300)[:, None]
    slope = np.moveaxis(field.slope @ curve.T, 0, -1).transpose(1, 0, 2) * (total > 0)[:, None]
    return _Slopes(slope, centre, field.cell)
