"""The ``agentina`` command: the tree, and what every command has in common at its end.

Exit codes are those of :class:`agentina.errors.Exit`. Errors print message, remedy and code on stderr; with ``--json``
stdout has them as a document too.
"""

from __future__ import annotations

import sys

import click

import agentina
from agentina import errors
from agentina.cli import interrupts, lazy, options, output

_COMMANDS = "agentina.cli."

SECTIONS = (
    lazy.Section(
        "This host",
        {
            "install": lazy.Lazy(_COMMANDS + "install:install", "Make this host an agent of a control plane."),
            "uninstall": lazy.Lazy(_COMMANDS + "install:uninstall", "Take an agent off this host."),
            "status": lazy.Lazy(_COMMANDS + "status:status", "Show how the agent on this host is."),
            "doctor": lazy.Lazy(_COMMANDS + "doctor:doctor", "Check everything an agent needs of this host."),
            "logs": lazy.Lazy(_COMMANDS + "logs:logs", "Show the daemon's log."),
            "drain": lazy.Lazy(_COMMANDS + "drain:drain", "Take no new work; let running tasks finish."),
            "resume": lazy.Lazy(_COMMANDS + "drain:resume", "Take work again after a drain."),
            "upgrade": lazy.Lazy(_COMMANDS + "upgrade:upgrade", "Have the agent run another release."),
            "rollback": lazy.Lazy(_COMMANDS + "upgrade:rollback", "Go back from the last update."),
            "runner": lazy.Lazy(_COMMANDS + "runner:runner", "Keep copies of AI agents' programs on this host."),
            "policy": lazy.Lazy(_COMMANDS + "policy:policy", "See and try what this host accepts."),
            "price": lazy.Lazy(_COMMANDS + "price:price", "See what this host's gateway charges for models."),
        },
    ),
    lazy.Section(
        "The fleet",
        {
            "login": lazy.Lazy(_COMMANDS + "login:login", "Remember a control plane and an operator token."),
            "job": lazy.Lazy(_COMMANDS + "job:job", "Submit, follow and manage jobs."),
            "agent": lazy.Lazy(_COMMANDS + "agent:agent", "See and manage the agents of the fleet."),
            "token": lazy.Lazy(_COMMANDS + "token:token", "Make and manage activation tokens."),
            "organization": lazy.Lazy(_COMMANDS + "organization:organization", "See and set a tenant's limits."),
            "operator": lazy.Lazy(_COMMANDS + "operator:operator", "Say who may use the control plane."),
            "audit": lazy.Lazy(_COMMANDS + "audit:audit", "Read and verify the record of what was done."),
            "budget": lazy.Lazy(
                _COMMANDS + "budget:budget", "See and set what organizations, agents and jobs may use of models."
            ),
            "report": lazy.Lazy(_COMMANDS + "report:report", "See what the fleet used, and what that cost."),
            "rollout": lazy.Lazy(
                _COMMANDS + "rollout:rollout",
                "Bring a release to hosts by stages, and take it back when they do worse.",
            ),
            "anomaly": lazy.Lazy(_COMMANDS + "anomaly:anomaly", "See what is wrong in the fleet, answer it, close it."),
            "release": lazy.Lazy(_COMMANDS + "release:release", "Publish releases, and see what there is."),
        },
    ),
    lazy.Section(
        "In a task",
        {"task": lazy.Lazy(_COMMANDS + "task:task", "Inside a task: tell, ask and complain to its operators.")},
    ),
    lazy.Section(
        "Servers and tools",
        {
            "control-plane": lazy.Lazy(_COMMANDS + "control_plane:control_plane", "Run the control plane."),
            "daemon": lazy.Lazy(_COMMANDS + "daemon:daemon", "Run the agent of one instance."),
            "smoke-check": lazy.Lazy(_COMMANDS + "smoke_check:smoke_check", "Check that this release can run here."),
            "updater": lazy.Lazy(_COMMANDS + "updater:updater", "Take the update of an instance as far as it goes."),
            "demo": lazy.Lazy(_COMMANDS + "demo:demo", "Run a real job through all the parts, here and now."),
            "completion": lazy.Lazy(_COMMANDS + "completion:completion", "Print a completion script for a shell."),
        },
    ),
)


@click.group(
    cls=lazy.LazyGroup,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=options.examples("agentina demo", "agentina status", "agentina job run -- make test"),
)
@click.version_option(agentina.__version__, prog_name="agentina")
@options.root_option
def cli() -> None:
    """Run fleets of AI coding agents on Linux hosts you own."""


def main() -> None:
    """Run the command line and exit."""
    output.open_streams()
    interrupts.raise_until_heard()
    code = run(sys.argv[1:])
    interrupts.end_at_once()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # A reader that went away (`| head`): nothing more to write, and nothing to complain about at exit. click does
        # the same for what breaks earlier, and ends with 1.
        output.discard()
    except errors.AgentinaError as error:
        code = _explain(error, as_json=False)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors are printed."""
    as_json = "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
    try:
        result = cli.main(args=arguments, prog_name="agentina", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        interrupts.heard()
        output.say("interrupted")
        return int(errors.Exit.INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, a person gets a code and a remedy
        return _explain(error, as_json=as_json)
    return int(result) if isinstance(result, int) else int(errors.Exit.OK)


def _explain(error: Exception, *, as_json: bool) -> int:
    """Print why a command ended and return its exit code."""
    if isinstance(error, click.UsageError):
        return _usage(error, as_json=as_json)
    if isinstance(error, click.ClickException):
        error = errors.USAGE(problem=error.format_message())
    if isinstance(error, PermissionError) and error.filename is not None:
        error = _forbidden(error)
    if not isinstance(error, errors.AgentinaError):
        return _fault(error, as_json=as_json)
    output.failure(error, as_json=as_json)
    return int(error.entry.exit)


def _forbidden(error: PermissionError) -> errors.AgentinaError:
    """Who meets files of root's or another user's, wherever that shows: a fault of nobody's."""
    import os

    from agentina.system import users

    path = os.fsdecode(error.filename)
    return errors.PATH_FORBIDDEN(user=users.name_of(os.geteuid()), path=path, problem=error.strerror)


def _usage(error: click.UsageError, *, as_json: bool) -> int:
    """Print a mistake on the command line with the usage of the command it was made in."""
    if type(error).__name__ == "NoArgsIsHelpError":
        # click before 8.2 has no such class: it prints the help by itself.
        output.say(error.format_message())
        return int(errors.Exit.USAGE)
    if error.ctx is not None:
        output.say(error.ctx.get_usage())
    output.failure(errors.USAGE(problem=error.format_message()), as_json=as_json)
    return int(errors.Exit.USAGE)


def _fault(error: Exception, *, as_json: bool) -> int:
    """Print a fault of our own: the traceback for the report, then the catalogue's entry."""
    import secrets
    import traceback

    incident = secrets.token_hex(4)
    output.say("".join(traceback.format_exception(error)).rstrip())
    output.failure(errors.INTERNAL(incident=incident), as_json=as_json)
    return int(errors.Exit.INTERNAL)
