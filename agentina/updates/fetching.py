"""Downloads for the TUF client, bounded in time. Their size is bounded by the caller, from signed metadata.

One connection pool an update; the proxies of the environment are used; redirects are not followed, for a release
repository has no reason to send its clients elsewhere. Plain http is accepted: what TUF verifies needs no TLS.

Bounds: every single wait for the network ends after ``silence_seconds``, and everything that is fetched inside one
:meth:`Fetcher.limit` block together after its seconds, however slowly a server drips, be it in the body, the headers
or the handshake: a timer shuts the connections down. Only the system's resolver has its own limits (resolv.conf(5)).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Final

import urllib3
from tuf.api import exceptions
from tuf.ngclient import fetcher

import agentina
from agentina.system import clock as clocks

_PIECE: Final = 256 << 10


class Fetcher(fetcher.FetcherInterface):
    """Fetches URLs for python-tuf."""

    def __init__(self, *, silence_seconds: float, clock: clocks.Clock, ca_file: str = "") -> None:
        self._ca_file = ca_file
        self._clock = clock
        self._timeout = urllib3.Timeout(connect=silence_seconds, read=silence_seconds)
        # Compressed answers are not asked for: sizes in the metadata are those of the files.
        self._headers = {"user-agent": f"agentina/{agentina.__version__}", "accept-encoding": "identity"}
        self._pools: dict[str, urllib3.PoolManager] = {}
        #: Second descriptors of the connections opened in this block. TLS takes the first ones over.
        self._sockets: list[socket.socket] = []
        self._deadline: float | None = None
        self._response: urllib3.BaseHTTPResponse | None = None

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Let all that is fetched in the block take at most ``seconds`` together."""
        self._deadline = self._clock.boot() + seconds
        timer = threading.Timer(seconds, self._shut_down)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            self._deadline = None
            while self._sockets:
                self._sockets.pop().close()
            # A connection that is used again must be known to the next block's timer.
            self.close()
            if self._response is not None:
                # The caller may have seen enough before the end.
                self._response.close()

    def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            pool.clear()

    def _shut_down(self) -> None:
        """End all connections: whoever waits for one sees its end (shutdown(2))."""
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _fetch(self, url: str) -> Iterator[bytes]:
        self._check_deadline(url)
        try:
            response = self._pool(url).request(
                "GET", url, headers=self._headers, timeout=self._timeout, retries=False, redirect=False,
                preload_content=False, decode_content=False,
            )  # fmt: skip
        except urllib3.exceptions.TimeoutError as error:
            raise exceptions.SlowRetrievalError(f"{_host(url)} is silent") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._check_deadline(url)
            raise exceptions.DownloadError(f"{_host(url)}: {_reason(error)}") from error
        self._response = response
        if response.status != 200:  # noqa: PLR2004 - RFC 9110; a repository has nothing to answer in between
            response.close()
            # python-tuf takes 403 and 404 for "there is no newer root".
            raise exceptions.DownloadHTTPError(f"{_host(url)} answered {response.status}", response.status)
        return self._pieces(url, response)

    def _pieces(self, url: str, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        try:
            while True:
                # read1: what has arrived, so that the deadline is looked at after every wait, the last one included.
                piece = response.read1(_PIECE)
                self._check_deadline(url)
                if not piece:
                    return
                yield piece
        except urllib3.exceptions.TimeoutError as error:
            raise exceptions.SlowRetrievalError(f"{_host(url)} is silent") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._check_deadline(url)
            raise exceptions.DownloadError(f"{_host(url)}: {_reason(error)}") from error
        finally:
            response.close()

    def _check_deadline(self, url: str) -> None:
        if self._deadline is not None and self._clock.boot() > self._deadline:
            raise exceptions.SlowRetrievalError(f"{_host(url)} is too slow")

    def _tls_context(self) -> ssl.SSLContext:
        """The system's certificate authorities, and the one that is named."""
        context = ssl.create_default_context()
        if self._ca_file:
            context.load_verify_locations(self._ca_file)
        return context

    def _pool(self, url: str) -> urllib3.PoolManager:
        proxy = _proxy_for(url)
        if proxy not in self._pools:
            context = self._tls_context()
            self._pools[proxy] = (
                urllib3.ProxyManager(proxy, ssl_context=context) if proxy else urllib3.PoolManager(ssl_context=context)
            )
            self._pools[proxy].pool_classes_by_scheme = _pools_that_tell(self._sockets)
        return self._pools[proxy]


def _pools_that_tell(opened: list[socket.socket]) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """urllib3's connection pools, which put a second descriptor of each connection into ``opened``."""

    class Plain(urllib3.connection.HTTPConnection):
        def _new_conn(self) -> socket.socket:
            connection = super()._new_conn()
            opened.append(connection.dup())
            return connection

    class Tls(urllib3.connection.HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            connection = super()._new_conn()
            opened.append(connection.dup())
            return connection

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Tls

    return {"http": PlainPool, "https": TlsPool}


def _proxy_for(url: str) -> str:
    """The proxy that the environment names for ``url``, or an empty string."""
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies_environment()
    if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return ""
    return proxies.get(parts.scheme) or proxies.get("all") or ""


def _host(url: str) -> str:
    """What of a URL goes into messages: a password or a token in it must not."""
    return urllib.parse.urlsplit(url).hostname or "the repository"


def _reason(error: Exception) -> str:
    """The words of the system where there are some, for urllib3's own begin with an object's address."""
    cause = error.__cause__ or error.__context__
    return str(cause) if isinstance(cause, OSError) and cause.strerror else type(error).__name__
