"""Results and raw files in an object store, against a server of S3's interface on this machine."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atomdiffuser import open_results, read_series
from atomdiffuser.config import AlignSettings, ConvertSettings, DamageSettings, DecaySettings, RegisterSettings
from atomdiffuser.errors import ReadError, StoreError
from atomdiffuser.io.map_store import read_still_maps
from atomdiffuser.io.remote import RemotePath, cache_folder, here, location
from atomdiffuser.io.store import read_array, read_attributes, read_frames
from atomdiffuser.io.tables import read_table
from atomdiffuser.stages.align import align
from atomdiffuser.stages.convert import convert
from atomdiffuser.stages.damage import damage
from atomdiffuser.stages.decay import decay
from atomdiffuser.stages.register import register
from atomdiffuser.stages.simulate import simulate

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
BUCKET = "s3://microscope"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw file and the results of one series."""
    folder = tmp_path_factory.mktemp("session")
    raw, out = folder / "lamella.dm4", folder / "results" / "lamella"
    simulate(raw, format="dm4", n_frames=3, shape=(72, 88), electrons_per_px=200, drift_px_per_frame=0.6, seed=1)
    frames, track, maps = out / "frames.ome.zarr", out / "trajectory.parquet", out / "decay.zarr"
    convert([raw], frames, ConvertSettings(), series_id="lamella", name="lamella")
    register(frames, out / "pairs.parquet", track, RegisterSettings(start="correlation"))
    decay(frames, track, maps, DecaySettings(method="regression"))
    settings = DamageSettings(bootstrap=40)
    damage(frames, track, maps, out / "damage.parquet", out / "critical_fluence.csv", settings)
    align(frames, track, out / "aligned.ome.zarr", AlignSettings())
    return folder


