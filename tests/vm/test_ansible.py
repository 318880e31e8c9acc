"""The Ansible role against two hosts over SSH, from an empty machine to one that was an agent."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from agentina.protocol.states import State
from tests.vm import container, host, images, lab

ROLE: Final = Path(__file__).parents[2] / "packaging/ansible"
_REQUIREMENTS: Final = Path(__file__).with_name("ansible-requirements.txt")
PLAY: Final = {"name": "Agents", "hosts": "all", "gather_facts": False}
SMALL: Final = {"memory": "64MiB", "cpu": 0.1}
SECRET: Final = re.compile(r"a(op|ct)_[A-Za-z0-9_-]{16,}")
_RECAP: Final = re.compile(r"^(\S+)\s*: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@pytest.fixture(scope="session")
def tools() -> Path:
    """Directory of ansible's programs, in an environment of their own."""
    final = images.cache() / f"ansible-{hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:16]}"
    with images.locked(images.cache() / "ansible.lock"):
        if not (final / "complete").exists():
            venv.create(final, with_pip=False, clear=True)
            # Not this interpreter: its environment is made without pip.
            pip = [f"{sys.base_prefix}/bin/python3", "-m", "pip", "--python", str(final / "bin/python"), "install"]
            pip += ["--quiet", "--disable-pip-version-check", "-r", str(_REQUIREMENTS)]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"Ansible cannot be installed here: {done.stderr.strip()[-300:]}")
            (final / "complete").touch()
    return final / "bin"


