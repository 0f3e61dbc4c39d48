"""Drift of single pairs, beside the registration tools of the field: same frames, same run, against the physical limit.

An error is the RMS displacement over the frame between the affine found and the true one, divided by the Cramér–Rao
bound of the pair (`simulation.drift_bound.pair_bound_px`: specimen and smooth decay unknown, the whole overlap used).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from atomdiffuser import geometry
from atomdiffuser.estimation.api import estimate_pairs
from atomdiffuser.evaluation.peers import Estimate
from atomdiffuser.simulation.drift_bound import pair_bound_px
from atomdiffuser.simulation.series import SimulatedSeries, simulate_series

OURS = "AtomDiffuser"
NOTHING = "no correction"
GROSS_PX = 1.0
HOP_REACH = 0.25  # of the shortest lattice vector, around a vector of the lattice
CONDITIONS = ["specimen", "electrons_per_px", "frames_apart", "damage"]


@dataclass(frozen=True)
class DriftBenchmark:
    """What is simulated.

    Attributes
    ----------
    specimens
        A lattice, dumbbells, and a particle on a film.
    electrons_per_px
        At the brightest point.
    frames_apart
        Of the pairs; all pairs of one seed come from one series and start at its first frame.
    seeds, first_seed
        Series a case, and the seed of the first.
    critical_fluence
        Damage holes that take intensity and lattice alike; the lower, the faster. A frame brings 1000 e⁻/Å².
    """

    specimens: Sequence[str] = ("SrTiO3", "Si", "nanoparticle")
    electrons_per_px: Sequence[float] = (5.0, 20.0, 200.0)
    frames_apart: Sequence[int] = (1, 5)
    damage: Sequence[bool] = (False, True)
    seeds: int = 8
    first_seed: int = 0
    shape: tuple[int, int] = (256, 256)
    drift_px_per_frame: float = 0.8
    random_walk_px: float = 0.3
    rotation_deg_per_frame: float = 0.05
    critical_fluence: float = 6000.0

    def series(self, specimen: str, electrons: float, damage: bool, seed: int) -> SimulatedSeries:
        """One simulated series with its truth."""
        return simulate_series(
            specimen, n_frames=max(self.frames_apart) + 1, shape=self.shape, electrons_per_px=electrons,
            drift_px_per_frame=self.drift_px_per_frame, random_walk_px=self.random_walk_px,
            rotation_deg_per_frame=self.rotation_deg_per_frame, damage="holes" if damage else "none", witness="both",
            fluence_per_frame=1000.0, critical_fluence=self.critical_fluence, vacancies=0.04, seed=seed,
        )  # fmt: skip


def our_method(reference: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
    """AtomDiffuser on one pair, drift only; None where it flags the pair."""
    found = estimate_pairs(reference, moving, maps=False)
    return found.moving_from_reference[0] if found.valid[0] else None


def run_benchmark(
    options: DriftBenchmark, methods: dict[str, Estimate], progress: Callable[[int, int], None] | None = None
) -> pd.DataFrame:
    """A row per pair and method: `error_px`, `over_bound`, `hop`, `seconds` and what was simulated.

    `error_px` is NaN where a method said that it found nothing. Every method is called once before the clock starts.
    """
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    cases = list(itertools.product(options.specimens, options.electrons_per_px, options.damage, seeds))
    methods = {OURS: our_method, **methods, NOTHING: lambda reference, moving: np.eye(3)}
    rows: list[dict] = []
    for done, (specimen, electrons, damage, seed) in enumerate(cases):
        simulated = options.series(specimen, electrons, damage, seed)
        frames = np.asarray(simulated.series.frames, dtype=np.float32)
        if done == 0:
            for method in methods.values():
                method(frames[0].copy(), frames[1].copy())
        for apart in options.frames_apart:
            true = simulated.frame_from_reference[apart]
            bound = pair_bound_px(simulated.expected[0], simulated.expected[apart], true, simulated.contrast[apart])
            for name, method in methods.items():
                pair = frames[0].copy(), frames[apart].copy()  # some tools write into what they are given
                started = time.perf_counter()
                found = method(*pair)
                seconds = time.perf_counter() - started
                error, hop = _judge(found, true, options.shape, simulated.lattice_vectors_px)
                rows.append({
                    "specimen": specimen, "electrons_per_px": electrons, "frames_apart": apart, "damage": damage,
                    "seed": seed, "method": name, "bound_px": bound, "error_px": error, "over_bound": error / bound,
                    "hop": hop, "seconds": seconds,
                })  # fmt: skip
        if progress:
            progress(done + 1, len(cases))
    return pd.DataFrame(rows)


def summarise(pairs: pd.DataFrame) -> pd.DataFrame:
    """A row per case and method: median and 95th percentile of error over bound, gross failures, hops, seconds.

    A pair without an answer counts as an infinite error in the quantiles and in `no_answer`, not in `gross`.
    """

    def one(rows: pd.DataFrame) -> pd.Series:
        ratio = rows["over_bound"].fillna(np.inf)
        return pd.Series({
            "pairs": len(rows), "bound_px": rows["bound_px"].median(),
            "median_over_bound": _median(ratio),
            "p95_over_bound": ratio.quantile(0.95, interpolation="higher"),
            "gross": int(((rows["error_px"] > GROSS_PX) & ~rows["hop"]).sum()), "hops": int(rows["hop"].sum()),
            "no_answer": int(rows["error_px"].isna().sum()), "seconds": rows["seconds"].median(),
        })  # fmt: skip

    grouped = pairs.groupby([*CONDITIONS, "method"], sort=False)
    table = grouped.apply(one, include_groups=False).reset_index()
    counts = ["pairs", "gross", "hops", "no_answer"]
    return table.astype(dict.fromkeys(counts, int))


def compare_with_best_peer(table: pd.DataFrame) -> pd.DataFrame:
    """A row per case: our median error over bound beside the best peer's, and `ours_over_best` (below 1: ours wins)."""
    rows = []
    for case, part in table.groupby(CONDITIONS, sort=False):
        medians = part.set_index("method")["median_over_bound"]
        peers = medians.drop([OURS, NOTHING], errors="ignore")
        best = peers.idxmin() if len(peers) else ""
        rows.append({
            **dict(zip(CONDITIONS, case, strict=True)), "ours": medians[OURS], "best_peer": best,
            "best": peers[best] if best else np.nan, "ours_over_best": medians[OURS] / peers[best] if best else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _median(ratio: pd.Series) -> float:
    """Median in which infinities may stand: pandas' own would make a mean of a number and an infinity."""
    return float(ratio.quantile(0.5, interpolation="lower") if np.isinf(ratio).any() else ratio.median())


def _judge(
    found: np.ndarray | None, true: np.ndarray, shape: tuple[int, int], lattice_vectors_px: np.ndarray | None
) -> tuple[float, bool]:
    """Error [px], NaN without an answer, and whether it is a step of the lattice."""
    if found is None or not np.isfinite(found).all():
        return np.nan, False
    found, true = (torch.as_tensor(np.asarray(a, dtype=float)) for a in (found, true))
    error = float(geometry.displacement_rms_px(found, true, shape))
    if lattice_vectors_px is None or error <= GROSS_PX:
        return error, False
    away = (geometry.drift_at_centre(found, shape) - geometry.drift_at_centre(true, shape)).numpy()
    steps = np.round(away @ np.linalg.inv(lattice_vectors_px))
    near = np.linalg.norm(away - steps @ lattice_vectors_px)
    shortest = np.linalg.norm(lattice_vectors_px, axis=1).min()
    return error, bool(steps.any() and near < HOP_REACH * shortest)
