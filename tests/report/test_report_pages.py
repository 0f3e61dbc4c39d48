"""Pages as files: same numbers as the tables, nothing from elsewhere, small, and safe against hostile names."""

from __future__ import annotations

import base64
import json
import re
import shutil

import numpy as np
import pytest
from conftest import RECIPES, entry
from pages import Page, same

from atomdiffuser.config import ReportSettings
from atomdiffuser.errors import StoreError
from atomdiffuser.io.map_store import read_maps
from atomdiffuser.io.status import read_status
from atomdiffuser.io.tables import read_table
from atomdiffuser.report import images, svg
from atomdiffuser.report.facts import witness_of
from atomdiffuser.report.formatting import interval, number
from atomdiffuser.report.payload import chosen_states, to_json
from atomdiffuser.report.quality import ranges
from atomdiffuser.stages.report import report
from atomdiffuser.stages.summary import summary
from benchmarks import made_up_series as fabricate

MB = 1_000_000


def test_curves_and_trajectory_in_the_page_are_the_tables(page, results):
    data = Page(page("good")).data
    damage = read_table(results / "good" / "damage.parquet")
    whole = damage[damage["region"] == "whole"]
    for name in ("contrast", "contrast_lo95", "contrast_hi95", "intensity"):
        np.testing.assert_allclose(data["damage"][0][name], whole[name], rtol=1e-5)
    trajectory = read_table(results / "good" / "trajectory.parquet")
    np.testing.assert_allclose(data["frames"]["x"], trajectory["fluence_e_per_A2"], rtol=1e-5)
    np.testing.assert_allclose(data["drift"]["x"], trajectory["drift_x_nm"], rtol=1e-5, atol=1e-12)


def test_maps_in_the_page_are_the_stores(page, results):
    data = Page(page("good")).data["maps"]
    maps = read_maps(results / "good" / "decay.zarr")
    assert data["stride_px"] == maps.stride
    frames = [s["frame"] for s in data["states"]]
    assert frames[0] == 0 and frames[-1] == 39 and len(frames) == ReportSettings().max_states
    for state in data["states"][1::5]:
        decoded = np.frombuffer(base64.b64decode(state["contrast"]), "<i2").reshape(data["shape"])
        stored = np.asarray(maps.contrast[state["frame"]])
        assert np.array_equal(decoded == data["unseen"], np.isnan(stored))
        seen = np.isfinite(stored)
        assert np.abs(decoded[seen] / data["steps"] - stored[seen]).max() <= 0.5 / data["steps"] + 1e-6


@pytest.mark.parametrize("key", sorted(RECIPES))
def test_nothing_is_loaded_from_elsewhere(page, key):
    read = Page(page(key))
    assert not [u for u in read.urls if "//" in u.split(",")[0] and not u.startswith("data:")]
    assert "default-src 'none'" in read.source
    assert "link" not in read.tags and "iframe" not in read.tags
    assert "@import" not in read.source and "url(http" not in read.source


def test_links_lead_to_files(page):
    output = page("good")
    links = [u for u in Page(output).urls if not u.startswith(("data:", "#")) and u != "../summary.html"]
    assert links and all((output.parent / link).exists() for link in links)


def test_hostile_name_is_text(page, session):
    for path in (page("hostile"), session.html):
        read = Page(path)
        assert "<script>alert" not in read.source
        assert fabricate.HOSTILE_NAME in "".join(read.texts.values())


