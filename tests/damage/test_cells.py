"""Weights of a region's parts: what is out of view or was damaged first must not bend the course of the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from atomdiffuser.damage.balance import Balanced, balance
from atomdiffuser.damage.cells import courses_of_cells
from atomdiffuser.damage.observables import observe
from atomdiffuser.damage.regions import RegionMask, block_size_px, grid_regions, join_regions

BLOCK, T = 12, 20
REGIONS = grid_regions((96, 96), (1, 1)).with_blocks(BLOCK)  # 8 × 8 blocks, 4 × 4 cells
AT = np.arange(1, T + 1) / T
MIDDLE = np.stack([np.bincount(REGIONS.atoms.ravel(), at.ravel()) / BLOCK**2 for at in np.indices((96, 96))], 1)


def sums_of(
    rates: np.ndarray, seen: np.ndarray, noise: float = 0.0, seed: int = 0, lattice_at: np.ndarray = MIDDLE
) -> dict[str, np.ndarray]:
    """Sums as a series would give them whose atoms (64,) decay at `rates`, seen (t, 64) as far as 0…1, where their
    lattice lies (64, 2).

    The template is the mean of what was seen, and carries the mean damage of those frames.
    """
    random = np.random.default_rng(seed)
    left = np.exp(-rates * AT[:, None])
    mean = ((seen * left).sum(0) / seen.sum(0)) ** 0.4  # κ of the template, of which the maps have seen to a part
    n, power = 144.0 * seen, 50.0
    shaken = lambda size: noise * size * random.normal(size=n.shape)
    zero, energy = np.zeros_like(n), n * power * mean**2
    return {
        "n": n, "raw": n * 20 * left + shaken(n * 20), "template": n * 20 * mean, "variance": n * 20,
        "l_elsewhere": zero, "crystal": n, "raw_l": n * power * left * mean + shaken(n * power * mean),
        "ll": energy, "noise_ll": zero, "l": zero, "l_template": zero, "v_ll": energy * 20,
        "ll_y": energy * lattice_at[:, 0], "ll_x": energy * lattice_at[:, 1],
    }  # fmt: skip


def weighed(sums: dict[str, np.ndarray], found: Balanced) -> dict[str, np.ndarray]:
    return {key: values * found.weights.get(key, 1.0) for key, values in sums.items()}


def course(sums: dict[str, np.ndarray], name: str, balanced: bool = True) -> np.ndarray:
    """(t,) of the whole field, from 1 on."""
    found = balance(sums, REGIONS, BLOCK)
    y = getattr(observe(weighed(sums, found) if balanced else sums, REGIONS.membership), name)[:, 0]
    y = y * found.completion[name][:, 0] if balanced else y
    return y / y[0]


def leaving() -> np.ndarray:
    """The right quarter drifts out of view."""
    column = np.arange(64) % 8 // 2 * 2
    return np.where(column[None] > 6.5 - 4 * np.clip(AT - 0.4, 0, None)[:, None], 0.0, 1.0)


@pytest.mark.parametrize("name", ["lattice", "signal_ratio"])
def test_even_loss_is_the_same_however_much_is_seen(name) -> None:
    sums = sums_of(np.full(64, 1.5), leaving())
    true = np.exp(-1.5 * (AT - AT[0]))
    assert np.abs(course(sums, name) / true - 1).max() < 0.01
    assert np.abs(course(sums, name, balanced=False) / true - 1).max() > 0.02


def test_uneven_loss_of_contrast_is_that_of_the_area() -> None:
    """Cells that fade first would count for less, since the template shows little of them."""
    name, rates = "lattice", np.where(np.arange(64) // 8 < 4, 4.0, 0.5)
    sums = sums_of(rates, np.ones((T, 64)), noise=0.02)
    left = np.exp(-rates * AT[:, None]).mean(1)
    error = lambda balanced: np.abs(course(sums, name, balanced) - left / left[0]).max()
    assert error(True) < 0.02 and error(False) > 0.06


def test_columns_off_the_middle_of_a_region_do_not_shift_it_down_a_slope() -> None:
    """Damage grows from left to right, and each block's columns stand near its right border: they show too much."""
    off = np.array([0.0, 4.0])
    rates = lambda places: 0.4 + 3.0 * places[:, 1] / 96
    sums = sums_of(rates(MIDDLE + off), np.ones((T, 64)), lattice_at=MIDDLE + off)
    left = np.exp(-rates(MIDDLE) * AT[:, None]).mean(1)
    error = lambda found: np.abs(course(found, "lattice") / (left / left[0]) - 1).max()
    unmoved = sums | {"ll_y": sums["ll"] * MIDDLE[:, 0], "ll_x": sums["ll"] * MIDDLE[:, 1]}
    assert error(unmoved) > 0.06 and error(sums) < 0.3 * error(unmoved)


