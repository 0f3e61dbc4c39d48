"""A stated memory limit: how it is read, that it makes pieces smaller, and that results stay what they are."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from atomdiffuser import memory_limit as module
from atomdiffuser.config import ConvertSettings
from atomdiffuser.errors import SettingsError
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.predict import window_for
from atomdiffuser.io.raw_writers import write_dm4
from atomdiffuser.io.store import FrameWriter, read_frames
from atomdiffuser.memory_limit import VARIABLE, memory_limit, parse_size, room, set_memory_limit, warn_if_too_small
from atomdiffuser.model.tiling import OVERLAP_PX, WINDOW_PX, plan_tiles
from atomdiffuser.series import FrameSeries
from atomdiffuser.stages.convert import convert
from atomdiffuser.workflow.config_file import read_config


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch):
    def say(text: str) -> None:
        monkeypatch.setenv(VARIABLE, text)

    monkeypatch.delenv(VARIABLE, raising=False)
    return say


@pytest.mark.parametrize(
    ("text", "size"),
    [("2 GB", 2e9), ("1.5GiB", 1.5 * 2**30), ("800 mb", 8e8), ("64 KiB", 65536), ("5 B", 5), (" 1 TB ", 1e12)],
)
def test_sizes_are_read_with_their_units(text: str, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["2", "GB", "-1 GB", "0 GB", "2 Gb/s", "two GB", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a size; expected a number with a unit, such as 2 GB"):
        parse_size(text)


def test_the_configuration_names_its_key() -> None:
    read_config({"memory_limit": "2 GB"})
    read_config({"memory_limit": None})
    with pytest.raises(SettingsError, match="memory_limit: '2' is not a size"):
        read_config({"memory_limit": "2"})


def test_without_a_limit_there_is_room_for_everything(limit) -> None:
    assert memory_limit() is None and math.isinf(room()) and window_for((8192, 8192)) == WINDOW_PX


def test_a_limit_reaches_processes_that_are_started(limit) -> None:
    limit("9 GB")
    set_memory_limit(None)
    assert memory_limit() == 9e9
    set_memory_limit("1 GB")
    assert memory_limit() == 1e9 and room() == 1e9 - module.PROGRAM_BYTES
    assert room(1e12) == 0.0


def test_batches_of_pairs_shrink_to_one(limit) -> None:
    frames = np.random.default_rng(1).poisson(50.0, (3, 96, 96)).astype(np.uint16)
    batch = lambda: FrameSource(FrameSeries(frames), torch.device("cpu")).batch
    free = batch()
    limit("710 MB")
    some = batch()
    limit("1 MB")
    assert free > some > batch() == 1


def test_windows_shrink_with_the_limit_and_still_cover_the_frame(limit) -> None:
    shape = (2048, 2048)
    limit("2 GB")
    assert window_for(shape) == WINDOW_PX  # what fits stays whole, so that numbers stay the same
    limit("1.3 GB")
    small = window_for(shape)
    assert small < WINDOW_PX
    tiles = plan_tiles(shape, small)
    assert len(tiles) > 1 and max(t.window.height for t in tiles) < WINDOW_PX
    limit("1 MB")
    tiles = plan_tiles(shape, window_for(shape))
    assert {t.window.height for t in tiles} == {2 * OVERLAP_PX}  # the least there is


def test_conversion_reads_fewer_frames_at_a_time(limit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(2).poisson(20.0, (12, 64, 80)).astype(np.uint16)
    raw = tmp_path / "a.dm4"
    known = dict(beam_energy_kV=200.0, probe_current_pA=30.0, dwell_s=2e-6)
    write_dm4(raw, frames, frame_time_s=1.0, pixel_size_nm=0.03, **known)
    sizes: list[int] = []
    write = FrameWriter.write_batch

    def counted(self: FrameWriter, first: int, batch: np.ndarray) -> None:
        sizes.append(len(batch))
        write(self, first, batch)

    monkeypatch.setattr(FrameWriter, "write_batch", counted)

    def read(name: str) -> np.ndarray:
        sizes.clear()
        convert([raw], tmp_path / name / "frames.ome.zarr", ConvertSettings(), series_id="a", name="a")
        return np.asarray(read_frames(tmp_path / name / "frames.ome.zarr").frames)

    np.testing.assert_array_equal(read("free"), frames)
    assert sizes == [12]
    limit(f"{int(module.PROGRAM_BYTES + 8 * 3.5 * frames[0].nbytes)} B")
    np.testing.assert_array_equal(read("limited"), frames)
    assert sizes == [3, 3, 3, 3]


def test_a_limit_below_what_a_stage_needs_is_said(limit, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    warn_if_too_small("damage", (2048, 2048))
    limit("2 GB")
    warn_if_too_small("damage", (2048, 2048))
    assert not caplog.records
    limit("500 MB")
    warn_if_too_small("damage", (2048, 2048))
    assert "memory_limit is 0.5 GB, but damage takes about 1.9 GB for frames of 2048 × 2048 pixels" in caplog.text
