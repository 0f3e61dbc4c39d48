"""Fluence by known numbers: per frame, with gaps, within the probe, and of regions that drift out of view."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomdiffuser import geometry
from atomdiffuser.damage.exposure import describe_exposure, region_fluence
from atomdiffuser.damage.gain import estimate_gain
from atomdiffuser.damage.regions import grid_regions
from atomdiffuser.series import Acquisition

STEP = np.sqrt(0.05) / 10  # step area 0.05 Å²
KNOWN = Acquisition(pixel_size_nm=(STEP, STEP), dwell_s=20e-6, probe_current_pA=50.0)
SHAPE = (40, 50)
SCAN_S = 20e-6 * 40 * 50


def exposure(acquisition=KNOWN, n=4, times=None, **options):
    return describe_exposure(acquisition, n, SHAPE, times, **options)


def test_fluence_of_a_frame_and_flux() -> None:
    """50 pA for 20 µs on 0.05 Å²: 1.25e5 e⁻/Å² (Egerton, D = I·T/A)."""
    table = exposure().table
    assert table["fluence_frame_e_per_A2"].to_numpy() == pytest.approx(1.2483e5, rel=1e-4)
    assert table["fluence_e_per_A2"].iloc[-1] == pytest.approx(4 * 1.2483e5, rel=1e-4)
    assert table["flux_e_per_A2_s"].iloc[0] == pytest.approx(1.2483e5 / SCAN_S, rel=1e-4)


def test_gaps_count_only_when_asked() -> None:
    times = np.arange(4) * 2 * SCAN_S  # as long between the frames as in them
    without, with_gaps = exposure(times=times), exposure(times=times, count_gaps=True)
    assert without.table["fluence_gap_e_per_A2"].to_numpy() == pytest.approx([0, *[1.2483e5] * 3], rel=1e-4)
    assert not without.table["gap_counted"].any() and with_gaps.table["gap_counted"].all()
    ratio = with_gaps.table["fluence_e_per_A2"].iloc[-1] / without.table["fluence_e_per_A2"].iloc[-1]
    assert ratio == pytest.approx(7 / 4, rel=1e-6)
    assert with_gaps.added().sum() == pytest.approx(with_gaps.table["fluence_e_per_A2"].iloc[-1])


def test_probe_and_step_limit() -> None:
    wide, narrow = exposure(probe_size_nm=0.1), exposure(probe_size_nm=0.01)
    assert (wide.limit, narrow.limit, exposure().limit) == ("step", "probe", "unknown")
    area = np.pi / 4 * 1.0**2  # Å²
    assert wide.table["fluence_probe_e_per_A2"].iloc[0] == pytest.approx(6.2415e6 * 50 * 20e-6 / area, rel=1e-4)
    assert narrow.table["fluence_probe_e_per_A2"].iloc[0] > narrow.table["fluence_frame_e_per_A2"].iloc[0]
    assert wide.table["probe_flux_e_per_A2_s"].iloc[0] == pytest.approx(6.2415e6 * 50 / area, rel=1e-4)


def test_unknown_current_leaves_fluence_unknown() -> None:
    table = exposure(Acquisition(pixel_size_nm=(0.02, 0.02), dwell_s=1e-6), probe_size_nm=0.1).table
    columns = [c for c in table if "fluence" in c or "flux" in c]
    assert table[columns].isna().all(axis=None)


def moved(*columns_px: float) -> np.ndarray:
    shift = torch.tensor([[0.0, c] for c in columns_px], dtype=torch.float64)
    return geometry.translation(shift).numpy()


def test_what_a_frame_shows_of_a_region_counts() -> None:
    """The sample drifts right by half the field: its right half leaves, having been seen once."""
    given, regions = exposure(n=3), grid_regions(SHAPE, (1, 2))
    one = given.table["fluence_frame_e_per_A2"].iloc[0]
    found = region_fluence(given, moved(0, 26, 26), np.ones(3, bool), regions) / one
    assert found[0] == pytest.approx([1, 1, 1])
    assert found[2, 1] == pytest.approx(3)  # the left half stayed in view
    assert found[2, 2] == pytest.approx(1)  # the right half is out of view, and got no more
    assert found[2, 0] == pytest.approx(3)  # of the whole field the frame shows what was always seen


def test_what_comes_back_into_view_has_had_less() -> None:
    given, regions = exposure(n=3), grid_regions(SHAPE, (1, 2))
    found = region_fluence(given, moved(0, 60, 0), np.ones(3, bool), regions)
    assert found[2] / given.table["fluence_frame_e_per_A2"].iloc[0] == pytest.approx([2, 2, 2])


def test_frames_that_could_not_be_used_have_exposed_all_the_same() -> None:
    given, regions = exposure(n=3), grid_regions(SHAPE, (1, 1))
    affines = moved(0, 0, 0)
    affines[1] = np.nan
    found = region_fluence(given, affines, np.array([True, False, True]), regions)
    assert found[2, 0] / given.table["fluence_frame_e_per_A2"].iloc[0] == pytest.approx(3)


# --- gain -----------------------------------------------------------------------------------------

X = 2000.0 * np.arange(1, 25)


def test_random_gain_is_told_from_a_smooth_loss() -> None:
    random = np.random.default_rng(2)
    gain = 1 + 0.05 * random.standard_normal(24)
    signal = np.exp(-X / 60000) * gain * (1 + 0.002 * random.standard_normal(24))
    found = estimate_gain(X, signal, np.full(24, 0.002))
    assert found.scatter == pytest.approx(0.05, rel=0.35)
    assert np.corrcoef(found.factor, gain)[0, 1] > 0.93
    assert 2 < found.ambiguity_percent(X) < 6


def test_no_gain_is_seen_in_noise_alone() -> None:
    random, seen = np.random.default_rng(3), 0
    for _ in range(20):
        signal = np.exp(-X / 60000) * (1 + 0.003 * random.standard_normal(24))
        seen += estimate_gain(X, signal, np.full(24, 0.003)).scatter > 0
    assert seen <= 3


def test_few_frames_show_no_gain() -> None:
    found = estimate_gain(X[:4], np.array([1, 0.9, np.nan, 1.1]), np.full(4, 0.001))
    assert found.scatter == 0 and np.isnan(found.factor[2]) and found.factor[0] == 1
