"""What the kernel says about processes: memory, CPU, and marks that jobs leave with their first instruction."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The children of ``pid``; none when it has ended."""
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except OSError:
        return []
    return found


def descendants(pid: int) -> list[int]:
    """``pid`` and everything below it that still lives."""
    if not Path(f"/proc/{pid}").exists():
        return []
    return [pid, *(below for child in children(pid) for below in descendants(child))]


def named(text: str) -> list[int]:
    """Processes whose command line holds ``text``, such as the path of a lock."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def parent(pid: int) -> int:
    """Process id of the parent; 0 when ``pid`` has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def memory_kib(pid: int) -> dict[str, int]:
    """``Rss``, ``Pss``, ``Anonymous`` and ``Private`` of one process in KiB (proc(5), smaps_rollup)."""
    sums = {"Rss": 0, "Pss": 0, "Anonymous": 0, "Private": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in sums:
            sums[name] = int(rest.split()[0])
        elif name.startswith("Private_") and name != "Private_Hugetlb":
            sums["Private"] += int(rest.split()[0])
    return sums


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the processes and of their children that were waited for."""
    total = 0.0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15])) / _TICK
    return total


def run_seconds(pid: int) -> float:
    """Time one process has run on a processor, to the nanosecond (scheduler statistics of its threads)."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def machine_busy_seconds() -> float:
    """CPU time the whole machine has spent since boot: the only sum that misses no short-lived process."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal * 0) / _TICK


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def wait_quiet(*, limit_seconds: float = 20) -> bool:
    """Wait until the machine is at least 90 % idle for two seconds; False when it never was."""
    cores = os.cpu_count() or 1
    quiet = 0
    end = time.monotonic() + limit_seconds
    while time.monotonic() < end and quiet < 2:
        before, started = machine_busy_seconds(), time.monotonic()
        time.sleep(1)
        busy = (machine_busy_seconds() - before) / (time.monotonic() - started) / cores
        quiet = quiet + 1 if busy < 0.1 else 0
    return quiet >= 2


class Marks:
    """A file to which each job appends the nanosecond of its first instruction and its name."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="agentina-bench-"))
        self.file = self.directory / "marks"
        self.program = self._compile()

    def _compile(self) -> str:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise SystemExit(
                "the benchmarks need a C compiler (apt install gcc): a job must not pay for an interpreter"
            )
        program = self.directory / "mark"
        source = Path(__file__).with_name("mark.c")
        bare = ["-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector"]
        subprocess.run([compiler, "-O2", *bare, "-o", str(program), str(source)], check=True)
        return str(program)

    def argv(self, name: str, *, sleep_seconds: float = 0) -> list[str]:
        """The command of a job that marks itself as ``name``."""
        return [self.program, str(self.file), name, *([str(sleep_seconds)] if sleep_seconds else [])]

    def read(self) -> dict[str, int]:
        """Nanosecond of the first mark of each name."""
        found: dict[str, int] = {}
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                moment, _, name = line.partition(" ")
                found.setdefault(name, int(moment))
        return found

    def wait(self, names: set[str], *, timeout_seconds: float = 120) -> dict[str, int]:
        """Wait until all names are marked.

        Raises:
            TimeoutError: Some never were.
        """
        end = time.monotonic() + timeout_seconds
        while True:
            found = self.read()
            if names <= found.keys():
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"{len(names - found.keys())} of {len(names)} jobs never started")
            time.sleep(0.002)

    def clear(self) -> None:
        """Forget all marks."""
        self.file.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.directory, ignore_errors=True)


def latencies_ms(marks: Marks, submit: Callable[[list[str]], object], *, count: int, gap_seconds: float) -> list[float]:
    """Milliseconds from the submit call to the job's first instruction, one job at a time."""
    marks.clear()
    started: dict[str, int] = {}
    for number in range(count + 5):
        name = f"job-{number}"
        started[name] = time.time_ns()
        submit(marks.argv(name))
        marks.wait({name})
        time.sleep(gap_seconds)
    found = marks.read()
    return [(found[name] - moment) / 1e6 for name, moment in list(started.items())[5:]]


def jobs_per_second(marks: Marks, submit: Callable[[list[str]], object], *, count: int) -> float:
    """How many trivial jobs of many begin in a second, submitted one after the other."""
    marks.clear()
    names = [f"job-{number}" for number in range(count)]
    began = time.monotonic()
    for name in names:
        submit(marks.argv(name))
    marks.wait(set(names))
    return count / (time.monotonic() - began)


def burst_seconds(marks: Marks, submit: Callable[[list[list[str]]], object], *, count: int) -> float:
    """Seconds from the first submit call until all ``count`` one-second jobs have started."""
    marks.clear()
    names = {f"burst-{number}" for number in range(count)}
    begin = time.time_ns()
    submit([marks.argv(name, sleep_seconds=1) for name in sorted(names)])
    found = marks.wait(names)
    return (max(found[name] for name in names) - begin) / 1e9
