"""A small session folder to learn from: four simulated series as a microscope would leave them, and their truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atomdiffuser.stages.simulate import simulate

TRUTH_FOLDER = ".truth"
"""Hidden, so that it is no part of the session."""

_DETECTOR = dict(gain_e=0.5, dark_level=100.0, readout_e=0.8)  # raw files do not say: session.yaml does
_COMMON = dict(beam_energy_kV=200.0, frame_time_s=2.0)
_SERIES: dict[str, dict[str, Any]] = {
    "STO_contrast_loss.dm4": dict(
        specimen="SrTiO3", format="dm4", known_current=False, n_frames=12, shape=(256, 256), electrons_per_px=90,
        drift_px_per_frame=2.4, random_walk_px=0.4, damage="uniform", witness="contrast", kinetics="exponential",
        fluence_per_frame=2000.0, critical_fluence=20000.0, pixel_size_nm=0.02, edge=True, vacancies=0.04,
    ),
    "LLZO_mass_loss.emd": dict(
        specimen="LLZO[100]", format="emd", n_frames=10, shape=(224, 288), electrons_per_px=60,
        drift_px_per_frame=2.0, random_walk_px=0.4, rotation_deg_per_frame=0.12, shear_per_frame=0.0006,
        damage="edge", witness="both", kinetics="exponential", fluence_per_frame=1500.0, critical_fluence=11000.0,
        pixel_size_nm=0.025, edge=True, vacancies=0.05,
    ),
    "Si_gentle": dict(
        specimen="Si", format="folder", n_frames=8, shape=(256, 256), electrons_per_px=40, drift_px_per_frame=2.5,
        random_walk_px=0.4, damage="none", fluence_per_frame=250.0, pixel_size_nm=0.02, amorphous_border=True,
        vacancies=0.02,
    ),
    "Au_particle_no_current.emd": dict(
        specimen="nanoparticle", format="emd", known_current=False, n_frames=8, shape=(256, 256), electrons_per_px=90,
        drift_px_per_frame=3.0, random_walk_px=0.5, rotation_deg_per_frame=0.3, damage="perlin", witness="contrast",
        fluence_per_frame=2500.0, critical_fluence=22000.0, pixel_size_nm=0.03,
    ),
}  # fmt: skip

_SESSION = """\
# What the raw files do not say. Every line is optional; without a beam current results are given against time.
defaults:
  dark_level: {dark_level:g}          # counts with the beam blanked
  gain_e: {gain_e:g}              # electrons per count

series:
  STO_contrast_loss.dm4:
    probe_current_pA: {current:.6g}  # Faraday cup, same aperture and spot size
    conditions: {{temperature_K: 295, coating: none}}
"""


def write_demo_session(folder: Path, *, seed: int = 20250810) -> None:
    """Write the demonstration session into `folder`; the same seed writes the same bytes.

    - STO_contrast_loss.dm4: SrTiO3 that turns amorphous under the beam. The mean stays, the lattice fades; F_c is a
      little less than the total fluence. Its beam current is in session.yaml only.
    - LLZO_mass_loss.emd: a garnet that loses material from its edge inwards, while it drifts, turns and shears. Its
      frames are not square.
    - Si_gentle: a folder of single frames of silicon at little fluence. Nothing happens: F_c has a lower bound only.
    - Au_particle_no_current.emd: a gold particle on carbon that loses its order in places. Nobody noted the current.
    - overview.dm4: one single image, which is no time series.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    current = None
    for number, (name, settings) in enumerate(_SERIES.items()):
        truth = folder / TRUTH_FOLDER / f"{Path(name).stem}.npz"
        started = f"2025-06-12T{10 + number}:15:00"
        simulated = simulate(
            folder / name, truth=truth, seed=seed + number, acquired_at=started, **_COMMON, **_DETECTOR, **settings
        )
        if name == "STO_contrast_loss.dm4":
            current = simulated.series.acquisition.probe_current_pA
    simulate(
        folder / "overview.dm4", specimen="nanoparticle", n_frames=1, electrons_per_px=80, pixel_size_nm=0.05,
        seed=seed + len(_SERIES), acquired_at="2025-06-12T09:50:00", **_COMMON, **_DETECTOR,
    )  # fmt: skip
    session = _SESSION.format(current=current, dark_level=_DETECTOR["dark_level"], gain_e=_DETECTOR["gain_e"])
    (folder / "session.yaml").write_text(session, encoding="utf-8")
