import numpy as np
import pytest
import torch

from atomdiffuser.errors import SettingsError
from atomdiffuser.simulation.crystals import CRYSTALS, crystals_in_pixels, named_crystal, random_crystals, rotation
from atomdiffuser.simulation.randomness import Draws, RandomStreams


def distances(crystal) -> np.ndarray:
    """Distances [nm] between all columns of a cell and those of its neighbours."""
    steps = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), -1).reshape(-1, 2) @ crystal.cell_nm
    other = crystal.columns_nm[:, None] + steps
    return np.linalg.norm(crystal.columns_nm[:, None, None] - other[None], axis=-1)


@pytest.mark.parametrize(
    ("name", "shortest_vector_nm", "nearest_columns_nm", "columns"),
    [
        ("SrTiO3", 0.3905, 0.3905 / 2, 4),  # Sr, Ti+O, two O
        ("Si", np.hypot(0.5431 / 2, 0.5431 / np.sqrt(8)), 0.5431 / 4, 2),  # dumbbells: a/4 apart
        ("graphene", 0.2461, 0.2461 / np.sqrt(3), 2),
        ("Au[110]", 0.40786 * np.sqrt(3 / 8), 0.40786 * np.sqrt(3 / 8), 1),
        ("LLZO[100]", 1.29827 / 2, 1.29827 / 8, 7),
        ("LLZO[111]", 1.29827 * np.sqrt(2 / 3), None, 16),
    ],
)
def test_named_crystals_have_literature_distances(name, shortest_vector_nm, nearest_columns_nm, columns):
    crystal = named_crystal(name)
    lengths = np.linalg.norm(crystal.cell_nm, axis=1)
    assert lengths.min() == pytest.approx(shortest_vector_nm, rel=1e-3)
    assert len(crystal.weights) == columns and crystal.weights.max() == 1
    if nearest_columns_nm:
        between = distances(crystal)
        assert between[between > 1e-6].min() == pytest.approx(nearest_columns_nm, rel=1e-3)


def test_every_cell_is_reduced():
    for name in CRYSTALS:
        a, b = named_crystal(name).cell_nm
        assert np.linalg.norm(a) <= np.linalg.norm(b) * (1 + 1e-9)
        assert -1e-9 <= a @ b <= a @ a / 2 * (1 + 1e-9), name


def test_garnet_along_100_has_its_fourfold_axis():
    """Plane group p4: turned by 90° about the column of double lanthanum, the projection falls onto itself."""
    crystal = named_crystal("LLZO[100]")
    axis = crystal.columns_nm[np.argmax(crystal.weights)]
    turned = (crystal.columns_nm - axis) @ np.array([[0.0, 1.0], [-1.0, 0.0]]) + axis
    for column, weight in zip(turned, crystal.weights, strict=True):
        offset = (crystal.columns_nm - column) @ np.linalg.inv(crystal.cell_nm)
        same = np.linalg.norm(offset - np.round(offset), axis=1) < 1e-3
        assert same.sum() == 1 and crystal.weights[same][0] == pytest.approx(weight)


def test_heavier_columns_are_brighter():
    weights = named_crystal("SrTiO3").weights
    strontium, titanium_oxygen, oxygen = sorted(set(np.round(weights, 6)), reverse=True)
    assert titanium_oxygen / strontium == pytest.approx((22**1.7 + 8**1.7) / 38**1.7, abs=1e-5)
    assert oxygen / strontium == pytest.approx((8 / 38) ** 1.7, abs=1e-5)


def test_pixels_may_be_oblong():
    size = torch.tensor([[0.02, 0.04]], dtype=torch.float64)
    crystal = crystals_in_pixels(["SrTiO3"], size)
    assert crystal.cell.abs().amax(1)[0].tolist() == pytest.approx([0.3905 / 0.02, 0.3905 / 0.04])


def test_a_motif_is_padded_with_nothing():
    crystal = crystals_in_pixels(["Au[110]", "LLZO[111]"], torch.full((2, 2), 0.02, dtype=torch.float64))
    assert crystal.columns.shape == (2, 16, 2) and crystal.weights[0].tolist() == [1.0] + [0.0] * 15


def test_unknown_crystals_are_refused():
    with pytest.raises(SettingsError, match="'NaCl' is not known; known are SrTiO3"):
        named_crystal("NaCl")


def test_random_crystals_cover_the_five_lattices():
    crystal = random_crystals(
        Draws(400, RandomStreams(0)), period_px=(8, 40), relative_width=(0.1, 0.2), background=(0.1, 0.5)
    )
    a, b = crystal.cell.unbind(1)
    lengths, cosine = (a.norm(dim=-1), b.norm(dim=-1)), (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    assert torch.all(lengths[0] <= lengths[1] + 1e-9) and torch.all((a * b).sum(-1) <= lengths[0] ** 2 / 2 + 1e-9)
    equal, right, sixty = (lengths[0] - lengths[1]).abs() < 1e-9, cosine.abs() < 1e-9, (cosine - 0.5).abs() < 1e-9
    kinds = [equal & right, ~equal & right, equal & sixty, equal & ~right & ~sixty, ~equal & ~right]
    assert all(int(k.sum()) > 40 for k in kinds)  # 80 of each are expected
    assert (crystal.weights > 0).sum(-1).unique().tolist() == [1, 2, 3, 4]
    assert lengths[0].min() >= 8 and lengths[0].max() <= 40


def test_turning_takes_y_towards_x():
    y_axis = torch.tensor([1.0, 0.0], dtype=torch.float64)
    turned = rotation(torch.tensor([torch.pi / 2], dtype=torch.float64))[0] @ y_axis
    assert turned.tolist() == pytest.approx([0.0, 1.0], abs=1e-12)
