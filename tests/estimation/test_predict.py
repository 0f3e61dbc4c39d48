"""The shipped network's maps against simulated truth, and the units and grids in which they are handed on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomdiffuser import geometry
from atomdiffuser.config import DecaySettings
from atomdiffuser.errors import SettingsError, StoreError
from atomdiffuser.estimation.api import estimate_pairs
from atomdiffuser.estimation.decay import decay_estimator
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.predict import Predictor
from atomdiffuser.series import FrameSeries
from atomdiffuser.simulation import PairRanges, simulate_pairs

SHAPE = (120, 168)


@pytest.fixture(scope="module")
def pair():
    """Frames whose contrast falls more than their intensity, half of them vacuum."""
    ranges = PairRanges(
        electrons=(60.0, 60.0), loss=(0.5, 0.5), undamaged=0.0, damaged_before=0.0, patterns=("edge",),
        witness_odds=(0.0, 0.0, 0.0, 1.0, 0.0, 0.0), edges=1.0, amorphous_borders=0.0, grain_boundaries=0.0,
        drift_periods=(0.3, 0.4), dark_level=(0.0, 0.0), gain_e=(1.0, 1.0), integer=1.0, eight_bit=0.0,
    )  # fmt: skip
    return simulate_pairs(1, SHAPE, 15, crystals=("SrTiO3",), ranges=ranges)


def source_of(pair, *, counts_per_e: float = 1.0, dark_level: float = 0.0, gain_e: float | None = 1.0) -> FrameSource:
    frames = torch.cat([pair.reference, pair.moving]).numpy() * counts_per_e + dark_level
    return FrameSource(FrameSeries(frames), torch.device("cpu"), dark_level=dark_level, gain_e=gain_e)


def cells(image: torch.Tensor, stride: int) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(image[:, None].float(), stride, ceil_mode=True, count_include_pad=False)[:, 0]


@pytest.mark.parametrize("stride", [4, 7])
def test_maps_against_truth(pair, stride) -> None:
    maps = Predictor.of(source_of(pair)).decay_maps([(0, 1)], pair.moving_from_reference, stride=stride)
    for name in ("intensity", "contrast"):
        value, sigma, true = getattr(maps, name), getattr(maps, f"{name}_sigma"), cells(getattr(pair, name), stride)
        signal = cells(pair.lattice_amplitude if name == "contrast" else pair.base, stride)
        seen = torch.isfinite(value) & (signal > 0.5 * signal.max())
        error, nothing = (value - true)[seen], (1 - true)[seen]
        assert seen.float().mean() > 0.25
        assert error.square().mean().sqrt() < 0.25 * nothing.square().mean().sqrt()
        assert (error.abs() < 3 * sigma[seen]).float().mean() > 0.9
        assert torch.equal(torch.isnan(value), torch.isnan(sigma))
    assert maps.coverage.shape == true.shape and 0 <= maps.coverage.min() < maps.coverage.max() == 1


def test_no_contrast_where_there_is_no_lattice(pair) -> None:
    maps = Predictor.of(source_of(pair)).decay_maps([(0, 1)], pair.moving_from_reference)
    vacuum = cells(pair.base, 4) < 0.01 * pair.base.max()
    deep = torch.nn.functional.avg_pool2d(vacuum.float()[:, None], 7, 1, 3)[:, 0] > 0.999
    assert deep.any() and torch.isnan(maps.contrast[deep]).float().mean() > 0.9


def test_counts_per_electron_do_not_matter_even_when_unknown(pair) -> None:
    plain, scaled = (
        Predictor.of(s).decay_maps([(0, 1)], pair.moving_from_reference)
        for s in (source_of(pair), source_of(pair, counts_per_e=7.0, dark_level=300.0, gain_e=None))
    )
    known = torch.isfinite(plain.contrast) & torch.isfinite(scaled.contrast)
    assert (plain.contrast - scaled.contrast)[known].abs().median() < 0.02
    assert (plain.intensity - scaled.intensity).nan_to_num().abs().median() < 0.01


def test_settings_choose_the_way(pair) -> None:
    source = source_of(pair)
    network, regression = (
        decay_estimator(source, DecaySettings(method=m))([(0, 1)], pair.moving_from_reference)
        for m in ("network", "regression")
    )
    assert torch.isnan(network.contrast_bandwidth_px).all() and torch.isfinite(regression.contrast_bandwidth_px).all()
    assert network.contrast.shape == regression.contrast.shape
    with pytest.raises(StoreError, match="no weights called 'mine'"):
        decay_estimator(source, DecaySettings(weights="mine"))


def test_pixels_without_data_do_not_spread(pair) -> None:
    frames = torch.cat([pair.reference, pair.moving]).numpy()
    frames[1, 50:54] = np.nan
    spoiled = FrameSource(FrameSeries(frames), torch.device("cpu"), gain_e=1.0)
    whole, holed = (
        Predictor.of(s).decay_maps([(0, 1)], pair.moving_from_reference) for s in (source_of(pair), spoiled)
    )
    assert (whole.intensity - holed.intensity).nan_to_num().abs().max() < 0.1
    assert holed.coverage.min() == 0 and holed.coverage.mean() < whole.coverage.mean()


def test_start_of_the_drift_against_truth(pair) -> None:
    found = Predictor.of(source_of(pair)).register([(0, 1)])
    error = geometry.displacement_rms_px(found.moving_from_reference, pair.moving_from_reference, SHAPE)
    doing_nothing = geometry.displacement_rms_px(geometry.identity(1), pair.moving_from_reference, SHAPE)
    assert float(error) < 0.5 < 5 < float(doing_nothing)
    assert found.valid.all() and 0.01 < float(found.displacement_sigma_px) < 0.5
    assert 0 <= float(found.hop_probability) < 0.5


def test_flags_choose_network_and_fit(pair) -> None:
    """Refined is nearer than predicted alone; without the network the maps come with another σ; neither is refused."""
    frames = pair.reference[0].numpy(), pair.moving[0].numpy()
    full, raw, classical = (estimate_pairs(*frames, **flags) for flags in ({}, {"refine": False}, {"predict": False}))
    error = lambda e: float(
        geometry.displacement_rms_px(torch.as_tensor(e.moving_from_reference), pair.moving_from_reference, SHAPE)
    )
    assert error(full) < 0.15 and error(classical) < 0.15 and error(full) < error(raw) < 0.5
    assert not np.array_equal(full.contrast_sigma, classical.contrast_sigma, equal_nan=True)
    assert estimate_pairs(*frames, maps=False).contrast is None
    with pytest.raises(SettingsError, match="predict and refine are both False"):
        estimate_pairs(*frames, predict=False, refine=False)


def test_frames_without_structure_are_not_trusted_by_the_network() -> None:
    rng = np.random.default_rng(3)
    found = estimate_pairs(*rng.poisson(20.0, (2, *SHAPE)), refine=False)
    assert not found.valid[0] and "no common structure" in found.reason[0]
    assert np.isnan(found.moving_from_reference).all() and np.isnan(found.contrast).all()


def test_a_turned_particle_is_found_with_the_network_only() -> None:
    """A gold particle that turned and moved far: correlation peaks alone lead the fit 19 px astray."""
    ranges = PairRanges(electrons=(20.0, 20.0), loss=(0.0, 0.6))
    turned = simulate_pairs(8, (256, 256), 31, crystals=("nanoparticle",), ranges=ranges)
    k, true = 3, turned.moving_from_reference[3:4]
    detector = {"dark_level": float(turned.dark_level[k]), "gain_e": float(turned.gain_e[k])}
    errors = [
        float(geometry.displacement_rms_px(torch.as_tensor(found.moving_from_reference), true, (256, 256)))
        for found in (
            estimate_pairs(turned.reference[k].numpy(), turned.moving[k].numpy(), maps=False, predict=p, **detector)
            for p in (True, False)
        )
    ]
    assert errors[0] < 0.3 and errors[1] > 5
