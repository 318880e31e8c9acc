"""`agentina status` when things are not as they should be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.acceptance import fleet as fleets


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fleets.Fleet]:
    with fleets.running(tmp_path_factory.mktemp("f")) as started:
        started.install()
        yield started


def test_no_such_instance(fleet: fleets.Fleet) -> None:
    done = fleet.run("status", "--instance", "none", "--json")
    assert done.returncode == 5
    assert json.loads(done.stdout)["error"]["code"] == "INSTANCE_UNKNOWN"
    none = fleet.run("status", "--all", "--root", str(fleet.root / "nowhere"))
    assert none.returncode == 5
    assert "There is no instance on this host (looked in " in none.stderr


@pytest.mark.parametrize("verb", ["drain", "resume"])
def test_wish_for_an_unknown_instance_names_it(fleet: fleets.Fleet, verb: str) -> None:
    refused = fleet.run(verb, "--instance", "nope")
    assert refused.returncode == 5
    assert "INSTANCE_UNKNOWN" in refused.stderr


def test_without_a_daemon_what_is_on_disk_is_shown(fleet: fleets.Fleet) -> None:
    done = fleet.run("status", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 4
    assert document["state"] == "stopped"
    assert document["agent_id"]
    assert document["license"]["max_agents"] > 0
    assert [problem["code"] for problem in document["problems"]] == ["DAEMON_NOT_RUNNING"]
    assert "remedy:" in fleet.run("status").stdout


def test_damaged_files_are_named_and_the_rest_shown(fleet: fleets.Fleet) -> None:
    license_ = fleet.root / "var/lib/agentina/default/license"
    content = license_.read_bytes()
    license_.write_bytes(content.replace(b"a", b"b", 3))
    try:
        document = json.loads(fleet.run("status", "--json").stdout)
        assert "LICENSE_INVALID" in [problem["code"] for problem in document["problems"]]
        assert document["agent_id"]
    finally:
        license_.write_bytes(content)


def test_killed_daemon_is_noticed_and_a_new_one_takes_over(fleet: fleets.Fleet) -> None:
    fleet.start_daemon()
    fleet.kill("default")
    assert fleet.run("status").returncode == 4
    fleet.start_daemon()
    assert fleet.run("status").returncode == 0
    fleet.stop("default")


def test_status_loads_nothing_heavy(fleet: fleets.Fleet) -> None:
    fleet.start_daemon()
    code = "import sys; from agentina.cli import main; main.run(['status']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "AGENTINA_ROOT": str(fleet.root)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    fleet.stop("default")
    loaded = set(done.stderr.split())
    assert not loaded & {
        "msgspec",
        "yaml",
        "nacl",
        "asyncio",
        "ssl",
        "http.client",
        "agentina.host",
        "agentina.control",
    }
