"""The demonstration session against its truth: drift, lattice hops, fluence, damage, and how long it took.

Limits: every frame's drift within 0.15 px, no lattice hop, fluence to 1 %.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from atomdiffuser import geometry
from atomdiffuser.estimation.drift_tables import affines_of
from atomdiffuser.io.map_store import read_maps
from atomdiffuser.io.store import read_frames
from atomdiffuser.io.tables import read_table

LIMITS = {"drift_error_px": 0.15, "lattice_hops": 0, "fluence_error_percent": 1.0}
TRUTH = ".truth"


def run(folder: Path) -> pd.DataFrame:
    """Write the demonstration session, analyse it with the workflow, compare; a row a series."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "atomdiffuser", "demo", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    table = compare(folder / "session")
    table.attrs["seconds"] = time.perf_counter() - started
    return table


def compare(session: Path) -> pd.DataFrame:
    """Results of a session of simulated series against the truth stored with it; a row a series."""
    rows = []
    for truth_file in sorted((session / TRUTH).glob("*.npz")):
        with np.load(truth_file, allow_pickle=False) as arrays:
            truth = {name: arrays[name] for name in arrays.files}
        options = json.loads(truth_file.with_suffix(".json").read_text(encoding="utf-8"))["options"]
        rows.append(
            {"series": truth_file.stem, **_compare_series(session / "results" / truth_file.stem, truth, options)}
        )
    return pd.DataFrame(rows)


def _compare_series(results: Path, truth: dict[str, np.ndarray], options: dict) -> dict[str, float]:
    trajectory = read_table(results / "trajectory.parquet")
    shape = read_frames(results / "frames.ome.zarr").frame_shape
    measured, true = torch.as_tensor(affines_of(trajectory)), torch.as_tensor(truth["frame_from_reference"])
    error = geometry.displacement_rms_px(measured, true, shape).numpy()
    nothing = geometry.displacement_rms_px(geometry.identity(len(true)), true, shape).numpy()
    pairs = read_table(results / "pairs.parquet")
    pair_true = true[pairs["moving"].tolist()] @ geometry.invert(true[pairs["reference"].tolist()])
    pair_error = geometry.displacement_rms_px(torch.as_tensor(affines_of(pairs)), pair_true, shape).numpy()
    period = np.linalg.norm(truth["lattice_vectors_px"], axis=-1).min() if truth["lattice_vectors_px"].size else np.inf
    maps, last = read_maps(results / "decay.zarr"), len(trajectory) - 1
    off = lambda name, where: float(
        np.sqrt(np.nanmean((maps.at_full_resolution(name, last, shape) - truth[name][last])[where] ** 2))
    )
    crystal = truth["lattice_amplitude"] > 0.3 * truth["lattice_amplitude"].max()
    return {
        "frames": len(trajectory),
        "valid": int(trajectory["valid"].sum()),
        "drift_error_px": float(np.max(error)),
        "sigma_px": float(trajectory["displacement_sigma_px"].max()),
        "do_nothing_px": float(nothing.max()),
        "lattice_hops": int((error > period / 2).sum() + (pair_error[pairs["valid"]] > period / 2).sum()),
        "fluence_error_percent": _fluence_error(trajectory, options),
        "intensity_rmse": off("intensity", np.ones(shape, bool)),
        "contrast_rmse": off("contrast", crystal),
        **_critical_fluence(results, options),
    }


def _fluence_error(trajectory: pd.DataFrame, options: dict) -> float:
    """Largest relative error of the cumulative fluence; NaN where the series has none, as it must."""
    true = options["fluence_per_frame"] * np.arange(1, len(trajectory) + 1)
    return float(np.max(np.abs(trajectory["fluence_e_per_A2"] / true - 1)) * 100)


def _critical_fluence(results: Path, options: dict) -> dict[str, float]:
    """Contrast of the whole field: fitted and true, where damage is uniform (elsewhere there is no single truth)."""
    table = pd.read_csv(results / "critical_fluence.csv")
    row = table[(table["region"] == "whole") & (table["witness"] == "contrast")].iloc[0]
    uniform = options["damage"] == "uniform"
    return {
        "critical_fluence": row["critical_fluence"],
        "lo95": row["critical_fluence_lo95"],
        "hi95": row["critical_fluence_hi95"],
        "true": options["critical_fluence"] if uniform else np.nan,
    }
