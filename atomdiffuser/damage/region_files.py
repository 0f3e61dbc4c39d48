"""Regions that the user drew: polygons in session.yaml, GeoJSON, napari shapes, label images → masks.

Corners are (y, x) on the reference frame, in pixels (first pixel centre at 0, 0) or nm. GeoJSON keeps its own order of
coordinates, (x, y). A path never leaves the session folder.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atomdiffuser.damage.regions import RegionMask
from atomdiffuser.errors import SettingsError

LABEL_SUFFIXES = (".tif", ".tiff", ".png", ".npy")
SUFFIXES = (".geojson", ".json", ".csv", *LABEL_SUFFIXES)
Polygon = list[np.ndarray]  # outer ring first, then holes, each (n, 2) of (y, x)


def session_regions(
    given: Sequence[Mapping[str, Any]],
    session: Path,
    shape: tuple[int, int],
    pixel_size_nm: tuple[float, float] | None,
) -> list[RegionMask]:
    """Masks of the regions that session.yaml lists.

    Parameters
    ----------
    given
        Entries of `regions`: {name, polygon, unit} or {file, unit, name}.
    session
        The session folder, which files are relative to and must not leave.
    shape
        (y, x) of the reference frame.
    pixel_size_nm
        Needed for corners in nm.

    Raises
    ------
    SettingsError
        For a file outside the session, one that cannot be read, or nm without a pixel size.
    """
    found: list[RegionMask] = []
    for entry in given:
        unit = entry.get("unit", "px")
        if unit == "nm" and pixel_size_nm is None:
            raise SettingsError(
                "regions: corners in nm need a pixel size; set pixel_size_nm in session.yaml, or use px"
            )
        scale = np.array(pixel_size_nm if unit == "nm" else (1.0, 1.0), float)
        if "polygon" in entry:
            named = {entry["name"]: [[np.asarray(entry["polygon"], float)]]}
        else:
            path = inside_session(session, entry["file"])
            if path.suffix.lower() in LABEL_SUFFIXES:
                found += _label_masks(path, shape, entry.get("name"))
                continue
            named = _read_polygons(path, entry.get("name"))
        for name, polygons in named.items():
            rings = [[ring / scale for ring in polygon] for polygon in polygons]
            if not all(np.isfinite(ring).all() for polygon in rings for ring in polygon):
                raise SettingsError(f"regions: a corner of {name} is no finite number; correct it")
            outline = tuple(map(tuple, rings[0][0].tolist())) if len(rings) == 1 else None
            found.append(RegionMask(name, _rasterise(rings, shape), "session", outline))
    return found


def inside_session(session: Path, file: str) -> Path:
    """The path of a file of the session. Raises SettingsError where it leads out of the folder, links included."""
    root = Path(session).resolve()
    path = (root / file).resolve()
    if Path(file).is_absolute() or not path.is_relative_to(root):
        raise SettingsError(f"regions: {file} is outside the session folder; copy it into {root}")
    if not path.is_file():
        raise SettingsError(f"regions: there is no file {file} in {root}")
    if path.suffix.lower() not in SUFFIXES:
        raise SettingsError(f"regions: {file} is no GeoJSON, shapes CSV or label image ({', '.join(SUFFIXES)})")
    return path


def _read_polygons(path: Path, name: str | None) -> dict[str, list[Polygon]]:
    try:
        if path.suffix.lower() == ".csv":
            return _napari_shapes(path, name)
        return _geojson(path, name)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise SettingsError(f"regions: {path.name} cannot be read ({error})") from error


def _geojson(path: Path, name: str | None) -> dict[str, list[Polygon]]:
    """Polygons and multipolygons of a FeatureCollection, Feature or bare geometry (RFC 7946)."""
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    features = content.get("features") or [content if content.get("type") == "Feature" else {"geometry": content}]
    found: dict[str, list[Polygon]] = {}
    for number, feature in enumerate(features):
        geometry, properties = feature["geometry"], feature.get("properties") or {}
        classified = properties.get("classification") or {}
        own = properties.get("name") or feature.get("id") or (classified.get("name") if classified else None)
        kind, coordinates = geometry["type"], geometry["coordinates"]
        if kind not in ("Polygon", "MultiPolygon"):
            raise ValueError(f"a {kind} encloses no region; use Polygon or MultiPolygon")
        polygons = [coordinates] if kind == "Polygon" else coordinates
        swapped = [[np.asarray(ring, float)[:, 1::-1] for ring in polygon] for polygon in polygons]
        found[_name(own, name, path, number, len(features))] = swapped
    return found


def _napari_shapes(path: Path, name: str | None) -> dict[str, list[Polygon]]:
    """Shapes as napari saves them: index, shape-type, vertex-index, axis-0 (y), axis-1 (x)."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"index", "axis-0", "axis-1"} <= set(rows[0]):
        raise ValueError("expected the columns index, shape-type, vertex-index, axis-0, axis-1")
    axes = sorted(k for k in rows[0] if k.startswith("axis-"))[-2:]  # shapes drawn on a stack lead with the frame
    corners: dict[str, list[list[float]]] = {}
    kinds = {row["index"]: row.get("shape-type", "polygon") for row in rows}
    for row in rows:
        corners.setdefault(row["index"], []).append([float(row[a]) for a in axes])
    found = {}
    for number, (index, points) in enumerate(corners.items()):
        kind, ring = kinds[index], np.array(points)
        if kind not in ("polygon", "rectangle", "ellipse"):
            raise ValueError(f"shape {index} is a {kind}, which encloses no region")
        found[_name(None, name, path, number, len(corners))] = [[_ellipse(ring) if kind == "ellipse" else ring]]
    return found


