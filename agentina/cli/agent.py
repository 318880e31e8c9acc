"""``agentina agent``: the agents of the fleet, as the control plane knows them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from agentina.cli import acts, agent_names, connection, lazy, options, output
from agentina.protocol import api, units

if TYPE_CHECKING:
    from agentina.client import api as clients


@click.group(cls=lazy.NounGroup)
def agent() -> None:
    """See and manage the agents of the fleet."""


@agent.command("list", epilog=options.examples("agentina agent list", "agentina agent list --json"))
@options.root_option
@options.json_option
def list_agents(*, as_json: bool) -> None:
    """List agents with what they do now."""
    with connection.open_client() as client:
        listed = client.list_agents()
    if as_json:
        output.document(listed)
        return
    now = time.time_ns() // 1_000_000
    rows = [
        (
            one.id, _state(one), one.name, one.organization, one.role or "-",
            output.labels(one.labels), f"{len(one.tasks)}/{one.max_concurrent_tasks}", _version(one),
            one.channel or "-", _configuration(one), output.ago(one.last_heartbeat_ms, now),
        )
        for one in listed.agents
    ]  # fmt: skip
    output.table(
        (
            "ID",
            "STATE",
            "HOST",
            "ORGANIZATION",
            "ROLE",
            "LABELS",
            "TASKS",
            "VERSION",
            "CHANNEL",
            "SETTINGS",
            "HEARTBEAT",
        ),
        rows,
    )
    behind = sum(one.behind for one in listed.agents)
    if behind:
        output.say(f"* {behind} of {units.show_count(len(listed.agents), 'agent')} could run a newer version.")
    skewed = sum(_is_skewed(one) for one in listed.agents)
    if skewed:
        output.say(
            f"! {skewed} of {units.show_count(len(listed.agents), 'agent')} have other settings than are wanted."
        )


@agent.command(epilog=options.examples("agentina agent show build-3", "agentina agent show build-3/default --json"))
@agent_names.argument
@options.root_option
@options.json_option
def show(agent_name: str, *, as_json: bool) -> None:
    """Show everything about one agent."""
    with connection.open_client() as client:
        one = client.get_agent(agent_names.resolve(client, agent_name))
    if as_json:
        output.document(one)
    else:
        render(one, now_ms=time.time_ns() // 1_000_000)


def render(one: api.AgentView, *, now_ms: int) -> None:
    """Print one agent for people."""
    host = one.host
    output.answer(f"{one.id}  {output.paint(_state(one))}")
    output.pairs(
        [
            ("why", output.clean(one.state_reason)),
            ("host", output.clean(f"{one.hostname}, instance {one.instance}")),
            ("organization", one.organization),
            ("role", one.role),
            ("labels", output.labels(one.labels)),
            ("version", output.clean(f"{one.version}, executor {one.executor}")),
            ("runners", output.clean(", ".join(one.runners))),
            ("channel", f"{one.channel}{f', newest {one.newest}' if one.newest else ''}"),
            ("pinned to", one.pinned),
            ("pinned by its host to", output.clean(one.host_pinned)),
            ("update window", output.clean(one.update_window)),
            ("update", _update(one)),
            ("settings", output.clean(_settings(one))),
            ("heartbeat", f"{output.ago(one.last_heartbeat_ms, now_ms)}, session {one.session}"),
            ("tasks", f"{len(one.tasks)} of {one.max_concurrent_tasks}: {', '.join(one.tasks) or 'none'}"),
            (
                "memory",
                f"{units.show_size(host.memory_free_bytes)} of {units.show_size(host.memory_bytes)} free"
                if host
                else "",
            ),
            (
                "disk",
                f"{units.show_size(host.disk_free_bytes)} of {units.show_size(host.disk_bytes)} free" if host else "",
            ),
            ("attention", output.clean(", ".join(host.attention)) if host else ""),
            ("activated", output.moment(one.created_ms)),
            *((output.clean(key), output.clean(value)) for key, value in sorted(one.facts.items())),
        ],
        indent=2,
    )
    if one.guarantees:
        output.answer("limits that hold")
        output.pairs(
            [(output.clean(key), output.clean(value)) for key, value in sorted(one.guarantees.items())], indent=2
        )


def _is_skewed(one: api.AgentView) -> bool:
    return one.configuration_wanted not in {"", one.configuration}


def _configuration(one: api.AgentView) -> str:
    """The settings that hold, marked where a rollout wants others."""
    return f"{one.configuration or '-'}{'!' if _is_skewed(one) else ''}"


def _settings(one: api.AgentView) -> str:
    wanted = f", wanted {one.configuration_wanted}" if _is_skewed(one) else ""
    report = one.configuration_report
    became = (
        "" if report is None else f"; {report.version} {report.state}{f': {report.detail}' if report.detail else ''}"
    )
    return f"{one.configuration or 'none of the control plane'}{wanted}{became}"


def _act(client: clients.Client, name: str, verb: str, *, reason: str) -> tuple[api.AgentView, str]:
    one = client.act_on_agent(agent_names.resolve(client, name), verb, reason=reason)
    return one, f"{one.id} is {output.paint(one.state)}; it holds {units.show_count(len(one.tasks), 'task')}."


_VERBS = {
    "drain": ("Give an agent no new work; let its tasks finish.", "agentina agent drain AGENT --reason 'new disk'"),
    "resume": ("Give an agent work again after a drain or a quarantine.", "agentina agent resume AGENT"),
    "quarantine": ("Set an agent aside because something is wrong with it.", "agentina agent quarantine AGENT"),
}
acts.add(agent, _act, _VERBS, metavar="AGENT", kind=agent_names.AgentName())


@agent.command(epilog=options.examples("agentina agent remove AGENT"))
@agent_names.argument
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@options.root_option
@options.json_option
def remove(agent_name: str, *, yes: bool, as_json: bool) -> None:
    """Forget an agent for good: its identity is refused from now on, and tasks it holds are lost."""
    with connection.open_client() as client:
        agent_id = agent_names.resolve(client, agent_name)
        if not yes:
            one = client.get_agent(agent_id)
            name = output.clean(f"{one.hostname}/{one.instance}")
            options.confirm(f"Remove {name} with {units.show_count(len(one.tasks), 'task')}?")
        client.remove_agent(agent_id)
    if as_json:
        output.document({"id": agent_id, "removed": True})
    else:
        output.answer(f"Agent {output.clean(agent_id)} is removed.")


@agent.command(epilog=options.examples("agentina agent pin AGENT 1.4.0"))
@agent_names.argument
@click.argument("version")
@options.root_option
@options.json_option
def pin(agent_name: str, version: str, *, as_json: bool) -> None:
    """Hold an agent to a version: rollouts of other ones leave it out."""
    _pin(agent_name, version, as_json=as_json)


@agent.command(epilog=options.examples("agentina agent unpin AGENT"))
@agent_names.argument
@options.root_option
@options.json_option
def unpin(agent_name: str, *, as_json: bool) -> None:
    """Let rollouts change an agent again after a pin."""
    _pin(agent_name, "", as_json=as_json)


def _pin(agent_name: str, version: str, *, as_json: bool) -> None:
    with connection.open_client() as client:
        one = client.pin_agent(agent_names.resolve(client, agent_name), version)
    if as_json:
        output.document(one)
    else:
        output.answer(
            f"{one.id} runs {one.version or '-'} and is {f'pinned to {version}' if version else 'not pinned'}."
        )


def _version(one: api.AgentView) -> str:
    """The version, with a mark when there is a newer one."""
    return f"{one.version or '-'}{'*' if one.behind else ''}"


def _update(one: api.AgentView) -> str:
    report = one.update
    if report is None:
        return ""
    why = f": {report.reason}" if report.reason else ""
    return output.clean(f"{report.version} {report.state}{f', {report.verdict}' if report.verdict else ''}{why}")


def _state(one: api.AgentView) -> str:
    return one.state if one.state != "active" else ("online" if one.online else "offline")
