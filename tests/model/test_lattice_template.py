"""The pair's structure without its noise: what is kept, what is not, and that blocks leave no seams."""

import pytest
import torch

from atomdiffuser.model.frames import Window, cut_template, pair_frames
from atomdiffuser.model.lattice_template import WHOLE_UP_TO_PX, find_edges, lattice_template
from atomdiffuser.model.pair_statistics import PairStatistics

NONE = torch.zeros(1, 2)


def crystal(shape: tuple[int, int], turn: float = 0.0) -> torch.Tensor:
    """A square lattice of 11 px between −1 and 1."""
    y, x = torch.meshgrid(*(torch.arange(float(s)) for s in shape), indexing="ij")
    turn = torch.tensor(turn)
    along, across = y * turn.cos() - x * turn.sin(), y * turn.sin() + x * turn.cos()
    return torch.cos(along * 0.57) * torch.cos(across * 0.57)


def shots(expected: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.poisson(expected, generator=generator)[None] for _ in range(2))
    return first, second


def likeness(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_lattice_stays_and_noise_goes():
    """At 3 electrons a pixel the frames are like the lattice to 0.7 at most, the template off its rims to 0.97."""
    lattice = crystal((160, 192))
    reference, moving = shots(3.0 + 2.0 * lattice)
    found = lattice_template(reference / 3, moving / 3, torch.ones_like(reference), torch.tensor([3.0]), NONE)
    assert likeness(reference[0] + moving[0], lattice) < 0.7
    inner = (slice(20, -20), slice(20, -20))
    assert likeness(found.structure[0][inner], lattice[inner]) > 0.97
    assert float(found.passed.max()) < 0.02


def test_noise_alone_does_not_pass_for_structure():
    reference, moving = shots(torch.full((160, 192), 20.0))
    found = lattice_template(reference / 20, moving / 20, torch.ones_like(reference), torch.tensor([20.0]), NONE)
    assert float(found.passed.max()) < 0.001
    assert float(found.structure.std()) < 0.1 * float((reference / 20).std())


def test_pixels_without_data_take_no_part():
    lattice = crystal((160, 192))
    reference, moving = shots(20.0 + 10.0 * lattice)
    mask = torch.ones_like(reference)
    mask[:, 70:76] = 0
    level = torch.tensor([20.0])
    spoiled = torch.where(mask > 0, moving, 4000.0)
    first, second = (lattice_template(reference / 20, m / 20, mask, level, NONE) for m in (moving, spoiled))
    torch.testing.assert_close(first.structure, second.structure)
    assert not first.structure[mask == 0].any()


def test_large_frames_are_filtered_in_blocks_without_seams():
    """Two grains turned against each other, in a frame of several blocks: close to the truth at every column."""
    shape = (WHOLE_UP_TO_PX + 150, 300)
    lattice = torch.where(torch.arange(shape[0])[:, None] < 270, crystal(shape), crystal(shape, 0.6))
    reference, moving = shots(10.0 + 6.0 * lattice)
    found = lattice_template(reference / 10, moving / 10, torch.ones_like(reference), torch.tensor([10.0]), NONE)
    scaled = found.structure[0] * 10 / 2
    rows = [likeness(scaled[r : r + 16], lattice[r : r + 16]) for r in range(8, shape[0] - 24, 16)]
    assert min(rows) > 0.9
    slopes = [float((scaled[r : r + 16] * lattice[r : r + 16]).sum() / lattice[r : r + 16].square().sum())
              for r in range(8, shape[0] - 24, 16)]  # fmt: skip
    assert slopes == pytest.approx([6.0] * len(slopes), abs=1.5)


def particle(contrast: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A crystal of 90 px across on a film of half its mass, and where it is sure to be."""
    y, x = torch.meshgrid(torch.arange(192.0), torch.arange(208.0), indexing="ij")
    radius = torch.hypot(y - 90, x - 100)
    inside = torch.sigmoid((45 - radius) / 1.5)
    return 20 * (1 + inside + 0.6 * contrast * inside * crystal((192, 208))), radius < 40


def kappa(reference: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
    """Contrast (n,) along the rim of the particle, in the window of 16 px."""
    n = len(reference)
    evidence = PairStatistics()(
        reference / 20, moving / 20, torch.ones_like(reference), torch.full((n,), 20.0), torch.zeros(n, 2)
    )
    y, x = torch.meshgrid(torch.arange(1.5, 192, 4), torch.arange(1.5, 208, 4), indexing="ij")
    return evidence.contrast[:, 2, (torch.hypot(y - 90, x - 100) - 47).abs() < 5].mean(1)


def test_a_particle_that_fades_is_not_held_up_by_its_edge(monkeypatch: pytest.MonkeyPatch):
    """It has lost half of its contrast and no mass, but the step at its rim stays."""
    (before, inside), (after, _) = particle(1.0), particle(0.5)
    first = torch.cat([shots(before, k)[0] for k in range(6)])
    second = torch.cat([shots(after, 100 + k)[0] for k in range(6)])
    assert float(kappa(first, second).mean()) == pytest.approx(0.5, abs=0.045)
    edges = find_edges(first[:1] / 20, torch.ones_like(first[:1]))
    assert not edges.dark[0][inside].any() and not edges.rim[0, 85:95, 95:105].any()
    assert edges.rim[0, 90, 52:58].all() and edges.dark[0, 90, 40:50].all()
    monkeypatch.setattr("atomdiffuser.model.lattice_template.find_edges", lambda image, mask: None)
    assert float(kappa(first, second).mean()) > 0.6


def test_edges_of_one_pair_do_not_matter_to_another():
    before, even = particle(1.0)[0], 20 * (1 + 0.6 * crystal((192, 208)))
    first, second = (torch.cat([shots(image, k)[0] for image in (before, even)]) for k in (1, 2))
    alone = torch.cat([kappa(first[k : k + 1], second[k : k + 1]) for k in range(2)])
    assert torch.equal(kappa(first, second), alone)


def test_slopes_are_no_edges():
    """However steep they are: beside one, a mean of one side would be off by the slope."""
    x = torch.arange(208.0).expand(192, 208)
    for width in (8.0, 12.0):
        assert find_edges(shots(20 * (0.05 + torch.sigmoid((x - 100) / width)))[0], torch.ones(1, 192, 208)) is None
    assert find_edges(shots(20 * (0.05 + torch.sigmoid((x - 100) / 1.5)))[0], torch.ones(1, 192, 208)) is not None
    assert find_edges(shots(40 * torch.exp((x - 208) / 60))[0], torch.ones(1, 192, 208)) is None


def test_a_lattice_has_no_edges():
    """Nor has one of long period, a wedge, nor the end of what both frames saw."""
    y, x = torch.meshgrid(torch.arange(192.0), torch.arange(208.0), indexing="ij")
    wedge = 10 + 0.05 * x
    long = 10 * (1 + 0.8 * torch.cos(y * 0.157) * torch.cos(x * 0.157))  # 40 px
    mask = torch.ones(1, 192, 208)
    mask[:, :25] = 0
    for image in (wedge, long, 10 + 6 * crystal((192, 208))):
        assert find_edges(shots(image)[0], torch.ones(1, 192, 208)) is None
        assert find_edges(shots(image)[0] * mask, mask) is None


def test_edges_are_cut_with_the_template():
    (before, _), (after, _) = particle(1.0), particle(0.5)
    frames = pair_frames(shots(before, 1)[0], shots(after, 2)[0])
    whole = frames.lattice_template(torch.eye(3, dtype=torch.float64)[None])
    part = cut_template(whole, Window(64, 64, 128, 192))
    assert part.edges.rim.shape == part.edges.dark.shape == part.structure.shape == (1, 128, 192)
    assert torch.equal(part.edges.rim[:, :, :144], whole.edges.rim[:, 64:, 64:])
    assert not part.edges.dark[:, :, 144:].any()
