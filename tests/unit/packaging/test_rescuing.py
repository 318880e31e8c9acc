from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from agentina_base import launcher, rescuing, restoring


@pytest.fixture
def opt(tmp_path: Path) -> Path:
    for directory in ("releases", "instances", "previous"):
        (tmp_path / directory).mkdir()
    for version in ("1.0.0", "2.0.0"):
        (tmp_path / "releases" / version / "lib/agentina").mkdir(parents=True)
        (tmp_path / "releases" / version / f"lib-{launcher.python_tag()}").mkdir()
    return tmp_path


def bind(opt: Path, directory: str, target: str) -> None:
    (opt / directory / "default").symlink_to(target)


def bound(opt: Path) -> str | None:
    link = opt / "instances/default"
    return str(link.readlink()) if link.is_symlink() else None


def test_the_release_before_then_the_packages_then_nothing(opt: Path) -> None:
    bind(opt, "instances", "../releases/2.0.0")
    bind(opt, "previous", "../releases/1.0.0")
    assert rescuing.go_back(opt, "default") == ("2.0.0", "1.0.0")
    assert bound(opt) == "../releases/1.0.0"
    assert rescuing.go_back(opt, "default") == ("1.0.0", "the package's own release")
    assert bound(opt) is None
    assert rescuing.go_back(opt, "default") is None
    assert list((opt / "previous").iterdir()) == []


@pytest.mark.parametrize(
    "before", ["../releases/3.0.0", "../releases/2.0.0", "/etc", "../releases/../../etc", "../releases/1.0.0/lib"]
)
def test_nothing_but_another_whole_release_is_gone_back_to(opt: Path, before: str) -> None:
    bind(opt, "instances", "../releases/2.0.0")
    bind(opt, "previous", before)
    rescuing.go_back(opt, "default")
    assert bound(opt) is None


def test_a_link_that_is_not_understood_is_left(opt: Path) -> None:
    bind(opt, "instances", "/nowhere")
    assert rescuing.go_back(opt, "default") is not None
    assert bound(opt) is None


def test_other_instances_are_left_alone(opt: Path) -> None:
    bind(opt, "instances", "../releases/2.0.0")
    (opt / "instances/other").symlink_to("../releases/2.0.0")
    rescuing.go_back(opt, "default")
    assert str((opt / "instances/other").readlink()) == "../releases/2.0.0"


@pytest.mark.parametrize("name", ["", "../x", "a b", "ä"])
def test_only_instances_have_a_rescue(name: str) -> None:
    assert rescuing.main([name]) == 2


def test_wrong_configuration_is_left_to_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONITOR_EXIT_CODE", "exited")
    monkeypatch.setenv("MONITOR_EXIT_STATUS", "2")
    monkeypatch.setattr(launcher, "OPT", "/nonexistent")
    assert rescuing.main(["default"]) == 0


@pytest.mark.parametrize("restarts", [0, 10], ids=["stopped", "crash-loop"])
def test_identity_is_put_back_and_noted(
    opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: int
) -> None:
    """systemd as far as a rescue asks it: the unit has failed, and systemd-run runs what it is told to."""
    bind(opt, "instances", "../releases/2.0.0")
    bind(opt, "previous", "../releases/1.0.0")
    state = tmp_path / "state"
    whole = json.dumps({"seed": base64.b64encode(bytes(32)).decode(), "agent_id": "agent-1"}).encode()
    (state / "default").mkdir(parents=True)
    (state / "default/identity").write_bytes(b"{")
    (state / ".updates/default/backup").mkdir(parents=True)
    copy = {"files": {"identity": base64.b64encode(whole).decode()}}
    (state / ".updates/default/backup/identity.json").write_text(json.dumps(copy))
    programs, orders = tmp_path / "bin", tmp_path / "orders"
    programs.mkdir()
    for name, script in {
        "systemctl": f"echo $* >> {orders}\ncase $* in *NRestarts*) echo {restarts};; esac",
        "journalctl": "echo it said this",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(launcher, "OPT", str(opt))
    monkeypatch.setattr(rescuing, "STATE", str(state))

    def hand_over(instance: str, content: bytes, *, always: bool) -> list[str]:
        return restoring.write(state / instance, content, always=always)

    monkeypatch.setattr(restoring, "_hand_over", hand_over)
    assert rescuing.main(["default"]) == 0
    assert (state / "default/identity").read_bytes() == whole
    note = (state / ".updates/default/rescued").read_text()
    assert "put back: identity" in note
    assert "it said this" in note
    assert ("2.0.0 did not start; bound to 1.0.0" in note) == (restarts > 0), "only a crash loop is the release's fault"
    assert bound(opt) == ("../releases/1.0.0" if restarts else "../releases/2.0.0")
    assert "start --no-block agentina@default.service" in orders.read_text()


def test_identity_that_cannot_be_put_back_keeps_no_rescue_from_going_on(
    opt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> list[str]:
        raise restoring.RestoringError("no room")

    monkeypatch.setattr(restoring, "restore", refuse)
    assert rescuing._restore("default") == []
    assert "no room" in capsys.readouterr().err
