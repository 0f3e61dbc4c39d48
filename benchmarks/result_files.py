"""What a folder of results holds, file by file, for the comparison of two runs.

Left out, because they tell of the run and not of the result: logs, benchmarks (run times), Snakemake's and
AtomDiffuser's own records. Masked in what is compared: `updated` of status.json, and the time and the command line of
the pages, which name when and where they were made.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

RECORDS = {".snakemake", ".atomdiffuser", "logs", "benchmarks"}
COMMAND = re.compile(rb"atomdiffuser run [^<\n]*")
MOMENT = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?([+-]\d\d:\d\d| UTC|Z)?")


def result_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every result below a folder by its relative path; links by where they lead."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if RECORDS & set(relative.parts):
            continue
        if path.is_symlink():
            found[str(relative)] = f"link to {path.readlink()}"
        elif path.is_file():
            found[str(relative)] = hashlib.sha256(_content(path)).hexdigest()[:16]
    return found


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Files that are missing, left over or of other contents; empty when the results are the same."""
    told = [f"missing: {name}" for name in expected.keys() - found.keys()]
    told += [f"left over: {name}" for name in found.keys() - expected.keys()]
    told += [f"differs: {name}" for name in found.keys() & expected.keys() if found[name] != expected[name]]
    return sorted(told)


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name == "status.json":
        status = json.loads(data)
        status.pop("updated", None)
        return json.dumps(status, sort_keys=True).encode()
    if path.suffix == ".html":
        data = MOMENT.sub(b"<moment>", COMMAND.sub(b"<command>", data))
    return data
