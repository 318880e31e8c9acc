from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from agentina import errors
from agentina.cli import connection
from agentina.system import paths

STORED = connection.Login(control_plane="https://agents.example.com", token="aop_stored", ca_file="/ca.pem")


@pytest.fixture
def layout(tmp_path: Path) -> paths.Layout:
    found = paths.Layout(tmp_path)
    connection.save_login(found, STORED)
    return found


def test_login_is_readable_by_its_owner_alone(layout: paths.Layout) -> None:
    path = connection.login_file(layout)
    assert path.stat().st_mode & 0o777 == 0o600
    assert connection.resolve(layout) == STORED
    assert "aop_stored" not in repr(STORED)


def test_real_root_uses_the_users_own_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert connection.login_file(paths.Layout()) == tmp_path / "agentina/client.json"


def test_stored_token_is_sent_to_its_own_server_only(layout: paths.Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(connection.URL_VARIABLE, "https://other.example.com")
    with pytest.raises(errors.AgentinaError) as caught:
        connection.resolve(layout)
    assert caught.value.entry is errors.AUTH_REQUIRED
    monkeypatch.setenv(connection.URL_VARIABLE, "https://agents.example.com:443/")
    assert connection.resolve(layout).token == "aop_stored"


def test_environment_wins(layout: paths.Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("aop_file\n")
    monkeypatch.setenv(connection.TOKEN_FILE_VARIABLE, str(tmp_path / "token"))
    assert connection.resolve(layout).token == "aop_file"
    monkeypatch.setenv(connection.TOKEN_VARIABLE, "aop_plain")
    assert connection.resolve(layout).token == "aop_plain"


@pytest.mark.parametrize("content", ["root:*:20228\ndaemon:*:20228\n", "two words", "t\N{SNOWMAN}ken"])
def test_what_is_no_token_is_neither_sent_nor_shown(
    content: str, layout: paths.Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shadow").write_text(content)
    monkeypatch.setenv(connection.TOKEN_FILE_VARIABLE, str(tmp_path / "shadow"))
    with pytest.raises(errors.AgentinaError, match="is no operator token") as caught:
        connection.resolve(layout)
    assert caught.value.entry is errors.INPUT_INVALID
    assert content[:8] not in caught.value.message
    monkeypatch.setenv(connection.TOKEN_VARIABLE, content)
    with pytest.raises(errors.AgentinaError, match=f"^{connection.TOKEN_VARIABLE}: it is no operator token"):
        connection.resolve(layout)


def test_nothing_known(tmp_path: Path) -> None:
    with pytest.raises(errors.AgentinaError) as caught:
        connection.resolve(paths.Layout(tmp_path))
    assert caught.value.entry is errors.CONTROL_PLANE_UNKNOWN


def test_damaged_login_is_named(layout: paths.Layout) -> None:
    path = connection.login_file(layout)
    path.write_bytes(b"{")
    with pytest.raises(errors.AgentinaError) as caught:
        connection.resolve(layout)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "INPUT_INVALID"), (b"\n", "INPUT_INVALID"), (b"\xff\xfe", "INPUT_INVALID"), (b"x" * 70_000, None)],
)
def test_secrets_are_bounded_and_never_repeated(
    content: bytes, code: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stdin:
        buffer = io.BytesIO(content)

    monkeypatch.setattr(sys, "stdin", Stdin)
    path = tmp_path / "secret"
    path.write_bytes(content)
    for source in ("-", str(path)):
        with pytest.raises(errors.AgentinaError) as caught:
            connection.read_secret(source, "--token-file")
        assert code is None or caught.value.code == code
        assert "xxxx" not in caught.value.message
