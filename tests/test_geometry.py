"""Affines: directions by known answers, group laws and geodesics as properties, distances against every pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SHAPES, SHARES, affines, drifts

from atomdiffuser import geometry as g
from atomdiffuser.errors import ShapeError

EYE = torch.eye(3, dtype=torch.float64)
close = lambda a, b, atol=1e-8: torch.allclose(a, b, rtol=1e-9, atol=atol)


def affine(*numbers: float) -> torch.Tensor:
    return g.affine_from_parameters(torch.tensor(numbers, dtype=torch.float64))


# --- directions -----------------------------------------------------------------------------------


def test_shift_comes_as_y_then_x() -> None:
    down = g.translation(torch.tensor([3.0, -5.0], dtype=torch.float64))
    moved = g.apply_affine(down, torch.tensor([10.0, 20.0], dtype=torch.float64))
    assert moved.tolist() == [13.0, 15.0]


def test_motions_seen_in_added_pixels_are_those_of_the_frame() -> None:
    """A point of the fine frame lies in the coarse one where the mean of its pixels does."""
    coarse, factor = affine(1.01, 0.02, 3.0, -0.03, 0.98, -4.0), 3
    fine = g.of_finer_pixels(coarse, factor)
    points = torch.tensor([[0.0, 0.0], [10.0, 7.0]], dtype=torch.float64)
    centre = lambda p: factor * p + (factor - 1) / 2  # of the pixels that were added up
    assert close(g.apply_affine(fine, centre(points)), centre(g.apply_affine(coarse, points)))
    assert close(g.of_coarser_pixels(fine, factor), coarse)


def test_the_six_numbers_are_listed_row_by_row() -> None:
    a = affine(1, 2, 3, 4, 5, 6)
    assert a.tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 1]]
    assert g.apply_affine(a, torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist() == [
        1 + 3,
        4 + 6,
    ]  # y' = a_yy·y + a_y
    assert g.apply_affine(a, torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == [2 + 3, 5 + 6]
    assert len(g.PARAMETER_NAMES) == 6 and g.parameters_from_affine(a).tolist() == [1, 2, 3, 4, 5, 6]


def test_composition_applies_the_right_hand_motion_first() -> None:
    stretch_y, shift = affine(2, 0, 0, 0, 1, 0), affine(1, 0, 3, 0, 1, 0)
    point = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert g.apply_affine(g.compose(shift, stretch_y), point).tolist() == [5.0, 1.0]  # 1·2 + 3
    assert g.apply_affine(g.compose(stretch_y, shift), point).tolist() == [8.0, 1.0]  # (1 + 3)·2: the wrong order shows


def test_a_positive_turn_takes_y_towards_x() -> None:
    c, s = math.cos(math.radians(10)), math.sin(math.radians(10))
    turn = affine(c, -s, 0, s, c, 0)
    angle, scale, shear = g.rotation_scale_shear(turn)
    assert (
        float(angle) == pytest.approx(10)
        and float(scale) == pytest.approx(1)
        and float(shear) == pytest.approx(0, abs=1e-12)
    )
    y_axis = g.apply_affine(turn, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert y_axis[1] > 0.17


def test_drift_is_that_of_the_centre() -> None:
    about_corner = affine(1.1, 0, 0, 0, 1, 0)  # stretches y from the first row
    shift = g.drift_at_centre(about_corner, (11, 21))
    assert shift.tolist() == pytest.approx([0.5, 0.0])


def test_rotation_scale_and_shear_are_recovered_together() -> None:
    c, s = math.cos(0.05), math.sin(0.05)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    stretch = torch.tensor([[1.02, 0.004], [0.004, 0.99]], dtype=torch.float64)
    a = g.identity()
    a[:2, :2] = turn @ stretch
    angle, scale, shear = (float(v) for v in g.rotation_scale_shear(a))
    assert angle == pytest.approx(math.degrees(0.05)) and scale == pytest.approx(math.sqrt(1.02 * 0.99 - 0.004**2))
    assert shear == pytest.approx(0.004 / scale)


# --- group laws -----------------------------------------------------------------------------------


@given(affines())
def test_an_inverse_undoes_from_either_side(a: torch.Tensor) -> None:
    assert close(g.compose(g.invert(a), a), EYE) and close(g.compose(a, g.invert(a)), EYE)
    assert g.invert(a)[2].tolist() == [0, 0, 1]


@given(affines(), affines(), affines())
def test_composition_is_associative_and_has_an_identity(a, b, c) -> None:
    assert close(g.compose(g.compose(a, b), c), g.compose(a, g.compose(b, c)), 1e-7)
    assert torch.equal(g.compose(a, g.identity()), a)


@given(drifts(), drifts())
def test_a_chain_inverts_in_reverse_order(b_from_a, c_from_b) -> None:
    assert close(g.invert(g.compose(c_from_b, b_from_a)), g.compose(g.invert(b_from_a), g.invert(c_from_b)), 1e-7)


@given(drifts(), drifts(), st.tuples(st.floats(-50, 50), st.floats(-50, 50)))
def test_composition_is_application_twice(b_from_a, c_from_b, point) -> None:
    p = torch.tensor(point, dtype=torch.float64)
    assert close(
        g.apply_affine(g.compose(c_from_b, b_from_a), p), g.apply_affine(c_from_b, g.apply_affine(b_from_a, p))
    )


@given(affines())
def test_parameters_round_trip(a) -> None:
    assert torch.equal(g.affine_from_parameters(g.parameters_from_affine(a)), a)


# --- exponential and logarithm --------------------------------------------------------------------


@given(affines())
def test_exp_undoes_log(a) -> None:
    assert close(g.exp_affine(g.log_affine(a)), a, 1e-7)


@given(st.lists(st.floats(-0.4, 0.4, allow_subnormal=False), min_size=6, max_size=6))
def test_log_undoes_exp(numbers) -> None:
    velocity = torch.tensor(numbers, dtype=torch.float64)
    assert close(g.log_affine(g.exp_affine(velocity)), velocity)


@pytest.mark.parametrize(
    "numbers",
    [
        (1, 0, 0, 0, 1, 0), (1, 0, 5, 0, 1, -7), (1, 1e-12, 3, 0, 1, 0), (1, 0.1, 0, 0, 1, 2), (1.1, 0, 4, 0, 1.1, 1),
        (1, 1e-6, 3, -1e-6, 1, 0), (1, 1e-6, 3, 1e-6, 1, 0), (0, -1, 2, 1, 0, 5), (-0.5, -0.9, 2, 0.9, -0.5, 5),
        (1.2, 0.1, 3, 0, 1.2, -1), (0.8, 0, 3, -0.2, 0.8, -1),
    ],
)  # fmt: skip
def test_log_where_its_branches_meet(numbers) -> None:
    """Identity, pure shift, shear (double eigenvalue), uniform stretch, nearly nothing, turns of 90° and more, both."""
    a = affine(*numbers)
    assert close(g.exp_affine(g.log_affine(a)), a, 1e-9)


def test_log_of_a_shift_is_the_shift() -> None:
    assert g.log_affine(affine(1, 0, 3, 0, 1, -2)).tolist() == [0, 0, 3, 0, 0, -2]


def test_log_matches_a_general_matrix_logarithm(rng) -> None:
    import scipy.linalg

    for _ in range(20):
        a = affine(*(np.array([1, 0, 0, 0, 1, 0]) + rng.normal(0, [0.2, 0.2, 20, 0.2, 0.2, 20])))
        assert np.allclose(g.log_affine(a).reshape(2, 3), scipy.linalg.logm(a.numpy())[:2], atol=1e-7)


@given(drifts())
def test_a_geodesic_starts_at_nothing_and_ends_at_the_motion(a) -> None:
    assert close(g.geodesic(a, 0.0), EYE, 1e-12) and close(g.geodesic(a, 1.0), a)


@given(drifts(), SHARES, SHARES)
def test_steps_along_a_geodesic_compose(a, first, second) -> None:
    whole = g.geodesic(a, first + second)
    assert close(g.compose(g.geodesic(a, second), g.geodesic(a, first)), whole)


def test_blending_matrices_is_no_geodesic() -> None:
    """The counter-test: half of a half-turned matrix, twice, is not the turn."""
    a = affine(0, -1, 10, 1, 0, 0)
    blend = (EYE + a) / 2
    assert not close(blend @ blend, a, 0.3)
    half = g.geodesic(a, 0.5)
    assert close(half @ half, a)


def test_geodesics_broadcast_over_tau_and_batch() -> None:
    batch = torch.stack([affine(1, 0, 4, 0, 1, 2), affine(1.1, 0, 0, 0, 1, 0)])
    tau = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)[:, None].expand(-1, 2)
    states = g.geodesic(batch[None], tau)
    assert states.shape == (3, 2, 3, 3) and states[1, 0, :2, 2].tolist() == pytest.approx([2, 1])


def test_log_of_nothing_known_is_nothing_known() -> None:
    unknown = torch.full((2, 3, 3), torch.nan, dtype=torch.float64)
    assert torch.isnan(g.log_affine(unknown)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype) -> None:
    a = affine(1.01, 0.002, 4, -0.003, 0.99, 2).to(dtype)
    for result in (
        g.invert(a), g.compose(a, a), g.log_affine(a), g.exp_affine(g.log_affine(a)), g.geodesic(a, 0.5),
        g.affine_from_parameters(g.parameters_from_affine(a)), g.translation(a[:2, 2]), g.drift_at_centre(a, (3, 4)),
        g.identity(2, dtype=dtype), g.pixel_grid((2, 3), dtype=dtype), g.second_moments((2, 3), dtype=dtype),
        g.displacement_sigma_px(torch.eye(6, dtype=dtype), (3, 4)), *g.rotation_scale_shear(a),
    ):  # fmt: skip
        assert result.dtype == dtype
    assert torch.allclose(g.exp_affine(g.log_affine(a)), a, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_results_are_on_the_device_of_what_was_given() -> None:
    """On PyTorch's device without memory, which is there on every machine."""
    affines, numbers = torch.eye(3, device="meta").expand(4, 3, 3), torch.zeros(4, 6, device="meta")
    for result in (
        g.affine_from_parameters(numbers), g.parameters_from_affine(affines), g.translation(numbers[:, :2]),
        g.identity(2, device="meta"), g.invert(affines), g.compose(affines, affines), g.log_affine(affines),
        g.exp_affine(numbers), g.geodesic(affines, 0.5), g.drift_at_centre(affines, (3, 4)),
        g.displacement_rms_px(affines, affines, (3, 4)), g.pixel_grid((3, 4), device="meta"),
        g.displacement_sigma_px(torch.zeros(4, 6, 6, device="meta"), (3, 4)), *g.rotation_scale_shear(affines),
    ):  # fmt: skip
        assert result.device.type == "meta"


