"""The members of rollouts in memory, so that a look at ten thousand agents reads none of them from the database.

Whatever changes a member changes its rollout's revision in the same transaction; what is remembered holds for one
revision. What has to be read is read in slices, between which requests are answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from agentina.control.rollouts import model
from agentina.control.store import engine, rollouts

#: Members read, or agents looked at, before others have their turn: a few milliseconds.
SLICE: Final = 250


def _row(number: int) -> engine.Operation[rollouts.Stored]:
    return lambda tx: rollouts.by_id(tx, number)


class Members:
    """Members by rollout. The mappings handed out are never changed afterwards."""

    def __init__(self, store: engine.Store) -> None:
        self._store = store
        #: By the rollout's row id: the revision, and the members by agent.
        self._known: dict[int, tuple[int, Mapping[int, model.Member]]] = {}

    async def read(self, stored: rollouts.Stored) -> Mapping[int, model.Member]:
        """The members at the rollout's revision; of a later one, when it is changed meanwhile."""
        known = self._known.get(stored.id)
        if known is not None and known[0] == stored.revision:
            return known[1]
        while True:
            members = await self._read(stored.id)
            now = self._store.read(_row(stored.id), snapshot=False)
            if now.revision == stored.revision:
                break
            stored = now
        self._known[stored.id] = (stored.revision, members)
        return members

    async def _read(self, number: int) -> dict[int, model.Member]:
        """The members of the rollout in this row, as they are one slice after the other."""
        members: dict[int, model.Member] = {}
        last = -1

        def some(tx: engine.Transaction) -> list[model.Member]:
            return rollouts.some_members(tx, number, last, SLICE)

        while part := self._store.read(some, snapshot=False):
            members |= {member.agent: member for member in part}
            last = part[-1].agent
            await asyncio.sleep(0)
        return members

    def is_current(self, stored: rollouts.Stored) -> bool:
        """Whether what is remembered is of this revision."""
        return stored.id in self._known and self._known[stored.id][0] == stored.revision

    def note(self, rollout: int, revision: int, members: Mapping[int, model.Member]) -> None:
        """Remember what was stored with a revision."""
        self._known[rollout] = (revision, members)

    def keep_only(self, living: Iterable[int]) -> None:
        """Forget the others."""
        wanted = set(living)
        for rollout in [rollout for rollout in self._known if rollout not in wanted]:
            del self._known[rollout]
