"""What pyproject.toml cannot say: a wheel also carries the workflow, so that `atomdiffuser run` needs no checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = "atomdiffuser/workflow/shipped"
WORKFLOW = ("Snakefile", "config", "envs", "workflow")


class BuildWithWorkflow(build_py):
    """Copies Snakefile, rules, settings and environments into the package that is built."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / SHIPPED
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in WORKFLOW:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns(".*", "__pycache__"))
            else:
                shutil.copy(source, target / name)
        # Snakemake looks for profiles beside the Snakefile; the checkout has a link there
        shutil.copytree(ROOT / "workflow" / "profiles", target / "profiles")


setup(cmdclass={"build_py": BuildWithWorkflow})