@dataclasses.dataclass
class Site:
    """Two hosts, their control plane, and a controller."""

    directory: Path
    tools: Path
    hosts: dict[str, container.Container]
    lab: lab.Lab

    def play(self, *options: str, fails: bool = False, part: str = "main", **variables: Any) -> dict[str, int]:
        """Run the role, or a part of it, with ``variables`` changed; how many tasks changed something, by host.

        Where it ``fails``, host by host.
        """
        (self.directory / "variables.json").write_text(json.dumps(variables))
        role = {"name": "The role", "ansible.builtin.include_role": {"name": "agentina", "tasks_from": part}}
        book = [{**PLAY, "tasks": [role], **({"serial": 1} if fails else {})}]
        (self.directory / "play.yml").write_text(json.dumps(book))
        command = [str(self.tools / "ansible-playbook"), "-i", "inventory.json", "play.yml", *options]
        command += ["--extra-vars", "@variables.json"]
        done = subprocess.run(
            command, cwd=self.directory, env=self.environment(), capture_output=True, text=True, check=False
        )
        (self.directory / "last.log").write_text(done.stdout + done.stderr)
        assert (done.returncode != 0) is fails, (done.stdout + done.stderr)[-6000:]
        # Nothing secret is shown.
        assert not SECRET.search(done.stdout + done.stderr)
        return {name: int(changed) for name, _, changed, _, _ in _RECAP.findall(done.stdout)}

    def environment(self) -> dict[str, str]:
        """What the controller's programs see."""
        return {
            **os.environ,
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "ANSIBLE_ROLES_PATH": str(ROLE / "roles"),
            "ANSIBLE_HOST_KEY_CHECKING": "False",
            "ANSIBLE_LOCAL_TEMP": str(self.directory / "tmp"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
            "HOME": str(self.directory),
        }

    def status(self, name: str, instance: str = "default") -> dict[str, Any]:
        """What an agent says of itself."""
        return dict(json.loads(self.hosts[name].try_run(f"agentina status --instance {instance} --json").stdout))


@pytest.fixture(scope="module")
def site(
    tools: Path,
    new_container: Callable[..., container.Container],
    run_lab: lab.Lab,
    tmp_path_factory: pytest.TempPathFactory,
) -> Site:
    directory = tmp_path_factory.mktemp("controller")
    hosts = {name: new_container(name, installed=False) for name in ("one", "two")}
    inventory: dict[str, Any] = {"all": {"hosts": {}, "vars": {"ansible_user": "root"}}}
    inventory["all"]["vars"]["ansible_python_interpreter"] = "/usr/bin/python3"
    for name, there in hosts.items():
        address, port = there.ssh()
        inventory["all"]["hosts"][name] = {"ansible_host": address, "ansible_port": port}
        inventory["all"]["vars"]["ansible_ssh_private_key_file"] = str(there.image.ssh_key)
    inventory["all"]["vars"].update(
        {
            "agentina_package_file": str(run_lab.package),
            "agentina_control_plane": run_lab.url,
            "agentina_ca_file": str(run_lab.certificate),
            "agentina_api_token": run_lab.fleet.token_file.read_text().strip(),
            "agentina_start_seconds": 60,
            "agentina_instances": [
                {"name": "default", "role": "coder", "labels": {"zone": "a"}, "max_concurrent_tasks": 2},
                # One whose token comes from a vault.
                {"name": "reviewer", "role": "reviewer", "settings": {"cloud": "none", "keep_failed_days": 1}},
            ],
        }
    )
    (directory / "inventory.json").write_text(json.dumps(inventory))
    return Site(directory, tools, hosts, run_lab)


def test_lint(tools: Path) -> None:
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "NO_COLOR": "1"}
    command = [str(tools / "ansible-lint"), "--offline", "--profile", "production", "--strict"]
    done = subprocess.run(command, cwd=ROLE, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_of_an_empty_host_says_and_does_nothing(site: Site) -> None:
    two = site.hosts["two"]
    # Where Ansible cannot ask apt in check mode, too.
    hidden = "/usr/lib/python3/dist-packages/apt"
    two.run(f"mv {hidden} {hidden}.away")
    assert site.play("--check", "--diff", "--limit", "two")["two"] > 0
    two.run(f"mv {hidden}.away {hidden}")
    assert site.play("--check", "--diff", "--limit", "two")["two"] > 0
    assert two.try_run("test -e /usr/bin/agentina || test -e /etc/agentina").returncode != 0
    assert site.lab.fleet.document("agent", "list")["agents"] == []


def test_first_run_makes_agents_and_shows_no_secret(site: Site) -> None:
    assert all(site.play("-vvv").values())
    for name, there in site.hosts.items():
        default, reviewer = site.status(name), site.status(name, "reviewer")
        assert (default["state"], default["role"], default["labels"]) == ("online", "coder", {"zone": "a"})
        assert default["max_concurrent_tasks"] == 2
        assert (reviewer["state"], reviewer["role"]) == ("online", "reviewer")
        assert "keep_failed_days: 1\n" in there.run("cat /etc/agentina/reviewer.yaml")
        # Modules log what they are asked to do.
        assert not SECRET.search(there.run("journalctl --no-pager -o export"))
    assert len(site.lab.fleet.document("agent", "list")["agents"]) == 4


def test_second_run_and_its_check_change_nothing(site: Site) -> None:
    assert set(site.play().values()) == {0}
    assert set(site.play("--check", "--diff", "--limit", "one").values()) == {0}


def test_rollout_ends_at_the_first_host_that_is_not_well(site: Site) -> None:
    changed = site.play(fails=True, agentina_policy={"max_memory": "plenty"}, agentina_start_seconds=3)
    assert list(changed) == ["one"]
    assert site.hosts["two"].try_run("test -e /etc/agentina/policy.yaml").returncode != 0


def test_policy_changes_in_place(site: Site) -> None:
    before = site.status("one")["pid"]
    assert site.play("--limit", "one", agentina_policy={"max_memory": "1GiB"})["one"] > 0
    assert str(1 << 30) in site.hosts["one"].run("agentina policy show --json")
    assert site.status("one")["pid"] == before, "a policy is read again, without a restart"


def test_drained_over_a_restart_of_the_host(site: Site) -> None:
    """What examples/reboot.yml does; the restart is the harness's."""
    two = site.hosts["two"]
    assert site.play("--limit", "two", part="drain") == {"two": 2}
    two.reboot()
    site.lab.wait_online(two)
    assert site.status("two")["state_reason"] == "maintenance by Ansible"
    assert site.play("--limit", "two", part="resume") == {"two": 2}
    assert {site.status("two", name)["state"] for name in ("default", "reviewer")} == {"online"}


def test_upgrade_leaves_tasks_alone_and_drains_when_asked(site: Site, next_package: Path) -> None:
    fleet = site.lab.fleet
    job = fleet.submit_script("sleep 1000", role="coder", resources=SMALL)
    name = str(fleet.wait_state(job, State.RUNNING).job.agent).partition("/")[0]
    there = site.hosts[name]
    there.run("agentina drain --instance reviewer --reason 'by hand'")
    site.play("--limit", name, agentina_package_file=str(next_package))
    assert site.status(name)["version"] == "99.0"
    assert (fleet.job(job).job.state, len(fleet.job(job).tasks)) == (State.RUNNING, 1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        going = pool.submit(site.play, "--limit", name, agentina_drain_on_upgrade=True)
        host.wait_for(lambda: going.done() or site.status(name)["state"] == "draining", "it is drained")
        assert site.status(name)["version"] == "99.0", "first the task is to end"
        assert fleet.job(job).job.state is State.RUNNING
        fleet.client.cancel_job(job)
        going.result()
    after = site.status(name)
    assert (after["version"] != "99.0", after["state"]) == (True, "online")
    assert site.status(name, "reviewer")["state"] == "draining", "somebody else's drain is theirs"


def test_one_instance_is_taken_off(site: Site) -> None:
    instances = [{"name": "default"}, {"name": "reviewer", "state": "absent"}]
    assert site.play("--limit", "one", agentina_instances=instances)["one"] > 0
    assert site.hosts["one"].try_run("test -e /etc/agentina/reviewer.yaml").returncode != 0
    assert site.status("one")["state"] == "online"
    assert site.play("--limit", "one", agentina_instances=instances) == {"one": 0}


def test_everything_is_taken_off(site: Site) -> None:
    assert site.play("--limit", "one", "--check", agentina_state="absent")["one"] > 0
    assert site.status("one")["state"] == "online"
    assert site.play("--limit", "one", agentina_state="absent", agentina_purge=True)["one"] > 0
    site.hosts["one"].run("! test -e /usr/bin/agentina && ! test -e /var/lib/agentina")
    assert site.play("--limit", "one", agentina_state="absent", agentina_purge=True) == {"one": 0}
