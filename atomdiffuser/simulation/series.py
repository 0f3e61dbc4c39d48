"""A whole time series with exact truth: what was asked, what the microscope would have recorded, and what was true."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atomdiffuser.errors import SettingsError
from atomdiffuser.geometry import invert
from atomdiffuser.series import ANGSTROM_PER_NM, ELECTRONS_PER_PICOAMPERE_SECOND, Acquisition, FrameSeries
from atomdiffuser.simulation.damage import KINETICS, PATTERNS, WITNESSES, Damage, random_sensitivity
from atomdiffuser.simulation.detection import Detector, gain_drift
from atomdiffuser.simulation.drift import long_range_distortion, scan_jitter, simulate_drift, with_scan
from atomdiffuser.simulation.randomness import Draws, RandomStreams
from atomdiffuser.simulation.scenes import named_specimen
from atomdiffuser.simulation.specimen import ScanGrid, Specimen


@dataclass(frozen=True)
class SimulationOptions:
    """Everything about a series but its specimen.

    Attributes
    ----------
    electrons_per_px
        Detected electrons at the brightest point of the first frame.
    drift_px_per_frame
        A length in a random direction, or (y, x).
    damage, witness, kinetics
        Where it acts (`damage.PATTERNS`, or "none"), on what, and how it goes with fluence. "contrast" is amorphisation
        that keeps the mass; "both" is one map that multiplies everything, as published.
    critical_fluence
        Fluence [e⁻/Å²] at which the property stands at 1/e where the sensitivity is at its mean over the frame;
        everywhere for uniform damage. The local value is in `critical_fluence_map`.
    growth
        When given, the property does not fall but grows towards 1 + growth.
    fluence_per_frame
        [e⁻/Å²]; frame k shows what is left after (k + 1) of them. Current and dwell time follow from it. None: the
        damage goes on as if it were 2000, and the beam current is reported as unknown.
    scan_duty
        Share of the frame time that the scan takes.
    within_frame_drift
        Whether lines are displaced by the drift during the scan. Truth stays exact: it is an affine.
    scan_jitter_px, distortion_px
        Scan-line offsets and long-range distortion on top, drawn for every frame. Truth stays the affine without them.
    gain_drift
        Relative random walk of the global gain a frame.
    vacancies, edge, wedge, grain_boundary, amorphous_border, orientation_deg
        Of a named specimen, see `scenes.named_specimen`.
    """

    n_frames: int = 12
    shape: tuple[int, int] = (256, 256)
    electrons_per_px: float = 20.0
    drift_px_per_frame: float | tuple[float, float] = 1.5
    random_walk_px: float = 0.3
    rotation_deg_per_frame: float = 0.0
    strain_per_frame: float = 0.0
    shear_per_frame: float = 0.0
    within_frame_drift: bool = False
    scan_jitter_px: float = 0.0
    distortion_px: float = 0.0
    damage: str = "uniform"
    witness: str = "contrast"
    kinetics: str = "exponential"
    critical_fluence: float = 15000.0
    growth: float | None = None
    latency: float = 0.3
    fluence_per_frame: float | None = 2000.0
    pixel_size_nm: float | tuple[float, float] = 0.02
    frame_time_s: float = 1.0
    scan_duty: float = 0.9
    gain_drift: float = 0.0
    dark_level: float = 0.0
    gain_e: float = 1.0
    readout_e: float = 0.0
    dtype: str = "uint16"
    vacancies: float = 0.01
    edge: bool = False
    wedge: float = 0.1
    grain_boundary: bool = False
    amorphous_border: bool = False
    orientation_deg: float | None = None
    beam_energy_kV: float = 200.0
    detector: str = "HAADF"
    acquired_at: str = "2025-06-12T10:00:00"
    name: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for key, allowed in (("damage", ("none", *PATTERNS)), ("witness", WITNESSES), ("kinetics", KINETICS)):
            if getattr(self, key) not in allowed:
                raise SettingsError(f"{key} {getattr(self, key)!r} is not known; known are {', '.join(allowed)}")
        if len(self.shape) != 2 or min(self.shape) < 8:
            raise SettingsError(f"shape is {self.shape}, expected rows and columns, at least 8 each")
        for key in ("electrons_per_px", "critical_fluence", "frame_time_s"):
            if not getattr(self, key) > 0:
                raise SettingsError(f"{key} is {getattr(self, key)}, expected a number above 0")
        if not 0 < self.scan_duty <= 1:
            raise SettingsError(f"scan_duty is {self.scan_duty}, expected a share above 0 and at most 1")


@dataclass(frozen=True)
class SimulatedFrame:
    """One frame and its truth, as `SimulatedSeries` has them for all."""

    index: int
    counts: np.ndarray
    expected: np.ndarray
    frame_from_reference: np.ndarray
    intensity: np.ndarray
    contrast: np.ndarray
    gain: float


@dataclass(frozen=True)
class SimulatedSeries:
    """A series and what is exactly true of it.

    Attributes
    ----------
    series
        Frames as recorded.
    frame_from_reference
        (t, 3, 3) float64; identity for frame 0.
    intensity, contrast
        (t, y, x) float32 decay maps relative to frame 0, on its grid; 1 everywhere for frame 0.
    expected
        (t, y, x) float32 electrons without noise, gain of the frame included.
    frame_gain
        (t,) global gain.
    critical_fluence_map
        (y, x) local critical fluence [e⁻/Å²] on the reference grid; inf where nothing happens.
    lattice_vectors_px
        (2, 2) rows: the shortest lattice vectors (y, x) in the reference frame; None without a crystal.
    lattice_amplitude
        (y, x) local standard deviation of the crystal's structure in frame 0, in electrons.
    """

    series: FrameSeries
    frame_from_reference: np.ndarray
    intensity: np.ndarray
    contrast: np.ndarray
    expected: np.ndarray
    frame_gain: np.ndarray
    critical_fluence_map: np.ndarray
    lattice_vectors_px: np.ndarray | None
    lattice_amplitude: np.ndarray
    options: SimulationOptions


def simulate_series(specimen: str | Specimen = "SrTiO3", *, device: str = "cpu", **options: Any) -> SimulatedSeries:
    """A time series of a specimen that drifts and is damaged, with exact truth.

    Parameters
    ----------
    specimen
        A name from `scenes.SPECIMENS`, or a `Specimen` of one.
    device
        Where it is rendered.
    options
        Fields of `SimulationOptions`.

    Raises
    ------
    SettingsError
        When an option is unknown or out of range.

    Examples
    --------
    >>> from atomdiffuser import simulate_series
    >>> simulated = simulate_series("Si", n_frames=3, shape=(48, 64), damage="none", seed=1)
    >>> simulated.series.frames.shape, simulated.frame_from_reference.shape
    ((3, 48, 64), (3, 3, 3))
    >>> simulate_series("Si", n_frame=3)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    atomdiffuser.errors.SettingsError: simulation option 'n_frame' is not known; known are ...
    """
    scenario = _Scenario(specimen, _options(options), device)
    frames = list(scenario.frames())
    stacked = {key: np.stack([getattr(f, key) for f in frames]) for key in
               ("counts", "expected", "frame_from_reference", "intensity", "contrast", "gain")}  # fmt: skip
    return SimulatedSeries(
        series=FrameSeries(stacked["counts"], scenario.times_s(), scenario.acquisition(), scenario.name),
        frame_from_reference=stacked["frame_from_reference"],
        intensity=stacked["intensity"], contrast=stacked["contrast"],
        expected=stacked["expected"], frame_gain=stacked["gain"], critical_fluence_map=scenario.critical_fluence_map(),
        lattice_vectors_px=scenario.lattice_vectors_px(), lattice_amplitude=scenario.lattice_amplitude(),
        options=scenario.options,
    )  # fmt: skip


def simulate_frames(
    specimen: str | Specimen = "SrTiO3", *, device: str = "cpu", **options: Any
) -> Iterator[SimulatedFrame]:
    """The frames of `simulate_series` one after the other, for series that do not fit into memory."""
    return _Scenario(specimen, _options(options), device).frames()


def _options(options: dict) -> SimulationOptions:
    known = {f.name for f in dataclasses.fields(SimulationOptions)}
    if unknown := sorted(set(options) - known):
        raise SettingsError(f"simulation option {unknown[0]!r} is not known; known are {', '.join(sorted(known))}")
    return SimulationOptions(**options)


class _Scenario:
    """All that is drawn before the first frame."""

    def __init__(self, specimen: str | Specimen, options: SimulationOptions, device: str) -> None:
        self.options, self.device = options, device
        self.streams = RandomStreams(options.seed, device)
        size = options.pixel_size_nm
        y, x = (size, size) if isinstance(size, int | float) else size
        self.pixel_size_nm = (float(y), float(x))
        self.name = options.name or (specimen if isinstance(specimen, str) else "specimen")
        if isinstance(specimen, str):
            specimen = named_specimen(
                specimen, options.shape, self.pixel_size_nm, self.streams.child("specimen"),
                orientation_deg=options.orientation_deg, vacancies=options.vacancies, edge=options.edge,
                wedge=options.wedge, grain_boundary=options.grain_boundary, amorphous_border=options.amorphous_border,
            )  # fmt: skip
        self.specimen = specimen.to(device)
        self.detector = Detector(options.gain_e, options.dark_level, options.readout_e, options.dtype)
        self.frame_from_specimen = self._drift().to(device)
        self.gain = gain_drift(options.n_frames, options.gain_drift, self.streams.child("gain"))
        reference = ScanGrid(invert(self.frame_from_specimen[:1]), options.shape)
        self.reference_points = reference.points()
        self.damage = self._damage()
        self.sensitivity = self.damage.sensitivity.at(self.reference_points)
        seen = self.specimen.render(reference)
        self.amplitude = seen.amplitude[0]
        self.mean_sensitivity = float(self.sensitivity[seen.base > 0.3 * seen.base.max()].mean())

    def frames(self) -> Iterator[SimulatedFrame]:
        o = self.options
        frame_from_reference = self.frame_from_specimen @ invert(self.frame_from_specimen[:1])
        frame_from_reference[0] = torch.eye(3)
        jitter = scan_jitter(o.n_frames, o.shape[0], o.scan_jitter_px, self.streams.child("jitter"))
        distortion = self.streams.child("distortion")
        shots = self.streams.child("detection")
        first: tuple[Tensor, Tensor] | None = None
        for k in range(o.n_frames):
            warp = None
            if o.distortion_px:
                warp = long_range_distortion(1, o.shape, o.distortion_px, distortion.child(f"frame {k}")).to(
                    self.device
                )
            grid = ScanGrid(
                invert(self.frame_from_specimen[k : k + 1]), o.shape,
                jitter[k : k + 1].to(self.device) if o.scan_jitter_px else None, warp,
            )  # fmt: skip
            seen = self.specimen.render(grid)
            exposure = self._exposure(k)
            intensity, contrast = self.damage.maps(seen.points, exposure)
            signal = (seen.base * intensity + seen.lattice * contrast).clamp_min(0)
            expected = signal[0] * (o.electrons_per_px * float(self.gain[k]))
            maps = self.damage.maps(self.reference_points, exposure, sensitivity=self.sensitivity)
            first = first or maps
            truth = [_ratio(now, start)[0] for now, start in zip(maps, first, strict=True)]
            yield SimulatedFrame(
                index=k,
                counts=self.detector.detect(expected, shots.child(f"frame {k}")),
                expected=expected.float().cpu().numpy(),
                frame_from_reference=frame_from_reference[k].cpu().numpy(),
                intensity=truth[0], contrast=truth[1], gain=float(self.gain[k]),
            )  # fmt: skip

    def times_s(self) -> np.ndarray:
        return np.arange(self.options.n_frames) * self.options.frame_time_s

    def acquisition(self) -> Acquisition:
        """Dwell time from the frame time; current so that a frame brings the fluence that was asked."""
        o = self.options
        dwell_s = o.frame_time_s * o.scan_duty / (o.shape[0] * o.shape[1])
        area_A2 = self.pixel_size_nm[0] * self.pixel_size_nm[1] * ANGSTROM_PER_NM**2
        current = None
        if o.fluence_per_frame is not None:
            current = o.fluence_per_frame * area_A2 / (ELECTRONS_PER_PICOAMPERE_SECOND * dwell_s)
        return Acquisition(
            pixel_size_nm=self.pixel_size_nm, frame_time_s=o.frame_time_s, dwell_s=dwell_s, probe_current_pA=current,
            beam_energy_kV=o.beam_energy_kV, detector=o.detector, scan_rotation_deg=0.0, acquired_at=o.acquired_at,
            instrument="simulated", dark_level=o.dark_level, gain_e=o.gain_e,
        )  # fmt: skip

    def critical_fluence_map(self) -> np.ndarray:
        rate = self._rate()
        field = self.sensitivity[0] * rate
        local = torch.where(field > 1e-12, self.options.critical_fluence * self.mean_sensitivity / field, torch.inf)
        return local.cpu().numpy()

    def lattice_vectors_px(self) -> np.ndarray | None:
        if not torch.any(self.amplitude > 0):
            return None
        linear = self.frame_from_specimen[0, :2, :2]
        return (self.specimen.lattice_vectors[0] @ linear.mT).cpu().numpy()

    def lattice_amplitude(self) -> np.ndarray:
        return (self.amplitude * self.options.electrons_per_px).float().cpu().numpy()

    def _drift(self) -> Tensor:
        o = self.options
        affines = simulate_drift(
            o.n_frames, o.shape, self.streams.child("drift"), drift_px_per_frame=o.drift_px_per_frame,
            random_walk_px=o.random_walk_px, rotation_deg_per_frame=o.rotation_deg_per_frame,
            strain_per_frame=o.strain_per_frame, shear_per_frame=o.shear_per_frame,
        )  # fmt: skip
        return with_scan(affines, o.shape, o.scan_duty) if o.within_frame_drift else affines

    def _rate(self) -> float:
        return 0.0 if self.options.damage == "none" else 1.0

    def _damage(self) -> Damage:
        o, draws = self.options, Draws(1, self.streams.child("damage"))
        pattern = torch.tensor([0 if o.damage == "none" else PATTERNS.index(o.damage)])
        front = self.specimen.edges[:, 0, :3].cpu() if self.specimen.edges.shape[1] else None
        rate = torch.full((1,), self._rate(), dtype=torch.float64)
        untouched = torch.zeros_like(rate)
        growth = torch.full_like(rate, torch.nan if o.growth is None else o.growth)
        on_intensity, on_contrast = o.witness != "contrast", o.witness != "intensity"
        return Damage(
            sensitivity=random_sensitivity(draws, o.shape, pattern, front=front),
            intensity_rate=rate if on_intensity else untouched, contrast_rate=rate if on_contrast else untouched,
            intensity_growth=growth, contrast_growth=growth, kind=torch.tensor([KINETICS.index(o.kinetics)]),
            latency=torch.full_like(rate, o.latency), headroom=self.specimen.headroom.cpu(),
        ).to(self.device)  # fmt: skip

    def _exposure(self, k: int) -> Tensor:
        per_frame = 2000.0 if self.options.fluence_per_frame is None else self.options.fluence_per_frame
        exposure = (k + 1) * per_frame / (self.options.critical_fluence * self.mean_sensitivity)
        return torch.tensor([exposure], dtype=torch.float64, device=self.device)


def _ratio(now: Tensor, start: Tensor) -> np.ndarray:
    """What is left relative to frame 0; NaN where frame 0 had next to nothing left."""
    return torch.where(start > 1e-3, now / start, torch.nan).float().cpu().numpy()
