"""``agentina upgrade`` and ``agentina rollback``: which release the agent of this host runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentina import errors
from agentina.cli import options, output

if TYPE_CHECKING:
    from agentina.host.updating import upgrading
    from agentina.system import paths
    from agentina.updates import journal

#: What a person reads when an update has come to a state.
_STATES = {
    "requested": "fetching",
    "fetched": "fetched; verifying",
    "verified": "verified: signed, whole, made for this host; unpacking",
    "staged": "unpacked; its smoke check",
    "smoke-checked": "its smoke check passed",
    "on-trial": "on trial: it has the daemon's place, tasks go on",
    "promoting": "the trial was good; promoting",
    "promoted": "promoted",
    "rolling-back": "going back",
    "rolled-back": "rolled back",
}


@click.command(
    epilog=options.examples(
        "sudo agentina upgrade --check", "sudo agentina upgrade", "sudo agentina upgrade 0.5.0 --yes --instance coder-2"
    )
)
@click.argument("version", required=False)
@options.instance_option
@click.option("--check", is_flag=True, help="Only say what there is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--retry", is_flag=True, help="Also a release that was rolled back here before.")
@options.root_option
@options.json_option
def upgrade(version: str | None, *, instance: str, check: bool, yes: bool, retry: bool, as_json: bool) -> int:
    """Have the agent run another release: the newest of its channel, or VERSION, which may be older.

    The release is verified, unpacked, and put on trial in the daemon's place; running tasks go on. It stays when it
    starts, finds the tasks again and reaches the control plane; otherwise the host goes back by itself. Ends with 0
    when the agent runs it (with --check: when there is nothing newer), 1 when it was rolled back (with --check: when
    there is something newer).
    """
    from agentina.host.updating import upgrading

    where = options.layout().instance(instance)
    found = upgrading.look(where, version)
    if check:
        return _tell(found, as_json=as_json)
    if found.offer is None or not found.is_news:
        return _nothing(found, as_json=as_json)
    output.say(f"{found.runs} -> {found.offer.version}: {output.clean(found.offer.title)}")
    if not yes:
        options.confirm(f"Upgrade instance {instance} of this host?")
    upgrading.begin(where, found.offer.version, force=retry)
    return _follow(where, as_json=as_json)


@click.command(
    epilog=options.examples(
        "sudo agentina rollback", "sudo agentina rollback --yes --json", "sudo agentina rollback --identity"
    )
)
@options.instance_option
@click.option(
    "--identity", "only_identity", is_flag=True,
    help="Put back key, agent id and license from before the last update (kept for 7 days), and leave the release.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.root_option
@options.json_option
def rollback(*, instance: str, only_identity: bool, yes: bool, as_json: bool) -> int:
    """Go back from the last update.

    One that is under way is ended; after one that was promoted the release before it runs again. Tasks go on.
    """
    from agentina.host.updating import upgrading

    where = options.layout().instance(instance)
    upgrading.require(where)
    if only_identity:
        return _restore_identity(where, yes=yes, as_json=as_json)
    if not yes:
        options.confirm(f"Go back to the release before on instance {instance} of this host?")
    upgrading.go_back(where)
    update = upgrading.follow(where, say=_say)
    _show_end(update, as_json=as_json)
    return int(errors.Exit.OK)


def _restore_identity(where: paths.InstancePaths, *, yes: bool, as_json: bool) -> int:
    from agentina.host.updating import upgrading
    from agentina.system import clock

    copy = upgrading.identity_copy(where)
    taken = clock.show_time(copy.taken_ms)
    output.say(
        f"There is a copy of agent {output.clean(copy.agent_id)}, taken at {taken} before the update to {copy.version}."
    )
    if not yes:
        options.confirm(f"Put it back on instance {where.name} of this host?")
    restored = upgrading.restore_identity(where)
    if as_json:
        output.document({"agent_id": copy.agent_id, "taken_ms": copy.taken_ms, "restored": restored})
    elif restored:
        output.answer(f"Put back: {', '.join(restored)}. This host is agent {output.clean(copy.agent_id)}.")
    else:
        output.answer("Nothing is damaged: identity and license are this agent's.")
    return int(errors.Exit.OK)


def _follow(where: paths.InstancePaths, *, as_json: bool) -> int:
    from agentina.host.updating import upgrading
    from agentina.updates import journal

    update = upgrading.follow(where, say=_say)
    if update.state is journal.State.PROMOTED:
        _show_end(update, as_json=as_json)
        return int(errors.Exit.OK)
    assert update.reason is not None
    raise errors.UPDATE_ROLLED_BACK(
        version=update.version, reason=journal.explain(update), instance=where.name, code=update.reason.value,
        verdict=update.verdict.value if update.verdict else "",
    )  # fmt: skip


def _say(update: journal.Update) -> None:
    output.say(f"  {_STATES[update.state.value]} …" if not update.is_over else f"  {_STATES[update.state.value]}.")


def _show_end(update: journal.Update, *, as_json: bool) -> None:
    if as_json:
        output.document(update)
        return
    runs = update.version if update.reason is None else update.before or "the package's own release"
    output.answer(f"This agent runs {runs}.")


def _tell(found: upgrading.Look, *, as_json: bool) -> int:
    if as_json:
        output.document(_plain(found))
    elif found.offer is None or not found.is_news:
        _nothing(found, as_json=False)
    else:
        output.answer(f"{found.offer.version} is available: {output.clean(found.offer.title)}")
        output.say(f"This agent runs {found.runs}. Install it with: sudo agentina upgrade {found.offer.version}")
    return int(errors.Exit.FAILED if found.is_news else errors.Exit.OK)


def _nothing(found: upgrading.Look, *, as_json: bool) -> int:
    if as_json:
        output.document(_plain(found))
    else:
        output.answer(f"This agent runs {found.runs or '?'}; channel {found.channel} has nothing newer.")
    return int(errors.Exit.OK)


def _plain(found: upgrading.Look) -> dict[str, Any]:
    offer = None if found.offer is None else {"version": found.offer.version, "title": found.offer.title}
    return {"runs": found.runs, "channel": found.channel, "available": offer if found.is_news else None}
