"""The operator API for programs that wait: the command line. Blocking, one connection kept alive.

Everything that can go wrong on the way becomes an error of the catalogue. Requests that may be repeated safely (reads,
and submissions, which carry an idempotency key) are repeated with full jitter when the control plane is away or busy;
others only when they provably never arrived. Answers are bounded.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import secrets
import select
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Self, TypeVar

import msgspec

from agentina import errors
from agentina.client import address as addresses
from agentina.client import backoff
from agentina.protocol import api, budgets, inputs, licensing, wire

T = TypeVar("T")

#: Largest JSON answer read, in bytes.
MAX_ANSWER: Final = 32 << 20
#: Largest piece of output or artifact asked for, in bytes.
MAX_PIECE: Final = 4 << 20
#: Longest pause a server may ask for with Retry-After, in seconds.
_MAX_RETRY_AFTER: Final = 30.0
#: Bytes copied at a time.
_COPY: Final = 1 << 20
#: Seconds after which an idle connection is not used again: servers and proxies close theirs after a minute or more,
#: and what is sent at that very moment may have arrived or not.
_IDLE: Final = 30.0
#: Bytes around a job in a batch, its idempotency key included.
_JOB_FRAME: Final = 256
_BUSY: Final = frozenset({429, 500, 502, 503, 504})

Query = Mapping[str, str | int | float | None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a request is repeated when the control plane is away or busy."""

    attempts: int = 7
    #: Seconds the first pause is at most; it doubles.
    first: float = 0.25
    #: Seconds any pause is at most.
    most: float = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A good answer (2xx)."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OutputPiece:
    """Output bytes of one task, and where to go on."""

    data: bytes
    #: The offset of the byte after ``data``.
    offset: int
    #: Nothing more will come.
    final: bool
    task_id: str


