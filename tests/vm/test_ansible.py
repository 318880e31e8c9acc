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

from agentina.protocol.states import Reason, State
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
        """:meth:`run` the role, or a part of it; host by host where it ``fails``."""
        role = {"name": "The role", "ansible.builtin.include_role": {"name": "agentina", "tasks_from": part}}
        book = self.write([{**PLAY, "tasks": [role], **({"serial": 1} if fails else {})}])
        return self.run(book, *options, fails=fails, **variables)

    def write(self, plays: list[dict[str, Any]]) -> Path:
        """A playbook."""
        book = self.directory / "play.yml"
        book.write_text(json.dumps(plays))
        return book

    def run(self, book: Path, *options: str, fails: bool = False, **variables: Any) -> dict[str, int]:
        """Run a playbook with ``variables`` changed; how many tasks changed something, by host."""
        (self.directory / "variables.json").write_text(json.dumps(variables))
        command = [str(self.tools / "ansible-playbook"), "-i", "inventory.json", str(book), *options]
        command += ["--extra-vars", "@variables.json"]
        done = subprocess.run(
            command, cwd=self.directory, env=self.environment(), capture_output=True, text=True, check=False
        )
        (self.directory / "last.log").write_text(done.stdout + done.stderr)
        assert (done.returncode != 0) is fails, (done.stdout + done.stderr)[-6000:]
        # Nothing secret is shown.
        assert not SECRET.search(done.stdout + done.stderr)
        return {name: int(changed) for name, _, changed, _, _ in _RECAP.findall(done.stdout)}

    def follow_restart(self, name: str, going: concurrent.futures.Future[dict[str, int]]) -> None:
        """Start a host again that a play restarts."""
        there = self.hosts[name]
        host.wait_for(lambda: going.done() or not there.is_on, f"{name} goes off")
        if not going.done():
            there.wait_off()
            there.boot()

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
    # One that forgets has a boot id of its own, by which Ansible tells that it was restarted.
    hosts = {name: new_container(name, installed=False, forgets=name == "two") for name in ("one", "two")}
    inventory: dict[str, Any] = {"all": {"hosts": {}, "vars": {"ansible_user": "root"}}}
    inventory["all"]["children"] = {"agentina_hosts": {"hosts": {name: {} for name in hosts}}}
    inventory["all"]["vars"]["ansible_python_interpreter"] = "/usr/bin/python3"
    for name, there in hosts.items():
        address, port = there.ssh()
        inventory["all"]["hosts"][name] = {
            "ansible_host": address,
            "ansible_port": port,
            "vault_reviewer_token": run_lab.fleet.new_token(),
        }
        inventory["all"]["vars"]["ansible_ssh_private_key_file"] = str(there.image.ssh_key)
    inventory["all"]["vars"].update(
        {
            "agentina_package_file": str(run_lab.package),
            "agentina_control_plane": run_lab.url,
            "agentina_ca_file": str(run_lab.certificate),
            "agentina_api_token": run_lab.fleet.token_file.read_text().strip(),
            "agentina_start_seconds": 60,
            "agentina_instances": [
                {
                    "name": "default",
                    "role": "coder",
                    "labels": {"zone": "{{ inventory_hostname }}"},
                    "max_concurrent_tasks": 2,
                },
                # One whose token comes from a vault.
                {
                    "name": "reviewer",
                    "role": "reviewer",
                    "token": "{{ vault_reviewer_token }}",
                    "settings": {"cloud": "none", "keep_failed_days": 1},
                },
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
        assert (default["state"], default["role"], default["labels"]) == ("online", "coder", {"zone": name})
        assert default["max_concurrent_tasks"] == 2
        assert (reviewer["state"], reviewer["role"]) == ("online", "reviewer")
        assert "keep_failed_days: 1\n" in there.run("cat /etc/agentina/reviewer.yaml")
    assert len(site.lab.fleet.document("agent", "list")["agents"]) == 4
    # Two from the vault, and two that were made for those without.
    assert len(site.lab.fleet.document("token", "list")["tokens"]) == 4


def test_second_run_and_its_check_change_nothing(site: Site) -> None:
    assert set(site.play("-vvv").values()) == {0}
    assert set(site.play("--check", "--diff", "--limit", "one").values()) == {0}
    for there in site.hosts.values():
        # Modules log what they are asked to do.
        assert not SECRET.search(there.run("journalctl --no-pager -o export"))


def test_rollout_ends_at_the_first_host_that_is_not_well(site: Site) -> None:
    changed = site.play(fails=True, agentina_policy={"max_memory": "plenty"}, agentina_start_seconds=3)
    assert list(changed) == ["one"]
    assert site.hosts["two"].try_run("test -e /etc/agentina/policy.yaml").returncode != 0


def test_policy_changes_in_place(site: Site) -> None:
    before = site.status("one")["pid"]
    assert site.play("--limit", "one", agentina_policy={"max_memory": "1GiB"})["one"] > 0
    assert str(1 << 30) in site.hosts["one"].run("agentina policy show --json")
    assert site.status("one")["pid"] == before, "a policy is read again, without a restart"


def test_reboot_play_lets_tasks_end_and_lifts_its_own_drains(site: Site) -> None:
    fleet, two = site.lab.fleet, site.hosts["two"]
    # What it updates from would be the internet.
    two.run(": > /etc/apt/sources.list; agentina drain --instance reviewer --reason 'by hand'")
    runs = fleet.submit_script("sleep 1000", role="coder", resources=SMALL, labels={"zone": "two"})
    fleet.wait_state(runs, State.RUNNING)
    # Away from the example's variables, which would win over the inventory's.
    book = site.directory / "reboot.yml"
    book.write_bytes((ROLE / "examples/reboot.yml").read_bytes())
    with concurrent.futures.ThreadPoolExecutor() as pool:
        going = pool.submit(site.run, book, "--limit", "two")
        host.wait_for(lambda: going.done() or site.status("two")["state"] == "draining", "it is drained")
        waits = fleet.submit_script("true", role="coder", resources=SMALL, labels={"zone": "two"})
        assert two.is_on, "first the task is to end"
        fleet.client.cancel_job(runs)
        site.follow_restart("two", going)
        going.result()
    view = fleet.wait_final(runs)
    assert (view.job.state, len(view.tasks)) == (State.CANCELED, 1)
    assert fleet.wait_final(waits).job.state is State.SUCCEEDED
    assert site.status("two")["state"] == "online"
    assert site.status("two", "reviewer")["state"] == "draining", "somebody else's drain is theirs"
    two.run("agentina resume --instance reviewer")


def test_tasks_of_a_host_restarted_without_a_drain_are_made_again(site: Site) -> None:
    fleet = site.lab.fleet
    retry = {"on": ["lost"], "backoff": 0}
    job = fleet.submit_script("sleep 1000", role="coder", resources=SMALL, labels={"zone": "two"}, retry=retry)
    fleet.wait_state(job, State.RUNNING)
    book = site.write([{**PLAY, "tasks": [{"name": "Restart", "ansible.builtin.reboot": {}}]}])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        going = pool.submit(site.run, book, "--limit", "two")
        site.follow_restart("two", going)
        going.result()
    host.wait_for(lambda: len(fleet.job(job).tasks) > 1, "its policy has it made again")
    fleet.wait_state(job, State.RUNNING)
    # A host that is about to go gives back what it has not started.
    started = [task for task in fleet.job(job).tasks if task.reason is not Reason.RETURNED_UNSTARTED]
    assert [task.reason for task in started] == [Reason.HOST_RESTARTED, Reason.RUNNING], started
    fleet.client.cancel_job(job)
    fleet.wait_final(job)


def test_upgrade_leaves_tasks_alone_and_drains_when_asked(site: Site, next_package: Path) -> None:
    fleet = site.lab.fleet
    job = fleet.submit_script("sleep 1000", role="coder", resources=SMALL)
    name = str(fleet.wait_state(job, State.RUNNING).job.agent).partition("/")[0]
    there = site.hosts[name]
    there.run("agentina drain --instance reviewer --reason 'by hand'")
    site.play("--limit", name, agentina_package_file=str(next_package))
    assert site.status(name)["version"] == lab.NEXT
    assert (fleet.job(job).job.state, len(fleet.job(job).tasks)) == (State.RUNNING, 1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        going = pool.submit(site.play, "--limit", name, agentina_drain_on_upgrade=True)
        host.wait_for(lambda: going.done() or site.status(name)["state"] == "draining", "it is drained")
        assert site.status(name)["version"] == lab.NEXT, "first the task is to end"
        assert fleet.job(job).job.state is State.RUNNING
        fleet.client.cancel_job(job)
        going.result()
    after = site.status(name)
    assert (after["version"] != lab.NEXT, after["state"]) == (True, "online")
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
