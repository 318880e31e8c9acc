"""Releases on a host whose kernel holds limits, and whose clock is its own: a virtual machine.

A release that takes more memory than it may, one that lets tasks take more than they may, and a good one while the wall
clock jumps. Containers can show none of it: the build machine keeps the memory controller from them, and they share its
clock. An update takes two minutes under emulation, so only with ``AGENTINA_VM_LONG``; the rules are tested without a
host in tests/unit/host/test_trials.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import pytest

from agentina.protocol import states
from tests.vm import host, lab, machine, updating

pytestmark = updating.LONG

DAY: Final = 86_400
#: Of the daemon: it takes some 60 MiB, and more while it starts.
MEMORY: Final = "250M"
#: By fault: version, the reason that is recorded, and what is said.
BAD: Final = {
    "generous": ("9.1.1", "limits-not-held", "a task limited to 48 MiB took"),
    "leak": ("9.1.2", "out-of-memory", "oom-kill"),
}
GOOD: Final = "10.0.0"


@pytest.fixture(scope="module")
def site(
    new_machine: Callable[..., machine.Machine], run_lab: lab.Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[updating.Site]:
    with updating.on(new_machine("limits"), run_lab, tmp_path_factory.mktemp("releases"), tasks=1) as made:
        made.set_times(soak=5, patience=120, memory=MEMORY)
        yield made


@pytest.mark.parametrize("fault", BAD)
def test_release_that_does_not_keep_to_memory_limits(site: updating.Site, fault: str) -> None:
    version, reason, said = BAD[fault]
    exit_code, document = site.upgrade(version, fault)
    assert exit_code == 1, document
    assert document["error"]["context"]["code"] == reason, site.log()
    assert document["error"]["context"]["verdict"] == "bad"
    assert said in document["error"]["message"]
    site.check_left(version)


def test_clock_that_jumps_back_and_forth_during_a_trial(site: updating.Site) -> None:
    """Nothing is measured by it, and what the control plane signs is checked by its own time: the release is good."""
    with site.upgrading(GOOD) as upgrade:
        try:
            for days in (-1, 1):
                site.there.set_clock(days * DAY)
                site.lab.wait_online(site.there)
                assert site.status()["version"] == GOOD
            assert upgrade.wait(host.PATIENCE) == 0, site.log()
        finally:
            site.there.set_clock(0)
    site.wait_for_version(GOOD)
    update = site.status()["update"]
    assert (update["state"], update["verdict"]) == ("promoted", "good")
    assert update.get("detail", "") == "", "a task was seen to be held to its limit"
    assert GOOD not in {skip["version"] for skip in site.journal()["skipped"]}
    site.check_untouched()
    (view,) = [site.lab.fleet.job(job) for job in site.jobs]
    assert (view.job.state, len(view.tasks)) == (states.State.RUNNING, 1), "no lease was lost"
    site.go_back()
