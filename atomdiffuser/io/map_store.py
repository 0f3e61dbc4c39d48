"""Decay maps ↔ decay.zarr: one OME-Zarr image per quantity, on a grid coarser than the frames.

Sample (i, j) of a map is the mean over a block of stride × stride pixels of the reference frame, so it sits at pixel
(i·stride + (stride − 1)/2, j·stride + (stride − 1)/2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from atomdiffuser._version import __version__
from atomdiffuser.errors import ShapeError, StoreError
from atomdiffuser.io._zspy_maps import describe_for_hyperspy
from atomdiffuser.io.remote import Place, for_zarr, location
from atomdiffuser.io.shards import ShardWriter
from atomdiffuser.io.store import (
    ROOT_KEY,
    compressors,
    create_array,
    link_zspy,
    multiscales,
    read_attributes,
    replacing_folder,
    time_step,
    to_json,
    write_array,
)

MAP_NAMES = ("intensity", "contrast", "intensity_sigma", "contrast_sigma", "coverage")
COMPRESSION_LEVEL = 1
STRIP_PX = 2**16
_Neighbours = tuple[np.ndarray, np.ndarray, np.ndarray]


class MapWriter:
    """Takes the maps of one frame after the other; made by `create_maps`."""

    def __init__(self, arrays: dict[str, zarr.Array], n_frames: int) -> None:
        self._arrays = arrays
        self._files = {name: ShardWriter(array) for name, array in arrays.items()}
        self._written = np.zeros(n_frames, dtype=bool)

    def write(
        self,
        index: int,
        *,
        intensity: np.ndarray,
        contrast: np.ndarray,
        intensity_sigma: np.ndarray,
        contrast_sigma: np.ndarray,
        coverage: np.ndarray,
    ) -> None:
        """Store the (y, x) maps of one frame."""
        if not 0 <= index < len(self._written):
            raise ShapeError(f"frame {index} is outside 0…{len(self._written) - 1}")
        given = (intensity, contrast, intensity_sigma, contrast_sigma, coverage)
        for name, values in zip(MAP_NAMES, given, strict=True):
            values, target = np.asarray(values), self._arrays[name]
            if values.shape != target.shape[1:]:
                raise ShapeError(f"{name} of frame {index} has shape {values.shape}, expected {target.shape[1:]}")
            self._files[name].write(index, values.astype(np.float32)[None])
        self._written[index] = True

    def finish(self) -> None:
        """Write the files that maps were still waiting for."""
        for files in self._files.values():
            files.finish()

    def missing(self) -> list[int]:
        """Frames that have not been written yet."""
        return np.flatnonzero(~self._written).tolist()


@contextmanager
def create_maps(
    path: str | Path,
    *,
    n_frames: int,
    map_shape: tuple[int, int],
    stride: int,
    times_s: np.ndarray | None,
    pixel_size_nm: tuple[float, float] | None,
    attributes: Mapping[str, Any] | None = None,
) -> Iterator[MapWriter]:
    """Write decay maps; the store appears under `path`, whole, when the `with` block ends without an error.

    Parameters
    ----------
    map_shape
        (y, x) samples of a map.
    stride
        Pixels of the reference frame per sample, along each axis [px].
    times_s
        (t,) start of each frame [s], or None.
    pixel_size_nm
        Of the reference frame, along (y, x) [nm]; None when unknown.
    attributes
        Provenance and further values for the root's attributes, such as `reference_frame`.
    """
    path = Path(path)
    times = None if times_s is None else np.asarray(times_s, dtype=float)
    step_s = time_step(times, None)
    with replacing_folder(path) as partial:
        root = zarr.open_group(partial, mode="w", zarr_format=3)
        arrays = {}
        for name in MAP_NAMES:
            group = root.create_group(name)
            group.attrs["ome"] = multiscales(name, [("0", stride)], step_s, pixel_size_nm)
            codecs = compressors(COMPRESSION_LEVEL, np.float32)
            arrays[name] = create_array(group, "0", (n_frames, *map_shape), np.float32, codecs)
        writer = MapWriter(arrays, n_frames)
        yield writer
        if missing := writer.missing():
            raise StoreError(f"{path}: maps of frames {missing[:5]} of {n_frames} were never written")
        writer.finish()
        root.attrs[ROOT_KEY] = to_json(
            {
                **(attributes or {}),
                "kind": "maps",
                "version": __version__,
                "map_stride": stride,
                "times_s": None if times is None else times.tolist(),
                "pixel_size_nm": pixel_size_nm,
            },
            longest=None,
        )
        shapes = {name: array.shape for name, array in arrays.items()}
        describe_for_hyperspy(partial, shapes, stride=stride, step_s=step_s, pixel_size_nm=pixel_size_nm)
    link_zspy(path)


def write_still_maps(
    path: str | Path,
    maps: Mapping[str, np.ndarray],
    *,
    stride: int,
    pixel_size_nm: tuple[float, float] | None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write maps (Y', X') that say one thing of a whole series, such as a rate, each as an OME-Zarr image.

    Parameters
    ----------
    stride
        Pixels of the reference frame per sample, along each axis [px].
    pixel_size_nm
        Of the reference frame, along (y, x) [nm]; None when unknown.
    """
    with replacing_folder(Path(path)) as partial:
        root = zarr.open_group(partial, mode="w", zarr_format=3)
        for name, values in maps.items():
            group = root.create_group(name)
            described = multiscales(name, [("0", stride)], None, pixel_size_nm)
            image = described["multiscales"][0]
            image["axes"] = image["axes"][1:]  # no time
            for dataset in image["datasets"]:
                for transform in dataset["coordinateTransformations"]:
                    kind = transform["type"]
                    transform[kind] = transform[kind][1:]
            group.attrs["ome"] = described
            write_array(group, "0", np.asarray(values, np.float32), compressors(COMPRESSION_LEVEL, np.float32))
        root.attrs[ROOT_KEY] = to_json(
            {
                **(attributes or {}),
                "kind": "still_maps",
                "version": __version__,
                "map_stride": stride,
                "pixel_size_nm": pixel_size_nm,
            },
            longest=None,
        )
        shapes = {name: np.shape(values) for name, values in maps.items()}
        describe_for_hyperspy(partial, shapes, stride=stride, step_s=None, pixel_size_nm=pixel_size_nm)
    link_zspy(Path(path))


