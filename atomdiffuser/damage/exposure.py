"""What the beam brought: fluence of each frame and of each region, what counts towards it, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from atomdiffuser.damage.regions import RegionSet
from atomdiffuser.interpolation import affine_coordinates, inside_frame
from atomdiffuser.series import ANGSTROM_PER_NM, ELECTRONS_PER_PICOAMPERE_SECOND, Acquisition

STRIDE_PX = 4


@dataclass(frozen=True)
class Exposure:
    """Fluence of each frame.

    Attributes
    ----------
    table
        The columns of exposure.csv without the gain; fluences are NaN where current, dwell or pixel size is unknown.
    limit
        "step" where neighbouring positions of the probe overlap, so that the fluence is that of the scan; "probe" where
        they leave gaps, so that what is hit gets more than the mean; "unknown" without a probe size.
    """

    table: pd.DataFrame
    limit: str
    current_sigma_percent: float
    current_sigma_source: str

    def added(self) -> np.ndarray:
        """(t,) fluence that each frame adds, gaps included if they count [e⁻/Å²]."""
        gaps = np.where(self.table["gap_counted"], np.nan_to_num(self.table["fluence_gap_e_per_A2"]), 0.0)
        return self.table["fluence_frame_e_per_A2"].to_numpy() + gaps


def describe_exposure(
    acquisition: Acquisition,
    n_frames: int,
    frame_shape: tuple[int, int],
    times_s: np.ndarray | None,
    *,
    count_gaps: bool = False,
    probe_size_nm: float | None = None,
    current_sigma_percent: tuple[float, str] = (10.0, "assumed"),
) -> Exposure:
    """Fluence of each frame.

    Step-limited: F = I·t_dwell/(e·step²). In gaps, which hold the flyback of each line and the wait for the next frame,
    a beam that is not blanked spreads the current over the field. Probe-limited: I·t_dwell over the area of the probe.

    Parameters
    ----------
    times_s
        (t,) start of each frame; None when unknown, and then there are no gaps.
    probe_size_nm
        Diameter of the probe.
    current_sigma_percent
        1 σ of the current's calibration and where it comes from.
    """
    a, full = acquisition, lambda value: np.full(n_frames, value, float)
    per_frame = a.fluence_per_frame_e_per_A2
    scan_s = None if a.dwell_s is None else a.dwell_s * frame_shape[0] * frame_shape[1]
    gap, flux = full(np.nan), np.nan
    if per_frame is not None and scan_s is not None:
        flux = per_frame / scan_s
        gap[0] = 0.0
        if times_s is not None:
            gap[1:] = flux * np.maximum(np.diff(times_s) - scan_s, 0.0)
    probe_area_A2 = None if probe_size_nm is None else np.pi / 4 * (probe_size_nm * ANGSTROM_PER_NM) ** 2
    in_probe = probe_flux = np.nan
    if probe_area_A2 is not None and a.probe_current_pA is not None:
        probe_flux = ELECTRONS_PER_PICOAMPERE_SECOND * a.probe_current_pA / probe_area_A2
        in_probe = probe_flux * a.dwell_s if a.dwell_s is not None else np.nan
    limit = "unknown"
    if probe_size_nm is not None and a.pixel_size_nm is not None:
        limit = "step" if probe_size_nm >= max(a.pixel_size_nm) else "probe"
    frames = full(np.nan if per_frame is None else per_frame)
    counted = np.full(n_frames, bool(count_gaps and np.isfinite(gap).all()))
    table = pd.DataFrame(
        {
            "frame": np.arange(n_frames),
            "time_s": full(np.nan) if times_s is None else np.asarray(times_s, float),
            "fluence_frame_e_per_A2": frames,
            "fluence_gap_e_per_A2": gap,
            "gap_counted": counted,
            "fluence_e_per_A2": np.cumsum(frames + np.where(counted, np.nan_to_num(gap), 0.0)),
            "fluence_probe_e_per_A2": full(in_probe),
            "flux_e_per_A2_s": full(flux),
            "probe_flux_e_per_A2_s": full(probe_flux),
        }
    )
    return Exposure(table, limit, *current_sigma_percent)


def region_fluence(
    exposure: Exposure, frame_from_reference: np.ndarray, valid: np.ndarray, regions: RegionSet
) -> np.ndarray:
    """(t, regions) cumulative fluence of the pixels that a region shows in each frame [e⁻/Å²].

    A place counts the frames whose field of view held it, those that could not be used included (they lie where their
    nearest neighbour does). Where a frame shows nothing of a region, the mean over all of it is given.
    """
    shape = regions.atoms.shape
    rows, columns = (slice(min(STRIDE_PX // 2, n - 1), None, STRIDE_PX) for n in shape)
    atoms = regions.atoms[rows, columns]
    member = (
        np.append(regions.membership, np.zeros((len(regions.regions), 1), bool), 1)[:, atoms]
        .reshape(len(regions.regions), -1)
        .astype(float)
    )
    added, total = exposure.added(), np.zeros(atoms.size)
    fluence = np.full((len(valid), len(regions.regions)), np.nan)
    known = np.flatnonzero(valid)
    for k in range(len(valid)):
        if len(known):
            affine = torch.as_tensor(frame_from_reference[known[np.argmin(np.abs(known - k))]])
            y, x = (v[0][rows, columns].numpy().ravel() for v in affine_coordinates(affine[None], shape))
            inside = inside_frame(y, x, shape).astype(float)
        else:
            inside = np.ones(atoms.size)
        total = total + added[k] * inside
        seen, whole = member @ inside, member.sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            fluence[k] = np.where(seen > 0, member @ (total * inside) / seen, member @ total / whole)
    return fluence
