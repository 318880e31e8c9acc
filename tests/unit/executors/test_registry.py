"""The choice of an executor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentina import errors
from agentina.executors import registry
from agentina.system import services


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with systemd and the package, where this process is a unit's main process."""
    monkeypatch.setattr(services, "runs_here", lambda: True)
    monkeypatch.setattr(services, "has_template", lambda **_: True)
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))


@pytest.mark.parametrize("name", ["auto", "process"])
def test_without_systemd(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "has_template", lambda **_: False)
    assert registry.choose(name, state_directory=tmp_path).name == "process"


@pytest.mark.parametrize(("name", "expected"), [("auto", "systemd"), ("systemd", "systemd"), ("process", "process")])
def test_as_a_unit_on_a_host_with_the_package(tmp_path: Path, host: None, name: str, expected: str) -> None:
    assert registry.choose(name, state_directory=tmp_path).name == expected


def test_daemon_started_by_hand_on_such_a_host_runs_processes(
    tmp_path: Path, host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getppid()))  # its shell is a unit's, it is not
    assert registry.choose("auto", state_directory=tmp_path).name == "process"


def test_systemd_without_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "has_template", lambda **_: False)
    with pytest.raises(errors.AgentinaError, match=r"needs agentina-task@\.service"):
        registry.choose("systemd", state_directory=tmp_path)


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(errors.AgentinaError, match=r"'docker' is none of auto, process, systemd"):
        registry.choose("docker", state_directory=tmp_path)
