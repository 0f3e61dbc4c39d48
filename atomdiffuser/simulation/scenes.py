"""Specimens put together: a crystal, perhaps two grains, borders, a wedge, defects and amorphous material."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from atomdiffuser.errors import SettingsError
from atomdiffuser.simulation.crystals import CRYSTALS, CrystalBatch, crystals_in_pixels
from atomdiffuser.simulation.randomness import Draws, RandomStreams
from atomdiffuser.simulation.specimen import Specimen, Waves, cell_extremes, crystal_waves

FAR_PX = 1e9
"""A border this far away is not there."""
FILM_WAVES = 160
SPECKLE_DEPTH = 3.5
"""The darkest speckle of a frame, in standard deviations."""
SPECIMENS = (*CRYSTALS, "nanoparticle", "amorphous")
"""Names that `named_specimen` knows."""

GOLD_FACETS_DEG = (0.0, 54.7356, 125.2644, 180.0, 234.7356, 305.2644)  # {001} and {111} seen along [110]
GOLD_FACETS_REACH = (1.12, 1.0, 1.0, 1.12, 1.0, 1.0)  # surface energies, {001} over {111}


@dataclass(frozen=True)
class Surroundings:
    """What lies around and in a crystal; (n,) tensors, or None for nothing of the kind.

    Borders are (n, ·, 4) as in `Specimen`.
    """

    facets: Tensor | None = None
    edges: Tensor | None = None
    boundary: Tensor | None = None
    misorientation: Tensor | None = None  # of the second grain [rad]
    wedge: Tensor | None = None
    film_mean: Tensor | None = None
    film_speckle: Tensor | None = None  # standard deviation over the film's mean
    film_grain_px: Tensor | None = None  # size of the speckle
    film_under: Tensor | None = None
    defect_share: Tensor | None = None  # probability that each candidate is a defect
    defect_candidates: int = 0


def named_specimen(
    name: str,
    shape: tuple[int, int],
    pixel_size_nm: tuple[float, float],
    streams: RandomStreams,
    *,
    orientation_deg: float | None = None,
    vacancies: float = 0.01,
    edge: bool = False,
    wedge: float = 0.1,
    grain_boundary: bool = False,
    amorphous_border: bool = False,
) -> Specimen:
    """One specimen (n = 1) of a named crystal.

    Parameters
    ----------
    name
        One of `SPECIMENS`.
    orientation_deg
        Turn of the crystal in the plane; drawn when None.
    vacancies
        Share of the cells of the frame that carry a vacancy or a foreign column.
    edge, amorphous_border, grain_boundary
        Whether vacuum, amorphous material, or a second grain takes part of the frame.
    wedge
        Relative change of thickness over the frame.
    """
    if name not in SPECIMENS:
        raise SettingsError(f"specimen {name!r} is not known; known are {', '.join(SPECIMENS)}")
    draws = Draws(1, streams)
    short, size = min(shape), torch.tensor([pixel_size_nm], dtype=torch.float64)
    particle, bare = name == "nanoparticle", name == "amorphous"
    crystal = crystals_in_pixels(["Au[110]" if particle else "SrTiO3" if bare else name], size)
    angle = torch.deg2rad(
        draws.uniform("orientation", -45.0, 45.0)
        if orientation_deg is None
        else torch.full((1,), float(orientation_deg))
    )
    crystal = crystal.turned(angle.double(), draws.uniform("origin", 0.0, 100.0, 2))
    centre = torch.tensor([[(s - 1) / 2 for s in shape]], dtype=torch.float64)
    facets, edges, boundary = [], [], None
    if particle:
        facets = [particle_facets(centre, angle.double(), 0.3 * short)]
    elif bare:
        facets = [torch.tensor([[[1.0, 0.0, -FAR_PX, 1.0]]], dtype=torch.float64)]
    elif amorphous_border:
        facets = [
            border(centre, draws.directions("amorphous side"), draws.uniform("amorphous at", 0.22, 0.3) * short, 6.0)
        ]
    if edge:
        edges = [border(centre, draws.directions("edge side"), draws.uniform("edge at", 0.28, 0.36) * short, 5.0)]
    if grain_boundary:
        boundary = border(centre, draws.directions("boundary"), draws.uniform("boundary at", -0.1, 0.1) * short, 2.0)[
            :, 0
        ]
    area = float(torch.linalg.det(crystal.cell).abs())
    cells = shape[0] * shape[1] / area * (1.5 if not particle else 0.3)  # candidates reach past the frame: it drifts
    full = torch.ones(1, dtype=torch.float64)
    around = Surroundings(
        facets=_joined(facets), edges=_joined(edges), boundary=boundary,
        misorientation=draws.uniform("misorientation", math.radians(8), math.radians(37)) if grain_boundary else None,
        wedge=draws.directions("thicker") * wedge / short,
        film_mean=full * (0.28 if particle else 0.35 if not bare else 0.6),
        film_speckle=full * (0.14 if particle else 0.16), film_grain_px=full * 0.12 / float(size.prod().sqrt()),
        film_under=full * float(particle), defect_share=full,
        defect_candidates=0 if bare else min(200, round(vacancies * cells)),
    )  # fmt: skip
    return assemble(crystal, shape, draws, around, defect_margin=0.0 if particle else 0.12)


def assemble(
    crystal: CrystalBatch, shape: tuple[int, int], draws: Draws, around: Surroundings, *,
    defect_margin: float = 0.12, most_waves: int | None = None, device: torch.device | str = "cpu",
) -> Specimen:  # fmt: skip
    """Specimens of crystals (n) and their surroundings, scaled so that the brightest point is about 1."""
    n = len(crystal.cell)
    zero, one = torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    defects, is_vacuum = _defects(crystal, shape, draws, around, defect_margin), around.film_mean is None
    film_size = (around.film_grain_px if not is_vacuum else 6 * one).clamp_min(0.8)
    direction, radius = (
        draws.directions("film waves", FILM_WAVES),
        draws.uniform("film frequencies", 0.0, 1.0, FILM_WAVES).sqrt(),
    )
    film = Waves(
        direction * (radius * 0.4 / film_size[:, None])[..., None],
        (around.film_speckle * around.film_mean if not is_vacuum else zero)[:, None].expand(-1, FILM_WAVES)
        * math.sqrt(2 / FILM_WAVES),
        draws.uniform("film phases", 0.0, 1.0, FILM_WAVES),
    )
    far = torch.tensor([1.0, 0.0, FAR_PX, 1.0], dtype=torch.float64).expand(n, 4)
    none = torch.zeros(n, 0, 4, dtype=torch.float64)
    lone = around.boundary is None
    second_origin = draws.uniform("second origin", 0.0, 100.0, 2)
    second = None if lone else crystal.turned(around.misorientation, second_origin)

    move = lambda t: t.to(device)
    moved = [_crystal_to(c, device) for c in (crystal, second) if c is not None]
    series = [crystal_waves(c, most=most_waves) for c in moved]
    (first, mean), cell = series[0], moved[0].cell
    low, high = cell_extremes(first, cell)
    mean = mean + moved[0].background * (high - low)
    covered = zero if around.film_under is None or is_vacuum else around.film_under * around.film_mean
    scale = (1 - move(covered)) / (mean + high)
    defects = move(defects)
    defects = torch.cat([defects[..., :2], defects[..., 2:3] * scale[:, None, None], defects[..., 3:]], -1)
    headroom = (0.8 * mean / -low).clamp_min(1)  # 0.8: next to a vacancy the local mean is lower
    if not is_vacuum:
        seen = around.film_under > 0 if around.facets is None else (around.facets[..., 2] < FAR_PX).any(-1)
        speckle = torch.where(seen, SPECKLE_DEPTH * around.film_speckle, 0.0)
        headroom = torch.minimum(headroom, 1 / move(speckle)).clamp_min(1)
    return Specimen(
        grains=tuple(Waves(w.vectors, w.amplitude * scale[:, None], w.phase) for w, _ in series),
        crystal_mean=mean * scale, boundary=move(far if lone else around.boundary),
        facets=move(none if around.facets is None else around.facets),
        edges=move(none if around.edges is None else around.edges),
        film=Waves(move(film.vectors), move(film.amplitude), move(film.phase)),
        film_mean=move(zero if is_vacuum else around.film_mean),
        film_under=move(zero if around.film_under is None else around.film_under),
        wedge=move(torch.zeros(n, 2, dtype=torch.float64) if around.wedge is None else around.wedge),
        centre=torch.tensor([(s - 1) / 2 for s in shape], dtype=torch.float64, device=device),
        defects=defects, blur=(0.35 * torch.linalg.det(cell).abs().sqrt()).clamp_min(2.5),
        headroom=headroom, lattice_vectors=cell,
    )  # fmt: skip


def _defects(
    crystal: CrystalBatch, shape: tuple[int, int], draws: Draws, around: Surroundings, margin: float
) -> Tensor:
    """Vacancies (three of four) and foreign columns on the crystal's own sites, bright ones likelier, (n, d, 4)."""
    n, count = len(crystal.cell), around.defect_candidates
    if count == 0:
        return torch.zeros(n, 0, 4, dtype=torch.float64)
    size = torch.tensor(shape, dtype=torch.float64)
    near = draws.uniform("defect places", -margin, 1 + margin, count, 2) * size
    column = torch.multinomial(
        crystal.weights, count, replacement=True, generator=draws.streams.generator("defect columns", "cpu")
    )
    cell = torch.floor(near @ torch.linalg.inv(crystal.cell))
    chosen = torch.gather(crystal.columns, 1, column[..., None].expand(-1, -1, 2))
    home = cell @ crystal.cell + chosen
    # Columns lie anywhere relative to the cell's corner: bring the site next to the place that was drawn.
    home = home + torch.round((near - home) @ torch.linalg.inv(crystal.cell)) @ crystal.cell
    weight, width = (torch.gather(v, 1, column) for v in (crystal.weights, crystal.widths))
    foreign = draws.uniform("foreign", 0.0, 1.0, count) < 0.25
    change = torch.where(
        foreign, draws.uniform("foreign change", 0.3, 0.7, count), -draws.uniform("vacancy depth", 0.6, 1.0, count)
    )
    same = (home[:, :, None] - home[:, None]).norm(dim=-1) < 0.5
    twice = same.tril(-1).any(-1)  # a site is emptied once
    share = torch.ones(n) if around.defect_share is None else around.defect_share
    real = (draws.uniform("defect here", 0.0, 1.0, count) < share[:, None]) & ~twice
    if around.boundary is not None:
        ny, nx, offset, _ = around.boundary[:, None].unbind(-1)
        real = real & (home[..., 0] * ny + home[..., 1] * nx < offset)  # sites of the first grain
    height = torch.where(real, change * weight, 0.0)
    return torch.cat([home, height[..., None], width[..., None]], -1)


