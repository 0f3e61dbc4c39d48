"""Crystal, amorphous material, vacuum, and bands along the edge, told apart in the undamaged reference frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from atomdiffuser.damage.regions import RegionMask
from atomdiffuser.damage.spots import find_shells, spot_window
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.prepare import EMPTY_SHARE, PreparedFrames, shows_lattice
from atomdiffuser.interpolation import smooth

SMALLEST_SHARE = 0.04  # of the frame: a smaller class is no region
CRYSTAL_SHARE = 0.2  # of the crystal's own lattice energy, from which material counts as crystal
LEAST_SIGNAL_TO_NOISE = 3.0  # of that energy, for a lattice to be seen at all
MOST_SHELLS = 6
EDGE_BANDS = 2


@dataclass(frozen=True)
class Segmentation:
    """Masks (Y, X) of a frame, and the distance of its material from vacuum [px] (inf where there is none)."""

    crystal: np.ndarray
    amorphous: np.ndarray
    vacuum: np.ndarray
    edge_distance_px: np.ndarray

    def labels(self) -> np.ndarray:
        """(Y, X): 0 crystal, 1 amorphous, 2 vacuum."""
        return np.where(self.vacuum, 2, np.where(self.amorphous, 1, 0))


def segment(source: FrameSource, prepared: PreparedFrames) -> Segmentation:
    """Tell materials apart in one prepared frame (n = 1): by its local mean, and by how much structure is lattice.

    Lattice is what the frame's Fourier spots make of it: speckle has none.
    """
    base = prepared.base
    typical = _typical(base)
    reach = max(1, int(source.scales.base_px / 3))
    vacuum = _opened((base < EMPTY_SHARE * typical)[0].cpu().numpy(), reach)
    material = ~vacuum
    distance = np.full(base.shape[-2:], np.inf)
    if vacuum.mean() >= SMALLEST_SHARE:
        distance = np.where(vacuum, 0.0, scipy.ndimage.distance_transform_edt(material))
    crystal = _crystal(source, prepared, typical, material, distance)
    return Segmentation(crystal, material & ~crystal, vacuum, distance)


def _crystal(source: FrameSource, prepared: PreparedFrames, typical: Tensor, material, distance) -> np.ndarray:
    scales, nothing = source.scales, np.zeros_like(material)
    possible = shows_lattice(prepared.base, scales)
    structure = torch.where(possible, prepared.lattice, 0.0)[0].cpu().numpy()
    period = 0.7 * scales.period_px if scales.period_px else None  # narrower in real space than for amplitudes
    shells = find_shells(structure, scales.period_px, MOST_SHELLS)
    if period is None or not shells:
        return nothing
    passed = np.ones(structure.shape)
    for shell in shells:
        passed *= 1 - spot_window(structure.shape, shell, period)
    np.subtract(1, passed, out=passed)
    spots = np.fft.ifft2(np.fft.fft2(structure) * passed).real
    level = prepared.base.clamp_min(EMPTY_SHARE * typical)[0].cpu().numpy()
    variance = source.noise.variance(prepared.base.clamp_min(0)) * prepared.noise_share.clamp_max(1.0)
    noise = variance[0].cpu().numpy() * (passed**2).mean()
    window = 0.8 * scales.base_px
    local = lambda image: smooth(torch.as_tensor(image)[None], window)[0].numpy()
    energy = local((spots**2 - noise) / level**2) / local(possible[0].cpu().numpy().astype(float)).clip(0.2)
    scatter = float(np.median(noise / level**2))
    inner = material & possible[0].cpu().numpy()
    strongest = np.quantile(energy[inner], 0.8) if inner.any() else 0.0
    if strongest < LEAST_SIGNAL_TO_NOISE * scatter:
        return nothing
    crystal = energy > max(CRYSTAL_SHARE * strongest, scatter)
    # At the edge the slope of the local mean passes for structure: what lies beside decides.
    crystal = _grown_into(crystal, material & ~inner) & material
    reach = max(1, int(window / 2))
    return ~_opened(~_opened(crystal, reach), reach) & material


def automatic_masks(found: Segmentation, band_nm: float, pixel_size_nm: tuple[float, float] | None) -> list[RegionMask]:
    """Regions from a segmentation: each material where there are at least two, and bands along the edge to vacuum."""
    masks = []
    classes = {"crystal": found.crystal, "amorphous": found.amorphous, "vacuum": found.vacuum}
    large = {name: mask for name, mask in classes.items() if mask.mean() >= SMALLEST_SHARE}
    if len(large) > 1:
        masks += [RegionMask(name, mask, "automatic") for name, mask in large.items()]
    if "vacuum" in large:
        step, unit = (float(np.mean(pixel_size_nm)), "nm") if pixel_size_nm else (1.0, "px")
        width = band_nm if pixel_size_nm else 50 * band_nm
        distance = found.edge_distance_px * step
        for band in range(EDGE_BANDS):
            low, high = band * width, (band + 1) * width
            mask = ~found.vacuum & (distance > low) & (distance <= high)
            if mask.mean() >= SMALLEST_SHARE / 4:
                masks.append(RegionMask(f"edge_{low:g}_{high:g}_{unit}", mask, "automatic"))
        interior = ~found.vacuum & (distance > EDGE_BANDS * width)
        if interior.mean() >= SMALLEST_SHARE:
            masks.append(RegionMask(f"interior_{EDGE_BANDS * width:g}_{unit}", interior, "automatic"))
    return masks


def _typical(base: Tensor) -> Tensor:
    """Level of the material, also where vacuum takes most of the frame."""
    return torch.quantile(base.flatten(1)[:, ::7], 0.75, dim=1)[:, None, None].clamp_min(1e-12)


def _opened(mask: np.ndarray, reach: int) -> np.ndarray:
    """The mask without what is thinner than twice `reach`; the rim of the frame is no border."""
    kept = scipy.ndimage.binary_erosion(mask, iterations=reach, border_value=1)
    return scipy.ndimage.binary_dilation(kept, iterations=reach) & mask


def _grown_into(mask: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mask with pixels of `where` taken from the nearest pixel outside `where`."""
    if not where.any() or where.all():
        return mask
    rows, columns = scipy.ndimage.distance_transform_edt(where, return_distances=False, return_indices=True)
    return np.where(where, mask[rows, columns], mask)
