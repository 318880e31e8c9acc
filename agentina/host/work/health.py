"""Judges from several signals whether a run of a task goes well. Pure.

Signals: what the agent's stream says (:mod:`agentina.runners.streams.events`), how much it has written, its processor
time, and what passes the gateway. One alone deceives: a long test run is silent and busy, a long answer of the model
is silent and idle but comes through the gateway, a loop is anything but silent. Who waits for a person (a question, a
budget that is used up) is not stuck however long.

===========  ==========================================================================================
finding      when
===========  ==========================================================================================
``stuck``    for ``stuck_after`` nothing was written, less than 1 % of a processor was used, and nothing
             passed the gateway
``looping``  the last ``loop_after`` calls of tools are one to four, over and over (each at least three
             times), with the same results; or one tool failed so often in a row with the same error; ten
             times as many where one of them waits by its own words (``sleep``, a tool that reads what a
             background command wrote): that is how one polls
``context``  the model's context is filled to ``context_at``: by the stream's account of it, and where that
             has none by the gateway's
===========  ==========================================================================================

Each is reported once when it begins, and again only when it was over: there was a sign of life, another call or result,
a context emptier by a tenth. ``stuck`` and ``looping`` are acted upon, once, when they go on to twice their threshold:
what is found is known before anything is done about it.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable
from typing import Final, Literal

from agentina.protocol import anomalies, jobs
from agentina.runners.streams import events

#: Share of a processor below which a task counts as idle.
IDLE_SHARE: Final = 0.01
#: Longest loop that is looked for, in calls, and how often it has to come.
LONGEST_LOOP: Final = 4
LEAST_TURNS: Final = 3
#: How much emptier the context gets before it can be reported again.
_CONTEXT_GAP: Final = 0.1
#: Open calls remembered, and characters of what is told of one.
_MOST_OPEN: Final = 200
_SHORT: Final = 200
#: How many times as often calls that wait may repeat.
PATIENCE: Final = 10
#: What they are: commands of a shell, and tools that say what a command in the background wrote, or an operator.
_SHELLS: Final = re.compile(r"bash|shell|exec", re.IGNORECASE)
_WAITING_WORDS: Final = re.compile(r"\b(?:sleep|wait|inotifywait|watch)\b")
_WAITING_TOOLS: Final = re.compile(
    r"BashOutput|TaskOutput|AgentOutputTool|Monitor|write_stdin|wait|sleep|(?:mcp__)?agentina(?:__|_|\.)(?:answer|ask)"
)

Kind = Literal["stuck", "looping", "context"]
#: How much of a model's context is filled, and how much there is, in tokens; None: not known.
Fill = tuple[int | None, int | None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Signals:
    """How a task is at one moment."""

    #: Seconds of a clock that only goes forward.
    at: float
    output_bytes: int
    #: Of all its processes so far; None: not known here, and then no sign of life either.
    cpu_seconds: float | None
    #: Bytes to and from it through the gateway so far.
    gateway_bytes: int = 0
    #: By the gateway's account.
    context: Fill = (None, None)
    #: It waits for a person.
    waits: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something to be reported, or to be acted upon."""

    kind: Kind
    text: str
    #: What shows it, by name.
    evidence: dict[str, str] = dataclasses.field(default_factory=dict)
    #: It was reported before and goes on: now something is to be done about it.
    is_due: bool = False


class Loops:
    """Looks for calls of tools that repeat. Constant time and memory for each call."""

    def __init__(self) -> None:
        self._last: collections.deque[bytes] = collections.deque(maxlen=LONGEST_LOOP)
        #: Which of them wait.
        self._waits: collections.deque[bool] = collections.deque(maxlen=LONGEST_LOOP)
        #: For each length of a loop: calls in a row that equal the one so many before.
        self._same = [0] * (LONGEST_LOOP + 1)
        #: The last failure, and how often it came in a row.
        self._failure = b""
        self._failures = 0

    def take(self, call: bytes, *, failure: bytes = b"", waits: bool = False) -> None:
        """Note one finished call: ``call`` stands for tool, arguments and result; ``failure`` for tool and error."""
        for length in range(1, LONGEST_LOOP + 1):
            is_same = len(self._last) >= length and self._last[-length] == call
            self._same[length] = self._same[length] + 1 if is_same else 0
        self._last.append(call)
        self._waits.append(waits)
        self._failures = self._failures + 1 if failure and failure == self._failure else int(bool(failure))
        self._failure = failure

    @property
    def length(self) -> int:
        """How many calls the shortest loop has that the last calls make; 0: none does."""
        return next((length for length in range(1, LONGEST_LOOP + 1) if self._turns(length) >= LEAST_TURNS), 0)

    @property
    def calls(self) -> int:
        """How many of the last calls are a loop, its first time included."""
        length = self.length
        return self._same[length] + length if length else 0

    @property
    def waits(self) -> bool:
        """Whether one of the calls of the loop, or else the last one, waits."""
        return any(list(self._waits)[-(self.length or 1) :])

    @property
    def failures(self) -> int:
        """How many of the last calls failed alike."""
        return self._failures

    def _turns(self, length: int) -> int:
        return self._same[length] // length + 1 if self._same[length] else 0


