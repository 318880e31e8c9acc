from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentina import errors
from agentina.updates import keyfiles

PASSPHRASE = "correct horse battery"


def refused(entry: errors.Entry, path: Path, passphrase: str | None = None) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        keyfiles.load(path, passphrase)
    assert caught.value.entry is entry
    assert PASSPHRASE not in f"{caught.value!r}{caught.value}"


def test_encrypted_key_needs_its_passphrase(tmp_path: Path) -> None:
    private, public = keyfiles.create(tmp_path, "alice", PASSPHRASE)
    assert private.stat().st_mode & 0o777 == 0o600
    assert keyfiles.is_encrypted(private)
    signer = keyfiles.load(private, PASSPHRASE)
    assert signer.seed.hex() not in private.read_text()
    assert keyfiles.load_public(public) == ("alice", signer.public_key)
    refused(errors.RELEASE_KEY_REFUSED, private, "another passphrase")
    refused(errors.RELEASE_KEY_REFUSED, private, None)


def test_online_key_works_alone_and_nothing_shows_its_seed(tmp_path: Path) -> None:
    private, public = keyfiles.create(tmp_path, "online", None)
    signer = keyfiles.load(private)
    assert keyfiles.load_public(public)[1] == signer.public_key
    stored = keyfiles._read(private, keyfiles._Private)
    assert stored.secret not in repr(stored)


def test_no_key_is_overwritten(tmp_path: Path) -> None:
    private, _ = keyfiles.create(tmp_path, "alice", None)
    before = private.read_bytes()
    with pytest.raises(errors.AgentinaError):
        keyfiles.create(tmp_path, "alice", None)
    assert private.read_bytes() == before


def test_short_passphrases_and_names_that_are_paths_are_refused(tmp_path: Path) -> None:
    for name, passphrase in (("alice", "short"), ("../alice", PASSPHRASE), ("", PASSPHRASE)):
        with pytest.raises(errors.AgentinaError):
            keyfiles.create(tmp_path, name, passphrase)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [{"kind": "x"}, {"public": "00"}, {"secret": "!"}, {"secret": ""}, {"extra": 1}, {"public": "00" * 32}],
)
def test_damaged_key_is_said_to_be_so(tmp_path: Path, change: dict[str, object]) -> None:
    private, _ = keyfiles.create(tmp_path, "alice", None)
    private.write_text(json.dumps({**json.loads(private.read_text()), **change}))
    refused(errors.INPUT_UNREADABLE, private)


def test_file_cannot_ask_for_all_memory(tmp_path: Path) -> None:
    private, _ = keyfiles.create(tmp_path, "alice", PASSPHRASE)
    content = json.loads(private.read_text())
    content["encryption"]["memory"] = 1 << 40
    private.write_text(json.dumps(content))
    refused(errors.INPUT_UNREADABLE, private, PASSPHRASE)


def test_public_key_of_another_form_is_refused(tmp_path: Path) -> None:
    _, public = keyfiles.create(tmp_path, "alice", None)
    for text in ("zz", "00" * 31):
        public.write_text(json.dumps({**json.loads(public.read_text()), "public": text}))
        with pytest.raises(errors.AgentinaError) as caught:
            keyfiles.load_public(public)
        assert caught.value.entry is errors.INPUT_UNREADABLE
    refused(errors.FILE_UNREADABLE, tmp_path / "none.key")
