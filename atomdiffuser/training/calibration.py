"""After training: a factor for the σ of each map and fluence, so that 95 % intervals hold 95 % of the truth.

Fitted on simulated pairs of the kind that training showed, drawn with a seed of their own and aligned by the truth, as
the statistical refinement does but for a small rest; crystals kept for the evaluation take no part. Something happened
to all of them, but mostly little: damage that is hardly there is missed most easily, and where nothing happened, or
much, σ comes out too large rather than too small.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from atomdiffuser.evaluation.metrics import SIGMAS_95, judged_masks
from atomdiffuser.model.decay_decoder import CALIBRATED_AT_E
from atomdiffuser.model.network import AtomDiffuser
from atomdiffuser.simulation.pairs import PairBatch, simulate_pairs
from atomdiffuser.simulation.randomness import RandomStreams
from atomdiffuser.training.batches import electrons_of
from atomdiffuser.training.settings import TrainSettings

SEED = 31337
EVERY_PX = 7  # neighbouring pixels say the same
LARGEST_LOSS = 0.6
PEAK_OVER_MEAN = 2.2  # of the electrons of a pixel, about, in these images


@torch.no_grad()
def sigma_offsets(model: AtomDiffuser, settings: TrainSettings, device: torch.device) -> Tensor:
    """Logarithms of the factors, (2, levels): intensity and contrast at each of `CALIBRATED_AT_E`."""
    if settings.calibrate_pairs == 0:
        return torch.zeros(2, len(CALIBRATED_AT_E))
    columns = []
    for number, level in enumerate(CALIBRATED_AT_E):
        peak = PEAK_OVER_MEAN * level
        ranges = replace(settings.ranges, electrons=(peak, peak), undamaged=0.0, loss=(0.0, LARGEST_LOSS))
        streams = RandomStreams(SEED, device).child(f"level {number}")
        ratios: dict[str, list[Tensor]] = {"intensity": [], "contrast": []}
        for at in range(0, settings.calibrate_pairs, settings.batch):
            n = min(settings.batch, settings.calibrate_pairs - at)
            pairs = simulate_pairs(n, settings.shape, streams.child(f"pairs from {at}"), device, ranges=ranges)
            for name, found in _ratios(model, pairs).items():
                ratios[name].append(found)
        columns.append(_offsets(ratios))
    return torch.stack(columns, 1)


def _ratios(model: AtomDiffuser, pairs: PairBatch) -> dict[str, Tensor]:
    """Errors over their σ, of pixels that are judged, for both maps."""
    masks, found = judged_masks(pairs), {}
    frames = (electrons_of(pairs, name) for name in ("reference", "moving"))
    prediction = model(*frames, drift=pairs.moving_from_reference)
    for name, mask in masks.items():
        value, sigma = getattr(prediction, name), getattr(prediction, f"{name}_sigma")
        ratio = ((value - getattr(pairs, name)).abs() / sigma)[:, ::EVERY_PX, ::EVERY_PX]
        found[name] = ratio[mask[:, ::EVERY_PX, ::EVERY_PX] & torch.isfinite(ratio)]
    return found


def _offsets(ratios: dict[str, list[Tensor]]) -> Tensor:
    """(2,) from what was found at one fluence."""
    offsets = []
    for parts in ratios.values():
        values = torch.cat(parts).double().cpu()
        enough = len(values) > 100
        offsets.append(
            (values.kthvalue(int(0.95 * len(values))).values / SIGMAS_95).log() if enough else torch.zeros(())
        )
    return torch.stack([o.float() for o in offsets])
