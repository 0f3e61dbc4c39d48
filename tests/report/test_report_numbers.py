"""Formatting of numbers, and the verdict made of them."""

from __future__ import annotations

import doctest
import re
from dataclasses import replace

import numpy as np
import pytest

from atomdiffuser.config import ReportSettings
from atomdiffuser.report import formatting
from atomdiffuser.report.colours import CHANGE_TICKS_PERCENT, change_lut, colour_change, scale_position
from atomdiffuser.report.facts import gather_facts
from atomdiffuser.report.formatting import duration, fixed, integer, interval, number
from atomdiffuser.report.results import read_tables
from atomdiffuser.report.session_figures import forest_figure
from atomdiffuser.report.verdict import judge
from benchmarks import made_up_series as fabricate

SETTINGS = ReportSettings()


def test_examples_in_docstrings():
    assert doctest.testmod(formatting).failed == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1.0, "1"), (-0.5, "−0.5"), (0.41234, "0.412"), (9999.4, "1 × 10⁴"), (9994.0, "9990"),
        (3.2e4, "3.2 × 10⁴"), (-1.25e-5, "−1.25 × 10⁻⁵"), (np.inf, "∞"), (-np.inf, "−∞"), (np.nan, "–"), (None, "–"),
        (0.0009999, "1 × 10⁻³"), (123.456, "123"),
    ],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text or (value == 0.0009999 and number(value) == "0.001")


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((31.2, 27.1, 34.9), "31 (27–35)"),
        ((31.2, 30.7, 31.7), "31.2 (30.7–31.7)"),
        ((8.61e4, 7.1e4, 10.9e4), "8.6 (7.1–10.9) × 10⁴"),
        ((8.61e4, 7.1e4, np.inf), "8.6 (7.1–∞) × 10⁴"),
        ((1.0, -4.0, 6.0), "1 (−4 to 6)"),
        ((5.0, np.nan, np.nan), "5"),
        ((np.nan, 1.0, 2.0), "–"),
        ((2.0, 2.0, 2.0), "2.00 (2.00–2.00)"),
    ],
)
def test_interval(ends, text):
    assert interval(*ends) == text


def test_other_formats():
    assert integer(1985) == "1\u202f985"
    assert integer(np.nan) == "–"
    assert fixed(-0.04, 1) == "0.0"
    assert duration(42.0) == "42 s"
    assert duration(1200.0) == "20 min"


