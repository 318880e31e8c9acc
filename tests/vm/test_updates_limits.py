"""Releases on a host whose kernel holds limits, and whose clock is its own: a virtual machine.

A release that lets tasks take more memory than they may, one that takes more than it may itself, and a good one, each
with the wall clock a day off while it is on trial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.vm import host, lab, machine, updating

DAY: Final = 86_400
#: Of the daemon: it takes some 60 MiB, and more while it starts.
MEMORY: Final = "250M"


@pytest.fixture(scope="module")
def site(
    new_machine: Callable[..., machine.Machine], run_lab: lab.Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[updating.Site]:
    with updating.on(new_machine("limits"), run_lab, tmp_path_factory.mktemp("releases"), tasks=1) as made:
        made.set_times(soak=5, patience=120, memory=MEMORY)
        yield made


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [("generous", "limits-not-held", "a task limited to 48 MiB took"), ("leak", "out-of-memory", "oom-kill")],
)
def test_release_that_does_not_keep_to_memory_limits(site: updating.Site, fault: str, code: str, reason: str) -> None:
    exit_code, document = site.upgrade({"generous": "9.1.1", "leak": "9.1.2"}[fault], fault)
    assert exit_code == 1, document
    assert document["error"]["context"]["code"] == code, site.log()
    assert document["error"]["context"]["verdict"] == "bad"
    assert reason in document["error"]["message"]
    site.wait_for_version(site.packaged)
    site.check_untouched()


@pytest.mark.parametrize("days", [-1, 1])
def test_clock_that_jumps_during_a_trial(site: updating.Site, days: int) -> None:
    """Nothing is measured by it, and what the control plane signs is checked by its own time."""
    with site.upgrading("10.0.0") as upgrade:
        site.there.set_clock(days * DAY)
        try:
            assert upgrade.wait(host.PATIENCE) == 0, site.log()
        finally:
            site.there.set_clock(0)
    update = site.status()["update"]
    assert (update["state"], update["verdict"]) == ("promoted", "good")
    assert update["detail"] == "", "a task was seen to be held to its limit"
    site.check_untouched()
    site.there.run("agentina rollback --yes")
    site.wait_for_version(site.packaged)
