"""How long an abort of a whole rollout keeps the control plane's event loop from others.

``python -m benchmarks.rollouts AGENTS DIRECTORY``: a control plane in this process, with agents that are only rows, all
of which run the release. Beside the abort a task takes every turn of the loop that it gets: the processor time between
two of its turns is what somebody else would have waited for. Prints a JSON object.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from agentina.control import app, config, plane
from agentina.control.rollouts import model
from agentina.control.services import rollouts as service
from agentina.control.store import agents, engine, rollouts
from agentina.protocol import api, signing
from agentina.system import tasks

VERSION = "2.0.0"
_AT_ONCE = 500


async def _add_agents(control: plane.Plane, count: int) -> None:
    key = signing.SigningKey.generate().public.key

    def insert(first: int, tx: engine.Transaction) -> None:
        for number in range(first, min(first + _AT_ONCE, count)):
            agents.insert(
                tx,
                agents.NewAgent(
                    public_id=f"agent-{number}", organization_id=1, public_key=key, hostname=f"host-{number}",
                    instance="default", fingerprint="[]", role=None, labels="{}", max_concurrent_tasks=1,
                    version="1.0.0",
                ),
                now_ms=control.clock.wall_ms(),
            )  # fmt: skip

    for first in range(0, count, _AT_ONCE):
        await control.store.write(functools.partial(insert, first))
    for row in control.store.read(agents.present):
        agent = plane.agent_from_row(row)
        agent.version = VERSION
        control.fleet.add(agent)


async def _all_updated(control: plane.Plane) -> str:
    """A rollout that everybody has."""
    for agent in control.fleet.agents.values():
        agent.version = "1.0.0"
    public_id = await service.start(control, api.RolloutStart(version=VERSION), actor="benchmark")
    stored = control.store.read(lambda tx: service.find(tx, public_id))
    known = control.store.read(lambda tx: rollouts.members(tx, stored.id))
    changed = [msgspec.structs.replace(one, standing=model.Standing.UPDATED, stage=2, attempt=1) for one in known]

    def update(tx: engine.Transaction) -> None:
        rollouts.save_members(tx, stored.id, changed)
        assert rollouts.save(tx, stored, stored.rollout)

    await control.store.write(update)
    return public_id


async def _measured(work: Any) -> dict[str, float]:
    """Processor time of the loop's thread, in milliseconds: the longest turn of others, and all of it."""
    turns: list[float] = []

    async def take_turns() -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            turns.append(now - before)
            before = now

    ticker = tasks.start(take_turns(), name="ticker")
    await asyncio.sleep(0.05)
    turns.clear()
    began, wall = time.thread_time(), time.perf_counter()
    await work
    spent, waited = time.thread_time() - began, time.perf_counter() - wall
    await tasks.cancel(ticker)
    return {"longest_ms": 1000 * max(turns), "all_ms": 1000 * spent, "wall_ms": 1000 * waited}


async def _run(directory: Path, count: int) -> dict[str, float]:
    settings = config.Settings(data=directory, listen="127.0.0.1:0", rollout_seconds=1e9)
    announce = app.Announcements(address=lambda _: None, operator_token=lambda _: None)
    async with app.running(settings, announce) as control:
        await _add_agents(control, count)
        public_id = await _all_updated(control)
        # As in a control plane that was started with them: whether a collection of all of it falls into the measurement
        # (45 ms) would be chance.
        gc.collect()
        gc.freeze()
        figures = await _measured(service.act(control, public_id, "abort", reason="", actor="benchmark"))
        stored = control.store.read(lambda tx: service.find(tx, public_id))
        told = control.store.read(lambda tx: rollouts.counts(tx, stored.id))
        assert told == {"rolling-back": count}, told
        assert sum(bool(agent.update_orders) for agent in control.fleet.agents.values()) == count
    return figures


def main() -> None:
    """Run it once."""
    count, directory = int(sys.argv[1]), Path(sys.argv[2])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_run(directory, count))))


if __name__ == "__main__":
    main()
