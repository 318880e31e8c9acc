"""One task's directory: which files are in it, and the record of its acceptance.

``job.json`` holds the signed assignment, so that a damaged or edited one is noticed; it is a copy for the case that the
outbox, which has the same bytes durably from the acceptance on, is damaged. Most tasks end before it is written.
``outcome.json`` is written when collecting left more than ``result.json`` tells.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

import msgspec

from agentina import errors
from agentina.protocol import names, signing, wire
from agentina.system import files

#: Largest job.json and outcome.json read, in bytes: a job document and what signing adds, escaped twice at worst.
MAX_RECORD = 8 << 20


_log = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a task from its acceptance on. ``repr`` hides the job: its environment may hold secrets."""

    assignment: signing.Signed
    #: The boot in which it was accepted; the deadline below counts in it.
    boot_id: str
    accepted_ms: int
    #: CLOCK_BOOTTIME seconds after which it must not be started without a renewed lease.
    lease_deadline: float

    def __repr__(self) -> str:
        return f"Record(accepted_ms={self.accepted_ms})"


class Collection(msgspec.Struct, frozen=True, kw_only=True):
    """``outcome.json``: the outcome before upload, and where its artifacts are."""

    outcome: wire.Outcome
    #: Artifact name to path, absolute.
    paths: dict[str, str] = {}


class TaskDirectory:
    """The paths in one task's directory; most tasks need few of them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def job(self) -> Path:
        """The record."""
        return self.path / "job.json"

    @property
    def outcome(self) -> Path:
        """The collection, once there is one."""
        return self.path / "outcome.json"

    @property
    def _commit(self) -> Path:
        return self.path / "commit"

    @property
    def output(self) -> Path:
        """What the process wrote."""
        return self.path / "output.log"

    @functools.cached_property
    def workspace(self) -> Path:
        """Where it works when the job names no repository."""
        return self.path / "workspace"

    @property
    def home(self) -> Path:
        """Its HOME and TMPDIR, where it leaves files that are collected: what tools leave here is no part of them.

        Others have the workspace for it: a directory costs more than all else of a small task's files.
        """
        return self.path / "home"

    def write_record(self, record: bytes) -> None:
        """Write ``job.json``, the copy for the case that the outbox is damaged.

        Raises:
            AgentinaError: ``DISK_FULL`` or ``STATE_UNWRITABLE``.

        """
        files.write_atomic(self.job, record, durable=False)

    def read_collection(self) -> Collection | None:
        """What was collected, or None when there is nothing readable; collecting again is harmless."""
        try:
            return msgspec.json.decode(files.read_bounded(self.outcome, limit=MAX_RECORD), type=Collection)
        except (OSError, errors.AgentinaError, msgspec.MsgspecError):
            return None

    def write_collection(self, collection: Collection) -> None:
        """Keep what was collected over a restart of the daemon; where there is no room, it is collected again then."""
        try:
            files.write_atomic(self.outcome, msgspec.json.encode(collection), durable=False)
        except errors.AgentinaError as error:
            fields = {"action": "task-collected", "task": self.path.name, "code": error.code}
            _log.warning("task %s: %s", self.path.name, error, extra=fields)

    def read_commit(self) -> str:
        """The commit that the workspace was made from; empty: none, or nobody knows any more."""
        try:
            return files.read_bounded(self._commit, limit=256).decode("ascii", "replace")
        except (OSError, errors.AgentinaError):
            return ""

    def write_commit(self, commit: str) -> None:
        """Keep which commit the workspace was made from.

        Raises:
            AgentinaError: ``DISK_FULL`` or ``STATE_UNWRITABLE``.

        """
        files.write_atomic(self._commit, commit.encode(), durable=False)

    def output_size(self) -> int:
        """Bytes of output on disk; 0 when there is no file (a task may delete it)."""
        try:
            return os.stat(f"{self.path}/output.log").st_size  # noqa: PTH116 - asked several times a second for each task
        except OSError:
            return 0


def make_empty(path: Path) -> None:
    """Make a directory only we can enter; what an attempt that was cut off left there is deleted.

    Raises:
        AgentinaError: ``DISK_FULL`` or ``STATE_UNWRITABLE``.

    """
    try:
        try:
            os.mkdir(path, 0o700)  # noqa: PTH102 - in the way of every job
        except FileExistsError:
            files.remove_tree(path)
            os.mkdir(path, 0o700)  # noqa: PTH102 - see above
    except OSError as error:
        raise files.from_os_error(error, path) from error


def read_record(content: bytes, task_id: str, trusted: dict[str, signing.PublicKey]) -> tuple[Record, wire.Assignment]:
    """The record in ``content``, verified: it must be ``task_id``'s, signed by the control plane.

    Raises:
        AgentinaError: ``SIGNATURE_INVALID``, or ``INPUT_INVALID`` when it is not readable.

    """
    try:
        record = msgspec.json.decode(content, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise errors.INPUT_INVALID(where="job.json", problem=str(error)) from error
    assignment = signing.verify_struct(record.assignment, "assignment", trusted, wire.Assignment)
    if assignment.task_id != task_id or not names.is_task_id(task_id):
        raise errors.INPUT_INVALID(where="job.json", problem=f"it belongs to task {assignment.task_id[:80]!r}")
    return record, assignment
