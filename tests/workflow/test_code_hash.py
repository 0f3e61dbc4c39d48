"""The fingerprint of a stage's code follows its imports, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomdiffuser.config import STAGES
from atomdiffuser.errors import SettingsError
from atomdiffuser.workflow.code_hash import PACKAGE, code_hash, imported_files, weights_fingerprint


@pytest.fixture
def package(tmp_path: Path) -> Path:
    files = {
        "stages/one.py": "from pack.maths import add\n",
        "stages/two.py": "def two():\n    from .. import other\n",
        "maths.py": "from pack.deep.core import x\n",
        "deep/core.py": "x = 1\n",
        "deep/page.html": "<p>",
        "other.py": "import json\n",
    }
    for name, text in files.items():
        path = tmp_path / "pack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return tmp_path / "pack"


def changes(package: Path, edited: str) -> tuple[bool, bool]:
    """Whether editing a file changes the hash of stage one, of stage two."""
    before = [code_hash(f"pack.stages.{stage}", package) for stage in ("one", "two")]
    (package / edited).write_text((package / edited).read_text() + "\n# edited\n")
    after = [code_hash(f"pack.stages.{stage}", package) for stage in ("one", "two")]
    return before[0] != after[0], before[1] != after[1]


@pytest.mark.parametrize(
    ("edited", "expected"),
    [
        ("stages/one.py", (True, False)),
        ("maths.py", (True, False)),
        ("deep/core.py", (True, False)),
        ("deep/page.html", (True, False)),
        ("other.py", (False, True)),
    ],
)
def test_follows_imports_also_inside_functions(package: Path, edited: str, expected: tuple[bool, bool]) -> None:
    assert changes(package, edited) == expected


@pytest.mark.parametrize("stage", [*STAGES, "summary"])
def test_of_the_real_stages_covers_the_stage_and_not_the_command_line(stage: str) -> None:
    names = {path.relative_to(PACKAGE).as_posix() for path in imported_files(f"atomdiffuser.stages.{stage}")}
    assert f"stages/{stage}.py" in names
    assert not any(name.startswith(("cli", "config", "workflow/")) for name in names)
    assert not any(name.startswith("report/") for name in names) or stage in ("report", "summary")


def test_weights_are_known_by_their_contents(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"one")
    first = weights_fingerprint(str(file))
    file.write_bytes(b"two")
    assert len(first) == 16 and weights_fingerprint(str(file)) != first
    assert weights_fingerprint("default") == ""  # shipped ones are part of the code's hash
    with pytest.raises(SettingsError, match=r"weights: 'nobody' is no file and no name of shipped weights"):
        weights_fingerprint("nobody")
    assert any(p.suffix == ".safetensors" for p in imported_files("atomdiffuser.stages.decay"))
