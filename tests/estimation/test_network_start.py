"""What the network sees of large frames: pixels added up; it answers in the frame's own pixels."""

from __future__ import annotations

import pytest
import torch
from measured_pairs import error_px, series, source

from atomdiffuser.estimation import predict
from atomdiffuser.estimation.predict import Predictor
from atomdiffuser.estimation.register import FitOptions

SHAPE = (256, 288)


@pytest.fixture(scope="module")
def lattice():
    return series("SrTiO3", n_frames=2, shape=SHAPE, electrons_per_px=60.0, damage="none", seed=2, pixel_size_nm=0.02,
                  drift_px_per_frame=4.0, rotation_deg_per_frame=0.5, vacancies=0.05)  # fmt: skip


def starts(simulated) -> torch.Tensor:
    src = source(simulated)
    return Predictor.of(src).starts([(0, 1)], FitOptions(src.noise, src.scales, max_shift_px=64.0))


def test_added_pixels_give_nearly_the_same_start(lattice, monkeypatch) -> None:
    true = torch.as_tensor(lattice.frame_from_reference[1:])
    assert error_px(starts(lattice), true, SHAPE)[0] < 0.5
    monkeypatch.setattr(predict, "LARGE_PX", 128)
    assert Predictor.of(source(lattice)).binning == 2
    assert error_px(starts(lattice), true, SHAPE)[0] < 1.0


@pytest.mark.parametrize(
    ("view", "why"),
    [
        (dict(pixel_size_nm=0.05, electrons_per_px=60.0), "of a period of 8 px too little would be left"),
        (dict(pixel_size_nm=0.02, electrons_per_px=5.0), "σ would be too small"),
    ],
)
def test_pixels_are_not_added_where_it_would_harm(view, why, monkeypatch) -> None:
    monkeypatch.setattr(predict, "LARGE_PX", 64)
    src = source(series("SrTiO3", n_frames=2, shape=SHAPE, damage="none", seed=1, **view))
    assert src.scales.period_px is not None and Predictor.of(src).binning == 1, why


def test_added_pixels_give_as_good_maps(monkeypatch) -> None:
    """SrTiO3 of 20 px a period that lost half of its contrast: both ways within what they claim, on the same grid."""
    s = series("SrTiO3", n_frames=6, shape=(254, 291), pixel_size_nm=0.02, electrons_per_px=20.0, seed=3,
               critical_fluence=7200.0)  # fmt: skip
    src = source(s)
    drift = torch.as_tensor(s.frame_from_reference[5:])
    whole = Predictor.of(src).predict([(0, 5)], drift)
    monkeypatch.setattr(predict, "LARGE_PX", 100)
    assert Predictor.of(src).binning == 2
    added = Predictor.of(src).predict([(0, 5)], drift)
    true = float(torch.as_tensor(s.contrast[5]).mean() / torch.as_tensor(s.contrast[0]).mean())
    for found in (whole, added):
        assert found.contrast.shape == (1, 254, 291) and 0.6 < float(torch.isfinite(found.contrast).float().mean()) < 1
        inner = found.contrast[0, 40:-40, 40:-40]
        assert float((inner - true).square().nanmean().sqrt()) < 0.04
        assert torch.allclose(found.moving_from_reference, drift, atol=1e-9)
    assert (torch.isfinite(whole.contrast) != torch.isfinite(added.contrast)).float().mean() < 0.05
    cells = Predictor.of(src).decay_maps([(0, 5)], drift).contrast
    assert cells.shape == (1, 64, 73)
