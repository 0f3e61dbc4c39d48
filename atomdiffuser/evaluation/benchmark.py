"""Every method on crystals that training never showed, by fluence, and on pairs to which nothing happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pandas as pd
import torch

from atomdiffuser.evaluation.methods import Method, network_method
from atomdiffuser.evaluation.metrics import judged_masks, map_errors, pair_errors, summary
from atomdiffuser.model.network import AtomDiffuser
from atomdiffuser.simulation.damage import PATTERNS
from atomdiffuser.simulation.pairs import PairRanges, simulate_pairs

CRYSTALS = ("LLZO[100]", "LLZO[111]", "SrTiO3", "Si", "graphene", "nanoparticle")
ELECTRONS = (2.0, 5.0, 20.0, 100.0, 500.0)
INTERVALS_TIMES = 10
CONDITIONS = {
    "damaged": {"undamaged": 0.0},
    "damaged before": {"undamaged": 0.0, "damaged_before": 1.0},  # the reference lost up to half already
    "undamaged": {"undamaged": 1.0},
}


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is simulated.

    Attributes
    ----------
    pairs
        Of each crystal and fluence.
    largest_loss
        Damage between the two frames goes up to this share.
    ranges
        The reference is intact, but for the condition that says otherwise.
    """

    shape: tuple[int, int] = (256, 256)
    pairs: int = 4
    electrons: tuple[float, ...] = ELECTRONS
    crystals: tuple[str, ...] = CRYSTALS
    largest_loss: float = 0.6
    seed: int = 424242
    ranges: PairRanges = field(default_factory=lambda: PairRanges(damaged_before=0.0))

    def ranges_of(self, electrons: float, condition: str) -> PairRanges:
        """What is simulated at one fluence under one of `CONDITIONS`."""
        return replace(
            self.ranges, electrons=(electrons, electrons), loss=(0.0, self.largest_loss), **CONDITIONS[condition]
        )


def by_fluence(
    methods: dict[str, Method], options: BenchmarkOptions, *, device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """A row per method, fluence and condition of `CONDITIONS`: errors over all crystals."""
    rows = []
    conditions = [(e, c) for e in options.electrons for c in CONDITIONS]
    for done, (electrons, condition) in enumerate(conditions):
        ranges = options.ranges_of(electrons, condition)
        n = options.pairs * len(options.crystals)
        pairs = simulate_pairs(n, options.shape, options.seed + done, device, crystals=options.crystals, ranges=ranges)
        for name, method in methods.items():
            numbers = summary(pair_errors(method(pairs), pairs))
            rows.append({"method": name, "electrons_per_px": electrons, "condition": condition, "pairs": n, **numbers})
        if progress:
            progress(done + 1, len(conditions))
    return pd.DataFrame(rows)


def intervals(
    model: AtomDiffuser, options: BenchmarkOptions, *, times: int = INTERVALS_TIMES, device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """A row per fluence: how many true values the network's 95 % intervals hold, on `times` as many damaged pairs,
    since what a few pairs say of that scatters by some per cent. The true drift is given.
    """
    method, rows = network_method(model, given_drift=True), []
    n = options.pairs * len(options.crystals)
    for done, electrons in enumerate(options.electrons):
        ranges = options.ranges_of(electrons, "damaged")
        found = []
        for part in range(times):
            seed = options.seed + 10_000 + 100 * done + part
            pairs = simulate_pairs(n, options.shape, seed, device, crystals=options.crystals, ranges=ranges)
            found.append(pair_errors(method(pairs), pairs))
        numbers = summary({name: torch.cat([errors[name] for errors in found]) for name in found[0]})
        kept = {k: v for k, v in numbers.items() if k.endswith(("coverage95", "rmse"))}
        rows.append({"electrons_per_px": electrons, "pairs": n * times, **kept})
        if progress:
            progress(done + 1, len(options.electrons))
    return pd.DataFrame(rows)


def by_pattern(
    methods: dict[str, Method], options: BenchmarkOptions, *, electrons: float = 20.0,
    device: torch.device | str = "cpu", progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """A row per method and pattern of damage: smooth fields are known better than rough ones at the same fluence."""
    rows = []
    n = options.pairs * len(options.crystals)
    for done, pattern in enumerate(PATTERNS):
        ranges = replace(
            options.ranges, electrons=(electrons, electrons), loss=(0.0, options.largest_loss), undamaged=0.0,
            patterns=(pattern,),
        )  # fmt: skip
        pairs = simulate_pairs(
            n, options.shape, options.seed + 5000 + done, device, crystals=options.crystals, ranges=ranges
        )
        for name, method in methods.items():
            numbers = summary(pair_errors(method(pairs), pairs))
            rows.append({"method": name, "pattern": pattern, "electrons_per_px": electrons, "pairs": n, **numbers})
        if progress:
            progress(done + 1, len(PATTERNS))
    return pd.DataFrame(rows)


def between_frames(
    model: AtomDiffuser, options: BenchmarkOptions, *, taus: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0),
    device: torch.device | str = "cpu",
) -> pd.DataFrame:  # fmt: skip
    """States between two frames against the simulated truth: exponential and linear kinetics, and what was learned."""
    ranges = replace(options.ranges, electrons=(20.0, 20.0), loss=(0.2, options.largest_loss), undamaged=0.0)
    n = options.pairs * len(options.crystals)
    pairs = simulate_pairs(n, options.shape, options.seed + 777, device, crystals=options.crystals, ranges=ranges)
    detector = {"dark_level": pairs.dark_level, "gain_e": pairs.gain_e}
    masks, rows = judged_masks(pairs), []
    with torch.no_grad():
        prediction = model(pairs.reference, pairs.moving, **detector)
        for tau in taus:
            _, intensity, contrast = pairs.at(tau * pairs.time)
            truth = {"intensity": intensity, "contrast": contrast}
            learned = model(pairs.reference, pairs.moving, tau=tau, drift=prediction.moving_from_reference, **detector)
            answers = {
                "exponential": prediction.at(tau),
                "linear": prediction.at(tau, kinetics="linear"),
                "learned": learned,
            }
            for kinetics, answer in answers.items():
                row = {"tau": tau, "kinetics": kinetics}
                for name in ("intensity", "contrast"):
                    value = getattr(answer, name).reshape(truth[name].shape)
                    errors = map_errors(value, truth[name].float(), masks[name])
                    row |= {k: v for k, v in summary({f"{name}_rmse": errors["rmse"]}).items() if k.endswith("rmse")}
                rows.append(row)
    return pd.DataFrame(rows)
