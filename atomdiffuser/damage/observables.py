"""Signal and lattice amplitude per region and frame, measured on raw pixels.

The regions and the template are moved onto each raw frame, whose pixels keep their independent noise. In a region

    signal   Σ I / Σ T                        mean counts as a multiple of the template's
    lattice  Σ I·l' / Σ l'²,  l' ⟂ base       amplitude of the template's lattice l in the frame

over the pixels where the template can be lattice (see prepare.shows_lattice).

The frame's own share of the template is taken out first: its noise would correlate with itself. What is left is
divided by the mean of the contrast maps of the frames that it comes from, so that l is the intact lattice everywhere: a
region's contrast is then the mean of the local ones, weighted by the squared amplitude of the intact lattice, wherever
damage has struck and whichever frames looked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atomdiffuser.damage.regions import RegionSet
from atomdiffuser.damage.template import Template
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.prepare import prepare_frames
from atomdiffuser.estimation.spectrum import lattice_noise_energy
from atomdiffuser.interpolation import sample_linear

LEAST_CONTRAST = 0.05  # mean contrast below which the template is not scaled up further


@dataclass(frozen=True)
class Observables:
    """Of one frame, each (regions,): NaN where a region has too little to measure.

    `signal` is the mean above the dark level [counts], `signal_ratio` the same over the template's mean on the same
    pixels; `lattice` the amplitude over the intact lattice's. σ is from shot and readout noise.
    """

    signal: np.ndarray
    signal_ratio: np.ndarray
    signal_ratio_sigma: np.ndarray
    lattice: np.ndarray
    lattice_sigma: np.ndarray
    n_px: np.ndarray


def measure_frame(
    source: FrameSource,
    index: int,
    frame_from_reference: Tensor,
    contrast: Tensor,
    template: Template,
    regions: RegionSet,
) -> Observables:
    """Observables of frame `index`, whose affine is (3, 3) and whose contrast map is (1, Y, X)."""
    raw = source.raw(index)
    own = prepare_frames(raw, source.scales)
    seen = template.on_frame(frame_from_reference)
    others = (seen.count - 1).clamp_min(1e-3)
    usable = seen.inside & (seen.count > 1.5)
    intact = ((seen.contrast - sample_linear(contrast, seen.y, seen.x)) / others).clamp_min(LEAST_CONTRAST)
    lattice = ((seen.mean - seen.base) * seen.count - own.lattice) / others / intact
    base = (seen.base * seen.count - own.base) / others
    mean = seen.mean
    variance = source.noise.variance(mean.clamp_min(0))
    label = _labels(seen.y, seen.x, usable, regions)
    total = lambda image: _sum_by_label(image, label, regions)
    lattice_label = _labels(seen.y, seen.x, usable & seen.crystal, regions)
    lattice_total = lambda image: _sum_by_label(image, lattice_label, regions)
    n = total(torch.ones_like(raw))
    with np.errstate(divide="ignore", invalid="ignore"):
        sum_template = total(mean)
        ratio = total(raw) / sum_template
        ratio_sigma = np.sqrt(total(variance)) / sum_template
        bb, bl, ll = lattice_total(base * base), lattice_total(base * lattice), lattice_total(lattice * lattice)
        tilt = bl / bb
        noise_in_template = lattice_noise_energy(source.scales) * lattice_total(variance / others / intact**2)
        energy = ll - tilt * bl - noise_in_template
        slope = (lattice_total(raw * lattice) - tilt * lattice_total(raw * base)) / energy
        spread = (
            lattice_total(variance * lattice**2)
            - 2 * tilt * lattice_total(variance * base * lattice)
            + tilt**2 * lattice_total(variance * base**2)
        )
        slope_sigma = np.sqrt(spread) / energy
        measurable = (energy > 0) & (slope_sigma < 1)
    blank = lambda values, good: np.where(good, values, np.nan)
    return Observables(
        signal=blank(total(raw) / np.maximum(n, 1), n > 0),
        signal_ratio=blank(ratio, sum_template > 0),
        signal_ratio_sigma=blank(ratio_sigma, sum_template > 0),
        lattice=blank(slope, measurable),
        lattice_sigma=blank(slope_sigma, measurable),
        n_px=n.astype(np.int64),
    )


def _labels(y: Tensor, x: Tensor, usable: Tensor, regions: RegionSet) -> Tensor:
    """Atom number of each raw pixel, the last number for pixels that belong to none."""
    atoms = torch.as_tensor(regions.atoms, device=y.device)
    none = regions.membership.shape[1]
    rows = y.round().long().clamp(0, atoms.shape[0] - 1)
    columns = x.round().long().clamp(0, atoms.shape[1] - 1)
    label = atoms[rows, columns]
    return torch.where(usable & (label >= 0), label, none)


def _sum_by_label(image: Tensor, label: Tensor, regions: RegionSet) -> np.ndarray:
    n_atoms = regions.membership.shape[1]
    sums = torch.bincount(label.flatten(), weights=image.flatten().double(), minlength=n_atoms + 1)[:n_atoms]
    return regions.membership.astype(float) @ sums.cpu().numpy()
