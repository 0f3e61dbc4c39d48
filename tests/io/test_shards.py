"""Series of over a thousand frames share files: what is written is read, alone and together, and each file once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from atomdiffuser.errors import StoreError
from atomdiffuser.io import shards
from atomdiffuser.io.map_store import MAP_NAMES, create_maps, read_maps
from atomdiffuser.io.shards import ShardWriter, frames_a_shard
from atomdiffuser.io.store import EXPERIMENT, create_frames, read_frames
from atomdiffuser.series import Acquisition


@pytest.fixture(autouse=True)
def few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_FILES", 3)


def stack(n: int) -> np.ndarray:
    return np.random.default_rng(n).poisson(30.0, (n, 70, 66)).astype(np.uint16)


def write(path: Path, frames: np.ndarray, sizes: list[int]) -> Path:
    """The frames, so many at a time."""
    assert sum(sizes) == len(frames)
    with create_frames(
        path, n_frames=len(frames), frame_shape=frames.shape[1:], dtype=frames.dtype, times_s=None,
        acquisition=Acquisition(), name="a",
    ) as writer:  # fmt: skip
        at = 0
        for size in sizes:
            writer.write_batch(at, frames[at : at + size])
            at += size
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != "zarr.json")


@pytest.mark.parametrize(
    ("n_frames", "frame_bytes", "together"),
    [(3, 10, 1), (4, 10, 2), (10, 10, 4), (10, 2**25, 2), (10, 2**27, 1), (0, 0, 1)],
)
def test_how_many_frames_share_a_file(n_frames: int, frame_bytes: int, together: int) -> None:
    assert frames_a_shard(n_frames, frame_bytes) == together


def test_ten_thousand_frames_make_a_thousand_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert frames_a_shard(1000, 2 * 512**2) == 1
    assert frames_a_shard(10_000, 2 * 512**2) == 10
    assert frames_a_shard(10_000, 2 * 2048**2) == 8  # 64 MB are kept at most


@pytest.mark.parametrize("sizes", [[1] * 11, [11], [4, 4, 3], [3, 5, 2, 1]])
def test_frames_come_back_whatever_batches_they_came_in(tmp_path: Path, sizes: list[int]) -> None:
    frames = stack(11)
    path = write(tmp_path / "frames.ome.zarr", frames, sizes)
    series = read_frames(path)
    np.testing.assert_array_equal(np.asarray(series.frames), frames)
    assert series.frames.chunks[0] == (1,) * 11
    data = zarr.open_array(path / EXPERIMENT / "data", mode="r")
    assert data.chunks == (1, 70, 66) and data.shards == (4, 70, 66)
    assert files(path / EXPERIMENT / "data") == ["c/0/0/0", "c/1/0/0", "c/2/0/0"]
    level = zarr.open_array(path / EXPERIMENT / "pyramid" / "1", mode="r")
    np.testing.assert_array_equal(level[10], np.rint(frames[10].reshape(35, 2, 33, 2).mean((1, 3))))


def test_each_file_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    put = zarr.storage.LocalStore.set

    async def counted(self, key, value, *arguments, **named):
        written.append(key)
        await put(self, key, value, *arguments, **named)

    monkeypatch.setattr(zarr.storage.LocalStore, "set", counted)
    write(tmp_path / "frames.ome.zarr", stack(11), [1, 2, 5, 3])
    chunks = [key for key in written if "/c/" in key]
    assert len(chunks) == len(set(chunks)) and len([c for c in chunks if "/data/" in c]) == 3


def test_a_frame_is_read_without_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = stack(8)
    data = zarr.open_array(write(tmp_path / "f.ome.zarr", frames, [8]) / EXPERIMENT / "data", mode="r")
    got: list[int] = []
    get = zarr.storage.LocalStore.get

    async def counted(self, key, prototype=None, byte_range=None):
        value = await get(self, key, prototype, byte_range)
        got.append(0 if value is None else len(value))
        return value

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    np.testing.assert_array_equal(data[5], frames[5])
    whole = sum(p.stat().st_size for p in (tmp_path / "f.ome.zarr" / EXPERIMENT / "data" / "c" / "1").rglob("0"))
    assert 0 < sum(got) < 0.5 * whole


def test_frames_out_of_order_are_kept_too(tmp_path: Path) -> None:
    frames = stack(7)
    array = zarr.create_array(tmp_path / "a", shape=frames.shape, dtype=frames.dtype, chunks=(1, 70, 66),
                              shards=(3, 70, 66))  # fmt: skip
    writer = ShardWriter(array)
    for k in (5, 0, 4, 6, 1, 2, 3):
        writer.write(k, frames[k : k + 1])
    writer.finish()
    np.testing.assert_array_equal(array[...], frames)


def test_a_lost_file_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "frames.ome.zarr", stack(11), [11])
    shutil.rmtree(path / EXPERIMENT / "data" / "c" / "1")
    with pytest.raises(StoreError, match="holds 2 of 3 files of frames; run the convert stage again"):
        read_frames(path)


def test_maps_share_files_as_well(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    maps = {name: rng.random((10, 9, 8), np.float32) for name in MAP_NAMES}
    with create_maps(
        tmp_path / "decay.zarr", n_frames=10, map_shape=(9, 8), stride=4, times_s=None, pixel_size_nm=None
    ) as writer:
        for k in range(10):
            writer.write(k, **{name: values[k] for name, values in maps.items()})
    found = read_maps(tmp_path / "decay.zarr")
    for name, values in maps.items():
        np.testing.assert_array_equal(getattr(found, name)[...], values)
        np.testing.assert_array_equal(getattr(found, name)[6], values[6])
        assert len(files(tmp_path / "decay.zarr" / name)) == 3
