"""On a host with systemd: what the daemon leaves in the journal, and how it takes a shutdown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from agentina.protocol.states import Reason, State
from tests.vm import cloud, container, host, lab


@pytest.fixture(scope="module")
def there(new_container: Callable[..., container.Container], run_lab: lab.Lab) -> container.Container:
    made = new_container("journal")
    # `journalctl -f` asks for this boot, and journald has read the id that boot() has since replaced.
    made.run("systemctl restart systemd-journald")
    run_lab.activate(made, "default", "--max-concurrent-tasks 2")
    run_lab.wait_online(made)
    return made


def status(there: container.Container, instance: str = "default") -> dict[str, Any]:
    return dict(json.loads(there.try_run(f"agentina status --json --instance {instance}").stdout))


def entries(there: container.Container, *matches: str) -> list[dict[str, Any]]:
    shown = there.run(f"journalctl --output json --unit agentina@default {' '.join(matches)}")
    return [json.loads(line) for line in shown.splitlines()]


def test_journal_has_sentences_and_fields(there: container.Container, run_lab: lab.Lab) -> None:
    job = run_lab.fleet.submit_script("exit 3")
    run_lab.fleet.wait_final(job)
    task = f"{job}.1"
    found = host.wait_for(lambda: entries(there, "AGENTINA_ACTION=task-finished", f"AGENTINA_TASK={task}"), "the end")
    (entry,) = found
    assert entry["MESSAGE"].startswith(f"task {task} ended: failed")
    assert (entry["AGENTINA_JOB"], entry["AGENTINA_INSTANCE"], entry["PRIORITY"]) == (job, "default", "6")
    assert (entry["_SYSTEMD_UNIT"], entry["SYSLOG_IDENTIFIER"]) == ("agentina@default.service", "agentina")
    assert entry["CODE_FILE"].endswith("agentina/host/work/tasks.py")
    assert int(entry["_UID"]) != 0
    (ready,) = entries(there, "AGENTINA_ACTION=daemon-started")
    agent = json.loads(there.run("agentina status --json"))
    assert f"{agent['version']} is ready: agent {agent['agent_id']}" in ready["MESSAGE"]


def test_logs_asks_the_journal(there: container.Container, run_lab: lab.Lab) -> None:
    job = run_lab.fleet.submit_script("true")
    run_lab.fleet.wait_final(job)
    host.wait_for(lambda: "ended" in there.run(f"agentina logs --task {job}.1"), "the end is in the journal")
    lines = there.run(f"agentina logs --task {job}.1").splitlines()
    assert all(f"{job}.1" in line for line in lines)
    assert "instance=" not in lines[0], "fields are fields, not text"
    assert "is open" in there.run("agentina logs --since 1h")
    assert there.run("agentina logs -n 1").count("\n") == 1


def test_logs_follows(there: container.Container, run_lab: lab.Lab) -> None:
    following = there.start("echo $$; exec agentina logs -f -n 0")
    assert following.stdout is not None
    pid = int(following.stdout.readline())
    try:
        os.set_blocking(following.stdout.fileno(), False)
        shown = bytearray()

        def seen() -> bool:
            # When it has begun to follow is nowhere to be seen: jobs are run until one's end is shown.
            run_lab.fleet.wait_final(run_lab.fleet.submit_script("true"))
            shown.extend(following.stdout.read() or b"")  # type: ignore[union-attr]
            return b"ended: succeeded" in shown

        host.wait_for(seen, "a job's end is shown as it is written", pause=0.5)
    finally:
        there.run(f"kill {pid}")
        following.communicate()


def test_who_may_look_gets_an_answer_and_who_may_not_the_remedy(there: container.Container) -> None:
    there.run("useradd visitor; useradd --groups agentina member; useradd --groups systemd-journal reader")
    for user, command, code, said in (
        ("visitor", "agentina status", 3, "LOCAL_FORBIDDEN"),
        ("visitor", "agentina status --instance nope", 5, "INSTANCE_UNKNOWN"),
        ("visitor", "agentina logs", 3, "systemd-journal"),
        ("member", "agentina status", 0, "healthy"),
        ("member", "agentina drain", 3, "This user (member)"),
        ("member", "agentina logs --task job_0.1", 3, "LOG_FORBIDDEN"),
        ("reader", "agentina logs -n 3", 0, "agentina"),
        ("reader", "agentina logs --instance nope", 5, "INSTANCE_UNKNOWN"),
        ("visitor", "echo act_0 | agentina install --control-plane https://x --token-file -", 7, "sudo"),
        ("visitor", "agentina uninstall --force", 7, "sudo"),
        ("visitor", "agentina daemon", 2, "FILE_UNREADABLE"),
    ):
        done = there.try_run(command, user=user)
        assert done.returncode == code, (user, command, done)
        assert said in done.stdout + done.stderr, (user, command, done)
    assert "active" in there.run("systemctl is-active agentina@default")


def test_doctor_tells_a_visitor_what_it_cannot_see(there: container.Container) -> None:
    done = there.try_run("agentina doctor --json", user="visitor")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0
    hidden = {"directories", "package", "identity", "outbox"}
    assert {checks[name]["verdict"] for name in hidden} == {"warn"}
    assert all("sudo agentina doctor" in checks[name]["remedy"] for name in hidden)
    # As root nothing is hidden (a container has no controllers).
    checks = {check["name"]: check for check in json.loads(there.run("agentina doctor --json"))["checks"]}
    assert {check["verdict"] for name, check in checks.items() if name != "cgroup"} == {"ok"}


def test_status_ends_with_1_while_something_needs_attention(there: container.Container) -> None:
    there.run("echo 'max_memory: plenty' > /etc/agentina/policy.yaml; systemctl reload agentina@default")
    try:
        there.wait("agentina status; [ $? = 1 ]", "the broken policy is seen")
        assert "policy.yaml.max_memory: expected a size" in there.try_run("agentina status").stdout
    finally:
        there.run("rm /etc/agentina/policy.yaml; systemctl reload agentina@default")
    there.wait("agentina status", "it is healthy again")


def test_stopped_service_leaves_its_tasks(there: container.Container, run_lab: lab.Lab) -> None:
    job = run_lab.fleet.submit_script("echo before; sleep 1000")
    run_lab.fleet.wait_state(job, State.RUNNING)
    units = run_lab.units(there)
    there.run("systemctl stop agentina@default")
    assert run_lab.units(there) == units
    for user, agent in (("root", status(there)["agent_id"]), ("visitor", "unknown")):
        done = there.try_run("agentina status", user=user)
        assert done.returncode == 4
        assert "1 task goes on without it" in done.stdout
        assert agent in done.stdout
        assert "systemctl start agentina@default" in done.stdout
    there.run("systemctl start agentina@default")
    run_lab.wait_online(there)
    assert run_lab.units(there) == units, "found again"
    there.run("agentina drain && agentina resume")
    run_lab.fleet.client.cancel_job(job)
    view = run_lab.fleet.wait_final(job)
    assert (view.job.state, len(view.tasks)) == (State.CANCELED, 1)
    assert "STATE_UNWRITABLE" not in there.run("journalctl -u agentina@default -o json"), "leases and orders reached it"
    assert run_lab.fleet.output(job) == b"before\n"


def test_preemption_is_told_and_no_work_taken(there: container.Container, run_lab: lab.Lab) -> None:
    with cloud.google() as (address, preempt):
        run_lab.activate(there, "spot", "--role spot --max-concurrent-tasks 2")
        there.run(f"printf 'cloud: gce\\ncloud_metadata: {address}\\n' >> /etc/agentina/spot.yaml")
        there.run("systemctl restart agentina@spot")
        run_lab.wait_online(there, "spot")
        runs = run_lab.fleet.submit_script("sleep 1000", role="spot")
        run_lab.fleet.wait_state(runs, State.RUNNING)
        preempt(announced=True)
        host.wait_for(lambda: status(there, "spot")["state"] == "draining", "the notice is heeded")
        agent = status(there, "spot")["agent_id"]
        host.wait_for(
            lambda: "preempted" in run_lab.fleet.document("agent", "show", agent)["state_reason"], "it is told"
        )
        waits = run_lab.fleet.submit_script("true", role="spot")
        assert there.try_run("agentina status --instance spot").returncode == 0
        assert run_lab.fleet.job(waits).job.state is State.QUEUED
        assert run_lab.fleet.job(runs).job.state is State.RUNNING, "what runs goes on"
        preempt(announced=False)
        assert run_lab.fleet.wait_final(waits).job.state is State.SUCCEEDED
        run_lab.fleet.client.cancel_job(runs)
        run_lab.fleet.wait_final(runs)
        assert "STATE_UNWRITABLE" not in there.run("journalctl -u agentina@spot -o json")
        there.run("agentina uninstall --purge --instance spot")


def test_journal_that_restarts_costs_nothing(there: container.Container, run_lab: lab.Lab) -> None:
    before = there.run("systemctl show -P MainPID agentina@default")
    there.run("systemctl restart systemd-journald")
    job = run_lab.fleet.submit_script("true")
    run_lab.fleet.wait_final(job)
    host.wait_for(lambda: entries(there, f"AGENTINA_JOB={job}"), "entries come again")
    assert there.run("systemctl show -P MainPID agentina@default") == before


def test_shutdown_is_held_up_told_and_survived(there: container.Container, run_lab: lab.Lab) -> None:
    if there.try_run(
        "busctl call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.DBus.Peer Ping"
    ).returncode:
        pytest.skip("there is no logind in the image")
    host.wait_for(lambda: "agentina@default" in there.run("systemd-inhibit --list"), "the delay lock is held")
    agent = json.loads(there.run("agentina status --json"))["agent_id"]
    quick = {"limits": {"grace": 2}}
    job = run_lab.fleet.submit_script("sleep 1000", **quick, retry={"max_attempts": 1})
    again = run_lab.fleet.submit_script("sleep 1000", **quick, retry={"max_attempts": 2, "backoff": 0})
    for one in (job, again):
        run_lab.fleet.wait_state(one, State.RUNNING)
    there.shut_down()
    # Nothing is heard of it any more; what it said last says why.
    shown = run_lab.fleet.document("agent", "show", agent)
    assert "this host is shutting down" in shown["state_reason"]
    there.boot()
    view = run_lab.fleet.wait_final(job)
    assert (view.job.state, view.job.reason) == (State.LOST, Reason.HOST_RESTARTED)

    def retried() -> bool:
        return [task.state for task in run_lab.fleet.job(again).tasks] == [State.LOST, State.RUNNING]

    host.wait_for(retried, "its policy starts the other again")
    assert run_lab.fleet.job(again).tasks[0].reason is Reason.HOST_RESTARTED
    run_lab.fleet.client.cancel_job(again)
    run_lab.fleet.wait_final(again)
    host.wait_for(lambda: json.loads(there.run("agentina status --json"))["state"] == "online", "it takes work again")
