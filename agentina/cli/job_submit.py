"""``agentina job submit`` and ``job run``: hand a job in, and perhaps follow it."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from agentina import errors
from agentina.cli import connection, following, job_files, options, output
from agentina.client import api as api_client
from agentina.protocol import jobs, units

_NAME_LENGTH = 120


@click.command(
    epilog=options.examples(
        "agentina job submit tests.yaml --follow",
        "agentina job submit nightly/*.yaml --wait",
        "agentina job submit - --wait --json < tests.yaml",
    )
)
@click.argument("sources", nargs=-1, required=True, metavar="FILE|-...")
@click.option("--follow", "-f", is_flag=True, help="Show the output as it comes, then end as the job ended.")
@click.option("--wait", is_flag=True, help="Say nothing until the job has ended, then end as it ended.")
@click.option("--idempotency-key", metavar="KEY", help="Submitting again with the same key makes no second job.")
@options.root_option
@options.json_option
def submit(sources: tuple[str, ...], idempotency_key: str | None, *, follow: bool, wait: bool, as_json: bool) -> int:
    """Submit jobs from YAML or JSON files (docs/reference/jobs.md), or from stdin.

    Prints each job's id. A YAML file may hold several jobs, divided by lines of three dashes. Several jobs go together,
    up to 128 in a request, which stores all of its jobs or none. With --follow or --wait the exit code is 0 when the
    job succeeded (with --wait: all of them) and 1 otherwise.
    """
    if idempotency_key == "":
        # A shell's variable that is not set: without a key each run would make another job.
        raise errors.INPUT_INVALID(where="--idempotency-key", problem="it is empty")
    documents = [document for source in sources for document in job_files.read_all(source)]
    if len(documents) > 1 and follow:
        raise errors.USAGE(problem="--follow shows one job; with several use --wait, or follow each by its id.")
    with connection.open_client() as client:
        if len(documents) == 1:
            return hand_in(client, documents[0], key=idempotency_key, follow=follow, wait=wait, as_json=as_json)
        return hand_in_all(client, documents, key=idempotency_key, wait=wait, as_json=as_json)


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog=options.examples(
        "agentina job run -- make test",
        "agentina job run --git https://git.example.com/app.git --ref main --memory 4G -- ./ci.sh",
        "agentina job run --secret-env API_KEY=key.txt --artifact 'report/*.xml' -- ./run.sh",
    ),
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option("--name", help="What people see; the command unless given.")
@click.option("--role", help="Only agents of this role.")
@options.label_option("Label the agent must have (repeatable).")
@click.option("--memory", type=options.Size(), help="Memory limit, such as 512MiB.")
@click.option("--timeout", type=options.Duration(), help="Time limit, such as 10m.")
@click.option("--priority", type=click.IntRange(0, 100), help="Higher runs first.")
@click.option("--git", metavar="REPOSITORY", help="Check this repository out as the workspace.")
@click.option("--ref", help="Branch, tag or commit.")
@click.option("--env", "env_pairs", metavar="KEY=VALUE", multiple=True, help="Environment variable (repeatable).")
@click.option(
    "--secret-env", "secret_pairs", metavar="KEY=FILE", multiple=True,
    help="Variable whose value is read from FILE (- for stdin) and masked in the output (repeatable).",
)  # fmt: skip
@click.option("--artifact", "artifacts", metavar="GLOB", multiple=True, help="Files to keep (repeatable).")
@click.option("--verify", metavar="SCRIPT", help="Shell command that must pass for the job to count as succeeded.")
@click.option("--attempts", type=click.IntRange(1, 100), help="Attempts in all, also after an ordinary failure.")
@click.option("--detach", "-d", is_flag=True, help="Print the job's id and do not follow it.")
@options.root_option
@options.json_option
def run(command: tuple[str, ...], *, detach: bool, as_json: bool, **wanted: Any) -> int:
    """Run a command on some agent and follow it: its output comes to stdout, everything else to stderr.

    The exit code is 0 when the job succeeded and 1 otherwise. With --json the output goes to stderr, and stdout has the
    ended job. Ctrl-C stops following, not the job.
    """
    _check_command(command)
    document = build_document(command, **wanted)
    jobs.parse_job(document)  # says what is wrong before anything is sent
    with connection.open_client() as client:
        return hand_in(client, document, key=None, follow=not detach, wait=False, as_json=as_json)


def _check_command(command: tuple[str, ...]) -> None:
    """Refuse what is no command: options that nobody knows come to it, for those behind it are the command's own."""
    first = command[0]
    if first.startswith("-"):
        ctx = click.get_current_context()
        known = [name for option in ctx.command.params for name in option.opts if name.startswith("--")]
        raise click.NoSuchOption(first.partition("=")[0], possibilities=known, ctx=ctx)
    if not first:
        raise errors.USAGE(problem="The command is empty; expected a program and its arguments.")


