"""The fault table of docs/reliability.md says what the tests say."""

from __future__ import annotations

import pytest
from fault_table import BEGIN, END, PAGE, TESTS, Fault, faults_of, table, with_table

EXAMPLE = """
import pytest

@pytest.mark.fault(fault="a|b", happens="stops "
                   "there", user_sees="“gone”")
def test_one(): ...

CASES = [pytest.param(1, marks=pytest.mark.fault(fault="c", happens="d", user_sees="e"))]
"""


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page, table(TESTS)), "docs/reliability.md is not what the tests say: run `make faults`"


def test_marks_are_found_on_tests_and_on_parameters() -> None:
    assert faults_of(EXAMPLE, "x.py") == [Fault("a|b", "stops there", "“gone”"), Fault("c", "d", "e")]


@pytest.mark.parametrize("wrong", ['fault="a", happens="b"', 'fault="a", happens="b", user_sees=""', '"a", "b", "c"'])
def test_an_incomplete_mark_is_named(wrong) -> None:
    with pytest.raises(ValueError, match=r"x\.py:1: a fault mark takes fault, happens, user_sees"):
        faults_of(f"pytest.mark.fault({wrong})", "x.py")


def test_only_the_table_is_replaced(tmp_path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_x.py").write_text(f'"""What goes wrong."""\n{EXAMPLE}', encoding="utf-8")
    page = with_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", table(folder))
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page
    assert "### What goes wrong\n" in page and "2 faults" in page and r"| a\|b | stops there | “gone” |" in page
    assert with_table(page, table(folder)) == page
    with pytest.raises(ValueError, match="which the table goes between"):
        with_table("before", "rows")
