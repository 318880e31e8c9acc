"""The stream formats this version reads, by name."""

from __future__ import annotations

from typing import Final

from agentina.runners.streams import claude_code, codex, gemini, opencode, reading

FORMATS: Final[dict[str, reading.Translate]] = {
    "claude-code": claude_code.translate,
    "codex": codex.translate,
    "gemini": gemini.translate,
    "opencode": opencode.translate,
}
