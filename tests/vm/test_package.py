"""The Debian packages over a host's life: installed, upgraded, downgraded, removed, purged. In containers.

What has to hold is in docs/how-to/the-debian-packages.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentina.protocol.states import State
from tests.vm import container, host, images, lab

NewContainer = Callable[..., container.Container]
SOURCE = Path(__file__).parents[2]
SERVER_URL = "http://127.0.0.1:8440"


def apt(there: host.Host, verb: str, *packages: Path | str) -> str:
    """Run apt-get, as an administrator's tools do; returns what it said."""
    names = []
    for package in packages:
        if isinstance(package, Path):
            there.put(package.read_bytes(), f"/root/{package.name}")
        names.append(f"/root/{package.name}" if isinstance(package, Path) else package)
    options = "-y --allow-downgrades -o Dpkg::Use-Pty=0"
    return there.run(f"DEBIAN_FRONTEND=noninteractive apt-get {options} {verb} {' '.join(names)} 2>&1")


def versions(there: host.Host) -> set[str]:
    """Releases that are in place."""
    return set(there.run("ls /opt/agentina/releases").split())


def listing(there: host.Host, *paths: str) -> dict[str, str]:
    """Owner, permissions and size of everything below some paths."""
    said = there.run(f"find {' '.join(paths)} -printf '%p|%U:%G %m %y %s %T@\\n' 2>/dev/null || true")
    return dict(line.rsplit("|", 1) for line in said.splitlines())


@pytest.fixture(scope="module")
def server_package(package: Path) -> Path:
    (found,) = package.parent.glob("agentina-control-plane_*.deb")
    return found


@pytest.fixture(scope="module")
def agent(run_lab: lab.Lab, new_container: NewContainer) -> container.Container:
    """A host that is an agent, with room for three tasks."""
    there = new_container("agent")
    run_lab.activate(there, "default", "--max-concurrent-tasks", "3")
    return there


def test_builds_are_the_same_whoever_makes_them(package: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-B", "-m", "releasing", "deb", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": "packaging", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": lab.SOURCE_DATE}
    subprocess.run(command, cwd=SOURCE, env=environment, umask=0o077, stdout=subprocess.DEVNULL, check=True)
    for one in package.parent.glob("*.deb"):
        digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (one, tmp_path / one.name)}
        assert len(digests) == 1, one.name