def test_embedded_json_cannot_end_its_element():
    text = to_json({"name": "</script><!--\u2028&", "x": [float("nan"), np.float32(1.5), float("inf")]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"name": "</script><!--\u2028&", "x": [None, 1.5, None]}


@pytest.mark.parametrize(("key", "limit"), [("size_of_2048", 3 * MB), ("many", 3 * MB), ("good", 1 * MB)])
def test_series_pages_stay_small(page, key, limit):
    assert page(key).stat().st_size <= limit


def test_missing_fluence_names_what_to_write(page):
    source = Page(page("no_current")).source
    assert "the beam current is missing" in source
    assert "series:\n  no_current:\n    probe_current_pA: 30" in source
    assert "Fluence is unknown" not in Page(page("good")).source


def test_acquisition_gives_the_source_of_each_value(page):
    rows = {r[0][1]: (r[1][1], r[2][1]) for r in Page(page("good")).rows("acquisition")}
    assert rows["probe current"] == ("30 pA", "session.yaml")
    assert rows["dark level"] == ("4 counts", "assumed")
    assert rows["beam energy"] == ("200 kV", "file")
    assert rows["instrument"] == ("unknown", "unknown")
    assert rows["fluence per frame"][0].endswith("e⁻/Å²")


def test_report_is_recorded_and_leaves_nothing_half_written(page):
    output = page("good")
    status = read_status(output.with_name("status.json"))
    assert (status.state, status.stage, status.reason) == ("ok", "report", "")
    assert status.fingerprint == "sha256:5ca1ab1e" and status.source.endswith(".dm4")
    assert not list(output.parent.glob(".report.html*"))


def test_missing_results_name_the_stage_to_run(tmp_path):
    folder = fabricate.fabricate(tmp_path / "x", fabricate.TWO)
    for name, stage in (("damage.parquet", "damage"), ("pairs.parquet", "register"), ("decay.zarr", "decay")):
        hidden = (folder / name).rename(tmp_path / name)
        with pytest.raises(StoreError, match=f"run the {stage} stage"):
            report(folder, folder / "report.html", folder / "status.json", ReportSettings(), series_id="x", name="x")
        hidden.rename(folder / name)
    assert not (folder / "report.html").exists()


# ---- session


def test_session_table_is_the_series_tables(session, results):
    table = read_table(session.table).set_index("series")
    assert list(table.index) == [e.series_id for e in session.entries]
    for key in ("good", "bad", "two"):
        critical = read_table(results / key / "critical_fluence.csv")
        found = witness_of(critical, "whole", "contrast")
        assert table.loc[key, "contrast_loss_percent"] == found.loss_percent
        assert table.loc[key, "critical_fluence"] == found.critical
        assert table.loc[key, "lower_bound"] == found.lower_bound
        assert table.loc[key, "n_frames"] == RECIPES[key].n_frames
    assert table.loc["failed", "state"] == "failed" and "no pair converged" in table.loc["failed", "reason"]
    assert table.loc["map", "state"] == "skipped" and "spectrum image" in table.loc["map", "reason"]
    assert session.n_failed == 1


def test_session_page_holds_the_tables_numbers(session):
    table = read_table(session.table)
    rows = Page(session.html).rows("series")
    assert len(rows) == len(table)
    for row, (_, expected) in zip(rows, table.iterrows(), strict=True):
        if expected["state"] != "ok":
            assert expected["reason"].split(": ")[-1] in row[4][1]
            continue
        assert same(row[2][0], expected["n_frames"] - expected["n_excluded"])
        assert same(row[4][0], expected["contrast_loss_percent"])
        assert same(row[5][0], expected["intensity_loss_percent"])
        assert same(row[7][0], expected["critical_fluence"])
        assert same(row[8][0], expected["usable_last_frame"])
        assert same(row[9][0], expected["fluence_e_per_A2"])
        assert same(row[10][0], expected["drift_rate"])
        assert same(row[11][0], expected["closure_px"])
        assert interval(*expected[[f"contrast_loss_{e}" for e in ("percent", "lo95", "hi95")]]) in row[4][1]
        assert number(expected["closure_px"], 2) in row[11][1]
        assert expected["verdict"] in row[3][1]


def test_session_page_links_and_loads_nothing(session):
    read = Page(session.html)
    links = [u for u in read.urls if not u.startswith(("data:", "#"))]
    assert "good/report.html" in links and "summary.csv" in links
    assert all((session.html.parent / link).exists() for link in links)


def test_session_of_a_hundred_series_stays_small(page, results, tmp_path):
    page("good")
    for i in range(100):
        (tmp_path / f"s{i}").symlink_to(results / "good", target_is_directory=True)
    entries = [entry(f"s{i}", f"LLZO sample {i}, a rather long name") for i in range(100)]
    assert summary(tmp_path, entries, tmp_path / "summary.html", tmp_path / "summary.csv", ReportSettings()) == 0
    assert (tmp_path / "summary.html").stat().st_size <= MB


def test_session_without_results(tmp_path):
    entries = [entry("a", "never run"), entry("b", "broken", "failed", "truncated file")]
    assert summary(tmp_path, entries, tmp_path / "summary.html", tmp_path / "summary.csv", ReportSettings()) == 2
    text = Page(tmp_path / "summary.html").source
    assert "not analysed yet" in text and "truncated file" in text
    assert summary(tmp_path, [], tmp_path / "summary.html", tmp_path / "summary.csv", ReportSettings()) == 0
    assert "No series were found" in Page(tmp_path / "summary.html").source


def test_damaged_results_count_as_failed(page, results, tmp_path):
    page("two")
    shutil.copytree(results / "two", tmp_path / "two")
    (tmp_path / "two" / "damage.parquet").write_bytes(b"no table")
    entries = [entry("two", "two frames")]
    assert summary(tmp_path, entries, tmp_path / "summary.html", tmp_path / "summary.csv", ReportSettings()) == 1
    assert "run the damage stage again" in Page(tmp_path / "summary.html").source


# ---- pieces


def test_shrinking_keeps_the_mean_and_leaves_out_unseen_pixels():
    image = np.arange(35, dtype=float).reshape(5, 7)
    image[0, 0] = np.nan
    small, factor = images.shrink(image, 4)
    assert factor == 2 and small.shape == (3, 4)
    assert small[0, 0] == pytest.approx(np.mean([1, 7, 8]))
    assert small[2, 3] == 34


def test_aligned_frame_moves_a_bright_pixel_onto_the_reference():
    frames = np.zeros((2, 6, 9), np.uint16)
    frames[1, 3, 5] = 7  # drifted by y +1, x +2 from (2, 3)
    series = images.FrameSeries(frames)
    affine = np.array([[1.0, 0, 1], [0, 1, 2], [0, 0, 1]])
    aligned = images.aligned_frame(series, 1, affine)
    assert np.unravel_index(np.nanargmax(aligned), aligned.shape) == (2, 3)
    assert np.isnan(aligned[5]).all() and np.isnan(aligned[:, 7:]).all()
    raw, mean, origin = images.raw_and_aligned_mean(series, {1: affine}, 4)
    assert origin == (1, 2) and mean[1, 1] == 7 and raw[2, 3] == 7


def test_figures_keep_the_digits_of_their_words():
    with svg.figure(2, 2) as figure:
        axes = figure.subplots()
        axes.plot([0.123456, 1.987654], [0, 1], label="0.12345 nm")
        axes.legend()
        text = svg.to_svg(figure, "x", "from 0.123456")
    assert "0.12345 nm" in text and 'aria-label="from 0.123456"' in text
    assert not re.search(r'd="[^"]*\d\.\d{3}', text), "coordinates need no more than two decimals"


def test_tick_labels_are_text_and_powers_of_ten_formulas():
    with svg.figure(4, 3) as figure:
        axes = figure.subplots()
        axes.plot([-1, 1], [0, 3e6])
        axes.set(xticks=[-1, 0, 1], yticks=[0, 1e6, 3e6])
        text = svg.to_svg(figure, "x", "many")
    assert re.findall(r"<text[^>]*>([^<\n]+)</text>", text) == ["−1", "0", "1", "0", "1", "3"]
    assert "".join(re.findall(r"<tspan[^>]*>([^<]*)</tspan>", text)) == "×106"  # beside the axis, once
    assert "$" not in text


def test_scale_bar_is_a_round_length():
    share, label = images.scale_bar(2048, (0.02, 0.02))
    assert label == "10 nm" and share == pytest.approx(10 / 40.96)
    assert images.scale_bar(100, None) is None


def test_states_keep_both_ends():
    valid = np.ones(500, bool)
    valid[[0, 499]] = False
    assert chosen_states(valid, 1, 498, 5) == [1, 125, 249, 374, 498]
    assert chosen_states(np.array([True, True]), 0, 1, 12) == [0, 1]


def test_ranges():
    assert ranges([15, 7, 8, 16, 17, 3]) == "3, 7–8, 15–17"
