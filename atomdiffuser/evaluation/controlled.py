"""The published controlled experiment: one image, ten frames of strength 0 … 0.9, three kinds of damage, no motion.

The published figure of merit is the mean absolute error of the overall damage intensity: how far the mean of the
predicted loss over the frame is from the true mean, averaged over the ten frames.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from atomdiffuser.evaluation.methods import Method
from atomdiffuser.simulation.pairs import PairBatch, PairRanges, simulate_pairs

STRENGTHS = tuple(round(0.1 * k, 1) for k in range(10))
KINDS = {"Gaussian holes": "holes", "Perlin": "perlin", "Random": "random"}
PUBLISHED_ERROR = {"Gaussian holes": 0.014, "Perlin": 0.021, "Random": 0.023}
PUBLISHED_BASELINE_ERROR = {"Gaussian holes": 0.102, "Perlin": 0.062, "Random": 0.044}
"""Digitised from the authors' curves."""

RIM_PX = 8
STILL = PairRanges(
    particles=0.0, film_only=0.0, edges=0.0, amorphous_borders=0.0, grain_boundaries=0.0, drift_periods=(0.0, 0.0),
    particle_drift_px=0.0, particle_rotation_deg=0.0, rotation_deg=0.0, strain=0.0, jitter=0.0, undamaged=0.0,
    damaged_before=0.0, kinetics=("linear",), witness_odds=(1.0, 0.0, 0.0, 0.0, 0.0, 0.0), readout_e=(0.0, 0.0),
    eight_bit=0.0, integer=0.0, dark_level=(0.0, 0.0), gain_e=(1.0, 1.0), defects=(0.0, 0.2), wedge=(0.0, 0.0),
)  # fmt: skip


def controlled_frames(
    kind: str, *, shape: tuple[int, int] = (256, 256), electrons: float = 100.0, crystal: str = "SrTiO3",
    seed: int = 11, device: torch.device | str = "cpu",
) -> list[PairBatch]:  # fmt: skip
    """Ten pairs of the same image and the same pattern, the moving frame ever stronger damaged."""
    frames = []
    for strength in STRENGTHS:
        time = strength / STRENGTHS[-1]
        ranges = replace(
            STILL, patterns=(KINDS[kind],), loss=(STRENGTHS[-1],) * 2, electrons=(electrons,) * 2, time=(time, time),
            pixel_size_nm=(0.02, 0.02),
        )  # fmt: skip
        frames.append(simulate_pairs(1, shape, seed, device, crystals=(crystal,), ranges=ranges))
    return frames


def controlled_experiment(
    methods: dict[str, Method], *, seeds: tuple[int, ...] = (11, 12, 13), **options
) -> tuple[pd.DataFrame, dict[str, dict[str, np.ndarray]]]:
    """A row per method, kind, seed and strength with true and found damage; and the first seed's last maps.

    `damage` is 1 − mean map over the frame less its rim, `map_mae` the mean absolute error of the map itself.
    """
    rows, maps = [], {}
    inner = (slice(None), slice(RIM_PX, -RIM_PX), slice(RIM_PX, -RIM_PX))
    for kind in KINDS:
        for seed in seeds:
            for strength, pairs in zip(STRENGTHS, controlled_frames(kind, seed=seed, **options), strict=True):
                truth = pairs.intensity[inner].double()
                for name, method in methods.items():
                    found = method(pairs).intensity
                    value = found[inner].double()
                    known = torch.isfinite(value)
                    rows.append({
                        "method": name, "kind": kind, "seed": seed, "strength": strength,
                        "true_damage": float(1 - truth.mean()), "found_damage": float(1 - value[known].mean()),
                        "map_mae": float((value - truth)[known].abs().mean()),
                    })  # fmt: skip
                    if seed == seeds[0] and strength == STRENGTHS[-1]:
                        maps.setdefault(kind, {"true": pairs.intensity[0].cpu().numpy()})[name] = found[0].cpu().numpy()
    return pd.DataFrame(rows), maps


def controlled_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per method and kind: `damage_mae`, `map_mae`, and `zero_bias` where the strength is 0."""
    rows = rows.assign(error=rows.found_damage - rows.true_damage)
    groups = rows.groupby(["method", "kind"], sort=False)
    out = groups.agg(damage_mae=("error", lambda e: e.abs().mean()), map_mae=("map_mae", "mean"))
    still = rows[rows.strength == 0].groupby(["method", "kind"], sort=False)["error"].mean()
    return out.assign(zero_bias=still).reset_index()