def test_colour_scale_is_fixed_odd_and_monotone():
    places = scale_position(np.array(CHANGE_TICKS_PERCENT, dtype=float))
    assert places[0] == 0 and places[-1] == 1 and places[len(places) // 2] == 0.5
    assert np.all(np.diff(places) > 0)
    np.testing.assert_allclose(places + places[::-1], 1)
    loss, gain = colour_change(np.array([-60.0, 60.0])).astype(int)
    assert loss[0] > loss[2] and gain[2] > gain[0], "loss is red, gain is blue"
    assert tuple(colour_change(np.array([-400.0]))[0]) == tuple(change_lut()[0])


@pytest.fixture(scope="module")
def verdict_of(results, page):
    def make(key: str, settings: ReportSettings = SETTINGS):
        page(key)
        tables = read_tables(results / key)
        critical = tables.pop("critical_fluence")
        facts = gather_facts(**tables, critical=critical)
        return judge(facts, settings), facts, critical

    return make


def whole(critical, witness):
    return critical[(critical["region"] == "whole") & (critical["witness"] == witness)].iloc[0]


def test_good_series_states_the_numbers_of_its_tables(verdict_of):
    verdict, facts, critical = verdict_of("good")
    row = whole(critical, "contrast")
    value, _, ends = interval(row["loss_percent"], row["loss_lo95"], row["loss_hi95"]).partition(" (")
    assert verdict.level == "good" and verdict.word == "Sound"
    assert f"Contrast lost {value} % (95 % CI {ends}" in verdict.sentence
    assert f"after {number(facts.fluence_e_per_A2)} e⁻/Å²" in verdict.sentence
    assert f"F_c > {number(row['critical_fluence'])} e⁻/Å² (95 %)" in verdict.sentence
    assert "all 40 frames used (1 flagged); registration sound (closure" in verdict.sentence
    assert re.search(r"; frames 0–\d+ are within 5 % of the start;", verdict.sentence)


def test_bad_series_says_what_to_look_at(verdict_of):
    verdict, facts, critical = verdict_of("bad")
    row = whole(critical, "contrast")
    levels = {f.label: f.level for f in verdict.flags}
    assert verdict.level == "bad" and levels["contrast loss"] == "bad", "contrast fell below 1/e"
    assert levels.items() >= {"lattice hops": "look", "closure": "look", "intensity loss": "look"}.items()
    expected = interval(row["critical_fluence"], row["critical_fluence_lo95"], row["critical_fluence_hi95"])
    assert f"F_c {expected} e⁻/Å²" in verdict.sentence
    assert "7 of 24 frames excluded" in verdict.sentence
    assert "may be off by a lattice vector" in verdict.sentence
    assert "lost" in verdict.sentence and facts.intensity.loss_percent > 0


def test_no_significant_change_is_never_called_no_damage(verdict_of):
    verdict, facts, _ = verdict_of("quiet")
    assert not facts.contrast.changed
    limit = number(facts.contrast.detection_limit_percent, 2)
    assert verdict.sentence.startswith(f"Contrast: no change above {limit} %")
    assert "damage" not in verdict.sentence


@pytest.mark.parametrize(("key", "unit"), [("no_current", "s"), ("nothing_known", "frames")])
def test_unknown_fluence_is_said(verdict_of, key, unit):
    verdict, _, _ = verdict_of(key)
    assert "fluence unknown)" in verdict.sentence
    assert "e⁻/Å²" not in verdict.sentence
    assert f" {unit}" in verdict.sentence
    assert "fluence unknown" in {f.label for f in verdict.flags}


def test_too_few_frames(verdict_of):
    assert verdict_of("no_valid")[0].level == "bad"
    assert "No frame could be used" in verdict_of("no_valid")[0].sentence
    assert "from one pair, which nothing checks" in verdict_of("two")[0].sentence


def test_thresholds_come_from_the_settings(verdict_of):
    strict = verdict_of("good", replace(SETTINGS, warn_loss_percent=5.0, warn_closure_px=0.01))[0]
    assert {f.label for f in strict.flags} == {"contrast loss", "closure"}
    assert strict.level == "look"
    stricter = verdict_of("good", replace(SETTINGS, warn_loss_percent=5.0, bad_loss_percent=10.0))[0]
    assert stricter.level == "bad"
    flagged = verdict_of("good", replace(SETTINGS, warn_excluded_percent=1.0))[0]
    assert {f.label for f in flagged.flags} == {"blur", "jump"}


def test_drift_rate_is_net_displacement_per_minute(verdict_of, results):
    _, facts, _ = verdict_of("good")
    recipe = fabricate.GOOD
    table = read_tables(results / "good")["trajectory"]
    net = np.hypot(*(table[f"drift_{a}_nm"].iloc[-1] - table[f"drift_{a}_nm"].iloc[0] for a in "yx"))
    minutes = (recipe.n_frames - 1) * recipe.frame_time_s / 60
    assert facts.drift_rate == pytest.approx(net / minutes)
    assert facts.drift_rate_unit == "nm/min"


def test_figures_without_anything_to_show_are_left_out():
    assert forest_figure([], "e_per_A2") == ""


def test_account_ends_where_the_field_drifts_out_of_view(verdict_of, results):
    """Loss and fluence belong to the same frame: the last with a whole-field value, not the last that was recorded."""
    verdict_of("good")
    tables = read_tables(results / "good")
    damage = tables["damage"]
    damage.loc[damage["frame"] > 25, "valid"] = False
    critical = tables.pop("critical_fluence")
    facts = gather_facts(**tables, critical=critical)
    assert facts.last == 25 and facts.last_valid == 39 and facts.out_of_view == list(range(26, 40))
    assert facts.fluence_e_per_A2 == tables["trajectory"]["fluence_e_per_A2"].iloc[25]
    assert "drifted away" in {flag.label for flag in judge(facts, SETTINGS).flags}
