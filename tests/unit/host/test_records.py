from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentina import errors
from agentina.host.work import records
from agentina.protocol import jobs, signing, wire
from agentina.protocol.states import Reason, State

KEY = signing.SigningKey.generate()
TRUSTED = {KEY.public.id: KEY.public}
TASK = "job_0123456789abcdef.1"


def record(task_id: str = TASK, **fields: Any) -> bytes:
    job = jobs.parse_job({"name": "x", "payload": {"argv": ["true"]}, "environment": {"A": {"secret": "sesame-open"}}})
    assignment = wire.Assignment(
        task_id=task_id, job_id="job_0123456789abcdef", epoch=1, agent_id="me", session=1, poll=1,
        organization="default", issued_ms=0, lease_seconds=60, job=job,
    )  # fmt: skip
    made = records.Record(
        assignment=KEY.sign_struct("assignment", assignment), boot_id="b", accepted_ms=1, lease_deadline=2.0, **fields
    )
    return msgspec.json.encode(made)


def test_record_comes_back_verified() -> None:
    read, assignment = records.read_record(record(), TASK, TRUSTED)
    assert (read.boot_id, assignment.task_id) == ("b", TASK)
    assert "sesame-open" not in repr(read)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", record()[:-20], record().replace(b"sesame-open", b"sesame-shut"), record("job_0123456789abcdef.2")],
)
def test_torn_edited_and_foreign_records_are_refused(content: bytes) -> None:
    with pytest.raises(errors.AgentinaError):
        records.read_record(content, TASK, TRUSTED)


def test_directory_replaces_what_was_never_durable(tmp_path: Path) -> None:
    directory = records.TaskDirectory(tmp_path / TASK)
    directory.path.mkdir()
    (directory.path / "supervisor").touch()
    records.make_empty(directory.path)
    directory.write_record(b"record")
    assert [path.name for path in directory.path.iterdir()] == ["job.json"]


def test_directory_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        records.make_empty(tmp_path / "missing" / TASK)
    assert caught.value.code == "STATE_UNWRITABLE"


def test_damaged_collection_counts_as_none(tmp_path: Path) -> None:
    directory = records.TaskDirectory(tmp_path)
    assert directory.read_collection() is None
    outcome = wire.Outcome(state=State.SUCCEEDED, reason=Reason.EXIT_ZERO)
    directory.write_collection(records.Collection(outcome=outcome, paths={"a": "/x/a"}))
    assert directory.read_collection() == records.Collection(outcome=outcome, paths={"a": "/x/a"})
    directory.outcome.write_bytes(directory.outcome.read_bytes()[:-3])
    assert directory.read_collection() is None


def test_output_size_of_a_deleted_file_is_zero(tmp_path: Path) -> None:
    directory = records.TaskDirectory(tmp_path)
    assert directory.output_size() == 0
    directory.output.write_bytes(b"abc")
    assert directory.output_size() == 3
