"""Simulated series → raw microscope file, and a file with what is true of it."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from atomdiffuser._version import __version__
from atomdiffuser.errors import SettingsError
from atomdiffuser.io.replacing import replacing_file
from atomdiffuser.simulation.series import SimulatedSeries, simulate_series

Format = Literal["dm4", "emd", "folder"]


def simulate(
    output: Path,
    *,
    format: Format = "dm4",
    truth: Path | None = None,
    specimen: str = "SrTiO3",
    device: str = "cpu",
    known_current: bool = True,
    **options: Any,
) -> SimulatedSeries:
    """Simulate a series and write it as a microscope would have.

    Parameters
    ----------
    output
        File to write; for "folder", the folder of single-frame DM4 files.
    format
        One DM4 file, one Velox-like EMD file, or a folder of DM4 files.
    truth
        NPZ file for the exact drift and maps; a JSON file of the same name goes beside it. Not written when None.
    specimen, options
        See `simulate_series`.
    known_current
        Whether the raw file tells the beam current.

    Raises
    ------
    SettingsError
        When the format or an option is unknown.
    """
    if format not in get_args(Format):
        raise SettingsError(f"format {format!r} is not known; known are {', '.join(get_args(Format))}")
    options.setdefault("name", Path(output).stem)
    simulated = simulate_series(specimen, device=device, **options)
    write_raw(Path(output), simulated, format=format, known_current=known_current)
    if truth is not None:
        write_truth(Path(truth), simulated, specimen=specimen)
    return simulated


def write_raw(output: Path, simulated: SimulatedSeries, *, format: Format, known_current: bool = True) -> None:
    """Write the frames of a simulated series, calibrated, as DM4, EMD or a folder of DM4 files.

    One frame alone is written as a single image.
    """
    from atomdiffuser.io.raw_writers import write_dm4, write_velox_emd

    acquisition = simulated.series.acquisition
    calibration = dict(
        frame_time_s=acquisition.frame_time_s, pixel_size_nm=acquisition.pixel_size_nm,
        beam_energy_kV=acquisition.beam_energy_kV, dwell_s=acquisition.dwell_s,
        probe_current_pA=acquisition.probe_current_pA if known_current else None,
    )  # fmt: skip
    frames, started = simulated.series.frames, acquisition.acquired_at
    if format != "folder" and len(frames) == 1:
        frames = frames[0]
    output.parent.mkdir(parents=True, exist_ok=True)
    if format == "dm4":
        write_dm4(output, frames, acquired_at=started, **calibration)
    elif format == "emd":
        write_velox_emd(output, frames, acquired_at=started, detector=acquisition.detector, **calibration)
    else:
        output.mkdir(exist_ok=True)
        digits = max(3, len(str(len(frames))))
        for k, frame in enumerate(frames):
            moment = datetime.fromisoformat(started) + timedelta(seconds=k * acquisition.frame_time_s)
            path = output / f"frame_{k + 1:0{digits}d}.dm4"
            write_dm4(path, frame, acquired_at=moment.isoformat(), **calibration)


def write_truth(path: Path, simulated: SimulatedSeries, *, specimen: str) -> None:
    """Write what is true of a simulated series: arrays as NPZ, settings as JSON beside it."""
    arrays = {
        "frame_from_reference": simulated.frame_from_reference,
        "intensity": simulated.intensity,
        "contrast": simulated.contrast,
        "frame_gain": simulated.frame_gain,
        "critical_fluence_map": simulated.critical_fluence_map.astype(np.float32),
        "lattice_amplitude": simulated.lattice_amplitude,
        "times_s": simulated.series.times_s,
    }
    if simulated.lattice_vectors_px is not None:
        arrays["lattice_vectors_px"] = simulated.lattice_vectors_px
    with replacing_file(path) as temporary, temporary.open("wb") as file:  # given a name, numpy would append .npz
        np.savez_compressed(file, **arrays)
    acquisition = simulated.series.acquisition
    about = {
        "kind": "simulation truth",
        "version": __version__,
        "specimen": specimen,
        "options": dataclasses.asdict(simulated.options),
        "acquisition": {**dataclasses.asdict(acquisition), "sources": {}},
        "fluence_per_frame_e_per_A2": acquisition.fluence_per_frame_e_per_A2,
        "arrays": {
            "frame_from_reference": "(t, 3, 3) affines on (y, x, 1) pixel points",
            "intensity, contrast": "(t, y, x) relative to frame 0, on its grid",
            "frame_gain": "(t,) global gain relative to frame 0",
            "critical_fluence_map": "(y, x) [e/A^2]; inf where nothing happens",
            "lattice_amplitude": "(y, x) local standard deviation of the crystal's structure in frame 0 [electrons]",
            "lattice_vectors_px": "(2, 2) rows: shortest lattice vectors (y, x) [px]; absent without a crystal",
        },
    }
    text = json.dumps(about, indent=1, default=str) + "\n"
    with replacing_file(path.with_suffix(".json")) as temporary:
        temporary.write_text(text, encoding="utf-8")
