"""AI agents on a host whose kernel holds limits of memory: as many at once as it has room for, and the others wait.

Containers hold none, so this is a virtual machine, and stand-ins that take as much memory as the real command lines do.
With ``AGENTINA_VM_LONG`` only: under emulation it takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import pytest

from agentina.protocol.states import State
from tests.vm import coding, host, lab, machine, programs, updating

pytestmark = updating.LONG

#: MiB that each may have, and that each takes; the host has 1,536 and needs some for itself.
EACH: Final = 512
TAKES: Final = 300
#: Those that there is room for, and all.
FIT: Final = 2
ALL: Final = 4
_PATIENCE: Final = 10 * host.PATIENCE
#: Takes the memory, and is the stand-in then.
_HEAVY: Final = f"""#!/bin/sh
python3 -c 'import time; taken = b"x" * ({TAKES} << 20); print(1, flush=True); time.sleep(1000)' > "$HOME/taken" &
until test -s "$HOME/taken"; do sleep 0.1; done
exec /usr/local/lib/light/claude
"""


@pytest.fixture(scope="module")
def coding_bench(new_machine: Callable[..., machine.Machine], run_lab: lab.Lab) -> Iterator[coding.Bench]:
    with coding.on(new_machine("agents"), run_lab) as made:
        programs.stand_in(made.there)
        made.there.run("mkdir /usr/local/lib/light; mv /usr/local/bin/claude /usr/local/lib/light")
        made.there.put(_HEAVY.encode(), "/usr/local/bin/claude", mode=0o755)
        yield made


def test_as_many_run_as_there_is_memory_for_and_the_others_wait(
    bench: coding.Bench, measured: Callable[[str], None]
) -> None:
    bench.begin_anew()
    bench.provider.scenario = "held"
    wish = programs.job("claude-code", resources={"memory": f"{EACH}MiB", "cpu": 0.1})
    jobs = [bench.submit(**wish) for _ in range(ALL)]
    host.wait_for(lambda: len(bench.provider.asked) >= FIT, "those that fit ask the model", seconds=_PATIENCE)
    assert len(bench.lab.units(bench.there)) == FIT
    waiting = [job for job in jobs if bench.lab.fleet.job(job).job.state is State.QUEUED]
    assert len(waiting) == ALL - FIT
    for job in waiting:
        assert f"It needs {EACH} MiB of memory; none of 1 agent" in bench.lab.fleet.answer("job", "show", job)
    bench.provider.scenario = "text"
    bench.provider.let_go()
    peaks = [coding.outcome_of(bench.ended(job, seconds=_PATIENCE)[0]).usage.memory_peak_bytes or 0 for job in jobs]
    assert "oom-kill" not in bench.there.run("journalctl -k --no-pager")
    measured(
        f"{FIT} agents at once, each limited to {EACH} MiB by the kernel, and {ALL - FIT} that waited: each took"
        f" {min(peaks) >> 20} to {max(peaks) >> 20} MiB"
    )