def test_defaults_are_double_precision_on_the_processor() -> None:
    for made in (g.identity(2), g.pixel_grid((2, 3)), g.second_moments((2, 3))):
        assert (made.dtype, made.device.type) == (torch.float64, "cpu")


# --- distances ------------------------------------------------------------------------------------


@given(drifts(), drifts(), SHAPES)
@settings(max_examples=60)
def test_displacement_rms_is_the_mean_over_every_pixel(a, b, shape) -> None:
    points = g.pixel_grid(shape)
    by_hand = (g.apply_affine(a, points) - g.apply_affine(b, points)).square().sum(-1).mean().sqrt()
    assert float(g.displacement_rms_px(a, b, shape)) == pytest.approx(float(by_hand), rel=1e-6, abs=1e-6)


def test_displacement_rms_of_a_shift_is_its_length_and_of_nothing_zero() -> None:
    shifted = g.translation(torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert float(g.displacement_rms_px(shifted, EYE, (30, 50))) == pytest.approx(5)
    assert float(g.displacement_rms_px(EYE, EYE, (30, 50))) == 0


def test_sigma_is_the_rms_displacement_of_draws(rng) -> None:
    root = rng.normal(0, 1, (6, 6)) * np.array([1e-3, 1e-3, 0.05, 1e-3, 1e-3, 0.05])[:, None]
    covariance = root @ root.T
    draws = torch.as_tensor(rng.multivariate_normal(np.zeros(6), covariance, 4000))
    moved = g.affine_from_parameters(draws + torch.tensor([1, 0, 0, 0, 1, 0]))
    by_draws = g.displacement_rms_px(moved, EYE, (40, 70)).square().mean().sqrt()
    assert float(g.displacement_sigma_px(torch.as_tensor(covariance), (40, 70))) == pytest.approx(
        float(by_draws), rel=0.04
    )


def test_pixel_grid_is_y_then_x_from_zero() -> None:
    grid = g.pixel_grid((2, 3))
    assert grid.shape == (2, 3, 2) and grid[1, 2].tolist() == [1, 2] and grid[0, 0].tolist() == [0, 0]


# --- refusals -------------------------------------------------------------------------------------


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"an affine has shape \(2, 2\), expected \(\.\.\., 3, 3\)"):
        g.compose(torch.eye(2), EYE)
    with pytest.raises(ShapeError, match=r"affine parameters have shape \(5,\), expected \(\.\.\., 6\)"):
        g.affine_from_parameters(torch.zeros(5))
