"""The release repository, for anybody: what it says is signed, and a host that is locked out can still update."""

from __future__ import annotations

from typing import Final

from agentina.control.api import routing
from agentina.control.services import releases

#: Seconds a cache may keep the one file that changes; a new release is seen that much later.
_TIMESTAMP_AGE: Final = 30
_LASTING: Final = b"public, max-age=31536000, immutable"


async def get_file(call: routing.Call) -> routing.Reply:
    """Stream one file of the repository, with what caches need to know."""
    name = call.parameters["path"]
    path = releases.find(call.control, name)
    lasting = releases.is_lasting(name)
    size = path.stat().st_size
    content_type = b"application/json" if name.endswith(".json") else b"application/octet-stream"
    age = _LASTING if lasting else b"public, max-age=%d" % _TIMESTAMP_AGE
    headers = [(b"cache-control", age), (b"x-content-type-options", b"nosniff"), (b"content-length", b"%d" % size)]
    return routing.Reply(body=releases.read(call.control, path, size), content_type=content_type, headers=headers)


def routes() -> list[routing.Route]:
    """These routes."""
    return [
        routing.Route(
            method="GET", path="/releases/{path:path}", handler=get_file,
            summary="A file of the release repository (TUF)", auth="public", answer=bytes,
        )
    ]  # fmt: skip
