"""The pins are compared with the list of known vulnerabilities as the advisories mean it."""

from __future__ import annotations

import csv
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from atomdiffuser.workflow.config_file import CHECKOUT

SCRIPT = CHECKOUT / "requirements" / "offline_audit.py"
spec = importlib.util.spec_from_file_location("offline_audit", SCRIPT)
assert spec and spec.loader
offline_audit = importlib.util.module_from_spec(spec)
sys.modules["offline_audit"] = offline_audit  # where dataclass looks its annotations up
spec.loader.exec_module(offline_audit)


def run(*locks: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, locks)], capture_output=True, text=True, check=False)


def test_no_pin_of_the_workflow_is_known_to_be_vulnerable() -> None:
    done = run()
    assert done.returncode == 0, done.stdout
    assert re.fullmatch(r"\d{3} pins, \d{3} advisories, 0 findings\n", done.stdout)


def test_a_vulnerable_pin_is_named_with_its_advisory_and_the_fixed_version(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("# made up\nPyYAML==5.3.1\nurllib3[socks]==2.0.6 ; python_version > '3'\njinja2==3.1.6\n")
    done = run(lock)
    assert done.returncode == 1
    assert "pyyaml 5.3.1: PYSEC-2021-142, fixed in 5.4: the full loader runs code (second fix)" in done.stdout
    assert "urllib3 2.0.6: PYSEC-2023-212, fixed in 2.0.7:" in done.stdout
    assert "PYSEC-2023-192" not in done.stdout  # fixed in 2.0.6 itself
    assert "jinja2" not in done.stdout


def test_a_pin_that_nobody_looked_up_is_a_finding(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("never-heard-of==1.0\n")
    done = run(lock)
    assert (done.returncode, "never-heard-of 1.0: never looked up" in done.stdout) == (1, True)


def test_a_file_without_pins_does_not_pass(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text("# nothing\n")
    assert run(tmp_path / "lock.txt").returncode == 1


@pytest.mark.parametrize(
    ("affected", "version", "fixed"),
    [
        ("<1.6.2 or >=1.7,<1.7.4 or >=1.8,<1.8.2", "1.6.1", "1.6.2"),
        ("<1.6.2 or >=1.7,<1.7.4 or >=1.8,<1.8.2", "1.6.2", None),
        ("<1.6.2 or >=1.7,<1.7.4 or >=1.8,<1.8.2", "1.7", "1.7.4"),
        ("<1.6.2 or >=1.7,<1.7.4 or >=1.8,<1.8.2", "1.7.4", None),
        ("<1.6.2 or >=1.7,<1.7.4 or >=1.8,<1.8.2", "1.8.1", "1.8.2"),
        ("<1.6.2 or >=1.7,<1.7.4 or >=1.8,<1.8.2", "1.10", None),
        ("<1.8.2", "1.8.2rc1", "1.8.2"),
        ("<=2.10.0", "2.10.0", "after 2.10.0"),
        ("<=2.10.0", "2.13.0", None),
        (">=1.9", "3.0", "no version yet"),
        ("all", "0.1", "no version yet"),
    ],
)
def test_intervals_end_where_the_fix_begins(affected: str, version: str, fixed: str | None) -> None:
    advisory = offline_audit.Advisory("TEST-1", offline_audit.intervals(affected), "made up")
    assert advisory.fixed_in(Version(version)) == fixed


@pytest.mark.parametrize("text", ["", "1.0", "~=1.0", "<1.0,,>2", "<1.0 | >2"])
def test_versions_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        offline_audit.intervals(text)


def test_a_build_of_torch_is_the_version_it_is_built_from(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("torch==2.9.1+cpu\n")
    assert offline_audit.read_pins(lock) == {"torch": Version("2.9.1")}
    assert "torch 2.9.1: PYSEC-2026-2286, fixed in 2.10.0" in run(lock).stdout


def test_the_list_is_whole() -> None:
    """Each advisory stands there once, with versions that end before some version, a source and a title."""
    with (CHECKOUT / "requirements" / "advisories.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row["advisory"] for row in rows if row["advisory"]]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"PYSEC-\d{4}-\d+|CVE-\d{4}-\d+|GHSA(-[0-9a-z]{4}){3}", name) for name in names)
    assert all(re.fullmatch(r"(\d{4}(-\d\d){0,2})?", row["published"]) for row in rows)
    assert {row["source"] for row in rows} == {"database", "reports"}
    assert all(row["title"] for row in rows)
    for row in rows:
        if row["advisory"]:
            assert offline_audit.intervals(row["affected"])[0], row
