"""Sums over atoms by runs of pixels, against sums pixel by pixel; and what looks on while regions are measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from measured_pairs import series, source

from atomdiffuser import geometry
from atomdiffuser.config import DamageSettings
from atomdiffuser.damage.analysis import measure_regions
from atomdiffuser.damage.atom_sums import (
    STRIP_PX,
    atom_image,
    atoms_of_pixels,
    fit_images,
    fit_sums,
    strips,
    sum_by_atom,
)
from atomdiffuser.damage.regions import RegionMask, grid_regions, join_regions
from atomdiffuser.damage.spots import SpotFits, measure_spots
from atomdiffuser.interpolation import affine_coordinates


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_runs_add_up_to_what_pixels_do(n_atoms, width, seed) -> None:
    rng = np.random.default_rng(seed)
    label = np.sort(rng.integers(0, n_atoms + 1, (1, 7, width)), axis=-1).astype(np.int32)  # the last is none
    images = rng.normal(3, 1, (2, 1, 7, width)).astype(np.float32)
    found = sum_by_atom(map(torch.from_numpy, images), torch.from_numpy(label), n_atoms)
    by_pixel = [[image[label == a].sum(dtype=np.float64) for a in range(n_atoms)] for image in images]
    assert found.shape == (2, n_atoms) and np.allclose(found, by_pixel, rtol=1e-12)


def test_pixels_go_to_the_atom_where_they_lie_on_the_reference_grid() -> None:
    mask = np.zeros((6, 9), bool)
    mask[2, 3] = True
    regions = join_regions((6, 9), [RegionMask("one", mask)])
    atoms = atom_image(regions, torch.device("cpu"))
    assert atoms[2, 3] == 0 and (atoms == 1).sum() == 53
    shift = geometry.translation(torch.tensor([1.0, -2.0], dtype=torch.float64))
    y, x = affine_coordinates(shift[None], (6, 9))
    label = atoms_of_pixels(y, x, torch.ones_like(y, dtype=torch.bool), atoms, 1)
    assert torch.nonzero(label[0] == 0).tolist() == [[1, 5]]
    assert (atoms_of_pixels(y, x, torch.zeros_like(y, dtype=torch.bool), atoms, 1) == 1).all()


@pytest.mark.parametrize("shape", [(5, 2 * STRIP_PX), (7, STRIP_PX // 3), (4, 4)])
def test_strips_cover_every_row_once(shape) -> None:
    seen = np.zeros(shape[0], int)
    for rows in strips(torch.empty(1, *shape)):
        seen[rows] += 1
    assert (seen == 1).all()


def test_sums_of_a_fit_give_back_its_coefficients(rng) -> None:
    parts, true = [torch.as_tensor(rng.normal(size=(1, 20, 30))) for _ in range(3)], np.array([0.5, -2.0, 3.0])
    values = sum(c * part for c, part in zip(true, parts, strict=True))
    label = torch.as_tensor(np.arange(30, dtype=np.int32) // 15).expand(1, 20, 30).contiguous()
    normal, spread, right = fit_sums(sum_by_atom(fit_images(values, parts, torch.full_like(values, 4.0)), label, 2), 3)
    assert np.allclose(np.linalg.solve(normal, right[..., None])[..., 0], true)
    assert np.allclose(spread, 4 * normal) and np.allclose(normal, normal.transpose(0, 2, 1))


def test_spots_seen_along_with_regions_are_those_seen_afterwards() -> None:
    s = series(n_frames=4, shape=(96, 120), critical_fluence=10000.0, electrons_per_px=100.0)
    src, valid, regions = source(s), np.ones(4, bool), grid_regions((96, 120), (2, 2))
    fits = SpotFits(src, 3)
    measured = measure_regions(src, s.frame_from_reference, valid, 0, regions, DamageSettings(), onlooker=fits)
    along, after = fits.amplitudes(measured), measure_spots(src, s.frame_from_reference, measured, 3)
    assert len(along.shells) == len(after.shells) > 0 and np.isfinite(along.amplitude).all()
    assert np.allclose(along.amplitude, after.amplitude, rtol=1e-9) and np.allclose(along.sigma, after.sigma, rtol=1e-9)
