"""The protocol's version, one dated line per bump."""

from __future__ import annotations

from typing import Final

#: 1: 2026-11-21: activation, sessions, heartbeat, poll, reports, output and artifact upload.
PROTOCOL_VERSION: Final = 1

#: The oldest peer this code still understands.
OLDEST_PROTOCOL_VERSION: Final = 1
