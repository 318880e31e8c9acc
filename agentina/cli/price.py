"""``agentina price``: what this host's gateway charges for models, and where each price is from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agentina import errors
from agentina.cli import lazy, options, output

if TYPE_CHECKING:
    from agentina.gateway import prices

#: What the package's table calls them, for people.
_BASES: Final = {"vendor": "vendor's page", "lists": "two price lists"}


@click.group(cls=lazy.NounGroup)
def price() -> None:
    """See what this host's gateway charges for models.

    US dollars for a million tokens.
    """


@price.command("list", epilog=options.examples("agentina price list", "agentina price list --json"))
@options.instance_option
@options.root_option
@options.json_option
def list_prices(instance: str, *, as_json: bool) -> None:
    """List all prices, this host's own before the package's."""
    own, table = _table(instance)
    if as_json:
        output.document({"gateway": own, "prices": [_plain(row, own) for row in table]})
        return
    rows = [
        [
            output.clean(row.pattern), *map(_dollars, (row.price.input, row.price.cached, row.price.output)),
            output.clean(_from(row, own)), output.clean(row.price.as_of or "-"),
        ]
        for row in table
    ]  # fmt: skip
    output.table(["MODEL", "INPUT", "CACHED", "OUTPUT", "FROM", "AS OF"], rows)


@price.command(epilog=options.examples("agentina price show gpt-5.1", "agentina price show gpt-5-mini-2025-08-07"))
@click.argument("model", metavar="MODEL")
@options.instance_option
@options.root_option
@options.json_option
def show(model: str, instance: str, *, as_json: bool) -> None:
    """Show what a model costs, and where that is from. Ends with 3 when nobody has said it."""
    own, table = _table(instance)
    row = table.find(model)
    if row is None:
        raise errors.MODEL_REFUSED(model=model, problem="its price is not known on this host", reason="unpriced")
    if as_json:
        output.document(_plain(row, own))
        return
    told, longer = row.price, row.price.long
    output.pairs(
        [
            ("model", output.clean(model)),
            ("priced as", output.clean(row.pattern)),
            ("input", _dollars(told.input)),
            ("cached input", _dollars(told.cached)),
            ("written to a cache", _dollars(told.cache_write)),
            ("for an hour", _dollars(told.cache_write_1h)),
            ("output", _dollars(told.output)),
            ("most output", told.max_output),
            ("context", told.context_window),
            (
                "above" if longer is None else f"above {longer.above} of input",
                "" if longer is None else f"{_dollars(longer.input)} for input, {_dollars(longer.output)} for output",
            ),
            ("from", output.clean(_from(row, own))),
            ("source", output.clean(told.source)),
            ("as of", output.clean(told.as_of)),
            ("note", output.clean(told.note)),
        ]
    )


def _table(instance: str) -> tuple[str, prices.Table]:
    """The path of the host's gateway.yaml (empty: it has none), and the prices in force."""
    from agentina.gateway import prices as made
    from agentina.gateway import settings
    from agentina.host.instance import config

    found = options.layout().instance(instance)
    path = config.load(found).gateway if found.config.exists() else ""
    if not path:
        output.say("This host has no gateway; these are the package's own prices.")
    return path, made.Table(settings.read(Path(path)).prices if path else {})


def _from(row: prices.Row, own: str) -> str:
    return own if row.is_own else _BASES[row.price.basis or "lists"]


def _plain(row: prices.Row, own: str) -> dict[str, Any]:
    import msgspec

    return {"model": row.pattern, "from": own if row.is_own else "package", **msgspec.to_builtins(row.price)}


def _dollars(amount: float | None) -> str:
    return "" if amount is None else f"{amount:g}"
