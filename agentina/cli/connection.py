"""Which control plane, and with what token: the environment wins over what ``agentina login`` stored.

The stored token is only ever sent to the server it was stored for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from agentina import errors
from agentina.cli import options, output
from agentina.client import address, api
from agentina.protocol import inputs
from agentina.system import files, paths

URL_VARIABLE: Final = "AGENTINA_CONTROL_PLANE"
TOKEN_VARIABLE: Final = "AGENTINA_API_TOKEN"  # noqa: S105 - a name
TOKEN_FILE_VARIABLE: Final = "AGENTINA_API_TOKEN_FILE"  # noqa: S105 - a name
CA_VARIABLE: Final = "AGENTINA_CA_FILE"
_MAX_FILE: Final = 65_536


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """What ``agentina login`` stores. ``repr`` hides the token."""

    control_plane: str
    token: str
    ca_file: str = ""

    def __repr__(self) -> str:
        return f"Login({self.control_plane!r})"


def login_file(layout: paths.Layout) -> Path:
    """Where the login is: the user's own configuration, or below the root when there is one."""
    if not layout.is_system:
        return layout.config_directory / "client.json"
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "agentina/client.json"


def load_login(layout: paths.Layout) -> Login | None:
    """The stored login, if any.

    Raises:
        AgentinaError: ``FILE_UNREADABLE``, ``INPUT_UNREADABLE`` or ``INPUT_INVALID``, naming the file.

    """
    path = login_file(layout)
    try:
        content = files.read_bounded(path, limit=_MAX_FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=str(path), problem=error.strerror or str(error)) from error
    login = inputs.decode(content, Login, str(path), limit=_MAX_FILE)
    check_token(login.token, str(path))
    return login


def save_login(layout: paths.Layout, login: Login) -> Path:
    """Store the login, readable by this user alone."""
    path = login_file(layout)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_atomic(path, msgspec.json.encode(login))
    return path


def resolve(layout: paths.Layout) -> Login:
    """The control plane and token to use.

    Raises:
        AgentinaError: ``CONTROL_PLANE_UNKNOWN``, ``AUTH_REQUIRED`` when no token is, ``INPUT_INVALID`` when it is none.

    """
    stored = load_login(layout)
    url = os.environ.get(URL_VARIABLE) or (stored.control_plane if stored else "")
    if not url:
        raise errors.CONTROL_PLANE_UNKNOWN()  # noqa: RSE102 - an entry of the catalogue is called to make its error
    same = stored is not None and str(address.parse(url)) == str(address.parse(stored.control_plane))
    token = _token_from_environment() or (stored.token if stored and same else "")
    if not token:
        raise errors.AUTH_REQUIRED()  # noqa: RSE102 - an entry of the catalogue is called to make its error
    ca_file = os.environ.get(CA_VARIABLE) or (stored.ca_file if stored and same else "")
    return Login(control_plane=url, token=token, ca_file=ca_file)


def open_client(*, hurried_seconds: float | None = None) -> api.Client:
    """A client for the control plane in use; a hurried one tries once, for so long, and says nothing."""
    login = resolve(options.layout())
    if hurried_seconds is not None:
        return api.Client(
            login.control_plane, token=login.token, ca_file=login.ca_file,
            timeout_seconds=hurried_seconds, patience=api.Patience(attempts=1),
        )  # fmt: skip
    return api.Client(login.control_plane, token=login.token, ca_file=login.ca_file, notice=_say_why)


def read_secret(source: str, what: str) -> str:
    """A secret from a file, or from stdin for ``-``: without the newline at its end.

    Raises:
        AgentinaError: ``FILE_UNREADABLE``, ``INPUT_INVALID`` or ``INPUT_TOO_LARGE``; the content is never repeated.

    """
    import sys

    try:
        content = (
            sys.stdin.buffer.read(_MAX_FILE + 1) if source == "-" else files.read_bounded(Path(source), limit=_MAX_FILE)
        )
        text = content.decode().rstrip("\r\n")
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=f"{what} {source}", problem=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise errors.INPUT_INVALID(where=f"{what} {source}", problem="it is not text in UTF-8") from error
    if not text:
        raise errors.INPUT_INVALID(where=f"{what} {source}", problem="it is empty")
    if len(content) > _MAX_FILE:
        raise errors.INPUT_TOO_LARGE(where=f"{what} {source}", size=len(content), limit=_MAX_FILE)
    return text


def read_token(source: str, what: str) -> str:
    """An operator token from a file or stdin. Raises like :func:`read_secret`, also of what can be no token."""
    return check_token(read_secret(source, what).strip(), f"{what} {source}")


def check_token(token: str, where: str) -> str:
    """``token``, if a header can carry it: another file that was named instead is neither sent nor repeated.

    Raises:
        AgentinaError: ``INPUT_INVALID``.

    """
    if not (token.isascii() and token.isprintable()) or " " in token:
        problem = "it is no operator token (aop_…); expected one word on one line"
        raise errors.INPUT_INVALID(where=where, problem=problem)
    return token


def _token_from_environment() -> str:
    if os.environ.get(TOKEN_VARIABLE):
        return check_token(os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE)
    if os.environ.get(TOKEN_FILE_VARIABLE):
        return read_token(os.environ[TOKEN_FILE_VARIABLE], TOKEN_FILE_VARIABLE)
    return ""


def _say_why(error: errors.AgentinaError) -> None:
    output.say(f"{output.clean(error.message)} Trying again …")
