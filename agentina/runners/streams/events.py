"""What a line of an AI command line's stream can say, whichever one it is.

Texts are as the command line wrote them and may be long; whoever keeps them bounds them. Token counts follow one
convention: ``input`` is what was neither read from a cache nor written to one, ``output`` includes reasoning.
"""

from __future__ import annotations

import msgspec

from agentina.protocol import wire


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session began or went on. Said again by some, with every turn; empty parts are not known."""

    id: str = ""
    model: str = ""
    #: Of the command line itself.
    version: str = ""


class Turn(msgspec.Struct, frozen=True):
    """The model answered, or is asked again; ``id`` tells pieces of one answer from the next one."""

    id: str = ""


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """Text of the model for people. The last one before the end is the answer."""

    text: str
    #: It goes on where the one before ended.
    is_more: bool = False


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """The model asked for a tool. Comes once an id, or twice (when it begins and with its result)."""

    id: str
    name: str
    #: What it is to do: its arguments as JSON, or a command line.
    arguments: str = ""


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """A tool ended."""

    id: str
    is_error: bool = False
    text: str = ""


class Denied(msgspec.Struct, frozen=True):
    """The command line did not let the model use a tool."""

    tool: str


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """A call of the model failed and is made again."""

    problem: str


class Warned(msgspec.Struct, frozen=True, kw_only=True):
    """The command line complains about something that does not end the run."""

    problem: str
    #: That makes it give up, by a word for programs: a success that it claims afterwards is none.
    gives_up: str = ""


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What was used, as the command line counts it."""

    tokens: wire.Tokens | None = None
    cost_usd: float | None = None
    #: In all so far; otherwise since the last such event.
    is_total: bool = True
    #: The total counts from the beginning of the session, earlier runs of it included.
    is_of_session: bool = False


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the model's context is filled; None: not said."""

    tokens: int | None = None
    window: int | None = None


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """The command line says that it has finished, well or not. Another one may follow; the last one counts."""

    is_error: bool = False
    #: The answer; None: what was said last.
    answer: str | None = None
    #: What went wrong: a word for programs (``max-turns``, ``api-402``) and the command line's own words.
    kind: str = ""
    problem: str = ""
    turns: int | None = None
    denials: int | None = None


Event = Session | Turn | Said | ToolCall | ToolResult | Denied | Retry | Warned | Spent | Context | Finished
