from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.host.instance import config
from agentina.protocol import inputs, settings
from agentina.system import paths

OWN = msgspec.structs.asdict(config.HostConfig(control_plane="http://localhost"))
numbers = st.integers(1, 60)
wanted = st.builds(
    settings.Settings,
    heartbeat_seconds=st.none() | numbers.map(float),
    max_concurrent_tasks=st.none() | numbers,
    memory_reserve=st.none() | st.integers(0, 1 << 40),
    disk_reserve=st.none() | st.integers(0, 1 << 40),
    max_memory_pressure=st.none() | numbers.map(float),
    max_io_pressure=st.none() | numbers.map(float),
    keep_failed_days=st.none() | numbers.map(float),
    agent_linger=st.none() | numbers.map(float),
    log_level=st.none() | st.sampled_from(["debug", "info", "warning", "error"]),
)
#: Keys of which the smaller, and the larger, value is the stricter one.
SMALLER = ("max_concurrent_tasks", "max_memory_pressure", "max_io_pressure", "keep_failed_days", "agent_linger")
LARGER = ("memory_reserve", "disk_reserve")


@given(wanted)
def test_nothing_is_taken_from_what_the_owner_keeps_back(given_: settings.Settings) -> None:
    held = OWN | settings.stricter(OWN, given_)
    assert all(held[key] <= OWN[key] for key in SMALLER)
    assert all(held[key] >= OWN[key] for key in LARGER)
    others = set(OWN) - set(settings.Settings.__struct_fields__)
    assert all(held[key] == OWN[key] for key in others)
    for key in (*SMALLER, *LARGER):
        value = getattr(given_, key)
        assert held[key] in {OWN[key], value}
        if value is not None:
            assert held[key] == (min if key in SMALLER else max)(OWN[key], value)
    config.HostConfig(**held)


@given(wanted, wanted)
def test_a_version_is_its_content(one: settings.Settings, other: settings.Settings) -> None:
    assert (settings.version_of(one) == settings.version_of(other)) == (one == other)
    travelled = inputs.convert(msgspec.to_builtins(one), settings.Settings, "settings")
    assert settings.version_of(travelled) == settings.version_of(one)
    assert settings.version_of(one).startswith("cfg-")


def test_every_setting_is_a_key_of_the_owners_or_of_the_control_planes() -> None:
    assert set(settings.Settings.__struct_fields__) - set(OWN) == {"heartbeat_seconds"}


@pytest.mark.parametrize(
    "document",
    [{"control_plane": "https://evil.example"}, {"max_concurrent_tasks": 0}, {"log_level": "all"}, [], "x",
     {"memory_reserve": -1}, {"heartbeat_seconds": 0.01}, {"executor": "process"}],
)  # fmt: skip
def test_what_is_not_safe_to_set_is_refused(document: Any) -> None:
    with pytest.raises(Exception, match="INPUT_"):
        inputs.convert(document, settings.Settings, "settings")


def test_sizes_and_durations_may_be_written_as_people_do() -> None:
    written = {"memory_reserve": "512MiB", "disk_reserve": 5, "agent_linger": "1m", "log_level": "info"}
    plain = {"memory_reserve": 512 << 20, "disk_reserve": 5, "agent_linger": 60, "log_level": "info"}
    assert inputs.measured(written, settings.MEASURES, "file") == plain
    assert written["memory_reserve"] == "512MiB"
    with pytest.raises(errors.AgentinaError) as caught:
        inputs.measured({"disk_reserve": "a lot"}, settings.MEASURES, "file")
    assert (caught.value.code, caught.value.context["where"]) == ("INPUT_INVALID", "file.disk_reserve")


def test_every_measure_is_a_key_of_both_files() -> None:
    assert set(settings.MEASURES) <= set(settings.Settings.__struct_fields__)
    assert set(settings.MEASURES) - {"heartbeat_seconds"} <= set(config.HostConfig.__struct_fields__)


def test_a_hosts_own_file_may_be_written_like_that_too(tmp_path: Path) -> None:
    instance = paths.Layout(tmp_path).instance("default")
    instance.config.parent.mkdir(parents=True)
    instance.config.write_text("control_plane: http://localhost\nmemory_reserve: 2G\nagent_linger: 1m\n")
    loaded = config.load(instance)
    assert (loaded.memory_reserve, loaded.agent_linger) == (2 << 30, 60)
    instance.config.write_text("control_plane: http://localhost\nmemory_reserve: much\n")
    with pytest.raises(errors.AgentinaError, match="memory_reserve"):
        config.load(instance)


def test_a_hosts_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    instance = paths.Layout(tmp_path).instance("default")
    instance.config.mkdir(parents=True)
    with pytest.raises(errors.AgentinaError, match=r"default\.yaml cannot be read: Is a directory") as caught:
        config.load(instance)
    assert caught.value.entry is errors.FILE_UNREADABLE
