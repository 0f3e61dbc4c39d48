"""Drift of a short series: with excluded, blank and spoilt frames, hops, and tables of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measured_pairs import SHAPE, error_px, rms, series, source

from atomdiffuser import estimate_series
from atomdiffuser import geometry as g
from atomdiffuser.config import RegisterSettings
from atomdiffuser.estimation.drift import estimate_drift
from atomdiffuser.estimation.drift_tables import affines_of, pairs_table, trajectory_table
from atomdiffuser.estimation.register import register_from
from atomdiffuser.series import FrameSeries
from atomdiffuser.trajectory import solve_trajectory

PAIRS_ALONE = RegisterSettings(groupwise_rounds=0)


@pytest.fixture(scope="module")
def simulated():
    return series(rotation_deg_per_frame=0.1)


@pytest.fixture(scope="module")
def found(simulated):
    return estimate_drift(source(simulated), RegisterSettings())


@pytest.fixture(scope="module")
def spoilt(simulated):
    """Frame 2 blank, frame 3 excluded, frame 4 with dead pixels."""
    frames = simulated.series.frames.astype(np.float32)
    frames[2] = 7.0
    frames[4, 10:14, 20:30] = np.nan
    frames[4, 50, 60] = np.inf
    return estimate_drift(source(FrameSeries(frames, excluded=(3,))), PAIRS_ALONE)


def test_the_trajectory_is_recovered_within_its_sigma(found, simulated) -> None:
    error = error_px(found.trajectory.frame_from_reference, simulated.frame_from_reference)
    nothing = error_px(np.eye(3)[None], simulated.frame_from_reference)
    sigma = found.trajectory.displacement_sigma_px
    assert np.all(error[1:] < 4 * sigma[1:]) and error.max() < 0.3 and nothing.max() > 6
    assert 0.4 < rms(error[1:] / sigma[1:]) < 1.6 and sigma[0] == 0
    assert found.frame_reason == [""] * 6 and found.registration.valid.all()


def test_composing_neighbours_the_wrong_way_round_is_no_trajectory(found, simulated) -> None:
    steps = found.registration.moving_from_reference[:5]
    frames = [np.eye(3)]
    for step in steps.numpy():
        frames.append(frames[-1] @ np.linalg.inv(step))
    assert error_px(np.stack(frames), simulated.frame_from_reference).max() > 6


def test_pairs_are_every_lag_with_neighbours_first(found) -> None:
    assert found.pairs[:5].tolist() == [[k, k + 1] for k in range(5)]
    assert {tuple(p) for p in found.pairs[5:].tolist()} == {(k, k + lag) for lag in (2, 4) for k in range(6 - lag)}


def test_progress_reaches_its_total(simulated) -> None:
    seen, settings = [], RegisterSettings(groupwise_rounds=2)
    estimate_drift(source(simulated.series.frames[:3]), settings, lambda done, total: seen.append((done, total)))
    done, total = zip(*seen, strict=True)
    assert set(total) == {3 + 2 * 3} and done[-1] == 9 and sorted(done) == list(done)


# --- frames that cannot be used -------------------------------------------------------------------


def test_blank_and_excluded_frames_have_no_place_and_say_why(spoilt) -> None:
    assert spoilt.frame_reason == ["", "", "blank: every pixel is 7.0", "excluded in session.yaml", "", ""]
    assert torch.isnan(spoilt.trajectory.frame_from_reference[[2, 3]]).all()
    assert np.isnan(spoilt.trajectory.displacement_sigma_px[[2, 3]]).all()
    assert not np.isin(spoilt.pairs, (2, 3)).any() and [1, 4] in spoilt.pairs.tolist()


def test_dead_pixels_do_not_spoil_the_rest(spoilt, simulated) -> None:
    error = error_px(spoilt.trajectory.frame_from_reference, simulated.frame_from_reference)
    assert np.nanmax(error) < 0.3


def test_the_reference_is_the_first_frame_that_can_be_used(simulated) -> None:
    frames = simulated.series.frames[:4]
    result = estimate_drift(source(FrameSeries(frames, excluded=(0,))), PAIRS_ALONE)
    true = simulated.frame_from_reference[:4] @ np.linalg.inv(simulated.frame_from_reference[1])
    error = error_px(result.trajectory.frame_from_reference, true)
    assert result.reference_frame == 1 and np.isnan(error[0]) and error[1] < 1e-9 and np.nanmax(error) < 0.3


def test_a_frame_of_noise_is_left_out_and_the_others_stay(rng, simulated) -> None:
    frames = simulated.series.frames[:5].copy()
    frames[2] = rng.poisson(frames.mean(), SHAPE)
    result = estimate_drift(source(frames), PAIRS_ALONE)
    assert result.frame_reason[2] == "cannot be tied to the reference frame: no common structure above the noise"
    error = error_px(result.trajectory.frame_from_reference, simulated.frame_from_reference[:5])
    assert np.isnan(error[2]) and np.nanmax(error) < 0.3


def test_a_hop_of_one_pair_is_found_by_the_others(simulated, monkeypatch) -> None:
    """The pair (1, 3), third of the far ones, is moved by a lattice vector after its fit."""
    vector = torch.eye(3, dtype=torch.float64)
    vector[:2, 2] = torch.as_tensor(simulated.lattice_vectors_px[0])

    def hopping(reference, moving, start, options):
        result = register_from(reference, moving, start, options)
        result.moving_from_reference[2] = vector @ result.moving_from_reference[2]
        return result

    monkeypatch.setattr("atomdiffuser.estimation.pair_work.register_from", hopping)
    result = estimate_drift(source(simulated.series.frames[:5]), PAIRS_ALONE)
    bad = result.pairs.tolist().index([1, 3])
    assert np.flatnonzero(~result.registration.valid.numpy()).tolist() == [bad]
    assert (
        "contradicts the other pairs by 15" in result.registration.reason[bad]
        and "lattice hop?" in result.registration.reason[bad]
    )
    assert error_px(result.trajectory.frame_from_reference, simulated.frame_from_reference[:5]).max() < 0.3


def test_drift_beyond_half_a_cell_is_followed_where_vacancies_mark_the_place() -> None:
    s = series(n_frames=3, drift_px_per_frame=(9.0, -7.0))
    result = estimate_drift(source(s), PAIRS_ALONE)
    assert np.linalg.norm(s.lattice_vectors_px[0]) < 16
    assert error_px(result.trajectory.frame_from_reference, s.frame_from_reference).max() < 0.3


def test_small_steps_on_a_perfect_lattice_do_not_hop() -> None:
    s = series(n_frames=4, vacancies=0.0, wedge=0.0, drift_px_per_frame=1.5)
    result = estimate_drift(source(s), PAIRS_ALONE)
    assert error_px(result.trajectory.frame_from_reference, s.frame_from_reference).max() < 0.3
    assert float(result.registration.hop_probability[:3].min()) > 0.05  # and the doubt stays on record


def test_no_frame_but_the_reference_is_without_error(rng) -> None:
    """A lattice that fades: pair variances go with 1/(κᵢ·κⱼ), over two orders of magnitude, and scatter. Each
    frame's σ stays near that of its pair with the first; least squares on plain variances left good frames nothing."""
    n, shape = 7, (100, 130)
    pairs = np.array([(i, j) for lag in (1, 2, 4) for i in range(n) if (j := i + lag) < n])
    for fading in (0.3, 0.7):
        left = np.exp(-fading * np.arange(n))
        for _ in range(10):
            variance = 1 / (left[pairs[:, 0]] * left[pairs[:, 1]]) * np.exp(rng.normal(0, 0.3, len(pairs)))
            unit = torch.diag(torch.tensor([1e-9, 1e-9, 5e-3, 1e-9, 1e-9, 5e-3], dtype=torch.float64))
            covariance = torch.as_tensor(variance)[:, None, None] * unit
            solved = solve_trajectory(n, pairs, g.identity(len(pairs)), covariance, shape=shape)
            with_first = pairs[:, 0] == 0
            expected = np.sqrt(variance[with_first] * 1e-2)
            ratio = solved.displacement_sigma_px[pairs[with_first, 1]] / expected
            assert ratio.min() > 0.5 and ratio.max() < 2


