"""What is exported: images one by one, with pixel size, times and fluence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atomdiffuser.errors import SettingsError, StoreError
from atomdiffuser.io.map_store import MAP_NAMES, read_maps
from atomdiffuser.io.store import read_attributes, read_frames, time_step
from atomdiffuser.series import FrameSeries


@dataclass(frozen=True)
class ImageStack:
    """Images of one shape, read when they are asked for.

    Attributes
    ----------
    read
        Number in the stack → (Y, X) image.
    numbers
        Numbers of the frames that the images stand for.
    pixel_size_nm
        Step along (y, x) [nm]; None when unknown.
    times_s, fluence_e_per_A2
        One value an image, or None when unknown.
    limits
        Values of black and white that suit them all; None: found from the images.
    """

    read: Callable[[int], np.ndarray]
    numbers: tuple[int, ...]
    shape: tuple[int, int]
    dtype: np.dtype
    name: str
    pixel_size_nm: tuple[float, float] | None = None
    times_s: np.ndarray | None = None
    fluence_e_per_A2: np.ndarray | None = None
    limits: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.read(k) for k in range(len(self)))

    @property
    def step_s(self) -> float | None:
        """Mean time from image to image [s]; None when unknown."""
        return time_step(self.times_s, None)


def open_stack(source: Path, *, map_name: str = "contrast", frames: tuple[int, int] | None = None) -> ImageStack:
    """The images of a frame store, a map store or a raw microscope file.

    Parameters
    ----------
    map_name
        Which map, for decay.zarr.
    frames
        First and last, both included.
    """
    source = source.parent if source.name == "zarr.json" else source
    if not source.exists():
        raise StoreError(f"{source}: no such file or store")
    if (source / "zarr.json").is_file() and read_attributes(source).get("kind") == "maps":
        return _maps(source, map_name, frames)
    if (source / "zarr.json").is_file():
        return _frames(read_frames(source, dask=False), frames)
    from atomdiffuser.io.readers import read_series

    return _frames(read_series(source), frames)


def _frames(series: FrameSeries, frames: tuple[int, int] | None) -> ImageStack:
    numbers = _chosen(series.n_frames, frames)
    fluence = series.cumulative_fluence_e_per_A2()
    chosen = list(numbers)
    return ImageStack(
        read=lambda k: series.frame(numbers[k]),
        numbers=numbers,
        shape=series.frame_shape,
        dtype=np.dtype(series.frames.dtype),
        name=series.name,
        pixel_size_nm=series.acquisition.pixel_size_nm,
        times_s=None if series.times_s is None else series.times_s[chosen],
        fluence_e_per_A2=None if fluence is None else fluence[chosen],
    )


def _maps(source: Path, map_name: str, frames: tuple[int, int] | None) -> ImageStack:
    if map_name not in MAP_NAMES:
        raise SettingsError(f"no map is called {map_name!r}; there are {', '.join(MAP_NAMES)}")
    maps = read_maps(source)
    array = getattr(maps, map_name)
    numbers = _chosen(array.shape[0], frames)
    pixel = maps.attributes.get("pixel_size_nm")
    return ImageStack(
        read=lambda k: np.asarray(array[numbers[k]]),
        numbers=numbers,
        shape=(int(array.shape[1]), int(array.shape[2])),
        dtype=np.dtype(np.float32),
        name=map_name,
        pixel_size_nm=None if pixel is None else (pixel[0] * maps.stride, pixel[1] * maps.stride),
        times_s=None if maps.times_s is None else maps.times_s[list(numbers)],
        limits=(0.0, 0.5) if map_name.endswith("sigma") else (0.0, 1.2),
    )


def _chosen(n_frames: int, frames: tuple[int, int] | None) -> tuple[int, ...]:
    if frames is None:
        return tuple(range(n_frames))
    first, last = frames
    if not 0 <= first <= last < n_frames:
        raise SettingsError(f"frames {first}-{last} are not among the frames 0-{n_frames - 1}")
    return tuple(range(first, last + 1))
