"""The clouds whose notices are understood: how each is told from hardware, what to ask, what an answer means.

| cloud | notice | asked |
| --- | --- | --- |
| Google (gce) | preempted; maintenance that stops the machine | a request that the service holds for 15 s |
| Amazon (aws) | spot interruption, 2 min ahead; rebalance recommendation | every 5 s (IMDSv2) |
| Microsoft (azure) | scheduled events of this machine: preempt, terminate, redeploy, reboot | every 10 s |

Sources: "Spot VMs" and "Query metadata" (cloud.google.com/compute/docs), "Spot Instance interruption notices" and
"Use IMDSv2" (docs.aws.amazon.com/AWSEC2), "Scheduled Events" (learn.microsoft.com/azure/virtual-machines/linux).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from agentina.client import metadata
from agentina.host.leaving import departure

_LINK_LOCAL: Final = "169.254.169.254"
_OK: Final = 200
_UNAUTHORIZED: Final = 401
_ABSENT: Final = {404, 410}
#: Seconds an answer may take; one on the same machine takes milliseconds.
_SECONDS: Final = 5.0
_UNTIL: Final = re.compile(r"[0-9TtZz:., +A-Za-z-]{1,40}")
#: What SMBIOS says of the maker: file below /sys/class/dmi/id, how it begins, the cloud.
_MAKERS: Final = (
    ("product_name", "Google Compute Engine", "gce"),
    ("sys_vendor", "Amazon EC2", "aws"),
    ("bios_vendor", "Amazon EC2", "aws"),
    ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77", "azure"),
)


def detect(root: Path = Path("/")) -> str:
    """Which cloud this machine is of, by what its firmware says; empty: none of them. Asks no network."""
    for name, beginning, cloud in _MAKERS:
        try:
            with (root / "sys/class/dmi/id" / name).open("rb") as file:
                if file.read(256).startswith(beginning.encode()):
                    return cloud
        except OSError:
            continue
    return ""


class Cloud(Protocol):
    """One cloud's metadata service."""

    #: Seconds between the end of one look and the next.
    pause: float

    async def look(self) -> departure.Notice | None:
        """What the service says now.

        Raises:
            UnreadableError: It cannot be asked; what it said before still holds.

        """
        ...


class Google:
    """Asks for two values only: the whole tree has what others put there for this machine, secrets among it."""

    pause = 1.0
    #: Seconds the service holds the request for what is urgent, until it changes.
    _HOLD: Final = 15

    def __init__(self, address: str = "") -> None:
        self._service = metadata.Service(address or _LINK_LOCAL)
        self._etag = ""

    async def look(self) -> departure.Notice | None:
        """See :class:`Cloud`; after the first time it returns when it is preempted, or after a while."""
        preempted, etag = await self._read("preempted", self._etag)
        self._etag = etag if re.fullmatch(r"[0-9A-Za-z]{1,64}", etag) else ""
        event, _ = await self._read("maintenance-event", "")
        return read_google(preempted, event)

    async def _read(self, name: str, etag: str) -> tuple[str, str]:
        target, seconds = f"/computeMetadata/v1/instance/{name}", _SECONDS
        if etag:
            target += f"?wait_for_change=true&last_etag={etag}&timeout_sec={self._HOLD}"
            seconds += self._HOLD
        answer = await self._service.request("GET", target, {"Metadata-Flavor": "Google"}, seconds=seconds)
        if answer.headers.get("metadata-flavor") != "Google":
            raise metadata.UnreadableError("what answers is not Google's metadata service")
        if answer.status in _ABSENT:
            return "", ""
        if answer.status != _OK:
            raise metadata.UnreadableError(f"the metadata service answers with HTTP status {answer.status}")
        return answer.body.decode("latin-1").strip()[:64], answer.headers.get("etag", "")


def read_google(preempted: str, event: str) -> departure.Notice | None:
    """The notice in the values of ``preempted`` and ``maintenance-event``."""
    if preempted.upper() == "TRUE":
        return departure.Notice(reason="is being preempted by Google Compute Engine", key="preempted")
    if event.startswith("TERMINATE"):
        return departure.Notice(reason="is about to be stopped for host maintenance", key=event)
    return None


