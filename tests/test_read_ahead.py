"""A thread reads frames while others are worked on: same order and values, errors in their place, no thread left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from atomdiffuser.config import ConvertSettings
from atomdiffuser.errors import ReadError
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.read_ahead import read_ahead
from atomdiffuser.series import FrameSeries
from atomdiffuser.stages import convert as convert_stage


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


class Watched:
    """A stack of frames that notes who read which, and fails at one of them."""

    def __init__(self, frames: np.ndarray, broken: int | None = None, takes_s: float = 0.0) -> None:
        self.frames, self.broken, self.takes_s, self.shape = frames, broken, takes_s, frames.shape
        self.read: list[tuple[int, str]] = []

    def __getitem__(self, index: int) -> np.ndarray:
        self.read.append((index, threading.current_thread().name))
        if index == self.broken:
            raise ReadError(f"frame {index} cannot be read")
        time.sleep(self.takes_s)
        return self.frames[index].copy()


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(5).poisson(40.0, (6, 40, 56)).astype(np.uint16)


def test_items_and_what_is_read_come_in_order() -> None:
    reads: list[int] = []
    read = lambda k: reads.append(k) or k * k  # type: ignore[func-returns-value]
    seen = []
    for k, square in read_ahead(read, range(5)):
        seen.append((k, square))
        time.sleep(0.02)
        assert len(reads) <= k + 2  # one ahead, no more
    assert seen == [(k, k * k) for k in range(5)] and reads == list(range(5))
    assert list(read_ahead(read, [])) == []


def test_reading_and_working_overlap() -> None:
    pause_s = 0.05
    began = time.perf_counter()
    for _ in read_ahead(lambda _: time.sleep(pause_s), range(8)):
        time.sleep(pause_s)
    took = time.perf_counter() - began
    assert took < 1.5 * 9 * pause_s  # one after the other would take 16 pauses


def test_an_error_comes_where_its_item_is_due() -> None:
    def read(k: int) -> int:
        if k == 2:
            raise ReadError("frame 2 cannot be read")
        return k

    seen = []
    with pytest.raises(ReadError, match="frame 2 cannot be read"):
        for k, _ in read_ahead(read, range(5)):
            seen.append(k)
    assert seen == [0, 1]


def test_a_loop_that_ends_early_leaves_no_thread() -> None:
    reads: list[int] = []
    loop = read_ahead(lambda k: reads.append(k), range(1000))
    next(loop)
    loop.close()
    assert len(reads) <= 3


def test_frames_of_a_source_are_read_once_each_and_by_the_thread(frames: np.ndarray) -> None:
    watched = Watched(frames)
    source = FrameSource(FrameSeries(watched), torch.device("cpu"), dark_level=3.0)
    watched.read.clear()
    for k in source.each(range(6)):
        for _ in range(2):
            np.testing.assert_array_equal(source.counts(k)[0].numpy(), frames[k].astype(np.float32) - np.float32(3.0))
    assert [k for k, _ in watched.read] == list(range(6))
    assert all(name.startswith("read-ahead") for _, name in watched.read)


def test_groups_share_what_two_in_turn_need(frames: np.ndarray) -> None:
    watched = Watched(frames)
    source = FrameSource(FrameSeries(watched), torch.device("cpu"))
    watched.read.clear()
    for group in source.each_of([[0, 1], [0, 2], [], [0, 3]]):
        for k in group:
            np.testing.assert_array_equal(source.counts(k)[0].numpy(), frames[k])
    assert [k for k, _ in watched.read] == [0, 1, 2, 0, 3]


def test_batches_of_pairs_are_the_same_as_read_one_by_one(frames: np.ndarray) -> None:
    source = FrameSource(FrameSeries(Watched(frames)), torch.device("cpu"))
    pairs = [(0, 1), (1, 2), (2, 3), (0, 4), (1, 5)]
    run = lambda part, reference, moving: (part, reference.base.clone(), moving.coefficients.clone())
    found = source.in_batches(pairs, run, 2)
    assert [part for part, *_ in found] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    plain = FrameSource(FrameSeries(frames), torch.device("cpu"))
    for part, bases, coefficients in found:
        for m, (i, j) in enumerate(pairs[part]):
            assert torch.equal(bases[m], plain.prepared([i]).base[0])
            assert torch.equal(coefficients[m], plain.prepared([j]).coefficients[0])


def test_an_error_of_the_reader_ends_the_batches(frames: np.ndarray) -> None:
    watched = Watched(frames)
    source = FrameSource(FrameSeries(watched), torch.device("cpu"))
    watched.broken = 4
    with pytest.raises(ReadError, match="frame 4 cannot be read"):
        source.in_batches([(0, 1), (2, 3), (4, 5)], lambda *_: None, 1)


def test_a_frame_that_cannot_be_read_stops_the_conversion_with_the_usual_words(
    frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stack(Watched):
        dtype = frames.dtype

        def __getitem__(self, index: slice) -> np.ndarray:  # type: ignore[override]
            if index.start == 4:
                raise OSError("the disk is gone")
            return self.frames[index]

    monkeypatch.setattr(convert_stage, "read_series", lambda *_, **__: FrameSeries(Stack(frames)))
    monkeypatch.setattr(convert_stage, "BATCH_BYTES", 2 * frames[0].nbytes)
    raw = tmp_path / "a.dm4"
    raw.write_bytes(b"")
    with pytest.raises(ReadError, match=r"a\.dm4: frames 4…5 cannot be read \(the disk is gone\)"):
        convert_stage.convert([raw], tmp_path / "frames.ome.zarr", ConvertSettings(), series_id="a", name="a")
    assert not (tmp_path / "frames.ome.zarr").exists()
