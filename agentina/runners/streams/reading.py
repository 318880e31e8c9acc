"""Reads a stream as it grows and keeps the account of the run: a function of the bytes, wherever they were cut.

Anything may be in the file: what the command line's own warnings and its tools' stray processes write, lines cut off
by a kill, types of a version we never saw. What is not understood is counted and passed over. Memory is bounded: a line
longer than :data:`LONGEST_LINE` is not read, texts are cut, and of tool calls only open ones are remembered.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from agentina.protocol import wire
from agentina.runners.streams import events, values

#: Bytes of a line; one that is longer is passed over.
LONGEST_LINE: Final = 4 << 20
#: Open tool calls and the last pieces of an answer remembered.
_MOST_OPEN: Final = 1000
_SHORT: Final = 256

#: What one line says.
Translate = Callable[[dict[str, Any]], Iterable[events.Event]]


class Reader:
    """One run's stream."""

    def __init__(self, translate: Translate) -> None:
        self._translate = translate
        self._rest = bytearray()
        self._is_skipping = False
        #: Bytes taken so far: where the next :meth:`feed` goes on in the file.
        self.offset = 0
        self.account = Account()

    def feed(self, data: bytes) -> list[events.Event]:
        """Take the next bytes; returns what the lines that are complete now say."""
        self.offset += len(data)
        happened: list[events.Event] = []
        begin = 0
        while (end := data.find(b"\n", begin)) >= 0:
            if not self._is_skipping:
                happened += self._line(bytes(self._rest) + data[begin:end])
            self._rest.clear()
            self._is_skipping = False
            begin = end + 1
        if not self._is_skipping:
            self._rest += data[begin:]
            if len(self._rest) > LONGEST_LINE:
                self._rest.clear()
                self._is_skipping = True
                self.account.unreadable += 1
        return happened

    def end(self) -> list[events.Event]:
        """Nothing more comes: a last line without its end counts if it is whole."""
        rest = bytes(self._rest)
        self._rest.clear()
        return self._line(rest) if rest and not self._is_skipping else []

    def _line(self, line: bytes) -> list[events.Event]:
        if not line.lstrip().startswith(b"{") or len(line) > LONGEST_LINE:
            self.account.unreadable += bool(line.strip())
            return []
        try:
            document = msgspec.json.decode(line)
            happened = list(self._translate(document))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self.account.unreadable += 1
            return []
        for event in happened:
            self.account.take(event)
        return happened


