"""Damage of regions on raw pixels: known ratios, σ from the counts, and what a frame adds to its own template."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from measured_pairs import CPU, rms, series, source

from atomdiffuser import geometry as g
from atomdiffuser.config import DamageSettings
from atomdiffuser.damage import analysis as analysis_module
from atomdiffuser.damage import observables as observables_module
from atomdiffuser.damage import template as template_module
from atomdiffuser.damage.analysis import measure_damage, measure_regions
from atomdiffuser.damage.balance import Balanced
from atomdiffuser.damage.fitting import Scales, fit_regions
from atomdiffuser.damage.observables import measure_frame
from atomdiffuser.damage.regions import grid_regions
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.template import TemplateSum

SHAPE = (112, 150)
N = 7
SETTINGS = DamageSettings()
REGIONS = grid_regions(SHAPE, (2, 3))


@cache
def simulated(seed: int = 3, **options):
    default = dict(n_frames=N, shape=SHAPE, critical_fluence=10000.0, witness="both", seed=seed)
    return series(**{**default, **options})


def measured(s, affines=None, valid=None, **settings) -> pd.DataFrame:
    affines = s.frame_from_reference if affines is None else affines
    valid = np.ones(len(affines), bool) if valid is None else valid
    return measure_damage(source(s), affines, valid, 0, REGIONS, DamageSettings(**settings))


def values(table: pd.DataFrame, column: str) -> np.ndarray:
    """(t, regions)"""
    return table[column].to_numpy(float).reshape(-1, len(REGIONS.regions))


@pytest.mark.parametrize(("witness", "both"), [("both", True), ("contrast", False)])
def test_uniform_loss_is_recovered_in_every_region(witness, both) -> None:
    """The last frame has lost 45 %; 'nothing happened' errs by as much."""
    s = simulated(witness=witness)
    table = measured(s)
    true = s.contrast.mean((1, 2))[:, None]
    contrast, intensity = values(table, "contrast"), values(table, "intensity")
    assert rms(contrast - true) < 0.03 and rms(1 - true) > 0.25
    assert rms(intensity - (true if both else 1)) < 0.01
    assert rms(contrast[:, 0] - true[:, 0]) < 0.02  # the whole field is the surest


STILL = dict(drift_px_per_frame=0.0, random_walk_px=0.0)


def test_sigma_is_that_of_the_counts() -> None:
    """z over regions, frames and series; the reference frame is exact by definition."""
    z = {"intensity": [], "contrast": []}
    for seed in range(4):
        table = measured(simulated(seed, damage="none", **STILL))
        for name, found in z.items():
            found.append((values(table, name) - 1)[1:] / values(table, f"{name}_sigma")[1:])
        assert np.all(values(table, "contrast_sigma")[0] == 0) and np.all(values(table, "contrast")[0] == 1)
    assert 0.75 < rms(np.stack(z["contrast"])) < 1.4 and 0.75 < rms(np.stack(z["intensity"])) < 1.4


def test_drift_does_not_bias_the_contrast() -> None:
    """Bright frames that drift by 18 px in all: contrast is off by 1 % and more, five times σ."""
    error, sigma = [], []
    for seed in range(3):
        s = simulated(seed, witness="contrast", drift_px_per_frame=3.0, electrons_per_px=1000.0)
        table = measured(s)
        error.append((values(table, "contrast") - s.contrast.mean((1, 2))[:, None])[1:, 0])
        sigma.append(values(table, "contrast_sigma")[1:, 0])
    assert rms(error) < max(0.008, 2 * rms(sigma))


def test_drift_does_not_bias_the_intensity(monkeypatch) -> None:
    """Where only the first frames looked the template shows less loss; taken as it is, it hides 2 % of it and more."""
    s = simulated(5, witness="both", drift_px_per_frame=4.0, electrons_per_px=500.0)
    true = s.intensity.mean((1, 2))[:, None]
    error = lambda: rms((values(measured(s), "intensity") - true)[:, 1:])
    honest = error()
    make = analysis_module.make_template
    untold = lambda total, intensity, *rest: make(total, total.count, *rest)
    monkeypatch.setattr(analysis_module, "make_template", untold)
    monkeypatch.setattr(analysis_module, "balance", lambda sums, regions, block: unbalanced(sums, regions))
    assert honest < 0.006 and error() > 3 * honest


def unbalanced(sums, regions) -> Balanced:
    ones = np.ones((len(sums["n"]), len(regions.regions)))
    factors = lambda value: {name: value * ones for name in ("lattice", "signal_ratio")}
    return Balanced({}, factors(1.0), factors(0.0))


def test_intervals_are_two_sided_95_percent() -> None:
    table = measured(simulated())
    for name in ("intensity", "contrast"):
        half = (table[f"{name}_hi95"] - table[f"{name}_lo95"]) / 2
        assert np.allclose(half, 1.959964 * table[f"{name}_sigma"])


def local_loss() -> tuple[np.ndarray, np.ndarray]:
    """Contrast of the last frame by region: found, and true as the amplitude that is left of the first frame's."""
    s = simulated(damage="perlin", critical_fluence=15000.0, electrons_per_px=500.0, **STILL)
    at_first = np.exp(-2000 / s.critical_fluence_map) * s.lattice_amplitude**2
    true = []
    for region in REGIONS.regions[1:]:
        y0, x0, y1, x1 = region.bounds_px
        box = (slice(y0, y1), slice(x0, x1))
        true.append(np.average(s.contrast[-1][box], weights=at_first[box]))
    return values(measured(s), "contrast")[-1, 1:], np.array(true)


