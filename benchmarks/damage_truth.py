"""Damage of regions against simulated truth: critical fluence, its intervals and bounds, mechanisms, false alarms.

24 frames of 256² at 20 electrons per pixel, drifting 1.5 px a frame, 4 × 4 regions of 4,096 px. Most series use the
trajectory that was simulated, some of those for the critical fluence the one that is estimated from the frames.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from atomdiffuser.config import DamageSettings, RegisterSettings
from atomdiffuser.damage import fit_regions, grid_regions, measure_regions
from atomdiffuser.damage.fitting import Scales
from atomdiffuser.estimation.drift import estimate_drift
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.series import FrameSeries
from atomdiffuser.simulation.series import SimulatedSeries, simulate_series

SHAPE, N_FRAMES, ELECTRONS, PER_FRAME = (256, 256), 24, 20.0, 2000.0
TOTAL = N_FRAMES * PER_FRAME
GRID = (4, 4)
SETTINGS = DamageSettings()
SPANS = (1.0, 1.5, 2.0, 3.0)
SHORT_SPANS = (0.08, 0.15, 0.2, 0.28)
SPECIMENS = ("SrTiO3", "Si", "LLZO[100]")
LIMITS: dict[str, tuple[str, float]] = {
    "F_c median error [%], series of 1-3 F_c": ("<=", 5.0),
    "F_c 95 % interval holds the truth [%]": ("92-97", 0.0),
    "lower bound holds, series < 0.3 F_c [%]": (">=", 95.0),
    "amorphisation and mass loss told apart [%]": (">=", 98.0),
    "F_c of contrast moved by ±5 % gain, median [%]": ("<=", 3.0),
    "undamaged regions reported as changed [%]": ("<=", 5.0),
}


def run(n_series: int = 14) -> pd.DataFrame:
    """A row per number that must be reached, and further ones for information."""
    started = time.perf_counter()
    spans = pd.concat(_critical(n_series))
    short = pd.concat(_bounds(n_series))
    kinds = pd.concat(_mechanisms(n_series))
    gain = pd.concat(_gain(max(n_series // 2, 1)))
    calm = pd.concat(_undamaged(n_series))
    uneven = pd.concat(_uneven(max(n_series // 2, 1)))
    numbers = spans[~spans["lower_bound"]]
    error = lambda t: 100 * (t["critical_fluence"] / t["true"] - 1).abs().median()
    held = lambda t: (
        100 * ((t["critical_fluence_lo95"] <= t["true"]) & (t["true"] <= t["critical_fluence_hi95"])).mean()
    )
    rows = [
        ("F_c median error [%], series of 1-3 F_c", error(numbers), len(numbers)),
        ("  given as a bound instead [%]", 100 * spans["lower_bound"].mean(), len(spans)),
        *((f"  error, {name} trajectory [%]", error(part), len(part)) for name, part in numbers.groupby("trajectory")),
        *((f"  error, {kind} [%]", error(part), len(part)) for kind, part in numbers.groupby("kinetics")),
        ("F_c 95 % interval holds the truth [%]", held(spans), len(spans)),
        *((f"  held, {name} trajectory [%]", held(part), len(part)) for name, part in spans.groupby("trajectory")),
        *((f"  held, {kind} [%]", held(part), len(part)) for kind, part in spans.groupby("kinetics")),
        *((f"  held, {s:g} F_c [%]", held(part), len(part)) for s, part in spans.groupby("span_of_critical")),
        ("lower bound holds, series < 0.3 F_c [%]", 100 * _bound_holds(short).mean(), len(short)),
        ("  is a bound [%]", 100 * short["lower_bound"].mean(), len(short)),
        (
            "amorphisation and mass loss told apart [%]",
            100 * (kinds["mechanism"] == kinds["true_mechanism"]).mean(),
            len(kinds),
        ),
        *(
            (f"  {name} [%]", 100 * (part["mechanism"] == name).mean(), len(part))
            for name, part in kinds.groupby("true_mechanism")
        ),
        ("F_c of contrast moved by ±5 % gain, median [%]", 100 * gain["moved"].median(), len(gain)),
        ("  95th percentile [%]", 100 * gain["moved"].quantile(0.95), len(gain)),
        ("  F_c of intensity (mass loss) moved, median [%]", 100 * gain["moved_intensity"].median(), len(gain)),
        ("undamaged regions reported as changed [%]", 100 * calm["changed"].mean(), len(calm)),
        ("  with an onset frame [%]", 100 * calm["onset"].mean(), len(calm)),
        ("  with ±5 % gain, reported as changed [%]", 100 * calm["changed_with_gain"].mean(), len(calm)),
        ("uneven damage: median error of F_c [%]", error(uneven), len(uneven)),
        ("  held [%]", held(uneven), len(uneven)),
    ]
    table = pd.DataFrame(rows, columns=["number", "value", "n_regions"])
    table["must_be"] = [
        f"{LIMITS[n][0]} {LIMITS[n][1]:g}".replace("92-97 0", "92-97") if n in LIMITS else "" for n in table["number"]
    ]
    table.attrs["seconds"] = time.perf_counter() - started
    return table


def missed(table: pd.DataFrame) -> list[str]:
    """What falls short, in words."""
    found = []
    for number, (sign, limit) in LIMITS.items():
        value = float(table.loc[table["number"] == number, "value"].iloc[0])
        good = 92 <= value <= 97 if sign == "92-97" else value <= limit if sign == "<=" else value >= limit
        if not good:
            found.append(f"{number}: {value:.3g} (must be {sign} {limit:g})")
    return found


def simulated(seed: int, span: float = 2.0, **options) -> SimulatedSeries:
    """A series that spans `span` critical fluences."""
    default = dict(
        n_frames=N_FRAMES, shape=SHAPE, electrons_per_px=ELECTRONS, fluence_per_frame=PER_FRAME, drift_px_per_frame=1.5,
        random_walk_px=0.3, damage="uniform", witness="contrast", critical_fluence=TOTAL / span, vacancies=0.03,
        seed=1000 + seed,
    )  # fmt: skip
    return simulate_series(SPECIMENS[seed % len(SPECIMENS)], **{**default, **options})


def analyse(frames: np.ndarray, s: SimulatedSeries, estimated: bool = False) -> pd.DataFrame:
    """critical_fluence.csv of the grid regions of a series."""
    series = FrameSeries(frames, s.series.times_s, s.series.acquisition)
    source = FrameSource(series, torch.device("cpu"), dark_level=0.0, gain_e=1.0)
    affines, sigma = s.frame_from_reference, np.zeros(N_FRAMES)
    if estimated:
        trajectory = estimate_drift(source, RegisterSettings()).trajectory
        affines, sigma = trajectory.frame_from_reference.numpy(), np.asarray(trajectory.displacement_sigma_px)
    measured = measure_regions(
        source, affines, np.isfinite(affines).all((1, 2)), 0, grid_regions(SHAPE, GRID), SETTINGS
    )
    x = np.repeat(PER_FRAME * np.arange(1, N_FRAMES + 1)[:, None], len(measured.regions.regions), 1)
    scales = Scales(source.scales.filter_px, source.scales.period_px, sigma)
    table = fit_regions(measured, x, "e_per_A2", SETTINGS, scales).critical_fluence
    return table[table["region"] != "whole"].reset_index(drop=True)


def _critical(n: int) -> Iterator[pd.DataFrame]:
    for seed in range(n):
        span, estimated = SPANS[seed % len(SPANS)], seed % 7 in (1, 3)
        kinetics = ("exponential", "exponential", "latency", "linear")[seed // 4 % 4]
        s = simulated(seed, span, kinetics=kinetics)
        table = _contrast(analyse(s.series.frames, s, estimated))
        yield table.assign(
            true=TOTAL / span, span_of_critical=span, kinetics=kinetics,
            trajectory="estimated" if estimated else "simulated",
        )  # fmt: skip


def _bounds(n: int) -> Iterator[pd.DataFrame]:
    for seed in range(n):
        span = SHORT_SPANS[seed % len(SHORT_SPANS)]
        s = simulated(100 + seed, span)
        yield _contrast(analyse(s.series.frames, s)).assign(true=TOTAL / span)


def _bound_holds(short: pd.DataFrame) -> pd.Series:
    """A bound holds below the truth; a number where a bound was due must hold the truth in its interval."""
    inside = (short["critical_fluence_lo95"] <= short["true"]) & (short["true"] <= short["critical_fluence_hi95"])
    return inside.where(~short["lower_bound"], short["critical_fluence"] <= short["true"])


def _mechanisms(n: int) -> Iterator[pd.DataFrame]:
    for seed in range(n):
        witness, name = (("contrast", "amorphisation"), ("both", "mass loss"))[seed % 2]
        s = simulated(200 + seed, SPANS[seed // 2 % 3], witness=witness)
        yield _contrast(analyse(s.series.frames, s)).assign(true_mechanism=name)


def _gain(n: int) -> Iterator[pd.DataFrame]:
    for seed in range(n):
        s, lost = (simulated(300 + seed, SPANS[seed % 3], witness=w) for w in ("contrast", "both"))
        moved = []
        for series, witness in ((s, "contrast"), (lost, "intensity")):
            steady, shaken = (
                analyse(frames, series)[lambda table, witness=witness: table["witness"] == witness]
                for frames in (series.series.frames, with_gain(series, seed))
            )
            moved.append(np.abs(shaken["critical_fluence"].to_numpy() / steady["critical_fluence"].to_numpy() - 1))
        yield pd.DataFrame({"moved": moved[0], "moved_intensity": moved[1]})


def with_gain(s: SimulatedSeries, seed: int, relative: float = 0.05) -> np.ndarray:
    """The same frames had the beam fluctuated: electrons are taken away or added, so that the rest stays the same."""
    random = np.random.default_rng(seed)
    factor = 1 + relative * random.standard_normal(len(s.series.frames)).clip(-3, 3)
    frames = []
    for counts, expected, g in zip(s.series.frames, s.expected, factor, strict=True):
        fewer = random.binomial(counts, min(g, 1.0))
        frames.append((fewer + random.poisson(expected * max(g - 1.0, 0.0))).astype(np.uint16))
    return np.stack(frames)


def _undamaged(n: int) -> Iterator[pd.DataFrame]:
    for seed in range(n):
        s = simulated(400 + seed, damage="none")
        table, shaken = (analyse(frames, s) for frames in (s.series.frames, with_gain(s, seed)))
        by_region = lambda t: t.groupby("region")["changed"].any().to_numpy()
        onset = table.groupby("region")["onset_frame"].max().to_numpy() >= 0
        yield pd.DataFrame({"changed": by_region(table), "changed_with_gain": by_region(shaken), "onset": onset})


def _uneven(n: int) -> Iterator[pd.DataFrame]:
    """Perlin damage; the truth is where the mean contrast of a region's area falls to 1/e of its start."""
    for seed in range(n):
        s = simulated(500 + seed, 2.0, damage="perlin")
        table = _contrast(analyse(s.series.frames, s))
        yield table.assign(true=_true_critical(s))[lambda t: t["true"] < TOTAL]


def _true_critical(s: SimulatedSeries) -> list[float]:
    fluence = np.linspace(0, 4 * TOTAL, 2000)
    regions, found = grid_regions(SHAPE, GRID), []
    for r in range(1, len(regions.regions)):
        local = s.critical_fluence_map[regions.mask(r)][::7]
        curve = np.exp(-fluence[:, None] / local).mean(1)
        found.append(float(np.interp(-np.exp(-1), -curve, fluence)))
    return found


def _contrast(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["witness"] == "contrast"]
