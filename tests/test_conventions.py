"""Files that other tools read: citation, packaging, pre-commit, changelog."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from atomdiffuser._version import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CFFCONVERT = Path(sys.prefix) / "cffconvert"


def test_cffconvert_accepts_the_citation_file() -> None:
    if not CFFCONVERT.is_dir():
        pytest.skip("cffconvert is not installed; `make test` installs it")
    code = "import sys; from cffconvert.cli.cli import cli; sys.argv = ['cffconvert', '--validate']; cli()"
    environment = {**os.environ, "PYTHONPATH": str(CFFCONVERT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "valid according to schema version 1.2.0" in done.stdout


def test_citation_names_version_licence_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (str(citation["version"]), citation["license"]) == (__version__, PROJECT["license"])
    assert "arXiv:2508.10359" in str(citation["preferred-citation"])


def test_classifiers_name_the_python_versions_that_are_supported() -> None:
    versions = {m[1] for c in PROJECT["classifiers"] if (m := re.fullmatch(r".* :: (3\.\d+)", c))}
    assert versions == {"3.11", "3.12", "3.13"}
    assert PROJECT["requires-python"] == ">=3.11"


def test_the_conda_recipe_asks_for_what_the_package_asks_for() -> None:
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["context"]["version"] == __version__
    named = {line.split()[0] for line in recipe["requirements"]["run"]}
    other_names = {"torch": "pytorch", "matplotlib": "matplotlib-base", "snakemake": "snakemake-minimal"}
    for line in PROJECT["dependencies"]:
        name = re.split(r"[\[><= ]", line)[0]
        assert {"dask": "dask-core", **other_names}.get(name, name) in named, name


def test_the_changelog_keeps_to_its_headings() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert text.startswith("# Changelog\n") and "## Unreleased" in text
    assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_hooks_run_what_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert {"ruff", "snakefmt", "mypy"} <= {hook["id"] for repo in hooks for hook in repo["hooks"]}


def test_the_package_starts_no_shell() -> None:
    """Windows is kept possible: programs are started by their arguments, not by a line for a shell."""
    for path in (ROOT / "atomdiffuser").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"shell=True|os\.system\(|os\.popen\(", text), path
