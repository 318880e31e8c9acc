"""Tasks have no network unless the host's owner gives it to them, by a drop-in that the package brings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.vm import container, slots

DROP_IN = "/etc/systemd/system/agentina-task@.service.d"
#: The machine that runs the tests, as every host sees it. Nothing listens there: refused means reached.
CONNECT = """
import errno, socket, sys
for address in sys.argv[1:]:
    try:
        socket.create_connection((address, 1), timeout=2)
    except OSError as error:
        print(address, errno.errorcode.get(error.errno, error))
"""


@pytest.fixture(scope="module")
def there(new_container: Callable[..., container.Container]) -> container.Container:
    made = new_container("network")
    slots.prepare(made)
    made.put(CONNECT.encode(), "/usr/local/bin/connect.py")
    return made


def outcome(there: container.Container, when: str) -> dict[str, str]:
    connect = "/usr/bin/python3 /usr/local/bin/connect.py 10.0.2.2 127.0.0.1"
    shown = slots.run_one(there, f": {when}; {connect}")
    return dict(line.split() for line in shown["output"].splitlines())


def guarantee(there: container.Container) -> str:
    script = """
        async def main():
            executor = await opened()
            print(json.dumps(executor.guarantees()["network"]))
            await executor.close()
        asyncio.run(main())
        """
    return str(slots.python(there, script))


def test_network_is_the_owners_to_give(there: container.Container) -> None:
    alone = {"10.0.2.2": "ENETUNREACH", "127.0.0.1": "ECONNREFUSED"}
    assert outcome(there, "before") == alone
    assert guarantee(there) == "none but its own loopback, and the host's gateway where its job asks for it"
    there.run(f"mkdir -p {DROP_IN}; ln -s /usr/lib/agentina/task-network.conf {DROP_IN}/network.conf")
    there.run("systemctl daemon-reload")
    assert outcome(there, "given") == {"10.0.2.2": "ECONNREFUSED", "127.0.0.1": "ECONNREFUSED"}
    # A container's packets pass no filter of systemd's; in a machine of its own the connection is dropped.
    denied = slots.unit_property(there, "agentina-task@contract-S1.service", "IPAddressDeny")
    assert "169.254.0.0/16" in denied.split()
    assert guarantee(there).startswith("the host's")
    there.run(f"rm -r {DROP_IN}; systemctl daemon-reload")
    assert outcome(there, "taken back") == alone