class Client:
    """Talks to one control plane. Use as a context manager, or call :meth:`close`."""

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        ca_file: str = "",
        timeout_seconds: float = 20.0,
        patience: Patience | None = None,
        pause: Callable[[float], None] = time.sleep,
        notice: Callable[[errors.AgentinaError], None] | None = None,
    ) -> None:
        self.address = addresses.parse(url)
        #: May be changed between requests: following a job is worth more patience than one question.
        self.patience = patience or Patience()
        #: Told why before the first repetition of a request.
        self.notice = notice
        self._token = token
        self._ca_file = ca_file
        self._timeout = timeout_seconds
        self._pause = pause
        self._connection: http.client.HTTPConnection | None = None
        #: When the kept connection had its last answer, on the monotonic clock.
        self._idle_since = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.address})"

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- usage ---

    def get_usage(self, query: Query) -> budgets.UsageReport:
        """What models were used for."""
        return self._get("/v1/usage", budgets.UsageReport, query)

    def list_budgets(self) -> budgets.BudgetList:
        """Daily budgets of organizations and agents."""
        return self._get("/v1/budgets", budgets.BudgetList)

    def get_budget(self, scope: str, name: str) -> budgets.BudgetView:
        """One budget, and what is used of it."""
        return self._get(_budget(scope, name), budgets.BudgetView)

    def set_budget(self, scope: str, name: str, limits: budgets.BudgetSet) -> budgets.BudgetView:
        """Set all its limits."""
        return _decode(
            self.request("PUT", _budget(scope, name), body=msgspec.to_builtins(limits), repeatable=True),
            budgets.BudgetView,
        )

    def raise_budget(self, scope: str, name: str, more: budgets.BudgetRaise) -> budgets.BudgetView:
        """Add to its limits."""
        return _decode(
            self.request("POST", f"{_budget(scope, name)}/raise", body=msgspec.to_builtins(more)), budgets.BudgetView
        )

    def remove_budget(self, scope: str, name: str) -> None:
        """Take a daily budget away."""
        self.request("DELETE", _budget(scope, name))

    # --- jobs ---

    def submit_job(self, document: object, *, key: str | None = None) -> api.JobCreated:
        """Submit a job document; repeating it with the same ``key`` makes no second job.

        It is the first of those that :meth:`submit_jobs` would submit with that key.
        """
        headers = {"Idempotency-Key": _key(secrets.token_hex(16) if key is None else key, 0)}
        answer = self.request("POST", "/v1/jobs", body=document, headers=headers, repeatable=True)
        return _decode(answer, api.JobCreated)

    def submit_jobs(self, documents: Iterable[object], *, key: str | None = None) -> Iterator[api.JobCreated]:
        """Submit job documents, many in one request, and yield what became of each once it is stored.

        Repeating it with the same ``key`` and the same documents makes no job twice.
        """
        stem = secrets.token_hex(16) if key is None else key
        items = (
            api.JobOfBatch(job=msgspec.Raw(msgspec.json.encode(document)), idempotency_key=_key(stem, number))
            for number, document in enumerate(documents)
        )
        for batch in _batches(items):
            answer = self.request("POST", "/v1/job-batches", body=batch, repeatable=True)
            yield from _decode(answer, api.JobsCreated).jobs

    def list_jobs(self, query: Query) -> api.JobList:
        """One page of jobs."""
        return self._get("/v1/jobs", api.JobList, query)

    def get_job(self, job: str) -> api.JobView:
        """Everything about one job."""
        return self._get(f"/v1/jobs/{_quote(job)}", api.JobView)

    def get_events(self, job: str, *, after: int, wait: float) -> api.JobEvents:
        """The timeline after event ``after``; waits up to ``wait`` seconds for news."""
        return self._get(f"/v1/jobs/{_quote(job)}/events", api.JobEvents, {"after": after, "wait": wait}, hold=wait)

    def get_output(self, job: str, *, task: str | None, offset: int, wait: float) -> OutputPiece:
        """Output from ``offset`` on, of the newest task unless ``task`` is given; waits for more."""
        query = {"task": task, "offset": offset, "wait": wait}
        path = f"/v1/jobs/{_quote(job)}/output"
        answer = self.request("GET", path, query=query, hold=wait, repeatable=True, limit=MAX_PIECE)
        try:
            after = int(answer.headers.get("agentina-offset", offset + len(answer.body)))
        except ValueError as error:
            raise errors.ANSWER_UNREADABLE(what="the header Agentina-Offset is no number") from error
        final = answer.headers.get("agentina-final", "").lower() in {"1", "true", "yes"}
        return OutputPiece(data=answer.body, offset=after, final=final, task_id=answer.headers.get("agentina-task", ""))

    def list_artifacts(self, job: str) -> list[wire.ArtifactInfo]:
        """What the job left."""
        return self.get_job(job).artifacts

    def read_artifact(self, job: str, name: str, write: Callable[[bytes], object]) -> None:
        """Pass an artifact's bytes to ``write`` as they arrive. Cut-off bodies are errors; nothing is repeated."""
        path = f"/v1/jobs/{_quote(job)}/artifacts/{urllib.parse.quote(name)}"
        self.close()  # a fresh connection: an idle one may be gone, and half an artifact cannot be repeated
        try:
            response = self._send("GET", path, content=None, headers={}, timeout=self._timeout)
            if response.status // 100 != 2:  # noqa: PLR2004 - 2xx: RFC 9110
                raise _refusal(response.status, self._read(response, MAX_ANSWER))
            with response:
                while piece := response.read(_COPY):
                    write(piece)
                if response.length:
                    raise http.client.IncompleteRead(b"", response.length)
        except _FOREIGN as error:
            self.close()
            raise self._unreachable(error) from error

    def cancel_job(self, job: str, *, reason: str = "") -> api.JobView:
        """Ask for the job's end."""
        return self._act(f"/v1/jobs/{_quote(job)}/cancel", {"reason": reason} if reason else {}, api.JobView)

    def retry_job(self, job: str) -> api.JobView:
        """Queue an ended job again."""
        return self._act(f"/v1/jobs/{_quote(job)}/retry", {}, api.JobView)

    def checkpoint_job(self, job: str) -> api.JobView:
        """Have a checkpoint taken of a job that runs."""
        return self._act(f"/v1/jobs/{_quote(job)}/checkpoint", {}, api.JobView)

    def job_schema(self) -> Any:
        """The JSON Schema of job documents, as this control plane has it."""
        return self._get("/v1/job-schema", dict[str, Any])

    # --- tokens and agents ---

    def create_tokens(self, wanted: api.TokenCreate) -> api.TokensCreated:
        """Mint activation tokens. Never repeated by itself: each call makes new ones."""
        return _decode(self.request("POST", "/v1/tokens", body=wanted), api.TokensCreated)

    def list_tokens(self) -> api.TokenList:
        """All tokens, without their text."""
        return self._get("/v1/tokens", api.TokenList)

    def revoke_token(self, token_id: str) -> None:
        """Make a token worthless."""
        self.request("DELETE", f"/v1/tokens/{_quote(token_id)}", repeatable=True)

    def list_agents(self) -> api.AgentList:
        """All agents."""
        return self._get("/v1/agents", api.AgentList)

    def get_agent(self, agent_id: str) -> api.AgentView:
        """One agent."""
        return self._get(f"/v1/agents/{_quote(agent_id)}", api.AgentView)

    def act_on_agent(self, agent_id: str, verb: str, *, reason: str = "") -> api.AgentView:
        """``drain``, ``resume`` or ``quarantine`` an agent."""
        return self._act(f"/v1/agents/{_quote(agent_id)}/{verb}", api.AgentAct(reason=reason), api.AgentView)

    def remove_agent(self, agent_id: str) -> None:
        """Forget an agent; its tasks are lost."""
        self.request("DELETE", f"/v1/agents/{_quote(agent_id)}", repeatable=True)

    def pin_agent(self, agent_id: str, version: str) -> api.AgentView:
        """Hold an agent to a version; empty: to none."""
        path = f"/v1/agents/{_quote(agent_id)}/pin"
        return _decode(self.request("POST", path, body=api.AgentPin(version=version), repeatable=True), api.AgentView)

    # --- rollouts ---

    def start_rollout(self, wanted: api.RolloutStart) -> api.RolloutView:
        """Begin a rollout. Never repeated by itself; a second one for the same agents is refused."""
        return _decode(self.request("POST", "/v1/rollouts", body=wanted), api.RolloutView)

    def list_rollouts(self) -> api.RolloutList:
        """The newest rollouts."""
        return self._get("/v1/rollouts", api.RolloutList)

    def get_rollout(self, rollout: str, *, limit: int, revision: int = 0, wait: float = 0.0) -> api.RolloutView:
        """One rollout with at most ``limit`` agents; waits up to ``wait`` seconds for a change after ``revision``."""
        query = {"limit": limit, "revision": revision, "wait": wait}
        return self._get(f"/v1/rollouts/{_quote(rollout)}", api.RolloutView, query, hold=wait)

    def act_on_rollout(self, rollout: str, verb: str, *, reason: str = "") -> api.RolloutView:
        """``pause``, ``resume`` or ``abort`` a rollout."""
        return self._act(f"/v1/rollouts/{_quote(rollout)}/{verb}", api.RolloutAct(reason=reason), api.RolloutView)

    def skip_in_rollout(self, rollout: str, agent_id: str) -> api.RolloutView:
        """Leave an agent out of a rollout."""
        return self._act(f"/v1/rollouts/{_quote(rollout)}/skip", api.RolloutSkip(agent=agent_id), api.RolloutView)

    # --- anomalies ---

    def list_anomalies(self, query: Query, *, wait: float = 0.0) -> api.AnomalyList:
        """One page of anomalies."""
        return self._get("/v1/anomalies", api.AnomalyList, {**query, "wait": wait}, hold=wait)

    def get_anomaly(self, anomaly: str) -> api.AnomalyView:
        """One anomaly with its newest reports."""
        return self._get(f"/v1/anomalies/{_quote(anomaly)}", api.AnomalyView)

    def act_on_anomaly(self, anomaly: str, verb: str, *, reason: str = "") -> api.AnomalyView:
        """``acknowledge``, ``close`` or ``reopen`` an anomaly."""
        return self._act(f"/v1/anomalies/{_quote(anomaly)}/{verb}", api.AnomalyAct(reason=reason), api.AnomalyView)

    def answer_anomaly(self, anomaly: str, text: str) -> api.AnomalyView:
        """Say something to the tasks that reported it."""
        return self._act(f"/v1/anomalies/{_quote(anomaly)}/answer", api.AnomalyAnswer(text=text), api.AnomalyView)

    # --- the rest ---

    def list_audit(
        self, *, after: int, limit: int, before: int = 0, wanted: Mapping[str, str | int] | None = None
    ) -> api.AuditList:
        """A page of audit records: oldest first, or newest first with ``before``; ``wanted``: see there."""
        query = {"after": after, "before": before, "limit": limit, **(wanted or {})}
        return self._get("/v1/audit", api.AuditList, query)

    def list_organizations(self) -> api.OrganizationList:
        """Tenants and their limits."""
        return self._get("/v1/organizations", api.OrganizationList)

    def get_organization(self, name: str) -> api.OrganizationView:
        """A tenant and its limits."""
        return self._get(f"/v1/organizations/{_quote(name)}", api.OrganizationView)

    def set_organization(self, name: str, update: api.OrganizationUpdate) -> api.OrganizationView:
        """Create or change a tenant."""
        path = f"/v1/organizations/{_quote(name)}"
        given = {key: value for key, value in msgspec.to_builtins(update).items() if value is not None}
        return _decode(self.request("PUT", path, body=given, repeatable=True), api.OrganizationView)

    def create_operator(self, wanted: api.OperatorCreate) -> api.OperatorToken:
        """Let a new operator in. Never repeated by itself: the token would be lost."""
        return self._act("/v1/operators", wanted, api.OperatorToken)

    def list_operators(self) -> api.OperatorList:
        """All operators, without their tokens."""
        return self._get("/v1/operators", api.OperatorList)

    def renew_operator(self, name: str) -> api.OperatorToken:
        """Give an operator another token; the former one holds no longer."""
        return self._act(f"/v1/operators/{_quote(name)}/renew", None, api.OperatorToken)

    def revoke_operator(self, name: str) -> None:
        """Take an operator's token away."""
        self.request("DELETE", f"/v1/operators/{_quote(name)}", repeatable=True)

    def whoami(self) -> api.WhoAmI:
        """Who the token is, and which control plane this is."""
        return self._get("/v1/whoami", api.WhoAmI)

    def activate(self, request: licensing.Activate) -> licensing.Activated:
        """Redeem an activation token; repeating it with the same key is safe."""
        return _decode(self.request("POST", "/v1/activate", body=request, repeatable=True), licensing.Activated)

    def health(self) -> Answer:
        """``/healthz``; its ``agentina-time`` header tells the control plane's clock."""
        return self.request("GET", "/healthz", repeatable=True, limit=MAX_ANSWER)

    # --- how requests are made ---

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        hold: float = 0.0,
        repeatable: bool = False,
        limit: int = MAX_ANSWER,
    ) -> Answer:
        """Send a request and return its good answer.

        Args:
            method: HTTP method.
            path: From ``/v1`` on, already quoted.
            query: Parameters; None values are left out.
            body: Struct or plain data, sent as JSON.
            headers: Further headers.
            hold: Seconds the control plane may hold the answer back.
            repeatable: Sending it twice does no harm.
            limit: Largest answer accepted, in bytes.

        Raises:
            AgentinaError: What the control plane refused with; ``CONTROL_PLANE_UNREACHABLE``; ``ANSWER_UNREADABLE``.

        """
        target = path + _query(query)
        content = None if body is None else msgspec.json.encode(body)
        pauses = backoff.Backoff(first=self.patience.first, most=self.patience.most)
        while True:
            self._drop_stale()
            reused = self._connection is not None
            retry_after: float | None = None
            try:
                response = self._send(
                    method, target, content=content, headers=headers or {}, timeout=self._timeout + hold
                )
                answer = self._read(response, limit)
                if response.status // 100 == 2:  # noqa: PLR2004 - 2xx: RFC 9110
                    plain = {key.lower(): value for key, value in response.headers.items()}
                    return Answer(status=response.status, headers=plain, body=answer)
                failure = _refusal(response.status, answer)
                again = repeatable and response.status in _BUSY
                retry_after = _retry_after(response)
            except _FOREIGN as error:
                self.close()
                failure = self._unreachable(error)
                again = repeatable or isinstance(error, ConnectionRefusedError)
                if again and reused and isinstance(error, _CLOSED):
                    continue  # the server closed an idle connection; a fresh one tells whether it is there
            if not again or pauses.failures + 1 >= self.patience.attempts:
                raise failure
            if pauses.failures == 0 and self.notice is not None:
                self.notice(failure)
            self._pause(pauses.delay(retry_after))

    def _get(self, path: str, kind: type[T], query: Query | None = None, *, hold: float = 0.0) -> T:
        return _decode(self.request("GET", path, query=query, hold=hold, repeatable=True), kind)

    def _act(self, path: str, body: object, kind: type[T]) -> T:
        return _decode(self.request("POST", path, body=body), kind)

    def _drop_stale(self) -> None:
        """Close the kept connection if the other side closed it, or may do so now.

        A request sent into a closed connection fails as one does that arrived and broke later, so that only what is
        repeatable could be tried again. Of an idle connection nothing is to be read but its end (RFC 9112, 9.5).
        """
        kept = None if self._connection is None else self._connection.sock
        if kept is None:
            return
        ready = select.poll()
        ready.register(kept, select.POLLIN)
        if ready.poll(0) or time.monotonic() - self._idle_since > _IDLE:
            self.close()

    def _send(
        self, method: str, target: str, *, content: bytes | None, headers: Mapping[str, str], timeout: float
    ) -> http.client.HTTPResponse:
        connection = self._connect(timeout)
        complete = {"Accept": "application/json", **headers}
        if content is not None:
            complete["Content-Type"] = "application/json"
        if self._token:
            complete["Authorization"] = f"Bearer {self._token}"
        connection.request(method, self.address.prefix + target, body=content, headers=complete)
        return connection.getresponse()

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        if self._connection is None:
            host, port = self.address.host, self.address.port
            if self.address.tls:
                context = tls_context(self._ca_file)
                proxy = addresses.proxy_for(self.address, os.environ)
                to = proxy or (host, port)
                self._connection = http.client.HTTPSConnection(*to, timeout=timeout, context=context)
                if proxy is not None:
                    self._connection.set_tunnel(host, port)
            else:
                self._connection = http.client.HTTPConnection(host, port, timeout=timeout)
        self._connection.timeout = timeout
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout)
        return self._connection

    def _read(self, response: http.client.HTTPResponse, limit: int) -> bytes:
        # A response nobody closed is closed by its finalizer, in Python code, where an interrupt (Ctrl-C) is lost:
        # exceptions of finalizers go nowhere.
        with response:
            body = response.read(limit + 1)
        if len(body) > limit:
            self.close()
            raise errors.ANSWER_UNREADABLE(what=f"it is larger than {limit} bytes")
        if response.length:
            # read(n) of a body that ends early returns what there was; http.client tells only here.
            raise http.client.IncompleteRead(body, response.length)
        self._idle_since = time.monotonic()
        return body

    def _unreachable(self, error: Exception) -> errors.AgentinaError:
        # A closed connection (RemoteDisconnected) is both; that the other side went away is what matters of it.
        if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
            return errors.ANSWER_UNREADABLE(what=f"{type(error).__name__}: {error}"[:200])
        problem = "it did not answer in time" if isinstance(error, TimeoutError) else _words(error)
        if isinstance(error, http.client.RemoteDisconnected) and not self.address.tls:
            # What a server of https does whom plain http is sent, and one that is about to end.
            problem = "it closed the connection without an answer; perhaps its address begins with https://"
        return errors.CONTROL_PLANE_UNREACHABLE(url=str(self.address), problem=problem)


