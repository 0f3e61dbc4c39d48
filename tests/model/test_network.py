from dataclasses import replace

import numpy as np
import pytest
import torch

from atomdiffuser import geometry
from atomdiffuser.errors import SettingsError, ShapeError
from atomdiffuser.model import AtomDiffuser, ModelConfig
from atomdiffuser.model.frames import Window, pair_frames
from atomdiffuser.model.shift_search import _surface, _turned, motion_from_log_odds, turned_about_centre
from atomdiffuser.model.tiling import plan_tiles


def test_default_network_is_small_enough_to_ship():
    assert AtomDiffuser().count_parameters() * 4 <= 16e6


def test_time_zero_is_the_identity_and_one_exactly(network, pairs):
    prediction = network.predict(pairs.reference, pairs.moving)
    state = prediction.at([0.0])
    assert torch.equal(state.moving_from_reference[0], torch.eye(3, dtype=torch.float64).expand(4, 3, 3))
    for witness, maps in enumerate((state.intensity[0], state.contrast[0])):
        known = prediction.full_known(witness)
        assert known.float().mean() > 0.3
        assert torch.equal(maps[known], torch.ones(int(known.sum())))
    known = prediction.full_known(0)
    assert prediction.intensity[known].std() > 1e-3  # the answer itself is not trivial
    asked = network(pairs.reference, pairs.moving, tau=0.0)
    assert torch.equal(asked.intensity[known], torch.ones(int(known.sum())))


def test_time_one_is_the_measurement(network, pairs):
    prediction = network.predict(pairs.reference, pairs.moving)
    state = prediction.at(1.0)
    assert torch.equal(state.moving_from_reference[0], prediction.moving_from_reference)
    torch.testing.assert_close(state.contrast[0], prediction.contrast, equal_nan=True)
    torch.testing.assert_close(state.contrast_sigma[0], prediction.contrast_sigma, equal_nan=True)


def test_states_compose_with_exponential_kinetics_only(network, pairs):
    prediction = network.predict(pairs.reference, pairs.moving)
    s = prediction.at([0.3, 0.45, 0.75])
    torch.testing.assert_close(s.moving_from_reference[0] @ s.moving_from_reference[1], s.moving_from_reference[2])
    torch.testing.assert_close(s.contrast[0] * s.contrast[1], s.contrast[2], equal_nan=True)
    linear = prediction.at([0.3, 0.45, 0.75], kinetics="linear")
    apart = (linear.intensity[0] * linear.intensity[1] - linear.intensity[2])[prediction.full_known(0)]
    assert apart.abs().max() > 1e-4


def test_outside_the_overlap_is_nan(network, pairs):
    drift = geometry.translation(torch.tensor([[20.0, 0.0]], dtype=torch.float64)).expand(4, 3, 3)
    prediction = network.predict(pairs.reference, pairs.moving, drift=drift)
    assert torch.isnan(prediction.intensity[:, -19:]).all()  # these rows moved out at the bottom
    assert torch.isfinite(prediction.intensity[:, :40]).all()


@pytest.mark.parametrize("shape", [(64, 64), (51, 73), (33, 120)])
def test_any_size_and_dtype(network, shape):
    rng = np.random.default_rng(1)
    frames = rng.poisson(20.0, (2, *shape))
    answers = [
        network.predict(frames[0].astype(dtype), frames[1].astype(dtype)).rates
        for dtype in (np.uint16, np.int32, np.float64, np.dtype(">u2"))
    ]
    assert network.predict(frames[0], frames[1]).intensity.shape == (1, *shape)
    for other in answers[1:]:
        torch.testing.assert_close(other, answers[0])


def test_units_of_the_detector_do_not_matter(network, pairs):
    plain = network.predict(pairs.reference, pairs.moving)
    scaled = network.predict(pairs.reference / 0.25 + 100, pairs.moving / 0.25 + 100, dark_level=100.0, gain_e=0.25)
    torch.testing.assert_close(plain.rates, scaled.rates, atol=1e-3, rtol=1e-3)


