"""Lattice hops of a series: settled by the means of both sides of a link, or on record as ambiguous."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from measured_pairs import error_px, series, source

from atomdiffuser import geometry as g
from atomdiffuser.config import RegisterSettings
from atomdiffuser.estimation.drift import estimate_drift
from atomdiffuser.estimation.drift_tables import pairs_table, trajectory_table
from atomdiffuser.estimation.hops import Links, settle_links
from atomdiffuser.estimation.register import FitOptions

N = 6
MARKED = dict(n_frames=N, electrons_per_px=20.0, vacancies=0.1, drift_px_per_frame=1.5)


def links_of(simulated, hop_at: int, vector: torch.Tensor, doubt: float) -> Links:
    """True links, the one at `hop_at` off by a lattice vector and in doubt."""
    true = torch.as_tensor(simulated.frame_from_reference)
    steps = true[1:] @ g.invert(true[:-1])
    steps[hop_at] = g.translation(vector) @ steps[hop_at]
    hops = np.full(N - 1, 1e-9)
    hops[hop_at] = doubt
    return Links([(k, k + 1) for k in range(N - 1)], steps, hops, np.ones(N - 1, bool))


@pytest.fixture(scope="module")
def marked():
    return series(**MARKED)


@pytest.fixture(scope="module")
def unmarked():
    """A perfect lattice: nothing tells a lattice vector."""
    return series(n_frames=4, vacancies=0.0, wedge=0.0, drift_px_per_frame=1.5)


def test_a_doubtful_link_that_hopped_is_put_right_by_the_means_of_both_sides(marked) -> None:
    src = source(marked)
    hopped = links_of(marked, 2, torch.as_tensor(marked.lattice_vectors_px[0]), 0.3)
    settled, changed = settle_links(src, hopped, FitOptions(src.noise, src.scales, max_shift_px=32.0))
    assert changed == [2] and settled.hop_probability[2] < 0.02  # 0.3 before
    true = torch.as_tensor(marked.frame_from_reference)
    assert error_px(hopped.chain(N), true).max() > 10  # all that follows shares the hop
    assert error_px(settled.chain(N), true).max() < 0.5


def test_links_without_doubt_and_links_that_do_not_hold_are_left_alone(marked) -> None:
    src = source(marked)
    options = FitOptions(src.noise, src.scales, max_shift_px=32.0)
    hopped = links_of(marked, 2, torch.as_tensor(marked.lattice_vectors_px[0]), 1e-6)
    assert settle_links(src, hopped, options)[1] == []
    broken = replace(hopped, hop_probability=np.full(N - 1, 0.3), holds=np.arange(N - 1) != 2)
    assert 2 not in settle_links(src, broken, options)[1]


def test_a_chain_is_as_doubtful_as_its_links(marked) -> None:
    links = replace(
        links_of(marked, 2, torch.zeros(2, dtype=torch.float64), 0.0),
        hop_probability=np.array([0.0, 0.5, 0.0, 0.2, 0.0]),
    )
    assert links.hop_between(0, 1) == 0 and links.hop_between(3, 1) == pytest.approx(0.5)
    assert links.hop_between(0, 5) == pytest.approx(1 - 0.5 * 0.8)
    cut = replace(links, holds=np.array([True, False, True, True, True]))
    assert not cut.unbroken(0, 3) and cut.unbroken(2, 5)


def test_a_perfect_lattice_is_ambiguous_and_names_its_vectors(unmarked) -> None:
    src = source(unmarked)
    found = estimate_drift(src, RegisterSettings(groupwise_rounds=0))
    frames, pairs = trajectory_table(found, unmarked.series), pairs_table(found, unmarked.series)
    assert frames["ambiguous"].tolist() == [False, True, True, True] and frames["valid"].all()
    assert frames["hop_probability"].iloc[0] == 0 and frames["hop_probability"].is_monotonic_increasing
    assert pairs["ambiguous"].all() and pairs["valid"].all()
    words = {*frames["reason"][1:], *pairs["reason"]}
    assert len(words) == 1 and words.pop().startswith("ambiguous modulo lattice (") and frames["reason"][0] == ""


def test_a_lattice_with_marks_is_not_ambiguous(marked) -> None:
    found = estimate_drift(source(marked), RegisterSettings(groupwise_rounds=0))
    assert not found.ambiguous_frames.any() and not found.ambiguous_pairs.any()
    assert np.nanmax(found.frame_hop_probability) < 0.05
    assert set(trajectory_table(found, marked.series)["reason"]) == {""}


def test_the_vectors_span_the_lattice(unmarked) -> None:
    found, true = source(unmarked).lattice_vectors_px, unmarked.lattice_vectors_px
    steps = found @ np.linalg.inv(true)
    assert np.abs(steps - steps.round()).max() < 0.05 and abs(np.linalg.det(steps)) == pytest.approx(1, abs=0.1)
