"""Signal and lattice amplitude per region and frame, measured on raw pixels.

The regions and the template are moved onto each raw frame, whose pixels keep their independent noise. In a region, the
frame I is taken as μ·base + κ·lattice, with the intact lattice l and the template's base b:

    lattice  κ = Σ (I − ⟨I⟩)·l / Σ l²      over the pixels where structure can be lattice (prepare.shows_lattice)
    signal   μ = (Σ I − κ·Σ l) / Σ b       so that cells cut by a region's border do not pass for mass

with ⟨I⟩ the frame's own local mean: mass lost unevenly makes slopes, which a few columns would take for lattice.

The frame's own share of the template is taken out first: its noise would correlate with itself. What is left is
divided by the mean of the contrast maps of the frames that it comes from, so that l is the intact lattice; likewise b
by that of the intensity maps.

All of this follows from sums over atoms, the pieces that regions and a grid of blocks cut the frame into. Weighted as
`balance.balance` does, they give the mean contrast over a region's area rather than over its strongest columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atomdiffuser.damage.atom_sums import atom_image, atoms_of_pixels, strips, sum_by_atom
from atomdiffuser.damage.regions import RegionSet
from atomdiffuser.damage.template import Template, TemplateOnFrame
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.spectrum import lattice_noise_energy
from atomdiffuser.interpolation import sample_linear, smooth

LEAST_CONTRAST = 0.05  # mean contrast below which the template is not scaled up further
LEAST_INTENSITY = 0.05

SUMS = (
    "n", "raw", "template", "variance",  # over the region's pixels in view
    "l_elsewhere",  # structure of the template where it is not sure to be lattice: an edge, or a lattice at an edge
    "crystal", "raw_l", "ll", "noise_ll", "l", "l_template", "v_ll",  # where lattice is
    "ll_y", "ll_x",  # its energy times where it lies on the reference grid
    "ll_contrast", "template_intensity",  # energy and template times the frame's own maps
)  # fmt: skip


EVERYWHERE = ("n", "raw", "template", "variance", "template_intensity", "l_elsewhere")
"""Those that count all of a region's pixels in view; the others count those where lattice is."""
WHERE_LATTICE = tuple(name for name in SUMS if name not in EVERYWHERE)
OF_REGIONS = (
    "n", "raw", "template", "variance", "l_elsewhere", "raw_l", "ll", "noise_ll", "l", "l_template", "v_ll",
)  # fmt: skip
"""Those that a region's observables are made of."""


