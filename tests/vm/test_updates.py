"""Releases that are good, and releases that are bad in every way, on a host whose tasks must not notice.

Each release is a real one of this checkout with a fault built in (:mod:`tests.vm.variants`), published in a real
repository that the control plane serves. After each attempt the host runs what it ran before, by itself; the reason is
recorded; the tasks are the same processes.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentina import errors
from agentina.protocol import api, states
from tests.vm import container, host, lab, updating, variants

#: Tasks that run through an upgrade and a rollback; those that are left for what comes after; how they end.
TASKS, LEFT, EXIT_CODE = 20, 3, 7
GOOD = "10.0.0"
#: Versions by fault.
BAD = {fault: f"9.1.{number}" for number, fault in enumerate(variants.FAULTS)}
#: Faults that are over before the end of the trial: what is expected, and what makes it quick.
ON_TRIAL = [
    ("smoke", "smoke check failed", {}),
    ("no-start", "did not start", {}),
    ("exit-0", "ended by itself", {}),
    ("crash", "crashed", {}),
    pytest.param("crash-late", "crashed", {"soak": 90}, marks=updating.LONG),
    ("hang", "did not become ready", {"start": 6}),
    ("watchdog", "watchdog", {"watchdog": 3}),
    ("mute", "did not reach the control plane", {"patience": 4}),
    ("forgetful", "did not adopt", {}),
    ("breaks-state", "crashed", {}),
]


@pytest.fixture(scope="module")
def shared(
    new_container: Callable[..., container.Container], run_lab: lab.Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[updating.Site]:
    with updating.on(new_container("updated"), run_lab, tmp_path_factory.mktemp("releases"), tasks=TASKS) as made:
        yield made


@pytest.fixture
def site(shared: updating.Site, request: pytest.FixtureRequest) -> Iterator[updating.Site]:
    """The one host of these tests, in the state that all of them begin and end with."""
    assert not shared.is_lost, "a test before failed, and the host could not be brought back"
    before = request.session.testsfailed
    yield shared
    if request.session.testsfailed > before:
        shared.is_lost = True
        shared.settle()
        shared.is_lost = False


def test_twenty_tasks_go_on_through_upgrade_and_rollback(site: updating.Site, measured: Callable[[str], None]) -> None:
    """The same processes; each piece of output once; the right results. Few of them stay for the other tests."""
    site.set_times(soak=1)
    with site.absences() as absences:
        assert site.upgrade(GOOD)[0] == 0
        site.wait_for_version(GOOD)
        site.go_back()
    site.check_untouched()
    away = " and ".join(f"{gap:.2f} s" for gap in absences)
    measured(f"{TASKS} tasks through an upgrade and a rollback: the daemon was away for {away} in a container")
    for job in site.finish_tasks(TASKS - LEFT):
        view = site.lab.fleet.job(job)
        assert (view.job.state, view.job.reason) == (states.State.FAILED, states.Reason.EXIT_NONZERO), view.job
        (task,) = view.tasks
        assert task.outcome is not None
        assert task.outcome.exit_code == EXIT_CODE
        (start, pid), *lines, (end,) = (line.split() for line in site.lab.fleet.output(job).decode().splitlines())
        assert (start, end) == ("start", "end")
        assert lines == [[pid, str(number)] for number in range(1, len(lines) + 1)]


@pytest.mark.parametrize(("fault", "reason", "times"), ON_TRIAL)
def test_bad_release_never_stays(site: updating.Site, fault: str, reason: str, times: dict[str, Any]) -> None:
    site.set_times(**times)
    code, document = site.upgrade(BAD[fault], fault)
    assert code == 1, document
    assert reason in document["error"]["message"], site.log()
    assert document["error"]["context"]["verdict"] == "bad"
    # Those that it forgot as well: a control plane that hears nothing of them waits for the end of their leases.
    site.check_left(BAD[fault])
    if fault == "crash":
        check_anomaly(site, BAD[fault])


def check_anomaly(site: updating.Site, version: str) -> None:
    """The control plane has it, with what the release wrote."""

    client = site.lab.fleet.client

    def find() -> api.AnomalyReport | None:
        listed = client.list_anomalies({"kind": "release"}).anomalies
        reports = [report for one in listed for report in client.get_anomaly(one.id).reports]
        return next((one for one in reports if one.release == version), None)

    report = host.wait_for(find, f"the control plane has the anomaly of {version}")
    assert report.evidence["reason"] == "crashed"
    assert f"agentina {version} is ready" in report.evidence["log"]


# --- after the trial -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"), [("deaf", "did not end when it was told to"), ("second-start", "did not start")]
)
def test_release_that_shows_its_fault_while_it_is_promoted(site: updating.Site, fault: str, reason: str) -> None:
    site.set_times(soak=1, stop=3)
    code, document = site.upgrade(BAD[fault], fault)
    assert code == 1, document
    assert reason in document["error"]["message"], site.log()
    site.check_left(BAD[fault])


def test_release_that_crashes_after_its_promotion_is_left(site: updating.Site) -> None:
    site.set_times(soak=1)
    code, document = site.upgrade(BAD["later"], "later")
    assert code == 0, document
    site.wait_for_version(site.packaged)
    site.wait_for_report("rolled-back")
    update = site.status()["update"]
    assert (update["verdict"], update["reason"]) == ("bad", "start-failure")
    assert "did not start" in update["detail"]
    site.check_left(BAD["later"])
    code, document = site.upgrade(BAD["later"])
    assert document["error"]["code"] == "RELEASE_SKIPPED"


def test_package_runs_when_the_new_and_the_previous_release_are_broken(site: updating.Site) -> None:
    """Both are on the disk; no updater ever let them in."""
    site.set_times()
    for fault in ("second-start", "later"):
        site.there.run(
            f"test -d /opt/agentina/releases/{BAD[fault]} && touch /var/lib/agentina/default/was-here-{BAD[fault]}"
        )
    site.there.run(
        f"ln -sfn ../releases/{BAD['second-start']} /opt/agentina/instances/default; "
        f"ln -sfn ../releases/{BAD['later']} /opt/agentina/previous/default; "
        "systemctl restart --no-block agentina@default"
    )
    site.there.wait("! test -e /opt/agentina/instances/default", "both were left")
    site.wait_for_version(site.packaged)
    site.check_untouched()


def test_good_release_stays_and_an_operator_goes_back(site: updating.Site, measured: Callable[[str], None]) -> None:
    site.set_times(soak=1)
    site.publish(GOOD)
    found = json.loads(site.there.try_run("agentina upgrade --check --json").stdout)
    assert found["available"]["version"] == GOOD, "the newest"
    with site.absences() as absences:
        assert site.upgrade(GOOD)[0] == 0
    measured(f"upgrade: the daemon was away for {' and '.join(f'{gap:.2f} s' for gap in absences)} in a container")
    assert site.version() == GOOD
    site.check_untouched()
    update = site.status()["update"]
    assert (update["version"], update["state"], update["verdict"]) == (GOOD, "promoted", "good")
    assert "not provable here: memory limits" in update["detail"], "they do not hold in a container"
    listed = json.loads(site.there.run("agentina release list --json"))["releases"]
    assert [one["version"] for one in listed if one["runs"]] == [GOOD]
    with site.absences() as absences:
        site.go_back()
    measured(f"rollback: the daemon was away for {' and '.join(f'{gap:.2f} s' for gap in absences)} in a container")
    site.check_untouched()
    assert site.there.try_run("agentina rollback --yes").returncode == 6, "there is nothing further to go back to"


# --- during the trial ----------------------------------------------------------------------------------------------


def test_trial_in_all_weathers(site: updating.Site, package: Path, next_package: Path) -> None:
    """A second wish, an updater that is killed, an upgrade of the package: the trial goes on, and is good.

    The host is taken back by no package, and has another one to go back to.
    """
    site.set_times(soak=10)
    with site.upgrading("9.2.0") as upgrade:
        assert site.upgrade("9.2.0")[1]["error"]["code"] == "STATE_CONFLICT"
        site.there.run("systemctl kill --signal=KILL agentina-update@default")
        lab.install_package(site.there, next_package)
        assert upgrade.wait(host.PATIENCE) == 0, site.log()
    assert site.version() == "9.2.0"
    site.check_untouched()
    site.there.run("agentina rollback --yes")
    site.wait_for_version(lab.NEXT)
    assert site.upgrade("9.2.0")[0] == 0
    lab.install_package(site.there, package)
    assert site.version() == "9.2.0", "a host that updated itself is not taken back"
    site.go_back()
    site.check_untouched()


def test_unit_files_of_a_release_mean_nothing(site: updating.Site) -> None:
    """Units are the package's: broken ones in a release are files like others, and the release is good."""
    site.set_times(soak=1)
    look = "systemctl cat agentina@default agentina-trial@default; systemctl show -P NeedDaemonReload agentina@default"
    before = site.there.run(look)
    assert site.upgrade("9.8.0", "units")[0] == 0
    site.there.run("systemctl daemon-reload")
    assert site.there.run(look) == before
    site.go_back()
    site.check_untouched()


