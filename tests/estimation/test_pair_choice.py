"""Which pairs are registered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atomdiffuser.pairs import choose_pairs


def test_five_frames_and_two_lags() -> None:
    neighbours, others = choose_pairs(range(5), (1, 2))
    assert neighbours == [(0, 1), (1, 2), (2, 3), (3, 4)] and others == [(0, 2), (1, 3), (2, 4)]


def test_the_chain_steps_over_unusable_frames() -> None:
    neighbours, others = choose_pairs([0, 1, 3, 4], (1, 2))
    assert neighbours == [(0, 1), (1, 3), (3, 4)]
    assert others == []  # 1–3 is a lag of two, and already in the chain


def test_lag_one_is_always_there() -> None:
    neighbours, others = choose_pairs(range(4), (3,))
    assert len(neighbours) == 3 and others == [(0, 3)]


def test_one_frame_or_none_gives_no_pairs() -> None:
    assert choose_pairs([7], (1, 2)) == ([], []) and choose_pairs([], (1,)) == ([], [])


@given(st.sets(st.integers(0, 40), max_size=25).map(sorted), st.lists(st.integers(1, 16), min_size=1, max_size=5))
def test_pairs_point_forwards_are_unique_and_reach_every_frame(usable, lags) -> None:
    neighbours, others = choose_pairs(usable, lags)
    every = neighbours + others
    assert len(set(every)) == len(every) and all(i < j and {i, j} <= set(usable) for i, j in every)
    assert all(j - i in lags for i, j in others)
    wanted = {(i, i + lag) for i in usable for lag in lags if i + lag in usable}
    assert wanted <= set(every)
    assert len(usable) < 2 or {k for pair in neighbours for k in pair} == set(usable)
