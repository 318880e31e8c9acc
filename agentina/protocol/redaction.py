"""Takes out of free text what looks like a credential, for texts nobody looked through: evidence, complaints, logs.

It knows forms, not values: what a job marked as secret is masked by its value, before
(:mod:`agentina.host.work.output`). A form that is not listed here passes, so this is a second net and no permission to
put secrets into texts.
"""

from __future__ import annotations

import re
from typing import Final

#: What stands in place of a credential.
MASK: Final = "[redacted]"

#: Text whose credential is known by itself. The lengths are those of the issuers, or less.
_WHOLE: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic, Stripe
    r"|\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,})"
    r"|\bxox[abeoprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # Amazon
    r"|\bAIza[0-9A-Za-z_-]{30,}"  # Google
    r"|\b(?:act|aop)_[0-9a-z]{24,}"  # agentina's own tokens
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?",  # JSON web tokens (RFC 7519)
    re.DOTALL,
)
#: A name that announces one: the name stays, what follows goes.
_NAMED: Final = re.compile(
    r"((?:authorization|api[-_]?key|access[-_]?key|secret|token|passw(?:or)?d|passphrase|credential)s?"
    r"[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?:bearer\s+|basic\s+)?)[^\s\"',;&]{4,}"
    r"|\b(bearer\s+)[A-Za-z0-9._~+/=-]{12,}",
    re.IGNORECASE,
)
#: ``scheme://user:password@host``.
_USERINFO: Final = re.compile(r"(://[^\s/:@]{1,128}:)[^\s/@]{1,256}@")


def redact(text: str) -> str:
    """``text`` without what looks like a credential. Doing it again changes nothing."""
    text = _WHOLE.sub(MASK, text)
    text = _NAMED.sub(lambda match: f"{match[1] or match[2]}{MASK}", text)
    return _USERINFO.sub(rf"\1{MASK}@", text)
