from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from atomdiffuser.errors import SettingsError
from atomdiffuser.io.discovery import SeriesEntry, discover
from atomdiffuser.io.raw_writers import write_dm4, write_velox_emd

CALIBRATION = dict(frame_time_s=1.5, pixel_size_nm=0.02, beam_energy_kV=200.0, probe_current_pA=30.0, dwell_s=2e-6)


def stack(n=2, shape=(12, 16), seed=0):
    return np.random.default_rng(seed).integers(0, 4000, (n, *shape)).astype("u2")


def write_frame(path, seed=0, shape=(12, 16), minute=0, **changes):
    write_dm4(
        path, stack(1, shape, seed)[0], acquired_at=f"2026-01-01T12:{minute:02d}:00", **{**CALIBRATION, **changes}
    )


@pytest.fixture
def found(tmp_path):
    """Looks into the session folder: entries by ID."""

    def found(cache=None):
        entries = discover(tmp_path, results=tmp_path / "results", cache=cache)
        by_id = {e.series_id: e for e in entries}
        assert len(by_id) == len(entries), "IDs are unique"
        for entry in entries:
            assert SeriesEntry.from_json(json.loads(json.dumps(entry.to_json()))) == entry
        return by_id

    return found


def test_each_multi_frame_file_is_a_series_wherever_it_lies(tmp_path, found):
    write_dm4(tmp_path / "LLZO A (1).dm4", stack(), **CALIBRATION)
    write_velox_emd(tmp_path / "day 2" / "b.emd", stack(), **CALIBRATION)
    entries = found()
    assert {k: (e.state, e.sources) for k, e in entries.items()} == {
        "LLZO-A-1": ("series", ("LLZO A (1).dm4",)),
        "b": ("series", ("day 2/b.emd",)),
    }
    assert entries["LLZO-A-1"].name == "LLZO A (1)"
    assert entries["b"].size_bytes == (tmp_path / "day 2/b.emd").stat().st_size


def test_an_empty_session_has_no_series_and_a_missing_one_is_an_error(tmp_path, found):
    assert found() == {}
    with pytest.raises(SettingsError, match="no such session folder"):
        discover(tmp_path / "nowhere", results=tmp_path)


def test_several_detectors_are_several_series(tmp_path, found):
    write_velox_emd(tmp_path / "x.emd", {"HAADF": stack(), "BF-S": stack(seed=1)}, **CALIBRATION)
    entries = found()
    assert set(entries) == {"x-HAADF", "x-BF-S"}
    assert {e.signal for e in entries.values()} == {0, 1}
    assert entries["x-HAADF"].name == "x HAADF"


def test_same_names_get_a_suffix_that_depends_on_the_path_alone(tmp_path, found):
    for folder in ("a", "b"):
        write_dm4(tmp_path / folder / "X.dm4", stack(seed=len(folder)), **CALIBRATION)
    write_dm4(tmp_path / "c" / "x.dm4", stack(seed=3), **CALIBRATION)
    first = {e.sources: k for k, e in found().items()}
    assert all(len(k) == len("x-01234567") for k in first.values())
    write_dm4(tmp_path / "0" / "x.dm4", stack(seed=4), **CALIBRATION)
    second = {e.sources: k for k, e in found().items()}
    assert first.items() <= second.items()


@pytest.mark.parametrize("name", ["{wild}*card?", "ünïcödé", "漢字", "a" * 200, "--", "a b\tc"])
def test_ids_are_slugs_whatever_the_name(tmp_path, found, name):
    write_dm4(tmp_path / f"{name}.dm4", stack(), **CALIBRATION)
    ((series_id, entry),) = found().items()
    assert set(series_id) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert 0 < len(series_id) < 100
    assert entry.name == name.replace("\t", "?")


def test_names_that_are_no_unicode(tmp_path, found):
    from atomdiffuser.io.status import Status, read_status, write_status

    write_dm4(tmp_path / "a.dm4", stack(), **CALIBRATION)
    os.rename(tmp_path / "a.dm4", os.fsencode(tmp_path) + b"/m\xfc.dm4")
    (entry,) = found().values()
    assert (entry.name, entry.state) == ("m?", "series")
    assert (tmp_path / entry.sources[0]).is_file()
    status = Status(entry.series_id, entry.name, entry.sources[0], "ok")
    write_status(tmp_path / "results/status.json", status)
    assert read_status(tmp_path / "results/status.json") == status


def test_a_subfolder_of_single_frames_is_one_series_in_order_of_acquisition(tmp_path, found):
    for k, minute in enumerate([30, 10, 20]):
        write_frame(tmp_path / "in situ" / f"frame_{k}.dm4", seed=k, minute=minute)
    ((series_id, entry),) = found().items()
    assert series_id == "in-situ"
    assert entry.state == "series"
    assert entry.sources == tuple(f"in situ/frame_{k}.dm4" for k in (1, 2, 0))