def _ellipse(box: np.ndarray) -> np.ndarray:
    """The ellipse in a box of four corners, as a polygon."""
    centre, half_a, half_b = box.mean(0), (box[1] - box[0]) / 2, (box[3] - box[0]) / 2
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)[:, None]
    return centre + np.cos(angle) * half_a + np.sin(angle) * half_b


def _label_masks(path: Path, shape: tuple[int, int], name: str | None) -> list[RegionMask]:
    try:
        labels = _read_labels(path, tuple(shape))
    except Exception as error:  # readers of pictures raise whatever they stumble over
        raise SettingsError(f"regions: {path.name} cannot be read ({error})") from error
    if labels.shape != tuple(shape) or labels.dtype.kind not in "iub":
        raise SettingsError(
            f"regions: {path.name} has shape {labels.shape} and type {labels.dtype}; expected whole numbers, one for "
            f"each of the {shape[0]} × {shape[1]} pixels of a frame"
        )
    values = [v for v in np.unique(labels).tolist() if v]
    return [RegionMask(_name(None, name, path, i, len(values)), labels == v) for i, v in enumerate(values)]


def _read_labels(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The picture, or an empty one of its shape when that is not the wanted one: nothing of it is decoded then."""
    if path.suffix.lower() == ".npy":
        return np.array(np.load(path, allow_pickle=False, mmap_mode="r"))
    if path.suffix.lower() == ".png":
        from PIL import Image

        with Image.open(path) as picture:
            found = (picture.height, picture.width)
            return np.asarray(picture) if found == shape else np.broadcast_to(np.uint8(0), found)
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        return series.asarray() if series.shape == shape else np.broadcast_to(np.zeros((), series.dtype), series.shape)


def _name(own: Any, given: str | None, path: Path, number: int, of: int) -> str:
    if own:
        return str(own)
    stem = given or path.stem
    return stem if of == 1 else f"{stem}_{number + 1}"


def _rasterise(polygons: list[Polygon], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie inside; holes by the even-odd rule."""
    from skimage.measure import grid_points_in_poly

    mask = np.zeros(shape, bool)
    for polygon in polygons:
        inside = np.zeros(shape, bool)
        for ring in polygon:
            inside ^= grid_points_in_poly(shape, ring)
        mask |= inside
    return mask