class Watch:
    """Watches over one run."""

    def __init__(self, policy: jobs.Health, now: float) -> None:
        self._policy = policy
        self._alive_at = now
        self._before: Signals | None = None
        self._open: collections.OrderedDict[str, tuple[str, str]] = collections.OrderedDict()
        self._loops = Loops()
        self._last_call = ""
        self._said: Fill = (None, None)
        #: What was reported and is not over, and what was acted upon.
        self._found: set[Kind] = set()
        self._acted: set[Kind] = set()

    def hear(self, happened: Iterable[events.Event]) -> None:
        """Take what the stream said."""
        for event in happened:
            if isinstance(event, events.ToolCall):
                self._open.setdefault(event.id, (event.name, event.arguments))
                if len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)
            elif isinstance(event, events.ToolResult):
                self._end_call(event)
            elif isinstance(event, events.Context):
                tokens, window = self._said
                self._said = (event.tokens or tokens, event.window or window)

    def look(self, now: Signals) -> list[Finding]:
        """What there is to report, and to act upon, at this moment."""
        if self._is_alive(now):
            self._alive_at = now.at
        self._before = now
        return [*self._judge_stuck(now.at), *self._judge_loops(), *self._judge_context(now.context)]

    # --- stuck ---------------------------------------------------------------------------------------------------

    def _is_alive(self, now: Signals) -> bool:
        before = self._before
        if before is None or now.waits:
            return True
        if (now.output_bytes, now.gateway_bytes) != (before.output_bytes, before.gateway_bytes):
            return True
        if now.cpu_seconds is None or before.cpu_seconds is None:
            return False
        return now.cpu_seconds - before.cpu_seconds >= IDLE_SHARE * max(now.at - before.at, 0.0) > 0

    def _judge_stuck(self, now: float) -> list[Finding]:
        idle = now - self._alive_at
        limit = self._policy.stuck_after
        doing = ", ".join(f"{name} {arguments}"[:_SHORT].strip() for name, arguments in list(self._open.values())[-3:])
        text = f"nothing written, no processor time and nothing through the gateway for {idle:.0f} s"
        evidence = {"it waits for": doing} if doing else {}
        return self._judge(Finding(kind="stuck", text=text, evidence=evidence), idle, limit)

    # --- looping -------------------------------------------------------------------------------------------------

    def _end_call(self, event: events.ToolResult) -> None:
        name, arguments = self._open.pop(event.id, ("", ""))
        self._last_call = f"{name} {arguments}"[:_SHORT].strip()
        failure = b""
        if event.is_error:
            # What differs from one time to the next (times, ids, temporary paths) does not make another error.
            failure = _digest(name, anomalies.normalised(event.text))
        self._loops.take(
            _digest(name, arguments, event.text, str(event.is_error)), failure=failure, waits=_waits(name, arguments)
        )

    def _judge_loops(self) -> list[Finding]:
        limit = self._policy.loop_after * (PATIENCE if self._loops.waits else 1)
        calls, failures = self._loops.calls, self._loops.failures
        text = f"the same tool failed alike {failures} times in a row"
        if calls >= failures:
            length = self._loops.length
            what = "the same call" if length == 1 else f"the same {length} calls in turn"
            text = f"{what} with the same results, {calls} calls in a row"
        found = Finding(kind="looping", text=text, evidence={"last call": self._last_call})
        return self._judge(found, max(calls, failures), limit)

    # --- context -------------------------------------------------------------------------------------------------

    def _judge_context(self, metered: Fill) -> list[Finding]:
        tokens, window = fill(own=self._policy.context_window, said=self._said, metered=metered)
        filled = tokens / window if tokens and window else 0.0
        limit = self._policy.context_at
        if not limit or filled < limit:
            if filled < limit - _CONTEXT_GAP:
                self._found.discard("context")
            return []
        if "context" in self._found:
            return []
        self._found.add("context")
        return [Finding(kind="context", text=f"{tokens:,} of {window:,} tokens of the context are filled")]

    def _judge(self, finding: Finding, value: float, limit: float) -> list[Finding]:
        """Report at the threshold, act at twice that."""
        kind = finding.kind
        if not limit or value < limit:
            self._found.discard(kind)
            return []
        if kind not in self._found:
            self._found.add(kind)
            return [finding]
        if value >= 2 * limit and kind not in self._acted:
            self._acted.add(kind)
            return [dataclasses.replace(finding, is_due=True)]
        return []


def fill(*, own: int | None, said: Fill, metered: Fill) -> Fill:
    """How full a context is: as its stream said, else by the gateway's account. A job's ``own`` window goes first."""
    tokens = metered[0] if said[0] is None else said[0]
    return tokens, own or said[1] or metered[1]


def period(policy: jobs.Health) -> float:
    """Seconds between two looks."""
    return min(15.0, max(0.25, (policy.stuck_after or math.inf) / 20))


def _waits(name: str, arguments: str) -> bool:
    """Whether a call waits for something, by its own words."""
    if _SHELLS.search(name) and _WAITING_WORDS.search(arguments):
        return True
    return _WAITING_TOOLS.fullmatch(name) is not None


def _digest(*parts: str) -> bytes:
    content = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()
