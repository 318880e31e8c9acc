from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentina import errors
from agentina.client import api
from agentina.host import install
from agentina.host.instance import config, identity
from agentina.system import clock, files, paths
from tests.fakes import activating, deadlines, scripted_server

TOKEN = "act_first_token_0001"


@pytest.fixture
def instance(tmp_path: Path) -> paths.InstancePaths:
    return paths.Layout(tmp_path).instance("default")


@pytest.fixture
def plane() -> activating.Activating:
    return activating.Activating(tokens={TOKEN, "act_second_token_002"}, now_ms=clock.SystemClock().wall_ms())


@pytest.fixture
def url(plane: activating.Activating) -> Iterator[str]:
    server = scripted_server.ScriptedServer(plane)
    yield server.url
    server.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    original = api.Client.__init__

    def init(self: api.Client, *arguments: object, **options: object) -> None:
        original(self, *arguments, **{**options, "pause": lambda _: None})  # type: ignore[arg-type]

    monkeypatch.setattr(api.Client, "__init__", init)


def request(url: str, **changes: object) -> install.Request:
    return install.Request(**{"control_plane": url, "token": TOKEN, **changes})  # type: ignore[arg-type]


def run(instance: paths.InstancePaths, wanted: install.Request) -> install.Installed:
    return install.install(instance, wanted, say=lambda _: None)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_install_stores_identity_license_and_configuration(instance: paths.InstancePaths, url: str) -> None:
    done = run(instance, request(url, role="coder", labels={"zone": "a"}, max_concurrent_tasks=3))
    known = identity.load(instance)
    assert known is not None
    assert (known.agent_id, known.role, known.labels) == (done.agent_id, "coder", {"zone": "a"})
    assert known.pending_token_sha256 == ""
    assert identity.load_license(instance, known).max_agents == 10
    assert config.load(instance) == config.HostConfig(control_plane=url, max_concurrent_tasks=3)
    assert instance.identity.stat().st_mode & 0o777 == 0o600
    assert instance.state.stat().st_mode & 0o777 == 0o700


def test_token_is_stored_nowhere(instance: paths.InstancePaths, url: str, tmp_path: Path) -> None:
    wanted = request(url)
    run(instance, wanted)
    assert not [path for path, content in snapshot(tmp_path).items() if TOKEN.encode() in content]
    assert TOKEN not in repr(wanted)


def test_second_run_changes_nothing(instance: paths.InstancePaths, url: str, plane: activating.Activating) -> None:
    run(instance, request(url))
    before = snapshot(instance.layout.root)
    again = run(instance, request(url))
    assert again.changed == []
    assert snapshot(instance.layout.root) == before
    assert len(plane.requests) == 1
    assert run(instance, request(url, token="")).changed == []


def test_lost_answer_is_fetched_by_the_same_run(
    instance: paths.InstancePaths, plane: activating.Activating, url: str
) -> None:
    plane._lose = 3
    assert run(instance, request(url)).agent_id == "agent-1"
    assert len({made.public_key for made in plane.requests}) == 1


def test_lost_answer_is_fetched_by_the_next_run(
    instance: paths.InstancePaths, plane: activating.Activating, url: str
) -> None:
    plane._lose = api.Patience().attempts
    with pytest.raises(errors.AgentinaError) as caught:
        run(instance, request(url))
    assert caught.value.entry is errors.CONTROL_PLANE_UNREACHABLE
    run(instance, request(url))
    assert len(plane.owners) == 1
    assert len({made.public_key for made in plane.requests}) == 1
    known = identity.load(instance)
    assert known is not None
    assert known.agent_id == "agent-1"


