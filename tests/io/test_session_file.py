from __future__ import annotations

import jsonschema
import pytest

from atomdiffuser.errors import SettingsError
from atomdiffuser.io.readers import OVERRIDES
from atomdiffuser.io.session_file import DAMAGE_KEYS, read_session_file, session_schema


@pytest.fixture
def write(tmp_path):
    def write(yaml=None, tsv=None):
        if yaml is not None:
            (tmp_path / "session.yaml").write_text(yaml, encoding="utf-8")
        if tsv is not None:
            (tmp_path / "series.tsv").write_text(tsv, encoding="utf-8")
        return read_session_file(tmp_path)

    return write


def test_both_files_are_optional(tmp_path, write):
    found = read_session_file(tmp_path)
    assert found.overrides(["a"]) == {}
    assert found.is_listed(["a"])
    assert write("").overrides(["a"]) == {}
    assert write("defaults:\nseries:\n").overrides(["a"]) == {}


def test_the_more_specific_wins(write):
    found = write(
        "defaults: {probe_current_pA: 30, dwell_s: 1e-6, conditions: {coating: none, temperature_K: 300}}\n"
        "series:\n  a.dm4: {dwell_s: 4e-6, conditions: {coating: carbon}}\n",
        "series\tdwell_s\tgain_e\tconditions.holder\na.dm4\t2e-6\t0.5\tdouble tilt\n",
    )
    assert found.overrides(["a", "a.dm4"]) == {
        "probe_current_pA": 30,
        "dwell_s": 4e-6,
        "gain_e": 0.5,
        "conditions": {"coating": "carbon", "temperature_K": 300, "holder": "double tilt"},
    }
    assert found.overrides(["b"])["dwell_s"] == 1e-6
    assert found.is_listed(["a.dm4"])
    assert not found.is_listed(["b"])


def test_numbers_that_yaml_takes_for_text_are_numbers(write):
    overrides = write("defaults: {dwell_s: 2e-6, pixel_size_nm: [1e-2, .02], dark_level: '-3'}").overrides([])
    assert overrides == {"dwell_s": 2e-6, "pixel_size_nm": [0.01, 0.02], "dark_level": -3}


