"""Releases that damage who a host is: it is put back by the updater, by the rescue, and by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.vm import container, lab, updating

STATE = "/var/lib/agentina/default"
UPDATES = "/var/lib/agentina/.updates/default"
COPY = f"{UPDATES}/backup/identity.json"


@pytest.fixture(scope="module")
def site(
    new_container: Callable[..., container.Container], run_lab: lab.Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[updating.Site]:
    with updating.on(new_container("amnesiac"), run_lab, tmp_path_factory.mktemp("releases"), tasks=2) as made:
        made.set_times(soak=1)
        yield made


def who(site: updating.Site) -> str:
    return site.there.run(f"sha256sum {STATE}/identity {STATE}/license; stat -c '%U %a' {STATE}/identity")


def test_release_that_damages_it_on_trial(site: updating.Site) -> None:
    before = who(site)
    code, document = site.upgrade("9.7.1", "amnesia")
    assert code == 1, document
    site.wait_for_version(site.packaged)
    assert who(site) == before
    assert site.there.run(f"ls {STATE} | grep -c damaged").strip() == "1"
    assert site.there.run(f"stat -c '%U %a' {COPY} $(dirname {COPY})").split() == ["root", "600", "root", "2700"]
    site.check_untouched()


def test_release_that_damages_it_after_its_promotion(site: updating.Site) -> None:
    before = who(site)
    code, document = site.upgrade("9.7.2", "amnesia-later")
    assert code == 0, document
    site.wait_for_version(site.packaged)
    site.wait_for_report("rolled-back")
    assert who(site) == before
    assert "put back: identity" in site.status()["update"]["detail"]
    site.check_untouched()


def test_operator_puts_it_back(site: updating.Site) -> None:
    before = who(site)
    site.there.run(f"rm {STATE}/identity; systemctl restart agentina@default || true")
    said = site.there.run("agentina rollback --identity --yes 2>&1")
    site.wait_for_version(site.packaged)
    assert who(site) == before, said
    assert "Put back: identity" in said
    site.check_untouched()


def test_copy_is_deleted_after_seven_days(site: updating.Site) -> None:
    clean = "systemd-tmpfiles --clean agentina.conf"
    site.there.run(f"touch -d '6 days ago' {COPY} && {clean} && test -e {COPY}")
    site.there.run(f"touch -d '8 days ago' {COPY} && {clean} && ! test -e {COPY} && test -e {UPDATES}/journal.json")
    refused = site.there.try_run("agentina rollback --identity --yes")
    assert refused.returncode == 7, refused
    assert "IDENTITY_NOT_RESTORED" in refused.stderr