@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not installed")
def test_lintian_has_no_complaint(package: Path) -> None:
    command = ["lintian", "--fail-on", "error,warning", "--allow-root", *map(str, package.parent.glob("*.deb"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_installing_starts_nothing_and_owns_its_places(new_container: NewContainer) -> None:
    there = new_container("fresh")
    assert "agentina, version" in there.run("agentina --version")
    assert there.run("systemctl list-units --plain --no-legend 'agentina*' || true") == ""
    owners = there.run(
        "stat -c '%n %U:%G %a' /var/lib/agentina /etc/agentina /opt/agentina/instances /opt/agentina/releases"
    )
    assert owners.count("root:root 755") == 4
    assert there.run("find /opt/agentina /usr/lib/agentina -not -user root -o -not -type l -perm /022") == ""
    assert "agentina" in there.run("getent passwd agentina")
    for unit in ("agentina@.service", "agentina-task@.service", "agentina-tasks.slice"):
        assert there.run(f"systemctl cat {unit}")
    for path in ("man/man1/agentina.1.gz", "bash-completion/completions/agentina", "doc/agentina/copyright"):
        there.run(f"test -s /usr/share/{path}")
    assert there.run("dpkg --audit; dpkg --verify agentina") == ""
    completed = there.run("_AGENTINA_COMPLETE=bash_complete COMP_WORDS='agentina inst' COMP_CWORD=1 agentina")
    assert completed == "plain,install\n"


def test_doctor_finds_nothing_missing(agent: container.Container) -> None:
    checks = {check["name"]: check for check in json.loads(agent.run("agentina doctor --json"))["checks"]}
    # A container has no cgroup of its own to speak of.
    bad = {name: check for name, check in checks.items() if check["verdict"] != "ok" and name != "cgroup"}
    assert not bad
    assert {"package", "release", "unit", "identity", "daemon"} <= checks.keys()


def test_who_may_look_and_who_may_not(agent: container.Container) -> None:
    agent.run("useradd visitor && useradd --groups agentina member")
    refused = agent.try_run("agentina status", user="visitor")
    assert refused.returncode == 3
    assert "usermod --append --groups agentina USER" in refused.stderr
    assert json.loads(agent.run("agentina status --json", user="member"))["state"] == "online"
    assert agent.try_run("agentina drain", user="member").returncode == 3


def test_upgrade_and_downgrade_end_no_task(
    run_lab: lab.Lab, agent: container.Container, package: Path, next_package: Path
) -> None:
    fleet = run_lab.fleet
    before = json.loads(agent.run("agentina status --json"))["version"]
    jobs = [fleet.submit_script("for i in $(seq 1000); do echo line $i; sleep 0.1; done") for _ in range(3)]
    for job in jobs:
        fleet.wait_state(job, State.RUNNING)
    pids = [fleet.job(job).tasks[0].pid for job in jobs]
    for step, wanted in ((next_package, lab.NEXT), (package, before)):
        assert "ending" not in apt(agent, "install", step)
        status = json.loads(agent.run("agentina status --json"))
        assert (status["version"], status["state"]) == (wanted, "online")
        assert versions(agent) == {before, lab.NEXT}, "what ran before is kept to go back to"
        for job, pid in zip(jobs, pids, strict=True):
            view = fleet.job(job)
            assert view.job.state is State.RUNNING
            assert [task.pid for task in view.tasks] == [pid]
    for job in jobs:
        fleet.client.cancel_job(job)
        fleet.wait_final(job)
        lines = fleet.output(job).decode().splitlines()
        assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]


def test_needrestart_leaves_tasks_alone(agent: container.Container) -> None:
    rules = (
        'perl -e \'our %nrconf; do "/etc/needrestart/conf.d/agentina.conf"; die $@ if $@; my $r = $nrconf{override_rc};'
        ' for my $u (@ARGV) { my ($m) = grep { $u =~ /$_/ } keys %$r; print defined $m ? $r->{$m} : 1, "\\n" }\' '
    )
    alone = "agentina-task@default-S1.service agentina-task@a-S-_b-S9999.service agentina-update@default.service "
    said = agent.run(rules + alone + "agentina-trial@default.service agentina@default.service ssh.service")
    assert said.split() == ["0", "0", "0", "0", "1", "1"]


def test_configuration_of_needrestart_that_a_power_cut_emptied_comes_back(
    agent: container.Container, package: Path
) -> None:
    place = "/etc/needrestart/conf.d/agentina.conf"
    whole = agent.get(place)
    agent.run(f": > {place}")
    apt(agent, "--reinstall", "install", package)
    assert agent.get(place) == whole


def test_a_broken_release_does_not_keep_the_command_from_running(agent: container.Container) -> None:
    agent.run(
        "mkdir -p /opt/agentina/releases/98.0/lib/agentina && ln -s ../releases/98.0 /opt/agentina/instances/default"
    )
    try:
        done = agent.try_run("agentina status")
        assert done.returncode == 0, done.stderr
        assert "98.0 has nothing for" in done.stderr
    finally:
        agent.run("rm -r /opt/agentina/instances/default /opt/agentina/releases/98.0")


def test_remove_ends_everything_and_says_so_and_comes_back(
    run_lab: lab.Lab, agent: container.Container, package: Path
) -> None:
    fleet = run_lab.fleet
    before = json.loads(agent.run("agentina status --json"))["agent_id"]
    job = fleet.submit(["sleep", "1000"])
    fleet.wait_state(job, State.RUNNING)
    said = apt(agent, "remove", "agentina")
    assert "stopping agentina@default.service" in said
    assert "ending 1 running task(s)" in said
    assert agent.run("pgrep -u agentina || true") == ""
    assert agent.try_run("pgrep -f 'sleep 1000'").returncode != 0
    assert listing(agent, "/opt/agentina", "/usr/lib/agentina") == {}
    agent.run("test -s /var/lib/agentina/default/identity && test -s /etc/agentina/default.yaml")
    apt(agent, "install", package)
    run_lab.wait_online(agent)
    assert json.loads(agent.run("agentina status --json"))["agent_id"] == before, "the instance is back"
    assert fleet.wait_final(job).job.state is not State.SUCCEEDED


def test_purge_leaves_nothing(agent: container.Container) -> None:
    apt(agent, "purge", "agentina")
    assert agent.run("systemctl list-units --all --plain --no-legend 'agentina*'") == ""
    # But for what the tests put there.
    elsewhere = " ".join(f"-not -path '{path}/*'" for path in ("/root", "/proc", "/etc/ssl"))
    assert agent.run(f"find / -xdev -iname '*agentina*' {elsewhere}") == ""


def test_an_install_that_is_killed_anywhere_is_completed_by_the_next(
    run_lab: lab.Lab, new_container: NewContainer
) -> None:
    there = new_container("killed")
    seeded = random.Random(3)
    token = run_lab.fleet.new_token()
    began = time.monotonic()
    run_lab.activate(there, "measure")
    whole = time.monotonic() - began
    for round_number in range(8):
        instance = f"kill-{round_number}"
        token = run_lab.fleet.new_token()
        for _ in range(2):
            command = (
                f"agentina install --instance {instance} --control-plane {run_lab.url} --ca-file {lab.CERTIFICATE}"
            )
            after = seeded.uniform(0.02, whole)
            there.try_run(f"timeout -s KILL {after:.3f} {command} --token-file -", text=token)
        done = run_lab.activate(there, instance, token=token)
        assert done["service"]
        assert json.loads(there.run(f"agentina status --json --instance {instance}"))["state"] == "online"
        assert run_lab.activate(there, instance, token=token)["changed"] == []
        there.run(f"agentina uninstall --purge --instance {instance}")
    agents = run_lab.fleet.document("agent", "list")["agents"]
    assert len([one for one in agents if one["instance"].startswith("kill-")]) == 8


@pytest.mark.parametrize("suite", ["trixie", "noble"])
def test_other_systems(suite: str, run_lab: lab.Lab, package: Path, tmp_path: Path) -> None:
    with container.Container(images.base(suite), tmp_path, name=suite) as there:
        lab.install_package(there, package)
        run_lab.activate(there, "default", "--role", suite)
        assert json.loads(there.run("agentina status --json"))["executor"] == "systemd"
        job = run_lab.fleet.submit_script("python3 --version; id -un", role=suite)
        view = run_lab.fleet.wait_final(job)
        output = run_lab.fleet.output(job).decode()
        assert view.job.state is State.SUCCEEDED, (view.job, output)
        assert {"trixie": "Python 3.13", "noble": "Python 3.12"}[suite] in output
        assert output.endswith("\n_default-S1\n"), output
        there.run("agentina uninstall --purge")


def test_control_plane_package(new_container: NewContainer, package: Path, server_package: Path) -> None:
    there = new_container("server", installed=False)
    apt(there, "install", package, server_package)
    there.wait(f"python3 -c \"import urllib.request as u; u.urlopen('{SERVER_URL}/readyz')\"", "it serves")
    data = "/var/lib/agentina-control-plane"
    assert there.run(f"stat -c '%U' {data} {data}/operator-token").split() == ["agentina-control-plane"] * 2
    assert there.run(f"stat -c '%a' {data} {data}/operator-token").split() == ["700", "600"]
    score = there.run("systemd-analyze security --no-pager agentina-control-plane | tail -1")
    assert float(score.split(":")[1].split()[0]) <= 2.0, score
    environment = f"AGENTINA_CONTROL_PLANE={SERVER_URL} AGENTINA_API_TOKEN_FILE={data}/operator-token"
    there.run(f"{environment} agentina token create > /root/token")
    there.run(f"agentina install --token-file /root/token --control-plane {SERVER_URL}")
    done = there.run(f"{environment} agentina job run -- echo from a package")
    assert "from a package" in done
    pid = there.run("systemctl show -P MainPID agentina-control-plane")
    apt(there, "install --reinstall", package, server_package)
    assert there.run("systemctl show -P MainPID agentina-control-plane") != pid
    apt(there, "remove", "agentina-control-plane")
    there.run(f"test -s {data}/control.db")
    apt(there, "purge", "agentina-control-plane")
    assert listing(there, data, "/usr/lib/agentina-control-plane") == {}