#: What http.client, ssl and sockets raise (http.client.HTTPException is no OSError).
_FOREIGN: Final = (OSError, http.client.HTTPException)
#: What says that the other side closed the connection.
_CLOSED: Final = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


def _key(stem: str, number: int) -> str:
    """The idempotency key of a job among those that are submitted together, counted from 0."""
    return f"{stem}.{number}"


def _batches(items: Iterable[api.JobOfBatch]) -> Iterator[api.JobBatch]:
    """As many jobs in each as one request takes."""
    batch: list[api.JobOfBatch] = []
    size = 0
    for item in items:
        grows = len(item.job) + _JOB_FRAME
        if batch and (len(batch) == api.MAX_BATCH_JOBS or size + grows > api.MAX_BATCH_BYTES):
            yield api.JobBatch(jobs=batch)
            batch, size = [], 0
        batch.append(item)
        size += grows
    if batch:
        yield api.JobBatch(jobs=batch)


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Verify servers against the system's certificates and those in ``ca_file``.

    Raises:
        AgentinaError: ``FILE_UNREADABLE``, or ``INPUT_UNREADABLE`` when the file is no PEM.

    """
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except ssl.SSLError as error:  # an OSError as well, so it comes first
            raise errors.INPUT_UNREADABLE(where=ca_file, problem=_words(error)) from error
        except OSError as error:
            raise errors.FILE_UNREADABLE(where=ca_file, problem=_words(error)) from error
    return context


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS; perhaps its address begins with http://"
    strerror = getattr(error, "strerror", None)
    return str(strerror or error or type(error).__name__)


def _decode(answer: Answer, kind: type[T]) -> T:
    try:
        return inputs.decode(answer.body, kind, "answer", limit=MAX_ANSWER)
    except errors.AgentinaError as error:
        raise errors.ANSWER_UNREADABLE(what=error.message) from error


def _refusal(status: int, body: bytes) -> errors.AgentinaError:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    return errors.from_wire(document, status=status)


def _retry_after(response: http.client.HTTPResponse) -> float | None:
    try:
        return min(max(0.0, float(response.headers.get("Retry-After", ""))), _MAX_RETRY_AFTER)
    except ValueError:
        return None


def _query(query: Query | None) -> str:
    given = {key: value for key, value in (query or {}).items() if value is not None}
    return "?" + urllib.parse.urlencode(given) if given else ""


def _budget(scope: str, name: str) -> str:
    return f"/v1/budgets/{scope}/{_quote(name)}"


def _quote(part: str) -> str:
    if not part:
        # A shell's variable that is not set; the address would be another one.
        raise errors.INPUT_INVALID(where="the id or name", problem="it is empty")
    return urllib.parse.quote(part, safe="")
