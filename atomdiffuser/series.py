"""One time series: lazy frames together with their calibration, times and what is known of the acquisition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from atomdiffuser.errors import MetadataError, ShapeError

ELECTRONS_PER_PICOAMPERE_SECOND = 6.241509074e6
"""Electrons per second in 1 pA: 1e-12 / 1.602176634e-19 C (SI, exact)."""

ANGSTROM_PER_NM = 10.0


def fluence_per_frame(probe_current_pA: float, dwell_s: float, pixel_size_nm: tuple[float, float]) -> float:
    """Step-limited fluence of one frame, F = I·t_dwell / (e·step²) [e⁻/Å²].

    Parameters
    ----------
    probe_current_pA
        Beam current in the probe [pA].
    dwell_s
        Time per pixel [s].
    pixel_size_nm
        Scan step along (y, x) [nm].

    Returns
    -------
    Electrons per Å² that one frame brings (Egerton, Microscopy Today 2013, D = I·T/A).

    Examples
    --------
    >>> round(fluence_per_frame(50, 20e-6, (0.05**0.5 / 10, 0.05**0.5 / 10)))  # step area 0.05 Å²
    124830
    """
    step_area_A2 = pixel_size_nm[0] * pixel_size_nm[1] * ANGSTROM_PER_NM**2
    return ELECTRONS_PER_PICOAMPERE_SECOND * probe_current_pA * dwell_s / step_area_A2


@dataclass(frozen=True)
class Acquisition:
    """What is known of how a series was recorded; None means unknown, and stays unknown.

    `sources` maps a field name to where its value comes from: "file", "session.yaml" or "assumed".

    Examples
    --------
    >>> known = Acquisition(pixel_size_nm=(0.02, 0.02), dwell_s=2e-6)
    >>> known.fluence_per_frame_e_per_A2, known.missing_for_fluence()
    (None, ['probe_current_pA'])
    >>> round(known.with_overrides("mine", probe_current_pA=30).fluence_per_frame_e_per_A2)
    9362
    """

    pixel_size_nm: tuple[float, float] | None = None  # scan step along (y, x)
    frame_time_s: float | None = None  # start of a frame to start of the next
    dwell_s: float | None = None
    probe_current_pA: float | None = None
    beam_energy_kV: float | None = None
    detector: str | None = None
    scan_rotation_deg: float | None = None
    acquired_at: str | None = None  # ISO 8601, start of the first frame
    instrument: str | None = None
    dark_level: float | None = None  # detector counts without beam
    gain_e: float | None = None  # electrons per count
    sources: Mapping[str, str] = field(default_factory=dict)

    POSITIVE = ("frame_time_s", "dwell_s", "probe_current_pA", "beam_energy_kV", "gain_e")

    def __post_init__(self) -> None:
        if self.pixel_size_nm is not None and not all(0 < p < 1e6 for p in self.pixel_size_nm):
            raise MetadataError(
                f"pixel_size_nm is {self.pixel_size_nm}, expected two positive numbers below 1e6 nm; "
                "set pixel_size_nm for this series in session.yaml"
            )
        for name in self.POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise MetadataError(f"{name} is {value}, expected a positive number; set {name} in session.yaml")

    @property
    def fluence_per_frame_e_per_A2(self) -> float | None:
        """Fluence one frame brings [e⁻/Å²]; None while current, dwell or pixel size is unknown."""
        if self.probe_current_pA is None or self.dwell_s is None or self.pixel_size_nm is None:
            return None
        return fluence_per_frame(self.probe_current_pA, self.dwell_s, self.pixel_size_nm)

    def missing_for_fluence(self) -> list[str]:
        """Fields that must be known before fluence can be computed."""
        return [n for n in ("probe_current_pA", "dwell_s", "pixel_size_nm") if getattr(self, n) is None]

    def with_overrides(self, source: str, **values: Any) -> Acquisition:
        """A copy in which `values` replace what was read, each marked as coming from `source`."""
        return replace(self, **values, sources={**self.sources, **dict.fromkeys(values, source)})


@dataclass(frozen=True)
class FrameSeries:
    """An ordered stack of frames of one field of view.

    Attributes
    ----------
    frames
        (t, y, x) array-like, lazy (Dask) where it comes from a file; native dtype; chunked by whole frames.
    times_s
        (t,) start of each frame relative to the first [s]; None when unknown (frame numbers are used then).
    acquisition
        Calibration and beam conditions.
    name
        The original name, for display.
    excluded
        Frame numbers that the user excluded in session.yaml.
    original_metadata
        The file's own metadata tree, as read.
    """

    frames: Any
    times_s: np.ndarray | None = None
    acquisition: Acquisition = field(default_factory=Acquisition)
    name: str = "series"
    excluded: tuple[int, ...] = ()
    original_metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.frames.shape) != 3:
            raise ShapeError(f"frames of {self.name!r} have shape {self.frames.shape}, expected (t, y, x)")
        if self.times_s is not None:
            times = np.asarray(self.times_s, dtype=float)
            if times.shape != (self.n_frames,):
                raise ShapeError(f"{self.name!r} has {self.n_frames} frames but times of shape {times.shape}")
            if not np.all(np.isfinite(times)) or np.any(np.diff(times) <= 0):
                raise MetadataError(f"frame times of {self.name!r} do not increase; set frame_time_s in session.yaml")
            object.__setattr__(self, "times_s", times)
        bad = [k for k in self.excluded if not 0 <= k < self.n_frames]
        if bad:
            raise MetadataError(f"excluded_frames {bad} of {self.name!r} are outside 0…{self.n_frames - 1}")

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return int(self.frames.shape[0])

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(Y, X) pixels of a frame."""
        return int(self.frames.shape[1]), int(self.frames.shape[2])

    def frame(self, index: int) -> np.ndarray:
        """One frame in memory, (y, x), native dtype."""
        return np.asarray(self.frames[index])

    def cumulative_fluence_e_per_A2(self) -> np.ndarray | None:
        """(t,) fluence the sample had received when each frame was finished [e⁻/Å²]; None when unknown.

        Counts the recorded scans only; flyback and waiting times between frames are not counted.
        """
        per_frame = self.acquisition.fluence_per_frame_e_per_A2
        return None if per_frame is None else per_frame * np.arange(1, self.n_frames + 1)
