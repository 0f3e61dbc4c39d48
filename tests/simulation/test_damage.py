import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atomdiffuser.errors import SettingsError
from atomdiffuser.geometry import pixel_grid
from atomdiffuser.simulation.damage import (
    KINETICS,
    PATTERNS,
    Damage,
    exposure_for_loss,
    kinetics,
    random_sensitivity,
)
from atomdiffuser.simulation.randomness import Draws, RandomStreams

SHAPE = (48, 64)
POINTS = pixel_grid(SHAPE)[None]


def field(pattern: str, seed: int = 0, n: int = 1, **options):
    return random_sensitivity(
        Draws(n, RandomStreams(seed)), SHAPE, torch.full((n,), PATTERNS.index(pattern)), **options
    )


def damage(pattern: str = "uniform", *, kind: str = "exponential", seed: int = 0, **changes) -> Damage:
    """Contrast alone is lost, unless changed."""
    one, never = torch.ones(1).double(), torch.full((1,), torch.nan).double()
    values = dict(
        sensitivity=field(pattern, seed), intensity_rate=0 * one, contrast_rate=one, intensity_growth=never,
        contrast_growth=never, kind=torch.tensor([KINETICS.index(kind)]), latency=0.3 * one, headroom=2 * one,
    )  # fmt: skip
    values.update({k: torch.tensor([v]).double() for k, v in changes.items()})
    return Damage(**values)


def exposure(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize("kind", KINETICS)
def test_one_over_e_is_left_at_the_critical_fluence(kind):
    left = kinetics(torch.tensor([0.0, 1.0], dtype=torch.float64), kind, 0.3)
    assert left.tolist() == pytest.approx([1.0, math.exp(-1)])


def test_kinetics_have_their_own_shapes():
    exposures = torch.tensor([0.2, 0.5, 3.0], dtype=torch.float64)
    assert kinetics(exposures, "exponential").tolist() == pytest.approx([math.exp(-v) for v in (0.2, 0.5, 3.0)])
    assert kinetics(exposures, "linear").tolist() == pytest.approx(
        [1 - 0.2 * 0.63212, 1 - 0.5 * 0.63212, 0.0], abs=1e-5
    )
    assert kinetics(exposures, "latency", 0.4).tolist() == pytest.approx([1.0, math.exp(-1 / 6), math.exp(-2.6 / 0.6)])


@pytest.mark.parametrize("kind", KINETICS)
def test_exposure_for_a_loss_is_the_inverse(kind):
    loss = torch.linspace(0, 0.95, 20, dtype=torch.float64)
    index, latency = torch.full((20,), KINETICS.index(kind)), torch.full((20,), 0.3).double()
    assert torch.allclose(1 - kinetics(exposure_for_loss(loss, index, latency), index, latency), loss)


def test_unknown_kinetics_are_refused():
    with pytest.raises(SettingsError, match="'sudden' is not known; known are exponential"):
        kinetics(torch.zeros(1), "sudden")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_look_like_their_names(pattern):
    values = field(pattern, seed=3).at(POINTS)[0]
    assert values.min() >= 0 and values.max() <= 1.0001
    if pattern == "uniform":
        assert torch.all(values == 1)
    else:
        assert values.max() - values.min() > 0.2
    if pattern in ("perlin", "holes", "contamination", "edge"):  # smooth: 0.2 is a tenth of the frame
        assert values.diff(dim=0).abs().max() < 0.2 and values.diff(dim=1).abs().max() < 0.2


def test_random_damage_is_ragged_along_lines():
    """Scan jitter displaces its lines: it is rougher from line to line than along them."""
    rough = [field("random", seed=s).at(POINTS)[0] for s in range(12)]
    down, along = (torch.stack([v.diff(n=2, dim=d).square().mean() for v in rough]).mean() for d in (0, 1))
    assert down > 3 * along


def test_edge_damage_begins_at_the_edge_it_is_given():
    front = torch.tensor([[-1.0, 0.0, 0.0]], dtype=torch.float64)  # outside is y < 0
    values = field("edge", front=front).at(POINTS)[0]
    assert torch.all(values.diff(dim=0) < 0) and values[0].min() == 1 and values.diff(dim=1).abs().max() < 1e-12


def test_samples_of_a_batch_do_not_mix():
    pattern = torch.arange(len(PATTERNS))
    batch = random_sensitivity(Draws(len(PATTERNS), RandomStreams(1)), SHAPE, pattern)
    points = POINTS.expand(len(PATTERNS), -1, -1, -1)
    together = batch.at(points)
    moved = points.clone()
    moved[2:] += 7.3
    assert torch.equal(batch.at(moved)[:2], together[:2])
    assert (batch.at(moved)[2:] - together[2:]).abs().amax((1, 2)).min() > 1e-3


def test_contrast_damage_keeps_the_mass():
    intensity, contrast = damage("perlin").maps(POINTS, exposure(1.5))
    assert torch.all(intensity == 1) and contrast.min() < 0.6


def test_intensity_damage_keeps_the_contrast_as_long_as_there_is_room():
    item = damage(intensity_rate=1.0, contrast_rate=0.0)
    intensity, contrast = item.maps(POINTS, exposure(0.5))
    assert intensity[0, 0, 0] == pytest.approx(math.exp(-0.5)) and contrast[0, 0, 0] == 1
    intensity, contrast = item.maps(POINTS, exposure(2.0))
    assert contrast[0, 0, 0] == pytest.approx(2 * math.exp(-2))  # headroom 2: the darkest point is at zero


def test_growth_is_signed():
    intensity, contrast = damage(intensity_rate=1.0, intensity_growth=0.08).maps(POINTS, exposure(1.0))
    assert intensity[0, 0, 0] == pytest.approx(1 + 0.08 * (1 - math.exp(-1)))
    assert contrast[0, 0, 0] == pytest.approx(math.exp(-1))


def test_local_critical_fluence_is_the_inverse_of_sensitivity():
    item = damage("perlin")
    local = 1 / item.sensitivity.at(POINTS)
    _, contrast = item.maps(POINTS, exposure(1.0))
    assert torch.allclose(contrast, torch.exp(-1 / local))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(PATTERNS), st.sampled_from(KINETICS), st.floats(0, 20), st.floats(0, 1), st.floats(1, 4),
    st.integers(0, 10**6),
)  # fmt: skip
def test_losses_stay_between_nothing_and_everything(pattern, kind, fluence, rate, headroom, seed):
    item = damage(pattern, kind=kind, seed=seed, intensity_rate=rate, headroom=headroom)
    before = item.maps(POINTS, exposure(0.0))
    assert all(torch.all(m == 1) for m in before)
    intensity, contrast = item.maps(POINTS, exposure(fluence))
    for value in (intensity, contrast):
        assert value.min() >= 0 and value.max() <= 1
    assert torch.all(contrast <= headroom * intensity + 1e-12)
    later = item.maps(POINTS, exposure(fluence + 1))
    assert all(torch.all(b <= a) for a, b in zip((intensity, contrast), later, strict=True))


def test_moving_to_a_device_keeps_everything():
    item = damage("random")
    moved = item.to("cpu")
    assert [f.name for f in dataclasses.fields(moved)] == [f.name for f in dataclasses.fields(item)]
    assert torch.equal(moved.maps(POINTS, exposure(1.0))[1], item.maps(POINTS, exposure(1.0))[1])
