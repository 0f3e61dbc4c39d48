"""What a template is made of, on numbers: frames that have lost p of the lattice, maps that say m."""

from __future__ import annotations

import numpy as np
import pytest

from atomdiffuser.damage.mixture import LATTICE_POWERS, MASS, consistent_factors
from atomdiffuser.damage.template import frame_weight

L, ENERGY, SIGNAL = 3.0, 50.0, 400.0  # error of the assumed lattice that all frames share, and sums of an intact atom
DECAYS = {
    "slow": np.exp(-np.arange(12) / 8),
    "sudden": np.r_[1.0, np.full(5, 0.08)],  # the first frame outweighs all others
    "three": np.array([1.0, 0.3, 0.1]),
    "two": np.array([1.0, 0.4]),
    "growth": np.r_[1.0, 1.2, 1.4, 1.9, 2.5],
    "backwards": np.exp(-np.arange(8) / 3)[::-1] / np.exp(-7 / 3),  # relative to the last
}


def weights_of(contrast: np.ndarray) -> np.ndarray:
    return np.array([frame_weight(np.full((2, 2), c)) for c in contrast])


def sums_of(left: np.ndarray, maps: np.ndarray, weights: np.ndarray, taken: np.ndarray | None = None):
    """Sums (t, atoms) of frames that show `left` (t, atoms) of lattice and mass, measured with `maps` (t, atoms)."""
    others = lambda values: weights @ values - weights[:, None] * values
    shown, assumed = others(left), others(maps) if taken is None else taken
    intact = L * shown / assumed  # what is taken for the intact lattice, over the truth
    zero = np.zeros_like(left)
    return {
        "raw": SIGNAL * left, "template": SIGNAL * intact, "l_template": zero, "l_elsewhere": zero,
        "template_intensity": SIGNAL * intact * maps, "raw_l": ENERGY * left * intact, "ll": ENERGY * intact**2,
        "noise_ll": zero, "l": 7 * intact, "v_ll": ENERGY * intact**2, "ll_y": zero, "ll_x": zero,
        "ll_contrast": ENERGY * intact**2 * maps,
    }  # fmt: skip


def consistent(sums: dict[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    factors = consistent_factors({name: values.sum(1) for name, values in sums.items()}, weights)
    return {name: values * factors.get(name, 1.0) for name, values in sums.items()}


def courses(sums) -> tuple[np.ndarray, np.ndarray]:
    lattice = sums["raw_l"].sum(1) / (sums["ll"] - sums["noise_ll"]).sum(1)
    mass = sums["raw"].sum(1) / sums["template"].sum(1)
    return lattice / lattice[0], mass / mass[0]


@pytest.mark.parametrize("decay", list(DECAYS))
def test_maps_that_are_all_wrong_but_the_references_are_made_up_for(decay) -> None:
    left = DECAYS[decay][:, None]
    reference = -1 if decay == "backwards" else 0
    maps = left * np.where(np.arange(len(left)) == np.arange(len(left))[reference], 1.0, 0.85)[:, None]
    sums = sums_of(left, maps, weights_of(maps[:, 0]))
    true = (left / left[0])[:, 0]
    for found, before in zip(courses(consistent(sums, weights_of(maps[:, 0]))), courses(sums), strict=True):
        assert np.abs(found / true - 1).max() < 1e-6 < 0.02 < np.abs(before / true - 1).max()


def test_maps_that_are_right_are_left_alone_where_damage_is_uneven() -> None:
    """Two fifths of the field are lost at once: what is typical of a map is not what the field shows."""
    left = np.ones((10, 5))
    left[5:, :2] = 0.0
    weights = np.ones(10)
    sums = sums_of(left, left, weights)
    for found, before in zip(courses(consistent(sums, weights)), courses(sums), strict=True):
        assert np.allclose(found, before, rtol=1e-9)


def test_a_frame_that_shows_nothing_of_the_regions_counts_for_nothing() -> None:
    left = DECAYS["slow"][:, None]
    maps = left * np.r_[1.0, np.full(11, 0.85)][:, None]
    keep, weights = np.arange(12) != 4, weights_of(maps[:, 0])
    part = sums_of(left[keep], maps[keep], weights[keep])
    sums = {name: np.insert(values, 4, 0.0, axis=0) for name, values in part.items()}
    alone, found = consistent(part, weights[keep]), consistent(sums, weights)
    assert all(np.allclose(found[name][keep], alone[name]) for name in part)
    assert not np.allclose(found["ll"][keep], part["ll"]) and all((values[4] == 0).all() for values in found.values())


def test_maps_below_the_least_contrast_are_taken_for_as_much_as_the_template_was() -> None:
    """The reference meets a template that is not scaled up further: it does not lose to the others by that."""
    left = np.r_[1.0, np.full(5, 0.02)][:, None]
    weights = weights_of(left[:, 0])
    others = lambda values: weights @ values - weights[:, None] * values
    sums = sums_of(left, left, weights, np.maximum(others(left), 0.05 * others(np.ones_like(left))))
    assert courses(sums)[0][1] == pytest.approx(0.008)  # the reference counts 2.5 times as much
    assert courses(consistent(sums, weights))[0][1] == pytest.approx(0.02)


@pytest.mark.parametrize("frames", [0, 1])
def test_without_others_there_is_nothing_to_compare(frames) -> None:
    sums = {name: values[:frames] for name, values in sums_of(*[np.ones((2, 3))] * 2, np.ones(2)).items()}
    found = consistent(sums, np.ones(frames))
    assert all(np.array_equal(found[name], sums[name]) for name in sums)


def test_noise_in_place_of_a_lattice_is_left_as_it_is() -> None:
    random = np.random.default_rng(0)
    sums = sums_of(*[np.ones((6, 4))] * 2, np.ones(6))
    for name in ("raw_l", "ll"):
        sums[name] = random.normal(size=(6, 4))
    sums["raw_l"] -= sums["raw_l"].mean() + 0.1
    sums["ll"] = np.abs(sums["ll"])
    found = consistent(sums, np.ones(6))
    assert all(np.array_equal(found[name], sums[name]) for name in LATTICE_POWERS if name in sums)
    assert set(MASS) <= set(found)
