from __future__ import annotations

from pathlib import Path

import pytest

from agentina.system import paths


def test_root_moves_everything(tmp_path: Path) -> None:
    instance = paths.Layout.find(str(tmp_path)).instance("default")
    for path in (instance.config, instance.state, instance.tasks, instance.log, instance.socket, instance.lock):
        assert path.is_relative_to(tmp_path)


def test_option_wins_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTINA_ROOT", "/from/environment")
    assert paths.Layout.find().root == Path("/from/environment")
    assert paths.Layout.find("/from/option").root == Path("/from/option")


def test_socket_path_stays_short_enough(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60)
    assert "run/agentina" not in str(paths.Layout(deep).instance("default").socket)
    assert str(paths.Layout().instance("default").socket) == "/run/agentina/default/agentina.sock"


def test_policy_is_not_an_instance(tmp_path: Path) -> None:
    layout = paths.Layout(tmp_path)
    layout.config_directory.mkdir(parents=True)
    for name in ("default.yaml", "coder-2.yaml", "policy.yaml"):
        (layout.config_directory / name).touch()
    assert layout.instances() == ["coder-2", "default"]


def test_instances_that_cannot_be_seen_are_not_taken_for_none(tmp_path: Path) -> None:
    layout = paths.Layout(tmp_path)
    assert layout.instances() == []
    layout.config_directory.parent.mkdir(parents=True)
    layout.config_directory.touch()
    with pytest.raises(NotADirectoryError):
        layout.instances()
