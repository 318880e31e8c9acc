"""Settings that a control plane may give to hosts, by rollouts (docs/explanation/rollouts.md).

Only such as make a host more careful or more talkative: how much work it takes, how long it keeps what failed, how
often it says that it is alive. Where its owner's own configuration has the same key, the stricter of the two holds, so
no control plane can take from a host what its owner keeps back; :func:`stricter` is that rule. A configuration is named
by its content (:func:`version_of`): the same settings are the same version everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from agentina.protocol import inputs, units

#: What a host reports while no settings of a control plane hold on it. One that takes none reports an empty text.
NONE: Final = "none"
_PREFIX: Final = "cfg-"
_DIGITS: Final = 12
_MOST_BYTES: Final = 1 << 50


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The keys. None: the host's own configuration holds."""

    #: Seconds between heartbeats of a host without tasks; never more than the control plane asks of everybody.
    heartbeat_seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)] | None = None
    #: Tasks at once; at most what the host's owner and the license allow.
    max_concurrent_tasks: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    #: Memory left to the host (bytes); at least what its owner says.
    memory_reserve: Annotated[int, msgspec.Meta(ge=0, le=_MOST_BYTES)] | None = None
    #: No new work when the state directory's disk has less free than this (bytes); at least what its owner says.
    disk_reserve: Annotated[int, msgspec.Meta(ge=0, le=_MOST_BYTES)] | None = None
    #: No new work while memory pressure (PSI some avg10, percent) is above this; at most what the owner says.
    max_memory_pressure: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    #: No new work while IO pressure (PSI some avg10, percent) is above this; at most what the owner says.
    max_io_pressure: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    #: Days the directories of unsuccessful tasks are kept for a look; at most what the owner says.
    keep_failed_days: Annotated[float, msgspec.Meta(ge=0, le=365)] | None = None
    #: Seconds the process of an AI agent may go on after it said that it had finished; at most what the owner says.
    agent_linger: Annotated[float, msgspec.Meta(ge=0, le=3600)] | None = None
    #: What the daemon logs. Its owner's word does not matter here: nothing depends on it.
    log_level: Literal["debug", "info", "warning", "error"] | None = None


#: What people may write as text in files of settings, and in a host's own configuration.
MEASURES: Final[inputs.Measures] = {
    "heartbeat_seconds": units.parse_duration,
    "memory_reserve": units.parse_size,
    "disk_reserve": units.parse_size,
    "agent_linger": units.parse_duration,
}

#: Which of two values is the stricter one; settings that are not here take the place of the owner's.
_STRICTER: Final[Mapping[str, Any]] = {
    "max_concurrent_tasks": min,
    "memory_reserve": max,
    "disk_reserve": max,
    "max_memory_pressure": min,
    "max_io_pressure": min,
    "keep_failed_days": min,
    "agent_linger": min,
}


def stricter(own: Mapping[str, Any], given: Settings) -> dict[str, Any]:
    """The values that change of an owner's configuration ``own``, by key. Keys that it does not have are left out."""
    changed = {}
    for key in Settings.__struct_fields__:
        value = getattr(given, key)
        if value is not None and key in own:
            chosen = _STRICTER[key](own[key], value) if key in _STRICTER else value
            if chosen != own[key]:
                changed[key] = chosen
    return changed


def version_of(given: Settings) -> str:
    """The name of a configuration: the same content has the same one."""
    content = msgspec.json.encode(given, order="sorted")
    return _PREFIX + hashlib.sha256(content).hexdigest()[:_DIGITS]
