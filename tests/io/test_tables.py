from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomdiffuser.errors import StoreError
from atomdiffuser.io.tables import COLUMNS, read_table, write_table, write_table_twice

FRAME = pd.DataFrame(
    {
        "region": ["whole", "NA", 'a,"b"\nµ', ""],
        "region_id": [0, 1, 2, 3],
        "time_s": [0.1, np.nan, np.inf, 1 / 3],
        "valid": [True, False, True, True],
    }
)


@pytest.mark.parametrize("name", ["damage.parquet", "damage.csv"])
def test_tables_come_back_with_their_metadata(tmp_path, name):
    write_table(FRAME, tmp_path / name, "damage", settings={"grid": (3, 3)}, loss=np.float32(0.5), bad=float("nan"))
    found = read_table(tmp_path / name)
    pd.testing.assert_frame_equal(found, FRAME)
    assert found.attrs["kind"] == "damage"
    assert found.attrs["settings"] == {"grid": [3, 3]}
    assert found.attrs["columns"]["time_s"]["unit"] == "s"
    assert found.attrs["version"]


@pytest.mark.parametrize("name", ["damage.parquet", "damage.csv"])
def test_rows_and_columns_share_the_metadata_of_their_table(tmp_path, name):
    write_table(FRAME, tmp_path / name, "damage", settings={"grid": (3, 3)})
    found = read_table(tmp_path / name)
    for part in (found.iloc[0], found["time_s"], found[found["valid"]].sort_values("time_s").iloc[0]):
        assert part.attrs["columns"] is found.attrs["columns"]
    part.attrs["kind"] = "another"
    assert found.attrs["kind"] == "damage"


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@given(
    values=st.lists(
        st.tuples(
            st.integers(-(2**53), 2**53),
            st.floats(),
            st.text(st.characters(codec="utf-8", exclude_characters="\r\0")),
            st.booleans(),
        )
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_values_come_back_exactly(tmp_path, suffix, values):
    frame = pd.DataFrame(values, columns=["frame", "time_s", "reason", "valid"]).astype(
        {"frame": "int64", "time_s": "float64", "reason": "str", "valid": "bool"}
    )
    path = tmp_path / f"trajectory{suffix}"
    write_table(frame, path, "trajectory")
    pd.testing.assert_frame_equal(read_table(path), frame)


@pytest.mark.fault(
    fault="a file or a region named like a formula, such as =HYPERLINK(…)",
    happens="in CSV an apostrophe stands before it, so that spreadsheets show it and do not compute it",
    user_sees="the name, with an apostrophe",
)
@pytest.mark.parametrize("name", ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "'=1", "a=1"])
def test_a_name_is_no_formula(tmp_path, name):
    frame = FRAME.assign(region=name, time_s=-1.5)
    write_table(frame, tmp_path / "damage.csv", "damage")
    written = pd.read_csv(tmp_path / "damage.csv")
    assert set(written["region"]) == {name if name == "a=1" else f"'{name}"} and set(written["time_s"]) == {-1.5}
    assert list(read_table(tmp_path / "damage.csv")["region"]) == [name] * 4


@pytest.mark.parametrize("name", ["damage.parquet", "damage.csv"])
def test_identical_input_gives_identical_bytes_whatever_the_index(tmp_path, name):
    write_table(FRAME, tmp_path / name, "damage", a=1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write_table(FRAME.set_index(np.array([7, 8, 9, 3])), tmp_path / name, "damage", a=1)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before  # and no temporary file is left


def test_a_csv_has_its_description_beside_it(tmp_path):
    write_table(FRAME, tmp_path / "damage.csv", "damage")
    header = json.loads((tmp_path / "damage.json").read_text())
    assert header["columns"]["region"] == {"description": "name of the region", "unit": "", "type": "text"}
    (tmp_path / "damage.json").unlink()
    with pytest.raises(StoreError, match=r"its description damage\.json is missing"):
        read_table(tmp_path / "damage.csv")


@pytest.mark.parametrize("given", ["spots.parquet", "spots.csv"])
def test_a_table_written_twice_is_the_same_in_both_formats(tmp_path, given):
    frame = pd.DataFrame({"region": ["whole", "NA"], "shell": [0, 1], "d_nm": [0.39, np.nan], "valid": [True, False]})
    write_table_twice(frame, tmp_path / given, "spots", dark_level={"value": 3.5, "source": "vacuum"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spots.csv", "spots.json", "spots.parquet"]
    parquet, csv = (read_table(tmp_path / f"spots.{suffix}") for suffix in ("parquet", "csv"))
    pd.testing.assert_frame_equal(parquet, csv, check_dtype=False)
    assert parquet.attrs == csv.attrs and csv.attrs["columns"]["d_nm"]["unit"] == "nm"
    assert csv.attrs["dark_level"]["source"] == "vacuum"


def test_every_column_of_the_documented_tables_is_described():
    documented = {
        "pairs": "reference moving lag dt_s fluence_e_per_A2 a_yy a_yx a_y a_xy a_xx a_x displacement_sigma_px score "
        "hop_probability valid reason residual_px",
        "trajectory": "frame time_s fluence_e_per_A2 a_yy a_yx a_y a_xy a_xx a_x drift_y_nm drift_x_nm drift_y_px "
        "drift_x_px rotation_deg scale shear displacement_sigma_px closure_px valid reason",
        "damage": "region region_id frame time_s fluence_e_per_A2 intensity intensity_lo95 intensity_hi95 contrast "
        "contrast_lo95 contrast_hi95 intensity_sigma contrast_sigma n_px coverage valid",
        "critical_fluence": "region region_id witness model unit critical_fluence critical_fluence_lo95 "
        "critical_fluence_hi95 lower_bound aicc aicc_constant p_value loss_percent loss_lo95 loss_hi95 onset_frame "
        "span n_frames",
    }
    for kind, columns in documented.items():
        assert set(columns.split()) <= set(COLUMNS[kind])
    assert all(description for columns in COLUMNS.values() for description, _ in columns.values())


def test_undescribed_columns_kinds_and_suffixes_are_refused(tmp_path):
    frame = pd.DataFrame({"frame": [1], "colour": [2]})
    with pytest.raises(StoreError, match=r"columns \['colour'\] of a 'trajectory' table have no description"):
        write_table(frame, tmp_path / "t.csv", "trajectory")
    write_table(frame, tmp_path / "t.csv", "trajectory", columns={"colour": ("of the frame", "")})
    assert read_table(tmp_path / "t.csv").attrs["columns"]["colour"]["description"] == "of the frame"
    with pytest.raises(StoreError, match="unknown kind of table 'tractory'"):
        write_table(frame, tmp_path / "t.csv", "tractory")
    with pytest.raises(StoreError, match=r"tables are \.parquet or \.csv, not '\.xlsx'"):
        write_table(frame[["frame"]], tmp_path / "t.xlsx", "trajectory")


def test_missing_and_damaged_tables_name_the_stage(tmp_path):
    with pytest.raises(StoreError, match="no such table; run the register stage first"):
        read_table(tmp_path / "pairs.parquet")
    (tmp_path / "damage.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"not a readable table .*; run the damage stage again"):
        read_table(tmp_path / "damage.parquet")
