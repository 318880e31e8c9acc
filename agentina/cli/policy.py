"""``agentina policy``: what this host accepts, whoever asks."""

from __future__ import annotations

import click

from agentina import errors
from agentina.cli import lazy, options, output


@click.group(cls=lazy.NounGroup)
def policy() -> None:
    """See and try what this host accepts."""


@policy.command(epilog=options.examples("agentina policy check job.yaml", "agentina policy check - < job.yaml"))
@click.argument("source", metavar="FILE|-")
@options.root_option
@options.json_option
def check(source: str, *, as_json: bool) -> int:
    """Say whether this host would run a job, and by which rules not. Ends with 0 or 3."""
    from agentina.cli import job_files
    from agentina.host.instance import policy as host_policy

    _, spec = job_files.read(source)
    rules = host_policy.load(options.layout().policy_file)
    reasons = host_policy.check(rules, spec)
    if as_json:
        output.document({"accepted": not reasons, "reasons": reasons})
    elif not reasons:
        output.answer(f"This host would run {output.clean(spec.name)}.")
    else:
        output.answer(f"This host would refuse {output.clean(spec.name)}:")
        for reason in reasons:
            output.answer(f"  {output.clean(reason)}")
    return int(errors.Exit.REFUSED if reasons else errors.Exit.OK)


@policy.command(epilog=options.examples("agentina policy show", "agentina policy show --json"))
@options.root_option
@options.json_option
def show(*, as_json: bool) -> None:
    """Show the policy in force, defaults included."""
    import msgspec

    from agentina.host.instance import policy as host_policy

    path = options.layout().policy_file
    rules = msgspec.to_builtins(host_policy.load(path))
    if as_json:
        output.document(rules)
        return
    output.say(f"{path}" if path.exists() else f"{path} does not exist; these are the defaults.")
    output.pairs([(key, _shown(value)) for key, value in rules.items()])


def _shown(value: object) -> str:
    if isinstance(value, list):
        return output.clean(", ".join(map(str, value))) if value else "(none)"
    return "(no restriction)" if value is None else output.clean(value)
