from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
import tifffile

from atomdiffuser._version import __version__
from atomdiffuser.config import ConvertSettings
from atomdiffuser.errors import NotATimeSeries, ReadError
from atomdiffuser.io._fingerprint import file_sha256
from atomdiffuser.io.raw_writers import write_dm4, write_velox_emd
from atomdiffuser.io.store import read_attributes, read_frames
from atomdiffuser.stages import convert as stage
from atomdiffuser.stages.convert import convert

CALIBRATION = dict(frame_time_s=1.5, pixel_size_nm=0.02, beam_energy_kV=200.0, probe_current_pA=30.0, dwell_s=2e-6)


@pytest.fixture
def stack(rng):
    return rng.integers(0, 4000, (5, 40, 50)).astype("u2")


def run(sources, tmp_path, **kwargs):
    output = tmp_path / "results" / "frames.ome.zarr"
    convert(sources, output, ConvertSettings(), **{"series_id": "a", "name": "A", **kwargs})
    return output


def test_the_store_says_what_it_was_made_from(tmp_path, stack):
    path = tmp_path / "a.dm4"
    write_dm4(path, stack, **CALIBRATION)
    seen = []
    output = run([path], tmp_path, progress=lambda done, of: seen.append((done, of)))
    attributes = read_attributes(output)
    assert attributes["fingerprint"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert attributes["size_bytes"] == path.stat().st_size
    assert attributes["sources"] == [str(path)]
    assert attributes["version"] == __version__
    assert attributes["settings"] == {"pyramid_levels": 2, "compression_level": 1}
    assert (attributes["series"], attributes["name"]) == ("a", "A")
    assert seen == [(k, 5) for k in range(1, 6)]
    np.testing.assert_array_equal(read_frames(output).frames.compute(), stack)


def test_overrides_come_from_session_yaml(tmp_path, stack):
    write_dm4(tmp_path / "a.dm4", stack, **CALIBRATION)
    overrides = {"probe_current_pA": 55, "excluded_frames": [1], "conditions": {"temperature_K": 90}}
    output = run([tmp_path / "a.dm4"], tmp_path, overrides=overrides, fingerprint=file_sha256(tmp_path / "a.dm4"))
    series = read_frames(output)
    assert series.acquisition.probe_current_pA == 55
    assert series.acquisition.sources["probe_current_pA"] == "session.yaml"
    assert series.acquisition.sources["dwell_s"] == "file"
    assert series.excluded == (1,)
    assert read_attributes(output)["conditions"] == {"temperature_K": 90}
    assert read_attributes(output)["fingerprint"] == file_sha256(tmp_path / "a.dm4")


def test_a_channel_and_a_folder_of_single_frames(tmp_path, stack):
    write_velox_emd(tmp_path / "x.emd", {"A": stack, "B": stack + 1}, **CALIBRATION)
    np.testing.assert_array_equal(
        read_frames(run([tmp_path / "x.emd"], tmp_path, signal="B")).frames.compute(), stack + 1
    )
    sources = []
    for k, frame in enumerate(stack):
        sources.append(tmp_path / f"f{k}.tif")
        tifffile.imwrite(sources[-1], frame)
    output = run(sources, tmp_path)
    np.testing.assert_array_equal(read_frames(output).frames.compute(), stack)
    digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in sources]
    assert read_attributes(output)["fingerprint"] == hashlib.sha256("\n".join(digests).encode()).hexdigest()


def test_frames_without_any_value_are_an_error_unless_excluded(tmp_path, stack):
    stack = stack.astype("f4")
    stack[2] = np.nan
    write_dm4(tmp_path / "a.dm4", stack, **CALIBRATION)
    with pytest.raises(ReadError, match="frame 2 holds no finite value; list it under excluded_frames"):
        run([tmp_path / "a.dm4"], tmp_path)
    assert not (tmp_path / "results" / "frames.ome.zarr").exists()
    assert read_frames(run([tmp_path / "a.dm4"], tmp_path, overrides={"excluded_frames": [2]})).excluded == (2,)


def test_a_failed_conversion_keeps_the_previous_store(tmp_path, stack):
    write_dm4(tmp_path / "a.dm4", stack, **CALIBRATION)
    output = run([tmp_path / "a.dm4"], tmp_path)
    write_dm4(tmp_path / "b.dm4", stack[0], **CALIBRATION)
    with pytest.raises(NotATimeSeries, match="a single image"):
        run([tmp_path / "b.dm4"], tmp_path)
    assert read_frames(output).n_frames == 5


@pytest.mark.parametrize("name", ["a.dm4", "a.emd", "a.tif"])
def test_memory_is_bounded_whatever_the_length_of_the_series(tmp_path, monkeypatch, name):
    monkeypatch.setattr(stage, "BATCH_BYTES", 2**18)
    stack = np.zeros((60, 256, 256), "u2")
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, stack, imagej=True)
    else:
        (write_dm4 if name == "a.dm4" else write_velox_emd)(tmp_path / name, stack, **CALIBRATION)
    total = stack.nbytes
    del stack
    run([tmp_path / name], tmp_path)  # imports
    tracemalloc.start()
    run([tmp_path / name], tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < total / 2