@pytest.mark.parametrize("name", ["lattice", "signal_ratio"])
def test_what_left_the_view_goes_on_as_its_cell_did(name) -> None:
    """The half that leaves is the one that fades fast: what stays in view would say that the rest had not."""
    rates = np.where(np.arange(64) % 8 > 5, 4.0, 0.3)
    sums = sums_of(rates, leaving(), noise=0.01)
    left = np.exp(-rates * AT[:, None]).mean(1)
    error = lambda balanced: np.abs(course(sums, name, balanced) - left / left[0]).max()
    assert error(True) < 0.04 and error(False) > 2 * error(True)
    found = balance(sums, REGIONS, BLOCK)
    assert found.sigma[name][-1, 0] > 0.003  # and it is said to be less sure than what is seen
    even = balance(sums_of(np.full(64, 1.0), np.ones((T, 64))), REGIONS, BLOCK)
    assert even.sigma[name].max() < 0.3 * found.sigma[name].max()


def test_noise_alone_changes_nothing() -> None:
    sums = sums_of(np.zeros(64), np.ones((T, 64)), noise=0.1, seed=3)
    for name in ("lattice", "signal_ratio"):
        assert np.abs(course(sums, name) - course(sums, name, balanced=False)).max() < 0.01


def test_two_frames_are_left_as_they_are() -> None:
    sums = {name: values[:2] for name, values in sums_of(np.ones(64), np.ones((T, 64))).items()}
    found = balance(sums, REGIONS, BLOCK)
    assert found.weights == {} and np.all(found.completion["lattice"] == 1) and np.all(found.sigma["lattice"] == 0)


def test_a_region_that_comes_into_view_late_is_not_called_sure() -> None:
    """Where the first frame shows nothing of it, it is compared with the first that does."""
    sums = sums_of(np.where(np.arange(64) % 8 > 5, 4.0, 0.3), leaving()[::-1], noise=0.01)
    right = np.arange(64) % 8 > 5
    regions = replace(REGIONS, membership=np.stack([np.ones(64, bool), right]))
    assert (sums["n"][0, right] == 0).all() and (sums["n"][-1, right] > 0).any()
    found = balance(sums, regions, BLOCK)
    assert all(sigma[0, -1] == 0 and (sigma[-5:, -1] > 0).all() for sigma in found.sigma.values())


def test_without_a_lattice_nothing_of_it_is_taken_off_the_mass() -> None:
    """Noise over noise can be any amplitude, here 200 times the lattice's: it would bend the course of the mass."""
    sums, random = sums_of(np.full(64, 0.5), np.ones((T, 64)), noise=0.01), np.random.default_rng(5)
    nothing = {"raw_l": 200 + random.normal(size=(T, 64)), "ll": np.ones((T, 64)), "v_ll": np.full((T, 64), 1e6)}
    slope = {"l": np.linspace(-1, 1, T)[:, None] * np.linspace(-1, 1, 64)}
    found, plain = (balance(sums | nothing | more, REGIONS, BLOCK) for more in (slope, {}))
    assert np.allclose(found.weights["template"], plain.weights["template"])


def test_regions_without_a_pixel_have_no_factors() -> None:
    regions = join_regions((96, 96), [RegionMask("empty", np.zeros((96, 96), bool))]).with_blocks(BLOCK)
    found = balance({name: v[:, :0] for name, v in sums_of(np.ones(64), np.ones((T, 64))).items()}, regions, BLOCK)
    assert np.all(found.completion["lattice"] == 1) and np.all(found.sigma["lattice"] == 0)


@pytest.mark.parametrize("shape", [(96, 130), (512, 512), (400, 1500), (2048, 2048)])
def test_blocks_are_as_large_as_cells_take_them_to_be(shape) -> None:
    size = block_size_px(14.0, shape)
    atoms = join_regions(shape, [RegionMask("whole", np.ones(shape, bool))]).with_blocks(size).atoms
    assert (atoms[:size, :size] == atoms[0, 0]).all() and atoms[0, size] != atoms[0, 0] != atoms[size, 0]


def test_a_frame_that_shows_no_cell_changes_none_of_the_others() -> None:
    """The beam's fluctuation is told from the frames that look; forgotten, cells would follow it."""
    random = np.random.default_rng(2)
    beam = random.normal(1, 0.1, T)[:, None]
    expected = np.where(np.arange(6) < 3, 1.0, np.where(np.arange(T) < 6, 1.0, 0.0)[:, None])  # three cells leave
    found, variance, near = beam * np.exp(-AT[:, None]) * expected, np.full((T, 6), 1e-6), np.zeros((6, 6))
    alone = courses_of_cells(found, expected, variance, AT, near)
    blind = lambda values: np.insert(values, 10, 0.0, axis=0)
    with_blind = courses_of_cells(blind(found), blind(expected), blind(variance), np.insert(AT, 10, AT[10]), near)
    assert np.allclose(with_blind.level, alone.level, atol=1e-6)
    assert np.allclose(np.delete(with_blind.curve, 10, 0), alone.curve, atol=1e-6)