def hand_in(
    client: api_client.Client, document: object, *, key: str | None, follow: bool, wait: bool, as_json: bool
) -> int:
    """Submit ``document``, follow it if asked to, print the answer, and return the exit code."""
    created = client.submit_job(document, key=key)
    if not (follow or wait):
        output.document(created) if as_json else output.answer(created.id)
        return int(errors.Exit.OK)
    output.say(f"{created.id} submitted" if created.created else f"{created.id} was submitted before")
    stream = sys.stderr.buffer if as_json else sys.stdout.buffer
    view = following.follow(client, created.id, write=writer(stream) if follow else _drop)
    if as_json:
        output.document(view)
    output.say(following.outcome_line(view))
    return following.exit_code(view)


def hand_in_all(client: api_client.Client, documents: list[Any], *, key: str | None, wait: bool, as_json: bool) -> int:
    """Submit ``documents`` together, wait for them if asked to, print the answer, and return the exit code."""
    made = []
    for created in client.submit_jobs(documents, key=key):
        made.append(created)
        # At once: should a later request fail, these are known.
        if not as_json:
            output.answer(created.id)
    views = [following.follow(client, created.id, write=_drop) for created in made] if wait else []
    if as_json:
        output.document({"jobs": msgspec.to_builtins(views or made)})
    for view in views:
        output.say(following.outcome_line(view))
    return max((following.exit_code(view) for view in views), default=int(errors.Exit.OK))


def writer(stream: Any) -> following.Write:
    """Write bytes to ``stream`` as they are, at once."""

    def write(data: bytes) -> None:
        stream.write(data)
        stream.flush()

    return write


def build_document(
    command: tuple[str, ...],
    *,
    name: str | None = None,
    role: str | None = None,
    label_pairs: tuple[str, ...] = (),
    memory: int | None = None,
    timeout: float | None = None,
    priority: int | None = None,
    git: str | None = None,
    ref: str | None = None,
    env_pairs: tuple[str, ...] = (),
    secret_pairs: tuple[str, ...] = (),
    artifacts: tuple[str, ...] = (),
    verify: str | None = None,
    attempts: int | None = None,
) -> dict[str, Any]:
    """The job document that the options of ``job run`` describe."""
    if ref is not None and git is None:
        raise errors.USAGE(problem="--ref needs --git: it names a branch, tag or commit of that repository.")
    environment: dict[str, Any] = options.key_values(env_pairs, "--env")
    for key, source in options.key_values(secret_pairs, "--secret-env").items():
        environment[key] = {"secret": connection.read_secret(source, f"--secret-env {key}")}
    retry = None if attempts is None else {"max_attempts": attempts, "on": ["failed", "timed-out", "lost"]}
    sections: dict[str, Any] = {
        "name": name or _name_of(command),
        "role": role,
        "labels": options.labels(label_pairs),
        "payload": {"argv": list(command)},
        "workspace": _present({"git": git, "ref": ref}),
        "resources": _present({"memory": memory}),
        "limits": _present({"timeout": timeout}),
        "priority": priority,
        "artifacts": list(artifacts),
        "environment": environment,
        "verify": None if verify is None else {"script": verify},
        "retry": retry,
    }
    return _present(sections)


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None and value not in ({}, [])}


def _name_of(command: tuple[str, ...]) -> str:
    text = output.clean(" ".join(command)).strip() or "command"
    return units.shorten(text, _NAME_LENGTH)


def _drop(_: bytes) -> None:
    """Throw output away."""