def test_local_loss_shows_in_its_region() -> None:
    found, true = local_loss()
    assert np.ptp(true) > 0.2 and np.corrcoef(found, true)[0, 1] > 0.75
    assert np.argmax(found) == np.argmax(true) == 1


def test_local_loss_has_its_size() -> None:
    """Regions of eight columns, which sample a decay that is steep between them."""
    found, true = local_loss()
    assert np.abs(found - true).max() < 0.07 and rms(found - true) < 0.04


def test_gain_of_a_frame_goes_into_the_signal_alone_as_a_ratio() -> None:
    s = simulated(damage="none", gain_drift=0.1)
    table = measured(s)
    gain = s.frame_gain / s.frame_gain[0]
    assert np.abs(gain - 1).max() > 0.05
    assert rms(values(table, "intensity")[:, 0] - gain) < 0.006


def test_a_frame_is_left_out_of_its_own_template(monkeypatch) -> None:
    """Noise in place of the last frame: left out it shows no lattice; counted in, its noise finds itself."""
    s = simulated(damage="none", electrons_per_px=20.0)
    frames, affines = s.series.frames.copy(), s.frame_from_reference
    frames[-1] = np.random.default_rng(0).poisson(frames[0].mean(), SHAPE)
    src, used, honest = source(frames), [], []
    monkeypatch.setattr(template_module, "POWER", 0)  # all frames count alike, noise as well

    sum_frame = observables_module.sum_frame

    def recording(source, index, affine, maps, template, regions):
        used.append((maps, template, regions))
        honest.append(measure_frame(source, index, affine, maps, template, regions))
        return sum_frame(source, index, affine, maps, template, regions)

    monkeypatch.setattr(analysis_module, "sum_frame", recording)
    measure_damage(src, affines, np.ones(N, bool), 0, REGIONS, SETTINGS)
    (maps, template, regions), last = used[-1], honest[-1]
    assert np.all(np.abs(last.lattice / last.lattice_sigma) < 3.5)
    nothing = TemplateSum(*[torch.zeros_like(template.total.count)] * 4)
    monkeypatch.setattr(template_module, "aligned_part", lambda *_: nothing)
    naive = measure_frame(src, N - 1, torch.as_tensor(affines[-1]), maps, template, regions)
    assert naive.lattice[0] > 3.5 * last.lattice_sigma[0] and naive.lattice[0] > 2 * abs(last.lattice[0])


def test_what_all_maps_but_the_references_have_wrong_is_no_step_after_it(monkeypatch) -> None:
    """Maps are relative to the reference frame, whose own is 1; what its noise did to the others is in all of them."""
    s = simulated(damage="none", drift_px_per_frame=1.0)

    def contrast(of_others: float) -> np.ndarray:
        maps = lambda k: (np.ones(SHAPE), np.full(SHAPE, 1.0 if k == 0 else of_others))
        regions = grid_regions(SHAPE, (1, 1))
        table = measure_damage(source(s), s.frame_from_reference, np.ones(N, bool), 0, regions, SETTINGS, maps_of=maps)
        return table[table["region"] == "whole"]["contrast"].to_numpy()[1:]

    step = lambda: np.abs(contrast(0.9) / contrast(1.0) - 1).max()
    honest = step()
    monkeypatch.setattr(analysis_module, "consistent_factors", lambda *_: {})
    assert honest < 0.003 and step() > 0.012


