"""``agentina install`` and ``uninstall`` on a host with systemd that has the package."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from tests.vm import container, host, lab


@pytest.fixture(scope="module")
def there(new_container: Callable[..., container.Container], run_lab: lab.Lab) -> container.Container:
    made = new_container()
    run_lab.activate(made)
    return made


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


def test_units_are_closed(there: host.Host, measured: Callable[[str], None]) -> None:
    for unit in ("agentina@default.service", "agentina-task@default-S1.service"):
        said = there.run(f"systemd-analyze security --no-pager {unit} | tail -1")
        measured(f"systemd-analyze security {unit}: {said.strip()}")
        score = re.search(r"(\d+\.\d)", said)
        assert score, said
        assert float(score[1]) <= 1.5


def test_uninstall_keeps_the_key_unless_purged(there: host.Host, run_lab: lab.Lab) -> None:
    agent = run_lab.activate(there, "going")["agent_id"]
    there.run("agentina uninstall --instance going")
    assert there.try_run("systemctl is-enabled agentina@going").returncode != 0
    there.run("test -d /var/lib/agentina/going")
    assert run_lab.activate(there, "going", token="act_" + "0" * 40)["agent_id"] == agent
    there.run("agentina uninstall --instance going --purge; ! test -e /var/lib/agentina/going")
