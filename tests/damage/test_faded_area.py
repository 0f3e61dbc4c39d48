"""The faded share of regions, and an interval that holds under the smooth noise of a map."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from atomdiffuser.damage.faded_area import share_below

SHAPE, WINDOW, NOISE = (60, 80), 3.0, 0.05
ATOMS = np.where(np.arange(80) < 40, 0, 1)[None].repeat(60, 0)
MEMBERSHIP = np.array([[1, 1], [1, 0], [0, 1]])
TRUE = np.linspace(0.2, 0.9, 80)[None] + 0.1 * np.sin(np.arange(60) / 9)[:, None]


def below(values: np.ndarray, sigma: float = NOISE) -> tuple[np.ndarray, ...]:
    return share_below(values, np.full(values.shape, sigma), ATOMS, MEMBERSHIP, 0.5, WINDOW)


def test_shares_are_those_of_each_region() -> None:
    share, low, high = below(np.where(ATOMS == 0, 0.4, 0.6), sigma=1e-3)
    assert np.allclose(share, [0.5, 1, 0]) and np.allclose(low, share) and np.allclose(high, share)


def test_intervals_hold_the_true_share_and_are_not_merely_wide() -> None:
    random, held, width, shares = np.random.default_rng(1), [], [], []
    true = below(TRUE)[0]
    for _ in range(200):
        noise = scipy.ndimage.gaussian_filter(random.normal(size=SHAPE), WINDOW, mode="wrap")
        share, low, high = below(TRUE + NOISE * noise / noise.std())
        held.append((low <= true) & (true <= high))
        width.append(high - low)
        shares.append(share)
    assert (np.mean(held, 0) >= 0.92).all()  # 200 draws of 95 %
    assert (np.mean(width, 0) < 1.4 * 2 * 1.96 * np.std(shares, 0)).all()


def test_what_is_not_mapped_is_nobody_s() -> None:
    values = np.where(ATOMS == 1, np.nan, 0.4)
    share, low, high = below(values)
    assert share[0] == 1 and np.isnan([share[2], low[2], high[2]]).all()


@pytest.mark.parametrize("sigma", [0.0, np.nan])
def test_without_a_known_error_the_interval_is_the_share(sigma: float) -> None:
    share, low, high = below(TRUE, sigma)
    assert np.allclose(low, share) and np.allclose(high, share)
