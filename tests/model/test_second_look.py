"""The second look with the shipped weights: calm pairs come out calm, damage stays."""

from dataclasses import replace

import pytest
import torch

from atomdiffuser.evaluation.metrics import judged_masks, map_errors
from atomdiffuser.model import load_model
from atomdiffuser.model.frames import pair_frames
from atomdiffuser.model.second_look import SecondLook
from atomdiffuser.simulation.pairs import PairRanges, simulate_pairs


def errors(undamaged: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors (n,) of the intensity after the second look, and as the first has it."""
    ranges = replace(PairRanges(), electrons=(10.0, 10.0), undamaged=undamaged, damaged_before=0.0, loss=(0.2, 0.6))
    pairs = simulate_pairs(10, (192, 192), 4, "cpu", crystals=("SrTiO3", "graphene"), ranges=ranges)
    model, found = load_model(), []
    for look in (model.decoder.second_look.forward, lambda blend, _: (blend, torch.zeros_like(blend))):
        model.decoder.second_look.forward = look
        with torch.no_grad():
            answer = model(
                pairs.reference, pairs.moving, dark_level=pairs.dark_level, gain_e=pairs.gain_e,
                drift=pairs.moving_from_reference,
            )  # fmt: skip
        found.append(map_errors(answer.intensity, pairs.intensity, judged_masks(pairs)["intensity"])["rmse"])
    return found[0], found[1]


def test_noise_that_wider_windows_average_out_is_gone():
    after, before = (e.square().mean().sqrt() for e in errors(1.0))
    assert after < 0.75 * before


def test_damage_is_not_smoothed_away():
    after, before = (e.square().mean().sqrt() for e in errors(0.0))
    assert after < 1.03 * before


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_a_fresh_one_mostly_takes_the_blend(pairs, scale):
    torch.manual_seed(0)
    model = load_model()
    frames = pair_frames(pairs.reference * scale, pairs.moving * scale)
    evidence = model.evidence(frames, pairs.moving_from_reference)
    with torch.no_grad():
        blend, _, _ = model.decoder.first_look(evidence, model.decoder.conditioning(frames.level, torch.ones(4)))
        rate, change = SecondLook()(blend, evidence)
    widest = evidence.beyond
    assert (rate - blend).abs().mean() < 0.5 * (widest - blend).abs().mean() and change.abs().max() < 2.0
