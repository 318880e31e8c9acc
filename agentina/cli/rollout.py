"""``agentina rollout``: bring a release to many hosts, a few at first."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from agentina import errors
from agentina.cli import acts, agent_names, connection, lazy, options, output
from agentina.protocol import api, inputs, settings, units
from agentina.system import files

if TYPE_CHECKING:
    from agentina.client import api as clients

#: Seconds the control plane may hold a request for the next change.
_HOLD = 30.0
#: Agents shown unless all are asked for.
_SHOWN = 20
#: Largest file of settings, in bytes.
_MOST_BYTES = 1 << 16
_ENDS = {"completed", "rolled-back"}
_WHO = {"updated": "with the release", "past": "the same agents before", "others": "not updated"}


@click.group(cls=lazy.NounGroup)
def rollout() -> None:
    """Bring a release to hosts by stages, and take it back when they do worse."""


#: Seconds: nothing of a rollout takes longer.
_YEAR: Final = 31_536_000


class _Percent(click.ParamType):  # type: ignore[type-arg]  # only newer versions of click have it generic
    """``25%`` or ``25``, within bounds."""

    name = "percent"

    def __init__(self, *, least: float, most: float) -> None:
        """Both bounds are accepted themselves."""
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        try:
            share = float(str(value).removesuffix("%"))
        except ValueError:
            share = math.nan
        if not self._least <= share <= self._most:
            expected = f"expected a share such as 25%, from {self._least:g}% to {self._most:g}%"
            self.fail(f"{expected}, got {str(value)[:40]!r}", param, ctx)
        return share


@rollout.command(
    epilog=options.examples(
        "agentina rollout start 1.4.0",
        "agentina rollout start 1.4.0 --canary 3 --soak 2h --batch 10% --select role=coder,label.zone=a --follow",
        "agentina rollout start 1.4.0 --window 'mon-fri 22:00-05:00' --skip build-3",
        "agentina rollout start --config settings.yaml --soak 1h",
    )
)
@click.argument("version", required=False)
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="Roll out the settings in FILE instead (YAML)."
)
@click.option("--canary", type=click.IntRange(1, 100), default=1, show_default=True, help="Agents in the first stage.")
@click.option(
    "--soak", type=options.Duration(most=_YEAR), default="24h", show_default=True, help="How long they are watched."
)
@click.option(
    "--batch",
    type=_Percent(least=0.1, most=100),
    default="25%",
    show_default=True,
    help="Agents in each further stage.",
)
@click.option(
    "--watch", type=options.Duration(most=_YEAR), default="1h", show_default=True, help="How long each is watched."
)
@click.option(
    "--tolerance", type=_Percent(least=0, most=50), default="5%", show_default=True,
    help="Agents of batches that may fail; of the canaries none may.",
)  # fmt: skip
@click.option(
    "--patience", type=options.Duration(least=1, most=_YEAR), default="1h", show_default=True,
    help="How long an agent may take before the others no longer wait for it.",
)  # fmt: skip
@click.option("--window", default="", help="Order upgrades only then: '[DAYS] HH:MM-HH:MM' in UTC.")
@click.option(
    "--select", "terms", metavar="KEY=VALUE,…", multiple=True,
    help="Only agents with that organization, role, channel or label.NAME (repeatable; all must hold).",
)  # fmt: skip
@click.option(
    "--skip", "skipped", metavar="AGENT", multiple=True, type=agent_names.AgentName(),
    help="Leave an agent out (repeatable).",
)  # fmt: skip
@click.option("--follow", "-f", is_flag=True, help="Show what happens until its end.")
@options.root_option
@options.json_option
def start(terms: tuple[str, ...], skipped: tuple[str, ...], *, follow: bool, as_json: bool, **wanted: Any) -> int:
    """Begin a rollout of release VERSION, or of settings: canaries, then batches; any that does worse halts it.

    What was changed is then taken back.
    """
    if (wanted["version"] is None) == (wanted["config"] is None):
        raise errors.USAGE(problem="Give either a VERSION or --config FILE.")
    request = api.RolloutStart(
        version=wanted["version"] or "",
        settings=None if wanted["config"] is None else _read(wanted["config"]),
        canary=wanted["canary"], soak_seconds=wanted["soak"],
        batch_percent=wanted["batch"], watch_seconds=wanted["watch"], tolerance_percent=wanted["tolerance"],
        patience_seconds=wanted["patience"], window=wanted["window"],
        select=[term for text in terms for term in text.split(",")],
    )  # fmt: skip
    with connection.open_client() as client:
        skip = [agent_names.resolve(client, name) for name in skipped]
        view = client.start_rollout(msgspec.structs.replace(request, skip=skip))
        if follow:
            return _follow(client, view, as_json=as_json)
    if as_json:
        output.document(view)
    else:
        output.say(f"{units.show_count(len(view.agents), 'agent')}; see `agentina rollout status {view.rollout.id}`")
        output.answer(view.rollout.id)
    return int(errors.Exit.OK)


def _read(path: Path) -> settings.Settings:
    """The settings in a file."""
    try:
        content = files.read_bounded(path, limit=_MOST_BYTES)
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=str(path), problem=str(error.strerror)) from error
    document = inputs.decode_yaml(content, str(path))
    plain = inputs.measured({} if document is None else document, settings.MEASURES, str(path))
    return inputs.convert(plain, settings.Settings, str(path))


@rollout.command("list", epilog=options.examples("agentina rollout list", "agentina rollout list --json"))
@options.root_option
@options.json_option
def list_rollouts(*, as_json: bool) -> None:
    """List rollouts, the newest first."""
    with connection.open_client() as client:
        listed = client.list_rollouts()
    if as_json:
        output.document(listed)
        return
    rows = [
        (
            one.id, one.version, one.state, _stage(one), _counts(one), one.select, output.moment(one.created_ms),
            one.reason or "-",
        )
        for one in listed.rollouts
    ]  # fmt: skip
    headers = ("ID", "VERSION", "STATE", "STAGE", "AGENTS", "SELECT", "STARTED", "REASON")
    output.table(headers, rows, ends_in_prose=True)


@rollout.command(epilog=options.examples("agentina rollout status", "agentina rollout status roll_1 --follow"))
@click.argument("rollout_id", metavar="[ROLLOUT]", required=False)
@click.option(
    "--follow", "-f", is_flag=True, help="Show what happens until its end; exit code 1 when it was rolled back."
)
@click.option("--all", "show_all", is_flag=True, help="Show all agents, not only those that need a look.")
@options.root_option
@options.json_option
def status(rollout_id: str | None, *, follow: bool, show_all: bool, as_json: bool) -> int:
    """Show how far a rollout is (the newest unless one is named), and why it waits or was halted."""
    with connection.open_client() as client:
        name = rollout_id or _newest(client)
        view = client.get_rollout(name, limit=10_000 if show_all or as_json else _SHOWN)
        if follow:
            return _follow(client, view, as_json=as_json)
    if as_json:
        output.document(view)
    else:
        _render(view)
    return int(errors.Exit.OK)


def _newest(client: clients.Client) -> str:
    listed = client.list_rollouts()
    if not listed.rollouts:
        raise errors.NO_ROLLOUT()  # noqa: RSE102 - calling the entry makes the exception
    return listed.rollouts[0].id


def _act(client: clients.Client, name: str, verb: str, *, reason: str) -> tuple[api.RolloutView, str]:
    view = client.act_on_rollout(name, verb, reason=reason)
    return view, f"{view.rollout.id} is {output.paint(view.rollout.state)}: {_counts(view.rollout)}."


_VERBS = {
    "pause": ("Order nothing for a while; what was updated stays, and is watched.", "agentina rollout pause roll_1"),
    "resume": ("Go on after a pause.", "agentina rollout resume roll_1"),
    "abort": (
        "End a rollout and take everybody it changed back.",
        "agentina rollout abort roll_1 --reason 'wrong one'",
    ),
}
acts.add(rollout, _act, _VERBS, metavar="ROLLOUT")


@rollout.command(epilog=options.examples("agentina rollout skip roll_1 build-3"))
@click.argument("rollout_id", metavar="ROLLOUT")
@agent_names.argument
@options.root_option
@options.json_option
def skip(rollout_id: str, agent_name: str, *, as_json: bool) -> None:
    """Leave an agent out of a rollout that has not reached it."""
    with connection.open_client() as client:
        view = client.skip_in_rollout(rollout_id, agent_names.resolve(client, agent_name))
    if as_json:
        output.document(view)
    else:
        output.answer(f"{output.clean(agent_name)} is left out of {view.rollout.id}.")


# --- what is shown ---------------------------------------------------------------------------------------------------


def _follow(client: clients.Client, view: api.RolloutView, *, as_json: bool) -> int:
    """Print the timeline as it grows, until the end."""
    shown = 0
    while True:
        for line in view.lines:
            if line.number > shown:
                shown = line.number
                output.say(f"{output.moment(line.at_ms)}  {output.clean(line.text)}")
        if view.rollout.state in _ENDS:
            break
        view = client.get_rollout(view.rollout.id, limit=_SHOWN, revision=view.revision, wait=_HOLD)
    if as_json:
        output.document(view)
    else:
        output.answer(f"{view.rollout.id} {output.paint(view.rollout.state)}: {_counts(view.rollout)}")
    return int(errors.Exit.OK if view.rollout.state == "completed" else errors.Exit.FAILED)


def _render(view: api.RolloutView) -> None:
    one, plan = view.rollout, view.plan
    output.answer(f"{one.id}  {one.version}  {output.paint(one.state)}")
    output.pairs(
        [
            ("why", output.clean(f"{one.reason}{f' (gate {one.gate})' if one.gate else ''}")),
            ("agents", _counts(one)),
            ("stage", _stage_words(view)),
            ("for", output.clean(one.select)),
            ("plan", _plan(view.plan)),
            ("settings", output.clean(_settings(plan))),
            ("window", output.clean(plan.window)),
            ("started", f"{output.moment(one.created_ms)} by {output.clean(one.created_by)}"),
        ],
        indent=2,
    )
    _render_work(view)
    if view.agents:
        rows = [
            (agent.id, agent.standing, agent.stage or "-", agent.name, agent.version or "-", agent.reason or "-")
            for agent in view.agents
        ]
        output.table(("AGENT", "STANDING", "STAGE", "HOST", "VERSION", "REASON"), rows, ends_in_prose=True)
    left = sum(one.agents.values()) - len(view.agents)
    if left > 0:
        output.say(f"{units.show_count(left, 'further agent')}; --all shows them.")
    output.answer("what happened")
    for line in view.lines[-_SHOWN:]:
        output.answer(f"  {output.moment(line.at_ms)}  {output.clean(line.text)}")


def _render_work(view: api.RolloutView) -> None:
    """What the gates compare."""
    rows = [
        (
            _WHO.get(work.who, work.who), work.tasks, f"{100 * work.failed / work.tasks:.1f} %",
            "-" if work.typical_seconds is None else units.show_duration(work.typical_seconds),
            f"{3600 * work.tasks / work.agent_seconds:.1f}" if work.agent_seconds else "-",
        )
        for work in view.work
        if work.tasks
    ]  # fmt: skip
    if rows:
        output.table(("WORK OF AGENTS", "TASKS", "FAILED", "TYPICAL", "PER AGENT AND HOUR"), rows)


def _stage(one: api.RolloutSummary) -> str:
    return f"{'canary' if one.stage == 1 else f'batch {one.stage - 1}'}, {one.phase}"


def _stage_words(view: api.RolloutView) -> str:
    if view.rollout.state not in {"running", "paused"}:
        return ""
    watched = ""
    if view.rollout.phase == "watching":
        watched = f" {units.show_duration(view.watched_seconds)} of {units.show_duration(view.watch_seconds)}"
    return _stage(view.rollout) + watched


def _settings(plan: api.RolloutStart) -> str:
    if plan.settings is None:
        return ""
    given = ((name, getattr(plan.settings, name)) for name in plan.settings.__struct_fields__)
    return ", ".join(f"{name}: {value}" for name, value in given if value is not None) or "the hosts' own"


def _plan(plan: api.RolloutStart) -> str:
    canaries = "1 canary" if plan.canary == 1 else f"{plan.canary} canaries"
    first = f"{canaries} for {units.show_duration(plan.soak_seconds)}"
    return f"{first}, then {plan.batch_percent:g} % each for {units.show_duration(plan.watch_seconds)}"


def _counts(one: api.RolloutSummary) -> str:
    return ", ".join(f"{count} {standing}" for standing, count in sorted(one.agents.items())) or "none"
