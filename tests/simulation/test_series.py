import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atomdiffuser.errors import SettingsError
from atomdiffuser.geometry import apply_affine, invert, pixel_grid
from atomdiffuser.simulation import SimulationOptions, simulate_frames, simulate_series
from atomdiffuser.simulation.damage import KINETICS, PATTERNS, WITNESSES
from atomdiffuser.simulation.randomness import RandomStreams
from atomdiffuser.simulation.scenes import named_specimen

SHAPE = (56, 72)


def simulated(specimen="SrTiO3", **options):
    return simulate_series(specimen, **{"n_frames": 4, "shape": SHAPE, "pixel_size_nm": 0.025, **options})


def test_frames_follow_the_physics_to_the_last_digit():
    """A specimen rendered by hand at A⁻¹p, times the maps at the same points, is what the frames expect."""
    options = dict(
        damage="uniform", witness="contrast", kinetics="exponential", fluence_per_frame=1000, critical_fluence=4000,
        rotation_deg_per_frame=0.3, shear_per_frame=0.002, electrons_per_px=30, gain_drift=0.02,
    )  # fmt: skip
    item = named_specimen("SrTiO3", SHAPE, (0.025, 0.025), RandomStreams(5), vacancies=0.05)
    result = simulated(item, **options)
    for k in range(4):
        reference_from_frame = invert(torch.tensor(result.frame_from_reference[k]))
        points = apply_affine(reference_from_frame, pixel_grid(SHAPE))[None]
        contrast = math.exp(-(k + 1) * 1000 / 4000)
        by_hand = 30 * result.frame_gain[k] * (item.base(points) + contrast * item.lattice(points))
        assert np.allclose(result.expected[k], by_hand[0], atol=2e-3)
        assert np.allclose(result.contrast[k], math.exp(-k / 4))


@pytest.mark.parametrize("damage", PATTERNS)
def test_truth_is_relative_to_the_first_frame(damage):
    result = simulated(damage=damage, witness="both")
    assert np.all(result.intensity[0] == 1) and np.all(result.contrast[0] == 1)
    assert np.array_equal(result.frame_from_reference[0], np.eye(3))
    assert result.contrast[-1].min() < 0.9 and np.isfinite(result.contrast).all()
    assert result.intensity.shape == result.contrast.shape == result.expected.shape == (4, *SHAPE)


