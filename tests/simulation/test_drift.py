import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atomdiffuser.errors import SettingsError
from atomdiffuser.geometry import apply_affine, drift_at_centre, rotation_scale_shear
from atomdiffuser.simulation.drift import long_range_distortion, scan_jitter, simulate_drift, with_scan
from atomdiffuser.simulation.randomness import RandomStreams

SHAPE = (60, 90)


def drift(n=10, seed=0, **options):
    return simulate_drift(n, SHAPE, RandomStreams(seed), **options)


def test_steady_drift_goes_where_it_is_told():
    affines = drift(drift_px_per_frame=(1.5, -0.5), random_walk_px=0)
    assert torch.allclose(
        drift_at_centre(affines, SHAPE), torch.arange(10.0)[:, None].double() * torch.tensor([1.5, -0.5])
    )


def test_a_length_alone_is_taken_in_a_random_direction():
    shifts = [drift_at_centre(drift(2, seed, drift_px_per_frame=2.0, random_walk_px=0), SHAPE)[1] for seed in range(40)]
    shifts = torch.stack(shifts)
    assert torch.allclose(shifts.norm(dim=-1), torch.full((40,), 2.0).double())
    assert shifts.mean(0).norm() < 1.0  # 2 if all went the same way


def test_rotation_and_strain_leave_the_centre_in_place():
    affines = drift(drift_px_per_frame=0.0, random_walk_px=0, rotation_deg_per_frame=0.5, strain_per_frame=0.001)
    assert drift_at_centre(affines, SHAPE).abs().max() < 1e-12
    turn, scale, _ = rotation_scale_shear(affines)
    assert turn[-1] == pytest.approx(4.5, abs=1.5) and turn[1:].min() > 0
    assert scale[-1] == pytest.approx(1.009, abs=0.003)


def test_the_random_walk_widens_with_the_root_of_time():
    ends = [drift_at_centre(drift(26, s, drift_px_per_frame=0.0, random_walk_px=0.4), SHAPE)[-1] for s in range(200)]
    assert torch.stack(ends).std() == pytest.approx(0.4 * 5, rel=0.15)


def test_within_frame_drift_is_where_each_line_was_when_it_was_scanned():
    """Line by line: the point under row y at its own moment equals what the frame's affine says."""
    velocity = torch.tensor([0.6, -0.8], dtype=torch.float64)
    affines = with_scan(drift(5, drift_px_per_frame=tuple(velocity.tolist()), random_walk_px=0), SHAPE, 0.9)
    point = torch.tensor([20.0, 30.0], dtype=torch.float64)
    for k, affine in enumerate(affines):
        seen = apply_affine(affine, point)
        moment = k + 0.9 * (seen[0] - (SHAPE[0] - 1) / 2) / SHAPE[0]  # in frames, 0 when frame 0 scans its central row
        assert torch.allclose(seen, point + velocity * moment, atol=1e-9)


def test_no_scan_time_no_shear():
    affines = drift()
    assert torch.equal(with_scan(affines, SHAPE, 0.0), affines)


def test_jitter_is_independent_along_y_and_x_and_from_line_to_line():
    offsets = scan_jitter(3, 2000, 0.3, RandomStreams(0))
    assert offsets[..., 1].std() == pytest.approx(0.3, rel=0.05) and offsets[..., 0].std() == pytest.approx(
        0.1, rel=0.05
    )
    flat = torch.stack([offsets[0, :, 0], offsets[0, :, 1], offsets[1, :, 1], offsets[0, :, 1].roll(1)])
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.12


def test_distortion_is_smooth_and_as_large_as_asked():
    warp = long_range_distortion(40, SHAPE, 0.7, RandomStreams(0))
    assert warp.shape == (40, *SHAPE, 2)
    assert warp.square().mean().sqrt() == pytest.approx(0.7, rel=0.2)
    assert warp.diff(dim=1).abs().max() < 0.4


def test_impossible_requests_are_refused():
    with pytest.raises(SettingsError, match="at least one frame, not 0"):
        drift(0)
    with pytest.raises(SettingsError, match=r"expected one length or \(y, x\)"):
        drift(drift_px_per_frame=(1.0, 2.0, 3.0))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.floats(0, 5), st.floats(0, 1), st.floats(-0.5, 0.5), st.integers(0, 10**6))
def test_any_drift_starts_at_rest_and_never_mirrors(n, speed, walk, turn, seed):
    options = dict(drift_px_per_frame=speed, random_walk_px=walk, rotation_deg_per_frame=turn, shear_per_frame=0.001)
    affines = with_scan(drift(n, seed, **options), SHAPE, 0.0)
    assert torch.allclose(affines[0], torch.eye(3).double(), atol=1e-12)
    assert torch.all(torch.linalg.det(affines) > 0.5)
