"""napari reader: paths → layer data, without importing napari itself.

A frame store gives an image layer, decay.zarr one layer a map, trajectory.parquet the drift as tracks, and the folder
of a series (`<session>/results/<series>`) all of them on top of each other: aligned frames, contrast, intensity, drift.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LayerData = tuple[Any, dict[str, Any], str]
Reader = Callable[[Any], list[LayerData]]

MAPS_SHOWN = ("contrast", "intensity")
MAP_LOOKS: dict[str, dict[str, Any]] = {
    "contrast": {"colormap": "viridis", "contrast_limits": (0.0, 1.2)},
    "intensity": {"colormap": "magma", "contrast_limits": (0.0, 1.2)},
}


def get_reader(path: str | Sequence[str]) -> Reader | None:
    """The function that reads a path; None for what is not ours, so that other readers get it."""
    if not isinstance(path, str):
        return None
    return read if _kind(Path(path)) else None


def read(path: str | Sequence[str]) -> list[LayerData]:
    """Layers of a store, a trajectory or the folder of a series.

    Raises
    ------
    ValueError
        When the path is none of them.
    """
    folder = Path(str(path))
    kind = _kind(folder)
    if kind is None:
        raise ValueError(f"{folder}: no store, trajectory or result folder of AtomDiffuser")
    readers: dict[str, Callable[[Path], list[LayerData]]] = {
        "frames": _frames, "maps": _maps, "trajectory": _trajectory, "results": _results,
    }  # fmt: skip
    return readers[kind](folder)


def _kind(path: Path) -> str | None:
    """What a path holds: "frames", "maps", "trajectory", "results", or None."""
    if path.name == "trajectory.parquet":
        return "trajectory"
    if path.is_dir() and (path / "frames.ome.zarr").is_dir():
        return "results"
    if not (path / "zarr.json").is_file():
        return None
    from atomdiffuser.errors import StoreError
    from atomdiffuser.io.store import read_attributes

    try:
        kind = str(read_attributes(path).get("kind"))
    except StoreError:
        return None
    return kind if kind in ("frames", "maps") else None


def _frames(path: Path, **look: Any) -> list[LayerData]:
    from atomdiffuser.io.store import read_attributes, read_frames

    series = read_frames(path)
    scale, units = _space(series.acquisition.pixel_size_nm)
    origin = read_attributes(path).get("origin_px", (0, 0))
    pixel = scale[1:]
    first = [float(o) * p for o, p in zip(origin, pixel, strict=True)]
    metadata = {"times_s": series.times_s, "acquisition": series.acquisition}
    layer = {
        "name": series.name, "scale": scale, "translate": (0.0, *first), "units": units, "metadata": metadata,
        "colormap": "gray", **look,
    }  # fmt: skip
    return [(series.frames, layer, "image")]


def _maps(path: Path, **look: Any) -> list[LayerData]:
    import dask.array as da

    from atomdiffuser.io.map_store import read_maps

    maps = read_maps(path)
    scale, units = _space(maps.attributes.get("pixel_size_nm"))
    first = [(maps.stride - 1) / 2 * p for p in scale[1:]]
    layers = []
    for name in MAPS_SHOWN:
        array = getattr(maps, name)
        data = da.from_array(array, chunks=(1, *array.shape[1:]), name=False)
        coarse = (1.0, *(maps.stride * p for p in scale[1:]))
        layer = {
            "name": name, "scale": coarse, "translate": (0.0, *first), "units": units, "interpolation2d": "linear",
            **MAP_LOOKS[name], **look,
        }  # fmt: skip
        layers.append((data, layer, "image"))
    return layers


def _trajectory(path: Path, shape: tuple[int, int] | None = None, pixel: Any = None) -> list[LayerData]:
    """Where five points of the sample, corners and centre of the reference frame, lie in the raw frames."""
    from atomdiffuser.io.tables import read_table

    table = read_table(path)
    height, width = shape or table.attrs.get("frame_shape") or (1, 1)
    ends = [(0, 0), (0, width - 1), (height - 1, width - 1), (height - 1, 0), ((height - 1) / 2, (width - 1) / 2)]
    rows = table[table["valid"].astype(bool)]
    affines = rows[["a_yy", "a_yx", "a_y", "a_xy", "a_xx", "a_x"]].to_numpy(float).reshape(-1, 2, 3)
    frames = rows["frame"].to_numpy(float)
    tracks = np.concatenate(
        [
            np.column_stack([np.full(len(rows), number), frames, affines @ np.array([y, x, 1.0])])
            for number, (y, x) in enumerate(ends)
        ]
    )
    scale, units = _space(pixel)
    sigma = np.tile(rows["displacement_sigma_px"].to_numpy(float), len(ends))
    layer = {
        "name": "drift", "scale": scale, "units": units, "tail_length": len(table),
        "features": {"displacement_sigma_px": sigma, "frame": tracks[:, 1]}, "color_by": "frame", "colormap": "turbo",
    }  # fmt: skip
    return [(tracks, layer, "tracks")]


def _results(folder: Path) -> list[LayerData]:
    from atomdiffuser.io.store import read_frames

    series = read_frames(folder / "frames.ome.zarr", dask=False)
    layers = _frames(folder / "frames.ome.zarr", visible=False)
    if (folder / "aligned.ome.zarr" / "zarr.json").is_file():
        layers += _frames(folder / "aligned.ome.zarr")
    if (folder / "decay.zarr" / "zarr.json").is_file():
        layers += _maps(folder / "decay.zarr", opacity=0.5, blending="translucent", visible=False)
        layers[-len(MAPS_SHOWN)][1]["visible"] = True
    if (folder / "trajectory.parquet").is_file():
        layers += _trajectory(folder / "trajectory.parquet", series.frame_shape, series.acquisition.pixel_size_nm)
    return layers


def _space(pixel_size_nm: Any) -> tuple[tuple[float, ...], tuple[str, str, str]]:
    """Scale and units of (frame, y, x); frames are counted, so that the slider shows their numbers."""
    if pixel_size_nm is None:
        return (1.0, 1.0, 1.0), ("pixel", "pixel", "pixel")
    return (1.0, float(pixel_size_nm[0]), float(pixel_size_nm[1])), ("pixel", "nm", "nm")