@pytest.mark.parametrize("step", ["save_license", "load_license", "save"])
def test_run_interrupted_at_any_step_is_completed_by_the_next(
    instance: paths.InstancePaths,
    url: str,
    plane: activating.Activating,
    *,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    original = getattr(identity, step)
    calls = 0

    def dies(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        # `save` is called for the pending identity first; the second call is the commit point.
        if step != "save" or calls == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(identity, step, dies)
        with pytest.raises(KeyboardInterrupt):
            run(instance, request(url))
    done = run(instance, request(url))
    assert done.agent_id == "agent-1"
    assert len({made.public_key for made in plane.requests}) == 1


def test_another_host_is_told_when_and_by_whom(url: str, tmp_path: Path) -> None:
    run(paths.Layout(tmp_path / "one").instance("default"), request(url))
    with pytest.raises(errors.AgentinaError) as caught:
        run(paths.Layout(tmp_path / "two").instance("default"), request(url))
    assert caught.value.entry is errors.TOKEN_USED
    assert "2026-11-21T10:00:00Z" in caught.value.message
    assert "first-host" in caught.value.message


def test_refused_token_can_be_followed_by_a_good_one(instance: paths.InstancePaths, url: str) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        run(instance, request(url, token="act_mistyped_token"))
    assert caught.value.entry is errors.TOKEN_UNKNOWN
    assert run(instance, request(url)).agent_id == "agent-1"


def test_several_instances_share_a_host(url: str, tmp_path: Path) -> None:
    layout = paths.Layout(tmp_path)
    first = run(layout.instance("default"), request(url))
    second = run(layout.instance("coder-2"), request(url, token="act_second_token_002"))
    assert first.agent_id != second.agent_id
    assert layout.instances() == ["coder-2", "default"]


def test_other_control_plane_is_refused(instance: paths.InstancePaths, url: str) -> None:
    run(instance, request(url))
    with pytest.raises(errors.AgentinaError) as caught:
        run(instance, request("https://other.example.com"))
    assert caught.value.entry is errors.INSTANCE_OTHER


def test_owner_edits_survive_and_asked_changes_are_made(instance: paths.InstancePaths, url: str) -> None:
    run(instance, request(url))
    config.save(instance, config.HostConfig(control_plane=url, log_level="debug"))
    done = run(instance, request(url, max_concurrent_tasks=2))
    assert done.changed
    assert config.load(instance) == config.HostConfig(control_plane=url, log_level="debug", max_concurrent_tasks=2)


def test_certificates_that_are_not_there_are_named(instance: paths.InstancePaths, url: str) -> None:
    with pytest.raises(errors.AgentinaError, match=r"gone\.pem") as caught:
        run(instance, request(url, ca_file="/nowhere/gone.pem"))
    assert caught.value.code == "FILE_UNREADABLE"
    assert not instance.config.exists()


def test_no_token_on_a_fresh_host(instance: paths.InstancePaths, url: str) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        run(instance, request(url, token=""))
    assert caught.value.entry is errors.USAGE
    assert not instance.identity.exists()


def test_license_of_a_forger_is_not_kept_as_success(
    instance: paths.InstancePaths, url: str, plane: activating.Activating, monkeypatch: pytest.MonkeyPatch
) -> None:
    forger = activating.Activating(tokens=set(), now_ms=0).key
    honest = plane.key
    monkeypatch.setattr(type(honest), "sign_struct", lambda _, purpose, content: type(honest).sign(
        forger, purpose, __import__("msgspec").json.encode(content)))  # fmt: skip
    with pytest.raises(errors.AgentinaError) as caught:
        run(instance, request(url))
    assert caught.value.entry is errors.LICENSE_INVALID
    known = identity.load(instance)
    assert known is not None
    assert known.agent_id == ""


def test_damaged_identity_is_named_and_left_alone(instance: paths.InstancePaths, url: str) -> None:
    run(instance, request(url))
    instance.identity.write_bytes(b"{")
    with pytest.raises(errors.AgentinaError) as caught:
        run(instance, request(url))
    assert caught.value.entry is errors.IDENTITY_DAMAGED
    assert instance.identity.read_bytes() == b"{"


def uninstall(instance: paths.InstancePaths, *, purge: bool = False, force: bool = False) -> bool:
    return install.uninstall(instance, purge=purge, force=force, say=lambda _: None)


def test_uninstall_keeps_state_so_that_installing_again_needs_no_token(
    instance: paths.InstancePaths, url: str, plane: activating.Activating
) -> None:
    run(instance, request(url, max_concurrent_tasks=3))
    (instance.state / "drain").write_text("to be taken off")
    assert uninstall(instance)
    assert instance.layout.instances() == []
    assert not (instance.state / "drain").exists(), "installed again it is to work"
    assert not uninstall(instance)
    run(instance, request(url, token=""))
    assert config.load(instance).max_concurrent_tasks == 3
    assert len(plane.requests) == 1


def test_reinstalling_for_another_control_plane_is_refused_after_uninstall(
    instance: paths.InstancePaths, url: str
) -> None:
    run(instance, request(url))
    uninstall(instance)
    with pytest.raises(errors.AgentinaError) as caught:
        run(instance, request("https://other.example.com"))
    assert caught.value.entry is errors.INSTANCE_OTHER


def test_purge_leaves_nothing_of_the_instance(instance: paths.InstancePaths, url: str) -> None:
    run(instance, request(url))
    assert uninstall(instance, purge=True)
    assert snapshot(instance.layout.root) == {}
    assert not uninstall(instance, purge=True)


def test_uninstall_refuses_while_a_supervisor_holds_its_lock(instance: paths.InstancePaths, url: str) -> None:
    run(instance, request(url))
    task = instance.tasks / "job_0123456789abcdef.1"
    task.mkdir(parents=True)
    with files.exclusive_lock(task / "supervisor"):
        with pytest.raises(errors.AgentinaError) as caught:
            uninstall(instance, purge=True)
        assert caught.value.entry is errors.STATE_CONFLICT
        assert task.name in caught.value.message
        assert instance.config.exists()
    assert uninstall(instance, purge=True)


def test_heartbeat_is_awaited_and_its_absence_explained(
    instance: paths.InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Callable[[], dict[str, object]]] = []

    def ask(*_: object) -> dict[str, object]:
        return (answers.pop(0) if len(answers) > 1 else answers[0])()

    def away() -> dict[str, object]:
        raise errors.DAEMON_NOT_RUNNING(instance="default", path="x")

    monkeypatch.setattr("agentina.client.local.ask", ask)
    monkeypatch.setattr(install, "_LOOK_AGAIN", 0.0)
    answers[:] = [
        away,
        lambda: {"state": "offline", "last_heartbeat_ms": 1},
        lambda: {"state": "online", "last_heartbeat_ms": 2},
    ]
    assert install.wait_for_heartbeat(instance, timeout_seconds=deadlines.HANG)["last_heartbeat_ms"] == 2
    answers[:] = [lambda: {"state": "offline", "control_plane": "https://x", "last_error": "no route"}]
    with pytest.raises(errors.AgentinaError) as caught:
        install.wait_for_heartbeat(instance, timeout_seconds=0.01)
    assert "no route" in caught.value.message
    answers[:] = [away]
    with pytest.raises(errors.AgentinaError):
        install.wait_for_heartbeat(instance, timeout_seconds=1000, is_alive=lambda: False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_root_is_found_before_the_token_is_shown(url: str, plane: activating.Activating) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        run(paths.Layout(Path("/proc/none")).instance("default"), request(url))
    assert caught.value.entry is errors.PRECONDITION_FAILED
    assert plane.requests == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may end processes of others")
def test_uninstall_ends_no_process_of_another_user_whatever_the_daemon_tells(
    instance: paths.InstancePaths, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(instance, request(url))
    with subprocess.Popen(["/bin/sleep", "1000"]) as other, files.exclusive_lock(instance.lock):
        try:
            os.chown(instance.lock, 65534, 65534)
            monkeypatch.setattr("agentina.client.local.ask", lambda *_: {"pid": other.pid})
            with pytest.raises(errors.AgentinaError, match="another user's"):
                install.uninstall(instance, purge=False, force=False, say=lambda _: None)
            assert other.poll() is None
        finally:
            other.kill()
