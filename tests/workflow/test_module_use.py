"""The workflow as a module of another one, from the place that snakedeploy names, and its conventions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_sessions import SECOND_FILE, SECOND_ID, write_raw

from atomdiffuser.workflow.config_file import CHECKOUT

pytestmark = pytest.mark.workflow

# What `snakedeploy deploy-workflow` writes, with a local path in place of a repository's address.
OTHER = """\
configfile: "config/config.yaml"

module atomdiffuser:
    snakefile: "{snakefile}"
    config: config

use rule * from atomdiffuser as atomdiffuser_*

rule all:
    default_target: True
    input:
        rules.atomdiffuser_all.input,
        "mine.txt",

rule mine:
    output: "mine.txt"
    shell: "touch {{output}}"
"""


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture
def session(tmp_path: Path) -> Path:
    folder = tmp_path / "session"
    folder.mkdir()
    write_raw(folder / SECOND_FILE, seed=2)
    return folder


@pytest.mark.parametrize("snakefile", ["workflow/Snakefile", "Snakefile"])
def test_another_workflow_takes_its_rules_and_keeps_its_own_folder(
    snakefile: str, session: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / "config").mkdir(parents=True)
    (other / "config" / "config.yaml").write_text(f"session: {session}\ndamage: {{grid: [2, 2]}}\n")
    (other / "Snakefile").write_text(OTHER.format(snakefile=CHECKOUT / snakefile))
    planned = snakemake(other, "--dry-run", "--printshellcmds")
    said = planned.stdout + planned.stderr
    assert planned.returncode == 0, said
    for rule in ("convert", "register", "decay", "damage", "align", "report_series", "summary"):
        assert f"atomdiffuser_{rule}" in said
    assert "touch mine.txt" in said  # the folder is the other workflow's still
    assert f"{session}/results/{SECOND_ID}/report.html" in said
    assert "--grid 2,2" in said  # settings come from the other workflow's configuration


def test_the_catalog_s_snakefile_plans_what_the_checkout_s_plans(session: Path) -> None:
    config = ("--config", f"session={session}")
    plans = []
    for snakefile in ("Snakefile", "workflow/Snakefile"):
        planned = snakemake(CHECKOUT, "--dry-run", "--quiet", "rules", "--snakefile", snakefile, *config)
        assert planned.returncode == 0, planned.stderr
        counted = (line.split() for line in planned.stdout.splitlines() if line.strip().endswith(" 1"))
        plans.append({words[0] for words in counted})
    assert plans[1] - plans[0] == {"everything"}
    assert plans[0] >= {"convert", "register", "decay", "damage", "align", "report_series", "summary", "all"}


def test_snakemake_lint_finds_nothing(session: Path) -> None:
    linted = snakemake(CHECKOUT, "--lint", "--config", f"session={session}")
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "your workflow is in a good condition" in linted.stderr


def test_the_catalog_s_file_says_how_it_is_used() -> None:
    usage = yaml.safe_load((CHECKOUT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    assert usage["software-stack-deployment"]["conda"] is True
    assert set(usage["mandatory-flags"]) <= {"desc", "flags"}
    assert (CHECKOUT / "config" / "README.md").is_file()
