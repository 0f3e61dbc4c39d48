"""The demonstration session through the whole workflow, against the truth that was simulated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hyperspy.api as hs
import numpy as np
import pandas as pd
import pytest

from atomdiffuser.io.status import read_status
from benchmarks import demo_truth

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    "frames.ome.zarr", "frames.zspy", "pairs.parquet", "trajectory.parquet", "aligned.ome.zarr", "aligned.zspy",
    "decay.zarr", "damage.parquet", "damage.csv", "critical_fluence.csv", "status.json", "report.html",
]  # fmt: skip


def demo(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "atomdiffuser", "demo", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def session(demo_session) -> Path:
    return demo_session


@pytest.fixture(scope="module")
def table(session) -> pd.DataFrame:
    return demo_truth.compare(session).set_index("series")


def test_every_frame_s_drift_is_within_its_limit(table):
    assert (table["valid"] == table["frames"]).all()
    assert (table["drift_error_px"] <= demo_truth.LIMITS["drift_error_px"]).all(), table["drift_error_px"]
    assert (table["do_nothing_px"] > 100 * demo_truth.LIMITS["drift_error_px"]).all()  # what not correcting would cost


def test_no_registration_hopped_by_a_lattice_vector(table):
    assert (table["lattice_hops"] == 0).all()


def test_fluence_is_known_to_one_percent_or_unknown(table):
    assert np.isnan(table.loc["Au_particle_no_current", "fluence_error_percent"])
    assert (table["fluence_error_percent"].drop("Au_particle_no_current") <= 1.0).all()


def test_the_interval_of_the_critical_fluence_holds_its_true_value(table):
    row = table.loc["STO_contrast_loss"]
    assert row["lo95"] < row["true"] < row["hi95"]
    assert row["hi95"] - row["lo95"] < 0.1 * row["true"]


def test_undamaged_silicon_has_a_lower_bound_only(session):
    fits = pd.read_csv(session / "results" / "Si_gentle" / "critical_fluence.csv")
    assert fits["lower_bound"].all()
    whole = fits[(fits["region"] == "whole") & (fits["witness"] == "contrast")].iloc[0]
    assert whole["loss_lo95"] < 0 < whole["loss_hi95"]


def test_all_files_of_a_series_are_there_and_open_in_hyperspy(session):
    for series in ("STO_contrast_loss", "LLZO_mass_loss", "Si_gentle", "Au_particle_no_current"):
        folder = session / "results" / series
        assert [name for name in FILES if not (folder / name).exists()] == []
        assert read_status(folder / "status.json").state == "ok"
        assert {s.metadata.General.title for s in hs.load(str(folder / "decay.zspy"), lazy=True)} >= {"contrast"}
        assert hs.load(str(folder / "damage_maps.zspy"), lazy=True)
    aligned = hs.load(str(session / "results" / "LLZO_mass_loss" / "aligned.zspy"), lazy=True)
    assert aligned.data.shape == (10, 224, 288)
    assert [a.units for a in aligned.axes_manager._axes] == ["s", "nm", "nm"]
    assert aligned.axes_manager[-1].scale == pytest.approx(0.025)


def test_a_second_run_does_nothing(session):
    def stamps() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in (session / "results").rglob("*.parquet")}

    before = stamps()
    done = demo(session.parent)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr
    assert stamps() == before
