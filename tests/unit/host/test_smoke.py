from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from agentina.host.instance import outbox
from agentina.host.instance.doctor import Verdict
from agentina.host.updating import smoke
from agentina.system import paths
from tests.fakes import control

TASK = "job_0000000000000001.1"


@pytest.fixture
def instance(tmp_path: Path) -> paths.InstancePaths:
    return control.FakeControl().install(tmp_path)


def failed(instance: paths.InstancePaths) -> list[str]:
    return [check.name for check in smoke.examine(instance) if check.verdict is Verdict.FAIL]


def everything(instance: paths.InstancePaths) -> dict[Path, str]:
    files = (path for path in instance.layout.root.rglob("*") if path.is_file() and path.suffix != ".db-shm")
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


async def test_release_that_understands_all_there_is(instance: paths.InstancePaths) -> None:
    assert failed(instance) == [], "also before the first daemon ran"
    box = await outbox.Outbox.open(instance.outbox)
    box.hold(TASK, b"record")
    await box.report(TASK, "accepted")
    before = everything(instance)
    checks = {check.name: check.message for check in smoke.examine(instance)}
    assert checks["outbox"] == "1 report to send, 1 task held", "beside a daemon that runs"
    assert everything(instance) == before
    await box.close()
    assert failed(instance) == [], "after it ended"
    assert everything(instance).keys() <= before.keys(), "nothing new either"


@pytest.mark.parametrize(
    ("name", "content", "check"),
    [
        ("etc/agentina/default.yaml", b"control_plane: https://x\nno_such_key: 1\n", "configuration"),
        ("etc/agentina/default.yaml", b"control_plane: https://x\nupdate_window: always\n", "configuration"),
        ("var/lib/agentina/default/identity", b"{", "identity"),
        ("var/lib/agentina/default/license", b"{}", "identity"),
        ("var/lib/agentina/default/outbox/outbox.db", b"not a database", "outbox"),
        (f"var/lib/agentina/default/tasks/{TASK}/job.json", b"{}", "tasks"),
    ],
)
def test_what_is_not_understood_is_named(instance: paths.InstancePaths, name: str, content: bytes, check: str) -> None:
    path = instance.layout.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert check in failed(instance)


def test_module_that_cannot_be_imported(instance: paths.InstancePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        if name == "agentina.host.follow":
            raise ImportError("no module named libfoo")

    monkeypatch.setattr("agentina.host.updating.smoke.importlib.import_module", broken)
    assert failed(instance) == ["modules"]


def test_instance_that_is_not_activated(tmp_path: Path) -> None:
    assert {"configuration", "identity"} <= set(failed(paths.Layout(tmp_path).instance("default")))
