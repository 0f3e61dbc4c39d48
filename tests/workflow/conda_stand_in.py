"""A stand-in for conda that works without a network: a local channel, and a `conda` that solves and installs from it.

It answers the calls that Snakemake 9 makes, with a real solver (py-rattler). The channel's packages carry no code of
their own: `python` is a link to the interpreter of this test and `host-packages` shows its site-packages.

It proves that envs/*.yaml parse, that their names and version ranges are solvable against the versions pinned here,
that environments are made, activated and reused, and that jobs in them find the checkout's package. It does not prove
that conda-forge has these versions, nor that its builds work together.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import platform
import shlex
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import yaml

CHANNEL = "conda-forge"
SUBDIR = "linux-64"
PIP_NAMES = {"pytorch": "torch", "dask-core": "dask", "matplotlib-base": "matplotlib"}
ACTIVATE = 'export CONDA_PREFIX="$1" CONDA_DEFAULT_ENV="$1" CONDA_SHLVL=1\nexport PATH="$1/bin:$PATH"\n'


def write_stand_in(folder: Path, env_files: Iterable[Path]) -> dict[str, str]:
    """Make the channel and the executables under `folder`; returns the environment variables that lead to them."""
    names = {name for file in env_files for name in packages_of(file)} - {"python"}
    build_channel(folder / "channels" / CHANNEL, {name: version(PIP_NAMES.get(name, name)) for name in names})
    tools = folder / "conda" / "bin"
    tools.mkdir(parents=True)
    (tools / "activate").write_text(ACTIVATE)
    conda = tools / "conda"
    command = shlex.join([sys.executable, str(Path(__file__).resolve())])
    # Killed by a signal (status above 128), which is the solver's runtime and not what is tested, it is asked again.
    conda.write_text(f'#!/bin/sh\n{command} "$@"\ncode=$?\n[ $code -le 128 ] && exit $code\nexec {command} "$@"\n')
    conda.chmod(0o755)
    return {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "CONDA_PKGS_DIRS": str(folder / "packages"),
        "STAND_IN_ROOT": str(folder / "conda"),
        "STAND_IN_CHANNELS": (folder / "channels").as_uri() + "/",
    }


def packages_of(env_file: Path) -> list[str]:
    """Package names in an environment file."""
    return [line.split()[0] for line in yaml.safe_load(env_file.read_text())["dependencies"]]


def build_channel(channel: Path, packages: Mapping[str, str]) -> None:
    """Write packages of these names and versions, and the channel's index."""
    from rattler.index import index_fs

    python = platform.python_version()
    short = ".".join(python.split(".")[:2])
    site = f"lib/python{short}/site-packages"
    home = Path(os.path.realpath(sys.executable))
    config = f"home = {home.parent}\ninclude-system-site-packages = false\nversion = {python}\n"
    links = {"bin/python": str(home), "bin/python3": "python", f"bin/python{short}": "python"}
    write_package(channel, "python", python, files={"pyvenv.cfg": config, f"{site}/README": "stand-in\n"}, links=links)
    shown = f"{sysconfig.get_paths()['purelib']}\n"
    write_package(channel, "host-packages", "1", [f"python {short}.*"], files={f"{site}/host-packages.pth": shown})
    write_package(channel, "pip", "24.0", ["python"])  # conda adds pip wherever there is python
    for name, number in packages.items():
        write_package(channel, name, number, ["python", "host-packages"])
    asyncio.run(index_fs(channel))


def write_package(
    channel: Path,
    name: str,
    number: str,
    depends: Iterable[str] = (),
    *,
    files: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
) -> None:
    """One .tar.bz2 package with text files and symbolic links."""
    files, links = dict(files or {}), dict(links or {})
    number = number.split("+")[0]
    index = {"name": name, "version": number, "build": "0", "build_number": 0, "subdir": SUBDIR}
    listed = [_path_entry(p, text.encode(), "hardlink") for p, text in files.items()]
    listed += [_path_entry(p, b"", "softlink") for p in links]
    info = {
        "info/index.json": json.dumps({**index, "depends": list(depends), "timestamp": 1_700_000_000_000}),
        "info/paths.json": json.dumps({"paths": listed, "paths_version": 1}),
        "info/files": "".join(f"{p}\n" for p in (*files, *links)),
    }
    target = channel / SUBDIR / f"{name}-{number}-0.tar.bz2"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:bz2") as archive:
        for path, text in {**info, **files}.items():
            member = tarfile.TarInfo(path)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
        for path, destination in links.items():
            member = tarfile.TarInfo(path)
            member.type, member.linkname = tarfile.SYMTYPE, destination
            archive.addfile(member)


def _path_entry(path: str, content: bytes, kind: str) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    return {"_path": path, "path_type": kind, "sha256": digest, "size_in_bytes": len(content)}


async def create_environment(file: Path, prefix: Path) -> None:
    """`conda env create`: solve what the file asks for and install it."""
    from rattler import Channel, ChannelConfig, MatchSpec, VirtualPackage, install, solve

    wanted = yaml.safe_load(file.read_text())
    config = ChannelConfig(channel_alias=os.environ["STAND_IN_CHANNELS"])
    records = await solve(
        sources=[Channel(name, config) for name in wanted["channels"] if name != "nodefaults"],
        specs=[MatchSpec(line) for line in wanted["dependencies"]],
        platforms=[SUBDIR, "noarch"],
        virtual_packages=VirtualPackage.detect(),
    )
    await install(records, target_prefix=prefix, show_progress=False, cache_dir=os.environ["CONDA_PKGS_DIRS"])


def main(arguments: list[str]) -> None:
    """The calls of `conda` that Snakemake makes."""
    if arguments == ["--version"]:
        print("conda 25.1.0")
    elif arguments[:1] == ["info"]:
        root = os.environ["STAND_IN_ROOT"]
        print(json.dumps({"conda_prefix": root, "platform": SUBDIR, "conda_version": "25.1.0"}))
    elif arguments[:2] == ["config", "--get"]:
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    elif arguments[:2] == ["env", "create"]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--file", type=Path)
        parser.add_argument("--prefix", type=Path)
        known, _ = parser.parse_known_args(arguments[2:])
        asyncio.run(create_environment(known.file, known.prefix))
        sys.stdout.flush()
        os._exit(0)  # the solver's threads may crash an interpreter that is on its way out
    elif arguments[:1] != ["clean"]:
        sys.exit(f"conda stand-in: no answer to {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
