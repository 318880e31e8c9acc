"""An instance's configuration file, ``/etc/agentina/<instance>.yaml``: read once at start, unknown keys are errors.

Written by ``agentina install``; people may edit it. docs/reference/configuration.md is generated from these fields.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import yaml

from agentina import errors
from agentina.protocol import inputs, windows
from agentina.protocol import settings as protocol
from agentina.system import files, paths

_MAX_CONFIG = 1 << 20


class HostConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of an instance's configuration."""

    #: Address of the control plane: https, or http for loopback only.
    control_plane: str
    #: File with certificates to trust besides the system's (PEM); empty: the system's only.
    ca_file: str = ""
    #: Tasks at once; the license may allow fewer.
    max_concurrent_tasks: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    #: ``systemd``, ``process``, or ``auto``: systemd where the daemon is a service of a host with the package.
    executor: str = "auto"
    #: Memory left to the host: tasks are only taken while more than this stays free (bytes, or a size such as
    #: 512MiB).
    memory_reserve: Annotated[int, msgspec.Meta(ge=0)] = 256 << 20
    #: No new work when the state directory's disk has less free than this (bytes, or a size).
    disk_reserve: Annotated[int, msgspec.Meta(ge=0)] = 1 << 30
    #: No new work while memory pressure (PSI some avg10, percent) is above this.
    max_memory_pressure: Annotated[float, msgspec.Meta(ge=0, le=100)] = 20.0
    #: No new work while IO pressure (PSI some avg10, percent) is above this.
    max_io_pressure: Annotated[float, msgspec.Meta(ge=0, le=100)] = 60.0
    #: Days the directories of unsuccessful tasks are kept for a look; successful ones go at once.
    keep_failed_days: Annotated[float, msgspec.Meta(ge=0, le=365)] = 3.0
    #: Whose notices of preemption and maintenance to watch: ``auto`` (by what the firmware says), ``gce``, ``aws``,
    #: ``azure`` or ``none``.
    cloud: Literal["auto", "none", "gce", "aws", "azure"] = "auto"
    #: ``HOST[:PORT]`` of the cloud's metadata service, where a proxy stands before it; empty: the cloud's own.
    cloud_metadata: Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?)?$")] = ""
    #: When rollouts may give this host another release, ``[DAYS] HH:MM-HH:MM`` in UTC, such as ``mon-fri 22:00-05:00``;
    #: empty: at any time. Going back, and `agentina upgrade` on the host, are allowed always.
    update_window: str = ""
    #: The only version that rollouts may give this host; empty: any.
    update_pin: Annotated[str, msgspec.Meta(max_length=60)] = ""
    #: Where releases are taken from: the address of a directory with ``metadata`` and ``targets`` on any web server
    #: (docs/how-to/publish-releases.md); empty: the control plane. What is there is verified either way.
    release_repository: Annotated[str, msgspec.Meta(max_length=1000, pattern=r"^(https?://[^\s@?#]+)?$")] = ""
    #: Whether rollouts may change settings here (docs/how-to/roll-out-settings.md); what is stricter holds, theirs or
    #: this file's.
    remote_settings: bool = True
    #: Seconds (or a duration such as 1m) the process of an AI agent may go on, silent, after it said that it had
    #: finished; then it is ended.
    agent_linger: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 15.0
    #: The gateway's settings (``gateway.yaml``), for jobs with a budget or hosts in their scope; empty: no gateway.
    gateway: str = ""
    #: ``debug``, ``info``, ``warning``, ``error``.
    log_level: str = "info"


def load(instance: paths.InstancePaths) -> HostConfig:
    """Read and validate the configuration of an instance.

    Raises:
        AgentinaError: ``INSTANCE_UNKNOWN``, ``FILE_UNREADABLE``, ``INPUT_UNREADABLE``, ``INPUT_UNKNOWN_KEY`` or
            ``INPUT_INVALID``.

    """
    try:
        text = files.read_bounded(instance.config, limit=_MAX_CONFIG)
    except FileNotFoundError as error:
        raise errors.INSTANCE_UNKNOWN(instance=instance.name, path=str(instance.config)) from error
    except OSError as error:
        problem = error.strerror or str(error)
        raise errors.FILE_UNREADABLE(where=str(instance.config), problem=problem) from error
    where = str(instance.config)
    document = inputs.decode_yaml(text, where)
    settings = inputs.convert(inputs.measured(document, protocol.MEASURES, where), HostConfig, where)
    try:
        windows.parse(settings.update_window)
    except errors.AgentinaError as error:
        problem = str(error.context.get("problem", ""))
        raise errors.INPUT_INVALID(where=f"{instance.config}: update_window", problem=problem) from error
    return settings


def save(instance: paths.InstancePaths, config: HostConfig) -> None:
    """Write the configuration, leaving out what is at its default."""
    defaults = HostConfig(control_plane="")
    changed = {
        field: getattr(config, field)
        for field in HostConfig.__struct_fields__
        if field == "control_plane" or getattr(config, field) != getattr(defaults, field)
    }
    header = "# Written by `agentina install`; docs/reference/configuration.md explains every key.\n"
    instance.config.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(instance.config, (header + yaml.safe_dump(changed, sort_keys=False)).encode(), mode=0o644)
