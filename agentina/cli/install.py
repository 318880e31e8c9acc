"""``agentina install`` and ``agentina uninstall``."""

from __future__ import annotations

import time

import click

from agentina import errors
from agentina.cli import options, output


@click.command(
    epilog=options.examples(
        "agentina install --token-file token --control-plane https://agents.example.com",
        "agentina token create | ssh host agentina install --token-file - --control-plane https://agents.example.com",
        "agentina install --instance coder-2 --role coder --label zone=a --token-file - --control-plane https://…",
    )
)
@click.option("--control-plane", "url", metavar="URL", required=True, help="Address of the control plane.")
@click.option("--token-file", metavar="FILE", help="File with the activation token (act_…); - reads stdin.")
@click.option("--token", metavar="TOKEN", help="The token itself; other users see it in `ps`: prefer --token-file.")
@options.instance_option
@click.option("--role", help="Role of the agent, unless the token fixes one.")
@options.label_option("Label of the agent, unless the token fixes labels (repeatable).")
@click.option(
    "--max-concurrent-tasks", type=click.IntRange(1, 1000), help="Tasks at once; the license may allow fewer."
)
@click.option("--ca-file", metavar="FILE", default="", help="Certificates to trust besides the system's (PEM).")
@click.option("--no-service", is_flag=True, help="Start no service; say how to start the daemon.")
@click.option("--timeout", type=options.Duration(), default="60s", show_default=True, help="Wait for a heartbeat.")
@options.root_option
@options.json_option
def install(
    *,
    url: str,
    token_file: str | None,
    token: str | None,
    instance: str,
    role: str | None,
    label_pairs: tuple[str, ...],
    max_concurrent_tasks: int | None,
    ca_file: str,
    no_service: bool,
    timeout: float,
    as_json: bool,
) -> int:
    """Make this host an agent of a control plane.

    Checks the host, makes a key that never leaves it, redeems the activation token, and starts the service. Running it
    again changes nothing when everything is in place, and completes what an interrupted run began.
    """
    from agentina.host import install as host_install

    request = host_install.Request(
        control_plane=url,
        token=_token(token, token_file),
        role=role,
        labels=options.labels(label_pairs),
        max_concurrent_tasks=max_concurrent_tasks,
        ca_file=ca_file,
        service=not no_service,
        timeout_seconds=timeout,
    )
    where = options.layout().instance(instance)
    began = time.monotonic()
    done = host_install.install(where, request, say=output.say)
    if as_json:
        output.document(
            {
                "instance": instance,
                "agent_id": done.agent_id,
                "organization": done.organization,
                "changed": done.changed,
                "service": done.service,
            }
        )
        return int(errors.Exit.OK)
    for change in done.changed:
        output.say(change)
    if not done.changed:
        output.say("Everything was in place; nothing was changed.")
    output.say(f"Done in {time.monotonic() - began:.1f} s.")
    if done.service:
        from agentina.cli import status

        return status.show([where], as_json=False)
    root = "" if where.layout.is_system else f" --root {where.layout.root}"
    output.answer(f"Instance {instance} is agent {done.agent_id} of organization {output.clean(done.organization)}.")
    output.say(f"No service was started. Start the agent with: agentina daemon --instance {instance}{root}")
    return int(errors.Exit.OK)


@click.command(epilog=options.examples("agentina uninstall", "agentina uninstall --instance coder-2 --purge"))
@options.instance_option
@click.option("--purge", is_flag=True, help="Delete key, license and all state too.")
@click.option("--force", is_flag=True, help="End running tasks instead of refusing.")
@options.root_option
@options.json_option
def uninstall(instance: str, *, purge: bool, force: bool, as_json: bool) -> None:
    """Take an agent off this host: stop its service and remove its configuration.

    State is kept (installing again needs no new token) unless --purge is given. Refuses while tasks run. The control
    plane keeps the agent's record until `agentina agent remove`.
    """
    from agentina.host import install as host_install

    where = options.layout().instance(instance)
    changed = host_install.uninstall(where, purge=purge, force=force, say=output.say)
    if as_json:
        output.document({"instance": instance, "changed": changed, "purged": purge})
    elif changed:
        kept = "" if purge or not where.state.exists() else f" Its state is kept in {where.state}."
        output.answer(f"Instance {instance} is uninstalled.{kept}")
    else:
        output.answer(f"Instance {instance} is not installed; nothing was changed.")


def _token(token: str | None, token_file: str | None) -> str:
    if token and token_file:
        raise errors.USAGE(problem="Give either --token or --token-file, not both.")
    if token_file:
        from agentina.cli import connection

        token = connection.read_secret(token_file, "--token-file")
    given = (token or "").strip()
    if given and not given.startswith("act_"):
        # Perhaps the operator's own (aop_…), which is nobody else's business.
        problem = "it is no activation token (act_…); `agentina token create` makes one"
        raise errors.INPUT_INVALID(where="--token-file" if token_file else "--token", problem=problem)
    return given