class Amazon:
    """Asks for both documents with one session token; they do not exist until there is something to say."""

    pause = 5.0
    #: Seconds a token holds; that it is over is told by a 401.
    _TOKEN_SECONDS: Final = 21_600

    def __init__(self, address: str = "") -> None:
        self._service = metadata.Service(address or _LINK_LOCAL)
        self._token = ""

    async def look(self) -> departure.Notice | None:
        """See :class:`Cloud`."""
        action = await self._read("/latest/meta-data/spot/instance-action")
        notice = read_amazon_action(action) if action is not None else None
        if notice is not None:
            return notice
        advice = await self._read("/latest/meta-data/events/recommendations/rebalance")
        return None if advice is None else read_amazon_advice(advice)

    async def _read(self, target: str) -> dict[str, Any] | None:
        for _ in range(2):
            token = self._token or await self._take_token()
            headers = {"X-aws-ec2-metadata-token": token}
            answer = await self._service.request("GET", target, headers, seconds=_SECONDS)
            if answer.status in _ABSENT:
                return None
            if answer.status != _UNAUTHORIZED:
                return _document(answer)
            self._token = ""
        raise metadata.UnreadableError("the metadata service refuses the token it has just given")

    async def _take_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(self._TOKEN_SECONDS)}
        answer = await self._service.request("PUT", "/latest/api/token", headers, seconds=_SECONDS)
        token = answer.body.decode("latin-1").strip()
        if answer.status != _OK or not re.fullmatch(r"[!-~]{1,1024}", token):
            raise metadata.UnreadableError(f"the metadata service gives no token (HTTP status {answer.status})")
        self._token = token
        return token


def read_amazon_action(document: dict[str, Any]) -> departure.Notice | None:
    """The notice in ``spot/instance-action``."""
    action = str(document.get("action"))
    words = {"terminate": "terminated", "stop": "stopped", "hibernate": "hibernated"}.get(action)
    if words is None:
        return None
    when = _moment(document.get("time"))
    reason = f"is a spot instance that will be {words}{f' at {when}' if when else ''}"
    return departure.Notice(reason=reason, key=f"{action} {when}")


def read_amazon_advice(document: dict[str, Any]) -> departure.Notice:
    """The notice in ``events/recommendations/rebalance``: a risk, no certainty."""
    when = _moment(document.get("noticeTime"))
    since = f" since {when}" if when else ""
    reason = f"is a spot instance at a higher risk of interruption{since}; `agentina resume` takes work all the same"
    return departure.Notice(reason=reason, key=f"rebalance {when}", near=False)


class Azure:
    """Asks for this machine's name once and for the events of its scale set after that."""

    pause = 10.0
    #: The first request for events switches them on, which may take two minutes.
    _FIRST_SECONDS: Final = 130.0

    def __init__(self, address: str = "") -> None:
        self._service = metadata.Service(address or _LINK_LOCAL)
        self._name = ""
        self._is_first = True

    async def look(self) -> departure.Notice | None:
        """See :class:`Cloud`."""
        if not self._name:
            target = "/metadata/instance/compute?api-version=2021-02-01"
            name = _document(await self._get(target, _SECONDS)).get("name")
            if not isinstance(name, str) or not name:
                raise metadata.UnreadableError("the metadata service does not tell this machine's name")
            self._name = name
        seconds = self._FIRST_SECONDS if self._is_first else _SECONDS
        answer = await self._get("/metadata/scheduledevents?api-version=2020-07-01", seconds)
        self._is_first = False
        return read_azure(_document(answer), self._name)

    async def _get(self, target: str, seconds: float) -> metadata.Answer:
        return await self._service.request("GET", target, {"Metadata": "true"}, seconds=seconds)


def read_azure(document: dict[str, Any], name: str) -> departure.Notice | None:
    """The notice in a list of scheduled events for the machine ``name``; a freeze of some seconds is none."""
    words = {
        "Preempt": "preempted",
        "Terminate": "deleted",
        "Redeploy": "moved to other hardware",
        "Reboot": "rebooted",
    }
    events = document.get("Events")
    for event in events if isinstance(events, list) else []:
        if not isinstance(event, dict):
            continue
        resources = event.get("Resources")
        kind = words.get(str(event.get("EventType")))
        if kind is not None and isinstance(resources, list) and name in resources:
            when = _moment(event.get("NotBefore"))
            reason = f"will be {kind}{f' after {when}' if when else ' now'}"
            return departure.Notice(reason=reason, key=str(event.get("EventId"))[:64])
    return None


CLOUDS: Final[dict[str, Callable[[str], Cloud]]] = {"gce": Google, "aws": Amazon, "azure": Azure}


def _document(answer: metadata.Answer) -> dict[str, Any]:
    if answer.status != _OK:
        raise metadata.UnreadableError(f"the metadata service answers with HTTP status {answer.status}")
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise metadata.UnreadableError("the metadata service's answer is not JSON") from error
    if not isinstance(document, dict):
        raise metadata.UnreadableError("the metadata service's answer is no JSON object")
    return document


def _moment(value: object) -> str:
    """A time as the service wrote it; empty when it is none (it is shown to people)."""
    return value if isinstance(value, str) and _UNTIL.fullmatch(value) else ""
