"""Lets HyperSpy open stores of maps: ZSpy descriptions beside the OME-Zarr ones, data shared by links.

`hs.load("decay.zspy")` then gives one signal a map. ZSpy looks for its data in `Experiments/<name>/data`, OME-Zarr in
`<name>/0`; a symbolic link inside the store gives the array both places. File systems without links go without.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zarr

ZSPY_VERSION = "3.3"


def describe_for_hyperspy(
    store: Path,
    shapes: dict[str, tuple[int, ...]],
    *,
    stride: int,
    step_s: float | None,
    pixel_size_nm: Sequence[float] | None,
) -> None:
    """Add ZSpy groups to a store of maps that is being written.

    Parameters
    ----------
    store
        Folder of the store, whose arrays `<name>/0` are written.
    shapes
        Name → (t, y, x) or (y, x) of each map.
    stride
        Pixels of the reference frame per sample.
    step_s
        Time from frame to frame [s]; None when unknown.
    """
    root = zarr.open_group(store, mode="a", zarr_format=3)
    root.attrs.update({"file_format": "ZSpy", "file_format_version": ZSPY_VERSION})
    for name, shape in shapes.items():
        experiment = root.create_group(f"Experiments/{name}")
        for number, axis in enumerate(_axes(shape, stride, step_s, pixel_size_nm)):
            experiment.create_group(f"axis-{number}").attrs.update(axis)
        metadata = experiment.create_group("metadata")
        metadata.create_group("General").attrs.update({"title": name})
        metadata.create_group("Signal").attrs.update({"signal_type": ""})
        experiment.create_group("original_metadata")
        experiment.create_group("learning_results")
        link = store / "Experiments" / name / "data"
        try:
            link.symlink_to(Path("..") / ".." / name / "0", target_is_directory=True)
        except OSError:
            return


def _axes(
    shape: tuple[int, ...], stride: int, step_s: float | None, pixel_size_nm: Sequence[float] | None
) -> list[dict[str, Any]]:
    names = ("time", "y", "x")[-len(shape) :]
    axes = []
    for name, size in zip(names, shape, strict=True):
        if name == "time":
            known: dict[str, Any] = {} if step_s is None else {"units": "s"}
            scale, first = step_s or 1.0, 0.0
        else:
            pixel = 1.0 if pixel_size_nm is None else float(pixel_size_nm["yx".index(name)])
            known = {"units": "px" if pixel_size_nm is None else "nm"}
            scale, first = stride * pixel, (stride - 1) / 2 * pixel
        axes.append(
            {"_type": "UniformDataAxis", "name": name, "size": int(size), "scale": scale, "offset": first}
            | {"navigate": name == "time", "is_binned": False}
            | known
        )
    return axes
