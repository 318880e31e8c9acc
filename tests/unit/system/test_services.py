from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentina import errors
from agentina.system import services
from tests.fakes import systemctl


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> systemctl.Systemctl:
    return systemctl.Systemctl(tmp_path, monkeypatch)


@pytest.mark.parametrize("directory", ["usr/lib/systemd/system", "lib/systemd/system", "etc/systemd/system"])
def test_templates_are_found_where_systemd_looks(tmp_path: Path, directory: str) -> None:
    assert not services.has_template(tmp_path)
    (tmp_path / directory).mkdir(parents=True)
    (tmp_path / directory / services.TEMPLATE).touch()
    assert services.has_template(tmp_path)
    assert not services.has_template(tmp_path, name=services.TASK_TEMPLATE)


def test_rule(tmp_path: Path) -> None:
    assert not services.has_rule(tmp_path)
    rules = tmp_path / "usr/share/polkit-1/rules.d"
    rules.mkdir(parents=True)
    (rules / "50-agentina.rules").touch()
    assert services.has_rule(tmp_path)


def test_rule_is_unknown_where_this_user_may_not_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "usr/share/polkit-1/rules.d").mkdir(parents=True)
    assert services.has_rule(tmp_path) is False
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert services.has_rule(tmp_path) is None


def test_an_instance_is_enabled_started_and_disabled(systemd: systemctl.Systemctl) -> None:
    services.enable("default")
    assert services.is_enabled("default")
    assert not services.is_active("default")
    services.start("default")
    assert services.is_active("default")
    assert services.state_of("default") == "active (running)"
    services.disable("default")
    assert not services.is_active("default")
    assert not services.is_enabled("default")
    assert services.version() == 252


def test_what_does_not_start_is_an_error_with_what_systemd_said(systemd: systemctl.Systemctl) -> None:
    systemd.put(broken=True)
    with pytest.raises(errors.AgentinaError) as caught:
        services.start("default")
    assert caught.value.entry is errors.SERVICE_FAILED
    assert "Job for agentina@default.service failed" in caught.value.message
    assert services.has_failed("default")
    assert services.state_of("default") == "failed (failed, result exit-code)"


def test_only_the_instances_own_tasks_are_stopped(systemd: systemctl.Systemctl) -> None:
    own = ["agentina-task@default-S0.service", "agentina-task@default-S12.service"]
    others = ["agentina-task@default-2-S0.service", "agentina@default.service"]
    systemd.put(active=own + others)
    assert services.task_units("default") == sorted(own)
    services.stop_tasks("default")
    assert systemd.state["active"] == others
    services.stop_tasks("default")


def test_no_systemd_is_an_error_of_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.AgentinaError) as caught:
        services.start("default")
    assert caught.value.entry is errors.SERVICE_FAILED
