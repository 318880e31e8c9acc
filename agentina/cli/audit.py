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


@click.group(cls=lazy.NounGroup)
def audit() -> None:
    """Read and verify the record of what was done."""


@audit.command("list", epilog=options.examples("agentina audit list", "agentina audit list --after 100 --json"))
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only records with a higher number.")
@click.option("--limit", type=click.IntRange(1, _PAGE), default=200, show_default=True, help="How many.")
@options.root_option
@options.json_option
def list_records(after: int, limit: int, *, as_json: bool) -> None:
    """List audit records, oldest first."""
    with connection.open_client() as client:
        page = client.list_audit(after=after, limit=limit)
    if as_json:
        output.document(page)
        return
    rows = [
        (one.number, output.moment(one.at_ms), one.actor, one.action, one.subject, _detail(one)) for one in page.entries
    ]
    output.table(("NUMBER", "WHEN", "WHO", "WHAT", "SUBJECT", "DETAIL"), rows)
    if page.next is not None:
        output.say(f"There is more: --after {page.next}")


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
