"""The documentation builds with warnings as errors, every link and anchor leads somewhere, and nothing is left out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from atomdiffuser.cli import main
from atomdiffuser.config import STAGES
from atomdiffuser.io.session_file import session_schema
from atomdiffuser.io.tables import COLUMNS

ROOT = Path(__file__).resolve().parents[2]


class Links(HTMLParser):
    """Where a page links to, what can be linked to in it, and which files it needs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.needs: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {v for k in ("id", "name") if (v := values.get(k))}
        if tag == "a" and values.get("href"):
            self.targets.append(values["href"] or "")
        for name in ("src", "href"):
            if tag in ("img", "script", "link") and values.get(name) and values.get("rel") != "canonical":
                self.needs.append(values[name] or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {p: Links(p.read_text(encoding="utf-8")) for p in site.rglob("*.html") if p.name != "404.html"}


def test_every_link_and_anchor_leads_somewhere(pages: dict[Path, Links]) -> None:
    broken = []
    for page, links in pages.items():
        for target in links.targets:
            path, anchor = urldefrag(target)
            if re.match(r"[a-z]+:", target):
                continue
            there = (page.parent / unquote(path)).resolve() if path else page
            there = there / "index.html" if there.is_dir() else there
            if not there.is_file():
                broken.append(f"{page.name} → {target}")
            elif anchor and there in pages and unquote(anchor) not in pages[there].anchors:
                broken.append(f"{page.name} → {target}: no such anchor")
    assert broken == []
    assert sum(len(links.targets) for links in pages.values()) > 1000


def test_pages_need_nothing_from_elsewhere(pages: dict[Path, Links]) -> None:
    for page, links in pages.items():
        for need in links.needs:
            assert not re.match(r"(https?:)?//|data:", need), f"{page.name}: {need[:100]}"
            assert (page.parent / unquote(need.partition("?")[0])).exists(), f"{page.name}: {need}"


def test_every_setting_column_key_and_command_is_documented(site: Path) -> None:
    text = {name: (site / "reference" / f"{name}.html").read_text("utf-8") for name in ("config", "tables", "cli")}
    session = (site / "reference" / "session.html").read_text("utf-8")
    for stage in STAGES.values():
        for name in stage.__dataclass_fields__:
            assert f"<code>{name}</code>" in text["config"], name
    for columns in COLUMNS.values():
        for name in columns:
            assert f"<code>{name}</code>" in text["tables"], name
    for key in session_schema()["properties"]["defaults"]["properties"]:
        assert f"<code>{key}</code>" in session, key
    for name, command in main.commands.items():
        assert f'id="{name}"' in text["cli"], name
        for option in command.params:
            assert all(f"<code>{flag}</code>" in text["cli"] for flag in option.opts if flag.startswith("--")), option


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    import atomdiffuser
    from atomdiffuser import interop

    text = (site / "reference" / "api.html").read_text("utf-8")
    for module in (atomdiffuser, interop):
        for name in set(module.__all__) - {"__version__"}:
            assert re.search(rf'id="atomdiffuser\.[\w.]*\b{name}"', text), name


def test_the_tutorial_s_pictures_are_there(pages: dict[Path, Links]) -> None:
    tutorial = next(links for page, links in pages.items() if page.name == "tutorial.html")
    assert sum("output_" in need or "tutorial_" in need for need in tutorial.needs) >= 4


def test_the_picture_in_the_readme_is_small() -> None:
    picture = ROOT / "docs" / "images" / "report.png"
    assert picture.name in (ROOT / "README.md").read_text(encoding="utf-8")
    assert 20_000 < picture.stat().st_size <= 300_000
