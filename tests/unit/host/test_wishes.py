from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentina.host.updating import wishes
from agentina.system import paths

WISH = wishes.Wish(id="rollout_1/2", action="upgrade", version="1.2.3")


@pytest.fixture
def instance(tmp_path: Path) -> paths.InstancePaths:
    made = paths.Layout(tmp_path).instance("default")
    made.state.mkdir(parents=True)
    return made


def test_wish_is_taken_once(instance: paths.InstancePaths) -> None:
    wishes.write(instance, WISH)
    assert wishes.take(instance) == WISH
    assert wishes.take(instance) is None


def test_the_latest_wish_counts(instance: paths.InstancePaths) -> None:
    wishes.write(instance, wishes.Wish(id="1", action="upgrade", version="1.0.0"))
    wishes.write(instance, WISH)
    assert wishes.take(instance) == WISH


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b"x" * 5000, b'{"id":"1","action":"upgrade"}', b"\xff",
        json.dumps({"id": "1", "action": "run", "version": "1.0.0"}).encode(),
        json.dumps({"id": "1", "action": "upgrade", "version": "../../etc"}).encode(),
        json.dumps({"id": "1", "action": "upgrade", "version": "1.0.0\n"}).encode(),
        json.dumps({"id": "", "action": "upgrade", "version": "1.0.0"}).encode(),
        json.dumps({"id": "-x", "action": "upgrade", "version": "1.0.0"}).encode(),
        json.dumps({"id": "1", "action": "upgrade", "version": "1.0.0", "more": 1}).encode(),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_taken_away_and_dropped(instance: paths.InstancePaths, content: bytes) -> None:
    instance.wish.write_bytes(content)
    assert wishes.take(instance) is None
    assert not instance.wish.exists()


@given(content=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_it_contains(instance: paths.InstancePaths, content: bytes) -> None:
    instance.wish.write_bytes(content)
    assert wishes.take(instance) is None or content.startswith(b"{")
    assert not instance.wish.exists()


def _link_to_a_file(path: Path) -> Any:
    secret = path.parent.parent / "secret"
    secret.write_text(json.dumps({"id": "1", "action": "upgrade", "version": "1.0.0"}))
    path.symlink_to(secret)
    return secret.read_text


def _fifo(path: Path) -> Any:
    os.mkfifo(path)
    return lambda: ""


def _directory(path: Path) -> Any:
    path.mkdir()
    return lambda: ""


@pytest.mark.parametrize("lay", [_link_to_a_file, _fifo, _directory])
def test_traps_are_neither_followed_nor_waited_for(instance: paths.InstancePaths, lay: Any) -> None:
    read = lay(instance.wish)
    before = read()
    assert wishes.take(instance) is None
    assert not os.path.lexists(instance.wish)
    assert read() == before


def test_directory_that_is_a_link_is_not_entered(tmp_path: Path) -> None:
    instance = paths.Layout(tmp_path).instance("default")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / instance.wish.name).write_text(json.dumps({"id": "1", "action": "upgrade", "version": "1.0.0"}))
    instance.state.parent.mkdir(parents=True)
    instance.state.symlink_to(elsewhere)
    assert wishes.take(instance) is None
    assert (elsewhere / instance.wish.name).exists()


def test_no_state_no_wish(tmp_path: Path) -> None:
    assert wishes.take(paths.Layout(tmp_path).instance("default")) is None
