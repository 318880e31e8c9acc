"""``agentina smoke-check``: a new release looks at itself and at this host before it is let near any work."""

from __future__ import annotations

import click

from agentina import errors
from agentina.cli import options, output


@click.command("smoke-check", epilog=options.examples("agentina smoke-check --instance default"))
@options.instance_option
@options.root_option
@options.json_option
def smoke_check(instance: str, *, as_json: bool) -> int:
    """Check that this release can run here: Python, modules, configuration, and the state that is there.

    Changes nothing. The updater has each new release do this before its trial. Ends with 0 when it can, else with 1.
    """
    from agentina.host.instance import doctor
    from agentina.host.updating import smoke

    checks = list(smoke.examine(options.layout().instance(instance)))
    document = doctor.to_document(checks)
    if as_json:
        output.document(document)
    else:
        for check in checks:
            output.answer(
                f"{output.paint(check.verdict.value).ljust(4)}  {check.name.ljust(13)}  {output.clean(check.message)}"
            )
    bad = [f"{check.name}: {check.message}" for check in checks if check.verdict is doctor.Verdict.FAIL]
    for problem in bad:
        output.say(output.clean(problem))
    return int(errors.Exit.FAILED if bad else errors.Exit.OK)
