from __future__ import annotations

import hashlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentina import errors
from agentina.control import blobs

TASK = "job_0123456789abcdef.1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[blobs.Blobs]:
    made = blobs.Blobs(tmp_path / "blobs")
    yield made
    made.close()


async def test_output_grows_at_its_end_only(store: blobs.Blobs) -> None:
    assert await store.append_output(TASK, 0, b"hello ") == 6
    assert await store.append_output(TASK, 6, b"world") == 11
    for offset in (0, 5, 12):
        with pytest.raises(errors.AgentinaError) as caught:
            await store.append_output(TASK, offset, b"again")
        assert (caught.value.code, caught.value.context["expected"]) == ("OFFSET_MISMATCH", 11)
    assert store.read_output(TASK, 4, 3) == b"o w"
    assert store.output_size(TASK) == 11


async def test_what_a_killed_process_wrote_is_made_durable_before_it_is_told(
    store: blobs.Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    await store.append_output(TASK, 0, b"written")
    monkeypatch.setattr(os, "fdatasync", lambda number: synced.append(Path(f"/proc/self/fd/{number}").readlink().name))
    with pytest.raises(errors.AgentinaError, match="OFFSET_MISMATCH"):
        # Sent again after a lost answer, to a process that did not write it.
        await store.append_output(TASK, 0, b"written")
    assert synced == [TASK]


def test_missing_output_is_empty(store: blobs.Blobs) -> None:
    assert (store.output_size(TASK), store.read_output(TASK, 0, 10)) == (0, b"")


async def test_an_artifact_is_verified_before_it_has_its_name(store: blobs.Blobs) -> None:
    sha256 = hashlib.sha256(b"content").hexdigest()
    await store.append_artifact(TASK, "a/b.txt", 0, b"con")
    assert store.artifact_size(TASK, "a/b.txt") == 3
    await store.append_artifact(TASK, "a/b.txt", 3, b"tent")
    path = store.artifact_path(TASK, "a/b.txt")
    assert not path.exists()
    assert await store.finish_artifact(TASK, "a/b.txt", sha256) == sha256
    assert path.read_bytes() == b"content"
    # The answer was lost and the last step is repeated.
    assert await store.finish_artifact(TASK, "a/b.txt", sha256) == sha256


async def test_a_wrong_artifact_starts_again_from_nothing(store: blobs.Blobs) -> None:
    await store.append_artifact(TASK, "x", 0, b"wrong")
    assert await store.finish_artifact(TASK, "x", "0" * 64) == hashlib.sha256(b"wrong").hexdigest()
    assert store.artifact_size(TASK, "x") == 0
    assert not store.artifact_path(TASK, "x").exists()


async def test_without_room_half_a_piece_does_not_count_as_stored(store: blobs.Blobs) -> None:
    await store.append_output(TASK, 0, b"kept")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(errors.AgentinaError, match="STORAGE_FULL"):
            await store.append_output(TASK, 4, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert store.output_size(TASK) == 4
    assert await store.append_output(TASK, 4, b"x" * 5000) == 5004
