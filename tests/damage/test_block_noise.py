"""Noise of a region from what its blocks add beyond their share, on sums whose noise is known."""

from __future__ import annotations

import numpy as np
import pytest

from atomdiffuser.damage import uncertainty
from atomdiffuser.damage.uncertainty import block_noise

T, BLOCKS, ENERGY, N, SIGNAL = 70, 60, 50.0, 144.0, 20.0
LEFT = np.exp(-1.2 * np.arange(1, T + 1) / T)
SCATTER = 0.05  # 1 σ of one block, over what it shows
MEMBER = np.arange(BLOCKS + 5) >= 5  # five atoms belong to others
WITNESSES = ("signal_ratio", "lattice", "order")


def sums(seed: int = 0) -> dict[str, np.ndarray]:
    """Blocks that decay, each at its own pace, with independent noise on mass and lattice."""
    random = np.random.default_rng(seed)
    shape = (T, BLOCKS + 5)
    left = LEFT[:, None] ** random.uniform(0.7, 1.3, shape[1])
    noise = lambda size: SCATTER * size * random.normal(size=shape)
    full = lambda value: np.full(shape, value)
    return {
        "n": full(N), "raw": N * SIGNAL * left + noise(N * SIGNAL), "template": full(N * SIGNAL), "l": full(0.0),
        "l_template": full(0.0), "raw_l": N * ENERGY * left + noise(N * ENERGY), "ll": full(1.2 * N * ENERGY),
        "noise_ll": full(0.2 * N * ENERGY), "v_ll": full(N * ENERGY), "variance": full(1.0), "l_elsewhere": full(0.0),
    }  # fmt: skip


def noise_of(given: dict[str, np.ndarray], witness: str, sigma: float = SCATTER / BLOCKS**0.5):
    ones = {name: np.ones(T) for name in ("lattice", "signal_ratio")}
    return block_noise(given, MEMBER, np.arange(T), witness, np.full(T, sigma), ones)


@pytest.mark.parametrize("witness", ["signal_ratio", "lattice"])
def test_scatter_of_the_blocks_is_found_whatever_was_expected(witness):
    """σ of a mean over blocks; courses of their own, which are far larger, do not count."""
    right = SCATTER / BLOCKS**0.5
    for expected in (right, right / 2):
        found = noise_of(sums(), witness, expected)
        assert found.dispersion == pytest.approx((right / expected) ** 2, rel=0.1)
        assert found.sigma == pytest.approx(np.full(T, right), rel=0.06)
        assert np.sqrt((found.parts.astype(float) ** 2).sum(1).mean()) == pytest.approx(right, rel=0.06)


def test_order_has_the_noise_of_both():
    """Lattice over mass: their relative errors add in squares."""
    lost = noise_of(sums(), "order", SCATTER / BLOCKS**0.5)
    assert (lost.parts.astype(float) ** 2).sum(1)[-1] == pytest.approx(2 * SCATTER**2 / BLOCKS / LEFT[-1] ** 2, rel=0.5)
    assert (lost.parts.astype(float) ** 2).sum(1)[0] == pytest.approx(2 * SCATTER**2 / BLOCKS, rel=0.5)


@pytest.mark.parametrize("witness", WITNESSES)
def test_reading_some_frames_at_a_time_and_single_precision_change_nothing(monkeypatch, witness):
    given = sums(3)
    whole = noise_of(given, witness)
    monkeypatch.setattr(uncertainty, "FRAMES_AT_ONCE", 7)
    parted = noise_of(given, witness)
    short = noise_of({name: values.astype(np.float32) for name, values in given.items()}, witness)
    size = np.abs(whole.parts).max()
    assert np.array_equal(parted.parts, whole.parts)
    assert np.abs(short.parts - whole.parts).max() < 2e-5 * size
    assert short.dispersion == pytest.approx(whole.dispersion, rel=1e-4)


def test_sums_are_left_as_they_are():
    given = sums(4)
    before = {name: values.copy() for name, values in given.items()}
    noise_of(given, "order")
    assert all(np.array_equal(values, before[name]) for name, values in given.items())


def test_one_frame_says_nothing_of_its_noise():
    given = {name: values[:1] for name, values in sums().items()}
    ones = {name: np.ones(1) for name in ("lattice", "signal_ratio")}
    found = block_noise(given, MEMBER, np.arange(1), "lattice", np.array([0.1]), ones)
    assert not found.parts.any() and found.sigma == 0.1 and found.dispersion == 1.0
