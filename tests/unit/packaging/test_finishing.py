"""How a task ended, from what the supervisor, systemd and the kernel say of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentina.executors import contract
from agentina_base import finishing, slots

STATE = {
    "task_id": ["job_0123456789abcdef.1"],
    "nonce": ["n"],
    "slot": ["default-S1"],
    "boot_id": ["boot"],
    "started_ms": ["1000"],
    "started": ["10.0"],
    "user": ["61184"],
    "oom": ["kill"],
    "output_bytes": ["100"],
    "memory_bytes": ["1048576"],
}
RAN = {"pid": ["7"], "wall_seconds": ["1.5"], "details": [""], "stopped": ["none"], "end": ["1"]}


def counted(tmp_path: Path, **files: str) -> finishing.Counted:
    content = {"cpu.stat": "usage_usec 2500000\n", "memory.peak": "4096\n", "memory.events": "oom 0\noom_kill 0\n"}
    content |= {name.replace("_", "."): text for name, text in files.items()}
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    return finishing.Counted(str(tmp_path))


def judged(
    report: dict[str, list[str]],
    told: finishing.Ending,
    kernel: finishing.Counted,
    *,
    going_down: bool = False,
    **state: str,
) -> contract.Result:
    merged = STATE | {name: [value] for name, value in state.items()}
    result: Any = finishing.judge(merged, report, told, kernel, going_down=going_down)
    return msgspec.convert(result, contract.Result)


FINE = finishing.Ending("success", "exited", "0")
KILLED = finishing.Ending("signal", "killed", "KILL")
OOM = {"memory_events": "oom 1\noom_kill 1\n", "memory_events_local": "oom 1\noom_kill 1\n"}


def test_what_was_reported_is_the_result(tmp_path: Path) -> None:
    result = judged({**RAN, "phase": ["command"], "exit_code": ["3"]}, FINE, counted(tmp_path))
    assert (result.phase, result.exit_code, result.signal, result.oom) == ("command", 3, None, "none")
    assert result.stopped is contract.StopReason.NONE
    assert (result.usage.wall_seconds, result.usage.cpu_seconds, result.usage.memory_peak_bytes) == (1.5, 2.5, 4096)
    assert result.boot_id == "boot"


def test_io_of_all_disks_is_added_up(tmp_path: Path) -> None:
    stat = "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n254:16 rbytes=1 wbytes=2 rios=3 wios=4\n"
    usage = judged({**RAN, "phase": ["command"], "exit_code": ["0"]}, FINE, counted(tmp_path, io_stat=stat)).usage
    assert (usage.io_read_bytes, usage.io_write_bytes, usage.io_operations) == (11, 22, 10)


def test_without_a_report_it_is_never_success(tmp_path: Path) -> None:
    for told in (FINE, KILLED, finishing.Ending("watchdog", "killed", "KILL"), finishing.Ending("", "", "")):
        result = judged({"pid": ["7"]}, told, counted(tmp_path))
        assert result.exit_code is None
        assert "before it could report" in result.detail
    assert judged({"pid": ["7"]}, KILLED, counted(tmp_path)).signal == "SIGKILL"


def test_what_never_ran_says_why(tmp_path: Path) -> None:
    problem = judged({"problem": ["no room"]}, finishing.Ending("exit-code", "", ""), counted(tmp_path))
    assert (problem.phase, problem.start_error) == ("start", "no room")
    silent = judged({}, finishing.Ending("exit-code", "exited", "226"), counted(tmp_path))
    assert (silent.phase, silent.start_error) == ("start", "its supervisor did not start (exit-code exited 226)")


@pytest.mark.parametrize(
    ("oom", "report", "expected"),
    [
        ("kill", {"pid": ["7"]}, "full"),
        ("kill", {**RAN, "phase": ["command"], "exit_code": ["0"]}, "full"),
        ("continue", {"pid": ["7"]}, "full"),
        ("continue", {**RAN, "phase": ["command"], "signal": ["9"]}, "full"),
        ("continue", {**RAN, "phase": ["command"], "exit_code": ["0"]}, "partial"),
        ("continue", {**RAN, "phase": ["command"], "exit_code": ["1"]}, "partial"),
    ],
)
def test_out_of_memory(tmp_path: Path, oom: str, report: dict[str, list[str]], expected: str) -> None:
    result = judged(report, KILLED, counted(tmp_path, **OOM), oom=oom)
    assert result.oom == expected
    assert (result.stopped is contract.StopReason.MEMORY_LIMIT) == (expected == "full")


def test_who_was_stopped_for_another_reason_keeps_it(tmp_path: Path) -> None:
    report = {**RAN, "phase": ["command"], "signal": ["9"], "stopped": ["canceled"]}
    result = judged(report, FINE, counted(tmp_path, **OOM))
    assert (result.oom, result.stopped) == ("full", contract.StopReason.CANCELED)


def test_memory_of_others_is_not_its_own(tmp_path: Path) -> None:
    events = {"memory_events": "oom 0\noom_kill 1\n", "memory_events_local": "oom 0\noom_kill 1\n"}
    assert "below its own limit" in judged({"pid": ["7"]}, KILLED, counted(tmp_path, **events)).detail
    assert "1048576" in judged({"pid": ["7"]}, KILLED, counted(tmp_path, **OOM)).detail


def test_shutdown_of_the_host_is_told_from_systemctl(tmp_path: Path) -> None:
    report = {**RAN, "phase": ["command"], "signal": ["15"], "stopped": ["host-shutdown"]}
    shutdown = judged(report, FINE, counted(tmp_path), going_down=True)
    assert (shutdown.stopped, shutdown.detail) == (contract.StopReason.HOST_SHUTDOWN, "")
    by_hand = judged(report, FINE, counted(tmp_path))
    assert by_hand.stopped is contract.StopReason.CANCELED
    assert "systemctl" in by_hand.detail
    cut_off = judged({"pid": ["7"]}, KILLED, counted(tmp_path), going_down=True)
    assert cut_off.stopped is contract.StopReason.HOST_SHUTDOWN


def test_every_signal_has_its_name() -> None:
    import signal  # noqa: PLC0415

    ignored = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
    stopping = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    real_time = {number for number in signal.Signals if number >= signal.SIGRTMIN}
    ending = set(signal.Signals) - ignored - stopping - real_time
    assert {number.value: number.name for number in ending} == finishing._SIGNALS


@pytest.mark.parametrize("name", ["default", "default-S", "default-S1x", "../x-S1", "a/b-S1", "-S1", "default-S12345"])
def test_slots_with_other_names_are_refused(name: str) -> None:
    with pytest.raises(slots.ProblemError):
        slots.Slot(name)


# --- trees that change hands -----------------------------------------------------------------------------------------

ours = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
THEM, OTHERS = 61184, 61185


@ours
def test_tree_changes_hands_and_what_is_others_stays(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/file").write_text("x")
    (tree / "link").symlink_to("/etc/passwd")
    os.mkfifo(tree / "fifo")
    (tree / "others").write_text("x")
    for path in (tree, *tree.rglob("*")):
        os.chown(path, THEM, THEM, follow_symlinks=False)
    os.chown(tree / "others", OTHERS, OTHERS)
    (tree / "a/b").chmod(0)
    with_parent = os.open(tmp_path, os.O_RDONLY)
    slots.change_owner("tree", with_parent, before=THEM, after=(4711, 4712))
    os.close(with_parent)
    owners = {str(path.relative_to(tmp_path)): path.lstat().st_uid for path in (tree, *tree.rglob("*"))}
    assert owners.pop("tree/others") == OTHERS
    assert set(owners.values()) == {4711}
    assert Path("/etc/passwd").stat().st_uid == 0


@ours
def test_deep_tree_needs_few_open_files(tmp_path: Path) -> None:
    depth = 2000
    here = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("tree", dir_fd=here)
    first = here
    here = os.open("tree", os.O_RDONLY, dir_fd=here)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.fchown(below, THEM, THEM)
        os.close(here)
        here = below
    slots.change_owner("tree", first, before=THEM, after=(4711, 4712))
    assert os.fstat(here).st_uid == 4711
    os.close(here)
    slots.remove_tree("tree", first)
    os.close(first)
    assert list(tmp_path.iterdir()) == []


@ours
def test_link_in_place_of_a_tree_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "tree").symlink_to("victim")
    above = os.open(tmp_path, os.O_RDONLY)
    slots.change_owner("tree", above, before=0, after=(4711, 4712))
    os.close(above)
    assert (tmp_path / "victim").stat().st_uid == 0
