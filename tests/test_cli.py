"""The command line: flags carry every setting, errors are one sentence, failures are recorded, help is quick."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from atomdiffuser import cli_run
from atomdiffuser.cli import main
from atomdiffuser.cli_options import THREAD_VARIABLES, settings_flags
from atomdiffuser.cli_run import describe
from atomdiffuser.config import STAGES, DamageSettings, DecaySettings, RegisterSettings, field_schema
from atomdiffuser.errors import ReadError
from atomdiffuser.io.status import Status, read_status, write_status
from atomdiffuser.workflow.record import INTERRUPTED, Record

PATHS_OF_STAGE = {
    "convert": ["raw.dm4", "s/frames.ome.zarr"],
    "register": ["s/frames.ome.zarr", "s/pairs.parquet", "s/trajectory.parquet"],
    "decay": ["s/frames.ome.zarr", "s/trajectory.parquet", "s/decay.zarr"],
    "damage": ["s/frames.ome.zarr", "s/trajectory.parquet", "s/decay.zarr", "s/damage.parquet", "s/critical.csv"],
    "align": ["s/frames.ome.zarr", "s/trajectory.parquet", "s/aligned.ome.zarr"],
    "report": [".", "s/report.html"],
}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # restored afterwards: --threads sets them
    Path("raw.dm4").write_bytes(b"raw")


def put_stage(monkeypatch: pytest.MonkeyPatch, stage: str, function: Callable[..., Any]) -> None:
    """Let `function` stand where the stage's function is."""
    module = types.ModuleType(f"atomdiffuser.stages.{stage}")
    setattr(module, stage, function)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="atomdiffuser")


def other_than_default(stage: type) -> Any:
    """Settings of a stage that all differ from their defaults, within their ranges."""
    texts = {"default": "/mine.safetensors"}  # of settings that take any text

    def other(name: str, default: str) -> str:
        choices = field_schema(stage, name).get("enum")
        return next(v for v in choices if v != default) if choices else texts[default]

    values: dict[str, Any] = {}
    for field in dataclasses.fields(stage):
        default = field.default
        if isinstance(default, tuple):
            values[field.name] = ("none",) if isinstance(default[0], str) else tuple(v + 1 for v in default)
        elif isinstance(default, str):
            values[field.name] = 6.5 if field.name.endswith("_px") else other(field.name, default)
        else:
            values[field.name] = default + 1 if isinstance(default, int) else default / 2
    return stage(**values)


@pytest.mark.parametrize("stage", STAGES)
def test_flags_carry_every_setting_to_the_stage(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Any] = []
    put_stage(monkeypatch, stage, lambda *arguments, **_: received.append(arguments[-1]))
    settings = other_than_default(STAGES[stage])
    for expected, flags in ((STAGES[stage](), []), (settings, settings_flags(settings))):
        result = call(stage, *PATHS_OF_STAGE[stage], *flags)
        assert result.exit_code == 0, result.output
        assert received.pop() == expected


def test_paths_of_zarr_json_mean_the_store_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Path] = []
    put_stage(monkeypatch, "align", lambda *arguments, **_: received.extend(arguments[:3]))
    assert call("align", "f.ome.zarr/zarr.json", "t.parquet", "a.ome.zarr/zarr.json").exit_code == 0
    assert received == [Path("f.ome.zarr"), Path("t.parquet"), Path("a.ome.zarr")]


def test_convert_hands_over_what_it_was_told_of_the_series(monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, Any] = {}
    put_stage(monkeypatch, "convert", lambda *_, **named: received.update(named))
    told = {"--series-id": "a_1", "--name": "a #1", "--signal": "2", "--fingerprint": "abc"}
    options = [text for pair in told.items() for text in pair]
    result = call("convert", "raw.dm4", "s/frames.ome.zarr", *options, "--overrides", '{"dark_level": 3}')
    assert result.exit_code == 0, result.output
    del received["progress"]
    assert received == {
        "series_id": "a_1", "name": "a #1", "signal": 2, "fingerprint": "abc", "overrides": {"dark_level": 3}
    }  # fmt: skip


@pytest.mark.parametrize(("text", "says"), [("{", "is not JSON"), ("[1]", "is not a JSON object")])
def test_overrides_that_are_no_json_object_are_refused(text: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_stage(monkeypatch, "convert", lambda *_, **__: None)
    result = call("convert", "raw.dm4", "s/frames.ome.zarr", "--overrides", text)
    assert result.exit_code == 1
    assert says in result.stderr


@pytest.mark.parametrize(
    ("stage", "flags", "says"),
    [
        ("damage", ["--grid", "3,x"], "'3,x' is not allowed"),
        ("damage", ["--grid", "0,2"], "1 to 64"),
        ("decay", ["--bandwidth-px", "-1"], "> 0.0, auto"),
        ("decay", ["--map-stride", "1.5"], "integer"),
        ("damage", ["--gird", "1"], "No such option"),
    ],
)
def test_settings_out_of_range_are_usage_errors(stage: str, flags: list[str], says: str) -> None:
    result = call(stage, *PATHS_OF_STAGE[stage], *flags)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.replace("│", " ").split())


