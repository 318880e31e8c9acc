from __future__ import annotations

from pathlib import Path

import pytest

from agentina_base import launcher, rescuing


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
