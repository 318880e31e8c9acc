"""``agentina runner``: the copies of AI agents' command lines that this host keeps."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentina import errors
from agentina.cli import lazy, options, output

if TYPE_CHECKING:
    from agentina.runners import copies


@click.group(cls=lazy.NounGroup)
def runner() -> None:
    """Keep copies of AI agents' programs on this host."""


@runner.command(
    epilog=options.examples(
        "agentina runner install claude-code --from claude_agent_sdk-0.2.187-py3-none-manylinux_2_17_x86_64.whl",
        "agentina runner install opencode --from opencode-linux-x64-1.18.33.tgz --sha256 4f2c…",
        "agentina runner install codex --from /srv/codex/bin/codex --version 0.163.0 --no-default",
    )
)
@click.argument("name", metavar="NAME")
@click.option(
    "--from", "source", required=True, metavar="PATH", type=click.Path(path_type=Path),
    help="A wheel, an npm package, another archive, a directory, or the program itself.",
)  # fmt: skip
@click.option("--version", default="", metavar="VERSION", help="What the program must be; where it does not say, is.")
@click.option("--program", default="", metavar="PATH", help="The program's place in the package.")
@click.option("--sha256", default="", metavar="HASH", help="What the package must have.")
@click.option("--default/--no-default", "is_default", default=True, help="Jobs get it that ask for no version.")
@options.root_option
@options.json_option
def install(  # noqa: PLR0917 - click's parameters
    name: str, source: Path, version: str, program: str, sha256: str, *, is_default: bool, as_json: bool
) -> None:
    """Keep a copy of a runner's program, read-only, for all tasks of this host.

    Older copies stay for tasks that have them; of those that nobody needs, the newest three.
    """
    from agentina.host import provision

    wish = provision.Wish(name, source.absolute(), version, program, sha256, is_default)
    found, is_new = provision.Store(options.layout()).install(wish)
    _tell()
    if as_json:
        output.document({"installed": is_new, **_plain(found)})
        return
    verb = "is installed" if is_new else "was installed before"
    output.answer(f"{output.clean(found.shown)} {verb}{', and is the default' if found.is_default else ''}.")


@runner.command("list", epilog=options.examples("agentina runner list", "agentina runner list --verify"))
@click.option("--verify", is_flag=True, help="Read all files and compare their hashes. Ends with 1 if some differ.")
@options.root_option
@options.json_option
def list_copies(*, verify: bool, as_json: bool) -> int:
    """List the copies that this host keeps, and which tasks have them."""
    from agentina.host import provision
    from agentina.host.work import choices
    from agentina.runners import copies

    layout = options.layout()
    used = choices.in_use(layout.state_directory)
    rows: list[dict[str, Any]] = []
    for path in copies.versions(layout.copies_directory):
        try:
            found = copies.check(path)
            problem = "its files were changed" if verify and not provision.is_intact(found) else ""
            rows.append({**_plain(found), "problem": problem, "tasks": used.get(found.name, [])})
        except errors.AgentinaError as error:
            name = f"{path.parent.name}@{path.name}"
            problem = str(error.context.get("problem", error.message))
            rows.append({"name": name, "path": str(path), "problem": problem, "tasks": used.get(name, [])})
    code = errors.Exit.FAILED if any(row["problem"] for row in rows) else errors.Exit.OK
    if as_json:
        output.document({"copies": rows})
    else:
        output.table(
            ["COPY", "DEFAULT", "SHA-256", "TASKS", "PROGRAM"],
            [
                [
                    output.clean(row["name"]), "yes" if row.get("is_default") else "", str(row.get("sha256", ""))[:12],
                    str(len(row["tasks"])), output.clean(row["problem"] or row.get("program", "")),
                ]
                for row in rows
            ],
        )  # fmt: skip
    return int(code)


@runner.command(epilog=options.examples("agentina runner use claude-code 2.1.329"))
@click.argument("name", metavar="NAME")
@click.argument("version", metavar="VERSION")
@options.root_option
@options.json_option
def use(name: str, version: str, *, as_json: bool) -> None:
    """Give a copy to jobs that ask for no version. Tasks that run keep theirs."""
    from agentina.host import provision

    found = provision.Store(options.layout()).use(name, version)
    _tell()
    if as_json:
        output.document(_plain(found))
        return
    output.answer(f"{output.clean(found.shown)} is the default.")


@runner.command(epilog=options.examples("agentina runner remove claude-code 2.1.300"))
@click.argument("name", metavar="NAME")
@click.argument("version", metavar="VERSION")
@options.root_option
@options.json_option
def remove(name: str, version: str, *, as_json: bool) -> None:
    """Delete a copy, unless a task that has not ended has it."""
    from agentina.host import provision

    provision.Store(options.layout()).remove(name, version)
    _tell()
    if as_json:
        output.document({"removed": f"{name}@{version}"})
        return
    output.answer(f"{output.clean(f'{name}@{version}')} is removed.")


def _plain(found: copies.Found) -> dict[str, Any]:
    return {
        "name": found.name, "version": found.copy.version, "is_default": found.is_default,
        "path": str(found.path), "program": str(found.program), "sha256": found.copy.sha256,
        "source": found.copy.source, "source_sha256": found.copy.source_sha256,
    }  # fmt: skip


def _tell() -> None:
    """Have the daemons of this host look again; those that do not run look when they start."""
    from agentina.client import local

    layout = options.layout()
    for name in layout.instances():
        with contextlib.suppress(errors.AgentinaError):
            local.ask(layout.instance(name), "reload")
