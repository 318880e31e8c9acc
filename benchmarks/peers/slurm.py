"""Slurm from Debian's packages (slurmctld, slurmd, munge), started below a temporary directory; needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

#: Seconds a daemon may take until it serves: the first time after it was installed it is slow.
_READY_SECONDS = 120.0
_PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
_CONFIGURATION = """
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=26917
SlurmdPort=26918
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.sock
CredType=cred/munge
CommunicationParameters=NoInAddrAny
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/ctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/ctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=128 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A running controller and node; ``submit`` is ``srun``, which starts at once (sbatch waits seconds by design)."""

    name = "slurm"

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def submit(self, argv: list[str]) -> None:
        """Run one job step and wait for it."""
        subprocess.run(["srun", "-Q", *argv], check=True, env=self._environment)

    def start(self, argv: list[str]) -> None:
        """Queue a batch job and return."""
        script = ["sbatch", "-Q", "-o", "/dev/null", "--wrap", " ".join(argv)]
        subprocess.run(script, check=True, env=self._environment, stdout=subprocess.DEVNULL)


def available() -> bool:
    """Whether it can run here: root, and installed or installable."""
    if os.geteuid() != 0:
        return False
    if shutil.which("slurmctld") and shutil.which("munged"):
        return True
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *_PACKAGES]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def running() -> Iterator[Slurm]:
    """Munge, controller and node daemon, stopped and removed afterwards."""
    home = Path(tempfile.mkdtemp(prefix="bench-slurm-"))
    home.chmod(0o755)
    environment = {**os.environ, "SLURM_CONF": str(home / "slurm.conf")}
    started: list[subprocess.Popen[bytes]] = []
    try:
        (home / "slurm.conf").write_text(_CONFIGURATION.format(home=home, host=socket.gethostname().split(".")[0]))
        for name in ("state", "spool"):
            (home / name).mkdir()
        (home / "munge.key").write_bytes(os.urandom(1024))
        (home / "munge.key").chmod(0o600)
        munge = ["munged", "--foreground", "--force", f"--socket={home}/munge.sock", f"--key-file={home}/munge.key"]
        munge += [f"--pid-file={home}/munge.pid", f"--log-file={home}/munge.log", f"--seed-file={home}/munge.seed"]
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
            quiet = subprocess.DEVNULL
            started.append(subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet))
            # The controller ends at once without it.
            _wait((home / "munge.sock").exists, what="munge")
        _wait(lambda: _is_idle(environment), what="slurm")
        yield Slurm(environment)
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _is_idle(environment: dict[str, str]) -> bool:
    done = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, check=False)
    return b"idle" in done.stdout


def _wait(condition: Callable[[], bool], *, what: str) -> None:
    end = time.monotonic() + _READY_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not get ready")
        time.sleep(0.1)
