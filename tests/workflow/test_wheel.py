"""The wheel alone, in an environment without the checkout: it analyses a session from an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from tiny_sessions import SECOND_FILE, SECOND_ID, write_raw

from atomdiffuser.io.status import read_status
from atomdiffuser.workflow.config_file import CHECKOUT
from atomdiffuser.workflow.package_path import find_snakefile, package_path

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-w", str(folder), str(CHECKOUT)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment: the wheel, and by a .pth this environment's libraries without its own package."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    executable = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(executable), "install"]
    subprocess.run([*pip, "--quiet", "--no-deps", str(wheel)], check=True)
    site_packages = next(folder.glob("lib/python*/site-packages"))
    (site_packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return executable


def test_the_wheel_brings_weights_workflow_settings_and_typing(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = "atomdiffuser/workflow/shipped"
    tracked = subprocess.run(
        ["git", "ls-files", "Snakefile", "config", "envs", "workflow"], cwd=CHECKOUT, capture_output=True, text=True
    ).stdout.split()
    assert len(tracked) > 15
    assert not {f"{shipped}/{name}" for name in tracked} - names
    assert {"atomdiffuser/model/weights/default.safetensors", "atomdiffuser/py.typed"} <= names
    assert f"{shipped}/profiles/default/config.yaml" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs"))]


@pytest.mark.skipif(os.name != "posix", reason="the environment is laid out as on Linux and macOS")
def test_run_needs_no_checkout(python: Path, tmp_path: Path) -> None:
    empty, session = tmp_path / "empty", tmp_path / "session"
    empty.mkdir()
    session.mkdir()
    write_raw(session / SECOND_FILE, seed=2)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    def atomdiffuser(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(python.parent / "atomdiffuser"), *arguments]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=600)

    done = atomdiffuser("run", str(session), "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    results = session / "results"
    assert read_status(results / SECOND_ID / "status.json").state == "ok"
    assert f"Open {(results / 'summary.html').as_uri()}" in done.stdout
    assert {path.name for path in empty.iterdir()} <= {".snakemake"}
    link = next((tmp_path / "cache" / "atomdiffuser" / "package").glob("*/atomdiffuser"))
    assert link.resolve() == (next(python.parents[1].glob("lib/python*/site-packages")) / "atomdiffuser").resolve()

    told = json.loads(atomdiffuser("info", str(session / SECOND_FILE), "--json").stdout)
    assert told["signals"][0]["kind"] == "time series"


class TestPackagePath:
    """Which folder jobs find the package by."""

    def test_of_a_checkout_is_the_checkout(self) -> None:
        assert package_path() == CHECKOUT
        assert find_snakefile() == CHECKOUT / "Snakefile"

    def installed(self, folder: Path) -> Path:
        package = folder / "site-packages" / "atomdiffuser"
        (package / "workflow" / "shipped").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        return package

    def test_of_an_installed_package_holds_nothing_else_and_follows_an_update(self, tmp_path: Path) -> None:
        package = self.installed(tmp_path)
        (package.parent / "numpy").mkdir()
        for _ in range(2):
            found = package_path(package, tmp_path / "cache")
            assert [p.name for p in found.iterdir()] == ["atomdiffuser"]
            assert (found / "atomdiffuser").resolve() == package
        (found / "atomdiffuser").unlink()
        (found / "atomdiffuser").mkdir()  # what a file system without links was given before
        assert (package_path(package, tmp_path / "cache") / "atomdiffuser" / "__init__.py").is_file()

    def test_where_links_cannot_be_made_is_a_copy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = self.installed(tmp_path)

        def refuse(*_: object, **__: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(Path, "symlink_to", refuse)
        found = package_path(package, tmp_path / "cache") / "atomdiffuser"
        assert not found.is_symlink()
        assert (found / "__init__.py").is_file()

    def test_without_a_workflow_there_is_none(self, tmp_path: Path) -> None:
        assert find_snakefile(self.installed(tmp_path)) is None
