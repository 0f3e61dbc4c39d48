"""Every number of a series page is the tables' number: exact values bit by bit, texts by the common format."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from pages import Page, pick, same

from atomdiffuser.config import ReportSettings
from atomdiffuser.io.tables import read_table
from atomdiffuser.report.closures import AFFINE_COLUMNS, loop_closures
from atomdiffuser.report.facts import witness_of
from atomdiffuser.report.fits import curve_shape
from atomdiffuser.report.formatting import integer, interval, number, p_value
from atomdiffuser.report.results import open_results
from atomdiffuser.report.verdict import critical_cell, judge

ALL = ["good", "bad", "no_current", "two", "no_valid", "old"]


@pytest.mark.parametrize("key", ALL)
def test_regions(page, results, key):
    records = Page(page(key)).records("regions")
    critical = read_table(results / key / "critical_fluence.csv")
    damage = read_table(results / key / "damage.parquet")
    last = open_results(results / key).facts.last
    end = damage[damage["frame"] == last].set_index("region")
    assert [r["region"][0] for r in records] == list(dict.fromkeys(critical["region"]))
    for record in records:
        region = record["region"][0]
        for witness in dict.fromkeys(critical["witness"]):
            found = witness_of(critical, region, witness)
            if f"{witness} lost (%)" not in record:
                assert not found.measured
                continue
            value, text = record[f"{witness} lost (%)"]
            assert same(value, found.loss_percent)
            assert text == interval(found.loss_percent, found.loss_lo95, found.loss_hi95)
        contrast = witness_of(critical, region, "contrast")
        value, text = pick(record, "contrast falls to 1/e")
        assert same(value, contrast.critical) and text == (critical_cell(contrast) or "–")
        assert same(record["pixels"][0], float(end.loc[region, "n_px"]))
        assert same(record["coverage (%)"][0], float(end.loc[region, "coverage"]))
        if "usable frames" in record:
            assert same(record["usable frames"][0], contrast.number("usable_last_frame"))


@pytest.mark.parametrize("key", ["bad", "old", "no_current"])
def test_kinetics(page, results, key):
    records = Page(page(key)).records("kinetics")
    critical = read_table(results / key / "critical_fluence.csv").set_index(["region", "witness"])
    assert len(records) == len(critical)
    for record in records:
        expected = critical.loc[(record["region"][0], record["witness"][1])]
        get = lambda c, expected=expected: float(expected[c]) if c in expected else np.nan
        assert record["model"][1] == expected["model"]
        assert same(pick(record, "falls to 1/e")[0], get("critical_fluence"))
        assert same(record["to one half at"][0], get("half_fluence"))
        assert same(record["rate (% per 1000)"][0], get("rate_percent_per_1000"))
        assert same(record["weight (%)"][0], get("weight"))
        assert same(record["loss (%)"][0], get("loss_percent"))
        assert record["loss (%)"][1] == number(expected["loss_percent"])
        p = get("p_corrected" if "p_corrected" in expected else "p_value")
        assert same(record["p"][0], p) and record["p"][1] == p_value(p)
        assert same(record["ΔAICc"][0], get("aicc_constant") - get("aicc"))
        assert same(record["onset frame"][0], get("onset_frame"))
        assert record["frames fitted"][1] == integer(expected["n_frames"])


def test_weights_of_curves(page, results):
    read = Page(page("bad"))
    kinetics = read_table(results / "bad" / "kinetics.csv")
    shown = read.data["weights"]["whole"]
    for witness in ("contrast", "intensity", "crystallinity"):
        rows = kinetics[(kinetics["region"] == "whole") & (kinetics["witness"] == witness)].set_index("model")
        assert sum(curve["weight"] for curve in shown[witness]) == pytest.approx(1, abs=0.03)
        for curve in shown[witness]:
            expected = rows.loc[curve["model"].replace(" + ", "+")]
            assert curve["weight"] == expected["weight"] and curve["chosen"] == expected["chosen"]
            share = rf"{re.escape(curve['model'])}</span>.{{0,90}}?>{100 * expected['weight']:.0f} %<"
            assert re.search(share, read.source), "the bar without JavaScript says the same"


def test_fourier_spots(page, results):
    records = Page(page("good")).records("spot-table")
    table = read_table(results / "good" / "spot_fluence.csv")
    assert len(records) == len(table) == 3
    for record, (_, expected) in zip(records, table.iterrows(), strict=True):
        assert same(record["spacing (nm)"][0], expected["d_nm"])
        assert same(record["spots"][0], float(expected["n_spots"]))
        assert same(record["lost (%)"][0], expected["loss_percent"])
        assert record["lost (%)"][1] == interval(*expected[["loss_percent", "loss_lo95", "loss_hi95"]])
        assert same(pick(record, "falls to 1/e")[0], expected["critical_fluence"])
        assert same(record["p"][0], expected["p_corrected"])


def test_columns_and_beam(page, results):
    read = Page(page("bad"))
    columns = read_table(results / "bad" / "columns.parquet")
    found = {row[0][1]: row[1][0] for row in read.tables["columns"]}
    assert float(found["columns found"]) == len(columns)
    for state, label in (("kept", "kept their place"), ("lost", "lost"), ("hopped", "hopped")):
        assert float(found[label]) == (columns["state"] == state).sum()
    assert float(found["mean square displacement, median (px²)"]) == pytest.approx(np.median(columns["msd_px2"]))
    exposure = read_table(results / "bad" / "exposure.csv")
    beam = {row[0][1]: row[1] for row in read.tables["exposure"]}
    recorded = float(beam["fluence of the recorded scans"][0])
    assert recorded == pytest.approx(exposure["fluence_frame_e_per_A2"].sum(), rel=1e-12)
    assert float(beam["mean flux while scanning"][0]) == np.median(exposure["flux_e_per_A2_s"])
    assert "not counted" in beam["flyback and waiting, if the beam stayed on"][1]
    assert beam["calibration of the current, 1 σ"] == ("7.0", "7 % (assumed)")
    assert beam["dark level"][1] == "4 counts (vacuum)"


def test_loops(page, results):
    read = Page(page("bad"))
    closures = loop_closures(read_table(results / "bad" / "pairs.parquet"), (192, 224))
    assert closures["closure_px"].iloc[0] > 5, "the made-up hops are a lattice vector off"
    for row, (_, expected) in zip(read.rows("loops"), closures.head(5).iterrows(), strict=True):
        assert [int(cell[1]) for cell in row[:3]] == [expected["first"], expected["middle"], expected["last"]]
        assert same(row[3][0], expected["closure_px"])
    over = int((closures["closure_px"] > ReportSettings().warn_closure_px).sum())
    assert f"{integer(over)} above the threshold" in read.source


def test_loop_that_closes_has_no_closure():
    def pair(a: int, b: int, y: float, shear: float = 0.01) -> dict:
        affine = dict(zip(AFFINE_COLUMNS, (1, shear, y, 0, 1, 0), strict=True))
        return {"reference": a, "moving": b, "valid": True, **affine}

    # (y, x) → (y + 0.01·x + b, x) twice adds the shears and the shifts
    pairs = [pair(0, 1, 2.0), pair(1, 2, 3.0), pair(0, 2, 5.0, 0.02)]
    assert loop_closures(pd.DataFrame(pairs), (40, 60))["closure_px"].tolist() == pytest.approx([0], abs=1e-9)
    pairs[2]["a_y"] = 9.0
    assert loop_closures(pd.DataFrame(pairs), (40, 60))["closure_px"].tolist() == pytest.approx([4])
    assert loop_closures(pd.DataFrame(pairs[:2]), (40, 60)).empty


def test_strips_and_flags(page, results):
    read = Page(page("bad"))
    trajectory = read_table(results / "bad" / "trajectory.parquet")
    columns = {"closure": "closure_px", "1 σ of the drift": "displacement_sigma_px", "sharpness": "sharpness"}
    columns |= {"hop probability": "hop_probability", "line jitter": "line_jitter_px"}
    strips = {s["label"]: s["values"] for s in read.data["strips"]}
    assert set(strips) == set(columns)
    for label, column in columns.items():
        found = np.array([np.nan if v is None else v for v in strips[label]])
        np.testing.assert_allclose(found, trajectory[column], rtol=1e-5)
    flags = {row[0][1].split("less")[0].split("far")[0].split("shows")[0]: row for row in read.rows("flag-table")}
    assert flags["jump"][1][1] == "5" and flags["jump"][4][1] == "frame 5: moved 3.2 px, usual is 0.3 px"
    assert flags["blank"][1][1] == "7, 15, 17, 19" and flags["blank"][3][1] == "0"


@pytest.mark.parametrize("key", ALL)
def test_verdict_is_on_the_page(page, results, key):
    source = Page(page(key)).source
    sentence = judge(open_results(results / key).facts, ReportSettings()).sentence
    text = re.search(r'<p class="sentence">(.*?)</p>', source, re.DOTALL)[1]
    text = re.sub(r"<[^>]*>", "", text).replace("\u00a0", " ").replace("&gt;", ">")
    assert text == re.sub(r"\b([Ftn])_c\b", r"\1c", sentence)


@pytest.mark.parametrize(
    ("row", "at", "expected"),
    [
        ({"model": "constant"}, 5.0, 1.0),
        ({"model": "exponential", "scale": 10.0}, 10.0, np.exp(-1)),
        ({"model": "exponential", "scale": -10.0}, 10.0, np.e),
        ({"model": "linear", "scale": 10.0}, 4.0, 0.6),
        ({"model": "linear", "scale": 10.0}, 40.0, 0.0),
        ({"model": "latency", "scale": 10.0, "latency": 5.0}, 15.0, np.exp(-1)),
        ({"model": "latency", "scale": 10.0, "latency": 5.0}, 4.0, 1.0),
        ({"model": "stretched", "scale": 10.0, "exponent": 0.5}, 40.0, np.exp(-2)),
        ({"model": "avrami", "scale": 10.0, "exponent": 2.0}, 20.0, np.exp(-4)),
        ({"model": "exponential+offset", "scale": 10.0, "offset": 0.25}, 10.0, 0.25 + 0.75 * np.exp(-1)),
    ],
)
def test_curves_are_drawn_as_they_are_defined(row, at, expected):
    defaults = {"scale": 1.0, "exponent": np.nan, "latency": np.nan, "offset": np.nan}
    assert curve_shape({**defaults, **row}, np.array([at]))[0] == pytest.approx(expected)


def test_unknown_curve_is_not_drawn():
    with pytest.raises(ValueError, match="unknown curve 'spline'"):
        curve_shape({"model": "spline", "scale": 1.0}, np.array([1.0]))


def test_absent_results_are_said(page):
    source = Page(page("old")).source
    for gap in ("Maps of damage rate", "Atomic columns", "Weights of alternative curves", "Flyback", "Quality flags"):
        assert f'<p class="absent">{gap}' in source
    assert source.count('class="absent"') > Page(page("good")).source.count('class="absent"')
