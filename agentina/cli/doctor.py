"""``agentina doctor``: every precondition, each with its remedy."""

from __future__ import annotations

import click

from agentina import errors
from agentina.cli import options, output


@click.command(
    epilog=options.examples("agentina doctor", "agentina doctor --control-plane https://agents.example.com --json")
)
@options.instance_option
@click.option(
    "--control-plane", "url", metavar="URL", default="", help="Try this address; the installed one otherwise."
)
@click.option("--ca-file", metavar="FILE", default="", help="Certificates to trust besides the system's (PEM).")
@options.root_option
@options.json_option
def doctor(instance: str, url: str, ca_file: str, *, as_json: bool) -> int:
    """Check everything an agent needs of this host, before or after it is installed.

    Ends with 0 when nothing failed; warnings mean that an agent works here with something missing.
    """
    from agentina.host.instance import doctor as host_doctor

    checks = []
    for check in host_doctor.examine(options.layout().instance(instance), control_plane=url, ca_file=ca_file):
        checks.append(check)
        if not as_json:
            verdict = output.paint(check.verdict.value) + " " * (4 - len(check.verdict.value))
            output.answer(f"{verdict}  {check.name.ljust(13)}  {output.clean(check.message)}")
            if check.remedy:
                output.answer(f"{' ' * 21}-> {output.clean(check.remedy)}")
    document = host_doctor.to_document(checks)
    if as_json:
        output.document(document)
    return int(errors.Exit.OK if document["healthy"] else errors.Exit.FAILED)
