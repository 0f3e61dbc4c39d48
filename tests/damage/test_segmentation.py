"""Materials told apart, and the dark level found, against simulated truth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from measured_pairs import CPU, series

from atomdiffuser.damage.dark_level import find_dark_level, with_dark_level
from atomdiffuser.damage.segmentation import automatic_masks, segment
from atomdiffuser.estimation.frame_source import FrameSource

SHAPE = (160, 190)


def made(specimen: str = "SrTiO3", **options):
    return series(specimen, **{**dict(n_frames=4, shape=SHAPE, pixel_size_nm=0.02, vacancies=0.02), **options})


def segmented(s, dark: float = 0.0):
    src = FrameSource(s.series, CPU, dark_level=dark, gain_e=None)
    return segment(src, src.prepared([0]))


@pytest.mark.parametrize(
    ("specimen", "options"), [("SrTiO3", {"edge": True}), ("Si", {"amorphous_border": True}), ("nanoparticle", {})]
)
def test_crystal_is_where_the_lattice_is(specimen, options) -> None:
    s = made(specimen, **options)
    found, amplitude = segmented(s), s.lattice_amplitude
    true = amplitude > 0.3 * amplitude.max()
    assert (found.crystal == true).mean() > 0.88 and 0.1 < true.mean() < 0.95
    assert np.array_equal(found.crystal | found.amorphous | found.vacuum, np.ones(SHAPE, bool))
    assert not (found.crystal & found.amorphous).any() and set(np.unique(found.labels())) <= {0, 1, 2}


def test_a_perfect_crystal_is_all_crystal_and_film_is_none() -> None:
    assert segmented(made()).crystal.mean() > 0.98 and automatic_masks(segmented(made()), 2.0, None) == []
    assert not segmented(made("amorphous")).crystal.any()


def test_bands_follow_the_edge() -> None:
    found = segmented(made(edge=True))
    masks = {m.name: m.mask for m in automatic_masks(found, 0.6, (0.02, 0.02))}
    assert {"crystal", "vacuum", "edge_0_0.6_nm", "edge_0.6_1.2_nm", "interior_1.2_nm"} <= set(masks)
    near, far = masks["edge_0_0.6_nm"], masks["interior_1.2_nm"]
    assert found.edge_distance_px[near].max() <= 30 and found.edge_distance_px[far].min() > 60
    assert not (near & masks["edge_0.6_1.2_nm"]).any() and not (near & masks["vacuum"]).any()
    in_px = [m.name for m in automatic_masks(found, 0.6, None)]
    assert "edge_0_30_px" in in_px


def searched(s, **known):
    acquisition = dataclasses.replace(s.series.acquisition, dark_level=None, **known)
    src = FrameSource(s.series, CPU, dark_level=0.0, gain_e=None)
    return src, find_dark_level(src, acquisition, 0, search=True)


DETECTOR = dict(dark_level=100.0, gain_e=0.5, readout_e=0.8)


def test_vacuum_shows_the_dark_level() -> None:
    src, dark = searched(made(edge=True, **DETECTOR))
    assert dark.source == "vacuum" and dark.value == pytest.approx(100, abs=2)
    assert with_dark_level(src, dark, None).dark_level == dark.value


def test_noise_shows_it_without_vacuum() -> None:
    _, dark = searched(made(**DETECTOR))
    assert dark.source == "estimated" and dark.value == pytest.approx(100, abs=15)  # 0 would be off by 100


def test_what_is_stated_is_taken_and_nothing_is_found_where_nothing_is() -> None:
    s = made()
    src = FrameSource(s.series, CPU, gain_e=None)
    stated = dataclasses.replace(s.series.acquisition, dark_level=3.0, sources={"dark_level": "session.yaml"})
    assert dataclasses.astuple(find_dark_level(src, stated, 0, search=True)) == (3.0, "session.yaml")
    unknown = dataclasses.replace(s.series.acquisition, dark_level=None)
    assert dataclasses.astuple(find_dark_level(src, unknown, 0, search=False)) == (0.0, "assumed")
    found = find_dark_level(src, unknown, 0, search=True)
    assert abs(found.value) < 5 and with_dark_level(src, dataclasses.replace(found, value=0.0), None) is src
