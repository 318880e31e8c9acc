from __future__ import annotations

from agentina.host.leaving import departure

SHUTDOWN = departure.Notice(reason="is shutting down", key="shutdown")
ADVICE = departure.Notice(reason="is at risk", key="rebalance 1", near=False)


def test_levels_of_sources_add_up_and_are_taken_back() -> None:
    leaving = departure.Departure()
    assert (leaving.reason, leaving.near) == ("", False)
    assert leaving.say(departure.CLOUD, ADVICE)
    assert not leaving.say(departure.CLOUD, ADVICE), "nothing new follows"
    assert (leaving.reason, leaving.near) == ("this host is at risk", False)
    assert leaving.say(departure.LOGIND, SHUTDOWN)
    assert (leaving.reason, leaving.near) == ("this host is at risk; this host is shutting down", True)
    assert leaving.say(departure.LOGIND, None)
    assert (leaving.reason, leaving.near) == ("this host is at risk", False)
    assert leaving.say(departure.CLOUD, None)
    assert not leaving.say(departure.CLOUD, None)
    assert leaving.reason == ""


def test_owner_may_work_on_under_a_mere_warning() -> None:
    leaving = departure.Departure()
    leaving.say(departure.CLOUD, ADVICE)
    leaving.dismiss()
    assert leaving.reason == ""
    assert not leaving.say(departure.CLOUD, ADVICE), "the same warning"
    another = departure.Notice(reason="is at risk", key="rebalance 2", near=False)
    assert leaving.say(departure.CLOUD, another)
    assert leaving.reason == "this host is at risk"


def test_nobody_works_on_a_host_that_goes_down() -> None:
    leaving = departure.Departure()
    leaving.say(departure.LOGIND, SHUTDOWN)
    leaving.dismiss()
    assert leaving.near