def test_updater_killed_again_and_again(site: updating.Site) -> None:
    """Wherever it is, the next one goes on; only a trial that was never begun leaves the release undecided."""
    site.set_times(soak=1)
    site.publish("9.5.0")
    choose = random.Random(5)
    upgrade = site.there.start("agentina upgrade 9.5.0 --yes")
    for _ in range(8):
        time.sleep(choose.uniform(0, 0.8))
        site.there.try_run("systemctl kill --signal=KILL agentina-update@default")
    upgrade.communicate(timeout=host.PATIENCE)
    update = site.status()["update"]
    assert (update["state"], update["verdict"]) in {("promoted", "good"), ("rolled-back", "inconclusive")}
    site.wait_for_version("9.5.0" if update["state"] == "promoted" else site.packaged)
    assert site.there.try_run("systemctl is-active agentina-trial@default").stdout.strip() == "inactive"
    site.check_untouched()
    site.there.try_run("agentina rollback --yes")
    site.wait_for_version(site.packaged)


class _Busy(http.server.BaseHTTPRequestHandler):
    """Answers everything with 429."""

    def do_GET(self) -> None:
        content = json.dumps(errors.to_wire(errors.OVERLOADED(what="a test", retry_after=1))).encode()
        self.send_response(429)
        self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def busy(run_lab: lab.Lab) -> Iterator[str]:
    """The address of a control plane that wants to be left alone."""
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), _Busy)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(run_lab.certificate, run_lab.certificate.with_name("key.pem"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://10.0.2.2:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def elsewhere(site: updating.Site, url: str) -> Iterator[None]:
    """The host looks for its control plane at another address, from the next start on."""
    path = "/etc/agentina/default.yaml"
    before = site.there.get(path)
    assert site.lab.url.encode() in before
    site.there.put(before.replace(site.lab.url.encode(), url.encode()), path)
    try:
        yield
    finally:
        site.there.put(before, path)
        site.there.run("systemctl restart agentina@default")


@contextlib.contextmanager
def away(site: updating.Site, how: str) -> Iterator[None]:
    """The control plane is away from the host."""
    if how == "cable":
        site.there.set_network(up=False)
        try:
            yield
        finally:
            site.there.set_network(up=True)
    elif how == "name":
        with elsewhere(site, "https://control-plane.invalid:8443"):
            yield
    else:
        with busy(site.lab) as url, elsewhere(site, url):
            yield


@pytest.mark.parametrize("how", ["cable", "name", "busy"])
def test_control_plane_away_says_nothing_about_the_release(site: updating.Site, how: str) -> None:
    site.set_times(soak=1, patience=3)
    site.there.run("rm -f /run/agentina-goes")
    with site.upgrading("9.7.0", "slow", trial="activating") as upgrade, away(site, how):
        site.there.run("touch /run/agentina-goes")
        code = upgrade.wait(host.PATIENCE)
    assert code == 1
    site.wait_for_version(site.packaged)
    update = site.status()["update"]
    assert (update["verdict"], update["reason"]) == ("inconclusive", "control-plane-away")
    assert "9.7.0" not in {skip["version"] for skip in site.journal()["skipped"]}
    site.check_untouched()


def test_no_room_says_nothing_about_the_release(site: updating.Site) -> None:
    site.set_times(soak=1)
    site.publish("9.6.0")
    # Journals fit, and the archive; not the release.
    site.there.run("fallocate -l $(( $(stat -f -c '%a*%S' /) - (40 << 20) )) /.filler.update")
    try:
        code, document = site.upgrade("9.6.0")
    finally:
        site.there.free_disk()
    assert code == 1, document
    assert document["error"]["context"]["verdict"] == "inconclusive"
    assert "no room" in document["error"]["message"]
    assert site.version() == site.packaged
    site.check_untouched()


def test_operator_ends_a_trial(site: updating.Site) -> None:
    site.set_times()
    with site.upgrading("9.3.0") as upgrade:
        site.there.run("agentina rollback --yes")
        assert upgrade.wait(host.PATIENCE) == 1
    site.wait_for_version(site.packaged)
    assert site.status()["update"]["reason"] == "operator"
    site.check_untouched()


def test_rollout_that_is_halted_ends_a_trial(site: updating.Site) -> None:
    """Which would last longer than anybody here waits."""
    site.set_times(soak=3 * host.PATIENCE, patience=3 * host.PATIENCE)
    with site.upgrading("9.3.0") as upgrade:
        site.wish(b'{"id": "roll_w.1", "action": "rollback", "version": "9.3.0"}')
        assert upgrade.wait(host.PATIENCE) == 1
    site.wait_for_version(site.packaged)
    update = site.status()["update"]
    assert (update["state"], update["verdict"], update["reason"]) == ("rolled-back", "inconclusive", "rollout")
    site.check_untouched()


# --- a daemon's wish -----------------------------------------------------------------------------------------------


def test_order_of_the_control_plane_is_obeyed_once(site: updating.Site) -> None:
    """Also when it comes again during the trial, and after it."""
    site.set_times(soak=5)
    site.publish("9.4.0")
    site.wish(b"{}")
    site.wish(b'{"id": "roll_x.1", "action": "upgrade", "version": "0.0.1"}')
    site.wait_for_report("refused")
    order = b'{"id": "roll_x.2", "action": "upgrade", "version": "9.4.0"}'
    site.wish(order)
    site.wait_for_trial("9.4.0")
    site.wish(order)
    site.wait_for_report("promoted")
    assert site.version() == "9.4.0"
    site.wish(order)
    updates = [site.journal()["update"], *site.journal()["history"]]
    assert [update["id"] for update in updates if update["version"] == "9.4.0"] == ["roll_x.2"]
    site.wish(b'{"id": "roll_x.3", "action": "rollback", "version": "9.4.0"}')
    site.wait_for_report("rolled-back")
    site.wait_for_version(site.packaged)
    site.check_untouched()


# --- the end: tasks end with the host ------------------------------------------------------------------------------


def test_power_cut_on_trial_boots_what_ran_before(site: updating.Site) -> None:
    site.set_times()
    with site.upgrading("9.3.0") as upgrade:
        site.there.cut()
        upgrade.wait(host.PATIENCE)
    site.there.boot()
    site.wait_for_version(site.packaged)
    site.wait_for_report("rolled-back")
    assert site.status()["update"]["reason"] == "interrupted"


def test_uninstall_during_a_trial_leaves_nothing_running(shared: updating.Site) -> None:
    there = shared.there
    shared.set_times()
    with shared.upgrading("9.3.0") as upgrade:
        there.run("agentina uninstall --force --purge")
        upgrade.wait(host.PATIENCE)
    assert there.run("systemctl list-units --plain --no-legend --state=active 'agentina*@default*' || true") == ""
    assert there.run("ls -A /opt/agentina/instances /opt/agentina/trials /var/lib/agentina/.updates").split() == [
        "/opt/agentina/instances:", "/opt/agentina/trials:", "/var/lib/agentina/.updates:",
    ]  # fmt: skip
