"""One run on a session of hostile files and names."""

from __future__ import annotations

import csv
import html
import json
import os
import re
from pathlib import Path

import pytest
from tiny_sessions import Session, write_raw

HOSTILE = "-x $(touch pwned); '<img src=x onerror=alert(1)>' {y}\n\x1b[31m"

NUMBER = r"-?[0-9.]+(e[+-]?[0-9]+)?"


@pytest.mark.workflow
@pytest.mark.slow
@pytest.mark.fault(
    fault="a session of forged, empty and cut files, pipes and link loops, with names that are commands or HTML",
    happens="each bad file fails alone; the good series is analysed; nothing is written outside the results",
    user_sees="one line a file, on the screen and in the summary; no traceback; names as text, never as HTML",
)
def test_the_good_series_is_analysed_and_each_bad_one_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    folder.mkdir()
    write_raw(folder / "x.dm4", seed=1)
    (folder / "x.dm4").rename(folder / f"{HOSTILE}.dm4")
    whole = (folder / f"{HOSTILE}.dm4").read_bytes()
    (folder / "cut;touch pwned.dm4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.emd").touch()
    mrc = bytearray(1024)
    mrc[0:16] = b"\xff\xff\xff\x7f" * 3 + b"\6\0\0\0"
    mrc[208:216] = b"MAP DD\0\0"
    (folder / "forged <b>.mrc").write_bytes(mrc)
    (folder / "loop.tif").symlink_to("loop.tif")
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "pipe.ser")
    raw = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}

    run = Session(folder).run()

    assert run.code != 0 and "Traceback" not in run.said and "\x1b[31m" not in run.said
    assert "1 series analysed, 5 failed, 0 skipped" in run.said
    assert {p: p.read_bytes() for p in raw} == raw
    assert not list(tmp_path.rglob("pwned"))
    results = folder / "results"
    new = {p.name for p in folder.iterdir()} - {p.name for p in raw} - {"loop.tif", "round", "pipe.ser"}
    assert new <= {"results", ".snakemake"}
    states = {p.parent.name: json.loads(p.read_text()) for p in results.glob("*/status.json")}
    assert sorted(s["state"] for s in states.values()) == ["failed"] * 5 + ["ok"]
    for name, status in states.items():
        assert "\n" not in status["reason"] and "Traceback" not in status["reason"]
        assert status["state"] == "ok" or (results / name / "logs" / "convert.log").is_file()
    with (results / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["series"] for row in rows) == sorted(states)
    computed = [v for row in rows for v in row.values() if v.startswith(("=", "+", "-", "@", "\t"))]
    assert [v for v in computed if not re.fullmatch(NUMBER, v)] == [], "a spreadsheet would compute these"
    shown = HOSTILE.replace("\n", "?").replace("\x1b", "?")
    assert sum(row["name"] == f"'{shown}" for row in rows) == 1
    for page in (results / "summary.html", *results.glob("*/report.html")):
        text = page.read_text(encoding="utf-8")
        assert "<img src=x" not in text and "forged <b>" not in text
        assert shown in html.unescape(text), "the name is there, as text"
