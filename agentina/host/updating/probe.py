"""A task of our own that takes more memory than it may: whether this release holds tasks to their limits.

An updater asks for it while the release is on trial (:mod:`agentina.host.updating.trials` judges what comes of it). It
goes the way of every task, through the daemon's own executor, but no job is behind it: the control plane never hears of
it, it takes no slot, and what it leaves is deleted.

=============================================  ==================================================================
what happens                                   then
=============================================  ==================================================================
the limit holds                                it is ended for its memory; the outcome says so
the limit does not hold                        it ends by itself at :data:`MOST_BYTES`, and the outcome says so
it cannot be started, or its directory made    the error is shown; it may be asked for again
the daemon ends meanwhile                      the task ends by itself; the next daemon deletes its directory
=============================================  ==================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from agentina import errors
from agentina.executors import contract
from agentina.host.work import outcomes, records
from agentina.protocol import jobs, local
from agentina.system import clock, tasks

#: What it may take: less than a slot has by itself (agentina-task@.service), so that a limit which was never set shows.
LIMIT_BYTES: Final = 48 << 20
#: What it takes where nothing ends it.
MOST_BYTES: Final = 3 * LIMIT_BYTES
#: Seconds it may run, and until it must be gone.
_SECONDS: Final = 30.0
_LEASE_SECONDS: Final = 40.0
_EATS: Final = f"kept = [bytearray(b'x' * (1 << 20)) for _ in range({MOST_BYTES >> 20})]"
#: No task's name, so that no release takes what is left of it for a job's.
_NAMES: Final = "probe."
_JOB: Final = jobs.JobSpec(
    name="probe",
    payload=jobs.Payload(argv=[sys.executable, "-c", _EATS]),
    resources=jobs.Resources(memory=LIMIT_BYTES, cpu=1.0, pids=16),
)

_log = logging.getLogger(__name__)


class Probe:
    """The probes of one daemon, one at a time."""

    def __init__(
        self, directory: Path, *, executor: contract.Executor, remove: Callable[[Path, bool], None], clocks: clock.Clock
    ) -> None:
        """``directory`` is where tasks have theirs; ``remove`` deletes one."""
        self._directory = directory
        self._executor = executor
        self._remove = remove
        self._clock = clocks
        self._running: asyncio.Task[None] | None = None
        #: The latest; None: nobody asked.
        self.seen: local.Probe | None = None

    def begin(self) -> None:
        """Start one, unless one is under way."""
        if self._running is None:
            self.seen = local.Probe(running=True, limit_bytes=LIMIT_BYTES)
            self._running = tasks.start(self._run(), name="probe")

    async def close(self) -> None:
        """Wait for nothing: the task ends without us."""
        await tasks.cancel(*([self._running] if self._running is not None else []))

    def leftovers(self) -> Iterable[Path]:
        """Directories of probes that a daemon did not see the end of."""
        return list(self._directory.glob(f"{_NAMES}*"))

    async def _run(self) -> None:
        directory = self._directory / f"{_NAMES}{secrets.token_hex(8)}"
        try:
            self.seen = await self._drive(directory)
        except errors.AgentinaError as error:
            self.seen = local.Probe(limit_bytes=LIMIT_BYTES, error_code=error.code, detail=str(error))
        except Exception as error:
            self.seen = local.Probe(limit_bytes=LIMIT_BYTES, error_code=errors.INTERNAL.code, detail=repr(error)[:500])
            raise
        finally:
            self._running = None
            self._remove(directory, False)  # noqa: FBT003 - a callback's signature
            _log.info("a task over its memory limit: %s", self.seen, extra={"action": "limit-probed"})

    async def _drive(self, directory: Path) -> local.Probe:
        for path in (directory, directory / "workspace", directory / "home"):
            records.make_empty(path)
        await self._executor.start(self._launch(directory))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEASE_SECONDS):
                await self._executor.wait(directory)
        result = self._executor.read_result(directory)
        if result is None:
            raise errors.TASK_START_FAILED(problem="a task over its memory limit left no result")
        return local.Probe(limit_bytes=LIMIT_BYTES, outcome=outcomes.from_result(result, _JOB))

    def _launch(self, directory: Path) -> contract.Launch:
        place = self._executor.place(directory)
        assert _JOB.payload.argv is not None
        return contract.Launch(
            task_id=directory.name,
            directory=directory,
            argv=_JOB.payload.argv,
            environment={"PATH": "/usr/bin:/bin", "HOME": str(place / "home")},
            workspace=directory / "workspace",
            memory_bytes=LIMIT_BYTES,
            cpus=_JOB.cpus,
            pids=_JOB.resources.pids,
            disk_bytes=LIMIT_BYTES,
            output_bytes=1 << 16,
            timeout_seconds=_SECONDS,
            grace_seconds=1.0,
            lease_deadline=self._clock.boot() + _LEASE_SECONDS,
        )
