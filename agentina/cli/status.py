"""``agentina status``: how the agent on this host is.

Starts fast: it asks the daemon over its socket and prints plain data. Only when no daemon answers does it read what is
on disk (agentina.cli.on_disk), with all that this takes to load.
"""

from __future__ import annotations

import time
from typing import Any

import click

from agentina import errors
from agentina.cli import options, output
from agentina.client import local
from agentina.protocol import units
from agentina.system import paths


@click.command(epilog=options.examples("agentina status", "agentina status --all", "agentina status --json || alert"))
@options.instance_option
@click.option("--all", "everything", is_flag=True, help="Every instance of this host.")
@options.root_option
@options.json_option
def status(instance: str, *, everything: bool, as_json: bool) -> int:
    """Show how the agent on this host is: control plane, license, tasks, limits, and what needs attention.

    Ends with 0 when healthy, 1 when something needs attention, 4 when the daemon does not run (what is on disk is shown
    then), 5 when there is no such instance. With --all, with the first of 4 and 1 that is true of any.
    """
    layout = options.layout()
    chosen = layout.instances() if everything else [instance]
    if everything and not chosen:
        text = f"There is no instance on this host (looked in {layout.config_directory})."
        raise errors.AgentinaError(errors.INSTANCE_UNKNOWN, {"path": str(layout.config_directory)}, text=text)
    return show([layout.instance(name) for name in chosen], as_json=as_json, as_list=everything)