def test_frames_without_a_time_are_ordered_by_natural_name(tmp_path, found):
    (tmp_path / "run").mkdir()
    for k in (1, 2, 10):
        tifffile.imwrite(tmp_path / "run" / f"f{k}.tif", stack(1, seed=k)[0])
    (entry,) = found().values()
    assert entry.sources == ("run/f1.tif", "run/f2.tif", "run/f10.tif")


def test_loose_single_images_are_skipped_with_a_hint(tmp_path, found):
    write_frame(tmp_path / "overview.dm4")
    write_frame(tmp_path / "other.dm4", seed=1)
    for entry in found().values():
        assert entry.state == "skipped"
        assert entry.reason == "a single image; put the frames of a series into a subfolder of their own"


def test_overview_images_beside_a_series_do_not_make_another(tmp_path, found):
    for k in range(2):
        write_frame(tmp_path / "A" / f"overview_{k}.dm4", seed=k)
    write_dm4(tmp_path / "A" / "series.dm4", stack(), **CALIBRATION)
    assert {k: e.state for k, e in found().items()} == {
        "overview_0": "skipped",
        "overview_1": "skipped",
        "series": "series",
    }


def test_an_odd_frame_in_a_folder_is_left_out_and_a_mixture_is_no_series(tmp_path, found):
    for k in range(3):
        write_frame(tmp_path / "A" / f"a{k}.dm4", seed=k)
    write_frame(tmp_path / "A" / "odd.dm4", shape=(12, 18))
    for k in range(2):
        write_frame(tmp_path / "B" / f"b{k}.dm4", shape=(12 + 2 * k, 16))
    entries = found()
    assert len(entries["A"].sources) == 3
    assert "another shape or type than the 3 others" in entries["odd"].reason
    assert "differ in shape" in entries["b0"].reason
    assert entries["b1"].state == "skipped"


def test_frames_of_different_magnification_are_no_series(tmp_path, found):
    write_frame(tmp_path / "A" / "a.dm4")
    write_frame(tmp_path / "A" / "b.dm4", pixel_size_nm=0.04)
    (entry,) = found().values()
    assert (entry.state, entry.reason[:33]) == ("skipped", "images of different magnification")


