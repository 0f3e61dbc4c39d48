"""Lattice alternatives: doubt where only a perfect lattice is seen, certainty where vacancies mark the place."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from measured_pairs import SHAPE, error_px

from atomdiffuser.estimation.alternatives import hop_probability
from atomdiffuser.estimation.api import estimate_pairs
from atomdiffuser.simulation import simulate_series

PERIOD = 13.0


@cache
def lattices(vacancies: float, n: int = 16, drift_px: float = 2.0):
    """Pairs on a lattice of 13 px: estimate, error, and whether it hopped."""
    frames, true = [], []
    for seed in range(n):
        s = simulate_series(
            "SrTiO3", n_frames=2, shape=SHAPE, pixel_size_nm=0.03, electrons_per_px=60, damage="none",
            vacancies=vacancies, wedge=0.0, seed=seed, drift_px_per_frame=drift_px, random_walk_px=0,
        )  # fmt: skip
        frames.append(s.series.frames)
        true.append(s.frame_from_reference[1])
    reference, moving = np.stack(frames, 1)
    found = estimate_pairs(reference, moving, maps=False)
    error = error_px(np.where(found.valid[:, None, None], found.moving_from_reference, 0), np.stack(true))
    return found, error, error > PERIOD / 2


def test_vacancies_make_certain() -> None:
    found, error, hopped = lattices(0.15)
    assert found.valid.all() and not hopped.any() and found.hop_probability.max() < 0.01
    assert not found.ambiguous.any()
    assert error.max() < 0.25  # doing nothing errs by 2


LONG = 8.0  # more than half of the lattice's period: the short way is the wrong one


def test_a_perfect_lattice_is_in_doubt() -> None:
    """Short ways are likelier beforehand: by that alone all other lattice vectors together have 0.45."""
    found, _, _ = lattices(0.0)
    steps = np.hypot(*np.mgrid[-6:7, -6:7].reshape(2, -1))  # of the lattice
    odds = (1 + (2 * steps) ** 2) ** -1.5
    assert 1 - odds.max() / odds.sum() == pytest.approx(0.45, abs=0.01)
    assert 0.15 < np.median(found.hop_probability) < 0.5 and found.ambiguous.all()
    assert lattices(0.0, drift_px=LONG)[2].any()  # otherwise there was nothing to doubt


def test_an_error_on_a_perfect_lattice_is_a_lattice_vector() -> None:
    _found, error, hopped = lattices(0.0, drift_px=LONG)
    off = error[hopped] / PERIOD
    vectors = np.unique(np.hypot(*np.mgrid[0:4, 0:4]).ravel())
    assert np.abs(off[:, None] - vectors).min(1).max() < 0.06


def test_doubt_is_as_large_as_it_should_be() -> None:
    """Short and long drifts alike: what is known beforehand says nothing then."""
    found, _, hopped = zip(*(lattices(0.0, drift_px=d) for d in (2.0, LONG)), strict=True)
    p, hopped = np.concatenate([f.hop_probability for f in found]), np.concatenate(hopped)
    assert hopped.sum() <= p.sum() + 2 * np.sqrt((p * (1 - p)).sum())
    assert p[hopped].min() > 0.05  # no hop that is sure of itself
    assert np.concatenate([f.ambiguous for f in found])[hopped].all()


def test_on_a_perfect_lattice_the_short_way_is_taken() -> None:
    _, _, hopped = lattices(0.0)
    assert hopped.mean() < 0.5


def test_probability_is_what_is_left_for_the_others() -> None:
    odds = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, -20.0, -30.0], [1.0, 3.0, -torch.inf]], dtype=torch.float64)
    chosen = torch.tensor([0, 0, 1])
    p = hop_probability(odds, chosen)
    assert p.tolist() == pytest.approx([0.5, 2e-9, 1 / (1 + np.exp(2))], abs=1e-8)
