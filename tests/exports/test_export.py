"""Exports read back by the libraries of the formats: pixels, calibration, times; movies frame by frame."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from atomdiffuser.cli import main
from atomdiffuser.errors import SettingsError, StoreError
from atomdiffuser.exports import export, open_stack
from atomdiffuser.exports.movie import as_grey, bar_length_nm, caption, movie_frames
from atomdiffuser.io.map_store import MAP_NAMES, create_maps
from atomdiffuser.io.store import create_frames
from atomdiffuser.io.tables import write_table
from atomdiffuser.series import Acquisition

SHAPE, N = (48, 64), 5
CALIBRATED = Acquisition(pixel_size_nm=(0.03, 0.04), frame_time_s=2.0, dwell_s=2e-6, probe_current_pA=30.0)


def store(path: Path, frames: np.ndarray, acquisition: Acquisition = CALIBRATED) -> Path:
    times = None if acquisition.frame_time_s is None else acquisition.frame_time_s * np.arange(len(frames))
    with create_frames(
        path, n_frames=len(frames), frame_shape=frames.shape[1:], dtype=frames.dtype, times_s=times,
        acquisition=acquisition, name="mine",
    ) as writer:  # fmt: skip
        for k, frame in enumerate(frames):
            writer.write(k, frame)
    return path


@pytest.fixture
def frames(rng) -> np.ndarray:
    return rng.integers(0, 4000, (N, *SHAPE)).astype(np.uint16)


@pytest.fixture
def source(tmp_path, frames) -> Path:
    return store(tmp_path / "frames.ome.zarr", frames)


def test_tiff_is_a_calibrated_stack_in_time_for_imagej(source, frames, tmp_path):
    path = export(source, tmp_path / "out" / "a.tif")
    with tifffile.TiffFile(path) as file:
        assert file.is_imagej
        np.testing.assert_array_equal(file.asarray(), frames)
        assert file.series[0].axes == "TYX"
        about = file.imagej_metadata
        assert (about["unit"], about["finterval"], about["frames"]) == ("nm", 2.0, N)
        x, y = (file.pages[0].tags[name].value for name in ("XResolution", "YResolution"))
        assert (x[1] / x[0], y[1] / y[0]) == pytest.approx((0.04, 0.03), rel=1e-4)
        assert "frame 4, 8 s, " in about["Info"]
        assert about["Info"].splitlines()[-1].endswith("e/A^2")


def test_aligned_frames_keep_nan_and_double_precision_becomes_single(tmp_path, frames):
    values = frames.astype(np.float64)
    values[0, :3] = np.nan
    path = export(store(tmp_path / "aligned.ome.zarr", values), tmp_path / "a.tif")
    back = tifffile.imread(path)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, values.astype(np.float32))


def test_a_choice_of_frames_carries_its_own_numbers(source, frames, tmp_path):
    path = export(source, tmp_path / "a.tif", frames=(2, 3))
    with tifffile.TiffFile(path) as file:
        np.testing.assert_array_equal(file.asarray(), frames[2:4])
        assert [line.split(",")[0] for line in file.imagej_metadata["Info"].splitlines()[1:]] == ["frame 2", "frame 3"]
    with pytest.raises(SettingsError, match="frames 3-9 are not among the frames 0-4"):
        export(source, tmp_path / "b.tif", frames=(3, 9))


def test_mrc_has_voxel_size_in_angstrom(source, frames, tmp_path):
    mrcfile = pytest.importorskip("mrcfile")
    path = export(source, tmp_path / "a.mrc")
    assert mrcfile.validate(path)
    with mrcfile.open(path) as file:
        np.testing.assert_array_equal(file.data, frames)
        assert file.is_image_stack()
        assert (float(file.voxel_size.x), float(file.voxel_size.y)) == pytest.approx((0.4, 0.3), rel=1e-5)
        assert "frame interval 2 s" in file.get_labels()
        assert (float(file.header.dmin), float(file.header.dmax)) == (frames.min(), frames.max())


def test_mrc_is_read_back_by_our_own_reader(source, frames, tmp_path):
    from atomdiffuser import read_series

    pytest.importorskip("mrcfile")
    back = read_series(export(source, tmp_path / "a.mrc"))
    np.testing.assert_array_equal(np.asarray(back.frames), frames)
    assert back.acquisition.pixel_size_nm == pytest.approx((0.03, 0.04), rel=1e-5)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_gif_and_webp_play_every_frame_at_the_pace_asked_for(source, tmp_path, suffix):
    with Image.open(export(source, tmp_path / f"a.{suffix}", fps=4)) as movie:
        assert movie.n_frames == N
        assert movie.size == (512, 384)  # 64 × 48, eight times
        movie.seek(2)
        movie.load()
        assert movie.info["duration"] == 250


def test_mp4_has_every_frame(source, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    frames, seconds = ffmpeg.count_frames_and_secs(export(source, tmp_path / "a.mp4", fps=10))
    assert (frames, seconds) == (N, pytest.approx(N / 10))


def test_movie_frames_show_the_picture_under_bar_and_caption(tmp_path, frames):
    flat = np.full((1, 100, 100), 7.0, np.float32)
    flat[0, 50, 20:30] = np.nan
    known = Acquisition(pixel_size_nm=(0.1, 0.1), frame_time_s=2.0)
    stack = open_stack(store(tmp_path / "aligned.ome.zarr", flat, known))
    picture = np.asarray(next(movie_frames(stack, zoom=6)))
    assert picture.shape == (600, 600)
    assert (picture[303, 130:170] == 64).all()  # not seen
    bar = picture[580, 18 : 18 + 120]  # 2 nm of 0.1 nm pixels, six times
    assert (bar == 255).all()
    assert picture[580, 145] == 0
    assert (picture[15:40, 15:200] == 255).any()  # lettering


def test_caption_says_what_is_known_only(source, tmp_path, frames):
    per_frame = 6.241509074e6 * 30.0 * 2e-6 / (0.3 * 0.4)
    assert caption(open_stack(source), 2) == f"frame 2   4 s   {3 * per_frame:,.0f} e⁻/Å²".replace(",", "\u202f")
    unknown = store(tmp_path / "b.ome.zarr", frames, Acquisition())
    assert caption(open_stack(unknown), 2) == "frame 2"


def test_without_a_pixel_size_there_is_no_bar(tmp_path):
    flat = np.zeros((1, 100, 100), np.float32)
    flat[0, 0, 0] = 1
    stack = open_stack(store(tmp_path / "b.ome.zarr", flat, Acquisition()))
    picture = np.asarray(next(movie_frames(stack, zoom=6)))
    assert not picture[540:].any()


@pytest.mark.parametrize("width_nm", [0.03, 0.9, 5.12, 40.0, 333.0])
def test_bar_is_a_round_length_between_a_tenth_and_a_quarter(width_nm):
    length = bar_length_nm(width_nm)
    assert 0.1 * width_nm <= length <= 0.25 * width_nm * (1 + 1e-9)
    assert f"{length:e}"[0] in "125"


def test_grey_values():
    image = np.array([[0.0, 5.0, 10.0, 20.0, np.nan]])
    assert as_grey(image, 0, 10).tolist() == [[0, 128, 255, 255, 64]]


def test_maps_are_exported_by_name_with_their_own_pixel_size(tmp_path, rng):
    maps = {name: rng.random((8, 10), dtype=np.float32) for name in MAP_NAMES}
    with create_maps(
        tmp_path / "decay.zarr", n_frames=1, map_shape=(8, 10), stride=4, times_s=None, pixel_size_nm=(0.03, 0.04)
    ) as writer:
        writer.write(0, **maps)
    path = export(tmp_path / "decay.zarr", tmp_path / "a.tif", map_name="intensity")
    with tifffile.TiffFile(path) as file:
        np.testing.assert_array_equal(np.squeeze(file.asarray()), maps["intensity"])
        x = file.pages[0].tags["XResolution"].value
        assert x[1] / x[0] == pytest.approx(0.16, rel=1e-4)
    with pytest.raises(SettingsError, match="no map is called 'damage'; there are intensity"):
        export(tmp_path / "decay.zarr", tmp_path / "b.tif", map_name="damage")


def test_tables_become_plain_csv(tmp_path):
    table = pd.DataFrame({"frame": [0, 1], "drift_y_nm": [0.0, 1.5]})
    write_table(table, tmp_path / "trajectory.parquet", "trajectory")
    pd.testing.assert_frame_equal(pd.read_csv(export(tmp_path / "trajectory.parquet", tmp_path / "t.csv")), table)


def test_what_cannot_be_written_is_said(source, tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=r"unknown format '.avi'; known are .tif"):
        export(source, tmp_path / "a.avi")
    with pytest.raises(SettingsError, match="images are not written"):
        export(source, tmp_path / "a.csv")
    with pytest.raises(SettingsError, match="a table is written as"):
        export(tmp_path / "t.parquet", tmp_path / "a.tif")
    with pytest.raises(StoreError, match="no such file"):
        export(tmp_path / "nothing.ome.zarr", tmp_path / "a.tif")
    (tmp_path / "there.tif").touch()
    with pytest.raises(SettingsError, match="exists already"):
        export(source, tmp_path / "there.tif")
    assert export(source, tmp_path / "there.tif", overwrite=True).stat().st_size > 1000
    with pytest.raises(SettingsError, match="expected a positive number"):
        export(source, tmp_path / "a.gif", fps=0)
    monkeypatch.setitem(sys.modules, "mrcfile", None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    for name in ("a.mrc", "a.mp4"):
        with pytest.raises(SettingsError, match=r"pip install .atomdiffuser\[export\]"):
            export(source, tmp_path / name)
    monkeypatch.setattr("atomdiffuser.exports.images.IMAGEJ_LIMIT_BYTES", 1000)
    with pytest.raises(SettingsError, match="more than a TIFF for ImageJ holds"):
        export(source, tmp_path / "large.tif")


def test_the_command_says_what_it_wrote_and_fails_in_one_line(source, tmp_path):
    run = lambda *arguments: CliRunner().invoke(main, ["export", *map(str, arguments)])
    done = run(source / "zarr.json", tmp_path / "a.tif", "--frames", "1-2")
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "a.tif"))
    assert len(tifffile.imread(tmp_path / "a.tif")) == 2
    again = run(source, tmp_path / "a.tif")
    assert again.exit_code == 1
    assert again.stderr.startswith(f"export: {tmp_path / 'a.tif'}: exists already; choose another name, or")
    assert run(source, tmp_path / "b.tif", "--frames", "x").exit_code == 2
