"""Decay finer than the nodes of its fields: the drift is fitted again, and no longer pulled along."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from measured_pairs import pairs, source

from atomdiffuser import estimate_pairs, geometry, simulate_series
from atomdiffuser.estimation import register
from atomdiffuser.estimation.fit_problem import FitProblem
from atomdiffuser.estimation.register import FitOptions, register_from

REPEATS = 12


@pytest.fixture(scope="module")
def holed():
    """Many draws of a particle and of what sharp holes leave of it five frames later, and the drift between them."""
    truth = simulate_series(
        "nanoparticle", n_frames=6, seed=27, shape=(256, 256), electrons_per_px=1.0, random_walk_px=0.3,
        dtype="float32", drift_px_per_frame=1.5, rotation_deg_per_frame=0.05, damage="holes", witness="both",
        fluence_per_frame=1000.0, critical_fluence=5000.0 / math.log(1 / 0.4), vacancies=0.04,
    )  # fmt: skip
    rng = np.random.default_rng(5)
    draw = lambda k: rng.poisson(200 * truth.expected[k], (REPEATS, 256, 256)).astype(np.float32)
    return draw(0), draw(5), truth.frame_from_reference[5]


def pull_and_scatter_px(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Mean error of repeats, freed of what their scatter leaves in it, and that scatter; RMS over the frame."""
    off = lambda a, b: geometry.displacement_rms_px(torch.as_tensor(a), torch.as_tensor(b), (256, 256)).numpy()
    mean = found.mean(0)
    scatter = float((off(found, mean) ** 2).sum() / (len(found) - 1))
    return math.sqrt(max(float(off(mean, true)) ** 2 - scatter / len(found), 0.0)), math.sqrt(scatter)


def test_sharp_holes_do_not_pull_at_the_drift(holed, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, moving, true = holed
    found = estimate_pairs(reference, moving, predict=False, maps=False)
    monkeypatch.setattr(register, "MISFIT", math.inf)
    before = estimate_pairs(reference, moving, predict=False, maps=False)
    pull, scatter = pull_and_scatter_px(found.moving_from_reference, true)
    pull_before, scatter_before = pull_and_scatter_px(before.moving_from_reference, true)
    assert pull < 0.5 * pull_before
    assert pull < 0.8 * scatter < 0.8 * 1.1 * scatter_before
    assert scatter < 1.2 * found.displacement_sigma_px.mean()


@pytest.mark.parametrize("specimen", ["SrTiO3", "Si", "LLZO[100]"])
def test_smeared_decay_does_not_pull_at_the_drift(specimen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = simulate_series(
        specimen, n_frames=2, seed=7, shape=(256, 256), electrons_per_px=200.0, drift_px_per_frame=5.0, dtype="float32",
        damage="edge", witness="both", fluence_per_frame=5000.0, critical_fluence=5000.0,
    )  # fmt: skip
    frames = truth.expected.astype(np.float32)  # without noise: what is off is bias

    def off_px() -> float:
        found = estimate_pairs(frames[0], frames[1], predict=False, maps=False).moving_from_reference
        true = torch.as_tensor(truth.frame_from_reference[1])
        return float(geometry.displacement_rms_px(torch.as_tensor(found[0]), true, (256, 256)))

    now = off_px()
    monkeypatch.setattr(FitProblem, "smeared", lambda self, images, fields, normal: fields.new_zeros(len(fields), 6))
    assert now < 0.6 * off_px()


def test_smooth_decay_is_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pairs()
    src, n = (
        source(np.stack([batch.reference.numpy(), batch.moving.numpy()], 1).reshape(-1, *batch.reference.shape[1:])),
        len(batch),
    )
    reference, moving = src.prepared(range(0, 2 * n, 2)), src.prepared(range(1, 2 * n, 2))
    options, start = FitOptions(src.noise, src.scales), batch.moving_from_reference
    found = register_from(reference, moving, start, options)
    monkeypatch.setattr(register.ReferenceCells, "decayed", lambda *_: pytest.fail("fitted again"))
    assert torch.equal(
        register_from(reference, moving, start, options).moving_from_reference, found.moving_from_reference
    )


def test_decay_between_nodes_is_that_of_a_smooth_surface() -> None:
    batch = pairs()
    src = source(np.stack([batch.reference.numpy()[0], batch.moving.numpy()[0]]))
    cells = FitOptions(src.noise, src.scales).cells(src.prepared([0]))
    surface = lambda y, x: 0.3 + 0.6 * y - 0.4 * y**2 + 0.2 * x**3 - 0.1 * x * y**2
    at = lambda y, x: surface(y[:, None] / (src.shape[0] - 1), x[None, :] / (src.shape[1] - 1))
    knots = [torch.linspace(0, size - 1, 8, dtype=torch.float64) for size in src.shape]
    nodes, decay = at(*knots), at(cells.grid.rows, cells.grid.columns)
    fields = torch.stack([nodes, 0.9 * nodes])[None]
    found = cells.decayed(fields, 1.3)
    slope_y, slope_x = (
        (at(cells.grid.rows + dy, cells.grid.columns + dx) - at(cells.grid.rows - dy, cells.grid.columns - dx)) / 2e-3
        for dy, dx in ((1e-3, 0.0), (0.0, 1e-3))
    )
    ascent = 0.9 * 1.3**2 * (slope_y * cells.clean_slopes[0, 0] + slope_x * cells.clean_slopes[0, 1])
    assert ascent.std() > 0.002 * cells.lattice.std()
    torch.testing.assert_close(found.structure[0, 0], (cells.base[0] * decay).float())
    torch.testing.assert_close(found.structure[0, 1], (cells.lattice[0] * 0.9 * decay + ascent).float())
    for name in ("slopes", "clean_slopes"):
        torch.testing.assert_close(getattr(found, name)[0], (getattr(cells, name)[0] * 0.9 * decay).float())
    # Of electrons counted, the variance follows the mean; that of the decayed frame is the square of what is left.
    variance = lambda c: c.noise_share * c.base
    torch.testing.assert_close(variance(found)[0], (variance(cells)[0] * (0.9 * decay) ** 2).float())
