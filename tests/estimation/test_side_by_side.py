"""Batches by several threads: in order, the same numbers, and no trace of them afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from measured_pairs import SHAPE, pairs, source

from atomdiffuser.estimation.api import estimate_pairs
from atomdiffuser.estimation.frame_source import shares
from atomdiffuser.estimation.pair_work import FitUnknown
from atomdiffuser.estimation.register import FitOptions
from atomdiffuser.estimation.side_by_side import side_by_side


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_and_parts_are_taken_as_they_are_needed(threads) -> None:
    taken, both = [], threading.Barrier(2, timeout=30)

    def parts() -> Iterator[int]:
        for k in range(7):
            taken.append(k)
            yield k

    def run(k: int) -> int:
        if k < 2:
            both.wait()  # passed only by two at a time
        assert torch.get_num_threads() == 1
        return k * k

    found = side_by_side(run, parts(), 2)
    assert next(found) == 0 and len(taken) <= 4
    assert list(found) == [k * k for k in range(1, 7)] and torch.get_num_threads() == 3


def test_an_error_stops_the_rest_and_leaves_the_threads_as_they_were(threads) -> None:
    begun = []

    def run(k: int) -> int:
        begun.append(k)
        if k == 1:
            raise ValueError("no")
        return k

    with pytest.raises(ValueError, match="no"):
        list(side_by_side(run, range(100), 2))
    assert len(begun) < 10 and torch.get_num_threads() == 3


def test_pairs_have_the_same_numbers_whatever_the_threads(threads) -> None:
    batch = pairs(40)
    estimate = lambda: estimate_pairs(batch.reference.numpy(), batch.moving.numpy(), predict=False, maps=False)
    together = estimate()
    torch.set_num_threads(1)
    alone = estimate()
    assert alone.valid.all() and together.valid.all()
    assert np.allclose(together.moving_from_reference, alone.moving_from_reference, atol=1e-5)
    # Odds of up to 12 from sums in single precision, whose order follows the batches: some millionths of a probability.
    assert np.allclose(together.hop_probability, alone.hop_probability, atol=1e-5)


def test_a_series_is_fitted_in_order_and_each_pair_is_counted(threads, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pairs(20)
    src = source(np.stack([batch.reference.numpy(), batch.moving.numpy()], 1).reshape(-1, *SHAPE))
    todo, counted = [(2 * k, 2 * k + 1) for k in range(20)], []
    src.batch = 3
    work = FitUnknown(FitOptions(src.noise, src.scales))
    assert shares(src.shape, src.device, src.batch)[0] == 3
    found = work(src, todo, counted.append)
    assert counted == [3] * 6 + [2]
    torch.set_num_threads(1)
    alone = work(src, todo, lambda n: None)
    assert torch.allclose(found.moving_from_reference, alone.moving_from_reference, atol=1e-5)


def test_a_frame_is_prepared_once_for_all_threads_and_read_ahead_ends_with_an_error(threads, monkeypatch) -> None:
    batch = pairs(20)
    src, prepared = source(batch.reference.numpy()), []
    prepare = type(src)._prepare
    monkeypatch.setattr(type(src), "_prepare", lambda self, new: prepared.extend(new) or prepare(self, new))
    todo = [(k, k + lag) for lag in (1, 2, 4) for k in range(16)]
    src.batch = 8
    src.in_batches(todo, lambda part, first, second: part)
    assert len(prepared) < 1.5 * 20
    with pytest.raises(ValueError, match="no"):
        src.in_batches(todo, lambda part, first, second: [][0] if part.start < 0 else int("no"))
    assert not src._at_hand and not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_calls_that_overlap_leave_the_threads_as_they_were(threads) -> None:
    first, second = (side_by_side(lambda k: k, range(9), 2) for _ in range(2))
    next(first), next(second)
    first.close()
    assert torch.get_num_threads() == 1
    second.close()
    assert torch.get_num_threads() == 3


def test_large_frames_go_one_at_a_time(threads) -> None:
    src = source(pairs(2).reference.numpy())
    src.shape = (2048, 2048)
    src.batch = 1
    assert shares(src.shape, src.device, src.batch) == (1, 1)
