"""Snakemake's own report carries the pages, with captions, categories and labels."""

from __future__ import annotations

import pytest
from tiny_sessions import FIRST_ID, SECOND_ID, Session

pytestmark = pytest.mark.workflow


def test_snakemake_report_carries_the_pages(session: Session) -> None:
    output = session.folder / "snakemake_report.html"
    run = session.run("--report", str(output))
    assert run.code == 0, run.said
    text = output.read_text(encoding="utf-8")
    for series in (FIRST_ID, SECOND_ID):
        assert f"results/{series}/report.html" in text
    assert "results/summary.html" in text and "results/summary.csv" in text
    for words in (
        "Series",
        "Session",
        "All series of the session side by side",
        "drift, damage and critical fluence, with verdict",
    ):
        assert words in text