def test_the_same_seed_gives_the_same_frames_and_another_gives_others():
    one, again, other = (simulated(seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.series.frames, again.series.frames)
    assert not np.array_equal(one.frame_from_reference, other.frame_from_reference)
    difference = one.series.frames[0].astype(float) - other.series.frames[0]
    assert difference.std() > 1.3 * (one.expected[0].mean() * 2) ** 0.5  # more than shot noise: another specimen


def test_noise_is_independent_from_frame_to_frame():
    result = simulated(drift_px_per_frame=0.0, random_walk_px=0, damage="none")
    noise = (result.series.frames - result.expected).reshape(4, -1)
    assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.08
    assert noise.var() == pytest.approx(result.expected.mean(), rel=0.05)


def test_changing_the_detector_leaves_the_specimen_and_its_drift_alone():
    plain, noisy = simulated(), simulated(readout_e=3.0, dark_level=50.0)
    assert np.array_equal(plain.expected, noisy.expected)
    assert np.array_equal(plain.frame_from_reference, noisy.frame_from_reference)


def test_streaming_gives_the_same_frames():
    result = simulated(seed=3)
    for k, frame in enumerate(simulate_frames("SrTiO3", n_frames=4, shape=SHAPE, pixel_size_nm=0.025, seed=3)):
        assert np.array_equal(frame.counts, result.series.frames[k])
        assert np.array_equal(frame.frame_from_reference, result.frame_from_reference[k])
        assert np.array_equal(frame.contrast, result.contrast[k])


def test_a_longer_series_begins_like_a_shorter_one():
    short, long = simulated(n_frames=3), simulated(n_frames=5)
    assert np.array_equal(short.series.frames, long.series.frames[:3])


def test_fluence_comes_out_as_asked():
    result = simulated(fluence_per_frame=1234.0, pixel_size_nm=(0.02, 0.03), frame_time_s=3.0)
    assert result.series.acquisition.fluence_per_frame_e_per_A2 == pytest.approx(1234.0)
    assert result.series.times_s.tolist() == [0, 3, 6, 9]
    assert result.series.acquisition.dwell_s * SHAPE[0] * SHAPE[1] == pytest.approx(0.9 * 3.0)
    unknown = simulated(fluence_per_frame=None).series.acquisition
    assert unknown.fluence_per_frame_e_per_A2 is None and unknown.missing_for_fluence() == ["probe_current_pA"]


def test_lattice_vectors_are_those_of_the_picture():
    result = simulated(vacancies=0, wedge=0, damage="none")
    assert np.linalg.norm(result.lattice_vectors_px, axis=1) == pytest.approx([0.3905 / 0.025] * 2)
    item = named_specimen("SrTiO3", SHAPE, (0.025, 0.025), RandomStreams(0).child("specimen"), vacancies=0, wedge=0)
    points = pixel_grid((10, 10))[None]
    moved = item.lattice(points + torch.tensor(result.lattice_vectors_px[1]))
    assert torch.allclose(moved, item.lattice(points), atol=1e-6)
    assert simulated("amorphous").lattice_vectors_px is None


def test_amorphisation_keeps_the_local_mean():
    result = simulated(
        "Si", shape=(96, 128), drift_px_per_frame=0.0, random_walk_px=0, critical_fluence=2000, vacancies=0, wedge=0
    )
    first, last = result.expected[0], result.expected[-1]
    assert last.mean() == pytest.approx(first.mean(), rel=0.01)
    # The first frame has seen one F_c already, the last four.
    assert last.std() / first.std() == pytest.approx(math.exp(-3), abs=0.05)


def test_mass_loss_dims_the_frame():
    result = simulated(witness="intensity", drift_px_per_frame=0.0, critical_fluence=10000, random_walk_px=0)
    assert result.expected[-1].mean() / result.expected[0].mean() == pytest.approx(math.exp(-0.6), rel=0.01)
    assert np.all(result.contrast == 1)


@pytest.mark.parametrize("damage", ["perlin", "holes", "edge"])
def test_critical_fluence_map_says_where_one_over_e_is_left(damage):
    options = dict(damage=damage, fluence_per_frame=500.0, critical_fluence=3000.0, n_frames=2)
    result = simulated("LLZO[100]", **options)
    local = result.critical_fluence_map
    assert np.allclose(result.contrast[1], np.exp(-500.0 / local), atol=1e-5)
    assert 1 / np.mean(1 / local) == pytest.approx(3000.0, rel=0.15)


def test_no_damage_has_no_critical_fluence():
    result = simulated(damage="none")
    assert np.all(np.isinf(result.critical_fluence_map)) and np.all(result.contrast == 1)


def test_growth_brightens():
    result = simulated(damage="contamination", witness="intensity", growth=0.3, critical_fluence=4000)
    assert 1.01 < result.intensity[-1].max() < 1.3 and result.intensity.min() >= 1


def test_drift_during_the_scan_is_an_affine_that_truth_knows():
    """Frames with a steady drift during the scan still equal the reference picture under the truth."""
    late = 1 + 2 * 0.9 / SHAPE[0]  # what moved 2 px down is also scanned 2 rows later
    drift = (2 / late, 1 / late)
    options = dict(drift_px_per_frame=drift, random_walk_px=0, damage="none", within_frame_drift=True)
    result = simulated(vacancies=0.1, **options)
    still = simulated(vacancies=0.1, **{**options, "within_frame_drift": False})
    assert np.abs(result.expected[0] - still.expected[0]).max() > 0.5  # the first frame is sheared, too
    assert np.allclose(result.frame_from_reference[:, :2, :2], np.eye(2), atol=1e-9)  # all sheared alike
    assert np.allclose(result.frame_from_reference[2, :2, 2], [4, 2], atol=1e-9)
    assert np.allclose(result.expected[2, 4:, 2:], result.expected[0, :-4, :-2], atol=1e-2)
    assert np.abs(result.expected[2, 4:, 2:] - still.expected[0, :-4, :-2]).max() > 0.5


def test_jitter_and_distortion_do_not_touch_the_truth():
    plain, uneven = simulated(), simulated(scan_jitter_px=0.3, distortion_px=0.5)
    assert np.array_equal(plain.frame_from_reference, uneven.frame_from_reference)
    assert np.abs(plain.expected - uneven.expected).max() > 1


def test_gain_drift_scales_frames_alone():
    plain, drifting = simulated(), simulated(gain_drift=0.05)
    ratio = drifting.expected / np.maximum(plain.expected, 1e-6)
    assert np.allclose(ratio, drifting.frame_gain[:, None, None], rtol=1e-4) and drifting.frame_gain[-1] != 1
    assert np.array_equal(plain.contrast, drifting.contrast)


def test_eight_bit_frames():
    result = simulated(dtype="uint8", gain_e=0.2, electrons_per_px=30)
    assert result.series.frames.dtype == np.uint8 and result.series.frames.max() > 120


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(damage="rust"), "damage 'rust' is not known; known are none, uniform"),
        (dict(witness="nobody"), "witness 'nobody' is not known"),
        (dict(kinetics="sudden"), "kinetics 'sudden' is not known"),
        (dict(shape=(4, 90)), r"shape is \(4, 90\)"),
        (dict(electrons_per_px=0), "electrons_per_px is 0, expected a number above 0"),
        (dict(scan_duty=1.5), "scan_duty is 1.5, expected a share"),
        (dict(colour="red"), "simulation option 'colour' is not known; known are acquired_at"),
    ],
)
def test_impossible_options_are_refused(option, message):
    with pytest.raises(SettingsError, match=message):
        simulated(**option)


def test_every_option_is_documented():
    for field in dataclasses.fields(SimulationOptions):
        assert field.default is not dataclasses.MISSING


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["SrTiO3", "graphene", "nanoparticle", "amorphous"]), st.sampled_from(PATTERNS),
    st.sampled_from(WITNESSES), st.sampled_from(KINETICS), st.floats(2, 500), st.integers(0, 10**6),
)  # fmt: skip
def test_any_series_is_finite_and_its_counts_fit_what_is_expected(specimen, damage, witness, kinetics, electrons, seed):
    result = simulate_series(
        specimen, shape=(24, 32), n_frames=3, damage=damage, witness=witness, kinetics=kinetics,
        electrons_per_px=electrons, seed=seed, pixel_size_nm=0.03,
    )  # fmt: skip
    assert np.isfinite(result.expected).all() and result.expected.min() >= 0
    assert np.nanmax(result.intensity) <= 1 and np.nanmax(result.contrast) <= 1 + 1e-6
    excess = result.series.frames.astype(float).sum() - result.expected.sum()
    assert abs(excess) < 6 * result.expected.sum() ** 0.5
