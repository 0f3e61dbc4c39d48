"""Frames brought back onto the reference grid."""

from __future__ import annotations

import numpy as np
import pytest

from atomdiffuser.alignment import Grid, align_frame, choose_grid

SHAPE = (20, 31)
WHOLE = Grid(SHAPE, (0, 0))
WAYS = ("nearest", "linear", "cubic")


def shifted(dy: float, dx: float) -> np.ndarray:
    affine = np.eye(3)
    affine[:2, 2] = dy, dx
    return affine


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("drift", "back"), [((1, 0), (-1, 0)), ((0, 1), (0, -1)), ((-1, 0), (1, 0)), ((2, -3), (-2, 3))]
)
def test_one_bright_pixel_moves_back_by_the_drift(way, drift, back) -> None:
    """The sample moved by `drift`; aligned, the pixel lies where it was on the reference frame."""
    frame = np.zeros(SHAPE, np.uint16)
    frame[9, 15] = 100
    aligned = align_frame(frame, shifted(*drift), WHOLE, way)
    place = np.unravel_index(np.nanargmax(aligned), SHAPE)
    assert place == (9 + back[0], 15 + back[1]) and aligned[place] == pytest.approx(100, abs=0.01)
    assert np.nansum(np.abs(aligned)) == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize("way", WAYS)
def test_no_drift_changes_nothing(way, rng) -> None:
    frame = rng.integers(0, 4000, SHAPE).astype(np.uint16)
    assert np.allclose(align_frame(frame, np.eye(3), WHOLE, way), frame, atol=0.2)


@pytest.mark.parametrize("way", WAYS)
def test_outside_is_nan_and_never_zero(way) -> None:
    aligned = align_frame(np.full(SHAPE, 7, np.uint8), shifted(3, -2), WHOLE, way)
    assert np.isnan(aligned[-3:]).all() and np.isnan(aligned[:, :2]).all()
    assert np.allclose(aligned[:-3, 2:], 7, atol=1e-4) and aligned.dtype == np.float32


def test_linear_stays_within_the_counts_and_cubic_may_not(rng) -> None:
    frame = rng.poisson(0.4, SHAPE).astype(np.uint16)
    linear, cubic = (align_frame(frame, shifted(0.4, 0.6), WHOLE, way) for way in ("linear", "cubic"))
    assert np.nanmin(linear) >= 0 and np.nanmax(linear) <= frame.max()
    assert np.nanmin(cubic) < -0.05  # the counter-test: cubic rings on such counts


def test_cubic_is_closer_between_pixels_than_linear() -> None:
    y, x = np.mgrid[:40, :50]
    wave = lambda y, x: 100 + 50 * np.sin(2 * np.pi * y / 9) * np.cos(2 * np.pi * x / 8)
    moved = wave(y - 0.5, x - 0.4).astype(np.float32)
    errors = [
        np.nanstd((align_frame(moved, shifted(0.5, 0.4), Grid((40, 50), (0, 0)), way) - wave(y, x))[2:-2, 2:-2])
        for way in ("cubic", "linear", "nearest")
    ]  # fmt: skip
    assert errors[0] < 0.3 and errors[0] < errors[1] / 5 and errors[1] < errors[2]


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "<i4", ">f4", "float64", "uint32"])
def test_all_dtypes_and_byte_orders_give_the_same(dtype, rng) -> None:
    frame = rng.integers(0, 200, SHAPE)
    expected = align_frame(frame.astype(np.float32), shifted(0.3, 1.2), WHOLE, "linear")
    assert np.array_equal(
        align_frame(frame.astype(dtype), shifted(0.3, 1.2), WHOLE, "linear"), expected, equal_nan=True
    )


def test_nearest_hands_on_the_very_counts(rng) -> None:
    frame = rng.integers(0, 60000, (97, 131)).astype(np.uint16)
    aligned = align_frame(frame, shifted(0.3, -1.2), Grid(frame.shape, (0, 0)), "nearest")
    known = np.isfinite(aligned)
    assert np.isin(aligned[known], frame).all()


def test_a_dead_pixel_stays_small_with_cubic() -> None:
    frame = np.ones((60, 70), np.float32)
    frame[30, 30] = np.nan
    aligned = align_frame(frame, shifted(0.3, 0.2), Grid(frame.shape, (0, 0)), "cubic")
    assert np.isnan(aligned[:-1, :-1]).sum() <= 25