def test_results_hidden_files_and_other_formats_are_left_out(tmp_path, found):
    write_dm4(tmp_path / "a.dm4", stack(), **CALIBRATION)
    for path in ("results/a/raw.dm4", ".snakemake/raw.dm4", ".hidden.dm4", "sub/.hidden.dm4"):
        write_dm4(tmp_path / path, stack(), **CALIBRATION)
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "session.yaml").write_text("")
    (tmp_path / "plot.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "table.csv").write_text("a,b")
    assert set(found()) == {"a"}


def test_results_under_another_name_are_not_raw_data(tmp_path, found):
    from atomdiffuser.config import ConvertSettings
    from atomdiffuser.stages.convert import convert

    write_dm4(tmp_path / "a.dm4", stack(), **CALIBRATION)
    convert([tmp_path / "a.dm4"], tmp_path / "old/a/frames.ome.zarr", ConvertSettings(), series_id="a", name="a")
    assert set(found()) == {"a"}


def test_contents_decide_and_names_only_promise(tmp_path, found):
    write_dm4(tmp_path / "no_ending", stack(), **CALIBRATION)
    write_dm4(tmp_path / "UPPER.DM4", stack(seed=1), **CALIBRATION)
    write_velox_emd(tmp_path / "renamed.dm4", stack(seed=2), **CALIBRATION)
    (tmp_path / "empty.dm4").touch()
    (tmp_path / "text.emd").write_text("hello")
    states = {k: (e.state, e.reason) for k, e in found().items()}
    assert {k for k, (state, _) in states.items() if state == "series"} == {"no_ending", "UPPER", "renamed"}
    assert states["empty"] == (
        "failed",
        "is named like Digital Micrograph but does not start like one; copy it again",
    )
    assert states["text"][0] == "failed"


def test_truncated_files_fail_and_do_not_stop_the_others(tmp_path, found):
    write_dm4(tmp_path / "good.dm4", stack(), **CALIBRATION)
    data = (tmp_path / "good.dm4").read_bytes()
    (tmp_path / "cut.dm4").write_bytes(data[: len(data) // 2])
    entries = found()
    assert entries["good"].state == "series"
    assert entries["cut"].state == "failed"
    assert "truncated or damaged" in entries["cut"].reason
    assert entries["cut"].fingerprint


def test_pipes_loops_and_dangling_links_neither_hang_nor_crash(tmp_path, found):
    write_dm4(tmp_path / "sub" / "a.dm4", stack(), **CALIBRATION)
    os.mkfifo(tmp_path / "pipe.dm4")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.dm4").symlink_to("self.dm4")
    (tmp_path / "gone.emd").symlink_to("nowhere.emd")
    (tmp_path / "linked.dm4").symlink_to("sub/a.dm4")
    entries = found()
    assert {k: e.state for k, e in entries.items()} == {
        "a": "series",
        "linked": "series",
        "pipe": "failed",
        "self": "failed",
        "gone": "failed",
    }
    assert "not a regular file" in entries["pipe"].reason
    assert "link to a missing file" in entries["gone"].reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_fail(tmp_path, found):
    write_dm4(tmp_path / "a.dm4", stack(), **CALIBRATION)
    (tmp_path / "a.dm4").chmod(0)
    assert found()["a"].state == "failed"


def test_session_yaml_reaches_the_entries(tmp_path, found):
    for name in ("a", "b", "c"):
        write_dm4(tmp_path / f"{name}.dm4", stack(seed=ord(name)), **CALIBRATION)
    (tmp_path / "session.yaml").write_text(
        "defaults: {probe_current_pA: 12}\n"
        "series: {a.dm4: {gain_e: 2, conditions: {temperature_K: 90}}, b: {skip: true}}"
    )
    (tmp_path / "series.tsv").write_text("series\na\nb\n")
    entries = found()
    assert entries["a"].overrides == {"probe_current_pA": 12, "gain_e": 2, "conditions": {"temperature_K": 90}}
    assert entries["b"].state == "skipped"
    assert "skip is set" in entries["b"].reason
    assert (entries["c"].state, entries["c"].reason) == ("skipped", "not listed in series.tsv")
    (tmp_path / "session.yaml").write_text("series: {d: {gain_e: 2}}")
    with pytest.raises(SettingsError, match=r"session\.yaml: series\.d: no such series"):
        found()


def test_the_user_may_insist_that_a_stack_is_a_time_series(tmp_path, found):
    tifffile.imwrite(tmp_path / "z.tif", stack(3), imagej=True, metadata={"axes": "ZYX", "spacing": 2.5, "unit": "um"})
    entry = found()["z"]
    assert entry.state == "skipped"
    assert entry.reason.startswith("a z stack")
    assert "time_series: true" in entry.reason
    (tmp_path / "session.yaml").write_text("series: {z.tif: {time_series: true}}")
    assert found()["z"].state == "series"


def test_the_cache_answers_until_anything_about_a_file_changes(tmp_path, found, monkeypatch):
    import atomdiffuser.io.readers as readers

    looked = []
    inspect = readers.inspect
    monkeypatch.setattr(readers, "inspect", lambda p: looked.append(p.name) or inspect(p))
    cache = tmp_path / "results" / "cache.json"
    write_dm4(tmp_path / "a.dm4", stack(seed=1), **CALIBRATION)
    write_dm4(tmp_path / "b.dm4", stack(seed=2), **CALIBRATION)
    before = found(cache)
    assert looked == ["a.dm4", "b.dm4"]
    assert found(cache) == before
    assert looked == ["a.dm4", "b.dm4"]

    # a replacement of the same size with an older time stamp
    status = (tmp_path / "a.dm4").stat()
    write_dm4(tmp_path / "new", stack(seed=3), **CALIBRATION)
    assert (tmp_path / "new").stat().st_size == status.st_size
    os.replace(tmp_path / "new", tmp_path / "a.dm4")
    os.utime(tmp_path / "a.dm4", ns=(status.st_atime_ns, status.st_mtime_ns - 10**12))
    after = found(cache)
    assert looked == ["a.dm4", "b.dm4", "a.dm4"]
    assert after["a"].fingerprint != before["a"].fingerprint
    assert after["b"] == before["b"]

    # the same inode overwritten, its old time stamp restored
    status = (tmp_path / "b.dm4").stat()
    write_dm4(tmp_path / "b.dm4", stack(seed=4), **CALIBRATION)
    os.utime(tmp_path / "b.dm4", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert found(cache)["b"].fingerprint != before["b"].fingerprint

    (tmp_path / "b.dm4").unlink()
    assert set(found(cache)) == {"a"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"files": {"a.dm4": 3}}'])
def test_a_damaged_cache_is_ignored(tmp_path, found, text):
    write_dm4(tmp_path / "a.dm4", stack(), **CALIBRATION)
    cache = tmp_path / "results" / "cache.json"
    cache.parent.mkdir()
    cache.write_text(text)
    assert found(cache)["a"].state == "series"


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path, found):
    write_dm4(tmp_path / "a.dm4", stack(), **CALIBRATION)
    (tmp_path / "file").touch()
    assert found(tmp_path / "file" / "cache.json")["a"].state == "series"


def test_a_hundred_unchanged_series_answer_within_a_second_without_hyperspy(tmp_path, found):
    write_dm4(tmp_path / "0.dm4", stack(), **CALIBRATION)
    for k in range(1, 100):
        (tmp_path / f"{k}.dm4").write_bytes((tmp_path / "0.dm4").read_bytes())
    cache = tmp_path / "results" / "cache.json"
    found(cache)
    code = (
        "import sys, time, pathlib; from atomdiffuser.io.discovery import discover; p = pathlib.Path(sys.argv[1]);"
        "n = len(discover(p, results=p / 'results', cache=p / 'results/cache.json'));"
        "assert n == 100; assert not {'hyperspy', 'rsciio', 'dask'} & set(sys.modules);"
        "assert time.process_time() < 1.0"  # of this process alone: the machine may be busy
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
