"""What a control plane process is told at its start: one frozen record, units in the comments."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from agentina import errors
from agentina.protocol import units, wire


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Settings of `agentina control-plane serve`."""

    #: Directory for database, keys and blobs; made with mode 0700.
    data: Path
    #: ``HOST:PORT``; port 0 takes a free one.
    listen: str = "127.0.0.1:8440"
    #: Certificate chain and key (PEM). Without them: plain http, for loopback or behind a proxy that does TLS.
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    #: File (0600) to write the first operator token to, besides announcing it; None: only announce.
    token_file: Path | None = None
    #: Seconds a task may go unrenewed before it is given up (protocol.md, leases).
    lease_seconds: float = 180.0
    #: Seconds between heartbeats of an agent without tasks.
    heartbeat_seconds: float = 60.0
    #: Seconds between writes of what heartbeats said to the database.
    flush_seconds: float = 30.0
    #: Seconds between two looks at what a rollout does next.
    rollout_seconds: float = 5.0
    #: Days a license holds; it is renewed after half of them.
    license_days: float = 30.0
    #: Most requests held open while they wait (agents' polls and operators' follows).
    max_held_requests: int = 20_000
    #: Most bytes of request bodies in memory at once.
    max_body_bytes: int = 256 << 20
    #: Seconds a request's body may take to arrive.
    body_seconds: float = 60.0
    #: Seconds that requests under way get to finish at a stop.
    stop_seconds: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            AgentinaError: ``INPUT_INVALID``.

        """
        if not self.lease_seconds >= wire.MIN_LEASE_SECONDS:
            least = units.show_duration(wire.MIN_LEASE_SECONDS)
            problem = (
                f"{units.show_duration(self.lease_seconds)} is too short: hosts end a task 5 s before its lease runs "
                f"out, so a single lost heartbeat would cost its work; expected at least {least}"
            )
            raise errors.INPUT_INVALID(where="lease", problem=problem)
        if not self.heartbeat_seconds > 0:
            raise errors.INPUT_INVALID(where="heartbeat", problem="expected a time between heartbeats, got none")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on.

        Raises:
            AgentinaError: ``INPUT_INVALID``.

        """
        host, separator, port = self.listen.rpartition(":")
        if not separator or not port.isascii() or not port.isdigit() or int(port) > 65_535:  # noqa: PLR2004 - tcp(7)
            raise errors.INPUT_INVALID(where="listen", problem=f"expected HOST:PORT, got {self.listen!r}")
        return host.strip("[]"), int(port)
