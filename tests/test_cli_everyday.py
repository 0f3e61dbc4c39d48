"""The commands a person types: what they pass on, what they print for a script, what they say to a slip."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from atomdiffuser import cli_run
from atomdiffuser.cli import main
from atomdiffuser.io.status import Status, write_status


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="atomdiffuser")


def plain(text: str) -> str:
    """Text without the frame around it."""
    return " ".join(text.replace("│", " ").split())


@pytest.fixture
def snakemake(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been run; each leaves a session as if one series failed."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> int:
        calls.append(command)
        session = Path(next(c for c in command if c.startswith("session=")).partition("=")[2])
        results = next((Path(c.partition("=")[2]) for c in command if c.startswith("results=")), session / "results")
        write_status(results / "a" / "status.json", Status("a", "A #1", "A.dm4", "ok", "report"))
        (results / "a" / "report.html").touch()
        write_status(results / "b" / "status.json", Status("b", "B", "B.dm4", "failed", "convert", "truncated"))
        (results / "summary.html").touch()
        return 1

    monkeypatch.setattr(cli_run, "run_to_its_end", run)
    return calls


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    addresses: list[str] = []
    monkeypatch.setattr("webbrowser.open", addresses.append)
    return addresses


class TestRun:
    def test_passes_on_what_it_does_not_know(self, snakemake: list[list[str]]) -> None:
        Path("s").mkdir()
        call("run", "s", "--dry-run", "-p", "--configfile", "mine.yaml", "--cores", "3", "--results", "out")
        command = snakemake[0]
        assert command[command.index("--cores") + 1] == "3"
        assert {"--dry-run", "-p", "--configfile", "mine.yaml"} <= set(command)
        after = command[command.index("--config") + 1 :]
        assert after == [f"session={Path('s').absolute()}", f"results={Path('out').absolute()}"]
        assert command.index("mine.yaml") < command.index("--config")

    @pytest.mark.parametrize("given", [["--config", "damage={'grid': [4, 4]}"], ["--config=damage={'grid': [4, 4]}"]])
    def test_joins_configuration_with_its_own(self, given: list[str], snakemake: list[list[str]]) -> None:
        Path("s").mkdir()
        call("run", "s", *given, "--dry-run")
        command = snakemake[0]
        assert sum(c.startswith("--config") for c in command) == 1
        assert command[-2:] == [f"session={Path('s').absolute()}", "damage={'grid': [4, 4]}"]
        assert "--dry-run" in command[: command.index("--config")]

    def test_tells_a_script_how_each_series_went(self, snakemake: list[list[str]]) -> None:
        Path("s").mkdir()
        result = call("run", "s", "--json")
        assert result.exit_code == 1
        told = json.loads(result.stdout)
        assert told["exit_code"] == 1
        assert told["summary"] == str(Path("s/results/summary.html").absolute())
        states = {s["series"]: (s["state"], s["reason"], s["report"] is not None) for s in told["series"]}
        assert states == {"a": ("ok", "", True), "b": ("failed", "truncated", False)}

    def test_opens_the_summary(self, snakemake: list[list[str]], opened: list[str]) -> None:
        Path("s").mkdir()
        call("run", "s", "--open")
        assert opened == [Path("s/results/summary.html").absolute().as_uri()]

    def test_tells_what_was_probably_meant(self) -> None:
        Path("session_1").mkdir()
        result = call("run", "sesion_1")
        assert result.exit_code == 2
        assert "'sesion_1' does not exist; did you mean 'session_1'?" in plain(result.stderr)


def test_a_mistyped_command_or_option_is_recognised() -> None:
    assert "Did you mean 'register'?" in plain(call("regster").stderr)
    Path("s").mkdir()
    assert "--max-states" in plain(call("report", "s", "--max-state", "3").stderr)


def test_help_says_exit_codes_and_where_to_start() -> None:
    shown = plain(call("--help").output)
    for text in ("Exit codes: 0 all went well", "2 the command was not understood", "atomdiffuser run SESSION"):
        assert text in shown


@pytest.mark.parametrize("folder", ["session", "session/results", "session/results/a"])
def test_report_open_opens_the_page_that_is_there(folder: str, opened: list[str]) -> None:
    Path("session/results/a").mkdir(parents=True)
    Path("session/results/summary.html").touch()
    Path("session/results/a/report.html").touch()
    result = call("report", folder, "--open")
    assert result.exit_code == 0, result.output
    page = "a/report.html" if folder.endswith("a") else "summary.html"
    assert opened == [(Path("session/results") / page).absolute().as_uri()]
    assert opened[0] in result.output


def test_report_makes_the_page_first_where_there_is_none(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from atomdiffuser.stages import report as stage

    made: list[Path] = []
    monkeypatch.setattr(stage, "report", lambda results, output, *_, **__: made.append(output))
    Path("a").mkdir()
    result = call("report", "a", "--open")
    assert result.exit_code == 0, result.output
    assert made == [Path("a/report.html")]
    assert opened == [Path("a/report.html").absolute().as_uri()]


def test_info_of_a_session_lists_its_series_and_of_results_how_they_went(snakemake: list[list[str]]) -> None:
    from atomdiffuser.stages.simulate import simulate

    for name, frames in (("A.emd", 3), ("overview.emd", 1)):
        simulate(Path("s") / name, format="emd", n_frames=frames, shape=(48, 56), seed=1)
    before = {s["name"]: s for s in json.loads(call("info", "s", "--json").stdout)["series"]}
    assert before["A"]["state"] == "not analysed yet"
    assert (before["overview"]["state"], "single image" in before["overview"]["reason"]) == ("skipped", True)
    shown = call("info", "s").stdout
    assert shown.index("  A: not analysed yet\n") < shown.index("1 skipped\n  overview: a single image")
    assert shown.endswith("Analyse: atomdiffuser run s\n")
    call("run", "s")
    told = json.loads(call("info", "s/results", "--json").stdout)
    assert told["kind"] == "results of a session"
    assert {s["series"]: s["state"] for s in told["series"]} == {"a": "ok", "b": "failed"}
    one = json.loads(call("info", "s/results/b", "--json").stdout)
    assert (one["kind"], one["reason"]) == ("results of one series", "truncated")


def test_info_says_what_is_missing_and_where_to_write_it() -> None:
    from atomdiffuser.stages.simulate import simulate

    simulate(Path("A.dm4"), n_frames=3, shape=(48, 56), seed=1, known_current=False, pixel_size_nm=0.02)
    result = call("info", "A.dm4")
    assert "missing: probe_current_pA" in result.stdout
    advice = result.stdout[result.stdout.index("series:\n") :]
    import yaml

    assert yaml.safe_load(advice) == {"series": {"A.dm4": {"probe_current_pA": 30}}}
    simulate(Path("B.dm4"), n_frames=3, shape=(48, 56), seed=1, pixel_size_nm=0.02)
    assert "session.yaml" not in call("info", "B.dm4").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_the_shell(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.shell_completion.BashComplete._check_version", lambda *_: None)
    script = call("completion", shell).stdout
    assert "_ATOMDIFFUSER_COMPLETE" in script and f"{shell}_complete" in script


def test_completion_offers_commands() -> None:
    code = "from atomdiffuser.cli import main; main(prog_name='atomdiffuser')"
    environment = {"_ATOMDIFFUSER_COMPLETE": "bash_complete", "COMP_WORDS": "atomdiffuser re", "COMP_CWORD": "1"}
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == {"register", "report"}