def test_an_expected_error_is_one_plain_line_without_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ReadError("a.dm4: truncated;\n copy it again")

    put_stage(monkeypatch, "convert", failing)
    result = call("convert", "raw.dm4", "s/frames.ome.zarr")
    assert result.exit_code == 1
    assert result.stderr == "convert: a.dm4: truncated; copy it again\n"


def test_an_unexpected_error_is_one_line_and_its_traceback_is_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise KeyError("dwell")

    put_stage(monkeypatch, "register", failing)
    result = call("register", *PATHS_OF_STAGE["register"], "--log", "logs/register.log")
    assert result.exit_code == 1
    assert result.stderr == "register: unexpected KeyError: 'dwell' (see logs/register.log)\n"
    assert "Traceback" in Path("logs/register.log").read_text()


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise KeyError("dwell")

    put_stage(monkeypatch, "register", failing)
    monkeypatch.setenv("ATOMDIFFUSER_DEBUG", "1")
    assert isinstance(call("register", *PATHS_OF_STAGE["register"]).exception, KeyError)


def test_errors_of_the_machine_are_sentences_too() -> None:
    assert describe(OSError(5, "Input/output error", "x.zarr")).startswith("Input/output error: x.zarr (set")
    assert describe(OSError(28, "No space", "x.zarr")) == "the disk is full: x.zarr; make room, then run it again"
    assert describe(OSError(28, "No space")) == "the disk is full; make room, then run it again"
    assert describe(MemoryError()).startswith("not enough memory")


def test_warnings_of_a_stage_go_to_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def warning(*_: Any, **__: Any) -> None:
        import warnings

        warnings.warn("the stage moved", UserWarning, stacklevel=1)

    put_stage(monkeypatch, "align", warning)
    result = call("align", *PATHS_OF_STAGE["align"], "--log", "align.log")
    assert result.exit_code == 0, result.output
    assert "the stage moved" in Path("align.log").read_text()
    assert result.stderr.startswith("align: done in")


def test_threads_limit_the_numerical_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}
    put_stage(monkeypatch, "decay", lambda *_, **__: seen.update(os.environ))
    assert call("decay", *PATHS_OF_STAGE["decay"], "--threads", "3").exit_code == 0
    assert {seen[name] for name in THREAD_VARIABLES} == {"3"}