@pytest.fixture(scope="module")
def bucket(session: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The session in a bucket; the server ends with the module."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "made-up")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        system = fsspec.filesystem("s3")
        system.mkdir("microscope")
        for path in session.rglob("*"):
            if path.is_file() and not any(p.is_symlink() for p in path.parents):
                system.put_file(str(path), f"microscope/night 1/{path.relative_to(session)}")
        yield f"{BUCKET}/night 1"
        server.stop()
        fsspec.spec.AbstractFileSystem.clear_instance_cache()


def test_results_are_the_same_there_as_here(bucket: str, session: Path) -> None:
    there, here_ = open_results(f"{bucket}/results/lamella"), open_results(session / "results" / "lamella")
    for name in ("frames", "aligned"):
        a, b = getattr(there, name), getattr(here_, name)
        np.testing.assert_array_equal(np.asarray(a.frames), np.asarray(b.frames))
        assert a.acquisition == b.acquisition and a.name == b.name
    for name in ("intensity", "contrast_sigma", "coverage"):
        np.testing.assert_array_equal(getattr(there.maps, name)[...], getattr(here_.maps, name)[...])
    for name in ("trajectory", "critical_fluence"):  # Parquet, and CSV with its description beside it
        pd.testing.assert_frame_equal(there.table(name), here_.table(name))
        assert there.table(name).attrs == here_.table(name).attrs
    assert there.dataset().drop_attrs().equals(here_.dataset().drop_attrs())


def test_what_stores_say_of_themselves(bucket: str, session: Path) -> None:
    out, local = f"{bucket}/results/lamella", session / "results" / "lamella"
    assert read_attributes(f"{out}/decay.zarr") == read_attributes(local / "decay.zarr")
    np.testing.assert_array_equal(
        read_array(f"{out}/aligned.ome.zarr", "mean"), read_array(local / "aligned.ome.zarr", "mean")
    )
    maps, _ = read_still_maps(f"{out}/damage_maps.zarr")
    np.testing.assert_array_equal(maps["rate"], read_still_maps(local / "damage_maps.zarr")[0]["rate"])


def test_one_frame_is_read_without_the_others(bucket: str, session: Path) -> None:
    series = read_series(f"{bucket}/results/lamella/frames.ome.zarr", probe_current_pA=20)
    system, asked = fsspec.filesystem("s3"), []
    call = type(system)._cat_file

    async def watched(self, path, *arguments, **named):
        asked.append(path)
        return await call(self, path, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(system), "_cat_file", watched)
        frame = series.frame(1)
    np.testing.assert_array_equal(frame, read_frames(session / "results/lamella/frames.ome.zarr").frame(1))
    assert [path for path in asked if "/c/" in path] == ["microscope/night 1/results/lamella/frames.ome.zarr/"
                                                         "Experiments/frames/data/c/1/0/0"]  # fmt: skip
    assert series.acquisition.sources["probe_current_pA"] == "argument"


def test_raw_files_are_copied_once_and_again_when_they_change(bucket: str, session: Path) -> None:
    address, local = f"{bucket}/lamella.dm4", read_series(session / "lamella.dm4")
    series = read_series(address)
    np.testing.assert_array_equal(np.asarray(series.frames), np.asarray(local.frames))
    assert series.name == "lamella" and series.acquisition == local.acquisition
    copies = lambda: sorted(cache_folder().rglob("lamella.dm4"))
    assert len(copies()) == 1
    before = copies()[0].stat().st_mtime_ns
    read_series(address)
    assert len(copies()) == 1 and copies()[0].stat().st_mtime_ns == before
    system = fsspec.filesystem("s3")
    system.pipe_file("microscope/night 1/lamella.dm4", (session / "lamella.dm4").read_bytes()[:-4] + b"\0\0\0\0")
    system.invalidate_cache()
    read_series(address)
    assert len(copies()) == 2
    assert not [p for p in cache_folder().rglob("*") if p.name.endswith(".partial")]


def test_what_is_not_there_is_said_as_it_is_here(bucket: str) -> None:
    with pytest.raises(StoreError, match="no results of a series here"):
        open_results(f"{bucket}/results/other")
    with pytest.raises(StoreError, match=r"trajectory\.parquet: no such table; run the register stage first"):
        read_table(f"{bucket}/nowhere/trajectory.parquet")
    with pytest.raises(StoreError, match=r"frames\.ome\.zarr: no such store; run the convert stage first"):
        read_frames(f"{bucket}/nowhere/frames.ome.zarr")
    with pytest.raises(ReadError, match=r"missing\.dm4: no such object"):
        read_series(f"{bucket}/missing.dm4")
    with pytest.raises(ReadError, match="a folder of an object store; give its files, or copy it here"):
        read_series(f"{bucket}/results")
    with pytest.raises(ReadError, match="some files of the series are in an object store, others not"):
        here([f"{bucket}/lamella.dm4", "a.dm4"])


def test_a_server_that_is_gone_is_one_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "a", "secret": "b",
               "config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 1}}  # fmt: skip
    place = RemotePath(f"{BUCKET}/a")
    place.__dict__["_system"] = fsspec.filesystem("s3", skip_instance_cache=True, **options)
    with pytest.raises(StoreError, match=r"s3://microscope/a: the object store does not answer \("):
        place.is_file()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", without)
    with pytest.raises(StoreError, match=r"Install s3fs to access S3\); for s3:// pip install 'atomdiffuser\[s3\]'"):
        open_results("s3://bucket/results/a")


def test_addresses_of_no_known_kind() -> None:
    with pytest.raises(StoreError, match="no kind of object store that is known"):
        location("nonsense://bucket/a").is_file()  # type: ignore[union-attr]


def test_paths_of_this_machine_stay_paths() -> None:
    for text in ("a/b.dm4", "/a:b", "C:\\a", "s3:/a", Path("a")):
        assert location(text) == Path(text)
    place = location("s3://bucket/a/b.csv/")
    assert isinstance(place, RemotePath)
    assert (place.name, place.stem, place.suffix) == ("b.csv", "b", ".csv")
    assert str(place.with_name("b.json")) == "s3://bucket/a/b.json"
