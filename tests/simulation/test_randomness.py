import pytest
import torch

from atomdiffuser.errors import SettingsError
from atomdiffuser.simulation.randomness import Draws, RandomStreams


def numbers(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(4000, generator=generator)


def test_same_seed_and_name_give_the_same_numbers():
    assert torch.equal(numbers(RandomStreams(7).generator("x")), numbers(RandomStreams(7).generator("x")))


def test_names_seeds_and_children_give_independent_numbers():
    streams = RandomStreams(7)
    drawn = [numbers(streams.generator(name)) for name in ("x", "y")]
    drawn += [numbers(streams.child("a").generator("x")), numbers(RandomStreams(8).generator("x"))]
    correlations = torch.corrcoef(torch.stack(drawn)) - torch.eye(4)
    assert correlations.abs().max() < 0.08  # 5 standard deviations of 4000 independent pairs


def test_a_name_is_taken_once():
    streams = RandomStreams(7)
    streams.generator("x")
    with pytest.raises(SettingsError, match="'x' is already in use"):
        streams.child("x")


def test_a_generator_gives_other_streams_each_time():
    generator = torch.Generator().manual_seed(3)
    first, second = (numbers(RandomStreams(generator).generator("x")) for _ in range(2))
    assert not torch.equal(first, second)
    again = numbers(RandomStreams(torch.Generator().manual_seed(3)).generator("x"))
    assert torch.equal(first, again)


def test_draws_keep_their_bounds():
    draws = Draws(2000, RandomStreams(1))
    uniform, logarithmic = draws.uniform("a", -2, 3), draws.log_uniform("b", 2, 500)
    assert -2 <= uniform.min() and uniform.max() < 3 and uniform.mean() == pytest.approx(0.5, abs=0.15)
    assert 2 <= logarithmic.min() and logarithmic.max() < 500
    assert logarithmic.median() == pytest.approx(1000**0.5, rel=0.2)  # the middle of the logarithm, not of the range
    assert torch.allclose(draws.directions("c", 3).norm(dim=-1), torch.ones(2000, 3).double())
    assert draws.chance("d", 0.25).double().mean() == pytest.approx(0.25, abs=0.05)
