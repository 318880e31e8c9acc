from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agentina import errors
from agentina.host.instance import service
from agentina.system import paths, users
from tests.fakes import systemctl

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
UNIT = "agentina@default.service"


@pytest.fixture
def instance(tmp_path: Path) -> paths.InstancePaths:
    return paths.Layout(tmp_path / "root").instance("default")


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> systemctl.Systemctl:
    return systemctl.Systemctl(tmp_path, monkeypatch)


def start(instance: paths.InstancePaths, *, changed: list[str]) -> list[str]:
    service.run(instance, changed=changed, say=lambda _: None)
    return changed


def test_another_root_is_not_systemds(instance: paths.InstancePaths) -> None:
    assert not service.is_managed(instance.layout)
    assert service.owner_of(instance.layout) is None


def test_state_is_closed_to_others(instance: paths.InstancePaths) -> None:
    service.make_state(instance, None)
    service.make_state(instance, None)
    assert stat.S_IMODE(instance.state.stat().st_mode) == 0o700


def test_a_file_in_the_way_is_an_error_of_the_catalogue(instance: paths.InstancePaths) -> None:
    instance.layout.state_directory.mkdir(parents=True)
    instance.state.touch()
    with pytest.raises(errors.AgentinaError) as caught:
        service.make_state(instance, None)
    assert caught.value.entry is errors.STATE_UNWRITABLE


@needs_root
def test_what_root_made_becomes_the_daemons(instance: paths.InstancePaths, tmp_path: Path) -> None:
    nobody = users.find("nobody")
    assert nobody is not None
    outside = tmp_path / "outside"
    outside.touch()
    (instance.tasks / "one").mkdir(parents=True)
    (instance.state / "link").symlink_to(outside)
    instance.identity.touch()
    service.make_state(instance, nobody)
    given = [instance.state, *instance.state.rglob("*")]
    assert len(given) == 5
    assert {path.lstat().st_uid for path in given} == {nobody.pw_uid}
    assert outside.stat().st_uid == 0


@needs_root
def test_what_is_the_daemons_already_is_left_alone(instance: paths.InstancePaths) -> None:
    nobody = users.find("nobody")
    assert nobody is not None
    service.make_state(instance, nobody)
    (instance.state / "of-root").touch()
    service.make_state(instance, nobody)
    assert (instance.state / "of-root").stat().st_uid == 0


def test_starts_what_does_not_run(instance: paths.InstancePaths, systemd: systemctl.Systemctl) -> None:
    assert start(instance, changed=[]) == [f"enabled and started {UNIT}"]
    assert (systemd.state["enabled"], systemd.state["active"]) == ([UNIT], [UNIT])


def test_leaves_alone_what_runs(instance: paths.InstancePaths, systemd: systemctl.Systemctl) -> None:
    systemd.put(enabled=[UNIT], active=[UNIT])
    assert start(instance, changed=[]) == []
    assert {call[0] for call in systemd.state["calls"]} == {"is-active", "is-enabled"}


def test_restarts_for_a_new_configuration(instance: paths.InstancePaths, systemd: systemctl.Systemctl) -> None:
    systemd.put(enabled=[UNIT], active=[UNIT])
    start(instance, changed=["changed /etc/agentina/default.yaml"])
    assert ["restart", UNIT] in systemd.state["calls"]


def test_enables_what_an_interrupted_run_only_started(
    instance: paths.InstancePaths, systemd: systemctl.Systemctl
) -> None:
    systemd.put(active=[UNIT])
    assert start(instance, changed=[])
    assert systemd.state["enabled"] == [UNIT]


def test_a_unit_that_failed_is_not_waited_for(instance: paths.InstancePaths, systemd: systemctl.Systemctl) -> None:
    service.check_alive(instance)
    systemd.put(broken=True)
    with pytest.raises(errors.AgentinaError) as caught:
        service.check_alive(instance)
    assert "result exit-code" in caught.value.message


def test_nothing_of_an_instance_is_left(instance: paths.InstancePaths) -> None:
    other = instance.layout.instance("other")
    for one in (instance, other):
        for path in (one.identity, one.tasks / "a", one.socket, one.log):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    instances = instance.layout.root / "opt/agentina/instances"
    instances.mkdir(parents=True)
    (instances / "default").symlink_to("../releases/1.0")
    service.remove_state(instance)
    left = [
        path for path in instance.layout.root.rglob("*") if "default" in str(path.relative_to(instance.layout.root))
    ]
    assert left == []
    assert other.identity.exists()
