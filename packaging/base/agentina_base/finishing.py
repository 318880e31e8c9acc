"""task-exit: writes a task's result and gives its files back. Runs as root when the unit ends, however it ended.

PID 1 has ended every process of the task by now; what it counted is still in the control group. The supervisor's report
says how the command ended, if the supervisor lived to say it; the rest is read from systemd and the kernel. The result
is written last: when it is there, nothing of the task runs and everything of it is the daemon's again.

Started by task-exit, a shell script, which first makes room in the control group's memory.
"""

from __future__ import annotations

import os
import stat
import sys
import time

if __name__ == "__main__":
    sys.path.append("/usr/lib/agentina")

from agentina_base import preparing, slots

#: signal(7), the ones that end processes; the signal module costs more than all the rest here.
_SIGNALS = {
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
    9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM",
    16: "SIGSTKFLT", 24: "SIGXCPU", 25: "SIGXFSZ", 26: "SIGVTALRM", 27: "SIGPROF", 29: "SIGIO", 30: "SIGPWR",
    31: "SIGSYS",
}  # fmt: skip
_ROOM = ".result.json.room"
#: Longest text about what went wrong, in characters.
_LONGEST = 2000


def main() -> None:
    """Finish the task in the slot ``sys.argv[1]``; without one there is nothing to do."""
    os.umask(0o077)
    try:
        slot = slots.Slot(sys.argv[1])
        run = slot.open_run()
        state = slots.read_fields("state", run, owner=0)
    except FileNotFoundError:
        return  # it ended before it was started
    except (OSError, KeyError, IndexError, slots.ProblemError) as error:
        sys.exit(f"task-exit: {error}")
    counted = Counted(preparing.cgroup())
    report = read_report(run)
    told = Ending(
        os.environ.get("SERVICE_RESULT", ""), os.environ.get("EXIT_CODE", ""), os.environ.get("EXIT_STATUS", "")
    )
    try:
        finish(slot, run, state, judge(state, report, told, counted, going_down=is_going_down(report)))
    except (OSError, slots.ProblemError) as error:
        sys.exit(f"task-exit: {error}")


class Counted:
    """What the kernel counted for the task; None where it did not."""

    def __init__(self, group: str) -> None:
        cpu = _keyed(group, "cpu.stat")
        events = _keyed(group, "memory.events")
        io = [_pairs(line) for line in _read(group, "io.stat").splitlines()]
        self.cpu_seconds = cpu["usage_usec"] / 1e6 if "usage_usec" in cpu else None
        self.memory_peak = _number(_read(group, "memory.peak"))
        self.processes_peak = _number(_read(group, "pids.peak"))
        measured = os.path.exists(f"{group}/io.stat")
        self.read_bytes = sum(line.get("rbytes", 0) for line in io) if measured else None
        self.written_bytes = sum(line.get("wbytes", 0) for line in io) if measured else None
        self.operations = sum(line.get("rios", 0) + line.get("wios", 0) for line in io) if measured else None
        self.oom_kills = events.get("oom_kill", 0)
        #: The task's own limit was what was reached; otherwise that of all tasks together, or the host's memory.
        self.own_limit = _keyed(group, "memory.events.local").get("oom", 1) > 0
        self.forks_refused = _keyed(group, "pids.events").get("max", 0)


class Ending:
    """What systemd says of the main process (systemd.exec(5), "$SERVICE_RESULT, $EXIT_CODE, $EXIT_STATUS")."""

    def __init__(self, result: str, code: str, status: str) -> None:
        self.result = result
        self.code = code
        self.status = status

    def __str__(self) -> str:
        return " ".join(part for part in (self.result, self.code, self.status) if part)


def read_report(run: int) -> dict[str, list[str]]:
    """What the supervisor said, and what task-prepare said if it failed; empty when neither can be read."""
    for name in ("problem", "report"):
        try:
            return slots.read_fields(name, run, owner=0)
        except (OSError, slots.ProblemError):
            continue
    return {}


def is_going_down(report: dict[str, list[str]]) -> bool:
    """Whether the host shuts down, where that may be why the task ended. PID 1 is asked on its own socket."""
    if "end" in report and report.get("stopped") != ["host-shutdown"]:
        return False
    import subprocess  # noqa: PLC0415 - rarely needed, and dear

    asked = subprocess.run(["/usr/bin/systemctl", "is-system-running"], stdout=subprocess.PIPE, check=False, timeout=10)
    return asked.stdout.strip() == b"stopping"


