"""Every example in README and docs runs, page by page, beside the analysed demonstration session.

What cannot run here says why in a comment before it: `<!-- not run: needs a cluster -->`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from atomdiffuser.io.session_file import read_session_file
from atomdiffuser.workflow.config_file import CHECKOUT, read_config

pytestmark = pytest.mark.workflow

PAGES = [CHECKOUT / "README.md", CHECKOUT / "config" / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>.+?) -->\n)?^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.M | re.S)
NOT_EXAMPLES = {"text"}
RUNNING = {"bash", "python"}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    title: str
    code: str
    not_run: str


def blocks(page: Path) -> list[Block]:
    found = []
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        language, _, rest = match["info"].strip().partition(" ")
        title = re.search(r'title="(.+?)"', rest)
        found.append(Block(language, title[1] if title else "", match["code"], match["why"] or ""))
    return found


WITH_EXAMPLES = [p for p in PAGES if any(b.language in RUNNING and not b.not_run for b in blocks(p))]


@pytest.fixture
def sandbox(demo_session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the analysed demonstration as `session`."""
    shutil.copytree(demo_session, tmp_path / "session", symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda p: p.relative_to(CHECKOUT).as_posix())
def test_examples_run_in_the_order_of_the_page(page: Path, sandbox: Path) -> None:
    names: dict[str, object] = {}
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"PYTHONPATH": str(CHECKOUT)}
    folder = sandbox
    for block in blocks(page):
        if block.title and block.language == "yaml" and block.title != "session.yaml":
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.code, encoding="utf-8")
        if block.not_run or block.language not in RUNNING:
            continue
        if block.language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the libraries that a page shows
                exec(compile(block.code, str(page), "exec"), names)
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block.code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(CHECKOUT).as_posix())
def test_blocks_are_of_a_known_kind_and_settings_are_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        assert block.language in RUNNING | NOT_EXAMPLES | {"yaml"}, f"{page}: {block.language!r}"
        if block.language != "yaml":
            continue
        assert block.title, f"{page}: say which file this is"
        if block.title == "session.yaml":
            (tmp_path / "session.yaml").write_text(block.code, encoding="utf-8")
            read_session_file(tmp_path)
        else:
            read_config(yaml.safe_load(block.code))


def test_few_examples_cannot_run() -> None:
    left_out = [b.not_run for p in PAGES for b in blocks(p) if b.not_run]
    run = [b for p in PAGES for b in blocks(p) if b.language in RUNNING and not b.not_run]
    assert len(left_out) <= 10 < len(run)


def test_the_tutorial_runs_and_finds_the_truth(demo_session: Path, tmp_path: Path) -> None:
    """The notebook from raw file to critical fluence, executed beside the demonstration session."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nbformat = pytest.importorskip("nbformat")
        client = pytest.importorskip("nbclient")
        (tmp_path / "atomdiffuser-demo").mkdir()
        (tmp_path / "atomdiffuser-demo" / "session").symlink_to(demo_session, target_is_directory=True)
        notebook = nbformat.read(CHECKOUT / "docs" / "tutorial.ipynb", as_version=4)
        notebook.cells.append(
            nbformat.v4.new_code_cell(
                "print('FOUND', drift_error_px, contrast.critical_fluence_lo95, contrast.critical_fluence_hi95, "
                "true_fluence, bool(contrast.lower_bound), bool(whole.loc['intensity'].lower_bound))"
            )
        )
        resources = {"metadata": {"path": str(tmp_path)}}
        client.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    said = "".join(o.get("text", "") for o in notebook.cells[-1].outputs)
    error, low, high, true, *bounds = said.split("FOUND")[1].split()
    assert float(error) < 0.3
    assert float(low) < float(true) < float(high) < 1.2 * float(low)
    assert bounds == ["False", "True"]


def test_the_tutorial_shows_what_it_found() -> None:
    """Its outputs are stored, without errors, for readers who do not run it."""
    nbformat = pytest.importorskip("nbformat")
    path = CHECKOUT / "docs" / "tutorial.ipynb"
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    kinds = [o.output_type for c in cells for o in c.outputs]
    assert "error" not in kinds
    assert kinds.count("display_data") >= 4
    assert path.stat().st_size < 400_000
