"""What an agent's tasks came to: counts that only grow, so that the figures of any period are a difference. Pure.

Durations are kept as logarithms: a release that makes tasks twice as slow does so to long and short ones, and a few
very long tasks do not drown the others. A tenth of a second is added to each first: what happens below that is noise.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from agentina.protocol.states import State

#: Ends that speak against what ran the task. A task that was canceled or never started says nothing.
FAILURES: Final = frozenset({State.FAILED, State.TIMED_OUT, State.OUT_OF_MEMORY, State.LOST, State.REFUSED})
_NOISE_SECONDS: Final = 0.1
_DAY_MS: Final = 86_400_000


class Figures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Tasks that ended, over some time."""

    ended: int = 0
    failed: int = 0
    #: Of those that succeeded: how many, the sum of the logarithms of their seconds, and of the squares of those.
    timed: int = 0
    logs: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            ended=self.ended + other.ended, failed=self.failed + other.failed, timed=self.timed + other.timed,
            logs=self.logs + other.logs, squares=self.squares + other.squares,
        )  # fmt: skip

    def since(self, earlier: Figures) -> Figures:
        """What came after ``earlier``. Figures written last before a crash may be missing: then nothing did."""
        if earlier.ended > self.ended or earlier.failed > self.failed or earlier.timed > self.timed:
            return Figures()
        return Figures(
            ended=self.ended - earlier.ended, failed=self.failed - earlier.failed, timed=self.timed - earlier.timed,
            logs=self.logs - earlier.logs, squares=max(self.squares - earlier.squares, 0.0),
        )  # fmt: skip

    def with_task(self, state: State, seconds: float | None) -> Figures:
        """These and one more task, which ran for ``seconds`` (None: it never started)."""
        if state not in FAILURES and state is not State.SUCCEEDED:
            return self
        if state is not State.SUCCEEDED or seconds is None:
            return msgspec.structs.replace(self, ended=self.ended + 1, failed=self.failed + (state in FAILURES))
        log = math.log(max(seconds, 0.0) + _NOISE_SECONDS)
        return Figures(
            ended=self.ended + 1, failed=self.failed, timed=self.timed + 1, logs=self.logs + log,
            squares=self.squares + log * log,
        )  # fmt: skip


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Figures of some agents over some time."""

    figures: Figures = Figures()
    #: Seconds of all agents together.
    agent_seconds: float = 0.0

    def __add__(self, other: Sample) -> Sample:
        return Sample(figures=self.figures + other.figures, agent_seconds=self.agent_seconds + other.agent_seconds)


class Ledger(msgspec.Struct, kw_only=True, omit_defaults=True):
    """All an agent did, and what it had done at two moments, so that its recent past is one to two days long."""

    totals: Figures = Figures()
    older: Figures = Figures()
    #: Wall clock, milliseconds; 0: it begins with the first task or turn.
    older_ms: int = 0
    newer: Figures = Figures()
    newer_ms: int = 0

    def add(self, state: State, seconds: float | None, now_ms: int) -> None:
        """Count a task that ended."""
        self.turn(now_ms)
        self.totals = self.totals.with_task(state, seconds)

    def turn(self, now_ms: int) -> None:
        """Forget what is older than two days."""
        if not self.older_ms:
            self.older_ms = self.newer_ms = now_ms
        elif now_ms - self.newer_ms >= _DAY_MS:
            self.older, self.older_ms, self.newer, self.newer_ms = self.newer, self.newer_ms, self.totals, now_ms

    def past(self, now_ms: int) -> Sample:
        """What it did lately."""
        seconds = max(now_ms - self.older_ms, 0) / 1000 if self.older_ms else 0.0
        return Sample(figures=self.totals.since(self.older), agent_seconds=seconds)
