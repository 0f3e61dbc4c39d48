"""The Slurm profile on a real Slurm (see one_node_slurm.py), and what of it can be seen without one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import time
from pathlib import Path

import one_node_slurm
import pytest
import yaml
from tiny_sessions import STAGES, Run, Session, write_raw

from atomdiffuser.workflow.config_file import CHECKOUT

PROFILE = CHECKOUT / "workflow" / "profiles" / "slurm"
# what a cluster without accounting needs, with short waits
HERE = (
    "--slurm-no-account", "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3",
    "--seconds-between-status-checks", "3", "--latency-wait", "10",
    "--set-resources", "register:gpu=1",
)  # fmt: skip
needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
    reason="no executor plugin: pip install snakemake-executor-plugin-slurm",
)


@pytest.mark.workflow
@pytest.mark.slow
@needs_plugin
def test_every_stage_runs_as_a_slurm_job_with_its_gpu_and_a_lost_job_is_tried_again(tmp_path: Path) -> None:
    if reason := one_node_slurm.obstacle():
        pytest.skip(reason)
    session = Session(tmp_path / "session")
    session.folder.mkdir()
    write_raw(session.folder / "only.dm4", seed=1)
    with one_node_slurm.one_node(tmp_path / "slurm") as completed:
        lost = _Lost("rule_register")
        run = on_slurm(session)
        asked_for = lost.stop()
        jobs = completed.read_text().splitlines()
    assert run.code == 0, run.said
    assert (session.results / "summary.html").is_file()
    assert all((session.results / "only" / "logs" / f"{stage}.log").is_file() for stage in STAGES)
    # convert, register lost, register again, decay, what follows it in one, summary
    assert len(jobs) == 6, jobs
    assert [j for j in jobs if "JobState=CANCELLED" in j] and sum("JobState=COMPLETED" in j for j in jobs) == 5, jobs
    assert "gpu" in asked_for and "8000M" in asked_for, asked_for
    assert "NumCPUs=4" in asked_for, asked_for  # all threads of the rule: no number of cores is given on a cluster
    assert "Trying to restart" in run.said, run.said


def test_the_profile_tries_again_groups_what_is_short_and_does_not_count_gpus() -> None:
    profile = yaml.safe_load((PROFILE / "config.yaml").read_text())
    assert profile["executor"] == "slurm" and profile["retries"] == 2
    assert {g.split("=")[0] for g in profile["groups"]} == {"damage", "align", "report_series"}
    assert {g.split("=")[1] for g in profile["groups"]} == {"after_maps"}
    # the default profile, which Snakemake adds, lets jobs with a GPU take turns: right on one machine only
    default = yaml.safe_load((PROFILE.parent / "default" / "config.yaml").read_text())
    assert default["resources"] == ["gpu=1"] and profile["resources"] == ["gpu=1000"]
    assert profile["conda-prefix"] == default["conda-prefix"]


def on_slurm(session: Session) -> Run:
    """The documented command."""
    command = [sys.executable, "-m", "snakemake", "--profile", str(PROFILE), *HERE]
    done = subprocess.run(
        [*command, "--config", f"session={session.folder}"],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    return Run(done.returncode, done.stdout + done.stderr)


class _Lost:
    """Cancels the first job of a rule as soon as Slurm has it, as a node that fails would end it."""

    def __init__(self, rule: str) -> None:
        self.rule, self.asked_for, self.ended = rule, "", threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.ended.wait(0.2):
            queue = subprocess.run(
                ["squeue", "-h", "-o", "%i|%k|%b|%m"], capture_output=True, text=True, check=False
            ).stdout
            for line in queue.splitlines():
                if self.rule in line:
                    number = line.split("|")[0]
                    told = subprocess.run(
                        ["scontrol", "show", "job", number], capture_output=True, text=True, check=False
                    )
                    self.asked_for = f"{line} {told.stdout}"
                    subprocess.run(["scancel", number], check=False)
                    return

    def stop(self) -> str:
        """What Slurm said of the job that was cancelled."""
        time.sleep(0.1)
        self.ended.set()
        self.thread.join(10)
        return self.asked_for
