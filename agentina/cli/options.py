"""Options that many commands share, and the one place where ``--root`` and ``--instance`` are understood."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from agentina import errors
from agentina.protocol import names, units
from agentina.system import paths

Function = TypeVar("Function", bound=Callable[..., Any])

_ROOT = "agentina.root"


def json_option(function: Function) -> Function:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")(function)


def root_option(function: Function) -> Function:
    """Add ``--root``; commands read it through :func:`layout`."""

    def keep(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        ctx.find_root().meta[_ROOT] = value or ctx.find_root().meta.get(_ROOT)

    help_text = f"Directory that every path lies under (also {paths.ROOT_VARIABLE})."
    return click.option("--root", metavar="DIR", expose_value=False, callback=keep, help=help_text)(function)


def instance_option(function: Function) -> Function:
    """Add ``--instance``."""

    def check(_: click.Context, __: click.Parameter, value: str) -> str:
        return names.check_instance(value)

    return click.option(
        "--instance", metavar="NAME", default="default", show_default=True, callback=check, help="Which agent here."
    )(function)


def layout() -> paths.Layout:
    """Where everything is: ``--root``, else ``AGENTINA_ROOT``, else the system's own paths."""
    return paths.Layout.find(click.get_current_context().find_root().meta.get(_ROOT))


def examples(*lines: str) -> str:
    """An epilog that shows how the command is used."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def confirm(question: str) -> None:
    """Go on only if the person at the terminal says so.

    Raises:
        AgentinaError: ``USAGE`` where nobody sits at one: such commands have ``--yes``.

    """
    if not sys.stdin.isatty():
        raise errors.USAGE(problem="There is nobody to ask: say --yes.")
    click.confirm(question, abort=True, err=True)


def ask_secret(prompt: str, *, what: str, instead: str, confirm: bool = False) -> str:
    """What the person at the terminal types, unseen; with ``confirm`` twice the same.

    Raises:
        AgentinaError: ``USAGE`` where nobody sits at one: ``instead`` says how else ``what`` can be given.

    """
    if not sys.stdin.isatty():
        raise errors.USAGE(problem=f"There is no terminal to ask for {what} on: use {instead}.")
    return str(click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True))


def key_values(pairs: tuple[str, ...], what: str) -> dict[str, str]:
    """``KEY=VALUE`` arguments as a dictionary.

    Raises:
        AgentinaError: ``INPUT_INVALID``; the value is not repeated, for it may be a secret.

    """
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise errors.INPUT_INVALID(where=what, problem=f"expected KEY=VALUE, got {key[:40]!r} without '='")
        values[key] = value
    return values


def labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """``--label KEY=VALUE`` options, checked."""
    values = key_values(pairs, "--label")
    for key, value in values.items():
        names.check_label(key, value)
    return values


def label_option(help_text: str) -> Callable[[Function], Function]:
    """Add ``--label KEY=VALUE``, repeatable."""
    return click.option("--label", "label_pairs", metavar="KEY=VALUE", multiple=True, help=help_text)


class Duration(click.ParamType):  # type: ignore[type-arg]  # only newer versions of click have it generic
    """``90``, ``30s``, ``10m``, ``1h30m``, ``14d`` as seconds, within bounds (in seconds)."""

    name = "duration"

    def __init__(self, *, least: float = 0.0, most: float = math.inf) -> None:
        """Both bounds are accepted themselves."""
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, int | float):
            return float(value)
        try:
            seconds = units.parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not self._least <= seconds <= self._most:
            most = f" and at most {units.show_duration(self._most)}" if math.isfinite(self._most) else ""
            self.fail(f"expected at least {units.show_duration(self._least)}{most}, got {value!r}", param, ctx)
        return seconds


class Number(click.FloatRange):
    """A number within bounds: click takes ``nan`` for one, which no comparison refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number


class Size(click.ParamType):  # type: ignore[type-arg]  # see above
    """``512MiB``, ``2G`` as bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        if isinstance(value, int):
            return value
        try:
            return units.parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Moment(click.ParamType):  # type: ignore[type-arg]  # see above
    """A moment: a duration before now, or ISO 8601 (without a zone: the host's own). Seconds since the epoch."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds since the epoch."""
        if isinstance(value, int | float):
            return float(value)
        with contextlib.suppress(ValueError):
            return time.time() - units.parse_duration(value)
        try:
            return dt.datetime.fromisoformat(value).astimezone().timestamp()
        except ValueError:
            self.fail(f"expected a duration before now (2h) or a time (2026-11-21T10:00), got {value!r}", param, ctx)
