"""Every example in a docstring runs; the public interface is documented and typed throughout."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
import typing
import warnings
from pathlib import Path

import pytest

import atomdiffuser

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "atomdiffuser"
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_say_what_happens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert tried > 0
    assert failed == 0


def test_there_are_examples_for_what_users_call_first() -> None:
    for name in ("read_series", "estimate_pairs", "estimate_series", "simulate_series", "Acquisition", "export"):
        assert ">>>" in (getattr(atomdiffuser, name).__doc__ or ""), name


def test_every_public_name_is_documented() -> None:
    """interrogate, on the paths and by the rules in pyproject.toml."""
    pytest.importorskip("interrogate")
    paths = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["interrogate"]["paths"]
    command = [sys.executable, "-m", "interrogate", "--config", "pyproject.toml", "-vv", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    missed = re.findall(r"^\| +(.+?) +\| +MISSED \|$", done.stdout, re.MULTILINE)
    assert (done.returncode, missed) == (0, []), done.stdout[-3000:]


@pytest.mark.parametrize("name", sorted(set(atomdiffuser.__all__) - {"__version__"}))
def test_every_public_name_has_type_hints_and_a_docstring(name: str) -> None:
    public = getattr(atomdiffuser, name)
    assert public.__doc__
    functions = [public] if inspect.isfunction(public) else []
    if inspect.isclass(public):
        own = vars(public).items()
        functions += [f for key, f in own if inspect.isfunction(f) and not key.startswith("_")]
    for function in functions:
        hints = typing.get_type_hints(function)
        parameters = [p for p in inspect.signature(function).parameters if p != "self"]
        assert not set(parameters) - set(hints), function
        assert "return" in hints, function


def test_lazy_names_are_those_that_type_checkers_see() -> None:
    for module in ("atomdiffuser", "atomdiffuser.interop"):
        package = importlib.import_module(module)
        source = inspect.getsource(package)
        seen = re.findall(r"^    from (\S+) import \(?([\w\s,]+)\)?$", source, re.MULTILINE)
        names = {n.strip() for _, listed in seen for n in listed.split(",") if n.strip()}
        assert names == set(package._HOME) == set(package.__all__) - {"__version__"}
