"""How long tests wait for what must happen."""

from __future__ import annotations

from typing import Final

#: Seconds after which something will never happen. It ends a hang, and is far beyond what the slowest machine needs.
HANG: Final = 120.0