# --- tables ---------------------------------------------------------------------------------------


def test_the_trajectory_table_is_in_pixels_and_nanometres(found, simulated) -> None:
    table = trajectory_table(found, simulated.series)
    assert np.allclose(affines_of(table), found.trajectory.frame_from_reference)
    last = table.iloc[-1]
    centre = np.append((np.array(SHAPE) - 1) / 2, 1)
    true = (simulated.frame_from_reference[-1] @ centre)[:2] - centre[:2]
    assert [last["drift_y_px"], last["drift_x_px"]] == pytest.approx(list(true), abs=0.3)
    assert last["drift_y_nm"] == pytest.approx(0.025 * last["drift_y_px"]) and last["drift_x_nm"] == pytest.approx(
        0.025 * last["drift_x_px"]
    )
    assert last["rotation_deg"] == pytest.approx(
        np.degrees(np.arctan2(*simulated.frame_from_reference[-1][[1, 0], 0])), abs=0.15
    )
    assert last["time_s"] == 5 and last["fluence_e_per_A2"] == pytest.approx(12000) and table["valid"].all()


def test_the_table_of_pairs_knows_times_and_invalid_pairs(found, spoilt, simulated) -> None:
    table = pairs_table(found, simulated.series)
    assert np.allclose(table["dt_s"], table["lag"]) and np.allclose(table["fluence_e_per_A2"], 2000 * table["lag"])
    assert table["score"].between(0.5, 1).all() and table["residual_px"].max() < 0.2
    bare = pairs_table(spoilt, FrameSeries(simulated.series.frames))
    assert bare["dt_s"].isna().all() and bare["fluence_e_per_A2"].isna().all()


