"""FrameSeries and Acquisition: fluence by hand, and contradictions refused when built."""

from __future__ import annotations

import numpy as np
import pytest

from atomdiffuser.errors import MetadataError, ShapeError
from atomdiffuser.series import Acquisition, FrameSeries, fluence_per_frame

FRAMES = np.zeros((4, 5, 7), np.uint16)
KNOWN = Acquisition(pixel_size_nm=(0.02, 0.025), dwell_s=20e-6, probe_current_pA=50.0)


def test_fluence_by_hand() -> None:
    """50 pA for 20 µs on 0.05 Å²: 1.25e5 e⁻/Å², with a step that differs along y and x."""
    assert fluence_per_frame(50.0, 20e-6, (0.02, 0.025)) == pytest.approx(1.2483e5, rel=1e-4)
    assert KNOWN.fluence_per_frame_e_per_A2 == fluence_per_frame(50.0, 20e-6, (0.02, 0.025))


def test_cumulative_fluence_counts_the_frame_itself() -> None:
    assert FrameSeries(FRAMES, acquisition=KNOWN).cumulative_fluence_e_per_A2() == pytest.approx(
        KNOWN.fluence_per_frame_e_per_A2 * np.array([1, 2, 3, 4])
    )


@pytest.mark.parametrize("missing", ["pixel_size_nm", "dwell_s", "probe_current_pA"])
def test_what_is_missing_makes_fluence_unknown_and_is_named(missing) -> None:
    acquisition = KNOWN.with_overrides("session.yaml", **{missing: None})
    assert acquisition.missing_for_fluence() == [missing] and acquisition.fluence_per_frame_e_per_A2 is None
    assert FrameSeries(FRAMES, acquisition=acquisition).cumulative_fluence_e_per_A2() is None


def test_overrides_say_where_they_come_from_and_leave_the_original() -> None:
    changed = KNOWN.with_overrides("session.yaml", probe_current_pA=20.0)
    assert changed.probe_current_pA == 20 and changed.sources["probe_current_pA"] == "session.yaml"
    assert KNOWN.probe_current_pA == 50 and "probe_current_pA" not in KNOWN.sources


@pytest.mark.parametrize("name", Acquisition.POSITIVE)
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_values_that_cannot_be_are_refused(name, value) -> None:
    with pytest.raises(MetadataError, match=f"{name} is .*expected a positive number; set {name} in session.yaml"):
        Acquisition(**{name: value})


@pytest.mark.parametrize("size", [(0.0, 0.1), (0.1, -0.1), (np.nan, 0.1), (1e7, 1.0)])
def test_impossible_pixel_sizes_are_refused(size) -> None:
    with pytest.raises(MetadataError, match=r"pixel_size_nm is .*expected two positive numbers"):
        Acquisition(pixel_size_nm=size)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"have shape \(4, 5\), expected \(t, y, x\)"):
        FrameSeries(np.zeros((4, 5)))
    with pytest.raises(ShapeError, match=r"has 4 frames but times of shape \(3,\)"):
        FrameSeries(FRAMES, times_s=np.arange(3))
    for times in ([0, 1, 1, 2], [0, 2, 1, 3], [0, 1, np.nan, 3]):
        with pytest.raises(MetadataError, match="do not increase; set frame_time_s"):
            FrameSeries(FRAMES, times_s=np.array(times, float))
    with pytest.raises(MetadataError, match=r"excluded_frames \[4\] .* outside 0…3"):
        FrameSeries(FRAMES, excluded=(1, 4))


def test_frames_stay_lazy_until_asked() -> None:
    import dask.array as da

    def explode(block):
        raise AssertionError("computed")

    lazy = da.zeros((3, 4, 5), chunks=(1, 4, 5)).map_blocks(explode, meta=np.zeros((0, 0, 0)))
    series = FrameSeries(lazy)
    assert series.n_frames == 3 and series.frame_shape == (4, 5)
    with pytest.raises(AssertionError, match="computed"):
        series.frame(0)
