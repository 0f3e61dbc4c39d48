"""Two detectors of one acquisition through the whole workflow: one drift for both, each with its own quality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_sessions import Session

from atomdiffuser import geometry
from atomdiffuser.estimation.drift_tables import affines_of
from atomdiffuser.io.raw_writers import write_velox_emd
from atomdiffuser.io.store import read_array, read_attributes
from atomdiffuser.io.tables import read_table
from atomdiffuser.simulation import simulate_series

pytestmark = pytest.mark.workflow

SHAPE = (96, 112)
N = 5


@pytest.fixture(scope="module")
def truth():
    return simulate_series(
        "SrTiO3", n_frames=N, shape=SHAPE, electrons_per_px=150, drift_px_per_frame=(1.3, -0.9), random_walk_px=0.2,
        pixel_size_nm=0.025, vacancies=0.1, seed=8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def analysed(truth, tmp_path_factory) -> Session:
    """HAADF as simulated; BF, its faint negative, whose frame 3 is blank."""
    folder = tmp_path_factory.mktemp("channels")
    haadf = np.asarray(truth.series.frames)
    bright = np.random.default_rng(1).poisson(60 - 0.3 * truth.expected).astype(haadf.dtype)
    bright[3] = 0
    a = truth.series.acquisition
    write_velox_emd(
        folder / "both.emd", {"BF": bright, "HAADF": haadf}, frame_time_s=a.frame_time_s, pixel_size_nm=a.pixel_size_nm,
        beam_energy_kV=200.0, probe_current_pA=a.probe_current_pA, dwell_s=a.dwell_s,
    )  # fmt: skip
    session = Session(folder)
    run = session.run("--until", "align")
    assert run.code == 0, run.said
    return session


def trajectory(session: Session, series: str):
    return read_table(session.results / series / "trajectory.parquet")


def test_both_have_the_drift_of_the_better_one(analysed, truth) -> None:
    haadf, bright = trajectory(analysed, "both-HAADF"), trajectory(analysed, "both-BF")
    assert haadf.attrs["drift_from"] == "" and bright.attrs["drift_from"] == "both-HAADF"
    usable = [0, 1, 2, 4]
    assert np.array_equal(affines_of(haadf)[usable], affines_of(bright)[usable])
    error = geometry.displacement_rms_px(
        torch.as_tensor(affines_of(haadf)), torch.as_tensor(truth.frame_from_reference), SHAPE
    )
    assert error.max() < 0.15 and np.hypot(haadf["drift_y_px"], haadf["drift_x_px"]).max() > 5
    pairs = read_table(analysed.results / "both-BF" / "pairs.parquet")
    assert pairs.attrs["drift_from"] == "both-HAADF" and len(pairs) > 4


def test_each_has_its_own_quality(analysed) -> None:
    haadf, bright = trajectory(analysed, "both-HAADF"), trajectory(analysed, "both-BF")
    assert haadf["valid"].all() and (haadf["flags"] == "").all()
    assert bright["valid"].tolist() == [True, True, True, False, True]
    assert bright.loc[3, "flags"] == "blank" and bright.loc[3, "reason"] == "blank: every pixel is 0"


def test_the_aligned_negative_lies_on_the_aligned_image(analysed, truth) -> None:
    """BF = 60 − 0.3·HAADF + noise: means over the aligned frames are as opposite as the noise lets them be."""
    mean = {}
    for channel in ("HAADF", "BF"):
        store = analysed.results / f"both-{channel}" / "aligned.ome.zarr"
        mean[channel], count = read_array(store, "mean"), read_array(store, "count")
        assert count.max() == (5 if channel == "HAADF" else 4)
        assert read_attributes(store)["interpolation"] == "linear"
    both = np.isfinite(mean["HAADF"]) & np.isfinite(mean["BF"])
    assert np.corrcoef(mean["HAADF"][both], mean["BF"][both])[0, 1] < -0.8
    raw = np.random.default_rng(1).poisson(60 - 0.3 * truth.expected).mean(0)
    assert np.corrcoef(mean["HAADF"][both], raw[both])[0, 1] > -0.6  # without drift correction


def test_nothing_is_done_again_and_own_drift_can_be_asked_for(analysed) -> None:
    again = analysed.run("--until", "align", "--dry-run")
    assert again.code == 0 and again.planned == set()
    planned = analysed.run("--dry-run", config=("register={'channels': 'own'}",)).planned
    assert {"register both-BF", "align both-BF", "register both-HAADF"} <= planned