def test_regions_move_with_the_sample() -> None:
    """A bright sample in the left third drifts right by 20 px: its region keeps its signal, a fixed box would not."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    lattice = 20 + 10 * np.cos(2 * np.pi * y / 11) * np.cos(2 * np.pi * x / 12)
    level = lambda shift: np.where(x - shift < 50, 3.0, 1.0) * np.roll(lattice, shift, 1)
    frames = np.stack([rng.poisson(level(shift)) for shift in (0, 10, 20)]).astype(np.uint16)
    affines = g.translation(torch.tensor([[0, 0], [0, 10], [0, 20]], dtype=torch.float64)).numpy()
    table = measure_damage(source(frames), affines, np.ones(3, bool), 0, grid_regions(SHAPE, (1, 3)), SETTINGS)
    left = table[table["region"] == "grid_0_0"]["intensity"].to_numpy()
    assert np.allclose(left, 1, atol=0.01)
    box = frames[:, :, :50].mean((1, 2))
    assert box[2] / box[0] > 0.99 and frames[2][:, 50:70].mean() > 2 * frames[0][:, 50:70].mean()
    middle = table[table["region"] == "grid_0_1"]["intensity"].to_numpy()
    assert np.allclose(middle, 1, atol=0.02)  # a fixed box would see it grow by 80 %
    assert frames[2, :, 50:100].mean() / frames[0, :, 50:100].mean() > 1.5


def test_regions_out_of_view_have_no_value() -> None:
    s = series(n_frames=3, shape=SHAPE, drift_px_per_frame=(0.0, 30.0), random_walk_px=0, seed=2)
    table = measured(s, min_coverage=0.5)
    out = (table["frame"] == 2) & (table["region"] == "grid_0_2")
    assert (
        not table[out]["valid"].any()
        and table[out]["contrast"].isna().all()
        and float(table[out]["coverage"].iloc[0]) < 0.2
    )
    seen = (table["frame"] == 2) & (table["region"] == "grid_0_0")
    assert table[seen]["valid"].all() and table[seen]["contrast"].notna().all()
    assert table["coverage"].between(0, 1).all() and (table["n_px"] >= 0).all()


def test_frames_without_a_place_keep_their_rows_and_have_no_values() -> None:
    s = simulated()
    affines, valid = s.frame_from_reference.copy(), np.ones(N, bool)
    affines[3], valid[3] = np.nan, False
    table = measured(s, affines, valid)
    assert len(table) == N * len(REGIONS.regions)
    lost = table[table["frame"] == 3]
    assert (
        not lost["valid"].any()
        and lost[["intensity", "contrast", "signal"]].isna().all(axis=None)
        and (lost["n_px"] == 0).all()
    )
    assert table[table["frame"] == 4]["valid"].all()


def test_dark_level_is_taken_off() -> None:
    s = simulated(dark_level=100.0)
    src = FrameSource(s.series, CPU, dark_level=100.0, gain_e=1.0)
    table = measure_damage(src, s.frame_from_reference, np.ones(N, bool), 0, REGIONS, SETTINGS)
    true = s.contrast.mean((1, 2))
    assert rms(values(table, "intensity")[:, 0] - true) < 0.01
    assert rms(values(measured(s), "intensity")[:, 0] - true) > 0.1  # forgotten, it hides the loss


def test_progress_reaches_its_total() -> None:
    s, seen = simulated(), []
    measure_damage(
        source(s),
        s.frame_from_reference,
        np.ones(N, bool),
        0,
        REGIONS,
        SETTINGS,
        lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (2 * N, 2 * N) and [d for d, _ in seen] == list(range(1, 2 * N + 1))


# --- from observables to critical fluence ---------------------------------------------------------


def fitted(s, valid=None, settings=SETTINGS) -> pd.DataFrame:
    """critical_fluence.csv of a simulated series."""
    valid = np.ones(N, bool) if valid is None else valid
    src = source(s)
    found = measure_regions(src, s.frame_from_reference, valid, 0, REGIONS, settings)
    x = np.repeat(2000.0 * np.arange(1, N + 1)[:, None], len(REGIONS.regions), 1)
    scales = Scales(src.scales.filter_px, src.scales.period_px, np.zeros(N))
    return fit_regions(found, x, "e_per_A2", settings, scales, fluence_systematic_percent=7.0).critical_fluence


@pytest.fixture(scope="module")
def fits() -> pd.DataFrame:
    return fitted(simulated(witness="contrast"))


def test_the_critical_fluence_of_the_simulation_is_recovered(fits) -> None:
    contrast = fits[fits["witness"] == "contrast"]
    whole = contrast.iloc[0]
    assert whole["region"] == "whole" and not whole["lower_bound"] and whole["model"] == "exponential"
    assert whole["critical_fluence"] == pytest.approx(10000, rel=0.08)
    assert whole["loss_percent"] == pytest.approx(100 * (1 - np.exp(-1.2)), abs=3) and whole["onset_frame"] == 1
    assert whole["unit"] == "e_per_A2" and whole["n_frames"] == N and whole["span"] == 12000
    assert whole["changed"] and whole["mechanism"] == "amorphisation" and "falls to 1/e at" in whole["verdict"]
    assert whole["half_fluence"] == pytest.approx(10000 * np.log(2), rel=0.1)
    assert whole["usable_last_frame"] == 0 and whole["fluence_systematic_percent"] == 7.0
    assert whole["rate_percent_per_1000"] == pytest.approx(10.0, rel=0.08)


def test_intervals_of_the_critical_fluence_hold_and_are_not_merely_wide() -> None:
    """35 intervals of five series, of which two miss on average, 7 or more in 1 of 500 runs.

    benchmarks/damage_truth.py counts many more.
    """
    rows = pd.concat([fitted(simulated(seed, witness="contrast")) for seed in range(3, 8)])
    rows = rows[rows["witness"] == "contrast"]
    lo, hi = rows["critical_fluence_lo95"], rows["critical_fluence_hi95"]
    assert ((lo <= 10000) & (10000 <= hi)).sum() >= 29
    assert ((hi - lo) / 10000)[rows["region"] == "whole"].median() < 0.25


def test_what_does_not_change_has_a_bound_that_holds(fits) -> None:
    intensity = fits[fits["witness"] == "intensity"]
    assert intensity["lower_bound"].all() and (intensity["critical_fluence"] > 50000).all()
    assert (intensity["loss_percent"].abs() < 2).all() and not intensity["changed"].any()
    assert intensity["verdict"].str.contains("no change above").all()
    assert (intensity["usable_text"] == f"sum frames 0–{N - 1}").all()


def test_what_may_be_nothing_is_claimed_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atomdiffuser.damage.fitting.may_be_nothing", lambda kinetics: True)
    rows = fitted(simulated(witness="both"))
    assert not rows["changed"].any() and (rows["mechanism"] == "none").all()
    assert rows["verdict"].str.contains("no change").all()


def test_loss_of_mass_is_told_from_amorphisation() -> None:
    rows = fitted(simulated(witness="both"))
    assert (rows["mechanism"] == "mass loss").all()
    order = rows[rows["witness"] == "crystallinity"]
    assert order["lower_bound"].all() and (order["loss_percent"].abs() < 10).all()
    assert not rows[(rows["witness"] == "intensity") & (rows["region"] == "whole")]["lower_bound"].any()


def test_a_fluctuating_beam_is_told_from_damage() -> None:
    """Each frame ±10 %: the contrast of material that keeps its mass is taken over the intensity."""
    s = simulated(witness="contrast")
    gain = np.array([1.0, 1.1, 0.92, 1.08, 0.9, 1.05, 0.95])
    shaken = dataclasses.replace(
        s.series, frames=np.random.default_rng(3).poisson(s.expected * gain[:, None, None]).astype(np.uint16)
    )
    rows = fitted(dataclasses.replace(s, series=shaken)).set_index(["region", "witness"])
    whole = rows.loc[("whole", "contrast")]
    assert whole["critical_fluence"] == pytest.approx(10000, rel=0.08)
    assert whole["gain_ambiguity_percent"] > 2 and rows.loc[("whole", "crystallinity"), "gain_ambiguity_percent"] == 0
    assert not rows.loc[("whole", "intensity"), "changed"] and whole["mechanism"] == "amorphisation"


def test_a_region_of_too_few_pixels_says_so() -> None:
    rows = fitted(simulated(witness="contrast"), settings=DamageSettings(min_region_px=5000))
    small = rows[rows["region"] != "whole"]
    assert small["verdict"].str.startswith("too few pixels").all() and not small["changed"].any()
    assert rows[rows["region"] == "whole"]["changed"].any()


def test_a_table_without_values_gives_rows_without_curves() -> None:
    rows = fitted(simulated(), valid=np.r_[True, np.zeros(N - 1, bool)])
    assert len(rows) == 3 * len(REGIONS.regions) and (rows["model"] == "none").all() and rows["lower_bound"].all()
    assert (rows["onset_frame"] == -1).all() and not rows["changed"].any()
