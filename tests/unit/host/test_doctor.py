from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentina import errors
from agentina.host.instance import doctor, identity, service
from agentina.system import clock, paths, services
from tests.fakes import scripted_server, systemctl

OK, WARN, FAIL = doctor.Verdict.OK, doctor.Verdict.WARN, doctor.Verdict.FAIL


@pytest.fixture
def serve() -> Iterator[list[scripted_server.ScriptedServer]]:
    started: list[scripted_server.ScriptedServer] = []
    yield started
    for server in started:
        server.close()


def test_fresh_root_is_fit_to_install(tmp_path: Path) -> None:
    checks = list(doctor.examine_host(paths.Layout(tmp_path / "new").instance("default")))
    doctor.require(checks)
    assert not (tmp_path / "new").exists(), "looking changes nothing"
    assert all(check.remedy for check in checks if check.verdict is not OK)


def test_unwritable_root_fails_with_its_remedy() -> None:
    check = doctor.check_writable(paths.Layout(Path("/proc")).instance("default"))
    # /proc takes no new directories from anybody, though access(2) tells root that it would
    assert check.verdict in {OK, FAIL}
    file_in_the_way = doctor.check_writable(paths.Layout(Path("/etc/hostname")).instance("default"))
    assert file_in_the_way.verdict is FAIL
    assert "--root" in file_in_the_way.remedy


