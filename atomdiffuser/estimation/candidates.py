"""Candidates for the drift of a pair, a lattice vector apart: fitted only as far as it takes to tell them apart.

All candidates of a pair share the reference frame's slopes, so that one normal matrix serves them, and a few steps
settle them. A fourth of the cells tells most of them apart; only where those leave a choice, the likely ones are
judged on all cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.alternatives import hop_probability, log_odds
from atomdiffuser.estimation.cells import ReferenceCells
from atomdiffuser.estimation.joint_fit import FitModel, settle_pairs, step_candidates
from atomdiffuser.estimation.prepare import PreparedFrames
from atomdiffuser.estimation.spectrum import ImageScales

CANDIDATES = 6
STEPS = 2
TRIALS = 3
SETTLED = 1e-5  # hop probability on a fourth of the cells, below which the others are not asked
LIKELY, OPEN_CANDIDATES = 12.0, 4  # log odds within which, and up to how many, candidates are judged on all cells
CPU_CELLS = 60_000  # of all candidates at a time: what a processor's cache can hold
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
        (n, k, 3, 3) and (n, k, 2, G, G) to start from, the first of each pair nearly settled.
    expected
        (n, k) log odds before the images are asked, −inf for what is no candidate.
    """
    distance_px = SAME * (scales.period_px or 4 * scales.base_px)
    affines, fields, odds = _trial(thin, moving, affines, fields, model, scales)
    odds = odds + expected
    # The others were judged with the decay that the first one sees: another winner has to stand the same trial.
    for _ in range(TRIALS):
        again = torch.nonzero(odds.argmax(1) > 0)[:, 0]
        if len(again) == 0:
            break
        order = _first(odds[again].argmax(1), odds.shape[1])
        for values in (affines, fields, expected):
            values[again] = values[again[:, None], order]
        part = thin.select(again), moving.select(again)
        settled, decay = settle_pairs(*part, affines[again, 0], model, steps=STEPS, start_fields=fields[again, 0])
        affines[again, 0] = settled
        affines[again], fields[again], found = _trial(
            *part, affines[again], decay[:, None].expand_as(fields[again]), model, scales
        )
        odds[again] = found + expected[again]
    odds = _merge_equal(odds, affines, cells.grid.shape, distance_px)
    for m in torch.nonzero(hop_probability(odds, odds.argmax(1)) > SETTLED)[:, 0].tolist():
        one = slice(m, m + 1)
        likely = odds[m].argsort(descending=True)[:OPEN_CANDIDATES]
        likely = likely[odds[m, likely] > odds[m].max() - LIKELY]
        found, decay, new = _trial(
            cells.select(one), moving.select(one), affines[m, likely][None], fields[m, likely][None], model, scales
        )
        affines[m, likely], fields[m, likely] = found[0], decay[0]
        new = _merge_equal(new + expected[m, likely], found, cells.grid.shape, distance_px)[0]
        odds[m] += new[0] - odds[m, likely[0]]  # the others, against the one that all are compared with
        odds[m, likely] = new
    return Judged(affines, fields, odds)


def _first(winner: Tensor, count: int) -> Tensor:
    """Orders (n, count) of candidates in which `winner` (n,) and the first change places."""
    order = torch.arange(count, device=winner.device).expand(len(winner), -1).clone()
    order[:, 0] = winner
    return order.scatter(1, winner[:, None], 0)


def _trial(
    cells: ReferenceCells, moving: PreparedFrames, affines: Tensor, fields: Tensor, model: FitModel, scales: ImageScales
) -> tuple[Tensor, Tensor, Tensor]:
    """Affines, fields and log odds of candidates (n, k) a few steps on."""
    size = len(affines)
    if affines.device.type == "cpu":
        size = max(1, CPU_CELLS // (affines.shape[1] * cells.base[0].numel()))
    parts = []
    for at in range(0, len(affines), size):
        part = slice(at, at + size)
        found = step_candidates(
            cells.select(part), moving.select(part), affines[part], fields[part], model, steps=STEPS
        )
        odds = log_odds(found.residual, found.weight, cells.grid, scales, among=CANDIDATES)
        parts.append((found.moving_from_reference, found.fields, odds))
    affines, fields, odds = (torch.cat(values) for values in zip(*parts, strict=True))
    return affines, fields, odds


def _merge_equal(odds: Tensor, affines: Tensor, shape: tuple[int, int], distance_px: float) -> Tensor:
    """Candidates that converged to the same registration count once: the later ones get −inf."""
    odds = odds.clone()
    order = odds.argsort(dim=1, descending=True)
    odds_sorted, sorted_affines = (
        odds.gather(1, order),
        affines[torch.arange(len(odds), device=odds.device)[:, None], order],
    )
    for later in range(1, odds.shape[1]):
        apart = geometry.displacement_rms_px(sorted_affines[:, :later], sorted_affines[:, later : later + 1], shape)
        duplicate = ((apart < distance_px) & torch.isfinite(odds_sorted[:, :later])).any(1)
        odds_sorted[duplicate, later] = -torch.inf
    return odds.scatter(1, order, odds_sorted)
