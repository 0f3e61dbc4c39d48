"""Regions drawn by hand, from each kind of file, in pixels and nm; nothing outside the session is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from atomdiffuser.damage.region_files import inside_session, session_regions
from atomdiffuser.errors import SettingsError

SHAPE, PIXEL = (40, 60), (0.5, 0.5)
BOX = [[5, 10], [5, 30], [15, 30], [15, 10]]  # (y, x)


def box() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[5:16, 10:31] = True
    return mask


def agrees(mask: np.ndarray) -> bool:
    """The box, up to pixels on its outline."""
    inner = np.zeros(SHAPE, bool)
    inner[6:15, 11:30] = True
    return bool(mask[inner].all() and not mask[~box()].any())


def test_polygons_of_the_session_file_in_pixels_and_nm(tmp_path) -> None:
    in_nm = [[y * 0.5, x * 0.5] for y, x in BOX]
    given = [{"name": "a", "polygon": BOX}, {"name": "b", "polygon": in_nm, "unit": "nm"}]
    a, b = session_regions(given, tmp_path, SHAPE, PIXEL)
    assert (a.name, b.name) == ("a", "b") and agrees(a.mask) and np.array_equal(a.mask, b.mask)
    assert a.outline_px == tuple(map(tuple, BOX)) and b.outline_px == a.outline_px


def test_geojson_has_x_first_names_and_holes(tmp_path) -> None:
    ring = [[x, y] for y, x in BOX] + [[BOX[0][1], BOX[0][0]]]
    hole = [[18, 8], [22, 8], [22, 12], [18, 12], [18, 8]]
    feature = lambda rings, **p: {
        "type": "Feature",
        "properties": p,
        "geometry": {"type": "Polygon", "coordinates": rings},
    }
    content = {"type": "FeatureCollection", "features": [feature([ring], name="full"), feature([ring, hole])]}
    (tmp_path / "roi.geojson").write_text(json.dumps(content))
    full, open_ = session_regions([{"file": "roi.geojson"}], tmp_path, SHAPE, None)
    assert full.name == "full" and agrees(full.mask) and open_.name == "roi_2"
    assert full.mask[10, 20] and not open_.mask[10, 20] and open_.mask[7, 12]


def test_napari_shapes(tmp_path) -> None:
    rows = ["index,shape-type,vertex-index,axis-0,axis-1,axis-2"]
    rows += [f"0,rectangle,{i},3,{y},{x}" for i, (y, x) in enumerate(BOX)]
    rows += [f"1,ellipse,{i},3,{y},{x}" for i, (y, x) in enumerate(BOX)]
    (tmp_path / "shapes.csv").write_text("\n".join(rows))
    rectangle, ellipse = session_regions([{"file": "shapes.csv", "name": "roi"}], tmp_path, SHAPE, None)
    assert (rectangle.name, ellipse.name) == ("roi_1", "roi_2") and agrees(rectangle.mask)
    assert ellipse.mask[10, 20] and not ellipse.mask[6, 11] and ellipse.mask.sum() == pytest.approx(157, abs=12)


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".png"])
def test_label_images(tmp_path, suffix) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[box()], labels[30:] = 1, 4
    path = tmp_path / f"labels{suffix}"
    if suffix == ".npy":
        np.save(path, labels)
    elif suffix == ".tif":
        tifffile.imwrite(path, labels)
    else:
        from PIL import Image

        Image.fromarray(labels).save(path)
    first, second = session_regions([{"file": path.name}], tmp_path, SHAPE, None)
    assert np.array_equal(first.mask, box()) and second.mask[35, 5] and first.name == "labels_1"


def test_no_path_leads_out_of_the_session(tmp_path) -> None:
    session, outside = tmp_path / "session", tmp_path / "secret.csv"
    session.mkdir()
    outside.write_text("index,axis-0,axis-1\n")
    (session / "link.csv").symlink_to(outside)
    for file in ("../secret.csv", str(outside), "link.csv"):
        with pytest.raises(SettingsError, match="outside the session folder"):
            inside_session(session, file)
    with pytest.raises(SettingsError, match="there is no file"):
        inside_session(session, "missing.csv")
    (session / "roi.xlsx").write_text("")
    with pytest.raises(SettingsError, match="no GeoJSON, shapes CSV or label image"):
        inside_session(session, "roi.xlsx")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.geojson", "{", "cannot be read"),
        ("a.geojson", '{"type": "LineString", "coordinates": [[0, 0], [1, 1]]}', "encloses no region"),
        ("a.csv", "x,y\n1,2\n", "expected the columns"),
        ("a.csv", "index,shape-type,vertex-index,axis-0,axis-1\n0,line,0,1,1\n0,line,1,2,2\n", "encloses no region"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name, content, message) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError, match=message):
        session_regions([{"file": name}], tmp_path, SHAPE, None)


def test_labels_of_another_shape_and_nm_without_a_pixel_size(tmp_path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros((3, 3), int))
    with pytest.raises(SettingsError, match=r"shape \(3, 3\)"):
        session_regions([{"file": "labels.npy"}], tmp_path, SHAPE, None)
    with pytest.raises(SettingsError, match="need a pixel size"):
        session_regions([{"name": "a", "polygon": BOX, "unit": "nm"}], tmp_path, SHAPE, None)
