"""The key ceremony and a life of releases, typed as the how-to has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nacl.pwhash import argon2id

from agentina import errors
from agentina.cli import main
from agentina.updates import keyfiles, releases
from tests.fakes import release_builds, release_trees

PASSPHRASE = "correct horse battery"


class Shell:
    """Types commands in a directory of its own."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.capture = capture
        (directory / "passphrase").write_text(f"{PASSPHRASE}\n")

    def __call__(self, line: str, *, code: int = 0) -> str:
        words = [word.replace("@", f"{self.directory}/") for word in line.split()]
        assert main.run(["release", *words]) == code
        seen = self.capture.readouterr()
        assert PASSPHRASE not in seen.out + seen.err
        return seen.out + (seen.err if code else "")

    def json(self, line: str) -> Any:
        return json.loads(self(f"{line} --json"))


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    # The cost of a passphrase is tested with the key files; here it would be paid some fifty times.
    monkeypatch.setattr(keyfiles, "_PASSES", argon2id.OPSLIMIT_MIN)
    monkeypatch.setattr(keyfiles, "_MEMORY", argon2id.MEMLIMIT_MIN)
    made = Shell(tmp_path, capsys)
    for name in ("alice", "bob", "carol"):
        made(f"keys create {name} --directory @ --passphrase-file @passphrase")
    made("keys create online --directory @ --no-passphrase")
    return made


ROOT = (
    "keys root --repository @repo --root-key @alice.pub --root-key @bob.pub --root-threshold 2 "
    "--targets-key @carol.pub --online-key @online.pub"
)
PUBLISH = "--repository @repo --key @carol.key --passphrase-file @passphrase --online-key @online.key"


def begin(shell: Shell) -> None:
    shell(ROOT)
    shell("keys sign @repo/drafts/1.root.json --key @alice.key --passphrase-file @passphrase")
    shell("keys sign @repo/drafts/1.root.json --key @bob.key --passphrase-file @passphrase")


def test_ceremony_and_life_of_a_release(shell: Shell) -> None:
    assert "needs 2 more" in shell(ROOT)
    said = shell("keys sign @repo/drafts/1.root.json --key @alice.key --passphrase-file @passphrase")
    assert "needs 1 more" in said
    said = shell("keys sign @repo/drafts/1.root.json --key @bob.key --passphrase-file @passphrase")
    assert "root 1 is in force" in said
    listed = shell.json("keys list --repository @repo")
    assert [(role["role"], role["threshold"]) for role in listed["roles"]] == [
        ("root", 2), ("targets", 1), ("snapshot", 1), ("timestamp", 1),
    ]  # fmt: skip
    assert "alice (" in shell("keys list --repository @repo")

    release_builds.make(shell.directory, "0.4.0")
    assert "is in force" in shell(f"publish @0.4.0 --channel beta {PUBLISH}")
    assert "is in force" in shell(f"promote 0.4.0 --from beta --to stable {PUBLISH}")
    seen = shell.json("list --repository @repo")
    offered = {one["channel"]: [release["version"] for release in one["releases"]] for one in seen["channels"]}
    assert offered == {"dev": [], "beta": ["0.4.0"], "stable": ["0.4.0"], "enterprise-lts": []}
    shell(f"withdraw 0.4.0 --reason leaks {PUBLISH}")
    assert "withdrawn" in shell("list --repository @repo --channel stable")
    assert shell.json(f"renew {PUBLISH}")["version"] == 4
    assert shell.json("timestamp --repository @repo --online-key @online.key") == {"changed": False}


def test_publication_without_the_online_key_waits_for_the_control_plane(shell: Shell) -> None:
    begin(shell)
    release_builds.make(shell.directory, "0.4.0")
    said = shell(f"publish @0.4.0 --channel dev {PUBLISH.removesuffix('--online-key @online.key')}")
    assert "hosts see it once the online key has followed" in said
    assert not (shell.directory / "repo/metadata/timestamp.json").exists()
    assert shell.json("timestamp --repository @repo --online-key @online.key") == {"changed": True}


def test_releases_on_this_host_are_listed_with_who_runs_them(shell: Shell) -> None:
    root = shell.directory / "host"
    assert shell.json(f"list --root {root}") == {"releases": []}
    store = releases.Store(root / "opt/agentina")
    for version in ("0.4.0", "0.5.0"):
        archive = release_trees.archive(shell.directory / "dist", version)
        store.unpack(archive, version, architecture=release_trees.ARCHITECTURE)
    store.link("default", "0.5.0")
    store.link_previous("default", "0.4.0")
    assert shell.json(f"list --root {root}")["releases"] == [
        {"version": "0.5.0", "runs": ["default"], "previous_of": []},
        {"version": "0.4.0", "runs": [], "previous_of": ["default"]},
    ]
    assert "0.5.0    default  -" in shell(f"list --root {root}")


def test_wrong_keys_are_refused_with_the_remedy(shell: Shell) -> None:
    begin(shell)
    release_builds.make(shell.directory, "0.4.0")
    wrong = "--repository @repo --key @alice.key --passphrase-file @passphrase"
    said = shell(f"publish @0.4.0 --channel dev {wrong}", code=errors.Exit.REFUSED)
    assert "agentina release keys list" in said
    (shell.directory / "passphrase").write_text("wrong passphrase")
    shell(f"renew {wrong}", code=errors.Exit.REFUSED)
    assert "encrypted" not in shell("keys list --repository @repo")
    shell("timestamp --repository @repo --online-key @alice.key", code=errors.Exit.REFUSED)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("list --channel beta", errors.Exit.USAGE),
        ("list --repository @none", errors.Exit.CONFLICT),
        ("keys list --repository @none", errors.Exit.CONFLICT),
        ("promote x --from dev --to nowhere --repository @repo", errors.Exit.USAGE),
        ("keys sign @passphrase", errors.Exit.USAGE),
        ("keys root --repository @repo --root-key @alice.pub", errors.Exit.USAGE),
        ("keys create alice --directory @ --no-passphrase", errors.Exit.CONFLICT),
        (f"build --source {Path(__file__).parents[3]} --version ../x", errors.Exit.USAGE),
        # Nobody sits at a terminal here.
        ("keys create dora --directory @", errors.Exit.USAGE),
        ("keys create dora --directory @ --passphrase-file @empty", errors.Exit.USAGE),
    ],
)
def test_mistakes_end_with_their_code(shell: Shell, line: str, code: errors.Exit) -> None:
    (shell.directory / "empty").touch()
    shell(line, code=code)
