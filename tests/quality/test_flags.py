"""Each fault, put into single frames of a drifting and damaged series, is found there and nowhere else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from faulty_frames import N, flagged, out_of_focus, quality, simulated, smeared, with_faults

from atomdiffuser.config import RegisterSettings
from atomdiffuser.quality.counts import count_facts
from atomdiffuser.quality.flags import FrameFlags, find_jumps
from atomdiffuser.series import FrameSeries


@pytest.mark.parametrize(
    ("specimen", "options"),
    [
        ("SrTiO3", dict(damage="none")),
        ("SrTiO3", dict(damage="uniform", critical_fluence=3000.0, electrons_per_px=50.0)),
        ("Si", dict(damage="edge", edge=True, electrons_per_px=5.0)),
        ("nanoparticle", dict(damage="holes")),
        ("amorphous", dict(damage="contamination", growth=0.8)),
        ("SrTiO3", dict(gain_drift=0.1, random_walk_px=2.0)),
    ],
)
def test_neither_drift_nor_damage_nor_vacuum_is_a_fault(specimen, options) -> None:
    """Uniform damage takes 96 % of the lattice here, and gain drift a tenth of the signal from frame to frame."""
    assert flagged(quality(simulated(specimen, **options))) == {}


@pytest.mark.parametrize(("electrons", "shape"), [(5.0, (256, 256)), (20.0, (128, 160)), (200.0, (128, 160))])
def test_blur_and_defocus_are_found_and_told_apart(electrons, shape) -> None:
    series = simulated(electrons_per_px=electrons, shape=shape)
    found = quality(series, with_faults(series, {3: out_of_focus, 6: smeared}))
    assert flagged(found) == {3: "defocus", 6: "blur"}
    assert "in all directions" in found.flags.reasons[3][0] and "along one direction" in found.flags.reasons[6][0]
    others = np.delete(found.sharpness, [3, 6])
    assert np.nanmin(others) > 0.8 > max(found.sharpness[3], found.sharpness[6])


def test_blur_px_is_the_width_of_the_blur() -> None:
    """A Gaussian of σ = 2 px; the motion of `smeared` has σ = 2·√2 px along the diagonal and none across."""
    from scipy.ndimage import gaussian_filter

    series = simulated(electrons_per_px=200.0, damage="none")
    found = quality(series, with_faults(series, {4: lambda image: gaussian_filter(image, 2.0), 7: smeared}))
    assert found.blur_px[4] == pytest.approx(2.0, abs=0.2) and found.blur_px[7] == pytest.approx(2.83, abs=0.4)
    assert np.delete(found.blur_px, [4, 7]).max() < 0.6


@pytest.mark.fault(
    fault="the focus is lost for some frames, or found late", happens="those frames are flagged",
    user_sees="the flag `defocus` of the frame, with its reason",
)  # fmt: skip
def test_a_focus_lost_for_the_rest_of_the_series_and_one_found_late_are_both_seen() -> None:
    series = simulated(damage="none")
    late = quality(series, with_faults(series, dict.fromkeys((7, 8, 9), out_of_focus)))
    early = quality(series, with_faults(series, dict.fromkeys((0, 1), out_of_focus)))
    assert flagged(late) == dict.fromkeys((7, 8, 9), "defocus")
    assert flagged(early) == dict.fromkeys((0, 1), "defocus")


@pytest.mark.fault(
    fault="frames without beam, repeated, written in part, clipped or of one value",
    happens="flagged and left out where config.yaml says so",
    user_sees="the flag of the frame and why, such as “30 % of the rows have no contents”",
)
def test_counts_tell_blank_duplicate_missing_and_saturated_frames() -> None:
    series = simulated(electrons_per_px=200.0)
    frames = np.asarray(series.series.frames).copy()
    frames[2] = np.random.default_rng(1).poisson(0.3, frames[2].shape)  # beam off, readout alone
    frames[4] = frames[3]
    frames[5, :80] = frames[4, :80]  # the upper 62 % were not written anew
    frames[6, 90:] = 0
    frames[8] = np.minimum(2 * frames[8], 255)
    frames[9] = 7
    found = quality(series, frames)
    assert flagged(found) == {
        2: "blank", 4: "duplicate", 5: "duplicate", 6: "missing_rows", 8: "saturated", 9: "blank",
    }  # fmt: skip
    assert found.missing_rows_fraction[6] == pytest.approx(38 / 128)
    assert (
        found.saturated_fraction[8] == pytest.approx((frames[8] == 255).mean()) and found.saturated_fraction[8] > 0.02
    )
    reasons = " ".join(found.flags.reasons[k][0] for k in (2, 4, 5, 6, 8, 9))
    for text in ("of the usual signal and no structure", "the same pixels as frame 3", "62 % of the rows are those of",
                 "30 % of them have no contents", "at 255 counts", "blank: every pixel is 7"):  # fmt: skip
        assert text in reasons, reasons


def test_settings_say_which_flags_take_a_frame_out() -> None:
    series = simulated()
    frames = with_faults(series, {3: out_of_focus})
    found = quality(series, frames)
    assert list(found.excluded(RegisterSettings())) == [3]
    assert found.excluded(RegisterSettings(excluded_flags=("blank", "jump"))) == {}
    assert found.excluded(RegisterSettings(excluded_flags=("none",))) == {}
    lenient = quality(series, frames, least_sharpness=0.1)
    assert flagged(lenient) == {} and lenient.sharpness[3] == found.sharpness[3]


def test_clipping_is_seen_and_full_wells_of_faint_frames_are_not(rng) -> None:
    faint = rng.poisson(0.05, (64, 64)).astype(np.uint8)
    assert np.isinf(count_facts(faint).top)
    clipped = np.minimum(rng.poisson(100, (64, 64)), 110).astype(np.uint16)
    assert count_facts(clipped).top == 110
    assert count_facts(clipped.astype(np.float32) / 3).top == pytest.approx(110 / 3)
    full = rng.poisson(250, (64, 64)).clip(0, 255).astype(np.uint8)
    assert count_facts(full).top == 255


def test_rows_of_vacuum_are_not_missing_and_cut_ones_are() -> None:
    frame = np.random.default_rng(0).poisson(20, (60, 50)).astype(np.uint16)
    fading = (frame * np.clip(np.linspace(1.5, -0.5, 60), 0, 1)[:, None]).astype(np.uint16)
    assert count_facts(fading).constant_rows.any() and not count_facts(fading).missing_rows.any()
    frame[20:23] = 0
    frame[-4:] = 0
    assert np.flatnonzero(count_facts(frame).missing_rows).tolist() == [20, 21, 22, 56, 57, 58, 59]
    assert count_facts(frame.astype(float) + np.where(frame == 0, np.nan, 0)).missing_rows.sum() == 7


# --- jumps -----------------------------------------------------------------------------------------


def drift(rng, walk_px: float = 0.5) -> np.ndarray:
    return np.cumsum(np.array([1.5, -0.5]) + rng.normal(0, walk_px, (N + 4, 2)), axis=0)


@pytest.mark.parametrize("walk_px", [0.0, 0.5, 3.0])
def test_unsteady_drift_is_no_jump(walk_px) -> None:
    none = np.full(N + 4, 0.05)
    for seed in range(50):
        track = drift(np.random.default_rng(seed), walk_px)
        assert find_jumps(track, none, (256, 256), RegisterSettings()) == {}


def test_jumps_there_and_back_and_for_good(rng) -> None:
    sigma = np.full(N + 4, 0.05)
    track = drift(rng)
    track[5] += (9.0, 2.0)  # vibration during one frame
    track[9:] -= (0.0, 12.0)  # the stage let go
    track[12] = np.nan  # an excluded frame in between
    found = find_jumps(track, sigma, (256, 256), RegisterSettings())
    assert list(found) == [5, 9] and "since frame 8, usually 1." in found[9]
    assert find_jumps(track, np.full(N + 4, 20.0), (256, 256), RegisterSettings()) == {}  # nothing so uncertain


def test_a_flag_is_set_once_and_keeps_its_reason() -> None:
    flags = FrameFlags.none(2)
    flags.add(1, "blur", "first")
    flags.add(1, "blur", "second")
    assert flags.words == [[], ["blur"]] and flags.reasons[1] == ["first"]


@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (50, 10)])
def test_frames_of_a_few_pixels_are_not_judged(shape, rng) -> None:
    tiny = FrameSeries(rng.poisson(20, (4, *shape)).astype(np.uint16))
    found = quality(dataclasses.replace(simulated(), series=tiny))
    assert flagged(found) == {} and np.isnan(found.sharpness).all()


def test_a_series_of_nothing_says_so() -> None:
    empty = FrameSeries(np.zeros((3, 64, 64), np.uint16), name="empty")
    found = quality(dataclasses.replace(simulated(), series=empty))
    assert flagged(found) == dict.fromkeys(range(3), "blank") and np.isnan(found.sharpness).all()
