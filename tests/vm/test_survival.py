"""What maintenance of a host does to its tasks: nothing.

Twenty tasks run through all of it. Each writes a line every tenth of a second, with its number and the process that
wrote it, so that a second start, another process, and a lost or doubled piece of output all show.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import container, host, lab

TASKS = 20
KILLS = 50

_SCRIPT = "echo start $$; i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo $$ $i; sleep 0.1; done; echo end"


@dataclasses.dataclass
class Running:
    """Tasks that run on a host."""

    there: container.Container
    jobs: list[str]
    #: The main process of each unit.
    pids: dict[str, int]


@pytest.fixture(scope="module")
def running(new_container: Callable[..., container.Container], run_lab: lab.Lab, next_package: Path) -> Running:
    # The later package is asked for here: it takes a minute to build, and the tasks run for a minute and a half.
    there = new_container()
    run_lab.activate(there, "default", f"--max-concurrent-tasks {TASKS}")
    script = _SCRIPT.format(lines=900)
    jobs = [run_lab.fleet.submit_script(script, resources={"memory": "64MiB", "cpu": 0.1}) for _ in range(TASKS)]
    host.wait_for(lambda: len(run_lab.units(there)) == TASKS, f"{TASKS} tasks run")
    return Running(there, jobs, run_lab.units(there))


def check_untouched(running: Running, run_lab: lab.Lab) -> None:
    run_lab.wait_online(running.there)
    assert run_lab.units(running.there) == running.pids


def test_restart(running: Running, run_lab: lab.Lab) -> None:
    running.there.run("systemctl restart agentina@default")
    check_untouched(running, run_lab)


def test_daemon_killed(running: Running, run_lab: lab.Lab, measured: Callable[[str], None]) -> None:
    """SIGKILL at random moments of its life, also while it starts and re-adopts."""
    there = running.there
    there.put(
        b"[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=100ms\n",
        "/run/systemd/system/agentina@.service.d/fast.conf",
    )
    there.run("systemctl daemon-reload")
    choose = random.Random(1)
    started = time.monotonic()
    for _ in range(KILLS):
        time.sleep(choose.uniform(0, 0.8))
        there.try_run("systemctl kill --kill-whom=main --signal=KILL agentina@default")
    measured(f"{KILLS} kills of the daemon in {time.monotonic() - started:.0f} s")
    check_untouched(running, run_lab)


def test_pid_1_executed_anew(running: Running, run_lab: lab.Lab) -> None:
    running.there.run("systemctl daemon-reexec; systemctl daemon-reload; systemctl restart dbus polkit")
    check_untouched(running, run_lab)


def test_package_upgraded(running: Running, run_lab: lab.Lab, next_package: Path) -> None:
    before = running.there.run("systemctl show -P MainPID agentina@default")
    lab.install_package(running.there, next_package)
    assert running.there.run("systemctl show -P MainPID agentina@default") != before, "the daemon is the new one"
    check_untouched(running, run_lab)
    running.there.run(f"apt-get -y --reinstall install /root/{next_package.name}")
    check_untouched(running, run_lab)


def test_needrestart(running: Running, run_lab: lab.Lab) -> None:
    """A library that everybody uses is replaced, and needrestart restarts what uses the old one."""
    there = running.there
    before = there.run("systemctl show -P MainPID agentina@default")
    there.run("for f in /lib/x86_64-linux-gnu/libc.so.6; do cp $f $f.new && mv $f.new $f; done")
    said = there.run("NEEDRESTART_MODE=a needrestart -r a -m a 2>&1")
    deferred = said.split("deferred")[1]
    assert all(f"{unit}\n" in f"{deferred}\n" for unit in running.pids), "tasks are found, and left alone"
    assert there.run("systemctl show -P MainPID agentina@default") != before, "the daemon is not"
    check_untouched(running, run_lab)


def test_every_line_arrives_once(running: Running, run_lab: lab.Lab) -> None:
    for job in running.jobs:
        view = run_lab.fleet.wait_final(job, seconds=host.PATIENCE)
        assert view.job.state.value == "succeeded", view.job
        assert len(view.tasks) == 1, view.tasks
        lines = run_lab.fleet.output(job).decode().splitlines()
        assert lines[0].startswith("start ")
        pid = lines[0].split()[1]
        assert lines[1:] == [*(f"{pid} {number}" for number in range(1, 901)), "end"]
    assert run_lab.units(running.there) == {}