class Account:
    """What is known of a run so far."""

    def __init__(self) -> None:
        #: Lines that are not of the format.
        self.unreadable = 0
        #: It said that it has finished and has done nothing since.
        self.is_finished = False
        self._end = events.Finished()
        self._gave_up: events.Warned | None = None
        self._session = events.Session()
        self._turn = ""
        self._turns = 0
        self._has_turns = False
        self._said = ""
        self._is_cut = False
        #: Open tool calls: which tool, and what it does.
        self._open: dict[str, tuple[str, str]] = {}
        #: By tool, the first ones.
        self._tools: dict[str, collections.Counter[str]] = {}
        self._counts = {"tool_calls": 0, "tool_errors": 0, "denials": 0, "retries": 0}
        self._spent = events.Spent()
        self._context = events.Context()
        self._problem = ""

    @functools.singledispatchmethod
    def take(self, event: events.Event) -> None:
        """Let one event count."""
        raise TypeError(f"unknown event {event!r}")

    def summary(self) -> wire.AgentRun:
        """The account in the form in which it is reported."""
        end = self._end if self.is_finished else events.Finished()
        answer = self._said if end.answer is None else end.answer
        denials = self._counts["denials"] if end.denials is None else end.denials
        turns = end.turns if end.turns is not None else (self._turns if self._has_turns else None)
        problem = end.problem if self.is_finished else self._problem
        return wire.AgentRun(
            session_id=self._session.id[:_SHORT],
            model=self._session.model[:_SHORT],
            version=self._session.version[:_SHORT],
            turns=turns,
            tool_calls=self._counts["tool_calls"],
            tool_errors=self._counts["tool_errors"],
            denials=denials,
            tools=[wire.ToolUse(name=name, **counts) for name, counts in self._tools.items()],
            retries=self._counts["retries"],
            tokens=self._spent.tokens,
            tokens_of_session=self._spent.is_of_session,
            cost_usd=self._spent.cost_usd,
            context_tokens=self._context.tokens,
            context_window=self._context.window,
            doing="" if self.is_finished else next(reversed(self._open.values()), ("", ""))[1],
            answer=answer[: wire.MAX_ANSWER],
            answer_truncated=len(answer) > wire.MAX_ANSWER or (end.answer is None and self._is_cut),
            finished=self.is_finished,
            failed=end.is_error,
            error_kind=end.kind[:_SHORT],
            error=problem[: wire.MAX_DETAIL],
        )

    # --- one kind of event each -----------------------------------------------------------------------------------

    @take.register
    def _on_session(self, event: events.Session) -> None:
        known = self._session
        self._session = events.Session(
            id=event.id or known.id, model=event.model or known.model, version=event.version or known.version
        )

    @take.register
    def _on_turn(self, event: events.Turn) -> None:
        self.is_finished = False
        if event.id and event.id != self._turn:
            self._turn, self._has_turns = event.id, True
            self._turns += 1

    @take.register
    def _on_said(self, event: events.Said) -> None:
        self.is_finished = False
        whole = self._said + event.text if event.is_more else event.text
        self._is_cut = len(whole) > wire.MAX_ANSWER or (event.is_more and self._is_cut)
        self._said = whole[: wire.MAX_ANSWER]

    @take.register
    def _on_tool_call(self, event: events.ToolCall) -> None:
        self.is_finished = False
        if event.id in self._open:
            return
        self._counts["tool_calls"] += 1
        self._count(event.name, "calls")
        self._open[event.id] = event.name, f"{event.name} {event.arguments}"[:_SHORT].strip()
        if len(self._open) > _MOST_OPEN:
            del self._open[next(iter(self._open))]

    @take.register
    def _on_tool_result(self, event: events.ToolResult) -> None:
        self.is_finished = False
        name, _ = self._open.pop(event.id, ("", ""))
        # What comes after it is another text, not more of the same.
        self._said, self._is_cut = "", False
        self._counts["tool_errors"] += event.is_error
        if event.is_error:
            self._count(name, "errors")

    @take.register
    def _on_denied(self, event: events.Denied) -> None:
        self._counts["denials"] += 1
        self._count(event.tool, "denials")

    @take.register
    def _on_retry(self, event: events.Retry) -> None:
        self._counts["retries"] += 1
        self._problem = event.problem

    @take.register
    def _on_warned(self, event: events.Warned) -> None:
        self._problem = event.problem or self._problem
        if event.gives_up:
            self._gave_up = event

    @take.register
    def _on_spent(self, event: events.Spent) -> None:
        tokens, cost = event.tokens or self._spent.tokens, event.cost_usd
        if not event.is_total:
            if event.tokens is not None:
                tokens = values.add(self._spent.tokens or wire.Tokens(), event.tokens)
            if self._spent.cost_usd is not None:
                cost = self._spent.cost_usd + (cost or 0.0)
        self._spent = events.Spent(
            tokens=tokens,
            cost_usd=self._spent.cost_usd if cost is None else cost,
            is_of_session=event.is_of_session or self._spent.is_of_session,
        )

    @take.register
    def _on_context(self, event: events.Context) -> None:
        known = self._context
        self._context = events.Context(
            tokens=known.tokens if event.tokens is None else event.tokens,
            window=known.window if event.window is None else event.window,
        )

    @take.register
    def _on_finished(self, event: events.Finished) -> None:
        if self._gave_up is not None and not event.is_error:
            event = events.Finished(is_error=True, kind=self._gave_up.gives_up, problem=self._gave_up.problem)
        self.is_finished, self._end = True, event

    def _count(self, tool: str, what: str) -> None:
        name = tool[:_SHORT]
        if name and (name in self._tools or len(self._tools) < wire.MAX_TOOLS):
            self._tools.setdefault(name, collections.Counter())[what] += 1
