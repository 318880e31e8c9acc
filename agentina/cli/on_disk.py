"""What can be told about an instance whose daemon does not run, from its files alone."""

from __future__ import annotations

from typing import Any

import msgspec

import agentina
from agentina import errors
from agentina.host import install
from agentina.host.instance import config, identity, service
from agentina.host.updating import orders
from agentina.protocol import local, units, wire
from agentina.system import paths, services
from agentina.updates import journal


def read(instance: paths.InstancePaths, stopped: errors.AgentinaError) -> dict[str, Any]:
    """The status of an instance without a daemon, in the same shape as the daemon's own.

    Raises:
        AgentinaError: ``INSTANCE_UNKNOWN`` when nothing was ever installed under this name.

    """
    problems = [_problem(stopped)]
    url, slots = "", 0
    try:
        settings = config.load(instance)
        url, slots = settings.control_plane, settings.max_concurrent_tasks
    except errors.AgentinaError as error:
        if error.entry is errors.INSTANCE_UNKNOWN:
            raise
        problems.append(_problem(error))
    known = _identity(instance, problems)
    license_ = _license(instance, known, problems)
    status = local.InstanceStatus(
        instance=instance.name,
        version=agentina.__version__,
        state="stopped",
        state_reason=_reason(instance),
        healthy=False,
        agent_id=known.agent_id if known else "",
        organization=known.organization if known else "",
        role=known.role if known else None,
        labels=known.labels if known else {},
        control_plane=url,
        license=license_,
        channel=license_.channel if license_ else "",
        max_concurrent_tasks=slots,
        update=_update(instance),
        problems=problems,
    )
    document = msgspec.to_builtins(status)
    assert isinstance(document, dict)
    return document


def _reason(instance: paths.InstancePaths) -> str:
    try:
        running = len(install.running_tasks(instance))
    except PermissionError:
        # Units everybody may see.
        running = len(services.task_units(instance.name)) if service.is_managed(instance.layout) else 0
    if not running:
        return "the daemon does not run"
    goes = "goes" if running == 1 else "go"
    return f"the daemon does not run; {units.show_count(running, 'task')} {goes} on without it"


def _update(instance: paths.InstancePaths) -> wire.UpdateReport | None:
    try:
        return orders.report_of(journal.read(instance.update_journal))
    except (errors.AgentinaError, OSError):
        return None


def _identity(instance: paths.InstancePaths, problems: list[local.Problem]) -> identity.Identity | None:
    try:
        return identity.load(instance)
    except errors.AgentinaError as error:
        problems.append(_problem(error))
    except PermissionError:
        hidden = errors.FILE_UNREADABLE(where=str(instance.state), problem="it is the agent's own")
        problems.append(msgspec.structs.replace(_problem(hidden), remedy="Use sudo."))
    except OSError as error:
        problems.append(_problem(errors.FILE_UNREADABLE(where=str(instance.identity), problem=error.strerror)))
    return None


def _license(
    instance: paths.InstancePaths, known: identity.Identity | None, problems: list[local.Problem]
) -> local.LicenseView | None:
    if known is None or not known.agent_id:
        return None
    try:
        license_ = identity.load_license(instance, known)
    except errors.AgentinaError as error:
        problems.append(_problem(error))
        return None
    # How much of the grace is used up only a running daemon knows.
    return local.LicenseView.of(license_, grace_left_seconds=license_.offline_grace_hours * 3600)


def _problem(error: errors.AgentinaError) -> local.Problem:
    return local.Problem(code=error.code, severity="error", message=error.message, remedy=error.remedy)