def judge(
    state: dict[str, list[str]],
    report: dict[str, list[str]],
    told: Ending,
    counted: Counted,
    *,
    going_down: bool,
) -> dict[str, object]:
    """The result, with the fields of agentina.executors.contract.Result. Rules only."""
    details = [text for text in report.get("details", ()) if text]
    if "end" in report:
        result = _reported(report)
        if result["stopped"] == "host-shutdown" and not going_down:
            result["stopped"] = "canceled"
            details.append("somebody on the host ended its unit, with systemctl for example")
    else:
        result = _unreported(report, told, going_down=going_down)
        if "start_error" not in result and not counted.oom_kills and not going_down:
            details.append(f"its supervisor was ended before it could report ({told})")
    _judge_memory(result, state, counted, details, complete="end" in report)
    if counted.forks_refused:
        details.append(f"it could not make another process {counted.forks_refused} times: it had as many as it may")
    started_ms = int(state["started_ms"][0])
    return {
        **result,
        "task_id": state["task_id"][0],
        "usage": _usage(state, report, counted),
        "started_ms": started_ms,
        "ended_ms": max(started_ms, time.time_ns() // 1_000_000),
        "boot_id": state["boot_id"][0],
        "detail": "; ".join(details)[:_LONGEST],
    }


def _reported(report: dict[str, list[str]]) -> dict[str, object]:
    """The supervisor's word."""
    result: dict[str, object] = {"phase": report["phase"][0], "stopped": report["stopped"][0]}
    if "exit_code" in report:
        result["exit_code"] = int(report["exit_code"][0])
    if "signal" in report:
        number = int(report["signal"][0])
        result["signal"] = _SIGNALS.get(number, f"SIG{number}")
    if "start_error" in report:
        result["start_error"] = report["start_error"][0][:_LONGEST]
    return result


def _unreported(report: dict[str, list[str]], told: Ending, *, going_down: bool) -> dict[str, object]:
    """It was never told how the command ended: the supervisor did not start, or was ended together with it."""
    stopped = "host-shutdown" if going_down else "none"
    if "pid" not in report:
        problem = report.get("problem", [f"its supervisor did not start ({told})"])[0]
        return {"phase": "start", "stopped": stopped, "start_error": problem[:_LONGEST]}
    result: dict[str, object] = {"phase": "command", "stopped": stopped}
    if told.code in {"killed", "dumped"}:
        result["signal"] = f"SIG{told.status}"
    return result


def _judge_memory(
    result: dict[str, object], state: dict[str, list[str]], counted: Counted, details: list[str], *, complete: bool
) -> None:
    """Say what the kernel did for want of memory: its own count decides, systemd's result hides a part of it."""
    result["oom"] = "none"
    if not counted.oom_kills:
        return
    together = state["oom"][0] == "kill"
    if not together and complete and result.get("signal") != "SIGKILL":
        result["oom"] = "partial"
        return
    result["oom"] = "full"
    if result["stopped"] in {"none", "memory-limit"}:
        result["stopped"] = "memory-limit"
        details.clear()
        details.append(
            f"the kernel ended it at its memory limit of {state['memory_bytes'][0]} bytes"
            if counted.own_limit
            else "the kernel ended it because the memory of all tasks together, or of the host, was used up; "
            "it was below its own limit"
        )


def _usage(state: dict[str, list[str]], report: dict[str, list[str]], counted: Counted) -> dict[str, object]:
    if "wall_seconds" in report:
        wall = float(report["wall_seconds"][0])
    else:
        wall = time.clock_gettime(time.CLOCK_BOOTTIME) - float(state["started"][0])
    figures = {
        "wall_seconds": round(wall, 6),
        "cpu_seconds": counted.cpu_seconds,
        "memory_peak_bytes": counted.memory_peak,
        "io_read_bytes": counted.read_bytes,
        "io_write_bytes": counted.written_bytes,
        "io_operations": counted.operations,
        "processes_peak": counted.processes_peak,
    }
    return {name: value for name, value in figures.items() if value is not None}


def finish(slot: slots.Slot, run: int, state: dict[str, list[str]], result: dict[str, object]) -> None:
    """Give everything back, and then leave the result."""
    task: int | None = None
    try:
        task = slot.open_task(state["task_id"][0])
    except FileNotFoundError:
        pass  # the daemon deleted it: nobody wants the result
    place = slot.open_place()
    problems = slots.give_back(slot, task, place, int(state["user"][0]))
    if task is not None:
        result["output_truncated"] = _trim_output(slot, task, int(state["output_bytes"][0]))
        if result["output_truncated"] and result["stopped"] == "none":
            result["stopped"] = "output-limit"
        if problems:
            result["detail"] = "; ".join(filter(None, [str(result["detail"]), *problems]))[:_LONGEST]
        write_result(slot, task, result)
    for name in slots.RUN_FILES:
        slots.remove(name, run)


def _trim_output(slot: slots.Slot, task: int, limit: int) -> bool:
    """Cut the output to its limit and have it on the disk; whether something was cut."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        output = os.open("output.log", flags, dir_fd=task)
    except OSError:
        return False
    try:
        status = os.fstat(output)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != slot.owner[0]:
            return False
        if status.st_size:
            os.fsync(output)
        if status.st_size > limit:
            os.ftruncate(output, limit)
        return status.st_size > limit
    finally:
        os.close(output)


def write_result(slot: slots.Slot, task: int, result: dict[str, object]) -> None:
    """Leave ``result.json``, durably, in the room that was set aside for it."""
    import json  # noqa: PLC0415 - 12 ms that nothing before has to wait for

    content = json.dumps(result).encode()
    try:
        room = os.open(_ROOM, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=task)
        status = os.fstat(room)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != 0 or status.st_nlink != 1:
            os.close(room)
            raise slots.ProblemError("the room for the result is not as task-prepare made it")
    except FileNotFoundError:
        room = slots.create(_ROOM, task, owner=(0, 0), mode=0o600)
    try:
        os.pwrite(room, content, 0)
        os.ftruncate(room, len(content))
        os.fchmod(room, 0o600)
        os.fchown(room, *slot.owner)
        os.fsync(room)
    finally:
        os.close(room)
    os.rename(_ROOM, "result.json", src_dir_fd=task, dst_dir_fd=task)
    os.fsync(task)


def _read(group: str, name: str) -> str:
    try:
        with open(f"{group}/{name}", encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


def _keyed(group: str, name: str) -> dict[str, int]:
    """A flat keyed file (kernel Documentation/admin-guide/cgroup-v2.rst)."""
    lines = (line.split() for line in _read(group, name).splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdecimal()}  # noqa: PLR2004


def _pairs(line: str) -> dict[str, int]:
    """``key=value`` pairs of a nested keyed file's line."""
    found = (part.partition("=") for part in line.split())
    return {key: int(value) for key, _, value in found if value.isdecimal()}


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() else None


if __name__ == "__main__":
    main()
