"""Wiring and life of a control plane process. Only the command line and tests import this.

::

    app.serve(config.Settings(data=Path("/var/lib/agentina-control")), app.Announcements())
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

import uvloop

from agentina import errors
from agentina.control import config, keys, plane, server
from agentina.control.api import dispatch, routes
from agentina.control.services import duties, operators, rollouts
from agentina.control.store import engine
from agentina.protocol import api
from agentina.system import clock as clocks
from agentina.system import files, tasks

#: In the directory of data.
_DATABASE: Final = "control.db"
#: Collections of the middle generation before the oldest is looked at: everything waits for that, 0.2 s with the held
#: polls of five thousand agents, and requests leave next to nothing there. Ten is Python's own number.
_FULL_COLLECTION: Final = 100

_log = logging.getLogger(__name__)


def _nothing(_: str) -> None:
    pass


def _raised_to_the_caller(_: BaseException) -> None:
    pass


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Announcements:
    """What the process has to say to whoever started it. It prints nothing itself."""

    #: The URL it listens on, once it does.
    address: Callable[[str], None] = _nothing
    #: The first operator's token, on the very first start only.
    operator_token: Callable[[str], None] = _nothing


def serve(settings: config.Settings, announce: Announcements, *, clock: clocks.Clock | None = None) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        AgentinaError: ``STATE_CONFLICT`` (another process uses the data, or the database is newer), ``INPUT_INVALID``,
            ``STATE_UNWRITABLE``, ``STORAGE_FULL``, ``FILE_UNREADABLE``, ``INPUT_UNREADABLE`` (the certificate).

    """
    _allow_many_connections()
    # A thread that returns from the disk waits at most this long for the event loop to yield (the default is ten times
    # as much); commits and blobs are what threads do here.
    sys.setswitchinterval(0.0005)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with running(settings, announce, clock=clock):
            # What is here now stays: no collection looks at it again, while all requests wait.
            gc.freeze()
            young, middle, _ = gc.get_threshold()
            gc.set_threshold(young, middle, _FULL_COLLECTION)
            await stop.wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@contextlib.asynccontextmanager
async def running(
    settings: config.Settings, announce: Announcements, *, clock: clocks.Clock | None = None
) -> AsyncIterator[plane.Plane]:
    """A control plane that serves while the block runs. Raises like :func:`serve`."""
    async with _opened(settings, announce, clock or clocks.SystemClock()) as control:
        background = duties.Duties(control)
        try:
            application = dispatch.Application(control, routes.table())
            async with _serving(control, application, announce):
                running_duties = tasks.start(background.run(), name="duties")
                try:
                    yield control
                finally:
                    control.stop()
                    await tasks.cancel(running_duties)
        finally:
            with contextlib.suppress(errors.AgentinaError):
                await background.flush_heartbeats()


def renew_operator(settings: config.Settings, name: str) -> api.OperatorToken:
    """Give an operator another token, where nobody has one that holds; it is kept where the settings say.

    Raises:
        AgentinaError: ``NOT_FOUND`` (the operator, or a control plane's data), ``STATE_CONFLICT`` (it is running).

    """
    if not (settings.data / _DATABASE).exists():
        raise errors.NOT_FOUND(what="control plane's data in", name=str(settings.data))

    async def renew() -> api.OperatorToken:
        async with _opened(settings, Announcements(), clocks.SystemClock()) as control:
            made = await operators.renew(control, name, actor="control-plane")
        _keep_token(settings, made.token)
        return made

    return asyncio.run(renew())


@contextlib.asynccontextmanager
async def _opened(
    settings: config.Settings, announce: Announcements, clock: clocks.Clock
) -> AsyncIterator[plane.Plane]:
    """Its data, of which this process has the only use."""
    with _locked(settings):
        control = await _open(settings, announce, clock)
        try:
            yield control
        finally:
            control.blobs.close()
            await control.store.close()


def _allow_many_connections() -> None:
    """Every agent holds a connection: use all descriptors the system allows this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _locked(settings: config.Settings) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
            stack.enter_context(files.exclusive_lock(settings.data / "lock"))
        except BlockingIOError as error:
            raise errors.STATE_CONFLICT(
                what=f"The data directory {settings.data}", state="used by another control plane process",
                expected="one process for each data directory",
            ) from error  # fmt: skip
        except OSError as error:
            problem = error.strerror or str(error)
            raise errors.STATE_UNWRITABLE(path=str(settings.data), problem=problem) from error
        yield


async def _open(settings: config.Settings, announce: Announcements, clock: clocks.Clock) -> plane.Plane:
    os.umask(0o077)
    identity = keys.load_or_create(settings.data)
    store = engine.Store(settings.data / _DATABASE, now_ms=clock.wall_ms())
    try:
        control = plane.Plane(settings, store=store, identity=identity, clock=clock)
        await _ensure_operator(control, announce)
        control.load()
        rollouts.load(control)
    except BaseException:
        await store.close()
        raise
    return control


async def _ensure_operator(control: plane.Plane, announce: Announcements) -> None:
    token = await operators.ensure_first(control)
    if token:
        _keep_token(control.settings, token)
        announce.operator_token(token)


def _keep_token(settings: config.Settings, token: str) -> None:
    if settings.token_file is not None:
        files.write_atomic(settings.token_file, token.encode() + b"\n")


@contextlib.asynccontextmanager
async def _serving(
    control: plane.Plane, application: dispatch.Application, announce: Announcements
) -> AsyncIterator[None]:
    http = server.make(application, control.settings)
    listener, url = server.listen(control.settings)
    serving = tasks.start(http.serve(sockets=[listener]), name="http", on_failure=_raised_to_the_caller)
    try:
        await _until_listening(http, serving)
        announce.address(url)
        _notify_systemd("READY=1")
        yield
    finally:
        _notify_systemd("STOPPING=1")
        http.should_exit = True
        await asyncio.wait([serving])
        listener.close()


async def _until_listening(http: server.Server, serving: asyncio.Task[None]) -> None:
    """Wait until it listens, or raise what keeps it from that."""
    listening = tasks.start(http.listening.wait(), name="http start")
    await asyncio.wait([serving, listening], return_when=asyncio.FIRST_COMPLETED)
    await tasks.cancel(listening)
    if serving.done():
        await serving


def _notify_systemd(message: str) -> None:
    """Tell systemd (sd_notify(3)); without it nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