def border(centre: Tensor, normal: Tensor, distance: Tensor, width: Tensor | float) -> Tensor:
    """One border (n, 1, 4) at a distance from the centre, across `normal` (n, 2), as wide as `width` [px]."""
    offset = (normal * centre).sum(-1) + distance
    return torch.stack([normal[:, 0], normal[:, 1], offset, torch.as_tensor(width).expand(len(offset)).to(offset)], -1)[
        :, None
    ]


def particle_facets(centre: Tensor, angle: Tensor, radius: Tensor | float) -> Tensor:
    """Facets (n, 6, 4) of a gold particle whose crystal is turned by `angle` (n,)."""
    turn = angle[:, None] + torch.deg2rad(torch.tensor(GOLD_FACETS_DEG, dtype=torch.float64))
    normal = torch.stack([turn.cos(), turn.sin()], -1)  # 0° is [001], along y
    reach = torch.as_tensor(radius, dtype=torch.float64).reshape(-1, 1) * torch.tensor(
        GOLD_FACETS_REACH, dtype=torch.float64
    )
    offset = (normal * centre[:, None]).sum(-1) + reach
    width = 0.045 * reach  # bevelled: a particle thins out towards its border
    return torch.cat([normal, offset[..., None], width[..., None].clamp_min(1.0)], -1)


def _joined(borders: list[Tensor]) -> Tensor | None:
    return torch.cat(borders, 1) if borders else None


def _crystal_to(crystal: CrystalBatch, device: torch.device | str) -> CrystalBatch:
    return CrystalBatch(
        *(getattr(crystal, f).to(device) for f in ("cell", "columns", "weights", "widths", "background"))
    )
