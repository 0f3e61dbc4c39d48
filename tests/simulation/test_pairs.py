import dataclasses

import pytest
import torch

from atomdiffuser.errors import SettingsError
from atomdiffuser.geometry import apply_affine, drift_at_centre, identity, invert, pixel_grid, rotation_scale_shear
from atomdiffuser.simulation import PairRanges, simulate_pairs
from atomdiffuser.simulation.damage import PATTERNS

SHAPE = (48, 64)


def pairs(n=8, seed=0, shape=SHAPE, crystals=None, **ranges):
    return simulate_pairs(n, shape, seed, crystals=crystals, ranges=PairRanges(**ranges))


def test_both_frames_are_the_specimen_seen_through_the_truth():
    """Evaluated point by point: base·μ + lattice·κ at p and at A⁻¹p."""
    batch = pairs(12, jitter=0.0, time=(0.4, 1.0))
    still = pixel_grid(SHAPE).expand(12, -1, -1, -1)
    moved = apply_affine(invert(batch.moving_from_reference)[:, None, None], still)
    start, end = batch.exposure
    for points, exposure, expected in (
        (still, start, batch.expected_reference),
        (moved, start + batch.time * (end - start), batch.expected_moving),
    ):
        intensity, contrast = batch.damage.maps(points, exposure)
        by_hand = batch.specimen.base(points) * intensity + batch.specimen.lattice(points) * contrast
        by_hand = by_hand.clamp_min(0) * batch.electrons[:, None, None]
        assert torch.allclose(
            expected.double() / batch.electrons[:, None, None], by_hand / batch.electrons[:, None, None], atol=2e-3
        )


def test_maps_are_moving_over_reference():
    batch = pairs(
        12, jitter=0.0, rotation_deg=0, strain=0, drift_periods=(0, 0), particle_drift_px=0, particle_rotation_deg=0
    )
    assert torch.allclose(batch.moving_from_reference, identity(12), atol=1e-12)
    structure = batch.expected_reference - batch.base
    predicted = batch.base * batch.intensity + structure * batch.contrast
    assert torch.allclose(batch.expected_moving, predicted, rtol=1e-3, atol=1e-3 * float(batch.electrons.max()))
    doing_nothing = (batch.expected_moving - batch.expected_reference).abs().amax((1, 2)) / batch.electrons
    assert doing_nothing.median() > 0.05


def test_truth_between_the_frames():
    batch = pairs(12, time=(0.3, 0.8))
    motion, intensity, contrast = batch.at(0.0)
    assert torch.allclose(motion, identity(12), atol=1e-9)
    assert torch.all(intensity == 1) and torch.all(contrast == 1)
    motion, intensity, contrast = batch.at(batch.time)
    assert torch.allclose(motion, batch.moving_from_reference, atol=1e-7)
    assert torch.allclose(intensity, batch.intensity, atol=1e-5) and torch.allclose(contrast, batch.contrast, atol=1e-5)
    half, _, _ = batch.at(batch.time / 2)
    assert torch.allclose(half @ half, batch.moving_from_reference, atol=1e-7)


def test_the_same_seed_gives_the_same_pairs_and_a_generator_new_ones():
    one, again = pairs(3, seed=4), pairs(3, seed=4)
    assert torch.equal(one.moving, again.moving) and torch.equal(one.intensity, again.intensity)
    generator = torch.Generator().manual_seed(4)
    first, second = (simulate_pairs(3, SHAPE, generator) for _ in range(2))
    assert not torch.equal(first.moving_from_reference, second.moving_from_reference)


def test_noise_of_the_two_frames_is_independent_poisson():
    batch = pairs(24, jitter=0.0, eight_bit=0.0, integer=0.0, readout_e=(0.0, 0.0), electrons=(20, 100))
    electrons = [
        (f - batch.dark_level[:, None, None]) * batch.gain_e[:, None, None] for f in (batch.reference, batch.moving)
    ]
    expected = [batch.expected_reference, batch.expected_moving]
    for recorded, mean in zip(electrons, expected, strict=True):
        pulls = ((recorded - mean) / mean.clamp_min(1).sqrt())[mean > 5]
        assert pulls.std() == pytest.approx(1, rel=0.03) and pulls.mean() == pytest.approx(0, abs=0.03)
    noise = torch.stack([(e - x).flatten() for e, x in zip(electrons, expected, strict=True)])
    assert torch.corrcoef(noise.double())[0, 1].abs() < 0.03


def test_counts_respect_their_quantisation():
    batch = pairs(200, shape=(16, 16))
    whole = (batch.reference == batch.reference.round()).flatten(1).all(1)
    assert 0.6 < whole.float().mean() < 0.8 and batch.reference[whole].min() >= 0
    eight = pairs(20, eight_bit=1.0, electrons=(20, 500))
    assert eight.reference.max() <= 255 and eight.reference.flatten(1).amax(1).median() > 110


