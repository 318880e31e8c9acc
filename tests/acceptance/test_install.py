"""Installing against a real control plane."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentina.protocol.states import State
from tests.acceptance import fleet as fleets


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[fleets.Fleet]:
    with fleets.running(tmp_path) as started:
        yield started


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_install_twice_and_on_another_host(fleet: fleets.Fleet, tmp_path: Path) -> None:
    token = fleet.new_token()
    fleet.install(token=token)
    before = snapshot(fleet.root / "etc") | snapshot(fleet.root / "var/lib/agentina")
    arguments = ("install", "--control-plane", fleet.url, "--token-file", "-", "--json")
    again = fleet.run(*arguments, text=token)
    assert again.returncode == 0
    assert json.loads(again.stdout)["changed"] == []
    assert snapshot(fleet.root / "etc") | snapshot(fleet.root / "var/lib/agentina") == before
    other = fleet.run(*arguments, "--root", str(tmp_path / "other"), text=token)
    assert other.returncode == 3
    error = json.loads(other.stdout)["error"]
    assert error["code"] == "TOKEN_USED"
    assert error["context"]["used_at"]
    assert error["context"]["host"]
    assert fleet.document("token", "list")["tokens"][0]["refused"] == 1
    assert token not in fleet.answer("audit", "list")


def test_fifty_hosts_race_for_one_token(fleet: fleets.Fleet) -> None:
    token = fleet.new_token()
    # One process, fifty threads: what races is the redeeming, and fifty interpreters would only race for the CPU.
    script = """
import sys, threading, json, pathlib
from agentina import errors
from agentina.host import install
from agentina.system import paths
root, url, token = sys.argv[1:]
results, gate = [], threading.Barrier(50)
def race(number):
    instance = paths.Layout(pathlib.Path(root) / str(number)).instance("default")
    gate.wait()
    try:
        request = install.Request(control_plane=url, token=token)
        results.append(install.install(instance, request, say=lambda _: None).agent_id)
    except errors.AgentinaError as error:
        results.append(error.code + ":" + str(sorted(error.context)))
threads = [threading.Thread(target=race, args=(n,)) for n in range(50)]
[t.start() for t in threads]; [t.join() for t in threads]
print(json.dumps(results))
"""
    command = [sys.executable, "-c", script, str(fleet.root / "race"), fleet.url, token]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = json.loads(done.stdout)
    refused = [result for result in results if result.startswith("TOKEN_USED")]
    assert len(results) == 50
    assert len(refused) == 49, results
    assert len(set(refused)) == 1
    assert len(fleet.document("agent", "list")["agents"]) == 1


def test_uninstall_stops_the_daemon_and_install_needs_no_new_token(fleet: fleets.Fleet) -> None:
    fleet.install()
    fleet.start_daemon()
    assert "uninstalled" in fleet.answer("uninstall")
    fleet.wait_end("default")
    assert fleet.run("status").returncode == 5
    fleet.answer("install", "--control-plane", fleet.url)
    fleet.start_daemon()
    fleet.stop("default")
    assert "uninstalled" in fleet.answer("uninstall", "--purge")
    assert "nothing was changed" in fleet.answer("uninstall", "--purge")


def test_uninstall_refuses_while_a_task_runs(fleet: fleets.Fleet) -> None:
    fleet.install()
    fleet.start_daemon()
    job = fleet.answer("job", "run", "-d", "--", "sleep", "300").strip()
    fleet.wait_state(job, State.RUNNING)
    refused = fleet.run("uninstall", "--json")
    assert refused.returncode == 6
    assert json.loads(refused.stdout)["error"]["code"] == "STATE_CONFLICT"
    assert "uninstalled" in fleet.answer("uninstall", "--force", "--purge")
    fleet.wait_end("default")
    assert not (fleet.root / "var/lib/agentina/default").exists()


def test_two_instances(fleet: fleets.Fleet) -> None:
    fleet.install()
    fleet.install("coder-2")
    agents = fleet.document("agent", "list")["agents"]
    assert {agent["instance"] for agent in agents} == {"default", "coder-2"}
    status = fleet.run("status", "--all", "--json")
    assert status.returncode == 4
    assert [one["instance"] for one in json.loads(status.stdout)["instances"]] == ["coder-2", "default"]
