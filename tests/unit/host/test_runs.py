from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentina.host.work import runs
from agentina.system import tasks
from tests.fakes import agent_cli, deadlines

OK = (agent_cli.RECORDINGS / "claude_ok.jsonl").read_bytes()


def make(path: Path) -> runs.Run:
    return runs.Run("claude-code", path)


def whole(path: Path) -> runs.Run:
    run = make(path)
    run.complete()
    return run


async def until_hung(run: runs.Run, *, linger: float) -> asyncio.Event:
    hung = asyncio.Event()
    task = tasks.start(run.follow(hung.set, linger=linger), name="run")
    try:
        async with asyncio.timeout(deadlines.HANG):
            await hung.wait()
    finally:
        await tasks.cancel(task)
    return hung


async def test_who_finished_and_stays_is_told_of(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    output.write_bytes(OK)
    run = make(output)
    await until_hung(run, linger=0.1)
    run.complete()
    assert run.summary([]).answer == "done"


async def test_who_has_not_finished_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    output.write_bytes(OK[: OK.rindex(b"\n", 0, -1)])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await until_hung(make(output), linger=0.0)


async def test_what_comes_after_a_result_is_a_new_beginning(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    output.write_bytes(OK + OK[: OK.rindex(b"\n", 0, -1)] + b"\n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await until_hung(make(output), linger=0.0)


async def test_account_is_the_same_followed_or_read_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    run = make(output)
    following = tasks.start(run.follow(lambda: None, linger=60.0), name="run")
    with output.open("ab", buffering=0) as file:
        for start in range(0, len(OK), 1500):
            file.write(OK[start : start + 1500])
            await asyncio.sleep(0.05)
    await tasks.cancel(following)
    run.complete()
    assert run.summary([]) == whole(output).summary([])
    assert run.summary([]).finished


def test_a_file_larger_than_a_piece_is_read_whole(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    output.write_bytes(b"noise\n" * 200_000 + OK)
    assert whole(output).summary([]).finished


def test_an_output_that_is_gone_or_no_file_says_nothing(tmp_path: Path) -> None:
    assert not whole(tmp_path / "none").summary([]).finished
    (tmp_path / "directory").mkdir()
    assert not whole(tmp_path / "directory").summary([]).finished
    (tmp_path / "link").symlink_to(agent_cli.RECORDINGS / "claude_ok.jsonl")
    assert not whole(tmp_path / "link").summary([]).finished


def test_what_is_told_while_it_runs_is_short(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    output.write_bytes(OK.replace(b'"result":"done"', b'"result":"' + b"x" * 10_000 + b'"'))
    told = whole(output).so_far([])
    assert (len(told.answer), told.answer_truncated, told.finished) == (256, True, True)


def test_secrets_are_masked_in_what_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    output.write_bytes(OK.replace(b'"result":"done"', '"result":"die Tür heißt sesame-open"'.encode()))
    assert whole(output).summary([b"sesame-open", "Tür".encode()]).answer == "die **** heißt ***********"