def test_frame_ranges(write):
    assert write("series: {a: {excluded_frames: [7, 2-4, 3]}}").overrides(["a"])["excluded_frames"] == [2, 3, 4, 7]
    sheet = "series\texcluded_frames\tskip\tpixel_size_nm\na\t1,3-4\tyes\t0.1,0.2\n"
    assert write("", sheet).overrides(["a"]) == {
        "excluded_frames": [1, 3, 4],
        "skip": True,
        "pixel_size_nm": [0.1, 0.2],
    }


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (
            "series: {foo: {probe_curent_pA: 1}}",
            r"series\.foo\.probe_curent_pA: unknown key; did you mean 'probe_current_pA'",
        ),
        ("serie: {}", r"session\.yaml: serie: unknown key; did you mean 'series'"),
        ("defaults: {dwell_s: -1}", r"session\.yaml: defaults\.dwell_s: -1 is not allowed; expected number > 0"),
        ("defaults: {dwell_s: 2 µs}", r"defaults\.dwell_s: '2 µs' is not allowed"),
        ("defaults: {dwell_s: .inf}", r"defaults\.dwell_s: inf is not allowed; expected a finite number"),
        ("defaults: {dark_level: .nan}", r"defaults\.dark_level: nan is not allowed"),
        ("defaults: {dwell_s: true}", r"defaults\.dwell_s: True is not allowed"),
        ("defaults: {pixel_size_nm: [1, 2, 3]}", r"defaults\.pixel_size_nm: \[1, 2, 3\] is not allowed"),
        ("series: {a: {excluded_frames: [-1]}}", r"excluded_frames\.0: -1 is not allowed"),
        ("series: {a: {excluded_frames: [9-3]}}", "'9-3' is no range"),
        ("series: {a: 5}", r"series\.a: 5 is not allowed; expected object"),
        ("series: {001: {}}", "line 1: the key 1 is no text; write it in quotes"),
        ("series: {a: {gain_e: 1}, a: {gain_e: 2}}", "line 1: a is given twice"),
        ("- a\n- b", "expected the keys `defaults` and `series`, found list"),
        ("defaults: {a: [}", r"session\.yaml: line 1: not valid YAML"),
        ("defaults: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_what_is_wrong_in_session_yaml_is_said_in_one_line(write, yaml, message):
    with pytest.raises(SettingsError, match=message) as caught:
        write(yaml)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("session.yaml: ")


@pytest.mark.parametrize(
    ("tsv", "message"),
    [
        ("", "has no column 'series'"),
        ("name\tgain_e\n", "has no column 'series'"),
        ("series\tgain\na\t1\n", r"series\.tsv: series\.a\.gain: unknown key; did you mean 'gain_e'"),
        ("series\tgain_e\na\tmuch\n", r"series\.tsv: series\.a\.gain_e: 'much' is not allowed"),
        ("series\tskip\na\tperhaps\n", r"series\.a\.skip: 'perhaps' is not allowed"),
        ("series\tgain_e\na\t1\na\t2\n", "line 3: a is given twice"),
        ("series\tgain_e\n\t1\n", "line 2: the cell 'series' is empty"),
        ("series\na\tb\n", "line 2: 2 cells for 1 columns"),
    ],
)
def test_what_is_wrong_in_series_tsv_is_said_in_one_line(write, tsv, message):
    with pytest.raises(SettingsError, match=message):
        write(None, tsv)


def test_files_in_another_encoding(tmp_path):
    (tmp_path / "session.yaml").write_bytes("defaults: {detector: Ä}".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"session\.yaml: cannot be read .*; save it as UTF-8"):
        read_session_file(tmp_path)
    (tmp_path / "session.yaml").write_bytes(b"\xef\xbb\xbfdefaults: {gain_e: 2}")
    (tmp_path / "series.tsv").write_bytes("\ufeffseries\r\nä\r\n".encode())
    assert read_session_file(tmp_path).overrides([]) == {"gain_e": 2}
    assert read_session_file(tmp_path).is_listed(["ä"])


def test_keys_that_match_nothing_or_too_much(write):
    found = write("series: {LLZO_1: {gain_e: 1}}")
    found.check_keys({"a/LLZO_1.dm4": ["LLZO_1"]})
    with pytest.raises(SettingsError, match=r"session\.yaml: series\.LLZO_1: no such series; did you mean 'LLZO_l'"):
        found.check_keys({"LLZO_l.dm4": ["LLZO_l"]})
    with pytest.raises(SettingsError, match="no such series; found: no series"):
        found.check_keys({})
    with pytest.raises(SettingsError, match=r"matches a/LLZO_1\.dm4, b/LLZO_1\.dm4; use the path"):
        found.check_keys({"a/LLZO_1.dm4": ["LLZO_1"], "b/LLZO_1.dm4": ["LLZO_1"]})


def test_the_schema_is_valid_closed_described_and_matches_what_readers_take():
    schema = session_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    overrides = schema["properties"]["defaults"]
    assert overrides["additionalProperties"] is False
    assert all(p["description"] for p in overrides["properties"].values())
    others = {"skip", "conditions", "drift_channel", *DAMAGE_KEYS}  # read by discovery and by the damage stage
    assert set(overrides["properties"]) - others <= set(OVERRIDES)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("{name: a}", "give either a file or a polygon"),
        ("{file: a.csv, polygon: [[0, 0], [0, 1], [1, 1]]}", "give either a file or a polygon"),
        ("{polygon: [[0, 0], [0, 1], [1, 1]]}", "a polygon needs a name"),
        ("{name: a, polygon: [[0, 0], [0, 1]]}", "polygon"),
        ("{name: a, polygon: [[0, 0], [0, 1], [1, 1]], unit: mm}", "unit"),
    ],
)
def test_regions_are_checked_before_anything_runs(tmp_path, region, message) -> None:
    (tmp_path / "session.yaml").write_text(f"defaults:\n  regions: [{region}]\n")
    with pytest.raises(SettingsError, match=message):
        read_session_file(tmp_path)


def test_regions_reach_their_series(tmp_path) -> None:
    (tmp_path / "session.yaml").write_text(
        "series:\n  a.dm4:\n    probe_size_nm: 0.1\n    regions:\n"
        "      - {name: a, polygon: [[0, 0], [0, 9], [9, 9]], unit: px}\n      - {file: roi.geojson, unit: nm}\n"
    )
    found = read_session_file(tmp_path).overrides(["a.dm4"])
    assert found["regions"][0]["polygon"][1] == [0, 9] and found["regions"][1]["file"] == "roi.geojson"
    assert found["probe_size_nm"] == 0.1
