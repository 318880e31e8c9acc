"""What the package's base puts back of who a host is, and what it leaves alone."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agentina.host.instance import identity
from agentina.host.updating import backups
from agentina.protocol import signing
from agentina.system import paths
from agentina_base import restoring

WHO = identity.Identity(seed=base64.b64encode(bytes(range(32))).decode(), agent_id="agent-1", organization="acme")
OTHER = msgspec.structs.replace(WHO, seed=base64.b64encode(bytes(32)).decode(), agent_id="agent-2")
UNDER_WAY = msgspec.structs.replace(OTHER, agent_id="", pending_token_sha256="0" * 64)
LICENSE = signing.Signed(key_id="key-1", payload="{}", signature="c2ln")
NEWER = signing.Signed(key_id="key-1", payload='{"newer":1}', signature="c2ln")
DAMAGE = [
    None,
    b"",
    b"{",
    b"[]",
    b'{"seed":"AAAA","agent_id":"x"}',
    b'{"seed":1,"agent_id":"x"}',
    b"\xff\xff",
    b"[" * 9000,
]


class Bench:
    """A host's files with a copy as the updater takes it."""

    def __init__(self, root: Path) -> None:
        self.instance = paths.Layout(root).instance("default")
        self.instance.updates.mkdir(parents=True)
        self.instance.layout.restore_program.parent.mkdir(parents=True)
        self.instance.layout.restore_program.touch()
        identity.save(self.instance, WHO)
        identity.save_license(self.instance, LICENSE)
        assert backups.keep(self.instance, version="0.5.0", wall_ms=1)

    @property
    def copy(self) -> bytes:
        return self.instance.identity_copy.read_bytes()

    def write(self, *, always: bool = False) -> list[str]:
        return restoring.write(self.instance.state, self.copy, always=always)

    def put(self, path: Path, content: bytes | None) -> None:
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    def who(self) -> identity.Identity | None:
        return identity.load(self.instance)

    def aside(self) -> list[Path]:
        return sorted(self.instance.state.glob("identity.damaged-*"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_is_whole_is_left_alone(bench: Bench) -> None:
    before = bench.instance.identity.stat().st_ino
    assert bench.write() == []
    assert bench.write(always=True) == []
    assert bench.instance.identity.stat().st_ino == before


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("content", DAMAGE)
def test_damaged_identity_is_put_back(bench: Bench, content: bytes | None, *, always: bool) -> None:
    bench.put(bench.instance.identity, content)
    identity.save_license(bench.instance, NEWER)
    assert bench.write(always=always) == ["identity"], "a whole license is newer than the copy"
    assert bench.who() == WHO
    assert json.loads(bench.instance.license.read_bytes())["payload"] == NEWER.payload
    assert stat.S_IMODE(bench.instance.identity.stat().st_mode) == 0o600
    assert [path.read_bytes() for path in bench.aside()] == ([] if content is None else [content])
    assert bench.write() == []


@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_license_is_put_back_with_it_or_alone(bench: Bench, content: bytes | None) -> None:
    bench.put(bench.instance.license, content)
    assert bench.write() == ["license"]
    bench.put(bench.instance.license, content)
    bench.put(bench.instance.identity, b"{")
    assert bench.write() == ["license", "identity"]
    assert json.loads(bench.instance.license.read_bytes())["key_id"] == LICENSE.key_id


@pytest.mark.parametrize("who", [OTHER, UNDER_WAY], ids=["another-agent", "activation-under-way"])
def test_who_the_host_is_by_now_stays_unless_an_operator_says_so(bench: Bench, who: identity.Identity) -> None:
    identity.save(bench.instance, who)
    assert bench.write() == []
    assert bench.who() == who
    assert bench.write(always=True) == ["license", "identity"]
    assert bench.who() == WHO
    assert [identity.understand(path.read_bytes()) for path in bench.aside()] == [who], "nothing is lost by it"


def test_few_are_kept_aside(bench: Bench) -> None:
    for number in range(6):
        bench.instance.identity.write_bytes(b"%d" % number)
        bench.write()
    assert [path.read_bytes() for path in bench.aside()] == [b"3", b"4", b"5"]


@pytest.mark.parametrize("trap", ["link", "directory", "fifo"])
def test_what_is_no_file_counts_as_damaged_and_goes_nowhere(bench: Bench, tmp_path: Path, trap: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    bench.instance.identity.unlink()
    if trap == "link":
        bench.instance.identity.symlink_to(victim)
    elif trap == "directory":
        bench.instance.identity.mkdir()
    else:
        os.mkfifo(bench.instance.identity)
    assert bench.write() == ["identity"]
    assert bench.who() == WHO
    assert victim.read_text() == "untouched"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b'{"files":{"identity":"!"}}', b'{"files":[]}', b"x" * (257 << 10)]
)
def test_copy_that_is_none_replaces_nothing(bench: Bench, content: bytes) -> None:
    bench.put(bench.instance.identity, b"{")
    with pytest.raises(restoring.RestoringError):
        restoring.write(bench.instance.state, content, always=True)
    assert bench.instance.identity.read_bytes() == b"{"


def test_a_cut_at_every_step_leaves_something_that_is_put_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that changes the disk is the last one, in turn."""

    class Cut(BaseException):
        pass

    names = ["open", "fsync", "link"]
    real = {name: getattr(os, name) for name in names} | {"replace": Path.replace}
    cuts = 0
    while True:
        left = [cuts]

        def cutting(name: str, left: list[int] = left) -> object:
            def call(*given: object, **named: object) -> object:
                if name == "open" and not int(given[1]) & os.O_CREAT:  # type: ignore[call-overload]
                    return real[name](*given, **named)
                if left[0] == 0:
                    raise Cut
                left[0] -= 1
                return real[name](*given, **named)

            return call

        bench.put(bench.instance.identity, b"{")
        bench.put(bench.instance.license, b"{")
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(os, name, cutting(name))
            patch.setattr(Path, "replace", cutting("replace"))
            try:
                bench.write()
                done = True
            except Cut:
                done = False
        assert restoring.agent(bench.instance.identity.read_bytes()) in {None, (WHO.seed, WHO.agent_id)}
        bench.write()
        assert bench.who() == WHO
        if done:
            break
        cuts += 1
    assert cuts >= 8


def test_roots_part_looks_before_it_starts_anything(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> list[str]:
        raise AssertionError("nothing is damaged")

    monkeypatch.setattr(restoring, "_hand_over", nothing)
    state = bench.instance.layout.state_directory
    assert restoring.restore(state, "default", always=False) == []
    bench.instance.identity.write_bytes(b"{")
    bench.instance.identity_copy.unlink()
    assert restoring.restore(state, "default", always=False) == [], "what is there may be all there is"
    with pytest.raises(restoring.RestoringError, match="no copy"):
        restoring.restore(state, "default", always=True)


def test_roots_part_hands_the_copy_to_a_process_with_the_daemons_rights(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    # systemd-run as far as it matters here: the last words are the command.
    script = (
        f"import os, runpy, sys\nopen({str(tmp_path / 'argv')!r}, 'w').write(repr(sys.argv))\n"
        f"sys.path.insert(0, {str(Path(restoring.__file__).parents[1])!r})\n"
        "from agentina_base import restoring\n"
        f"restoring.STATE = {str(bench.instance.layout.state_directory)!r}\n"
        "sys.exit(restoring.main(sys.argv[sys.argv.index(restoring.PROGRAM) + 1:]))\n"
    )
    program = programs / "systemd-run"
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    bench.put(bench.instance.identity, b"{")
    assert restoring.restore(bench.instance.layout.state_directory, "default", always=False) == ["identity"]
    assert bench.who() == WHO
    arguments = (tmp_path / "argv").read_text()
    assert "User=agentina" in arguments
    assert WHO.seed not in arguments, "keys are no arguments"


@pytest.mark.parametrize("arguments", [[], ["../x"], ["--other", "default"], ["ä"], [""]])
def test_only_instances_have_an_identity(arguments: list[str]) -> None:
    assert restoring.main(arguments) == 2


def test_program_runs_with_nothing_but_python(bench: Bench) -> None:
    script = Path(restoring.__file__).parents[1] / "restore"
    source = script.read_text().replace("/usr/lib/agentina", str(script.parent))
    done = subprocess.run(
        [sys.executable, "-ISB", "-c", source, "--write", "no-such-instance"],
        input=bench.copy,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"no-such-instance" in done.stderr or b"No such file" in done.stderr
