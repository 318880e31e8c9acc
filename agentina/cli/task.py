"""``agentina task``: what a task says to the people who gave it. Works inside a task only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

from agentina import errors
from agentina.cli import lazy, options, output
from agentina.protocol import units

_KINDS = ("missing-secret", "blocked-host", "broken-tool", "unclear-task", "full-disk", "other")
#: Longest wait for an answer, in seconds (agentina.protocol.verbs.MAX_WAIT).
_MAX_WAIT = 3600.0


@click.group(cls=lazy.NounGroup)
def task() -> None:
    """Inside a task: tell, ask and complain to its operators."""


@task.command(epilog=options.examples("agentina task progress 'tests written' --percent 60"))
@click.argument("text")
@click.option("--percent", type=options.Number(0, 100), help="How much of the work is done.")
@options.json_option
def progress(text: str, percent: float | None, *, as_json: bool) -> None:
    """Say how far the task is; `agentina job show` has it."""
    _tell({"verb": "progress", "text": text, **({} if percent is None else {"percent": percent})}, as_json=as_json)


@task.command(
    epilog=options.examples("agentina task complain missing-secret --about NPM_TOKEN 'npm publish wants a token'")
)
@click.argument("kind", type=click.Choice(_KINDS))
@click.argument("text")
@click.option("--about", default="", help="The one secret, host, tool or path; alike complaints are grouped by it.")
@options.json_option
def complain(kind: str, text: str, about: str, *, as_json: bool) -> None:
    """Report what is wrong with the task or its environment; it becomes an anomaly."""
    _tell({"verb": "complain", "kind": kind, "text": text, "about": about}, as_json=as_json)


@task.command(epilog=options.examples("agentina task ask 'Drop Python 3.9?' --wait 10m"))
@click.argument("text")
@click.option("--wait", default="0s", metavar="TIME", help="How long to wait for the answer, at most 1h.")
@options.json_option
def ask(text: str, wait: str, *, as_json: bool) -> int:
    """Ask an operator. Prints the answer; without one the question's number, and after a wait ends with 1."""
    return _hear({"verb": "ask", "text": text, "wait": _seconds(wait)}, as_json=as_json)


@task.command(epilog=options.examples("agentina task answer 1 --wait 1h"))
@click.argument("question", type=click.IntRange(1, 1_000_000))
@click.option("--wait", default="0s", metavar="TIME", help="How long to wait for it, at most 1h.")
@options.json_option
def answer(question: int, wait: str, *, as_json: bool) -> int:
    """Print the answer to a question asked before; ends with 1 while there is none."""
    return _hear({"verb": "answer", "question": question, "wait": _seconds(wait)}, as_json=as_json)


@task.command(epilog=options.examples("agentina task artifact build/report.html"))
@click.argument("path", type=click.Path())
@options.json_option
def artifact(path: str, *, as_json: bool) -> None:
    """Have a file or directory of the workspace kept when the task has ended."""
    # Links are the daemon's to judge.
    _tell({"verb": "artifact", "path": os.path.abspath(path)}, as_json=as_json)  # noqa: PTH100


@task.command(epilog=options.examples("agentina task checkpoint"))
@options.json_option
def checkpoint(*, as_json: bool) -> None:
    """Have a checkpoint taken, from which the job goes on should its host be lost."""
    _tell({"verb": "checkpoint"}, as_json=as_json)


@task.command(epilog=options.examples("agentina task budget --json"))
@options.json_option
def budget(*, as_json: bool) -> None:
    """Print what the task may still use of models."""
    told = _ask({"verb": "budget"})
    left = told.get("budget")
    if as_json:
        output.document(left)
    elif left is None:
        output.answer("This task has no budget.")
    else:
        output.pairs(list(_flat(left)))


def _flat(left: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What there is to say, by name; budgets of the day have several."""
    for key, value in left.items():
        name = key.replace("_", " ")
        if isinstance(value, dict):
            yield from ((f"left {name}: {kind}", rest) for kind, rest in _flat(value))
        elif value is not None:
            yield name, value


def _tell(request: dict[str, Any], *, as_json: bool) -> None:
    told = _ask(request)
    if as_json:
        output.document(told)
    else:
        output.answer(output.clean(told.get("text") or "done"))


def _hear(request: dict[str, Any], *, as_json: bool) -> int:
    told = _ask(request)
    heard = told.get("answer")
    if as_json:
        output.document(told)
    elif heard is not None:
        output.answer(output.clean(heard))
    else:
        output.answer(str(told.get("question")))
        output.say(output.clean(told.get("text") or ""))
    return int(
        errors.Exit.OK
        if heard is not None or (request["verb"] == "ask" and not request["wait"])
        else errors.Exit.FAILED
    )


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    from agentina.inside import door

    try:
        told = door.ask(request)
    except door.NoDoorError as error:
        raise errors.NOT_IN_TASK() from error  # noqa: RSE102 - calling the entry makes the exception
    except door.ClosedError as error:
        raise errors.TASK_UNREACHABLE_DAEMON(problem=str(error)) from error
    except door.TooLongError as error:
        raise errors.INPUT_TOO_LARGE(where="What the task says", size=error.size, limit=error.limit) from error
    for notice in told.get("notices") or []:
        output.say(f"notice: {output.clean(notice)}")
    if told.get("error"):
        raise errors.from_wire({"error": told["error"]}, status=400)
    return told


def _seconds(text: str) -> float:
    try:
        seconds = units.parse_duration(text)
    except ValueError as error:
        raise errors.INPUT_INVALID(where="--wait", problem=str(error)) from error
    if seconds > _MAX_WAIT:
        raise errors.INPUT_INVALID(where="--wait", problem="at most 1h")
    return seconds
