"""Options that subcommands share: settings derived from their dataclass, paths of stores, log, threads and status."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich_click as click

from atomdiffuser.cluster import require_address
from atomdiffuser.config import field_schema
from atomdiffuser.errors import SettingsError
from atomdiffuser.workflow.config_file import range_text

THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS",
    "DASK_NUM_WORKERS",
)  # fmt: skip
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class StorePath(click.Path):
    """A store's folder, or the zarr.json inside it, which is what the workflow tracks."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(super().convert(value, param, ctx))
        return path.parent if path.name == "zarr.json" else path


class InputPath(click.Path):
    """A path that must exist; where it does not, the name beside it that was probably meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(value))
        if self.exists and not path.exists():
            folder = path.parent
            there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
            near = difflib.get_close_matches(path.name, there, n=1)
            hint = f"did you mean {str(folder / near[0])!r}?" if near else f"looked in {folder.absolute()}"
            self.fail(f"{str(path)!r} does not exist; {hint}", param, ctx)
        return Path(super().convert(value, param, ctx))


PATH = click.Path(path_type=Path)
INPUT = InputPath(exists=True, path_type=Path)
INPUT_FILE = InputPath(exists=True, dir_okay=False, path_type=Path)
INPUT_FOLDER = InputPath(exists=True, file_okay=False, path_type=Path)
STORE = StorePath()


class SettingType(click.ParamType):
    """One setting: text → value, checked against the schema that also checks config.yaml."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        self.name = _metavar(schema)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if self.schema.get("type") == "array":
            parsed: Any = [_number(v) for v in value.split(",")]
        else:
            parsed = _number(value)
        import jsonschema

        if not jsonschema.Draft202012Validator(self.schema).is_valid(parsed):
            self.fail(f"{value!r} is not allowed; expected {self.name.lower()}{range_text(self.schema)}", param, ctx)
        return tuple(parsed) if isinstance(parsed, list) else parsed


def flag_name(field_name: str) -> str:
    """`max_drift_fraction` → `--max-drift-fraction`."""
    return "--" + field_name.replace("_", "-")


def flag_value(value: Any) -> str:
    """A setting's value as it is written on the command line."""
    return ",".join(map(flag_value, value)) if isinstance(value, (tuple, list)) else str(value)


def settings_flags(settings: Any) -> list[str]:
    """Command line arguments that reproduce a stage's settings, all of them."""
    pairs = ((flag_name(f.name), flag_value(getattr(settings, f.name))) for f in dataclasses.fields(settings))
    return [text for pair in pairs for text in pair]


def settings_options(stage: type) -> Callable[[Callable], Callable]:
    """Decorator: one option per field of a settings class; the function receives them as `settings`."""
    fields = dataclasses.fields(stage)

    def decorate(function: Callable) -> Callable:
        def call(**arguments: Any) -> Any:
            values = {f.name: arguments.pop(f.name) for f in fields}
            return function(settings=stage(**values), **arguments)

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        call.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        for f in reversed(fields):
            schema = field_schema(stage, f.name)
            option = click.option(
                flag_name(f.name),
                f.name,
                type=SettingType(schema),
                default=flag_value(f.default),
                show_default=True,
                help=schema["description"] + range_text(schema),
            )
            call = option(call)
        return call

    return decorate


def cluster_option(function: Callable) -> Callable:
    """Decorator: the address of a cluster for the stages that can hand work to one, as `dask_scheduler`."""

    def check(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
        try:
            return require_address(value) if value else None
        except SettingsError as error:
            raise click.BadParameter(str(error), context, option) from None

    told = "Address of a dask.distributed scheduler, such as tcp://host:8786, for its workers to do the larger part."
    return click.option("--dask-scheduler", metavar="ADDRESS", callback=check, help=told)(function)


def set_threads(threads: int | None) -> None:
    """Limit the threads of the numerical libraries; takes effect because none of them is imported yet."""
    if threads is not None:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))


def _number(text: str) -> Any:
    text = text.strip()
    if not NUMBER.fullmatch(text):
        return text
    value = float(text)
    return int(value) if value.is_integer() else value


def _metavar(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return "|".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return "|".join(map(_metavar, schema["anyOf"]))
    if schema["type"] == "array":
        return f"{_metavar(schema['items'])},…"
    return schema["type"].upper()
