"""The noise model measured from frames: shot and readout noise, at any gain, beside structure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measured_pairs import source

from atomdiffuser.estimation.noise import NoiseModel, estimate_noise
from atomdiffuser.simulation import simulate_series

SHAPE = (130, 167)  # no multiple of the patches


def detected(rng, mean: np.ndarray, gain_e: float, readout_e: float) -> torch.Tensor:
    electrons = rng.poisson(mean) + rng.normal(0, readout_e, mean.shape)
    return torch.as_tensor(electrons / gain_e, dtype=torch.float32)


@pytest.mark.parametrize("gain_e", [0.04, 1.0, 7.0])
@pytest.mark.parametrize("readout_e", [0.0, 2.0])
def test_gain_and_readout_of_a_ramp_are_recovered(rng, gain_e, readout_e) -> None:
    """From 2 to 60 electrons; a unit gain without readout would be off by the gain itself."""
    mean = np.broadcast_to(np.linspace(2, 60, SHAPE[1]), (4, *SHAPE))
    model = estimate_noise(detected(rng, mean, gain_e, readout_e))
    assert model.per_count == pytest.approx(1 / gain_e, rel=0.06)
    assert model.readout == pytest.approx((readout_e / gain_e) ** 2, rel=0.15, abs=0.3 / gain_e**2)
    for level in (5.0, 30.0, 60.0):
        variance = float(model.variance(torch.tensor(level / gain_e)))
        assert variance == pytest.approx((level + readout_e**2) / gain_e**2, rel=0.06)


@pytest.mark.parametrize(
    ("gain_e", "readout_e", "dark"), [(1.0, 0.0, 0.0), (0.05, 1.5, 400.0), (1.0, 3.0, 50.0), (4.0, 1.0, 50.0)]
)
def test_a_lattice_does_not_count_as_noise(gain_e, readout_e, dark) -> None:
    s = simulate_series(
        "SrTiO3", n_frames=4, shape=(128, 160), pixel_size_nm=0.02, electrons_per_px=40, damage="none", gain_e=gain_e,
        readout_e=readout_e, dark_level=dark, dtype="float32", wedge=0.6,
    )  # fmt: skip
    model = estimate_noise(torch.as_tensor(s.series.frames - np.float32(dark)))
    mean = float(s.expected.mean())
    true = (mean + readout_e**2) / gain_e**2
    assert float(model.variance(torch.tensor(mean / gain_e))) == pytest.approx(true, rel=0.06)
    everything = float(np.var(s.series.frames[0]))  # the variance of the frame itself, structure included
    assert everything > 2 * true
    assert model.per_count * gain_e == pytest.approx(1, rel=0.15)


def test_variance_never_vanishes_in_vacuum() -> None:
    assert float(NoiseModel.poisson(1.0).variance(torch.tensor(0.0))) > 0
    assert float(NoiseModel(0.0, 0.0).variance(torch.tensor(0.0))) > 0
    assert float(NoiseModel.poisson(4.0).variance(torch.tensor(20.0))) == pytest.approx(5.0)


def test_frames_without_noise_have_next_to_none() -> None:
    assert float(estimate_noise(torch.ones(2, 64, 64)).variance(torch.tensor(1.0))) < 1e-6


def test_a_source_measures_the_noise_when_the_gain_is_unknown(rng) -> None:
    frames = (rng.poisson(30, (4, 96, 128)) * 25 + 300).astype(np.uint16)
    noise = source(frames, gain_e=None, dark_level=300.0).noise
    assert float(noise.variance(torch.tensor(750.0))) == pytest.approx(30 * 625, rel=0.05)
    assert source(frames, gain_e=1 / 25, dark_level=300.0).noise.per_count == 25
