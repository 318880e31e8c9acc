from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentina import errors
from agentina.gateway import settings, usage

PROVIDER = {"name": "p", "api": "anthropic", "url": "https://api.example.com/base", "credentials": ["key"]}


def write(tmp_path: Path, document: Any, *, key: str = "sk-1\n", mode: int = 0o600) -> Path:
    (tmp_path / "credentials").mkdir(exist_ok=True)
    (tmp_path / "credentials/key").write_text(key)
    (tmp_path / "credentials/key").chmod(mode)
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps(document))
    return path


def test_a_provider_is_found_by_language_and_model(tmp_path: Path) -> None:
    other = {**PROVIDER, "name": "o", "models": ["claude-opus-*"]}
    loaded = settings.load(write(tmp_path, {"providers": [other, PROVIDER], "networks": ["10.0.0.0/8"]}))
    assert loaded.find(usage.Api.ANTHROPIC, "claude-opus-4-1").provider.name == "o"
    source = loaded.find(usage.Api.ANTHROPIC, "claude-haiku-4-5")
    assert (source.provider.name, source.target, source.prefix) == ("p", ("api.example.com", 443), "/base")
    with pytest.raises(errors.AgentinaError) as caught:
        loaded.find(usage.Api.CHAT, "gpt-5")
    assert caught.value.code == "MODEL_REFUSED"


@pytest.mark.parametrize("mode", [0o400, 0o440])
def test_systemds_credentials_go_first_and_no_key_is_shown(tmp_path: Path, mode: int) -> None:
    """The user is let in as the owner, or by an access list, which makes the group's rights seem wider."""
    handed = tmp_path / "handed"
    handed.mkdir()
    (handed / "key").write_text("sk-handed")
    (handed / "key").chmod(mode)
    path = write(tmp_path, {"providers": [PROVIDER]})
    source = settings.load(path, credentials=handed).sources[0]
    assert source.authorize(source.key(0)) == (b"x-api-key", b"sk-handed")
    assert "sk-" not in repr(source.key(0))
    (handed / "key").chmod(0o444)
    with pytest.raises(errors.AgentinaError, match="others may read it"):
        settings.load(path, credentials=handed)
    (handed / "key").unlink()
    source = settings.load(path, credentials=handed).sources[0]
    assert source.authorize(source.key(0)) == (b"x-api-key", b"sk-1")


@pytest.mark.parametrize(
    "url", ["http://api.example.com", "ftp://x", "https://u:p@x", "https://x?y", "https://", "http://[", "x"]
)
def test_a_key_does_not_travel_in_the_clear(tmp_path: Path, url: str) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        settings.load(write(tmp_path, {"providers": [{**PROVIDER, "url": url}]}))
    assert caught.value.code == "INPUT_INVALID"


@pytest.mark.parametrize(
    ("key", "mode"),
    [("sk-1", 0o644), ("sk-1", 0o640), ("", 0o600), ("a\nb", 0o600), ("a b", 0o600), ("k\u00e9y", 0o600)],
)
def test_a_key_that_others_may_read_or_that_is_none_is_refused(tmp_path: Path, key: str, mode: int) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        settings.load(write(tmp_path, {"providers": [PROVIDER]}, key=key, mode=mode))
    assert caught.value.code in {"FILE_UNREADABLE", "INPUT_INVALID"}
    assert key.strip() == "" or key not in caught.value.message


@pytest.mark.parametrize(
    "document",
    [{"provider": []}, {"networks": ["10.0.0.1/8"]}, {"providers": [{**PROVIDER, "credentials": ["../key"]}]},
     {"providers": [{**PROVIDER, "credentials": []}]}, {"prices": {"x": {"input": -1, "output": 1}}}, []],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(tmp_path: Path, document: Any) -> None:
    with pytest.raises(errors.AgentinaError):
        settings.load(write(tmp_path, document))


def test_a_missing_file_or_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        settings.load(tmp_path / "gateway.yaml")
    assert caught.value.code == "FILE_UNREADABLE"
    path = write(tmp_path, {"providers": [PROVIDER]})
    (tmp_path / "credentials/key").unlink()
    with pytest.raises(errors.AgentinaError) as caught:
        settings.load(path)
    assert "credentials/key" in caught.value.message