def test_windows_give_what_the_whole_frame_gives(network):
    generator = torch.Generator().manual_seed(4)
    shape = (1216, 64)  # windows overlap by the reach of the widest local regression
    y, x = torch.meshgrid(*(torch.arange(float(s)) for s in shape), indexing="ij")
    lattice = lambda dy, dx: 20 + 8 * torch.cos((y - dy) * 0.6) * torch.cos((x - dx) * 0.5)
    frames = [torch.poisson(lattice(*d), generator=generator) for d in ((0, 0), (1.3, -0.8))]
    stacks, tiles = [f[None] for f in frames], plan_tiles(shape, 800, 384)
    assert len(tiles) == 2
    still = lambda found: geometry.identity(len(found))
    with torch.no_grad():
        drifts = [network.estimate_drift(pair_frames(*stacks), tiles=t, correct=still) for t in (None, tiles)]
    surfaces = torch.stack([d.log_odds.flatten() for d in drifts])
    assert torch.corrcoef(surfaces)[0, 1] > 0.9999
    ends = [d.moving_from_reference for d in drifts]
    assert geometry.displacement_rms_px(ends[0], ends[1], shape) < 0.02
    assert geometry.displacement_rms_px(ends[0], torch.eye(3), shape) > 0.1
    whole = network.predict(*frames, drift=ends[0])
    cut = network.predict(*frames, drift=ends[0], window_px=800, overlap_px=384)
    difference = (whole.intensity - cut.intensity)[whole.seen & cut.seen].abs()
    spread = whole.intensity[whole.seen].std()
    assert difference.square().mean().sqrt() < 0.05 * spread
    assert difference.max() < 0.6 * spread
    seam = (
        (cut.intensity[0, 1:] - cut.intensity[0, :-1]).abs().nanmean(),
        (whole.intensity[0, 1:] - whole.intensity[0, :-1]).abs().nanmean(),
    )
    assert float(seam[0] / seam[1]) == pytest.approx(1.0, abs=0.1)


