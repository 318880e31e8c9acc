"""What a task may take from the host and from its neighbours, by the kernel."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from agentina.protocol import states
from tests.vm import host, lab, machine

#: Beside a task that takes all it can get, a neighbour may take this many times as long as its processor time. Both are
#: counted by the host's own scheduler, so that what else the build machine does has no part in it.
SLOWDOWN: Final = 3.0
#: The same for a round with its writes, by the clock: with much room, for the build machine has a part in that.
SLOWDOWN_BY_CLOCK: Final = 20.0

# A round of computing and of writing to disk, over and over: seconds of each; then those on the processor and those
# waiting for one (schedstat, nanoseconds).
_NEIGHBOUR: Final = """
import os, time
for _ in range({rounds}):
    started = time.monotonic()
    sum(range(400_000))
    with open("file", "wb") as file:
        file.write(os.urandom(1 << 16)); file.flush(); os.fsync(file.fileno())
    print(f"{{time.monotonic() - started:.3f}}", flush=True)
print(*open("/proc/self/schedstat").read().split()[:2])
"""
_FORKS: Final = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
"""
_BUSY: Final = """
import os
for _ in range(7):
    if os.fork() == 0: break
while True: pass
"""
_WRITES: Final = """
import os
while True:
    with open(f"big", "wb") as file:
        for _ in range(64): file.write(bytes(1 << 20))
        file.flush(); os.fsync(file.fileno())
"""
_FILLS: Final = """
number = 0
while True:
    with open(f"fill-{number}", "wb") as file: file.write(bytes(1 << 22))
    number += 1
"""
_EATS: Final = """
kept = []
while True: kept.append(bytearray(b"x" * (1 << 20)))
"""
#: Program, and the reason it ends for by itself, if it does.
HOGS: Final[dict[str, tuple[str, str | None]]] = {
    "fork bomb": (_FORKS, None),
    "processor hog": (_BUSY, None),
    "disk writer": (_WRITES, None),
    "disk filler": (_FILLS, "disk-limit"),
}
Lab = tuple[machine.Machine, lab.Lab]


@pytest.fixture(scope="module")
def on_host(new_machine: Callable[..., machine.Machine], run_lab: lab.Lab) -> Lab:
    there = new_machine()
    run_lab.activate(there, "default", "--max-concurrent-tasks 4")
    return there, run_lab


def submit(run_lab: lab.Lab, program: str, **keys: Any) -> str:
    keys.setdefault("resources", {"memory": "96MiB", "cpu": 1, "pids": 64})
    keys.setdefault("limits", {"timeout": "10m", "grace": "1s"})
    keys.setdefault("retry", {"max_attempts": 1})
    return run_lab.fleet.submit(["python3", "-c", program], **keys)


@dataclasses.dataclass
class Pace:
    """How a neighbour fared."""

    #: Median seconds of a round.
    round: float
    #: (Processor time + waiting for a processor) / processor time.
    stretch: float


def pace_of(run_lab: lab.Lab, job: str) -> Pace:
    view = run_lab.fleet.wait_final(job, seconds=host.PATIENCE)
    assert view.job.state is states.State.SUCCEEDED, view.job
    *rounds, last = run_lab.fleet.output(job).decode().splitlines()
    ran, waited = map(int, last.split())
    return Pace(statistics.median(map(float, rounds)), (ran + waited) / ran)


@pytest.fixture(scope="module")
def alone(on_host: Lab) -> Pace:
    """The neighbour when it has the host to itself."""
    return pace_of(on_host[1], submit(on_host[1], _NEIGHBOUR.format(rounds=30)))


def test_over_its_memory_limit(on_host: Lab, measured: Callable[[str], None]) -> None:
    there, run_lab = on_host
    daemon = there.run("systemctl show -P MainPID agentina@default")
    neighbour = submit(run_lab, _NEIGHBOUR.format(rounds=20))
    eats = submit(run_lab, _EATS)
    view = run_lab.fleet.wait_final(eats, seconds=host.PATIENCE)
    assert view.job.state is states.State.OUT_OF_MEMORY, view.job
    outcome = view.tasks[-1].outcome
    assert outcome is not None
    assert outcome.oom == "full"
    peak = outcome.usage.memory_peak_bytes or 0
    measured(f"out of memory at a limit of 96 MiB: peak {peak / (1 << 20):.1f} MiB")
    assert 90 << 20 < peak <= 97 << 20
    assert pace_of(run_lab, neighbour)
    assert there.run("systemctl show -P MainPID agentina@default") == daemon
    assert "oom" not in there.run("journalctl -b -u agentina@default -o cat").lower().replace("out-of-memory", "")


@pytest.mark.parametrize("what", HOGS)
def test_neighbour_goes_on(what: str, on_host: Lab, alone: Pace, measured: Callable[[str], None]) -> None:
    there, run_lab = on_host
    program, ends = HOGS[what]
    resources = {"memory": "96MiB", "cpu": 1, "pids": 64, "disk": "200MiB"}
    bad = submit(run_lab, program, resources=resources)
    run_lab.fleet.wait_state(bad, states.State.RUNNING, seconds=host.PATIENCE)
    time.sleep(2)  # until it is at full strength
    beside = pace_of(run_lab, submit(run_lab, _NEIGHBOUR.format(rounds=30)))
    measured(
        f"beside a {what} a neighbour takes {beside.stretch:.2f} of its processor time (alone {alone.stretch:.2f}); "
        f"a round takes {beside.round / alone.round:.1f} times as long by the clock, other load included"
    )
    assert there.try_run("agentina status >/dev/null", seconds=60).returncode in {0, 1}
    if ends is None:
        run_lab.fleet.client.cancel_job(bad)
    view = run_lab.fleet.wait_final(bad, seconds=host.PATIENCE)
    if ends is not None:
        assert view.job.reason is not None
        assert view.job.reason.value == ends, view.job
    units = "systemctl list-units --plain --no-legend 'agentina-task@*' | wc -l"
    there.wait(f"[ $({units}) = 0 ]", "nothing of it is left")
    assert there.run("ps -eo user:20 | grep -c ^_default || true").strip() == "0"
    assert beside.stretch < SLOWDOWN
    assert beside.round / alone.round < SLOWDOWN_BY_CLOCK
