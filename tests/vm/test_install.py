"""The package and ``agentina install`` on a host with systemd."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import container, host, lab


@pytest.fixture(scope="module")
def there(new_container: Callable[..., container.Container], run_lab: lab.Lab) -> container.Container:
    made = new_container()
    run_lab.activate(made)
    return made


def test_package_gives_a_command_and_starts_nothing(new_container: Callable[..., container.Container]) -> None:
    made = new_container()
    assert re.match(r"agentina,? .*\d", made.run("agentina --version"))
    assert made.run("systemctl list-units --plain --no-legend 'agentina*'").strip() == ""
    assert "agentina" in made.run("getent passwd agentina")
    assert made.run("find /opt/agentina /usr/lib/agentina -not -user root -o -not -type l -perm /022").strip() == ""
    assert made.try_run("dpkg --audit").stdout == ""


def test_install_starts_the_service_and_runs_a_job(
    there: host.Host, run_lab: lab.Lab, measured: Callable[[str], None]
) -> None:
    started = time.monotonic()
    answer = run_lab.activate(there, "fresh")
    measured(f"agentina install took {time.monotonic() - started:.1f} s in a container")
    assert answer["service"]
    assert answer["changed"]
    assert there.run("systemctl is-active agentina@fresh; systemctl is-enabled agentina@fresh") == "active\nenabled\n"
    assert there.try_run("agentina status --instance fresh").returncode == 0
    assert there.run("stat -c '%U %a' /var/lib/agentina/fresh") == "agentina 700\n"
    job = run_lab.fleet.submit_script("id -un; echo from the host", role="fresh-role")
    run_lab.activate(there, "with-role", "--role fresh-role")
    view = run_lab.fleet.wait_final(job, seconds=host.PATIENCE)
    output = run_lab.fleet.output(job)
    assert view.job.state.value == "succeeded", (view, output)
    assert re.fullmatch(rb"_fresh-S\d|_with-role-S\d", output.split()[0]), output
    assert output.endswith(b"from the host\n")


def test_install_again_changes_nothing(there: host.Host, run_lab: lab.Lab) -> None:
    pid = there.run("systemctl show -P MainPID agentina@default")
    answer = run_lab.activate(there, token="act_" + "0" * 40)
    assert answer["changed"] == []
    assert there.run("systemctl show -P MainPID agentina@default") == pid


def test_instances_of_one_host_are_no_clones(there: host.Host, run_lab: lab.Lab) -> None:
    ids = {run_lab.activate(there, name)["agent_id"] for name in ("twin-1", "twin-2")}
    assert len(ids) == 2
    for name in ("twin-1", "twin-2"):
        run_lab.wait_online(there, name)
    agents = run_lab.fleet.client.list_agents().agents
    assert {agent.state for agent in agents if agent.id in ids} == {"active"}


def test_interrupted_install_completes(new_container: Callable[..., container.Container], run_lab: lab.Lab) -> None:
    made = new_container()
    token = run_lab.fleet.new_token()
    script = f"agentina install --json --token-file - --control-plane {run_lab.url} --ca-file {lab.CERTIFICATE}"
    run_lab.trust(made)
    for step in range(1, 16):
        made.try_run(f"timeout -s KILL {step * 0.15:.2f} {script}", text=token)
    answer = run_lab.activate(made, token=token)
    assert answer["agent_id"]
    run_lab.wait_online(made)
    assert made.try_run("agentina status").returncode == 0


def test_units_are_closed(there: host.Host, measured: Callable[[str], None]) -> None:
    for unit in ("agentina@default.service", "agentina-task@default-S1.service"):
        said = there.run(f"systemd-analyze security --no-pager {unit} | tail -1")
        measured(f"systemd-analyze security {unit}: {said.strip()}")
        score = re.search(r"(\d+\.\d)", said)
        assert score, said
        assert float(score[1]) <= 1.5


def test_upgrade_downgrade_remove_and_purge(
    new_container: Callable[..., container.Container], run_lab: lab.Lab, package: Path, next_package: Path
) -> None:
    made = new_container()
    agent = run_lab.activate(made)["agent_id"]
    lab.install_package(made, next_package)
    assert "99.0" in made.run("agentina --version")
    run_lab.wait_online(made)
    made.run(f"apt-get -y --allow-downgrades install /root/{package.name}")
    assert "99.0" not in made.run("agentina --version")
    run_lab.wait_online(made)
    made.run("apt-get -y remove agentina")
    assert made.try_run("systemctl is-active agentina@default").returncode != 0
    assert not made.try_run("command -v agentina; ls -d /opt/agentina").stdout
    assert made.try_run("test -s /etc/agentina/default.yaml").returncode == 0
    lab.install_package(made, package)
    run_lab.wait_online(made)
    assert json.loads(made.run("agentina status --json"))["agent_id"] == agent
    made.run("apt-get -y purge agentina")
    left = made.run(
        "find / -xdev -iname '*agentina*' -not -path '/root/*' -not -path '/proc/*' -not -path '/etc/ssl/*'"
    )
    assert left.strip() == ""


def test_uninstall_keeps_the_key_unless_purged(there: host.Host, run_lab: lab.Lab) -> None:
    agent = run_lab.activate(there, "going")["agent_id"]
    there.run("agentina uninstall --instance going")
    assert there.try_run("systemctl is-enabled agentina@going").returncode != 0
    there.run("test -d /var/lib/agentina/going")
    assert run_lab.activate(there, "going", token="act_" + "0" * 40)["agent_id"] == agent
    there.run("agentina uninstall --instance going --purge; ! test -e /var/lib/agentina/going")