# --- the public function --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def estimated(simulated):
    frames = simulated.series.frames[:4].copy()
    frames[2] = 0
    return estimate_series(frames, times=[0.0, 1.0, 2.5, 4.0], settings=PAIRS_ALONE)


def test_series_estimates_are_on_the_reference_grid(estimated, simulated) -> None:
    assert estimated.valid.tolist() == [True, True, False, True] and estimated.reference_frame == 0
    assert (
        estimated.intensity.shape == estimated.contrast.shape == (4, *SHAPE) and estimated.contrast.dtype == np.float32
    )
    assert np.all(estimated.intensity[0] == 1) and np.array_equal(estimated.frame_from_reference[0], np.eye(3))
    true, got = simulated.contrast[3], estimated.contrast[3]
    assert rms(got - true) < 0.04 < 0.2 < rms(1 - true)
    assert np.isnan(got).any() and np.isfinite(got[20:-20, 20:-20]).all()


def test_a_blank_frame_has_neither_place_nor_maps(estimated) -> None:
    assert estimated.reason[2] == "blank: every pixel is 0" and np.isnan(estimated.frame_from_reference[2]).all()
    assert np.isnan(estimated.intensity[2]).all() and np.isnan(estimated.contrast[2]).all()


def test_times_are_carried_into_the_pairs(estimated) -> None:
    pairs = estimated.pairs.set_index(["reference", "moving"])
    assert pairs.loc[(1, 3), "dt_s"] == 3.0 and pairs.loc[(0, 1), "dt_s"] == 1.0


def test_one_frame_is_its_own_reference(simulated) -> None:
    alone = estimate_series(simulated.series.frames[:1])
    assert (
        alone.valid.tolist() == [True]
        and np.array_equal(alone.frame_from_reference[0], np.eye(3))
        and len(alone.pairs) == 0
    )


def test_a_series_of_blank_frames_has_no_valid_frame() -> None:
    found = estimate_series(np.zeros((3, *SHAPE), np.uint16))
    assert not found.valid.any() and set(found.reason) == {"blank: every pixel is 0"}
    assert np.isnan(found.frame_from_reference[1:]).all()


def test_nothing_is_invented_for_blank_frames() -> None:
    found = estimate_series(np.zeros((3, *SHAPE), np.uint16))
    assert np.isnan(found.frame_from_reference).all() and np.isnan(found.intensity).all()
    assert np.isnan(found.displacement_sigma_px).all()


def test_results_do_not_depend_on_batches_or_threads(simulated, monkeypatch) -> None:
    frames = simulated.series.frames[:3]
    plain = estimate_drift(source(frames), RegisterSettings()).trajectory.frame_from_reference
    before = torch.get_num_threads()
    monkeypatch.setattr("atomdiffuser.estimation.frame_source.CPU_BATCH_PX", 1)
    try:
        torch.set_num_threads(3 if before != 3 else 2)
        other = estimate_drift(source(frames), RegisterSettings()).trajectory.frame_from_reference
    finally:
        torch.set_num_threads(before)
    assert error_px(plain, other).max() < 1e-5
