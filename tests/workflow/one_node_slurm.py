"""A real Slurm of one node on the loopback device, with a made-up GPU, from Debian's slurm-wlm and munge.

It proves that the profile's options, resources and groups are taken by Slurm, that a GPU is asked for and granted, and
that lost jobs are tried again. It does not prove anything of a network file system, nor of job accounting.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel")
PORTS = (6817, 6818)
CONFIGURATION = Path("/etc/slurm")  # srun looks nowhere else
CORES = 4  # whatever the machine has
SLURM_CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/run/munge.socket
CredType=cred/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={base}/log/completed.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2
MpiDefault=none
ReturnToService=2
MinJobAge=300
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=16000 Gres=gpu:1 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def obstacle() -> str:
    """Why no Slurm can be started here; empty when one can."""
    missing = [p for p in PROGRAMS if not _program(p)]
    if missing:
        return f"Slurm is not installed (no {', '.join(missing)}): apt-get install slurm-wlm munge"
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "a Slurm of its own needs root"
    if any((CONFIGURATION / name).exists() for name in ("slurm.conf", "gres.conf")):
        return f"{CONFIGURATION} belongs to a cluster, which tests leave alone"
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return f"port {port} of Slurm is taken"
    return ""


@contextlib.contextmanager
def one_node(base: Path) -> Iterator[Path]:
    """Start the daemons with all their files in `base`; stop them, and take away their configuration, at the end.

    Yields the file of completed jobs.
    """
    for name in ("etc", "run", "munge", "log", "state", "spool"):
        (base / name).mkdir(parents=True)
    base.chmod(0o755)
    (base / "munge").chmod(0o700)
    host = socket.gethostname().split(".")[0]
    texts = {
        "slurm.conf": SLURM_CONF.format(host=host, base=base, cores=CORES),
        "gres.conf": f"NodeName={host} Name=gpu Count=1 File=/dev/zero\n",
    }
    key = base / "munge" / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    run, log = base / "run", base / "log"
    munge = [f"--{n}={p}" for n, p in (
        ("socket", run / "munge.socket"), ("key-file", key), ("pid-file", run / "munged.pid"),
        ("log-file", base / "munge" / "munged.log"), ("seed-file", base / "munge" / "seed"),
    )]  # fmt: skip
    daemons: list[subprocess.Popen[bytes]] = []
    links = []
    try:
        CONFIGURATION.mkdir(exist_ok=True)
        for name, text in texts.items():
            (base / "etc" / name).write_text(text)
            (CONFIGURATION / name).symlink_to(base / "etc" / name)
            links.append(CONFIGURATION / name)
        for command in (["munged", "--force", "-F", *munge], ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", host]):
            output = (log / f"{command[0]}.out").open("wb")
            daemons.append(
                subprocess.Popen([_program(command[0]), *command[1:]], stdout=output, stderr=subprocess.STDOUT)
            )
            output.close()
            time.sleep(1.5)
        _wait_until_idle(log)
        yield log / "completed.txt"
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for link in links:
            link.unlink()


def _wait_until_idle(log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        state = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
        if state.stdout.strip() == "idle":
            return
        time.sleep(1)
    raise RuntimeError(f"Slurm did not come up; see {sorted(log.iterdir())}")


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") or ""
