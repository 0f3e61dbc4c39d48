"""Beam damage: decay maps μ (intensity) and κ (contrast) as functions of place and fluence.

A place q has a sensitivity ρ(q) ≥ 0. After fluence F the property that is hit stands at

    value(q, F) = g(F·ρ(q)/F_c),    g(0) = 1,  g(1) = 1/e

with g exponential, linear, or exponential after a latency; a *growth* (contamination, redistribution) turns the loss
round: 1 + growth·(1 − g). The critical fluence of a place is F_c/ρ(q). Everything is batched over n and evaluated at
any points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from atomdiffuser.errors import SettingsError
from atomdiffuser.simulation.randomness import Draws

Pattern = Literal["uniform", "holes", "perlin", "random", "edge", "contamination"]
Witness = Literal["intensity", "contrast", "both"]
Kinetics = Literal["exponential", "linear", "latency"]
PATTERNS, WITNESSES, KINETICS = get_args(Pattern), get_args(Witness), get_args(Kinetics)

PERLIN_CELLS = 24
"""Cells per axis of the repeating gradient table."""


@dataclass(frozen=True)
class SensitivityField:
    """ρ(q) = floor + Σ parts, each 0…1 times its weight; n of them, each part for the samples that have it.

    Attributes
    ----------
    floor
        (n,) sensitivity everywhere.
    hole_rows, holes
        (a,) samples and (a, h, 4): (y, x, weight, width) of Gaussians that join as 1 − Π(1 − weight·G), so below 1.
    noise_rows, noise_cell_px, octave_weight
        (b,) samples, (b, o) and (b, o): gradient noise, its cell sizes and the share of each octave.
    gradients
        (b, o, cells, cells, 2) unit vectors at the nodes.
    jitter_px, jitter
        (b,) and (b, j): scan-line displacement of the noise, by row of the specimen.
    distortion
        (b, 2, 4): per axis (amplitude [px], wave vector y, wave vector x, phase [turns]) of its long-range distortion.
    front_rows, front
        (c,) samples and (c, 4): (ny, nx, offset, depth): exp(−distance behind the border / depth).
    """

    floor: Tensor
    hole_rows: Tensor
    holes: Tensor
    noise_rows: Tensor
    noise_cell_px: Tensor
    octave_weight: Tensor
    gradients: Tensor
    jitter_px: Tensor
    jitter: Tensor
    distortion: Tensor
    front_rows: Tensor
    front: Tensor

    def at(self, points: Tensor) -> Tensor:
        """ρ at points (n, y, x, 2); (n, y, x)."""
        value = self.floor.to(points)[:, None, None].repeat(1, *points.shape[1:-1])
        for rows, part in (
            (self.hole_rows, self._holes),
            (self.noise_rows, self._noise),
            (self.front_rows, self._front),
        ):
            if len(rows):
                value.index_add_(0, rows, part(points[rows]))
        return value

    def _holes(self, points: Tensor) -> Tensor:
        intact = torch.ones_like(points[..., 0])
        for hole in self.holes.to(points).unbind(1):
            y, x, weight, width = (v[:, None, None] for v in hole.unbind(-1))
            squared = (points[..., 0] - y) ** 2 + (points[..., 1] - x) ** 2
            intact *= 1 - weight * torch.exp(squared * (-0.5 / width**2))
        return 1 - intact

    def _front(self, points: Tensor) -> Tensor:
        ny, nx, offset, depth = (v[:, None, None] for v in self.front.to(points).unbind(-1))
        behind = (offset - points[..., 0] * ny - points[..., 1] * nx).clamp_min(0)
        return torch.exp(-behind / depth)

    def _noise(self, points: Tensor) -> Tensor:
        """Gradient noise spread over 0…1."""
        y, x = points[..., 0], points[..., 1]
        if self.jitter.shape[1]:
            count = self.jitter.shape[1]
            row = y.remainder(count)
            low = row.floor().long().clamp(max=count - 1)
            table = self.jitter.to(points)
            pick = lambda i: torch.gather(table, 1, i.flatten(1)).reshape(i.shape)
            line = torch.lerp(pick(low), pick((low + 1) % count), row - low)
            shifts = []
            for axis in range(2):
                size, ky, kx, phase = (v[:, None, None] for v in self.distortion[:, axis].to(points).unbind(-1))
                shifts.append(size * torch.sin(2 * math.pi * (ky * y + kx * x + phase)))
            y, x = y + shifts[0], x + shifts[1] + self.jitter_px.to(points)[:, None, None] * line
        total = torch.zeros_like(y)
        for octave in range(self.noise_cell_px.shape[1]):
            size = self.noise_cell_px[:, octave].to(points)[:, None, None]
            share = self.octave_weight[:, octave].to(points)[:, None, None]
            total = total + share * _gradient_noise(y / size, x / size, self.gradients[:, octave].to(points))
        return torch.sigmoid(5.0 * total)


@dataclass(frozen=True)
class Damage:
    """How the two maps of n specimens follow from exposure F/F_c.

    Attributes
    ----------
    sensitivity
        Where the beam bites.
    intensity_rate, contrast_rate
        (n,) how fast each property goes, relative to ρ; 0 leaves it alone.
    intensity_growth, contrast_growth
        (n,) NaN for a loss; otherwise the property grows towards 1 + growth.
    kind
        (n,) index into `KINETICS`.
    latency
        (n,) share of F_c before anything happens.
    headroom
        (n,) of the specimen: κ is held at or below headroom·μ, so that no signal turns negative.
    """

    sensitivity: SensitivityField
    intensity_rate: Tensor
    contrast_rate: Tensor
    intensity_growth: Tensor
    contrast_growth: Tensor
    kind: Tensor
    latency: Tensor
    headroom: Tensor

    def __len__(self) -> int:
        return self.kind.shape[0]

    def to(self, device: torch.device | str) -> Damage:
        """The same damage on a device."""
        moved = lambda item: {f.name: getattr(item, f.name).to(device) for f in fields(item)}
        rest = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "sensitivity"}
        return replace(self, sensitivity=SensitivityField(**moved(self.sensitivity)), **rest)

    def maps(self, points: Tensor, exposure: Tensor, *, sensitivity: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """μ and κ (n, y, x) at points (n, y, x, 2) after `exposure` (n,) = F/F_c, relative to the pristine specimen.

        `sensitivity` may hand in ρ at the points, where it is needed for several exposures.
        """
        field = self.sensitivity.at(points) if sensitivity is None else sensitivity
        hit = field * exposure.to(field)[:, None, None]
        intensity = self._value(hit, self.intensity_rate, self.intensity_growth)
        contrast = self._value(hit, self.contrast_rate, self.contrast_growth)
        return intensity, torch.minimum(contrast, self.headroom.to(field)[:, None, None] * intensity)

    def _value(self, hit: Tensor, rate: Tensor, growth: Tensor) -> Tensor:
        wide = lambda t: t.to(hit)[:, None, None]
        remaining = kinetics(hit * wide(rate), self.kind.to(hit.device)[:, None, None], wide(self.latency))
        signed = wide(growth)
        grown = 1 + torch.nan_to_num(signed) * (1 - remaining)
        return torch.where(torch.isnan(signed), remaining, grown)


def kinetics(exposure: Tensor, kind: Tensor | Kinetics, latency: Tensor | float = 0.3) -> Tensor:
    """g: what is left after exposure F/F_c; 1 at 0 and 1/e at 1, never below 0.

    exponential
        exp(−F/F_c): one hit destroys.
    linear
        1 − (1 − 1/e)·F/F_c: material leaves at a constant rate, as at a front.
    latency
        1 until `latency`·F_c, then exponential: several hits, or a reservoir, come first.
    """
    if isinstance(kind, str):
        if kind not in KINETICS:
            raise SettingsError(f"kinetics {kind!r} is not known; known are {', '.join(KINETICS)}")
        kind = torch.tensor(KINETICS.index(kind))
    linear = (1 - (1 - math.exp(-1)) * exposure).clamp_min(0)
    start = torch.where(
        kind == 2, torch.as_tensor(latency).to(exposure), torch.zeros((), device=exposure.device).to(exposure)
    )
    exponential = torch.exp(-(exposure - start).clamp_min(0) / (1 - start))
    return torch.where(kind == 1, linear, exponential)


def exposure_for_loss(loss: Tensor, kind: Tensor, latency: Tensor) -> Tensor:
    """Exposure F/F_c (n,) after which the share `loss` (n,) in 0…1 is gone where ρ = 1; the inverse of `kinetics`."""
    start = torch.where(kind == 2, latency, torch.zeros_like(latency))
    exponential = torch.where(loss > 0, start - (1 - start) * torch.log1p(-loss), 0.0)
    return torch.where(kind == 1, loss / (1 - math.exp(-1)), exponential)


def random_sensitivity(
    draws: Draws, shape: tuple[int, int], pattern: Tensor, *, n_holes: int = 5, front: Tensor | None = None
) -> SensitivityField:
    """Fields of the kinds `pattern` (n,), indices into `PATTERNS`, with lengths fitted to the frame.

    `front` (n, 3) gives the border (ny, nx, offset) that edge damage starts from; drawn when None.
    """
    n, short = draws.n, min(shape)
    size = torch.tensor(shape, dtype=torch.float64)
    is_kind = {name: pattern == i for i, name in enumerate(PATTERNS)}
    rows = lambda *kinds: torch.stack([is_kind[k] for k in kinds]).any(0).nonzero()[:, 0]

    # Contamination gathers smoothly around one place: a hole that is wide, shallow and alone.
    hole_rows, contaminated = rows("holes", "contamination"), is_kind["contamination"][:, None]
    number = torch.where(contaminated[:, 0], 1, 1 + draws.integers("number of holes", n_holes))
    depths = draws.uniform("hole depths", 0.6, 1.0, n_holes) * (torch.arange(n_holes) < number[:, None])
    widths = torch.where(
        contaminated, draws.uniform("spot width", 0.3, 0.5, 1), draws.uniform("hole widths", 0.06, 0.22, n_holes)
    )
    inset = torch.where(contaminated, 0.3, 0.05)[..., None]
    places = inset + (1 - 2 * inset) * draws.uniform("hole places", 0.0, 1.0, n_holes, 2)
    holes = torch.cat(
        [places * size, (depths * torch.where(contaminated, 0.85, 1.0))[..., None], widths[..., None] * short], -1
    )

    noise_rows, ragged = rows("perlin", "random"), is_kind["random"].double()
    octaves = 2 if bool(ragged.any()) else 1
    coarse = torch.where(ragged > 0, draws.uniform("random cell", 0.25, 0.5), draws.uniform("perlin cell", 0.35, 0.8))
    share = torch.ones(n, octaves, dtype=torch.float64)
    share[:, 1:] = 0.5 * ragged[:, None]
    lines = 4 * max(shape) if bool(ragged.any()) else 0
    distortion = torch.cat(
        [
            (draws.uniform("distortion", 0.02, 0.05, 2) * short * ragged[:, None])[..., None],
            draws.uniform("distortion waves", -1.5, 1.5, 2, 2) / short,
            draws.uniform("distortion phases", 0.0, 1.0, 2, 1),
        ],
        -1,
    )

    front_rows = rows("edge")
    if front is None:
        normal = draws.directions("front side")
        middle = (normal * (size - 1) / 2).sum(-1)
        front = torch.cat([normal, (middle + draws.uniform("front at", 0.3, 0.5) * short)[:, None]], -1)
    front = torch.cat([front, draws.uniform("front depth", 0.15, 0.45, 1) * short], -1)
    return SensitivityField(
        floor=is_kind["uniform"] + 0.15 * is_kind["contamination"],
        hole_rows=hole_rows, holes=holes[hole_rows], noise_rows=noise_rows,
        noise_cell_px=(short * coarse[:, None] * 0.5 ** torch.arange(octaves, dtype=torch.float64))[noise_rows],
        octave_weight=(share / share.square().sum(-1, keepdim=True).sqrt())[noise_rows],
        gradients=draws.directions("gradients", octaves, PERLIN_CELLS, PERLIN_CELLS)[noise_rows],
        jitter_px=(draws.uniform("jitter", 0.3, 1.5) * ragged)[noise_rows],
        jitter=draws.normal("jitter lines", 1.0, lines)[noise_rows], distortion=distortion[noise_rows],
        front_rows=front_rows, front=front[front_rows],
    )  # fmt: skip


def _gradient_noise(y: Tensor, x: Tensor, gradients: Tensor) -> Tensor:
    """Perlin's noise (n, y, x), about −0.7…0.7, from gradients (n, cells, cells, 2) that repeat.

    References
    ----------
    Perlin 2002, "Improving noise", doi:10.1145/566654.566636: quintic fade.
    """
    cells = gradients.shape[1]
    table = gradients.flatten(1, 2)  # (n, cells², 2)
    row, column = y.floor(), x.floor()
    dy, dx = y - row, x - column
    row, column = row.long().remainder(cells), column.long().remainder(cells)
    row_1, column_1 = (row + 1).remainder(cells), (column + 1).remainder(cells)

    def corner(r: Tensor, c: Tensor, oy: Tensor, ox: Tensor) -> Tensor:
        index = (r * cells + c).flatten(1)
        return (torch.gather(table[..., 0], 1, index).view_as(oy) * oy
                + torch.gather(table[..., 1], 1, index).view_as(ox) * ox)  # fmt: skip

    fade = lambda t: t**3 * (t * (6 * t - 15) + 10)
    top = torch.lerp(corner(row, column, dy, dx), corner(row, column_1, dy, dx - 1), fade(dx))
    bottom = torch.lerp(corner(row_1, column, dy - 1, dx), corner(row_1, column_1, dy - 1, dx - 1), fade(dx))
    return torch.lerp(top, bottom, fade(dy))
