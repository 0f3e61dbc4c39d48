"""The benchmark of drift: that it judges right, that every tool is read in the right direction, and what it writes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from atomdiffuser import geometry
from atomdiffuser.evaluation import peers
from atomdiffuser.evaluation.drift import (
    NOTHING,
    OURS,
    DriftBenchmark,
    _judge,
    compare_with_best_peer,
    run_benchmark,
    summarise,
)
from atomdiffuser.evaluation.drift_page import evaluate_drift
from atomdiffuser.simulation import simulate_series

SHAPE = (128, 160)
TINY = DriftBenchmark(specimens=("SrTiO3",), electrons_per_px=(200.0,), damage=(True,), seeds=2, shape=(96, 112))


@pytest.fixture(scope="module")
def bright():
    """Two bright frames: 1.2 px up, 1.5 px to the right, a turn that only some tools can find."""
    return simulate_series(
        "SrTiO3", n_frames=2, shape=SHAPE, electrons_per_px=2000, drift_px_per_frame=(-1.2, 1.5), random_walk_px=0,
        rotation_deg_per_frame=0.4, damage="none", vacancies=0.05, seed=3,
    )  # fmt: skip


@pytest.mark.filterwarnings("default")  # the tools' own; an error in the middle of a compiled one ends the process
@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda p: p.name)
def test_every_tool_is_read_in_the_right_direction(peer, bright) -> None:
    """Doing nothing is 2.0 px off, the wrong sign 4 px, x taken for y over 3 px; the turn alone moves by 0.42 px."""
    pytest.importorskip(peer.module)
    frames = np.asarray(bright.series.frames, dtype=np.float32)
    true = torch.as_tensor(bright.frame_from_reference[1])
    found = peer.make()(frames[0].copy(), frames[1].copy())
    error = float(geometry.displacement_rms_px(torch.as_tensor(found), true, SHAPE))
    assert error < (0.3 if peer.motion == "affine" else 0.6)
    assert float(geometry.displacement_rms_px(geometry.identity(), true, SHAPE)) > 1.9


def test_a_tool_that_is_not_installed_is_named(monkeypatch) -> None:
    missing = peers.Peer("Imaginary", "no_such_module_anywhere", "affine", "", lambda: None)
    monkeypatch.setattr(peers, "PEERS", (missing, *peers.PEERS[-1:]))
    found, absent = peers.available_peers()
    assert list(found) == ["HyperSpy"] and "no_such_module_anywhere" in absent["Imaginary"]


def test_a_step_of_the_lattice_is_a_hop_and_other_errors_are_not() -> None:
    vectors = np.array([[10.0, 2.0], [-2.0, 10.0]])
    moved = lambda dy, dx: geometry.translation(torch.tensor([dy, dx], dtype=torch.float64)).numpy()
    hop = lambda dy, dx: _judge(moved(dy, dx), np.eye(3), SHAPE, vectors)
    assert hop(10.5, 1.5)[1] and hop(8.0, 12.0)[1] and not hop(5.0, 1.0)[1] and not hop(0.4, 0.3)[1]
    assert hop(3.0, 4.0)[0] == pytest.approx(5.0)
    assert np.isnan(_judge(None, np.eye(3), SHAPE, vectors)[0])


def test_summary_counts_failures_and_does_not_hide_them() -> None:
    pairs = pd.DataFrame({
        "specimen": "Si", "electrons_per_px": 5.0, "frames_apart": 1, "damage": True, "seed": range(4),
        "method": [OURS] * 4, "bound_px": 0.1, "error_px": [0.1, np.nan, 3.0, 20.0],
        "over_bound": [1.0, np.nan, 30.0, 200.0], "hop": [False, False, False, True], "seconds": 0.5,
    })  # fmt: skip
    row = summarise(pairs).iloc[0]
    assert (row["gross"], row["hops"], row["no_answer"]) == (1, 1, 1)
    assert row["median_over_bound"] == 30.0 and np.isinf(row["p95_over_bound"])


def test_peers_see_the_same_frames_whatever_the_others_do_to_them() -> None:
    def vandal(reference, moving):
        reference[:], moving[:] = 0, 0
        return np.eye(3)

    alone = run_benchmark(TINY, {})
    beside = run_benchmark(TINY, {"vandal": vandal})
    ours = lambda t: t[t["method"] == OURS]["over_bound"].to_numpy()
    assert np.array_equal(ours(alone), ours(beside))
    table = summarise(alone).set_index(["method", "frames_apart"])
    assert table.loc[(OURS, 1), "median_over_bound"] < 1.7 < 5 < table.loc[(NOTHING, 1), "median_over_bound"]


@pytest.mark.filterwarnings("default")
def test_files_and_comparison(tmp_path) -> None:
    pytest.importorskip("skimage")
    said: list[str] = []
    text = evaluate_drift(tmp_path, TINY, report=said.append)
    for name in ("pairs.csv", "drift.csv", "comparison.csv", "tools.csv", "drift.png", "index.html"):
        assert (tmp_path / name).stat().st_size > 0
    table = pd.read_csv(tmp_path / "drift.csv")
    assert {"scikit-image", "HyperSpy", OURS, NOTHING} <= set(table["method"]) and (table["pairs"] == 2).all()
    always_there = table["method"].isin(["scikit-image", "HyperSpy", OURS])  # not all who may be
    comparison = compare_with_best_peer(table[always_there])
    assert (comparison["ours_over_best"] < 1.1).all() and OURS in text
    assert all("left out" in line or "series" in line for line in said)
    page = (tmp_path / "index.html").read_text()
    assert "normalization None" in page and "Cramér–Rao" in page
