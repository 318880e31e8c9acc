"""``agentina audit``: the record of what was done, and the proof that nobody changed it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import click
import msgspec

from agentina import errors
from agentina.cli import connection, lazy, options, output
from agentina.client import api as api_client
from agentina.protocol import api

#: The hash that stands before the first record.
_GENESIS: Final = "0" * 64
_PAGE: Final = 1000
#: Above the number of any record.
_END: Final = (1 << 53) - 1


@click.group(cls=lazy.NounGroup)
def audit() -> None:
    """Read and verify the record of what was done."""


@audit.command(
    "list",
    epilog=options.examples(
        "agentina audit list --since 8h",
        "agentina audit list --action job.cancel --actor alice",
        "agentina audit list --subject JOB",
        "agentina audit list --before 100 --json",
    ),
)
@click.option("--actor", default="", help="Only what this one did: an operator's name, agent:ID, host:NAME, stranger.")
@click.option("--action", default="", help="Only this, such as token.create; `token` has all that begin with it.")
@click.option("--subject", default="", help="Only what was done to this, such as a job (and its tasks).")
@click.option("--since", type=options.Moment(), metavar="TIME", help="From then on: 2h (ago), or 2026-11-21T10:00.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only records with a higher number.")
@click.option("--before", type=click.IntRange(1, _END), default=_END, help="Only records with a lower number.")
@click.option("--limit", type=click.IntRange(1, _PAGE), default=200, show_default=True, help="How many.")
@options.root_option
@options.json_option
def list_records(
    *, actor: str, action: str, subject: str, since: float | None, after: int, before: int, limit: int, as_json: bool
) -> None:
    """List who did what, newest first, with what was refused."""
    since_ms = max(round((since or 0) * 1000), 0)
    wanted: dict[str, str | int] = {"actor": actor, "action": action, "subject": subject, "since": since_ms}
    entries: list[api.AuditEntry] = []
    following: int | None = before
    with connection.open_client() as client:
        while following is not None and len(entries) < limit:
            page = client.list_audit(after=after, before=following, limit=limit - len(entries), wanted=wanted)
            entries += page.entries
            following = page.next
    if as_json:
        output.document(api.AuditList(entries=entries, next=following))
        return
    rows = [(one.number, output.moment(one.at_ms), one.actor, one.action, one.subject, _detail(one)) for one in entries]
    output.table(("NUMBER", "WHEN", "WHO", "WHAT", "SUBJECT", "DETAIL"), rows)
    if following is not None:
        output.say(f"There may be more: --before {following}")


@audit.command(epilog=options.examples("agentina audit verify", "agentina audit verify --json || alert"))
@options.root_option
@options.json_option
def verify(*, as_json: bool) -> int:
    """Fetch the whole record and check its chain of hashes here, without trusting the control plane. Ends with 0 or 1.

    Keep the last hash: a record cut off at its end is only noticed by comparing it.
    """
    with connection.open_client() as client:
        count, last, broken = check_chain(_entries(client))
    whole = broken is None
    if as_json:
        output.document({"whole": whole, "records": count, "last_hash": last, "first_broken": broken})
    elif whole:
        output.answer(f"The chain of {count} records is whole; the last hash is {last}.")
    else:
        output.answer(f"Record {broken} does not follow from the one before it: it, or one before it, was changed.")
    return int(errors.Exit.OK if whole else errors.Exit.FAILED)


def check_chain(entries: Iterator[api.AuditEntry]) -> tuple[int, str, int | None]:
    """Records that hold, the hash of the last of them, and the number of the first that does not."""
    before, count = _GENESIS, 0
    for entry in entries:
        detail = msgspec.json.encode(entry.detail, order="sorted").decode()
        content = [before, entry.number, entry.at_ms, entry.actor, entry.action, entry.subject, detail]
        if entry.number != count + 1 or entry.hash != hashlib.sha256(msgspec.json.encode(content)).hexdigest():
            return count, before, count + 1
        before, count = entry.hash, entry.number
    return count, before, None


def _entries(client: api_client.Client) -> Iterator[api.AuditEntry]:
    after: int | None = 0
    while after is not None:
        page = client.list_audit(after=after, limit=_PAGE)
        yield from page.entries
        # A page that does not move on would be asked for forever.
        after = page.next if page.next is not None and page.next > after else None


def _detail(entry: api.AuditEntry) -> str:
    return ", ".join(f"{key}={value}" for key, value in entry.detail.items()) or "-"