def test_a_dead_pixel_stays_small_with_linear() -> None:
    frame = np.ones((60, 70), np.float32)
    frame[30, 30] = np.nan
    assert (
        1 <= np.isnan(align_frame(frame, shifted(0.3, 0.2), Grid(frame.shape, (0, 0)), "linear")[:-1, :-1]).sum() <= 4
    )


# --- extents --------------------------------------------------------------------------------------


def test_extents_of_a_drift_by_known_numbers() -> None:
    """Frame 1 shows the sample 3 px further down and 4 px to the left: it sees rows −3…16 and columns 4…34."""
    track = np.stack([np.eye(3), shifted(3, -4)])
    assert choose_grid(track, SHAPE, "reference") == WHOLE
    assert choose_grid(track, SHAPE, "union") == Grid((23, 35), (-3, 0))
    assert choose_grid(track, SHAPE, "intersection") == Grid((17, 27), (0, 4))


@pytest.mark.parametrize(("extent", "empty"), [("intersection", 0.0), ("union", 0.2)])
def test_the_intersection_is_full_and_the_union_loses_nothing(extent, empty, rng) -> None:
    track = np.stack([np.eye(3), shifted(3.4, -4.2), shifted(-1.3, 2.6)])
    grid = choose_grid(track, SHAPE, extent)
    frame = rng.integers(1, 100, SHAPE).astype(np.uint16)
    for affine in track:
        aligned = align_frame(frame, affine, grid, "linear")
        assert np.isnan(aligned).mean() <= empty if extent == "intersection" else np.isfinite(aligned).sum() >= 19 * 30


def test_on_an_offset_grid_pixels_keep_their_place() -> None:
    frame = np.zeros(SHAPE, np.uint16)
    frame[9, 15] = 100
    grid = choose_grid(np.stack([np.eye(3), shifted(3, -4)]), SHAPE, "union")
    aligned = align_frame(frame, shifted(3, -4), grid, "nearest")
    assert np.unravel_index(np.nanargmax(aligned), grid.shape) == (
        9 - 3 - grid.origin_px[0],
        15 + 4 - grid.origin_px[1],
    )


def test_frames_that_share_nothing_fall_back_to_the_reference() -> None:
    assert choose_grid(np.stack([np.eye(3), shifted(50, 0)]), SHAPE, "intersection") == Grid(SHAPE, (0, 0), True)


def test_the_intersection_is_full_also_of_turned_and_sheared_frames(rng) -> None:
    """Each side of the grid is the innermost of its corners, so a turned frame costs its corners' triangles too."""
    turn = lambda degrees: np.array(
        [[np.cos(np.deg2rad(degrees)), -np.sin(np.deg2rad(degrees)), 1.3],
         [np.sin(np.deg2rad(degrees)) + 0.02, np.cos(np.deg2rad(degrees)), -2.1], [0, 0, 1]]
    )  # fmt: skip
    track = np.stack([np.eye(3), turn(4.0), turn(-3.0)])
    grid = choose_grid(track, (60, 80), "intersection")
    frame = rng.integers(1, 100, (60, 80)).astype(np.uint16)
    assert all(np.isfinite(align_frame(frame, affine, grid, "linear")).all() for affine in track)
    assert grid.shape[0] * grid.shape[1] > 0.7 * 60 * 80


# --- scan lines -----------------------------------------------------------------------------------


def test_lines_are_put_back_in_the_one_resampling(rng) -> None:
    """Row 7 lies 2 px further right; together with a drift of (1, −3) px it comes back to where it was."""
    frame = rng.integers(0, 4000, SHAPE).astype(np.uint16)
    offset = np.zeros(SHAPE[0])
    offset[7] = 2.0
    torn = frame.copy()
    torn[7, 2:] = frame[7, :-2]
    aligned = align_frame(torn, np.eye(3), WHOLE, "nearest", offset)
    assert np.array_equal(aligned[:, :-2], frame[:, :-2].astype(np.float32)) and np.isnan(aligned[7, -2:]).all()
    moved = align_frame(torn, shifted(1, -3), WHOLE, "linear", offset)
    assert np.allclose(moved[6, 3:20], frame[7, :17], atol=1e-2)
    straight = align_frame(torn, shifted(1, -3), WHOLE, "linear")
    assert np.abs(straight[6, 3:20] - frame[7, :17].astype(float)).max() > 100