def test_drift_stays_within_half_a_period_for_extended_crystals():
    batch = pairs(300, shape=(16, 16), particles=0.0, film_only=0.0)
    shift = drift_at_centre(batch.moving_from_reference, (16, 16)).norm(dim=-1) / batch.period_px
    assert shift.max() <= 0.5 and shift.max() > 0.4
    turn, scale, _ = rotation_scale_shear(batch.moving_from_reference)
    assert turn.abs().max() <= 1.0 and (scale - 1).abs().max() < 0.006


def test_particles_move_far():
    batch = simulate_pairs(200, (16, 16), 0, crystals=("nanoparticle",))
    shift = drift_at_centre(batch.moving_from_reference, (16, 16)).abs()
    assert 34 < shift.max() <= 38
    turn, _, _ = rotation_scale_shear(batch.moving_from_reference)
    assert 4.5 < turn.abs().max() <= 5.2


def test_losses_reach_what_is_asked_and_not_more():
    batch = pairs(300, shape=(16, 16), patterns=("uniform",), witness_odds=(1, 0, 0, 0, 0, 0), damaged_before=0.0)
    assert batch.intensity.min() == pytest.approx(0.1, abs=0.02) and batch.intensity.max() == 1
    assert (batch.intensity.amin((1, 2)) == 1).float().mean() == pytest.approx(0.08, abs=0.06)
    assert batch.intensity.mean() == pytest.approx(1 - 0.92 * 0.45, abs=0.05)


def test_an_undamaged_batch_stays_at_one():
    batch = pairs(8, undamaged=1.0)
    assert torch.all(batch.intensity == 1) and torch.all(batch.contrast == 1)


def test_witnesses_are_what_the_odds_say():
    for odds, intensity, contrast in (((0, 1, 0, 0, 0, 0), False, True), ((0, 0, 1, 0, 0, 0), True, None)):
        batch = pairs(16, witness_odds=odds, undamaged=0.0, loss=(0.5, 0.6))
        assert (batch.intensity != 1).any() == intensity
        assert contrast is None or (batch.contrast != 1).any() == contrast
    both = pairs(16, witness_odds=(1, 0, 0, 0, 0, 0), background=(0.4, 0.5))
    assert torch.allclose(both.intensity, both.contrast)
    gained = pairs(16, witness_odds=(0, 0, 0, 0, 1, 0), undamaged=0.0, loss=(0.5, 0.6))
    assert gained.intensity.max() > 1.05 and gained.contrast.max() <= 1


def test_named_crystals_can_be_held_apart():
    batch = pairs(6, crystals=("SrTiO3", "LLZO[111]", "nanoparticle"))
    assert torch.isfinite(batch.period_px).all() and torch.isfinite(batch.moving).all()


def test_amplitude_says_where_contrast_can_be_seen():
    batch = pairs(40, film_only=0.5)
    film = torch.isnan(batch.period_px)
    assert 8 < int(film.sum()) < 32
    assert torch.all(batch.lattice_amplitude[film] == 0) and torch.all(batch.lattice_amplitude[~film].amax((1, 2)) > 0)


def test_overlap_is_what_the_moving_frame_saw():
    batch = dataclasses.replace(pairs(1), moving_from_reference=identity(1))
    assert batch.overlap().all()
    shifted = identity(1)
    shifted[0, 0, 2] = 10.0
    seen = dataclasses.replace(batch, moving_from_reference=shifted).overlap()[0]
    assert seen[: SHAPE[0] - 10].all() and not seen[SHAPE[0] - 10 :].any()


def test_all_patterns_occur_and_everything_is_finite():
    batch = pairs(60, shape=(24, 32))
    assert batch.pattern.unique().tolist() == list(range(len(PATTERNS)))
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor) and field.name != "period_px":
            assert torch.isfinite(value).all(), field.name


def test_impossible_ranges_are_refused():
    with pytest.raises(SettingsError, match="patterns holds 'rust'"):
        PairRanges(patterns=("rust",))
    with pytest.raises(SettingsError, match="witness_odds has 2 numbers, expected 6"):
        PairRanges(witness_odds=(1.0, 1.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_pairs():
    cpu, gpu = (simulate_pairs(8, SHAPE, 3, device, ranges=PairRanges()) for device in ("cpu", "cuda"))
    assert torch.allclose(cpu.expected_moving, gpu.expected_moving.cpu(), rtol=1e-3, atol=1e-2)
    assert torch.allclose(cpu.intensity, gpu.intensity.cpu(), atol=1e-4)
