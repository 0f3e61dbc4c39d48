"""Validation during training: named crystals, which training never shows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from atomdiffuser.evaluation.metrics import Answer, pair_errors, summary
from atomdiffuser.model.prediction import PairPrediction
from atomdiffuser.simulation.pairs import PairBatch, simulate_pairs
from atomdiffuser.training.batches import electrons_of
from atomdiffuser.training.settings import TrainSettings

SEED = 90210
KEPT = (
    "intensity_rmse",
    "intensity_coverage95",
    "contrast_rmse",
    "contrast_coverage95",
    "drift_px_median",
    "drift_px_p95",
)


class Validation:
    """Errors of a network on the same pairs each time, drift estimated and not given unless only maps are trained."""

    def __init__(self, settings: TrainSettings, device: torch.device | str) -> None:
        self.settings, self.device = settings, torch.device(device)
        self._pairs: PairBatch | None = None

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        s = self.settings
        if self._pairs is None:
            ranges = replace(s.ranges, electrons=(s.validate_electrons,) * 2, loss=(0.0, 0.6))
            self._pairs = simulate_pairs(
                s.validate_pairs, s.shape, SEED, self.device, crystals=s.validate_crystals, ranges=ranges
            )
        pairs = self._pairs
        parts = []
        for at in range(0, len(pairs), s.batch):
            take = slice(at, at + s.batch)
            given = {"drift": pairs.moving_from_reference[take]} if s.parts == ("maps",) else {}
            frames = (electrons_of(pairs, name)[take] for name in ("reference", "moving"))
            parts.append(answer_of(model(*frames, **given)))
        joined = (torch.cat([p[k] for p in parts]) if parts[0][k] is not None else None for k in range(5))
        numbers = summary(pair_errors(Answer(*joined), pairs))
        return {k: numbers[k] for k in KEPT if k in numbers}


def answer_of(prediction) -> tuple:
    """The five parts of an `Answer`, from what any of the networks returns."""
    if isinstance(prediction, PairPrediction):
        p = prediction
        return p.moving_from_reference, p.intensity, p.contrast, p.intensity_sigma, p.contrast_sigma
    return prediction.moving_from_reference, prediction.intensity, prediction.intensity, None, None