def show(instances: list[paths.InstancePaths], *, as_json: bool, as_list: bool = False) -> int:
    """Print the status of each instance and return the exit code for all of them."""
    found = [read(instance) for instance in instances]
    if as_json:
        output.document(plain_list(found) if as_list else found[0])
    else:
        for number, one in enumerate(found):
            if number:
                output.answer()
            render(one, now_ms=time.time_ns() // 1_000_000)
    return exit_code(found)


def plain_list(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The form of ``--all --json``."""
    return {"instances": found}


def read(instance: paths.InstancePaths) -> dict[str, Any]:
    """The daemon's own word, or what the disk tells when there is no daemon.

    Raises:
        AgentinaError: ``INSTANCE_UNKNOWN``; ``LOCAL_FORBIDDEN`` when this user may not ask.

    """
    try:
        return local.ask(instance, "status")
    except errors.AgentinaError as error:
        if error.entry is not errors.DAEMON_NOT_RUNNING:
            raise
        from agentina.cli import on_disk

        return on_disk.read(instance, error)


def exit_code(found: list[dict[str, Any]]) -> int:
    """0 healthy, 4 when a daemon does not run, 1 otherwise."""
    if any(one.get("state") == "stopped" for one in found):
        return int(errors.Exit.UNAVAILABLE)
    return int(errors.Exit.OK if all(one.get("healthy") for one in found) else errors.Exit.FAILED)


def render(one: dict[str, Any], *, now_ms: int) -> None:
    """Print one instance's status for people."""
    state = str(one.get("state", "stopped"))
    reason = f": {output.clean(one['state_reason'])}" if one.get("state_reason") else ""
    health = output.paint("healthy" if one.get("healthy") else "unhealthy")
    output.answer(f"{one.get('instance', '?')}  {output.paint(state)}{reason}  {health}")
    output.pairs(_facts(one, now_ms), indent=2)
    _render_tasks(one.get("tasks") or [], now_ms)
    _render_use(one.get("tasks") or [])
    _render_runners(one)
    _render_guarantees(one)
    _render_problems(one.get("problems") or [])


def _facts(one: dict[str, Any], now_ms: int) -> list[tuple[str, object]]:
    heartbeat = f", last heartbeat {output.ago(one.get('last_heartbeat_ms'), now_ms)}" if one.get("pid") else ""
    # No daemon to ask, and files that this user may not read.
    is_hidden = any(problem.get("code") == errors.FILE_UNREADABLE.code for problem in one.get("problems") or [])
    return [
        ("agent", one.get("agent_id") or ("unknown" if is_hidden else "not activated")),
        ("organization", one.get("organization")),
        ("role", one.get("role")),
        ("labels", output.labels(one["labels"]) if one.get("labels") else ""),
        ("version", f"{one.get('version', '?')}{_update(one)}"),
        ("update", _latest(one.get("update"), now_ms)),
        ("settings", _settings(one, now_ms)),
        ("channel", one.get("channel")),
        ("license", "unknown" if is_hidden else _license(one.get("license"), now_ms)),
        ("control plane", f"{one.get('control_plane', '?')}{heartbeat}"),
        ("daemon", _daemon(one, now_ms)),
        ("tasks", _slots(one)),
        ("admission", output.clean(one.get("admission") or "")),
        ("waiting", _waiting(one.get("reports_waiting", 0))),
        *_host(one.get("host")),
    ]


def _license(license_: dict[str, Any] | None, now_ms: int) -> str:
    if not license_:
        return "none"
    left = units.show_duration(max(license_["grace_left_seconds"], 0))
    state = "expired" if license_["expires_ms"] < now_ms else "expires"
    return (
        f"{license_['plan']}, {state} {output.moment(license_['expires_ms'])}, "
        f"{units.show_count(license_['max_concurrent_tasks_per_agent'], 'task')} at once, "
        f"{units.show_count(license_['max_agents'], 'agent')}, "
        f"offline grace {license_['offline_grace_hours']:g} h ({left} left)"
    )


def _slots(one: dict[str, Any]) -> str:
    if not one.get("pid"):
        return ""
    running = len([task for task in one.get("tasks") or [] if task.get("state") == "running"])
    return f"{running} running, {one.get('slots_free', 0)} of {one.get('max_concurrent_tasks', 0)} slots free"


def _waiting(reports: int) -> str:
    return f"{units.show_count(reports, 'report')} to send" if reports else ""


def _daemon(one: dict[str, Any], now_ms: int) -> str:
    if not one.get("pid"):
        return "not running"
    up = output.ago(one.get("started_ms"), now_ms)
    return f"process {one['pid']}, started {up}, session {one.get('session', 0)}, executor {one.get('executor') or '?'}"


def _update(one: dict[str, Any]) -> str:
    if not one.get("update_available"):
        return ""
    title = f": {output.clean(one['update_title'])}" if one.get("update_title") else ""
    return f" ({output.clean(one['update_available'])} is available{title})"


def _settings(one: dict[str, Any], now_ms: int) -> str:
    """The control plane's settings that hold, where it ever gave any."""
    report = one.get("configuration_report")
    if not report:
        return ""
    return f"{output.clean(one.get('configuration'))} of the control plane; {_latest(report, now_ms)}"


def _latest(update: dict[str, Any] | None, now_ms: int) -> str:
    if not update:
        return ""
    verdict = f" ({update['verdict']})" if update.get("verdict") else ""
    reason = f": {output.clean(update['reason'])}" if update.get("reason") else ""
    when = output.ago(update.get("at_ms") or None, now_ms)
    return (
        f"{output.clean(update.get('version', '?'))} {output.clean(update.get('state', '?'))}{verdict}{reason}, {when}"
    )


def _host(host: dict[str, Any] | None) -> list[tuple[str, object]]:
    if not host:
        return []
    pressure = host.get("pressure") or {}
    shown = ", ".join(f"{key} {value:g} %" for key, value in sorted(pressure.items()) if value >= 0)
    free, total = host.get("memory_free_bytes", 0), host.get("memory_bytes", 0)
    disk_free, disk = host.get("disk_free_bytes", 0), host.get("disk_bytes", 0)
    return [
        ("memory", f"{units.show_size(free)} of {units.show_size(total)} free"),
        ("disk", f"{units.show_size(disk_free)} of {units.show_size(disk)} free"),
        ("pressure", shown or "the kernel does not tell"),
        ("load", f"{host.get('load1', 0.0):g} on {host.get('cpus', 1)} CPUs"),
    ]


def _render_tasks(tasks: list[dict[str, Any]], now_ms: int) -> None:
    if not tasks:
        return
    output.answer()
    rows = [
        (
            task.get("task_id"), task.get("state"), task.get("name"), task.get("pid") or "-",
            "-" if task.get("started_ms") is None else output.ago(task["started_ms"], now_ms),
            units.show_size(task.get("memory_limit_bytes", 0)), units.show_size(task.get("output_bytes", 0)),
            "-" if task.get("lease_seconds") is None else units.show_duration(max(task["lease_seconds"], 0)),
        )
        for task in tasks
    ]  # fmt: skip
    output.table(("TASK", "STATE", "NAME", "PID", "STARTED", "MEMORY LIMIT", "OUTPUT", "LEASE"), rows)
    for task in tasks:
        progress = task.get("progress")
        if progress:
            percent = "" if progress.get("percent") is None else f" ({progress['percent']:.0f} %)"
            said = output.ago(progress.get("at_ms"), now_ms)
            output.answer(f"  {task.get('task_id')} says{percent}: {output.clean(progress.get('text'))}, {said}")


def _render_use(tasks: list[dict[str, Any]]) -> None:
    """What tasks used of models, what is left of their budgets, and which of them are held."""
    shown = [task for task in tasks if task.get("used") or task.get("budget") or task.get("parked")]
    if not shown:
        return
    output.answer()
    rows = [(task.get("task_id"), *_use(task), task.get("parked") or "-") for task in shown]
    output.table(("TASK", "CALLS", "TOKENS", "CACHED", "COST", "PARKED"), rows, ends_in_prose=True)


def _use(task: dict[str, Any]) -> tuple[object, ...]:
    used, budget = task.get("used") or {}, task.get("budget") or {}
    tokens = sum(used.get(name, 0) for name in ("input", "cache_write", "cache_write_1h", "output"))
    cost = f"${used.get('cost_nano', 0) / 1e9:,.4f}"
    if used.get("unpriced"):
        cost += f" + {used['unpriced']} unpriced"
    return (
        used.get("calls", 0),
        str(tokens) if budget.get("tokens") is None else f"{tokens} of {budget['tokens']}",
        used.get("cached", 0),
        cost if budget.get("cost") is None else f"{cost} of ${budget['cost']:,.2f}",
    )


def _render_guarantees(one: dict[str, Any]) -> None:
    if not one.get("guarantees"):
        return
    output.answer()
    output.answer("limits that hold")
    output.pairs([(aspect, output.clean(text)) for aspect, text in sorted(one["guarantees"].items())], indent=2)


def _render_runners(one: dict[str, Any]) -> None:
    if not one.get("runners"):
        return
    output.answer()
    output.answer("runners")
    output.pairs([(output.clean(name), output.clean(text)) for name, text in sorted(one["runners"].items())], indent=2)


def _render_problems(problems: list[dict[str, Any]]) -> None:
    if not problems:
        return
    output.answer()
    output.answer("needs attention")
    for problem in problems:
        severity = output.paint(str(problem.get("severity", "error")))
        output.answer(f"  {severity}: {output.clean(problem.get('message'))} [{problem.get('code')}]")
        output.answer(f"    remedy: {output.clean(problem.get('remedy'))}")
