from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from atomdiffuser.errors import StoreError
from atomdiffuser.evaluation import benchmark
from atomdiffuser.evaluation.benchmark import INTERVALS_TIMES, BenchmarkOptions
from atomdiffuser.evaluation.controlled import STRENGTHS, controlled_experiment, controlled_frames, controlled_summary
from atomdiffuser.evaluation.evaluate import evaluate
from atomdiffuser.evaluation.methods import load_baseline, local_regression, nothing_happened, oracle_regression
from atomdiffuser.evaluation.metrics import Answer, pair_errors, summary
from atomdiffuser.model import AtomDiffuser, ModelConfig, save_model
from atomdiffuser.simulation.damage import PATTERNS


def test_controlled_frames_share_image_and_pattern():
    frames = controlled_frames("Gaussian holes", shape=(64, 80))
    assert len(frames) == len(STRENGTHS) == 10
    for pairs in frames:
        assert torch.equal(pairs.expected_reference, frames[0].expected_reference)
        torch.testing.assert_close(pairs.moving_from_reference[0], torch.eye(3, dtype=torch.float64))
        assert torch.equal(pairs.intensity, pairs.contrast)
    assert torch.equal(frames[0].intensity, torch.ones_like(frames[0].intensity))
    loss = [float(1 - f.intensity.min()) for f in frames]
    assert all(b > a for a, b in pairwise(loss))
    torch.testing.assert_close(1 - frames[3].intensity, (1 - frames[9].intensity) / 3, atol=1e-5, rtol=0)


def test_controlled_summary_of_truth_and_of_nothing():
    truth = lambda pairs: Answer(None, pairs.intensity, pairs.contrast)
    rows, maps = controlled_experiment({"truth": truth, "nothing": nothing_happened}, seeds=(11,), shape=(64, 64))
    table = controlled_summary(rows).set_index(["method", "kind"])
    assert table.loc["truth", "damage_mae"].max() < 1e-6
    assert table.loc["nothing", "damage_mae"].min() > 0.02
    assert set(maps) == {"Gaussian holes", "Perlin", "Random"}


def test_oracle_is_no_worse_than_the_data_driven_bandwidth(pairs):
    chosen, best = (summary(pair_errors(m(pairs), pairs)) for m in (local_regression, oracle_regression))
    still = summary(pair_errors(nothing_happened(pairs), pairs))
    for name in ("intensity_rmse", "contrast_rmse"):
        assert best[name] <= chosen[name] * 1.02
        assert best[name] < 0.5 * still[name]


def test_whole_evaluation_writes_a_page(tmp_path):
    torch.manual_seed(0)
    small = ModelConfig(
        decoder_widths=(12, 16, 16, 16), decoder_blocks=1, condition=16,
        shift_width=8, step_width=12, step_blocks=2,
    )  # fmt: skip
    card = {"maps": {"step": 12, "device": "CPU"}}
    digest = save_model(AtomDiffuser(small), tmp_path / "w.safetensors", training=card)
    options = replace(
        BenchmarkOptions(), shape=(64, 64), pairs=1, electrons=(50.0,), crystals=("SrTiO3", "nanoparticle")
    )
    tables = evaluate(
        tmp_path / "w.safetensors",
        tmp_path / "page",
        options=options,
        seeds=(11,),
        classical=False,
        report=lambda line: None,
    )
    page = (tmp_path / "page" / "index.html").read_text()
    assert digest in page and "Gaussian holes" in page and "steps: 12" in page and "trained on: CPU" in page
    written = pd.read_csv(tmp_path / "page" / "by_fluence.csv")
    assert list(written.method) == list(tables["by_fluence"].method)
    nothing = written[(written.method == "nothing happened") & (written.condition == "undamaged")]
    assert float(nothing.intensity_rmse.iloc[0]) == 0.0
    held = pd.read_csv(tmp_path / "page" / "intervals.csv")
    assert list(held.electrons_per_px) == [50.0] and list(held.pairs) == [2 * INTERVALS_TIMES]
    assert held[["intensity_coverage95", "contrast_coverage95"]].gt(0).all().all()
    patterns = pd.read_csv(tmp_path / "page" / "by_pattern.csv")
    assert list(patterns.pattern) == list(PATTERNS) and patterns.intensity_rmse.gt(0).all()
    between = tables["between_frames"]
    assert (between[between.tau == 0.0][["intensity_rmse", "contrast_rmse"]] == 0).all().all()
    ends = between[between.tau == 1.0].intensity_rmse
    assert ends.max() == pytest.approx(ends.min(), abs=1e-6)
    assert (tmp_path / "page" / "evaluation.md").read_text().count("| --- |") >= 3


def test_intervals_are_counted_over_all_pairs(monkeypatch):
    """An answer right to exactly one σ holds all, to three none; twice the pairs are other pairs."""
    seen = []

    def off_by(sigmas):
        def method(pairs):
            seen.append(pairs.intensity.mean())
            sigma = torch.full_like(pairs.intensity, 0.01)
            moved = [getattr(pairs, name) + sigmas * 0.01 for name in ("intensity", "contrast")]
            return Answer(None, *moved, sigma, sigma)

        return lambda *_, **__: method

    options = replace(BenchmarkOptions(), shape=(64, 64), pairs=1, electrons=(20.0, 5.0), crystals=("SrTiO3",))
    for sigmas, share in ((1.0, 1.0), (3.0, 0.0)):
        monkeypatch.setattr(benchmark, "network_method", off_by(sigmas))
        found = benchmark.intervals(None, options, times=3)
        assert list(found.pairs) == [3, 3] and (found.intensity_coverage95 == share).all()
        assert found.contrast_rmse.to_numpy() == pytest.approx(0.01 * sigmas, rel=1e-3)
    assert len({float(s) for s in seen}) == 6


def test_only_baselines_load_as_baselines(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(StoreError, match="holds no baseline network"):
        load_baseline(tmp_path / "other.safetensors")
