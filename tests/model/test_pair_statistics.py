"""The local regressions before anything is learned: right on average, honest about their noise."""

import pytest
import torch

from atomdiffuser.model.pair_statistics import OCTAVES, WINDOW_CELLS, PairStatistics, readout_variance

SHAPE = (160, 192)
INNER = (slice(8, -8), slice(8, -8))


def frames(mean: float, amplitude: float, intensity: float, contrast: float, *, seed: int = 0, readout: float = 0.0):
    """A lattice, and the same with other intensity and contrast, with shot noise: values over the mean, level, mask."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*(torch.arange(float(s)) for s in SHAPE), indexing="ij")
    lattice = amplitude * torch.cos(y * 0.55) * torch.cos(x * 0.6)
    electrons = []
    for base, structure in ((mean, 1.0), (mean * intensity, contrast)):
        shots = torch.poisson((base + structure * lattice).expand(3, -1, -1), generator=generator)
        electrons.append(shots + readout * torch.randn(shots.shape, generator=generator))
    level = torch.full((3,), mean)
    return electrons[0] / mean, electrons[1] / mean, torch.ones(3, *SHAPE), level, electrons


@pytest.mark.parametrize("mean", [3.0, 30.0])
def test_windows_are_unbiased_at_few_and_many_electrons(mean):
    """Doing nothing is off by 0.2 and 0.4; without the noise taken out of the reference, contrast by 0.1 and more."""
    reference, moving, mask, level, _ = frames(mean, 0.6 * mean, 0.8, 0.6)
    found = PairStatistics()(reference, moving, mask, level, torch.zeros(3, 2))
    tolerance = 0.03 if mean < 10 else 0.01
    for window in (2, 3, 4):
        assert float(found.log_intensity[:, window][..., *INNER].mean().exp()) == pytest.approx(0.8, abs=0.01)
        assert float(found.contrast[:, window][..., *INNER].mean()) == pytest.approx(0.6, abs=tolerance)


def test_readout_noise_is_measured_and_taken_out():
    reference, moving, mask, level, electrons = frames(8.0, 6.0, 1.0, 0.5, readout=6.0)
    readout = torch.stack([readout_variance(e, mask) for e in electrons], 1)
    torch.testing.assert_close(readout, torch.full((3, 2), 36.0), atol=2.5, rtol=0)
    with_it, without = (
        PairStatistics()(reference, moving, mask, level, r).contrast[:, 3][..., *INNER].mean()
        for r in (readout, torch.zeros(3, 2))
    )
    assert abs(float(with_it) - 0.5) < 0.02 and abs(float(without) - 0.5) > 0.2


def test_noise_that_reaches_the_template_is_taken_out_of_contrast():
    """A faint lattice that is gone in the moving frame: what little noise passes the filter would leave 0.018 of it."""
    found = []
    for seed in range(5):
        reference, moving, mask, level, _ = frames(5.0, 1.5, 1.0, 0.0, seed=seed)
        contrast = PairStatistics()(reference, moving, mask, level, torch.zeros(3, 2)).contrast[:, 4]
        found.append(float(contrast[..., *INNER].mean()))
    assert abs(sum(found) / len(found)) < 0.008


def test_hot_pixels_do_not_pass_for_readout_noise():
    generator = torch.Generator().manual_seed(4)
    electrons = torch.poisson(torch.full((1, *SHAPE), 10.0), generator=generator)
    electrons[0, 40, 50] = 5000.0
    assert abs(float(readout_variance(electrons, torch.ones(1, *SHAPE)))) < 1.0


def test_of_large_frames_strips_say_what_readout_noise_there_is():
    generator = torch.Generator().manual_seed(5)
    electrons = torch.poisson(torch.full((2, 2048, 1536), 10.0), generator=generator)
    electrons += torch.tensor([0.0, 3.0])[:, None, None] * torch.randn(2, 2048, 1536, generator=generator)
    found = readout_variance(electrons, torch.ones_like(electrons))
    assert found.tolist() == pytest.approx([0.0, 9.0], abs=0.15)


def test_difference_between_widths_is_noise_where_nothing_varies():
    statistics = PairStatistics()
    per_window = 5 + 2 * len(OCTAVES)
    rough = slice(len(WINDOW_CELLS) * per_window + 3, None)
    reference, moving, mask, level, _ = frames(20.0, 10.0, 0.7, 0.7, seed=1)
    still = statistics(reference, moving, mask, level, torch.zeros(3, 2)).channels[:, rough]
    # The middle widths: the narrowest sees single columns, the widest differ in few places.
    assert still[:, [1, 2, 9, 10]][..., *INNER].mean(dim=(0, 2, 3)).abs().max() < 0.5
    step = torch.where(torch.arange(SHAPE[1]) < SHAPE[1] // 2, 1.0, 0.6)
    varied = statistics(reference, moving * step, mask, level, torch.zeros(3, 2)).channels[:, rough]
    middle = (..., slice(8, -8), slice(20, 28))
    assert (varied[:, 2][middle].mean() - still[:, 2][middle].mean()) > 1.0


def test_pixels_without_data_are_left_out():
    reference, moving, mask, level, _ = frames(20.0, 10.0, 0.8, 0.6, seed=2)
    mask[:, 60:70] = 0
    spoiled = torch.where(mask > 0, moving, 30.0)
    first, second = (PairStatistics()(reference, m, mask, level, torch.zeros(3, 2)) for m in (moving, spoiled))
    torch.testing.assert_close(first.channels, second.channels)


def test_no_lattice_is_said_to_be_doubtful():
    generator = torch.Generator().manual_seed(3)
    flat = torch.poisson(torch.full((2, 3, *SHAPE), 20.0), generator=generator) / 20
    statistics, level, none = PairStatistics(), torch.full((3,), 20.0), torch.zeros(3, 2)
    nothing = statistics(flat[0], flat[1], torch.ones(3, *SHAPE), level, none).log_doubt[:, 1]
    reference, moving, mask, _, _ = frames(20.0, 10.0, 1.0, 1.0)
    assert nothing.median() > 0.5 > -1.0 > statistics(reference, moving, mask, level, none).log_doubt[:, 1].median()


@pytest.mark.parametrize("power", [1.0, 2.0, -1.0])
def test_contrast_that_follows_intensity_is_found_in_finer_windows(power):
    """One field takes both: following the intensity is closer than any window of contrast alone, and ρ has its sign.

    A field that only the contrast has leaves ρ without certainty.
    """
    generator = torch.Generator().manual_seed(6)
    y, x = torch.meshgrid(*(torch.arange(float(s)) for s in SHAPE), indexing="ij")
    lattice = torch.cos(y * 0.55) * torch.cos(x * 0.6)
    field = 1 - 0.3 * torch.exp(-((y - 80) ** 2 + (x - 90) ** 2) / (2 * 20**2))
    contrast = field**power if power > 0 else 2 - field
    draw = lambda mean, structure: torch.poisson(
        (mean + 8 * structure * lattice).expand(3, -1, -1), generator=generator
    )
    mask, level, none = torch.ones(3, *SHAPE), torch.full((3,), 16.0), torch.zeros(3, 2)
    reference, moving, alone = draw(16.0, 1.0) / 16, draw(16 * field, contrast) / 16, draw(16.0, contrast) / 16
    statistics = PairStatistics()
    found = statistics(reference, moving, mask, level, none)
    true = torch.nn.functional.avg_pool2d(contrast[None, None], 4)
    rms = lambda v: float((v - true)[..., *INNER].square().mean(dim=(0, 2, 3)).sqrt().min())
    assert rms(found.following) < 0.85 * rms(found.contrast)
    ratio, certainty = found.channels[:, -2:, 20, 22].unbind(1)
    assert (torch.sign(ratio) == (1 if power > 0 else -1)).all() and certainty.abs().min() > 0.6
    unrelated = statistics(reference, alone, mask, level, none).channels[:, -1, 20, 22]
    assert unrelated.abs().max() < certainty.abs().min()
