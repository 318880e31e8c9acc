"""The route table's vocabulary: what a route is, what a handler gets, what it may answer.

One table (:mod:`agentina.control.api.routes`) feeds the dispatcher and the OpenAPI document, so they cannot differ.
"""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal

from agentina import errors
from agentina.control import fleet, plane
from agentina.control.services import uploads

#: Who may call: nobody in particular, an activated agent, or an operator with at least that role.
Auth = Literal["public", "agent", "viewer", "operator", "admin"]

#: Largest JSON body of operator requests, in bytes; a job document is the largest.
MAX_OPERATOR_BODY: Final = 2 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A query parameter. Numbers are bounded."""

    name: str
    kind: type[int | float | str]
    default: int | float | str | None = None
    minimum: float = 0
    maximum: float = (1 << 53) - 1
    required: bool = False

    def parse(self, text: str | None) -> int | float | str | None:
        """The value in a request, or the default.

        Raises:
            AgentinaError: ``INPUT_INVALID``.

        """
        if text is None:
            if self.required:
                raise errors.INPUT_INVALID(where=f"query.{self.name}", problem="it is required")
            return self.default
        if self.kind is str:
            return text
        try:
            value = int(text) if self.kind is int else float(text)
        except ValueError:
            value = -1
        if not self.minimum <= value <= self.maximum:
            what = "an integer" if self.kind is int else "a number"
            problem = f"expected {what} from {self.minimum:g} to {self.maximum:g}, got {text[:40]!r}"
            raise errors.INPUT_INVALID(where=f"query.{self.name}", problem=problem)
        return value


@dataclasses.dataclass(slots=True)
class Call:
    """One request, checked: what a handler works with."""

    control: plane.Plane
    uploads: uploads.Uploads
    parameters: Mapping[str, str]
    query: dict[str, Any]
    #: Decoded as the route's request type, or raw bytes.
    body: Any
    headers: Mapping[bytes, bytes]
    #: Registers what to call when the connection breaks while the request is held.
    on_lost: Callable[[Callable[[], None]], None]
    agent: fleet.Agent | None = None
    operator: plane.Operator | None = None

    @property
    def caller(self) -> fleet.Agent:
        """The agent; routes with ``auth="agent"`` have one."""
        assert self.agent is not None
        return self.agent

    @property
    def actor(self) -> str:
        """The operator's name for audit and timelines."""
        assert self.operator is not None
        return f"operator:{self.operator.name}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An answer that is not JSON of a struct."""

    body: bytes | AsyncGenerator[bytes, None]
    content_type: bytes = b"application/octet-stream"
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()


Handler = Callable[[Call], Awaitable[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One entry of the table."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    #: With ``{name}`` for one segment and ``{name:path}`` for the rest.
    path: str
    handler: Handler
    summary: str
    auth: Auth
    #: Type of the JSON body; ``bytes``: raw; None: there is none.
    request: Any = None
    #: Type of the JSON answer; ``bytes``: raw; ``str``: text; None: no content.
    answer: Any = None
    status: int = 200
    query: tuple[Query, ...] = ()
    body_limit: int = MAX_OPERATOR_BODY
    #: What the audit calls it; empty: it changes nothing on an operator's behalf.
    act: str = ""

    @property
    def parameters(self) -> list[str]:
        """Names in the path."""
        return re.findall(r"\{(\w+)", self.path)


def acts(
    noun: str, act: Callable[[Call, str, str], Awaitable[Any]], verbs: Mapping[str, str], *, path: str, request: Any,
    answer: Any,
) -> list[Route]:  # fmt: skip
    """``POST path/verb`` for each of ``verbs``, which have their summaries.

    ``act`` is told the verb, and the reason that is in the body or, without one, empty.
    """

    def handler_of(verb: str) -> Handler:
        async def handler(call: Call) -> Any:
            return await act(call, verb, "" if call.body is None else call.body.reason)

        return handler

    return [
        Route(
            method="POST", path=f"{path}/{verb}", handler=handler_of(verb), summary=summary, auth="operator",
            request=request | None, answer=answer, act=f"{noun}.{verb}",
        )
        for verb, summary in verbs.items()
    ]  # fmt: skip


class Table:
    """Finds the route of a request."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = routes
        self._fixed: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        patterns: dict[str, dict[str, Route]] = {}
        for route in routes:
            known = patterns if "{" in route.path else self._fixed
            known.setdefault(route.path, {})[route.method] = route
        # A longer template is the more special one.
        for path in sorted(patterns, key=len, reverse=True):
            expression = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)
            expression = re.sub(r"\{(\w+):path\}", r"(?P<\1>.+)", expression)
            self._patterns.append((re.compile(expression, re.DOTALL), patterns[path]))

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """The route, and the values of its path parameters.

        Raises:
            AgentinaError: ``NOT_FOUND``, ``METHOD_NOT_ALLOWED``.

        """
        found, parameters = self._fixed.get(path), {}
        if found is None:
            for pattern, routes in self._patterns:
                match = pattern.fullmatch(path)
                if match is not None:
                    found, parameters = routes, match.groupdict()
                    if method in routes:
                        break
        if found is None:
            raise errors.NOT_FOUND(what="address", name=path[:200])
        route = found.get(method)
        if route is None:
            raise errors.METHOD_NOT_ALLOWED(method=method[:20], path=path[:200])
        return route, parameters


def parse_query(route: Route, text: bytes) -> dict[str, Any]:
    """The checked query parameters of a request; unknown ones are ignored."""
    if not route.query:
        return {}
    try:
        values = dict(urllib.parse.parse_qsl(text.decode("ascii"), max_num_fields=32, keep_blank_values=True))
    except ValueError as error:
        raise errors.INPUT_INVALID(where="query", problem="it cannot be decoded") from error
    return {query.name: query.parse(values.get(query.name)) for query in route.query}
