from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentina.client import metadata
from agentina.host.leaving import clouds
from tests.fakes import cloud_metadata, deadlines

PREEMPT = {
    "EventId": "A1",
    "EventType": "Preempt",
    "Resources": ["worker-1"],
    "NotBefore": "Sat, 21 Nov 2026 10:00:00 GMT",
}


@pytest.fixture
async def server() -> AsyncIterator[cloud_metadata.Metadata]:
    async with cloud_metadata.Metadata() as running:
        yield running


# --- which cloud ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "cloud"),
    [
        ({"product_name": "Google Compute Engine\n", "sys_vendor": "Google\n"}, "gce"),
        ({"sys_vendor": "Amazon EC2\n", "product_name": "m7g.large\n"}, "aws"),
        ({"sys_vendor": "Xen\n", "bios_vendor": "Amazon EC2\n"}, "aws"),
        ({"sys_vendor": "Microsoft Corporation\n", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77\n"}, "azure"),
        ({"sys_vendor": "Microsoft Corporation\n", "product_name": "Virtual Machine\n"}, ""),
        ({"sys_vendor": "QEMU\n", "product_name": "Standard PC\n"}, ""),
        ({}, ""),
    ],
)
def test_firmware_tells_the_cloud(tmp_path: Path, files: dict[str, str], cloud: str) -> None:
    directory = tmp_path / "sys/class/dmi/id"
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_text(content)
    assert clouds.detect(tmp_path) == cloud


# --- Google ---------------------------------------------------------------------------------------------------------


async def test_google_tells_of_preemption_the_moment_it_is_known(server: cloud_metadata.Metadata) -> None:
    cloud = clouds.Google(server.address)
    assert await cloud.look() is None
    looking = asyncio.ensure_future(cloud.look())  # noqa: TID251 - held open by the service
    while len(server.requests) < 3:  # noqa: ASYNC110 - another coroutine's list has no event
        await asyncio.sleep(0.01)
    assert "wait_for_change=true" in server.requests[-1]
    server.change(preempted=True)
    notice = await asyncio.wait_for(looking, deadlines.HANG)
    assert notice is not None
    assert notice.near
    assert "preempted" in notice.reason


async def test_google_tells_of_maintenance(server: cloud_metadata.Metadata) -> None:
    server.change(maintenance="MIGRATE_ON_HOST_MAINTENANCE")
    assert await clouds.Google(server.address).look() is None
    server.change(maintenance="TERMINATE_ON_HOST_MAINTENANCE")
    notice = await clouds.Google(server.address).look()
    assert notice is not None
    assert "maintenance" in notice.reason


async def test_somebody_elses_answer_is_not_googles(server: cloud_metadata.Metadata) -> None:
    server.nonsense = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nTRUE"
    with pytest.raises(metadata.UnreadableError, match="not Google's"):
        await clouds.Google(server.address).look()


# --- Amazon ---------------------------------------------------------------------------------------------------------


async def test_amazon_tells_of_an_interruption(server: cloud_metadata.Metadata) -> None:
    cloud = clouds.Amazon(server.address)
    assert await cloud.look() is None
    server.change(action={"action": "terminate", "time": "2026-11-21T10:02:00Z"})
    notice = await cloud.look()
    assert notice is not None
    assert notice.near
    assert notice.reason == "is a spot instance that will be terminated at 2026-11-21T10:02:00Z"
    assert server.requests.count("PUT /latest/api/token") == 1, "one session token for all requests"


async def test_amazons_advice_is_no_certainty(server: cloud_metadata.Metadata) -> None:
    server.change(advice={"noticeTime": "2026-11-21T09:00:00Z"})
    notice = await clouds.Amazon(server.address).look()
    assert notice is not None
    assert not notice.near
    assert "2026-11-21T09:00:00Z" in notice.reason
    server.change(action={"action": "stop", "time": "2026-11-21T10:02:00Z"})
    notice = await clouds.Amazon(server.address).look()
    assert notice is not None
    assert notice.near


async def test_token_that_is_over_is_replaced(server: cloud_metadata.Metadata) -> None:
    cloud = clouds.Amazon(server.address)
    await cloud.look()
    server.tokens.clear()
    assert await cloud.look() is None
    assert server.requests.count("PUT /latest/api/token") == 2


# --- Azure ----------------------------------------------------------------------------------------------------------


async def test_azure_tells_of_events_of_this_machine(server: cloud_metadata.Metadata) -> None:
    cloud = clouds.Azure(server.address)
    other = {**PREEMPT, "Resources": ["worker-2"]}
    freeze = {**PREEMPT, "EventType": "Freeze"}
    server.change(events=[other, freeze])
    assert await cloud.look() is None
    server.change(events=[other, PREEMPT])
    notice = await cloud.look()
    assert notice is not None
    assert notice.reason == "will be preempted after Sat, 21 Nov 2026 10:00:00 GMT"
    server.change(events=[])
    assert await cloud.look() is None, "a canceled event is gone"
    names = [request for request in server.requests if "/instance/" in request]
    assert len(names) == 1


async def test_event_that_has_begun_says_now() -> None:
    begun = clouds.read_azure({"Events": [{**PREEMPT, "EventType": "Reboot", "NotBefore": ""}]}, "worker-1")
    assert begun is not None
    assert begun.reason == "will be rebooted now"


# --- whatever comes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cloud", sorted(clouds.CLOUDS))
@pytest.mark.parametrize(
    "nonsense",
    [
        b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 X\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 X\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\n[]",
    ],
)
async def test_what_cannot_be_read_is_no_notice(server: cloud_metadata.Metadata, cloud: str, nonsense: bytes) -> None:
    server.nonsense = nonsense
    with pytest.raises(metadata.UnreadableError):
        await clouds.CLOUDS[cloud](server.address).look()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)


@given(
    st.dictionaries(st.sampled_from(["action", "time", "noticeTime", "Events"]), JSON)
    | st.fixed_dictionaries(
        {
            "Events": st.lists(
                st.dictionaries(
                    st.sampled_from(["EventId", "EventType", "Resources", "NotBefore"]),
                    JSON | st.sampled_from(["Preempt", "Reboot"]) | st.just(["worker-1"]),
                )
            )
        }
    )
)
def test_any_document_is_a_notice_fit_for_a_terminal_or_none(document: dict[str, Any]) -> None:
    for notice in (
        clouds.read_amazon_action(document),
        clouds.read_amazon_advice(document),
        clouds.read_azure(document, "worker-1"),
    ):
        assert notice is None or (notice.reason.isprintable() and len(notice.reason) < 200)
