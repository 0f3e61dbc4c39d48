"""What a session folder cannot do: run code, reach other files, use up the memory."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atomdiffuser.damage.region_files import session_regions
from atomdiffuser.errors import SettingsError
from atomdiffuser.io.session_file import read_session_file
from atomdiffuser.report.render import _environment

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12)
)

BAD_YAML = [
    pytest.param(
        "defaults: {detector: !!python/object/apply:os.system ['touch pwned']}", "not valid YAML",
        id="object",
        marks=pytest.mark.fault(
            fault="session.yaml with a tag that would run a command", happens="refused before any job; nothing runs",
            user_sees="“session.yaml: line 1: not valid YAML (could not determine a constructor for the tag …)”",
        ),
    ),
    pytest.param(
        LAUGHS, "aliases stand for more than 100000 values",
        id="billion laughs",
        marks=pytest.mark.fault(
            fault="session.yaml of twelve lines whose aliases stand for 3·10¹¹ values", happens="refused at once",
            user_sees="“session.yaml: its aliases stand for more than 100000 values; write them out”",
        ),
    ),
    pytest.param("defaults: &a {conditions: *a}", "aliases stand for", id="holds itself"),
    pytest.param(
        "defaults: {probe_curent_pA: 3}", "probe_curent_pA",
        id="unknown key",
        marks=pytest.mark.fault(
            fault="session.yaml with an unknown key, broken syntax or impossible values", happens="told before a job",
            user_sees="“session.yaml: defaults.probe_curent_pA: unknown key; did you mean probe_current_pA?”",
        ),
    ),
    pytest.param("defaults: [", "not valid YAML", id="syntax"),
    pytest.param("defaults: {gain_e: -1}", "gain_e", id="range"),
    pytest.param("series: {x: {excluded_frames: ['0-99999999999']}}", "is no range", id="endless range"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), BAD_YAML)
def test_session_yaml_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "session.yaml").write_text(text)
    started = time.process_time()
    with pytest.raises(SettingsError, match=says) as caught:
        read_session_file(tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("session.yaml: ")
    assert time.process_time() - started < 5 and not (tmp_path / "pwned").exists()


def test_aliases_in_moderation_are_fine(tmp_path: Path) -> None:
    (tmp_path / "session.yaml").write_text("series: {a: {conditions: &c {ice: 1}}, b: {conditions: *c}}")
    assert read_session_file(tmp_path).series["b"]["conditions"] == {"ice": 1}


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A session beside which secrets lie."""
    folder = tmp_path / "session"
    folder.mkdir()
    square = {"type": "Polygon", "coordinates": [[[0, 0], [0, 5], [5, 5], [5, 0]]]}
    (tmp_path / "secret.geojson").write_text(json.dumps(square))
    (folder / "link.geojson").symlink_to(tmp_path / "secret.geojson")
    return folder


@pytest.mark.fault(
    fault="a region file outside the session: ../, an absolute path, a link that leads out",
    happens="not opened; the damage stage of this series stops",
    user_sees="“regions: ../secret.geojson is outside the session folder; copy it into …”",
)
@pytest.mark.parametrize(
    "file", ["../secret.geojson", "{tmp}/secret.geojson", "link.geojson", "a/../../secret.geojson"]
)
def test_region_files_stay_inside(session: Path, file: str) -> None:
    with pytest.raises(SettingsError, match="outside the session folder; copy it into"):
        session_regions([{"file": file.format(tmp=session.parent), "unit": "px"}], session, (8, 8), None)


@pytest.mark.fault(
    fault="a region file that is pickled, huge, of another shape, nested 10⁵ deep, or with corners at infinity",
    happens="nothing of it is decoded; the damage stage of this series stops",
    user_sees="“regions: labels.npy cannot be read (…)”, “… has shape (20000, 20000) …; expected …”",
)
@pytest.mark.parametrize("kind", ["pickle", "huge", "nested", "infinite", "list"])
def test_region_files_are_data(session: Path, kind: str) -> None:
    if kind == "pickle":
        (session / "r.npy").write_bytes(pickle.dumps(np.zeros((8, 8))))
    elif kind == "huge":
        Image.new("1", (12000, 12000)).save(session / "r.png")
    else:
        corner = [float("inf"), 0]
        text = {"nested": "[" * 100_000, "list": "[]"}.get(kind) or json.dumps(
            {"type": "Polygon", "coordinates": [[[0, 0], [0, 5], corner]]}
        )
        (session / "r.geojson").write_text(text)
    file = next(p.name for p in session.glob("r.*"))
    with pytest.raises(SettingsError, match=r"^regions: .*(cannot be read|has shape|no finite number)"):
        session_regions([{"file": file, "unit": "px"}], session, (8, 8), None)


def test_pages_escape_what_users_wrote() -> None:
    template = _environment().from_string("<p>{{ name }}</p>{{ name | symbols }}{{ name | sentence }}{{ name | json }}")
    page = template.render(name="<script>alert(1)</script>&F_c")
    assert "<script" not in page and page.count("&lt;script&gt;") == 3
