"""What the owner of a host tells its gateway: ``gateway.yaml``, and the keys of providers in the credential store.

A key is a file of its own: one that systemd hands over (``LoadCredential=``, systemd.exec(5)), else
``credentials/NAME`` beside ``gateway.yaml``, which nobody but its owner may read. Keys are in this process only.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import os
import stat
import urllib.parse
from collections.abc import Container
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from agentina import errors
from agentina.gateway import brakes, prices, rules, usage
from agentina.protocol import inputs
from agentina.system import files

_MAX: Final = 1 << 20
_MAX_KEY: Final = 8192
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_KINDS: Final = {
    "anthropic": frozenset({usage.Api.ANTHROPIC}),
    "openai": frozenset({usage.Api.RESPONSES, usage.Api.CHAT}),
    "gemini": frozenset({usage.Api.GEMINI}),
}


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One provider of models."""

    name: _Name
    #: The language it speaks: Anthropic Messages; OpenAI Responses and Chat Completions; Gemini.
    api: Literal["anthropic", "openai", "gemini"]
    #: Its address, without ``/v1`` or ``/v1beta``: https, or http for loopback only.
    url: str
    #: Names of keys in the credential store; one that is limited or refused gives way to the next.
    credentials: Annotated[list[_Name], msgspec.Meta(min_length=1, max_length=64)]
    #: Glob patterns of models it serves; the first provider that matches is used.
    models: Annotated[list[str], msgspec.Meta(min_length=1, max_length=1024)] = msgspec.field(
        default_factory=lambda: ["*"]
    )
    #: File with certificates to trust besides the system's (PEM).
    ca_file: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of ``gateway.yaml``."""

    providers: Annotated[list[Provider], msgspec.Meta(max_length=64)] = []
    #: Private networks tasks may reach where scope and policy name a host in them, for example ``10.20.0.0/16``.
    networks: Annotated[list[str], msgspec.Meta(max_length=256)] = []
    #: Prices of models that the package does not know, or other ones, by glob pattern.
    prices: dict[str, prices.Price] = {}


class Key:
    """One key of one provider, and whether it may be used now."""

    def __init__(self, name: str, secret: str) -> None:
        self.name = name
        self.secret = secret
        self.brake = brakes.Brake()

    def __repr__(self) -> str:
        return f"Key({self.name!r})"


class Source:
    """A provider with its keys."""

    def __init__(self, provider: Provider, keys: list[Key]) -> None:
        self.provider = provider
        self._keys = keys
        parts = urllib.parse.urlsplit(provider.url)
        self.tls = parts.scheme == "https"
        assert parts.hostname is not None
        self.target = rules.Target(parts.hostname, parts.port or (443 if self.tls else 80))
        self.authority = parts.netloc
        self.prefix = parts.path.rstrip("/")

    def serves(self, api: usage.Api, model: str | None) -> bool:
        """Whether it speaks that language and has that model; None: any."""
        known = model is None or any(fnmatch.fnmatchcase(model, pattern) for pattern in self.provider.models)
        return api in _KINDS[self.provider.api] and known

    def key(self, now: float) -> Key:
        """The key to use: the first that is not braked, else the one that is free soonest."""
        return min(self._keys, key=lambda key: key.brake.seconds(now))

    def authorize(self, key: Key) -> tuple[bytes, bytes]:
        """The header that carries a key."""
        names = {"anthropic": b"x-api-key", "gemini": b"x-goog-api-key"}
        if self.provider.api in names:
            return names[self.provider.api], key.secret.encode("ascii")
        return b"authorization", b"Bearer " + key.secret.encode("ascii")


class Loaded:
    """Settings that were checked, with everything they name."""

    def __init__(self, settings: Settings, sources: list[Source]) -> None:
        self.sources = sources
        self.prices = prices.Table(settings.prices)
        self.networks = tuple(ipaddress.ip_network(text) for text in settings.networks)

    def find(self, api: usage.Api, model: str | None) -> Source:
        """The provider of a model.

        Raises:
            AgentinaError: ``MODEL_REFUSED``.

        """
        for source in self.sources:
            if source.serves(api, model):
                return source
        language = {usage.Api.ANTHROPIC: "Anthropic's", usage.Api.GEMINI: "Gemini's"}.get(api, "OpenAI's")
        raise errors.MODEL_REFUSED(
            model=model or "(any)", problem=f"no provider of this host serves it by {language} API"
        )


def load(path: Path, *, credentials: Path | None = None) -> Loaded:
    """Read ``gateway.yaml`` and the keys it names.

    Args:
        path: The file.
        credentials: Directory of keys that goes before the one beside the file (systemd's).

    Raises:
        AgentinaError: ``FILE_UNREADABLE``, ``INPUT_UNREADABLE``, ``INPUT_UNKNOWN_KEY``, ``INPUT_INVALID`` or
            ``INPUT_TOO_LARGE``.

    """
    settings = read(path)
    places = [*([credentials] if credentials is not None else []), _store(path)]
    return Loaded(settings, [_source(provider, places) for provider in settings.providers])


def read(path: Path) -> Settings:
    """Read ``gateway.yaml`` without the keys it names.

    Raises:
        AgentinaError: As with :func:`load`, but for the keys.

    """
    try:
        content = files.read_bounded(path, limit=_MAX)
    except OSError as error:
        raise errors.FILE_UNREADABLE(where=str(path), problem=error.strerror or str(error)) from error
    document = inputs.decode_yaml(content, str(path))
    settings = inputs.convert({} if document is None else document, Settings, str(path))
    for network in settings.networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise errors.INPUT_INVALID(where=f"{path}.networks", problem=str(error)) from error
    for provider in settings.providers:
        _check_url(provider, str(path))
    return settings


def missing_keys(settings: Settings, path: Path, handed: Container[str]) -> list[str]:
    """Names of keys that are in neither place, as far as this user can see; the keys are not looked at.

    Args:
        settings: What was read of ``path``.
        path: ``gateway.yaml``.
        handed: Names of those that systemd hands over.

    """
    named = dict.fromkeys(name for provider in settings.providers for name in provider.credentials)
    return [name for name in named if name not in handed and not _is_there(_store(path) / name)]


def _store(path: Path) -> Path:
    """Where an owner keeps keys, beside ``gateway.yaml``."""
    return path.parent / "credentials"


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except PermissionError:
        return True  # whoever may look can tell
    except OSError:
        return False
    return True


def _check_url(provider: Provider, where: str) -> None:
    try:
        parts = urllib.parse.urlsplit(provider.url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise errors.INPUT_INVALID(where=f"{where}.providers.{provider.name}.url", problem=str(error)) from error
    # A key must not travel in the clear.
    plain = parts.scheme == "http" and host in {"localhost", "127.0.0.1", "::1"}
    if not host or "@" in parts.netloc or parts.query or parts.fragment or not (parts.scheme == "https" or plain):
        problem = "expected https://HOST, or http for loopback only, without user and query"
        raise errors.INPUT_INVALID(where=f"{where}.providers.{provider.name}.url", problem=problem)


def _source(provider: Provider, places: list[Path]) -> Source:
    return Source(provider, [Key(name, _read_key(name, places)) for name in provider.credentials])


def _read_key(name: str, places: list[Path]) -> str:
    for place in places:
        path = place / name
        # systemd lets the unit's user in by an access list where it can; the mode shows that as the group's rights.
        allowed = 0o700 if place == places[-1] else 0o740
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise errors.FILE_UNREADABLE(where=str(path), problem=error.strerror or str(error)) from error
        try:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            content = os.read(descriptor, _MAX_KEY + 1)
        finally:
            os.close(descriptor)
        if mode & ~allowed:
            problem = f"others may read it (mode {mode:04o}); expected 0600 or 0400"
            raise errors.FILE_UNREADABLE(where=str(path), problem=problem)
        return _check_key(content, path)
    raise errors.FILE_UNREADABLE(where=str(places[-1] / name), problem="there is no such key in the credential store")


def _check_key(content: bytes, path: Path) -> str:
    try:
        text = content.decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    # A line break in it would end the header it is put into.
    if not text or not text.isprintable() or " " in text or len(content) > _MAX_KEY:
        raise errors.INPUT_INVALID(where=str(path), problem="expected one key: a line of printable ASCII")
    return text
