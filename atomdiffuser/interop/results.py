"""The results of one series, opened from its folder: tables as pandas, maps as xarray, frames as `FrameSeries`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atomdiffuser.errors import StoreError
from atomdiffuser.io.map_store import DecayMaps, read_maps, read_still_maps
from atomdiffuser.io.remote import Place, location
from atomdiffuser.io.store import read_frames
from atomdiffuser.io.tables import read_table
from atomdiffuser.series import FrameSeries

if TYPE_CHECKING:
    import pandas as pd
    import xarray

TABLES = {
    "pairs": "pairs.parquet",
    "trajectory": "trajectory.parquet",
    "damage": "damage.parquet",
    "critical_fluence": "critical_fluence.csv",
    "kinetics": "kinetics.csv",
    "spots": "spots.parquet",
    "spot_fluence": "spot_fluence.csv",
    "columns": "columns.parquet",
    "exposure": "exposure.csv",
}


def open_results(folder: str | Place) -> SeriesResults:
    """Open the results of one series, `<session>/results/<series>`, of this machine or in an object store (`s3://…`).

    Raises
    ------
    StoreError
        When the folder holds no frames.ome.zarr; the message says what to do.

    Examples
    --------
    >>> open_results("nowhere")
    Traceback (most recent call last):
    atomdiffuser.errors.StoreError: nowhere: no results of a series here; give <session>/results/<series>
    """
    folder = location(folder)
    if not (folder / "frames.ome.zarr").is_dir():
        raise StoreError(f"{folder}: no results of a series here; give <session>/results/<series>")
    return SeriesResults(folder)


@dataclass(frozen=True)
class SeriesResults:
    """What the workflow stored of one series; everything is read when it is asked for.

    Attributes
    ----------
    folder
        `<session>/results/<series>`.
    """

    folder: Place

    @property
    def frames(self) -> FrameSeries:
        """Frames as recorded, lazily."""
        return read_frames(self.folder / "frames.ome.zarr")

    @property
    def aligned(self) -> FrameSeries:
        """Drift-corrected frames, lazily; NaN where a frame did not look."""
        return read_frames(self.folder / "aligned.ome.zarr")

    @property
    def maps(self) -> DecayMaps:
        """Intensity and contrast maps with σ and coverage, lazily."""
        return read_maps(self.folder / "decay.zarr")

    def table(self, name: str) -> pd.DataFrame:
        """A stored table by name, such as "trajectory" or "critical_fluence"; `.attrs` hold its metadata.

        Raises
        ------
        StoreError
            When there is no table of that name, or the stage that writes it has not run.
        """
        if name not in TABLES:
            raise StoreError(f"no table is called {name!r}; there are {', '.join(TABLES)}")
        return read_table(self.folder / TABLES[name])

    def dataset(self) -> xarray.Dataset:
        """Decay maps and maps of the whole series as an xarray Dataset on (frame, y, x).

        Coordinates are time_s and fluence_e_per_A2 of each frame, y and x in nm (px where the pixel size is unknown);
        each variable carries its unit and what it means. Needs the extra `xarray`.
        """
        import xarray

        maps = self.maps
        pixel = maps.attributes.get("pixel_size_nm")
        still, still_attributes = read_still_maps(self.folder / "damage_maps.zarr")
        track = self.table("trajectory")
        places = {
            axis: _positions(n, maps.stride, 1.0 if pixel is None else pixel[side])
            for side, (axis, n) in enumerate(zip("yx", maps.intensity.shape[1:], strict=True))
        }
        coordinates = {
            "frame": np.arange(maps.intensity.shape[0]),
            "time_s": ("frame", track["time_s"].to_numpy(float), {"units": "s"}),
            "fluence_e_per_A2": ("frame", track["fluence_e_per_A2"].to_numpy(float), {"units": "e⁻/Å²"}),
            "y": ("y", places["y"], {"units": "px" if pixel is None else "nm"}),
            "x": ("x", places["x"], {"units": "px" if pixel is None else "nm"}),
        }
        variables: dict[str, Any] = {
            name: (("frame", "y", "x"), np.asarray(getattr(maps, name)[...]), {"long_name": text})
            for name, text in _MEANINGS.items()
        }
        unit = str(still_attributes.get("unit", ""))
        for name, values in still.items():
            label = name if name not in variables else f"{name}_map"
            variables[label] = (("y", "x"), values, {"long_name": name.replace("_", " "), "fluence_unit": unit})
        return xarray.Dataset(variables, coordinates, {"source": str(self.folder), "map_stride": maps.stride})


_MEANINGS = {
    "intensity": "mean signal above the dark level, ratio to the reference frame",
    "contrast": "lattice amplitude, ratio to the reference frame",
    "intensity_sigma": "1 σ of intensity",
    "contrast_sigma": "1 σ of contrast",
    "coverage": "share of the block inside the frame",
}


def _positions(n: int, stride: int, pixel: float) -> np.ndarray:
    """Centres of the blocks that the samples of a map are means of."""
    return (np.arange(n) * stride + (stride - 1) / 2) * pixel