def test_cores_cover_a_frame_once():
    for shape in ((320, 290), (1000, 2049), (64, 64)):
        count = torch.zeros(-(-shape[0] // 32) * 32, -(-shape[1] // 32) * 32)
        for tile in plan_tiles(shape, 192, 64):
            y0, y1, x0, x1 = tile.core
            count[y0:y1, x0:x1] += 1
            w = tile.window
            assert w.y <= y0 and y1 <= w.y + w.height and w.x <= x0 and x1 <= w.x + w.width
        assert torch.equal(count, torch.ones_like(count))


def test_batches_do_not_change_the_answer(network, pairs):
    together = network.predict(pairs.reference, pairs.moving)
    alone = network.predict(pairs.reference, pairs.moving, batch_px=1)
    torch.testing.assert_close(together.rates, alone.rates, atol=1e-4, rtol=1e-4)


def test_pixels_without_data_are_ignored(network, pairs):
    spoiled = pairs.moving.clone()
    spoiled[:, 10:14, 20:26] = torch.nan
    prediction = network.predict(pairs.reference, spoiled, drift=geometry.identity(4))
    assert not prediction.seen[:, 10:14, 20:26].any()
    assert torch.isfinite(prediction.rates).all()


def test_blank_and_constant_frames_give_finite_answers(network):
    for level in (0.0, 7.0):
        blank = torch.full((1, 64, 64), level)
        prediction = network.predict(blank, blank)
        for answer in (
            prediction.moving_from_reference,
            prediction.rates,
            prediction.log_sigma,
            prediction.displacement_sigma_px,
        ):
            assert torch.isfinite(answer).all()


def test_warped_frame_lies_on_the_reference(pairs):
    """A bright pixel that moved by (3, −2) is found where it came from."""
    reference, moving = torch.zeros(1, 32, 48), torch.zeros(1, 32, 48)
    reference[0, 10, 20] = 1.0
    moving[0, 13, 18] = 1.0
    frames = pair_frames(reference, moving)
    place = geometry.translation(torch.tensor([[3.0, -2.0]], dtype=torch.float64))
    values, mask = frames.aligned_window(Window(0, 0, 32, 32), place)
    assert tuple((values[0] == values[0].max()).nonzero()[0].tolist()) == (10, 20)
    assert not mask[0, 29:].any() and mask[0, 5:25, 5:25].all()
    wrong, _ = frames.aligned_window(Window(0, 0, 32, 32), geometry.invert(place))
    assert tuple((wrong[0] == wrong[0].max()).nonzero()[0].tolist()) != (10, 20)


def test_position_of_the_likeliest_motion():
    turns, shape = (-2.0, 0.0, 2.0), (64, 96)
    odds = torch.full((1, 3, 21, 21), -20.0)
    odds[0, 1:, 14, 7:9] = 5.0  # 0° and 2°; cells of 2 px; zero shift at (10, 10)
    odds[0, 0, 2, 2] = 5.4  # higher alone, but with nothing beside it
    motion, probability = motion_from_log_odds(odds, turns, shape)
    torch.testing.assert_close(geometry.rotation_scale_shear(motion)[0], torch.tensor([1.0]).double())
    turned = turned_about_centre(torch.tensor([1.0]), shape)
    shift = torch.linalg.solve(turned, motion)[0, :2, 2]
    torch.testing.assert_close(shift, torch.tensor([8.0, -5.0]).double(), atol=1e-3, rtol=0)
    assert 0.5 < probability[0] < 0.8


def test_turned_features_are_what_a_turned_frame_shows():
    features = torch.zeros(1, 1, 64, 96)
    features[0, 0, 20, 60] = 1.0
    seen = _turned(features, 4.0)[0, 0]
    row, column = divmod(int(seen.argmax()), 96)
    place = turned_about_centre(torch.tensor([4.0]), (64, 96))[0] @ torch.tensor([row, column, 1.0]).double()
    torch.testing.assert_close(place[:2], torch.tensor([20.0, 60.0]).double(), atol=0.71, rtol=0)


def test_search_finds_a_particle_that_turned_and_moved():
    """The surfaces alone, unread: their highest point is the right turn and shift."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    points = torch.stack([y, x, torch.ones_like(y)], -1).double()
    truth = turned_about_centre(torch.tensor([4.0]), (128, 128)) @ geometry.translation(
        torch.tensor([[12.0, -8.0]]).double()
    )
    generator = torch.Generator().manual_seed(2)
    spots = 40 + 48 * torch.rand(25, 2, generator=generator).double()
    scene = lambda p: 5 + 40 * torch.exp(-((p[..., None, :2] - spots) ** 2).sum(-1) / 12).sum(-1).float()
    moving = scene(points @ geometry.invert(truth)[0].T)
    frames = pair_frames(*(torch.poisson(f, generator=generator)[None] for f in (scene(points), moving)))
    model = AtomDiffuser()
    tile = plan_tiles((128, 128), 2**30)[0].window
    windows = frames.reference_window(tile), frames.moving_window(tile)
    first, second = (model.encoder(*w, frames.level)[:, :3] for w in windows)  # the wide bands hardly see a turn
    heights = torch.stack([
        _surface(torch.fft.rfft2(first, s=(192, 192)), torch.fft.rfft2(_turned(second, t), s=(192, 192)), (192, 192),
                 (28, 28)).sum(1)
        for t in model.config.turns_deg
    ], 1)  # fmt: skip
    turn, row, column = np.unravel_index(int(heights.argmax()), heights.shape[1:])
    assert model.config.turns_deg[turn] == 4.0
    assert (2 * (row - 28), 2 * (column - 28)) == (12, -8)


def test_every_parameter_but_the_second_looks_receives_a_gradient(pairs, tiny):
    from atomdiffuser.simulation.randomness import Draws, RandomStreams
    from atomdiffuser.training.batches import training_batch
    from atomdiffuser.training.objectives import atomdiffuser_loss
    from atomdiffuser.training.settings import TrainSettings

    torch.manual_seed(0)
    model = AtomDiffuser(tiny)
    for name, parameter in model.named_parameters():
        if "film" in name:
            torch.nn.init.normal_(parameter, std=0.05)  # fresh ones are zero and let nothing through
    batch = training_batch(pairs, torch.ones(4).double(), 0.05, Draws(4, RandomStreams(1)), 0.1)
    loss, _ = atomdiffuser_loss(model, batch, TrainSettings(model=tiny))
    loss.backward()
    trained = {k: p for k, p in model.named_parameters() if not k.startswith("decoder.second_look.")}
    assert not [k for k, p in trained.items() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert sum(float(p.grad.abs().sum()) == 0 for p in trained.values()) == 0


def test_wrong_inputs_are_named(network, pairs, tiny):
    with pytest.raises(ShapeError, match="expected equal ones"):
        network.predict(pairs.reference, pairs.moving[:, :32])
    with pytest.raises(ShapeError, match="two equal"):
        network(pairs.reference, pairs.moving[:, :32])
    with pytest.raises(ShapeError, match="complex"):
        network.predict(pairs.reference.to(torch.complex64), pairs.moving)
    with pytest.raises(SettingsError, match="precision is 'half'"):
        network.predict(pairs.reference, pairs.moving, precision="half")
    with pytest.raises(SettingsError, match="kinetics 'learned' is not known"):
        network.predict(pairs.reference, pairs.moving).at(0.5, kinetics="learned")
    with pytest.raises(SettingsError, match="expected 4"):
        replace(tiny, decoder_widths=(8, 8, 8))
    with pytest.raises(SettingsError, match="step_reach"):
        replace(tiny, step_reach=(4, 3, 2))
    with pytest.raises(SettingsError, match="'widths' is not known"):
        ModelConfig.from_dict({"widths": 3})
