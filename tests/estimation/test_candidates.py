"""Candidates of pairs that are judged together: each pair's own ones are looked at again, and no others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from atomdiffuser.estimation import candidates

INF = torch.inf


def test_only_the_likely_ones_of_each_pair_are_judged_on_all_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    few = torch.tensor([[0.0, -1, -INF, -INF, -INF, -30], [0.0, -1, -2, -3, -4, -5], [0.0, -90, -80, -80, -INF, -INF]])
    asked = []

    def trial(cells, moving, of, affines, fields, expected, model, scales, among, steps):
        if steps == candidates.STEPS[0]:
            return affines, fields, few.clone()
        asked.append(torch.isfinite(expected).tolist())
        return affines + 1, fields, expected - 2 * affines[..., 0, 0]

    monkeypatch.setattr(candidates, "_trial", trial)
    monkeypatch.setattr(candidates, "CPU_CELLS", 10**9)
    cells = SimpleNamespace(base=torch.zeros(3, 4, 4))
    affines = torch.arange(6.0)[None, :, None, None].expand(3, 6, 3, 3).clone()
    found = candidates.judge_candidates(
        cells, cells, cells, affines, torch.ones(3, 6, 2, 8, 8), torch.zeros(3, 6), None, None
    )  # fmt: skip
    assert asked == [[[True] * 2 + [False] * 4, [True] * 6]]  # the third is settled, the first has two
    assert found.odds.tolist() == [
        [0, -2, -INF, -INF, -INF, -30], [0, -2, -4, -6, -8, -10], few[2].tolist(),
    ]  # fmt: skip
    assert (found.moving_from_reference[2] == affines[2]).all()