def read_still_maps(path: str | Place) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Maps by name, in memory, and the attributes of what `write_still_maps` wrote.

    Raises StoreError when they are missing or incomplete.
    """
    path = location(path)
    attributes = read_attributes(path, kind="still_maps")
    try:
        names = sorted(name for name, _ in zarr.open_group(for_zarr(path), mode="r").groups() if name != "Experiments")
        return {name: zarr.open_array(for_zarr(path / name / "0"), mode="r")[...] for name in names}, attributes
    except (OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: incomplete maps ({error}); run the damage stage again") from error


@dataclass(frozen=True)
class DecayMaps:
    """Decay maps of one series; the arrays are lazy (Zarr): index them by frame.

    Attributes
    ----------
    intensity, contrast, intensity_sigma, contrast_sigma, coverage
        (t, y, x) float32, NaN where nothing was measured.
    stride
        Pixels of the reference frame per sample.
    times_s
        (t,) start of each frame [s]; None when unknown.
    attributes
        What the store says of itself.
    """

    intensity: zarr.Array
    contrast: zarr.Array
    intensity_sigma: zarr.Array
    contrast_sigma: zarr.Array
    coverage: zarr.Array
    stride: int
    times_s: np.ndarray | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return int(self.intensity.shape[0])

    def at_full_resolution(self, name: str, index: int, frame_shape: tuple[int, int]) -> np.ndarray:
        """One map, interpolated back to the pixels of the reference frame: (y, x) float32."""
        if name not in MAP_NAMES:
            raise StoreError(f"there is no map {name!r}; expected one of {', '.join(MAP_NAMES)}")
        return interpolate_block_means(np.asarray(getattr(self, name)[index]), self.stride, frame_shape)


def read_maps(path: str | Place) -> DecayMaps:
    """Decay maps, lazily. Raises StoreError when they are missing or incomplete, naming the stage to run first."""
    path = location(path)
    attributes = read_attributes(path, kind="maps")
    try:
        arrays = {name: zarr.open_array(for_zarr(path / name / "0"), mode="r") for name in MAP_NAMES}
        times = attributes["times_s"]
        stride = int(attributes["map_stride"])
    except (OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: incomplete decay maps ({error}); run the decay stage again") from error
    return DecayMaps(
        **arrays, stride=stride, times_s=None if times is None else np.asarray(times, float), attributes=attributes
    )


def interpolate_block_means(samples: np.ndarray, stride: int, frame_shape: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation of block means back to pixels; constant beyond the outermost samples.

    NaN samples carry no weight, so a hole does not grow; a pixel whose own block is NaN stays NaN.

    Parameters
    ----------
    samples
        (y, x) block means over stride × stride pixels.
    frame_shape
        (y, x) of the result [px].
    """
    rows, columns = (_neighbours(n, stride, size) for n, size in zip(samples.shape, frame_shape, strict=True))
    known = np.isfinite(samples)
    widened = lambda values: _between(values.astype(np.float64), columns, 1)
    filled, weight = widened(np.where(known, samples, 0.0)), None if known.all() else widened(known)
    own_y, own_x = (np.where(w < 0.5, a, b) for a, b, w in (rows, columns))
    result = np.empty(frame_shape, np.float32)
    together = max(1, STRIP_PX // max(frame_shape[1], 1))
    for at in range(0, frame_shape[0], together):  # in double precision, so little at a time
        strip = slice(at, at + together)
        here = tuple(part[strip] for part in rows)
        if weight is None:
            result[strip] = _between(filled, here, 0)
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            result[strip] = _between(filled, here, 0) / _between(weight, here, 0)
        result[strip][~known[np.ix_(own_y[strip], own_x)]] = np.nan
    return result


def _between(values: np.ndarray, neighbours: _Neighbours, axis: int) -> np.ndarray:
    """Values between samples along an axis."""
    first, second, weight = neighbours
    result, step = values.take(first, axis), values.take(second, axis)
    step -= result
    step *= weight[:, None] if axis == 0 else weight
    result += step
    return result


def _neighbours(n_samples: int, stride: int, n_pixels: int) -> _Neighbours:
    """Samples on both sides of each pixel and the weight of the second."""
    position = np.clip((np.arange(n_pixels) - (stride - 1) / 2) / stride, 0, n_samples - 1)
    first = np.floor(position).astype(int)
    return first, np.minimum(first + 1, n_samples - 1), position - first