@dataclass(frozen=True)
class Observables:
    """Of one frame (regions,) or several (t, regions): NaN where a region has too little to measure.

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
    maps: tuple[Tensor, Tensor],
    template: Template,
    regions: RegionSet,
) -> Observables:
    """Observables of frame `index`: its affine is (3, 3), its maps of intensity and contrast are (1, Y, X) each."""
    return observe(sum_frame(source, index, frame_from_reference, maps, template, regions), regions.membership)


def sum_frame(
    source: FrameSource,
    index: int,
    frame_from_reference: Tensor,
    maps: tuple[Tensor, Tensor],
    template: Template,
    regions: RegionSet,
    look: Callable[[int, TemplateOnFrame], None] | None = None,
) -> dict[str, np.ndarray]:
    """Sums over the pixels of each atom in frame `index`, (atoms,) each, by the names in SUMS.

    `look` is called with what the template shows of the frame, for whatever else is to be told from it.
    """
    raw = source.raw(index)
    own = source.prepared([index])  # faulty pixels filled; they are not `usable`
    seen = template.on_frame(source, index, frame_from_reference, maps)
    if look:
        look(index, seen)
    structure = (seen.mean - seen.base).div_(seen.contrast.clamp_min(LEAST_CONTRAST))
    # The frame's own local mean is mirrored at its edges and takes some of the lattice there: let it do so to both.
    lattice = smooth(torch.where(seen.usable, structure, own.lattice), source.scales.base_px)
    torch.sub(structure, lattice, out=lattice)
    atoms, n_atoms = atom_image(regions, raw.device), regions.membership.shape[1]
    sums = {name: np.zeros(n_atoms) for name in SUMS}
    for rows in strips(raw):
        here = seen.rows(rows)
        images = _images(source, *(v[:, rows] for v in (raw, own.base, structure, lattice)), here, maps)
        label = atoms_of_pixels(here.y, here.x, here.usable, atoms, n_atoms)
        for names, labels in ((EVERYWHERE, label), (WHERE_LATTICE, torch.where(here.crystal, label, n_atoms))):
            found = sum_by_atom((images[name]() for name in names), labels, n_atoms)
            for name, values in zip(names, found, strict=True):
                sums[name] += values
    return sums


def _images(
    source: FrameSource,
    raw: Tensor,
    base: Tensor,
    structure: Tensor,
    lattice: Tensor,
    seen: TemplateOnFrame,
    maps: tuple[Tensor, Tensor],
) -> dict[str, Callable[[], Tensor]]:
    """What makes the images whose sums are asked for, by the names in SUMS, of some rows of a frame."""
    whole = 1 / seen.intensity.clamp_min(LEAST_INTENSITY)
    left = (base / seen.base.clamp_min(1e-6)).clamp_(0, 4)
    variance = source.noise.variance(left.mul_(seen.mean).clamp_min_(0))
    own_intensity, own_contrast = (sample_linear(image, seen.y, seen.x) for image in maps)
    energy = lattice_noise_energy(source.scales)
    noise = source.noise.variance(seen.mean.clamp_min(0)).mul_(energy).mul_(seen.noise_share)
    noise.div_(seen.contrast.clamp_min(LEAST_CONTRAST).square_())
    square = lattice * lattice
    lattice_energy, expected = square - noise, whole * (seen.mean - seen.base)
    return {
        "n": lambda: torch.ones_like(raw),
        "raw": lambda: raw,
        "template": lambda: whole * seen.mean,
        "variance": lambda: variance,
        "template_intensity": lambda: whole * seen.mean * own_intensity,
        "l_elsewhere": lambda: torch.where(seen.level, 0.0, expected),
        "crystal": lambda: torch.ones_like(raw),
        "raw_l": lambda: (raw - base) * lattice,
        "ll": lambda: square,
        "noise_ll": lambda: noise,
        "v_ll": lambda: variance * square,
        "ll_y": lambda: lattice_energy * seen.y,
        "ll_x": lambda: lattice_energy * seen.x,
        "ll_contrast": lambda: lattice_energy * own_contrast,
        # Beside an edge a step stands about the local mean. It is mass, and in Σ l it would fade with the lattice.
        "l": lambda: seen.level * structure,
        "l_template": lambda: seen.level * expected,
    }


def observe(sums: dict[str, np.ndarray], membership: np.ndarray) -> Observables:
    """Observables of regions from sums (atoms,) or (t, atoms); `membership` is (regions, atoms)."""
    r = region_sums(sums, membership)
    with np.errstate(divide="ignore", invalid="ignore"):
        fit = lattice_fit(r)
        slope, sigma = fit["slope"], np.sqrt(fit["spread"]) / fit["energy"]
        measurable = (fit["energy"] > 0) & (sigma < 1)
        joint = measurable.all(0) if measurable.ndim > 1 else measurable
        kappa, own = np.where(joint, slope, 0.0), np.where(joint, 1.0, 0.0)
        expected = r["template"] - own * r["l_template"]
        ratio = (r["raw"] - kappa * r["l"]) / expected
        ratio_sigma = np.sqrt(r["variance"] + np.where(joint, (sigma * r["l"]) ** 2, 0.0)) / expected
        signal = r["raw"] / np.maximum(r["n"], 1)
    blank = lambda values, good: np.where(good, values, np.nan)
    return Observables(
        signal=blank(signal, r["n"] > 0),
        signal_ratio=blank(ratio, expected > 0),
        signal_ratio_sigma=blank(ratio_sigma, expected > 0),
        lattice=blank(slope, measurable),
        lattice_sigma=blank(sigma, measurable),
        n_px=r["n"].round().astype(np.int64),
    )


def region_sums(sums: dict[str, np.ndarray], membership: np.ndarray) -> dict[str, np.ndarray]:
    """Sums over regions, (…, regions)."""
    weights = membership.astype(float).T
    return {name: np.asarray(values, float) @ weights for name, values in sums.items()}


def unsure_lattice(sums: dict[str, np.ndarray], membership: np.ndarray) -> np.ndarray:
    """(t, regions) relative 1 σ of the signal through structure that may fade with the lattice or may be an edge."""
    r = region_sums(sums, membership)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = lattice_fit(r)["slope"]
        known = np.isfinite(slope)
        faded = slope / (np.where(known, slope, 0.0).sum(0) / known.sum(0)) - 1
        return np.nan_to_num(np.abs(faded * r["l_elsewhere"] / (r["template"] - r["l_template"])))


def lattice_fit(r: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Amplitude of the lattice from sums of any shape: energy, slope and the variance of the slope's numerator."""
    energy = r["ll"] - r["noise_ll"]
    return {"energy": energy, "slope": r["raw_l"] / energy, "spread": r["v_ll"]}
