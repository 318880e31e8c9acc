"""The command line against a real control plane and a real daemon."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance import fleet as fleets
from tests.fakes import deadlines


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fleets.Fleet]:
    with fleets.running(tmp_path_factory.mktemp("f")) as started:
        started.install("default", "--role", "tester", "--label", "zone=a", "--max-concurrent-tasks", "2")
        started.start_daemon()
        yield started


def test_run_passes_output_and_result_through(fleet: fleets.Fleet) -> None:
    done = fleet.run("job", "run", "--", "sh", "-c", "printf 'out\\377'; echo err >&2; exit 0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out\udcfferr\n"
    assert "succeeded" in done.stderr
    assert "submitted" not in done.stdout


def test_run_fails_as_the_job_fails(fleet: fleets.Fleet) -> None:
    done = fleet.run("job", "run", "--", "sh", "-c", "exit 3")
    assert done.returncode == 1
    assert "failed" in done.stderr


def test_run_with_json_keeps_stdout_one_document(fleet: fleets.Fleet) -> None:
    done = fleet.run("job", "run", "--json", "--", "echo", "hello")
    assert json.loads(done.stdout)["job"]["state"] == "succeeded"
    assert "hello" in done.stderr


def test_secret_is_masked_and_shown_nowhere(fleet: fleets.Fleet, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret-of-the-test\n")
    done = fleet.run("job", "run", "--json", "--secret-env", f"KEY={secret}", "--", "sh", "-c", 'echo "key: $KEY"')
    assert done.returncode == 0, done.stderr
    assert "key: ******************" in done.stderr
    job = json.loads(done.stdout)["job"]["id"]
    for shown in (done.stdout, fleet.answer("job", "show", job), fleet.answer("job", "logs", job)):
        assert "s3cret-of-the-test" not in shown


def test_job_from_a_file_leaves_artifacts(fleet: fleets.Fleet, tmp_path: Path) -> None:
    source = tmp_path / "job.yaml"
    source.write_text("name: report\npayload: {script: 'mkdir out; seq 3 > out/numbers'}\nartifacts: [out/*]\n")
    job = json.loads(fleet.answer("job", "submit", str(source), "--wait", "--json"))["job"]["id"]
    listed = fleet.answer("job", "artifacts", job, "--output", str(tmp_path / "got"))
    assert "out/numbers" in listed
    assert f"'{source}' is a file" in fleet.run("job", "artifacts", job, "--output", str(source)).stderr
    assert (tmp_path / "got/out/numbers").read_text() == "1\n2\n3\n"
    shown = fleet.answer("job", "show", job)
    assert "report" in shown
    assert "ARTIFACT" in shown
    assert job in fleet.answer("job", "list")


def test_same_idempotency_key_makes_one_job(fleet: fleets.Fleet, tmp_path: Path) -> None:
    source = tmp_path / "job.json"
    source.write_text('{"name": "once", "payload": {"argv": ["true"]}}')
    ids = {fleet.answer("job", "submit", str(source), "--idempotency-key", "k1").strip() for _ in range(2)}
    assert len(ids) == 1


def test_several_jobs_are_submitted_together(fleet: fleets.Fleet, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("name: a\npayload: {argv: ['true']}\n---\nname: b\npayload: {argv: ['true']}\n")
    (tmp_path / "one.json").write_text('{"name": "c", "payload": {"argv": ["false"]}}')
    sources = [str(tmp_path / "two.yaml"), str(tmp_path / "one.json")]
    ids = fleet.answer("job", "submit", *sources, "--idempotency-key", "several").split()
    assert len(set(ids)) == 3
    ended = fleet.run("job", "submit", *sources, "--idempotency-key", "several", "--wait", "--json")
    shown = [view["job"] for view in json.loads(ended.stdout)["jobs"]]
    assert [(job["id"], job["name"], job["state"]) for job in shown] == list(
        zip(ids, "abc", ("succeeded", "succeeded", "failed"), strict=True)
    )
    assert ended.returncode == 1
    assert fleet.run("job", "submit", *sources, "--follow").returncode == 2


def test_job_nobody_can_run_says_why(fleet: fleets.Fleet) -> None:
    job = fleet.answer("job", "run", "-d", "--role", "painter", "--", "true").strip()
    assert "waits:" in fleet.answer("job", "show", job)
    assert "canceled" in fleet.answer("job", "cancel", job)
    refused = fleet.run("job", "cancel", job, "--json")
    assert refused.returncode == 6
    assert json.loads(refused.stdout)["error"]["code"] == "JOB_FINISHED"


def test_interrupting_a_follower_leaves_the_job_alone(fleet: fleets.Fleet, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = f"echo started; until [ -e {gate} ]; do sleep 0.05; done; echo done"
    process = subprocess.Popen(
        [sys.executable, "-m", "agentina", "job", "run", "--", "sh", "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=fleet.environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=deadlines.HANG)
    assert process.returncode == 130
    assert b"goes on without you" in said
    job = said.split()[0].decode()
    gate.touch()
    followed = fleet.run("job", "logs", "-f", job)
    assert followed.stdout == "started\ndone\n"
    assert followed.returncode == 0


def test_drain_is_seen_here_and_there(fleet: fleets.Fleet) -> None:
    agent = fleet.document("agent", "list")["agents"][0]["id"]
    assert "draining" in fleet.answer("drain", "--reason", "new kernel")
    status = fleet.document("status")
    assert status["state"] == "draining"
    assert "online" in fleet.answer("resume")
    assert "draining" in fleet.answer("agent", "drain", agent, "--reason", "from afar")
    assert fleet.document("agent", "show", agent)["state"] == "draining"
    assert fleet.document("agent", "resume", agent)["state"] == "active"


def test_agent_is_removed_by_somebody_who_says_so(fleet: fleets.Fleet) -> None:
    agent = fleet.document("agent", "list")["agents"][0]["id"]
    done = fleet.run("agent", "remove", agent)
    assert (done.returncode, "say --yes" in done.stderr) == (2, True)
    assert fleet.document("agent", "show", agent)["state"] == "active"


def test_status_is_healthy_and_complete(fleet: fleets.Fleet) -> None:
    deadline = time.monotonic() + deadlines.HANG
    while fleet.run("status").returncode and time.monotonic() < deadline:
        time.sleep(0.1)
    shown = fleet.answer("status")
    document = fleet.document("status")
    for part in (document["agent_id"], "license", "control plane", "slots free", "disk", "limits that hold", "healthy"):
        assert part in shown
    assert document["role"] == "tester"
    assert [one["instance"] for one in fleet.document("status", "--all")["instances"]] == ["default"]


def test_audit_is_whole(fleet: fleets.Fleet) -> None:
    assert "token.create" in fleet.answer("audit", "list")
    assert fleet.document("audit", "verify")["whole"] is True


def test_organization_limits(fleet: fleets.Fleet) -> None:
    assert fleet.document("organization", "set", "acme", "--max-agents", "5")["max_agents"] == 5
    assert fleet.document("organization", "show", "acme")["max_agents"] == 5
    assert fleet.run("organization", "show", "nobody").returncode == 5
    assert fleet.document("budget", "set", "--organization", "acme", "--cost", "5")["limit"]["cost_nano"] == 5 * 10**9
    removed = fleet.document("budget", "set", "--organization", "acme", "--none")
    assert removed == {"scope": "organization", "name": "acme", "removed": True}


def test_tokens(fleet: fleets.Fleet) -> None:
    made = fleet.document("token", "create", "--count", "2", "--expires", "1h")["tokens"]
    assert "revoked" in fleet.answer("token", "revoke", made[0]["id"])
    states = {token["id"]: token["state"] for token in fleet.document("token", "list")["tokens"]}
    assert states[made[0]["id"]] == "revoked"
    assert states[made[1]["id"]] == "unused"
    assert made[1]["token"] not in fleet.answer("token", "list")


def test_policy_is_tried_without_running(fleet: fleets.Fleet, tmp_path: Path) -> None:
    source = tmp_path / "job.yaml"
    source.write_text("name: x\npayload: {argv: [make]}\n")
    assert fleet.run("policy", "check", str(source)).returncode == 0
    policy = fleet.root / "etc/agentina/policy.yaml"
    policy.write_text("executables: [/usr/bin/git]\n")
    try:
        refused = fleet.run("policy", "check", str(source))
        assert refused.returncode == 3
        assert "make" in refused.stdout
        assert "/usr/bin/git" in fleet.answer("policy", "show")
    finally:
        policy.unlink()


def test_doctor_finds_this_host_fit(fleet: fleets.Fleet) -> None:
    document = fleet.document("doctor")
    verdicts = {check["name"]: check["verdict"] for check in document["checks"]}
    assert document["healthy"]
    for name in ("control plane", "identity", "daemon", "configuration", "policy", "clock"):
        assert verdicts[name] == "ok", document


def test_wrong_token_is_refused(fleet: fleets.Fleet) -> None:
    refused = fleet.run("login", fleet.url, "--token-file", "-", text="aop_wrong_token_of_nobody")
    assert refused.returncode == 3
    assert "AUTH_INVALID" in refused.stderr
    assert "aop_wrong" not in refused.stderr


def test_logs_of_a_daemon_without_a_journal(fleet: fleets.Fleet) -> None:
    shown = fleet.answer("logs", "-n", "1000")
    assert "session 1 is open" in shown
    assert shown == fleet.log("default"), "standard error and the file have the same"
