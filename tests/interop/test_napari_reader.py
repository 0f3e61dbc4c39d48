"""The napari reader through npe2, which napari itself uses, without a window."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atomdiffuser.interop import open_results
from atomdiffuser.io.map_store import MAP_NAMES, create_maps
from atomdiffuser.io.store import create_frames
from atomdiffuser.io.tables import write_table
from atomdiffuser.napari_plugin.reader import get_reader, read
from atomdiffuser.series import Acquisition

MANIFEST = Path(__file__).parents[2] / "atomdiffuser" / "napari_plugin" / "napari.yaml"
PIXEL = (0.03, 0.04)


@pytest.fixture
def results(tmp_path: Path, rng) -> Path:
    """A results folder: the second of two frames drifted by (3, -2) px; aligned frames start 1 px above."""
    folder = tmp_path / "results" / "mine"
    known = Acquisition(pixel_size_nm=PIXEL, frame_time_s=2.0)
    for name, origin in (("frames.ome.zarr", (0, 0)), ("aligned.ome.zarr", (-1, 0))):
        with create_frames(
            folder / name, n_frames=2, frame_shape=(32, 40), dtype=np.float32, times_s=np.array([0.0, 2.0]),
            acquisition=known, name=name.split(".")[0], origin_px=origin, attributes={"origin_px": list(origin)},
        ) as writer:  # fmt: skip
            for k in range(2):
                writer.write(k, rng.random((32, 40), dtype=np.float32))
    with create_maps(
        folder / "decay.zarr", n_frames=2, map_shape=(8, 10), stride=4, times_s=np.array([0.0, 2.0]),
        pixel_size_nm=PIXEL,
    ) as writer:  # fmt: skip
        for k in range(2):
            writer.write(k, **{name: np.full((8, 10), 1 - 0.5 * k, np.float32) for name in MAP_NAMES})
    affine = {"a_yy": 1.0, "a_yx": 0.0, "a_y": [0.0, 3.0], "a_xy": 0.0, "a_xx": 1.0, "a_x": [0.0, -2.0]}
    table = pd.DataFrame(
        {"frame": [0, 1], "time_s": [0.0, 2.0], "fluence_e_per_A2": [10.0, 20.0], **affine}
        | {"displacement_sigma_px": [0.0, 0.1], "valid": True}
    )
    write_table(table, folder / "trajectory.parquet", "trajectory", frame_shape=[32, 40], reference_frame=0)
    return folder


def by_name(layers) -> dict:
    return {layer[1]["name"]: layer for layer in layers}


def test_a_results_folder_opens_as_frames_maps_and_drift(results):
    layers = by_name(get_reader(str(results))(str(results)))
    assert set(layers) == {"frames", "aligned", "contrast", "intensity", "drift"}
    assert [kind for _, _, kind in layers.values()] == ["image", "image", "image", "image", "tracks"]
    data, look, _ = layers["aligned"]
    assert data.shape == (2, 32, 40)
    assert look["scale"] == (1.0, *PIXEL)
    assert look["translate"] == pytest.approx((0.0, -0.03, 0.0))
    data, look, _ = layers["contrast"]
    assert np.asarray(data)[:, 0, 0].tolist() == [1.0, 0.5]
    assert look["scale"] == pytest.approx((1.0, 0.12, 0.16))
    assert look["translate"] == pytest.approx((0.0, 0.045, 0.06))
    assert look["visible"] and not layers["intensity"][1]["visible"] and not layers["frames"][1]["visible"]


def test_tracks_follow_the_sample(results):
    tracks = by_name(read(str(results / "trajectory.parquet")))["drift"][0]
    assert tracks.shape == (10, 4)  # four corners and the centre, two frames
    first, second = tracks[tracks[:, 1] == 0], tracks[tracks[:, 1] == 1]
    np.testing.assert_allclose(second[:, 2:] - first[:, 2:], np.tile([3.0, -2.0], (5, 1)))
    np.testing.assert_allclose(first[4, 2:], [15.5, 19.5])


def test_other_paths_are_left_to_other_readers(tmp_path, results):
    import zarr

    zarr.open_group(tmp_path / "foreign.zarr", mode="w", zarr_format=3)
    for path in (tmp_path, tmp_path / "foreign.zarr", results / "pairs.parquet", tmp_path / "image.tif"):
        assert get_reader(str(path)) is None
    assert get_reader([str(results), str(results)]) is None
    with pytest.raises(ValueError, match="no store, trajectory or result folder"):
        read(str(tmp_path))


def test_npe2_accepts_the_manifest_and_reads_through_it(results):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # npe2 uses what pydantic deprecates
        npe2 = pytest.importorskip("npe2")
        from npe2 import DynamicPlugin, PluginManifest

        manifest = PluginManifest.from_file(MANIFEST)
        manifest.validate_imports()
        with DynamicPlugin(manifest.name, manifest=manifest):
            for path in (results, results / "aligned.ome.zarr", results / "aligned.zspy", results / "decay.zarr"):
                layers, reader = npe2.io_utils.read_get_reader([str(path)], stack=False, plugin_name=manifest.name)
                assert reader.command == "atomdiffuser.get_reader"
                assert layers[0][0].ndim == 3


def test_results_as_xarray(results):
    xarray = pytest.importorskip("xarray")
    from atomdiffuser.io.map_store import write_still_maps

    write_still_maps(
        results / "damage_maps.zarr", {"rate": np.full((8, 10), 2.0, np.float32)}, stride=4, pixel_size_nm=PIXEL,
        attributes={"unit": "e_per_A2"},
    )  # fmt: skip
    found = open_results(results)
    dataset = found.dataset()
    assert isinstance(dataset, xarray.Dataset)
    assert dataset["contrast"].dims == ("frame", "y", "x")
    assert float(dataset["contrast"].sel(frame=1).mean()) == 0.5
    assert dataset["y"].values[:2] == pytest.approx([0.045, 0.165])
    assert dataset["fluence_e_per_A2"].values.tolist() == [10.0, 20.0]
    assert dataset["rate"].attrs["fluence_unit"] == "e_per_A2"
    assert (found.frames.n_frames, found.aligned.frame_shape) == (2, (32, 40))
    assert found.table("trajectory").attrs["reference_frame"] == 0


def test_results_that_are_not_there_are_said(tmp_path, results):
    from atomdiffuser.errors import StoreError

    with pytest.raises(StoreError, match="no results of a series here"):
        open_results(tmp_path)
    with pytest.raises(StoreError, match="no table is called 'drift'; there are pairs"):
        open_results(results).table("drift")
