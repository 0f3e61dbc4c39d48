from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atomdiffuser.errors import ShapeError, StoreError
from atomdiffuser.io.map_store import MAP_NAMES, create_maps, interpolate_block_means, read_maps
from atomdiffuser.io.store import block_mean


def write(path, maps, *, stride=4, n_frames=2, **kwargs):
    with create_maps(
        path,
        n_frames=n_frames,
        map_shape=maps["intensity"].shape,
        stride=stride,
        times_s=np.array([0.0, 2.0]),
        pixel_size_nm=(0.1, 0.2),
        **kwargs,
    ) as writer:
        for k in range(2):
            writer.write(k, **{name: m + k for name, m in maps.items()})
    return path


@pytest.fixture
def maps(rng):
    return {name: rng.random((10, 13), dtype=np.float32) for name in MAP_NAMES}


def test_maps_come_back_lazily(tmp_path, maps):
    maps["contrast"][3, 4] = np.nan
    found = read_maps(write(tmp_path / "decay.zarr", maps, attributes={"reference_frame": 1}))
    for name in MAP_NAMES:
        array = getattr(found, name)
        assert isinstance(array, zarr.Array)
        assert array.chunks == (1, 10, 13)
        np.testing.assert_array_equal(array[1], maps[name] + 1)
    assert (found.stride, found.n_frames, found.attributes["reference_frame"]) == (4, 2, 1)
    np.testing.assert_array_equal(found.times_s, [0.0, 2.0])


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stacks=hnp.array_shapes(min_dims=3, max_dims=3, max_side=6).flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.float32, shape) for _ in MAP_NAMES])
    ),
    stride=st.integers(1, 8),
)
def test_any_maps_come_back_bit_by_bit(tmp_path, stacks, stride):
    n, *shape = stacks[0].shape
    times = np.arange(n) * 0.5
    with create_maps(
        tmp_path / "decay.zarr", n_frames=n, map_shape=tuple(shape), stride=stride, times_s=times,
        pixel_size_nm=(0.1, 0.2),
    ) as writer:  # fmt: skip
        for k in reversed(range(n)):
            writer.write(k, **{name: stack[k] for name, stack in zip(MAP_NAMES, stacks, strict=True)})
    found = read_maps(tmp_path / "decay.zarr")
    for name, stack in zip(MAP_NAMES, stacks, strict=True):
        back = getattr(found, name)[...]
        assert back.dtype == np.float32 and back.shape == stack.shape
        np.testing.assert_array_equal(back, stack)
        assert (np.signbit(back) == np.signbit(stack))[~np.isnan(stack)].all()
    assert (found.stride, found.n_frames) == (stride, n) and found.times_s.tolist() == times.tolist()


def test_each_group_is_an_ome_zarr_image_that_sits_on_its_block_centres(tmp_path, maps):
    from ome_zarr_models.v05 import Image

    path = write(tmp_path / "decay.zarr", maps)
    for name in MAP_NAMES:
        image = Image.from_zarr(zarr.open_group(path / name, mode="r"))
        scale, translation = image.attributes.ome.multiscales[0].datasets[0].coordinateTransformations
        assert list(scale.scale) == pytest.approx([2.0, 0.4, 0.8])
        assert list(translation.translation) == pytest.approx([0.0, 0.15, 0.3])


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7])
def test_a_plane_comes_back_exactly_at_full_resolution(stride):
    y, x = np.mgrid[: 6 * stride, : 9 * stride].astype(float)
    plane = 2 * y - 3 * x + 1
    back = interpolate_block_means(block_mean(plane, stride), stride, plane.shape)
    inner = slice(stride // 2, -(stride // 2) or None)
    np.testing.assert_allclose(back[inner, inner], plane[inner, inner], atol=1e-4)
    # nearest sample instead of interpolation is off by up to 2.5 (stride - 1)
    nearest = np.kron(block_mean(plane, stride), np.ones((stride, stride)))
    assert stride == 1 or np.abs(nearest - plane)[inner, inner].max() > 0.9


def test_nan_stays_in_its_block_and_does_not_grow():
    samples = np.ones((5, 6))
    samples[2, 3] = np.nan
    back = interpolate_block_means(samples, 4, (20, 24))
    expected = np.zeros((20, 24), bool)
    expected[8:12, 12:16] = True
    np.testing.assert_array_equal(np.isnan(back), expected)
    np.testing.assert_array_equal(back[~expected], 1)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_interpolation_stays_within_the_samples_whatever_the_frame_size(stride, ny, nx, rest):
    samples = np.random.default_rng(ny * nx).random((ny, nx))
    back = interpolate_block_means(samples, stride, (ny * stride + rest, nx * stride))
    assert back.shape == (ny * stride + rest, nx * stride)
    assert samples.min() - 1e-6 <= back.min() <= back.max() <= samples.max() + 1e-6


def test_at_full_resolution_reads_one_frame(tmp_path, maps):
    found = read_maps(write(tmp_path / "decay.zarr", maps))
    full = found.at_full_resolution("contrast", 1, (40, 52))
    np.testing.assert_array_equal(full, interpolate_block_means(maps["contrast"] + 1, 4, (40, 52)))
    with pytest.raises(StoreError, match="there is no map 'mass'"):
        found.at_full_resolution("mass", 0, (40, 52))


def test_wrong_shapes_missing_frames_and_missing_stores(tmp_path, maps):
    with pytest.raises(ShapeError, match=r"contrast of frame 0 has shape \(9, 13\)"):
        write(tmp_path / "decay.zarr", {**maps, "contrast": maps["contrast"][:-1]})
    with pytest.raises(ShapeError, match="frame 1 is outside 0…0"):
        write(tmp_path / "decay.zarr", maps, n_frames=1)
    with pytest.raises(StoreError, match=r"maps of frames \[2\] of 3 were never written"):
        write(tmp_path / "decay.zarr", maps, n_frames=3)
    with pytest.raises(StoreError, match="run the decay stage first"):
        read_maps(tmp_path / "decay.zarr")
    path = write(tmp_path / "decay.zarr", maps)
    (path / "coverage/0/zarr.json").unlink()
    with pytest.raises(StoreError, match="incomplete decay maps"):
        read_maps(path)


def test_maps_of_a_whole_series_are_ome_zarr_images_without_time(tmp_path, rng):
    from ome_zarr_models.v05 import Image

    from atomdiffuser.io.map_store import write_still_maps

    path = tmp_path / "damage_maps.zarr"
    write_still_maps(path, {"rate": rng.random((8, 10), dtype=np.float32)}, stride=4, pixel_size_nm=(0.1, 0.2))
    image = Image.from_zarr(zarr.open_group(path / "rate", mode="r")).attributes.ome.multiscales[0]
    assert [axis.name for axis in image.axes] == ["y", "x"]
    scale, translation = image.datasets[0].coordinateTransformations
    assert list(scale.scale) == pytest.approx([0.4, 0.8])
    assert list(translation.translation) == pytest.approx([0.15, 0.3])
