import numpy as np
import pytest
import torch

from atomdiffuser.errors import SettingsError
from atomdiffuser.simulation.detection import Detector, detect, gain_drift, quantise
from atomdiffuser.simulation.randomness import RandomStreams


def counts(expected: float, *, n=(300, 400), seed=0, **detector) -> np.ndarray:
    settings = {"dtype": "float32", **detector}
    return Detector(**settings).detect(torch.full(n, expected), RandomStreams(seed)).astype(float)


@pytest.mark.parametrize("electrons", [2.0, 20.0, 500.0])
def test_mean_and_variance_are_poisson(electrons):
    recorded = counts(electrons)
    assert recorded.mean() == pytest.approx(electrons, abs=5 * (electrons / recorded.size) ** 0.5)
    assert recorded.var() == pytest.approx(electrons, rel=0.03)


def test_counts_are_dark_level_plus_electrons_over_gain():
    recorded = counts(50.0, gain_e=0.25, dark_level=100.0)
    assert recorded.mean() == pytest.approx(100 + 200, abs=0.3)
    assert recorded.var() == pytest.approx(50 / 0.25**2, rel=0.03)


def test_readout_noise_adds_in_quadrature():
    assert counts(9.0, readout_e=4.0, dark_level=200.0).var() == pytest.approx(9 + 16, rel=0.03)


def test_integers_are_rounded_and_clipped():
    eight = Detector(dtype="uint8", gain_e=0.1, dark_level=3.0).detect(torch.tensor([0.0, 1000.0]), RandomStreams(0))
    assert eight.dtype == np.uint8 and eight.tolist() == [3, 255]
    below = Detector(dtype="uint16", readout_e=50.0).detect(torch.zeros(1000), RandomStreams(0))
    assert below.min() == 0 and (below == 0).mean() == pytest.approx(0.5, abs=0.08)


def test_rounding_has_no_bias():
    assert counts(50.0, gain_e=3.0, dtype="uint16").mean() == pytest.approx(50 / 3, abs=0.05)


def test_quantise_to_a_full_scale_each():
    given = torch.tensor([[-2.0, 7.6, 300.0], [-2.0, 7.6, 300.0]])
    assert quantise(given, torch.tensor([[255.0], [torch.inf]])).tolist() == [[0, 8, 255], given[1].tolist()]


def test_nothing_is_detected_where_less_than_nothing_is_expected():
    assert detect(torch.tensor([-3.0]), RandomStreams(0)).item() == 0


def test_gain_wanders_from_one():
    gain = gain_drift(2000, 0.01, RandomStreams(0))
    assert gain[0] == 1 and gain.log().diff().std() == pytest.approx(0.01, rel=0.1)
    assert torch.all(gain_drift(5, 0.0, RandomStreams(0)) == 1)


def test_impossible_detectors_are_refused():
    with pytest.raises(SettingsError, match="dtype 'complex64' is not a detector's"):
        Detector(dtype="complex64")
    with pytest.raises(SettingsError, match="gain_e is 0, expected electrons per count above 0"):
        Detector(gain_e=0)