class TestStatus:
    """status.json while stages run."""

    STATUS = Path("s/status.json")

    def run(self, stage: str, monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]) -> Result:
        put_stage(monkeypatch, stage, function)
        return call(stage, *PATHS_OF_STAGE[stage], "--status", str(self.STATUS))

    def failing(self, *_: Any, **__: Any) -> None:
        raise ReadError("it is broken")

    def test_a_failure_is_recorded_with_stage_and_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        result = self.run("convert", monkeypatch, self.failing)
        assert (result.exit_code, result.stderr) == (1, "convert s: it is broken\n")
        status = read_status(self.STATUS)
        assert (status.series, status.name, status.source) == ("s", "raw", "raw.dm4")
        assert (status.state, status.stage, status.reason) == ("failed", "convert", "it is broken")

    def test_while_a_stage_runs_the_old_report_is_gone_and_the_series_is_not_ok(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_status(self.STATUS, Status("s", "a #1", "raw.dm4", "ok", fingerprint="abc"))
        report = self.STATUS.with_name("report.html")
        report.write_text("old")
        during: list[Any] = []
        self.run("decay", monkeypatch, lambda *_, **__: during.append((report.exists(), read_status(self.STATUS))))
        (there, status), *_ = during
        assert not there
        assert (status.state, status.reason, status.name, status.fingerprint) == ("failed", INTERRUPTED, "a #1", "abc")

    def test_another_stage_does_not_hide_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run("damage", monkeypatch, self.failing)
        self.run("align", monkeypatch, lambda *_, **__: None)
        assert (read_status(self.STATUS).stage, read_status(self.STATUS).reason) == ("damage", "it is broken")
        self.run("damage", monkeypatch, lambda *_, **__: None)
        assert read_status(self.STATUS).reason == INTERRUPTED

    def test_a_stage_that_begins_waits_for_one_that_records_its_failure(self) -> None:
        """Both read the file and write it anew: between the two the failure would be lost."""
        self.STATUS.parent.mkdir()
        begins = threading.Thread(target=Record(self.STATUS, "align").begin)
        with Record(self.STATUS, "damage")._alone():
            begins.start()
            begins.join(0.2)
            assert begins.is_alive() and not self.STATUS.exists()
            write_status(self.STATUS, Status("s", "", "", "failed", stage="damage", reason="it is broken"))
        begins.join(30)
        assert (read_status(self.STATUS).stage, read_status(self.STATUS).reason) == ("damage", "it is broken")

    def test_converting_again_starts_afresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run("damage", monkeypatch, self.failing)
        self.run("convert", monkeypatch, lambda *_, **__: None)
        assert (read_status(self.STATUS).stage, read_status(self.STATUS).reason) == ("convert", INTERRUPTED)

    def test_a_damaged_status_file_is_replaced(self) -> None:
        self.STATUS.parent.mkdir()
        self.STATUS.write_text("{")
        Record(self.STATUS, "align").fail("why")
        assert read_status(self.STATUS).reason == "why"


def test_help_names_every_stage_and_imports_no_numerical_library() -> None:
    code = (
        "import sys; from atomdiffuser.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print('IMPORTED', *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown, _, imported = result.stdout.partition("IMPORTED")
    for name in (*STAGES, "summary", "run", "demo", "info", "simulate"):
        assert name in shown
    assert not {"numpy", "torch", "hyperspy", "pandas", "dask", "zarr", "matplotlib"} & set(imported.split())


def test_convert_reads_without_xarray_which_can_be_used_afterwards() -> None:
    code = (
        "import sys; from atomdiffuser.io._lean_dask import import_dask; import_dask()\n"
        "import rsciio.digitalmicrograph; print('xarray' in sys.modules)\n"
        "import dask.array as da, xarray\n"
        "lazy = xarray.DataArray([1, 2, 3]).chunk(1); import_dask()\n"
        "print(da.asarray(lazy).sum().compute(), lazy.sum().compute().item())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "6", "6"]


def test_options_say_what_they_are_and_what_is_allowed() -> None:
    shown = " ".join(call("register", "--help").output.replace("│", " ").split())
    assert "Gauss–Newton steps per pair at most (1 to 500) [default: 30]" in shown
    assert "[default: 1,2,4,8]" in shown


def test_info_tells_a_table_by_its_metadata() -> None:
    import pandas as pd

    from atomdiffuser.io.tables import write_table

    write_table(pd.DataFrame({"frame": [0, 1]}), Path("t.parquet"), "trajectory", settings={"lags": [1]})
    facts = json.loads(call("info", "t.parquet", "--json").output)
    assert (facts["kind"], facts["rows"], facts["settings"]) == ("trajectory (table)", 2, {"lags": [1]})


def test_info_of_an_unknown_file_is_one_line() -> None:
    Path("notes.txt").write_text("hello")
    result = call("info", "notes.txt")
    assert result.exit_code == 1
    assert result.stderr.startswith("info: notes.txt: ")
    assert result.stderr.count("\n") == 1


def test_run_without_the_workflow_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atomdiffuser.workflow.package_path.find_snakefile", lambda: None)
    result = call("run", ".")
    assert result.exit_code == 1
    assert "run this from a checkout" in result.stderr


def test_run_passes_the_session_and_further_arguments_to_snakemake(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(cli_run, "run_to_its_end", lambda command, **_: calls.append(command) or 3)
    Path("my session").mkdir()
    result = call("run", "my session", "--cores", "2", "--", "--use-conda", "--dry-run")
    assert result.exit_code == 3
    command = calls[0]
    assert command[-2:] == ["--config", f"session={Path('my session').absolute()}"]
    assert "--use-conda" in command and "--dry-run" in command


def test_settings_classes_have_distinct_flags() -> None:
    reserved = {"--log", "--status", "--threads", "--name", "--series-id", "--signal", "--overrides", "--fingerprint"}
    for stage in (RegisterSettings, DecaySettings, DamageSettings):
        assert not reserved & set(settings_flags(stage())[::2])


def test_simulate_takes_any_option_of_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, Any] = {}
    put_stage(monkeypatch, "simulate", lambda output, **named: received.update(named, output=output))
    options = [text for value in ("shape=128,160", "edge=true", "damage=edge") for text in ("--set", value)]
    result = call("simulate", "x.emd", "--format", "emd", *options)
    assert result.exit_code == 0, result.output
    assert (received["output"], received["format"]) == (Path("x.emd"), "emd")
    assert (received["shape"], received["edge"], received["damage"]) == ((128, 160), True, "edge")


def test_simulate_wants_assignments() -> None:
    result = call("simulate", "x.emd", "--set", "edge")
    assert (result.exit_code, result.stderr) == (1, "simulate: --set 'edge' is not NAME=VALUE, such as n_frames=20\n")
