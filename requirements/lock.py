"""Write the pinned requirement files from what is installed in the running environment.

lock.txt holds the closure of the package's own dependencies; demo.txt, distributed.txt, docs.txt, peers.txt,
quality.txt, s3.txt, test.txt and lint.txt what their extras add.
Run by `make lock`, in an environment that has all extras.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

FOLDER = Path(__file__).resolve().parent
EXTRAS = ("demo", "distributed", "docs", "peers", "quality", "s3", "test", "lint")
NOT_PINNED = ("nvidia-", "triton")  # CUDA's libraries belong to torch's own build and follow its exact version


def main() -> None:
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))
    build = project["build-system"]["requires"]
    base = closure([*project["project"]["dependencies"], *build])
    write(FOLDER / "lock.txt", base, "what the workflow needs")
    for extra in EXTRAS:
        added = closure(project["project"]["optional-dependencies"][extra])
        only = {name: version for name, version in added.items() if name not in base}
        write(FOLDER / f"{extra}.txt", only, f"what `{extra}` needs beyond lock.txt")


def closure(requirements: Iterable[str]) -> dict[str, str]:
    """Canonical name → installed public version of the requirements and of all that they require here."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(r) for r in requirements]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name.startswith(NOT_PINNED) or name == "pip":
            continue
        try:
            installed = distribution(requirement.name)
        except PackageNotFoundError:
            raise SystemExit(f"{requirement.name} is not installed here; run `make setup-all` first") from None
        found[name] = Version(installed.version).public
        for extra in sorted({"", *requirement.extras}):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in installed.requires or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    todo.append(needed)
    return found


def write(path: Path, pins: dict[str, str], purpose: str) -> None:
    lines = [f"# {purpose}; written by `make lock`, not by hand", *(f"{n}=={pins[n]}" for n in sorted(pins))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path.name}: {len(pins)} pins")


if __name__ == "__main__":
    main()