def test_root_too_deep_for_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    assert doctor.check_socket_path(paths.Layout(deep).instance("default")).verdict is FAIL


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("MemAvailable: 8000000 kB\n", OK), ("MemAvailable: 1000 kB\n", WARN), ("MemTotal: 1 kB\n", WARN)],
)
def test_memory(text: str, verdict: doctor.Verdict, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(text)
    assert doctor.check_memory(tmp_path / "meminfo").verdict is verdict


@pytest.mark.parametrize(
    ("said", "verdict"), [("git version 2.39.5", OK), ("git version 2.17.1", WARN), ("nonsense", WARN)]
)
def test_git_version(said: str, verdict: doctor.Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentina.system.children.run", lambda _: (0, said))
    assert doctor.check_git().verdict is verdict


def test_no_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_git().verdict is WARN


def test_cgroup(tmp_path: Path) -> None:
    own = tmp_path / "self"
    own.write_text("0::/user\n")
    assert doctor.check_cgroup(tmp_path, own).verdict is WARN
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "user").mkdir()
    assert doctor.check_cgroup(tmp_path, own).verdict is WARN
    (tmp_path / "user/cgroup.procs").touch()
    assert doctor.check_cgroup(tmp_path, own).verdict is OK


def test_pressure(tmp_path: Path) -> None:
    assert doctor.check_pressure(tmp_path).verdict is WARN
    (tmp_path / "memory").touch()
    assert doctor.check_pressure(tmp_path).verdict is OK


@pytest.mark.parametrize(
    ("content", "verdict", "words"),
    [
        (None, FAIL, "No such file"), ("providerz: []", FAIL, "providerz"), ("networks: [here]", FAIL, "networks"),
        ("providers: [{name: a, api: anthropic, url: 'http://a.example', credentials: [a]}]", FAIL, "https"),
        ("providers: [{name: a, api: anthropic, url: 'https://a.example', credentials: [a]}]", OK, "valid"),
        ("providers: [{name: a, api: anthropic, url: 'https://a.example', credentials: [a, b]}]", FAIL, "no key b"),
    ],
)  # fmt: skip
def test_gateway(tmp_path: Path, content: str | None, verdict: doctor.Verdict, words: str) -> None:
    path = tmp_path / "gateway.yaml"
    if content is not None:
        path.write_text(content)
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/a").write_text("key")
    check = doctor.check_gateway(path, paths.Layout(tmp_path).instance("default"))
    assert check.verdict is verdict
    assert words in check.message
    assert verdict is OK or check.remedy


PROVIDERS = "providers: [{name: a, api: anthropic, url: 'https://a.example', credentials: [a, b]}]"


def test_keys_that_systemd_is_to_hand_over_are_known_without_a_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(PROVIDERS)
    units = systemctl.Systemctl(tmp_path, monkeypatch)
    units.put(credentials=["LoadCredentialEncrypted=a:/etc/agentina/a.sealed", "LoadCredential=b:/etc/agentina/b"])
    monkeypatch.setattr(service, "is_managed", lambda _: True)
    check = doctor.check_gateway(path, paths.Layout(tmp_path).instance("default"))
    assert check.verdict is OK
    assert "systemd is to hand over a, b" in check.message
    units.put(credentials=["LoadCredential=b:/etc/agentina/b", "LoadCredential="])
    assert doctor.check_gateway(path, paths.Layout(tmp_path).instance("default")).verdict is FAIL


@pytest.mark.parametrize(
    ("problems", "verdict", "words"),
    [
        ([], OK, "the daemon can use it and its keys"),
        ([{"code": "GATEWAY_UNUSABLE", "message": "no key b", "remedy": "Mend it."}], FAIL, "no key b"),
    ],
)
def test_the_daemon_s_word_on_keys_counts(
    problems: list[dict[str, str]],
    verdict: doctor.Verdict,
    words: str,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(PROVIDERS)
    monkeypatch.setattr("agentina.client.local.ask", lambda *_: {"problems": problems})
    check = doctor.check_gateway(path, paths.Layout(tmp_path).instance("default"))
    assert check.verdict is verdict
    assert words in check.message


@pytest.mark.parametrize(
    ("told", "verdict", "words"),
    [
        ("100000", OK, ""),
        ("100500", OK, ""),
        ("200000", WARN, "behind"),
        ("10000", WARN, "ahead"),
        ("", WARN, ""),
        ("soon", WARN, ""),
        ("\u00b2", WARN, ""),
        ("9" * 5000, WARN, ""),
    ],
)
def test_clock_difference_counts_only_beyond_the_request(told: str, verdict: doctor.Verdict, words: str) -> None:
    check = doctor.check_clock(told, 99_000, 101_000)
    assert check.verdict is verdict
    assert words in check.message


def test_control_plane_and_its_clock(serve: list[scripted_server.ScriptedServer]) -> None:
    now = str(clock.SystemClock().wall_ms())
    serve.append(scripted_server.ScriptedServer(scripted_server.answer({}, headers={"Agentina-Time": now})))
    assert [check.verdict for check in doctor.check_control_plane(serve[0].url, "")] == [OK, OK]


@pytest.mark.parametrize("url", ["http://elsewhere.example.com", "nonsense"])
def test_bad_address_is_a_failed_check(url: str) -> None:
    (check,) = doctor.check_control_plane(url, "")
    assert check.verdict is FAIL


def test_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    assert doctor.check_policy(path).verdict is OK
    path.write_text("executabels: [git]\n")
    check = doctor.check_policy(path)
    assert check.verdict is FAIL
    assert "executables" in check.message


def test_unfinished_activation_says_how_to_go_on(tmp_path: Path) -> None:
    check = doctor.check_identity(paths.Layout(tmp_path).instance("default"))
    assert check.verdict is FAIL
    assert "install" in check.remedy


def test_requirement_names_all_that_failed() -> None:
    checks = [
        doctor.ok("a", "x"),
        doctor.fail("b", "y.", "do y"),
        doctor.warn("c", "z", "z"),
        doctor.fail("d", "w.", "do w"),
    ]
    with pytest.raises(errors.AgentinaError) as caught:
        doctor.require(checks)
    assert caught.value.entry is errors.PRECONDITION_FAILED
    for part in ("b: y.", "do y", "d: w.", "do w"):
        assert part in caught.value.message
    assert "z" not in caught.value.message


@pytest.mark.parametrize(
    ("controllers", "verdict"),
    [(None, FAIL), ("cpuset cpu io memory hugetlb pids rdma misc", OK), ("cpuset cpu pids", WARN), ("", WARN)],
)
def test_controllers(tmp_path: Path, controllers: str | None, verdict: doctor.Verdict) -> None:
    if controllers is not None:
        (tmp_path / "cgroup.controllers").write_text(f"{controllers}\n")
    check = doctor.check_controllers(tmp_path)
    assert check.verdict is verdict
    assert ("without the controllers io, memory." in check.message) == (controllers == "cpuset cpu pids")


def test_package_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "USER", "no-such-user-here")
    assert doctor.check_package(tmp_path).verdict is FAIL
    monkeypatch.setattr(services, "USER", "root")
    assert "the system bus" in doctor.check_package(tmp_path).message
    for path in ("lib/systemd/system/agentina-task@.service", "usr/share/polkit-1/rules.d/50-agentina.rules"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    (tmp_path / "run/dbus").mkdir(parents=True)
    (tmp_path / "run/dbus/system_bus_socket").touch()
    assert doctor.check_package(tmp_path).verdict is OK
    monkeypatch.setattr(services, "has_rule", lambda _: None)
    assert doctor.check_package(tmp_path).verdict is WARN


def test_release_link(tmp_path: Path) -> None:
    instance = paths.Layout(tmp_path).instance("default")
    assert doctor.check_release(instance).verdict is OK
    instance.release.parent.mkdir(parents=True)
    instance.release.symlink_to("../releases/2.0")
    assert doctor.check_release(instance).verdict is WARN
    (tmp_path / "opt/agentina/releases/2.0").mkdir(parents=True)
    assert doctor.check_release(instance) == doctor.ok("release", "Bound to 2.0.")


def test_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd = systemctl.Systemctl(tmp_path, monkeypatch)
    instance = paths.Layout(tmp_path).instance("default")
    assert "systemctl start agentina@default.service" in doctor.check_unit(instance).remedy
    systemd.put(active=["agentina@default.service"])
    assert "does not start at boot" in doctor.check_unit(instance).message
    systemd.put(active=["agentina@default.service"], enabled=["agentina@default.service"])
    assert doctor.check_unit(instance).verdict is OK


def test_who_looks_at_a_service_need_not_be_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = paths.Layout(Path("/etc/hostname")).instance("default")
    monkeypatch.setattr(service, "is_managed", lambda _: True)
    assert doctor.check_writable(instance).verdict is FAIL, "it is about to be installed"
    check = doctor.check_writable(instance, installed=True)
    assert (check.verdict, check.remedy) == (WARN, "Run `sudo agentina doctor` to have this looked at, too.")


def test_what_may_not_be_read_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = paths.Layout(tmp_path).instance("default")

    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(identity, "load", refuse)
    check = doctor.check_identity(instance)
    assert (check.verdict, "sudo" in check.remedy) == (WARN, True)
