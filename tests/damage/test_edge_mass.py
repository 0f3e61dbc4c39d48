"""Mass beside the edge of a specimen: it stays although the lattice next to it fades."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomdiffuser.config import DamageSettings
from atomdiffuser.damage import Scales, fit_regions, grid_regions, measure_regions
from atomdiffuser.damage import template as template_module
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.simulation.series import simulate_series

SHAPE, N = (192, 176), 8
REGIONS = grid_regions(SHAPE, (2, 2))


@pytest.fixture(scope="module")
def fitted():
    """critical_fluence.csv of SrTiO3 turning amorphous beside vacuum, and the share of each region that is vacuum."""
    s = simulate_series(
        "SrTiO3", n_frames=N, shape=SHAPE, electrons_per_px=90, drift_px_per_frame=1.0, random_walk_px=0.3,
        damage="uniform", witness="contrast", fluence_per_frame=3000.0, critical_fluence=20000.0, edge=True,
        vacancies=0.0, gain_e=0.5, dark_level=100.0, readout_e=0.8, seed=2,
    )  # fmt: skip
    source = FrameSource(s.series, torch.device("cpu"), dark_level=100.0, gain_e=0.5)
    measured = measure_regions(source, s.frame_from_reference, np.ones(N, bool), 0, REGIONS, DamageSettings())
    x = np.repeat(3000.0 * np.arange(1, N + 1)[:, None], len(REGIONS.regions), 1)
    scales = Scales(source.scales.filter_px, source.scales.period_px, np.zeros(N))
    found = fit_regions(measured, x, "e_per_A2", DamageSettings(), scales).critical_fluence
    empty = [float((s.expected[0][REGIONS.mask(r)] < 5).mean()) for r in range(len(REGIONS.regions))]
    return found.assign(empty=found["region_id"].map(dict(enumerate(empty))))


def test_a_step_of_mass_is_no_lattice_that_fades(fitted) -> None:
    intensity = fitted[fitted["witness"] == "intensity"]
    assert (intensity["empty"].between(0.2, 0.8)).any()  # a region has the edge in it
    assert (intensity["loss_percent"].abs() < 1.0).all(), intensity["loss_percent"]
    assert not intensity.set_index("region").loc["whole", "changed"]


def test_the_lattice_that_fades_is_still_seen(fitted) -> None:
    contrast = fitted[(fitted["witness"] == "contrast") & (fitted["empty"] < 0.5)]
    assert np.allclose(contrast["loss_percent"], 100 * (1 - np.exp(-21 / 20)), atol=4)


def test_where_the_view_ends_there_is_no_edge(monkeypatch) -> None:
    """Columns cut by the border of the view fade, the mass stays: 2 % of it would seem to go with them."""
    shape, n, regions = (128, 160), 12, grid_regions((128, 160), (2, 3))
    s = simulate_series(
        "LLZO[100]", n_frames=n, shape=shape, electrons_per_px=1000.0, drift_px_per_frame=(0.5, 3.5), vacancies=0.0,
        random_walk_px=0.2, damage="uniform", witness="contrast", critical_fluence=10000.0, seed=0,
    )  # fmt: skip
    source = FrameSource(s.series, torch.device("cpu"), dark_level=0.0, gain_e=1.0)

    def error() -> float:
        measured = measure_regions(
            source, s.frame_from_reference, np.ones(n, bool), 0, regions, DamageSettings(),
            maps_of=lambda k: (s.intensity[k], s.contrast[k]),
        )  # fmt: skip
        return float(np.nanmax(np.abs(measured.ratios("signal_ratio")[0] - 1)))

    honest, level = error(), template_module._level

    def bordered(crystal: torch.Tensor, base_px: float) -> torch.Tensor:
        inside = torch.zeros_like(crystal)
        inside[:, 6:-6, 6:-6] = True
        return level(crystal & inside, base_px)

    monkeypatch.setattr(template_module, "_level", bordered)
    assert honest < 0.01 and error() > 2 * honest
