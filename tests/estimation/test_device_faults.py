"""A GPU that is too small or fails, by injected faults: fewer pairs at a time, smaller windows, then the processor."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from atomdiffuser import estimate_pairs, estimate_series
from atomdiffuser.config import ConvertSettings, DecaySettings, RegisterSettings
from atomdiffuser.estimation import api
from atomdiffuser.estimation import decay as decay_module
from atomdiffuser.estimation.decay import decay_estimator
from atomdiffuser.estimation.device_faults import in_smaller_parts, is_device_fault, with_processor_in_reserve
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.io.tables import read_table
from atomdiffuser.model.checkpoint import load_model
from atomdiffuser.model.network import AtomDiffuser
from atomdiffuser.series import FrameSeries
from atomdiffuser.simulation.series import simulate_series
from atomdiffuser.stages import register as register_stage
from atomdiffuser.stages.convert import convert
from atomdiffuser.stages.simulate import simulate

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
BROKEN = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")


@pytest.fixture
def source() -> FrameSource:
    truth = simulate_series("SrTiO3", n_frames=5, shape=(96, 112), electrons_per_px=100, seed=2)
    return FrameSource(FrameSeries(truth.series.frames), torch.device("cpu"), gain_e=1.0)


def small_memory(most: int):
    """Work that a device with memory for `most` items can do, and what it was asked for."""
    asked: list[int] = []

    def run(items: Sequence[int]) -> list[int]:
        asked.append(len(items))
        if len(items) > most:
            raise FULL
        return [10 * k for k in items]

    return run, asked


@pytest.mark.parametrize("most", [1, 2, 3, 7, 100])
def test_parts_are_halved_until_they_fit_and_stay_in_order(most: int) -> None:
    run, asked = small_memory(most)
    results, size = in_smaller_parts(run, range(11), 11)
    assert [k for part in results for k in part] == [10 * k for k in range(11)]
    assert size <= most or most >= 11
    assert sum(n > most for n in asked) <= 4  # what was learned is kept: no part is tried too large again


def test_one_item_that_is_too_much_is_an_error() -> None:
    run, _ = small_memory(0)
    with pytest.raises(torch.OutOfMemoryError):
        in_smaller_parts(run, range(4), 4)


def test_faults_of_the_device_are_told_from_those_of_the_work() -> None:
    assert is_device_fault(FULL) and is_device_fault(BROKEN)
    assert is_device_fault(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"))
    assert not is_device_fault(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_device_fault(MemoryError()) and not is_device_fault(KeyError("CUDA error"))


@pytest.mark.parametrize("fault", [FULL, BROKEN])
@pytest.mark.fault(
    fault="a GPU runs out of memory, or fails",
    happens="fewer pairs at a time, then smaller windows, then the processor does the rest",
    user_sees="a warning in the log of the job",
)
def test_the_processor_takes_over(fault: Exception, caplog: pytest.LogCaptureFixture) -> None:
    tried = []

    def work(device: torch.device) -> str:
        tried.append(device.type)
        if device.type == "cuda":
            raise fault
        return "done"

    assert with_processor_in_reserve(torch.device("cuda"), work) == "done" and tried == ["cuda", "cpu"]
    assert "the processor does the rest" in caplog.text and str(fault).splitlines()[0] in caplog.text
    assert "TORCH_USE_CUDA_DSA" not in caplog.text


def test_other_errors_are_not_tried_again() -> None:
    def work(device: torch.device) -> None:
        raise KeyError(device.type)

    with pytest.raises(KeyError, match="cuda"):
        with_processor_in_reserve(torch.device("cuda"), work)


def test_batches_of_a_source_shrink_and_keep_their_results(source: FrameSource, caplog) -> None:
    pairs = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 2)]
    sizes = []

    def run(part: slice, reference, moving) -> list[float]:
        sizes.append(len(reference))
        if len(reference) > 2:
            raise FULL
        return [float((a - b).abs().sum()) for a, b in zip(reference.base, moving.base, strict=True)]

    found = [v for part in source.in_batches(pairs, run, 5) for v in part]
    expected = [float((source.prepared([i]).base - source.prepared([j]).base).abs().sum()) for i, j in pairs]
    assert found == expected and sizes == [5, 3, 2, 2, 1]
    assert "the GPU's memory is short: 2 at a time" in caplog.text


def test_the_network_is_given_fewer_pairs_then_smaller_windows(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    model = load_model()
    rng = np.random.default_rng(3)
    reference, moving = (rng.poisson(30.0, (3, 128, 160)).astype(np.float32) for _ in range(2))
    drift = torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    whole = model.predict(reference, moving, drift=drift, overlap_px=32)
    forward, asked = AtomDiffuser.forward, []

    def limited(self, first, *arguments, tiles, **named):
        asked.append((len(first), len(tiles)))
        if len(first) * tiles[0].window.height * tiles[0].window.width > 96 * 96:
            raise FULL
        return forward(self, first, *arguments, tiles=tiles, **named)

    monkeypatch.setattr(AtomDiffuser, "forward", limited)
    found = model.predict(reference, moving, drift=drift, overlap_px=32)
    assert asked[:3] == [(3, 1), (2, 1), (1, 1)] and asked[-1][0] == 1 and asked[-1][1] > 1
    assert "one pair, in windows of" in caplog.text
    assert found.rates.shape == whole.rates.shape
    difference = (found.rates - whole.rates).abs().median()
    assert difference < 0.02, "windows tell of the same decay"
    assert not model.training

    monkeypatch.setattr(AtomDiffuser, "forward", lambda *_, **__: (_ for _ in ()).throw(FULL))
    with pytest.raises(torch.OutOfMemoryError):
        model.predict(reference, moving, drift=drift, overlap_px=32)


@pytest.mark.parametrize("fault", [FULL, BROKEN])
def test_maps_go_on_with_the_processor(source: FrameSource, fault: Exception, monkeypatch, caplog) -> None:
    settings, drift = DecaySettings(method="regression"), torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    expected = decay_estimator(source, settings)([(0, 1), (0, 2)], drift)
    make, made = decay_module._estimator, []

    def failing(of: FrameSource, with_settings: DecaySettings):
        made.append(of)
        plain = make(of, with_settings)
        calls = []

        def estimate(pairs, affines):
            calls.append(len(pairs))
            if len(made) == 1 and len(calls) > 1:  # the first device lasts for one call
                raise fault
            return plain(pairs, affines)

        return estimate

    monkeypatch.setattr(decay_module, "_estimator", failing)
    estimate = decay_estimator(source, settings)
    before, after = estimate([(0, 1)], drift[:1]), estimate([(0, 2)], drift[1:])
    estimate([(0, 2)], drift[1:])
    assert len(made) == 2 and made[1] is not source and made[1].device.type == "cpu"
    for m, found in enumerate((before, after)):
        torch.testing.assert_close(found.contrast[0], expected.contrast[m], equal_nan=True, rtol=1e-5, atol=1e-5)
    assert caplog.text.count("the processor does the rest") == 1


def test_the_drift_of_a_series_is_measured_again_without_the_gpu(tmp_path: Path, monkeypatch, caplog) -> None:
    caplog.set_level(logging.WARNING)
    raw, frames = tmp_path / "a.dm4", tmp_path / "frames.ome.zarr"
    simulate(raw, format="dm4", n_frames=3, shape=(72, 88), electrons_per_px=200, drift_px_per_frame=0.6, seed=1)
    convert([raw], frames, ConvertSettings(), series_id="a", name="a")
    settings = RegisterSettings(start="correlation")
    register_stage.register(frames, tmp_path / "p.parquet", tmp_path / "t.parquet", settings)
    measure, calls = register_stage.estimate_drift, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise BROKEN
        return measure(*arguments)

    monkeypatch.setattr(register_stage, "choose_device", lambda _: torch.device("cuda"))
    opened = register_stage.open_source
    monkeypatch.setattr(register_stage, "open_source", lambda path, _, stage: opened(path, "cpu", stage))
    monkeypatch.setattr(register_stage, "estimate_drift", failing)
    register_stage.register(frames, tmp_path / "p2.parquet", tmp_path / "t2.parquet", settings)
    assert len(calls) == 2 and "the processor does the rest" in caplog.text
    assert read_table(tmp_path / "t2.parquet").equals(read_table(tmp_path / "t.parquet"))


class _OnGpu(FrameSource):
    """A source that stands for one on a GPU: its frames lie in this memory all the same."""

    def __init__(self, series: FrameSeries, device: torch.device, **known) -> None:
        super().__init__(series, torch.device("cpu"), **known)
        self.is_on_gpu = device.type == "cuda"


@pytest.fixture
def as_if_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "FrameSource", _OnGpu)
    monkeypatch.setattr(api, "choose_device", lambda _: torch.device("cuda"))


@pytest.mark.parametrize("fault", [FULL, BROKEN])
def test_pairs_and_series_in_memory_go_on_with_the_processor(
    fault: Exception, as_if_on_gpu: None, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    frames = simulate_series("SrTiO3", n_frames=4, shape=(72, 88), electrons_per_px=200, seed=4).series.frames
    with monkeypatch.context() as sound:
        sound.setattr(api, "choose_device", lambda _: torch.device("cpu"))
        pairs = estimate_pairs(frames[:-1], frames[1:], predict=False)
        series = estimate_series(frames, predict=False)
    register, drift = api._register, api.estimate_drift

    def failing(run):
        def attempt(source: _OnGpu, *arguments):
            if source.is_on_gpu:
                raise fault
            return run(source, *arguments)

        return attempt

    monkeypatch.setattr(api, "_register", failing(register))
    monkeypatch.setattr(api, "estimate_drift", failing(drift))
    again, whole = estimate_pairs(frames[:-1], frames[1:], predict=False), estimate_series(frames, predict=False)
    assert caplog.text.count("the processor does the rest") == 2
    for name in ("moving_from_reference", "displacement_sigma_px", "intensity", "contrast"):
        np.testing.assert_array_equal(getattr(again, name), getattr(pairs, name))
    np.testing.assert_array_equal(whole.frame_from_reference, series.frame_from_reference)
    np.testing.assert_array_equal(whole.contrast, series.contrast)


def test_pairs_in_memory_are_tried_fewer_at_a_time(as_if_on_gpu: None, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    frames = simulate_series("SrTiO3", n_frames=4, shape=(72, 88), electrons_per_px=200, seed=4).series.frames
    register, asked = api._register, []

    def small(source: _OnGpu, pairs: list[tuple[int, int]], *arguments):
        asked.append(len(pairs))
        if len(pairs) > 1:
            raise FULL
        return register(source, pairs, *arguments)

    monkeypatch.setattr(api, "_register", small)
    found = estimate_pairs(frames[:-1], frames[1:], predict=False, maps=False)
    assert found.valid.all() and asked == [3, 2, 1, 1, 1]
    assert "at a time" in caplog.text and "the processor" not in caplog.text
