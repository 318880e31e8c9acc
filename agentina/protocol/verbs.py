"""What a task says to its own daemon, and is told: the verbs of ``agentina task`` and of its MCP server.

One JSON line each way, over a socket that only this task can reach (docs/explanation/task-verbs.md). A request carries
an ``id`` of the asker's making: the same request said again, because its answer was lost, counts once.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from agentina.protocol import wire

#: Longest request and longest answer, in bytes.
MAX_REQUEST: Final = 32_768
MAX_ANSWER: Final = 65_536
#: Longest wait for an answer, in seconds.
MAX_WAIT: Final = 3600.0

#: What a complaint is about. ``other``: none of these.
ComplaintKind = Literal["missing-secret", "blocked-host", "broken-tool", "unclear-task", "full-disk", "other"]
COMPLAINT_KINDS: Final = ("missing-secret", "blocked-host", "broken-tool", "unclear-task", "full-disk", "other")

_Id = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4000)]
_Wait = Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT)]


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="verb"):
    id: _Id


class TellProgress(_Request, frozen=True, kw_only=True, tag="progress"):
    """How far it is."""

    text: wire.ProgressText
    percent: wire.Percent | None = None


class Complain(_Request, frozen=True, kw_only=True, tag="complain"):
    """Something is wrong with its environment or with what it was asked to do."""

    kind: ComplaintKind
    text: _Text
    #: The one thing it is about: the secret's name, the host, the tool, the path. Alike complaints are grouped by it.
    about: Annotated[str, msgspec.Meta(max_length=200)] = ""


class Ask(_Request, frozen=True, kw_only=True, tag="ask"):
    """A question for an operator."""

    text: _Text
    #: Seconds to wait for the answer; 0 returns at once, with the question's number.
    wait: _Wait = 0.0


class Hear(_Request, frozen=True, kw_only=True, tag="answer"):
    """The answer to a question that was asked before."""

    question: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    wait: _Wait = 0.0


class DeclareArtifact(_Request, frozen=True, kw_only=True, tag="artifact"):
    """A file, or a directory with all its files, to keep when the task has ended."""

    #: Relative to the workspace.
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class AskBudget(_Request, frozen=True, kw_only=True, tag="budget"):
    """What is left of the budget."""


class TakeCheckpoint(_Request, frozen=True, kw_only=True, tag="checkpoint"):
    """Have a checkpoint taken now: what follows is risky, or what is done was dear."""


Request = TellProgress | Complain | Ask | Hear | DeclareArtifact | AskBudget | TakeCheckpoint


class LeftToday(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is left of a budget for each day, which other tasks use as well; None: no limit of that kind."""

    tokens: int | None = None
    cost_usd: float | None = None
    tool_calls: int | None = None


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What the task may use of models, has used, and has left; None: no limit of that kind."""

    tokens: int | None = None
    tokens_used: int = 0
    cost_usd: float | None = None
    cost_usd_used: float = 0.0
    tool_calls: int | None = None
    tool_calls_used: int = 0
    #: Seconds since the task's start after which no call of a model is let through.
    duration_seconds: float | None = None
    #: Calls of models.
    calls: int = 0
    #: Of the agent's and the organization's budgets of the day, as of half a minute ago; None: there is none.
    agent_today: LeftToday | None = None
    organization_today: LeftToday | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The daemon's word: durable before it is said. ``error`` in the form of :func:`agentina.errors.to_wire`."""

    error: dict[str, object] | None = None
    #: What became of it, for the asker.
    text: str = ""
    #: The question's number (``ask``, ``answer``).
    question: int | None = None
    #: An operator's answer; None: none yet.
    answer: str | None = None
    budget: Budget | None = None
    #: What an operator, or the watch over the run, wants the agent to know. Each is said once.
    notices: list[str] = []
