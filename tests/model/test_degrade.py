import pytest
import torch

from atomdiffuser import geometry
from atomdiffuser.model.prediction import PairPrediction

SHAPE = (96, 112)
INNER = (slice(None), slice(16, -16), slice(16, -16))


@pytest.fixture
def prediction():
    """A pair whose drift and maps are given: a shift with a turn, and fields that vary over the frame."""
    affine = geometry.exp_affine(torch.tensor([[0.0, -0.01, 4.0, 0.01, 0.0, -2.5]], dtype=torch.float64))
    y, x = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 28), indexing="ij")
    rates = torch.stack([-0.1 - 0.3 * y, -0.2 - 0.8 * x])[None]
    seen = torch.ones(1, *SHAPE, dtype=torch.bool)
    return PairPrediction(
        affine,
        torch.eye(6)[None],
        torch.ones(1),
        rates,
        torch.full((1, 2, 24, 28), -3.0),
        torch.ones(1, 2, 24, 28, dtype=torch.bool),
        seen,
        SHAPE,
    )


@pytest.fixture
def image():
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(112.0), indexing="ij")
    return 50 + 10 * torch.cos(y * 0.7) + 8 * torch.cos(x * 0.6)


def relative(a, b, image):
    return float((a - b)[INNER].square().mean().sqrt() / image.std())


def test_nothing_happens_at_time_zero(prediction, image):
    assert relative(prediction.degrade(image, 0.0, base_px=8.0), image, image) < 1e-4


def test_it_composes(prediction, image):
    half = prediction.degrade(image, 0.5, base_px=8.0)
    both = prediction.degrade(torch.nan_to_num(half, nan=50.0), 1.0, start=0.5, base_px=8.0)
    once = prediction.degrade(image, 1.0, base_px=8.0)
    assert relative(both, once, image) < 0.03
    assert relative(half, once, image) > 0.3  # stopping half way
    wrong = prediction.degrade(torch.nan_to_num(half, nan=50.0), 0.5, start=0.0, base_px=8.0)
    assert relative(wrong, once, image) > relative(both, once, image) * 3  # forgetting that the fields moved along


def test_motion_and_fading_go_the_right_way(prediction):
    """A spot moves with the affine and loses what the contrast map says at its place."""
    spot = torch.full(SHAPE, 10.0)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(112.0), indexing="ij")
    spot += 30 * torch.exp(-((y - 40) ** 2 + (x - 50) ** 2) / (2 * 2.0**2))
    result = prediction.degrade(spot, 1.0, base_px=12.0)
    target = geometry.apply_affine(prediction.moving_from_reference, torch.tensor([40.0, 50.0], dtype=torch.float64))[0]
    top = (torch.nan_to_num(result[0]) == torch.nan_to_num(result[0]).max()).nonzero()[0]
    assert (top - target).norm() < 1.0
    assert (target - torch.tensor([40.0, 50.0])).norm() > 3  # it did move
    kept = prediction.contrast[0, 40, 50]
    base = prediction.intensity[0, 40, 50] * 10
    assert float((torch.nan_to_num(result[0]).max() - base) / 30) == pytest.approx(float(kept), abs=0.06)


def test_dark_level_stays(prediction, image):
    plain = prediction.degrade(image, 0.7, base_px=8.0)
    lifted = prediction.degrade(image + 100, 0.7, base_px=8.0, dark_level=100.0)
    torch.testing.assert_close(lifted[INNER], plain[INNER] + 100, atol=1e-3, rtol=1e-5)


def test_what_moves_in_is_unknown(prediction, image):
    result = prediction.degrade(image, 1.0, base_px=8.0)
    assert torch.isnan(result[0, 0]).all() and torch.isfinite(result[0, 20:80, 20:80]).all()


def test_base_is_measured_when_not_given(prediction, image):
    assert torch.isfinite(prediction.degrade(image, 0.5)[INNER]).all()
