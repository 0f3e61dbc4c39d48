"""Candidates for the drift of a pair, a lattice vector apart: fitted only as far as it takes to tell them apart.

Each gets its own decay fields, in a few steps from those that the highest correlation peak gave: with the decay that
another one sees, a wrong candidate can look right. A fourth of the cells tells most of them apart; only where those
leave a choice, the likely ones are judged on all cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.alternatives import hop_probability, log_odds
from atomdiffuser.estimation.cells import ReferenceCells
from atomdiffuser.estimation.joint_fit import FitModel, try_pairs
from atomdiffuser.estimation.prepare import PreparedFrames
from atomdiffuser.estimation.spectrum import ImageScales

STEPS = 2, 1  # on a fourth of the cells; on all, from where the former end
SETTLED = 1e-5  # hop probability on a fourth of the cells, below which the others are not asked
LIKELY = 12.0  # log odds within which candidates are judged on all cells
DUELS = 4  # with the likeliest of the last one: two that show different parts are compared badly by way of a third
MOST_CELLS = 2**22  # of all candidates that are fitted at once: some 0.5 GB
CPU_CELLS = 600_000  # of all candidates at a time: what a processor's cache can hold
SAME = 0.25  # of a period: candidates that end closer to each other are one


@dataclass(frozen=True)
class Judged:
    """Candidates of n pairs: affines (n, k, 3, 3), fields (n, k, 2, G, G), odds (n, k), −inf for what is no other."""

    moving_from_reference: Tensor
    fields: Tensor
    odds: Tensor


def judge_candidates(
    cells: ReferenceCells,
    thin: ReferenceCells,
    moving: PreparedFrames,
    affines: Tensor,
    fields: Tensor,
    expected: Tensor,
    model: FitModel,
    scales: ImageScales,
) -> Judged:
    """Odds of candidates.

    Parameters
    ----------
    cells, thin
        The reference frames, and a fourth of their cells.
    affines, fields
        (n, k, 3, 3) and (n, k, 2, G, G) to start from.
    expected
        (n, k) log odds before the images are asked, −inf for what is no candidate.
    """
    among = affines.shape[1]
    parts = _parts(torch.arange(len(affines)), thin, among)
    tried = [_trial(thin, moving, p, affines[p], fields[p], expected[p], model, scales, among, STEPS[0]) for p in parts]
    affines, fields, odds = (torch.cat(values) for values in zip(*tried, strict=True))
    open_ones = torch.nonzero(hop_probability(odds, odds.argmax(1)) > SETTLED)[:, 0]
    likely = (odds > odds.amax(1, keepdim=True) - LIKELY).sum(1)
    for p in _parts(open_ones[likely[open_ones].argsort()], cells, among):
        rows, order = p[:, None], odds[p].argsort(dim=1, descending=True)[:, : likely[p].max()]
        own = torch.arange(order.shape[1], device=order.device) < likely[p][:, None]
        found, decay, new = _trial(
            cells, moving, p, affines[rows, order], fields[rows, order],
            torch.where(own, expected[rows, order], -torch.inf), model, scales, among, STEPS[1],
        )  # fmt: skip
        affines[rows, order], fields[rows, order] = found, decay
        odds[p] += new[:, :1] - odds[rows, order[:, :1]]  # the others, against the one that was the likeliest
        odds[rows, order] = torch.where(own, new, odds[rows, order])
    return Judged(affines, fields, odds)


def _parts(pairs: Tensor, cells: ReferenceCells, among: int) -> list[Tensor]:
    """Numbers of pairs, so many at a time as a processor's cache can hold the candidates' cells of."""
    if len(pairs) == 0:
        return []
    on_processor = cells.base.device.type == "cpu"
    size = max(1, CPU_CELLS // (among * cells.base[0].numel())) if on_processor else len(pairs)
    return list(pairs.to(cells.base.device).split(size))


def _trial(
    cells: ReferenceCells,
    moving: PreparedFrames,
    of: Tensor,
    affines: Tensor,
    fields: Tensor,
    expected: Tensor,
    model: FitModel,
    scales: ImageScales,
    among: int,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Affines, fields and log odds of candidates (n, k) for the pairs of frames `of` (n,), a few steps on."""
    n, k = affines.shape[:2]
    at_once = max(1, MOST_CELLS // (n * cells.base[0].numel()))
    parts = [slice(at, at + at_once) for at in range(0, k, at_once)]
    found = [_settled(cells, moving, of, affines[:, p], fields[:, p], model, steps) for p in parts]
    affines, fields, residual, weight = (torch.cat(values, dim=1) for values in zip(*found, strict=True))
    drift = geometry.drift_at_centre(affines, cells.grid.shape)
    against = torch.zeros(n, dtype=torch.long, device=affines.device)
    again, odds = torch.arange(n, device=affines.device), expected.clone()
    for _ in range(DUELS):
        order = _first(against[again], k)
        as_given = len(again) == n and not bool(against.any())
        pick = lambda values, at=(again[:, None], order), as_given=as_given: values if as_given else values[at]
        found = log_odds(pick(residual), pick(weight), pick(drift), cells.grid, scales, among=among)
        odds[again] = (found + pick(expected)).gather(1, order)
        winner = odds[again].argmax(1)
        beaten = winner != against[again]
        against[again] = winner
        again = again[beaten]
        if len(again) == 0:
            break
    odds[again] = expected[again]  # of those that beat each other in turn the images say nothing
    return affines, fields, _distinct(odds, affines, cells, scales)


def _settled(
    cells: ReferenceCells, moving: PreparedFrames, of: Tensor, affines: Tensor, fields: Tensor, model: FitModel,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Affines, fields, residuals and weights of candidates (n, k) a few steps on."""
    n, k = affines.shape[:2]
    each = of.repeat_interleave(k)
    affine, decay, images = try_pairs(
        cells, moving, each, affines.flatten(0, 1), fields.flatten(0, 1), model, steps=steps
    )
    return tuple(values.unflatten(0, (n, k)) for values in (affine, decay, images.residual, images.weight))


def _first(winner: Tensor, count: int) -> Tensor:
    """Orders (n, count) of candidates in which `winner` (n,) and the first change places."""
    order = torch.arange(count, device=winner.device).expand(len(winner), -1).clone()
    order[:, 0] = winner
    return order.scatter(1, winner[:, None], 0)


def _distinct(odds: Tensor, affines: Tensor, cells: ReferenceCells, scales: ImageScales) -> Tensor:
    """Candidates that converged to the same registration count once: the less likely ones get −inf."""
    distance_px = SAME * (scales.period_px or 4 * scales.base_px)
    apart = geometry.displacement_rms_px(affines[:, :, None], affines[:, None], cells.grid.shape)
    same, left = (apart < distance_px).cpu().numpy(), odds.cpu().numpy().copy()
    for own, alike in zip(left, same, strict=True):
        for k in own.argsort()[::-1]:
            if np.isfinite(own[k]):
                alike[k, k] = False
                own[alike[k] & (own <= own[k])] = -np.inf
    return torch.from_numpy(left).to(odds.device)
