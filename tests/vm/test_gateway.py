"""Jobs in slots with a gateway: no network but by it, which has the keys; over restarts.

The model is ours, beside the host, and so are the stand-ins for the command lines of AI agents.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from agentina import errors
from agentina.gateway import forwarder, variables
from agentina.host.work import doors
from agentina.inside import toolserver
from agentina.protocol.states import State
from tests.vm import attacks, coding, host, models, programs


@pytest.fixture(autouse=True, scope="module")
def stand_ins(coding_bench: coding.Bench) -> None:
    programs.stand_in(coding_bench.there)


@pytest.mark.parametrize("runner", programs.STAND_INS)
def test_stand_in_fixes_a_bug(bench: coding.Bench, runner: str) -> None:
    _, output = bench.fix(runner)
    # It is a user of its own, and has loopback, its own files, orders, and nothing else.
    assert "_default-S" in output
    assert '\\nhome\\nmirror\\norders\\nworkspace\\nlo:\\n"' in output


@pytest.mark.parametrize("scope", ["agent", "organization"])
def test_budget_of_a_day_that_is_used_up_holds_an_agent_until_it_is_raised(bench: coding.Bench, scope: str) -> None:
    fleet = bench.lab.fleet
    agent = next(one for one in fleet.client.list_agents().agents if one.hostname == bench.there.name)
    name = {"agent": agent.id, "organization": agent.organization}[scope]
    bench.fix("claude-code")
    first = len(bench.provider.asked[0].body) // 3
    used = fleet.document("budget", "set", f"--{scope}", name, "--tokens", "1000000000", "--json")["used"]["tokens"]
    # The first call fits with some output, the second, which brings what the command printed, does not.
    limit = used + first + 400
    fleet.answer("budget", "set", f"--{scope}", name, "--tokens", str(limit), "--on-exhausted", "park")
    try:
        bench.begin_anew()
        job = bench.submit()
        reason = host.wait_for(lambda: fleet.job(job).tasks and fleet.job(job).tasks[-1].parked, "it is parked")
        assert f"of {limit} tokens of the {scope}'s budget of the day are used" in reason
        assert len(bench.provider.asked) == 1
        fleet.answer("budget", "raise", f"--{scope}", name, "--tokens", "1000000")
        bench.ended(job)
        fresh, _, output = bench.provider.billed
        shown = fleet.document("budget", "show", f"--{scope}", name, "--json")
        assert shown["used"]["tokens"] == used + fresh + output
    finally:
        fleet.answer("budget", "set", f"--{scope}", name, "--none")


# --- while things are restarted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", coding.ENDS)
def test_task_goes_on_over(bench: coding.Bench, end: str) -> None:
    """The next call finds the way out again."""
    bench.check_goes_on(bench.break_off(end, 1, "claude-code"))


def test_twenty_agents_at_once(
    bench: coding.Bench,
    measured: Callable[[str], None],
) -> None:
    """All of them wait for the model at the same time; each is counted to the token, and the gateway stays small."""
    jobs = [{"runner": "claude-code", "resources": {"memory": "256MiB", "cpu": 0.1}}] * 20
    resident = bench.at_once(jobs).gateway
    measured(f"the gateway with 20 agents in the middle of an answer: {resident:.0f} MiB")


# --- what a task says ------------------------------------------------------------------------------------------------

#: Uses each verb on the command line, and each tool of the server that the runner configured; prints what comes of it.
SPEAK: Final = """
import json, os, subprocess
def verb(*arguments):
    done = subprocess.run(["agentina", "task", *arguments], capture_output=True, text=True)
    print(json.dumps([done.returncode, done.stdout.strip(), done.stderr.strip()]))
def call(method, **parameters):
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
    print(json.dumps(message), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())["result"]
def tool(name, **arguments):
    result = call("tools/call", name=name, arguments=arguments)
    print(json.dumps([int(result["isError"]), result["content"][0]["text"], ""]))
with open(f"{os.environ['HOME']}/.agentina/mcp.json") as file:
    configured = json.load(file)["mcpServers"]["agentina"]
server = subprocess.Popen(
    [configured["command"], *configured["args"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)
for name in "first", "second":
    with open(name, "w") as file:
        file.write(name)
begun = call("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "x", "version": "1"})
print(json.dumps([0, begun["serverInfo"]["name"], [one["name"] for one in call("tools/list")["tools"]]]))
verb("progress", "half way", "--percent", "50")
verb("artifact", "first")
verb("budget", "--json")
verb("complain", "broken-tool", "it is not there", "--about", "make")
verb("ask", "which one?", "--wait", "5m")
tool("answer", question=1)
tool("progress", text="nearly there", percent=90)
tool("artifact", path="second")
tool("budget")
tool("complain", kind="other", text="no tea")
tool("ask", text="and now?", wait=0)
verb("answer", "2")
server.stdin.close()
print(json.dumps([server.wait(60), "", ""]))
"""


def test_task_speaks_and_is_answered_over_a_restart(bench: coding.Bench) -> None:
    """The daemon is restarted while a task waits for an operator's answer, and its tool server runs."""
    job = begin(bench, SPEAK)
    question = bench.wait_reported(job, "TASK_QUESTION")
    complaint = bench.reported(job, "COMPLAINT_BROKEN_TOOL")
    assert complaint is not None
    bench.there.run("systemctl restart agentina@default")
    bench.lab.fleet.answer("anomaly", "answer", complaint["id"], "use ninja")
    bench.lab.fleet.answer("anomaly", "answer", question["id"], "the second")
    _, lines = printed(bench, job)
    told = [json.loads(line) for line in lines]
    assert told[0] == [0, "agentina", [one["name"] for one in toolserver.TOOLS]]
    codes, texts, _ = zip(*told[1:], strict=True)
    assert codes == (0,) * 11 + (1, 0), told
    assert (texts[0], texts[1]) == ("noted", "first is kept when the task has ended")
    budgets = [json.loads(texts[2]), json.loads(texts[8])]
    assert [(left["tokens"], left["calls"]) for left in budgets] == [(1_000_000, 1)] * 2
    assert (texts[4], texts[5]) == ("the second", "The operator answers: the second")
    assert texts[6:8] == ("noted", "second is kept when the task has ended")
    assert texts[10] == "no answer yet; ask for the answer to question 2 later"
    assert str(told).count("use ninja") == 1
    view = bench.lab.fleet.job(job)
    assert [artifact.name for artifact in view.artifacts] == ["first", "second"]
    said = [event.text for event in view.events if event.state is None]
    words = ["half way", "make", "which one?", "nearly there", "no tea", "and now?", "used 2 calls of models"]
    assert [word for word, text in zip(words, said, strict=True) if word in text] == words, said
    progress = view.tasks[0].progress
    assert progress is not None
    assert (progress.text, progress.percent) == ("nearly there", 90)


# --- a hostile task --------------------------------------------------------------------------------------------------

#: Asks a gateway by a socket's or an address's name, as the holder of a token; prints the status of its answer.
ASK: Final = """
import socket, sys
def ask(place, token, head="GET /agentina/budget HTTP/1.1", host="x"):
    try:
        if isinstance(place, str):
            made = socket.socket(socket.AF_UNIX)
        else:
            made = socket.socket()
        made.settimeout(20)
        made.connect(place)
        proof = f"Proxy-Authorization: Bearer {token}\\r\\nx-api-key: {token}"
        made.sendall(f"{head}\\r\\nHost: {host}\\r\\n{proof}\\r\\nConnection: close\\r\\n\\r\\n".encode())
        return int(made.recv(100).split()[1])
    except OSError as error:
        return error.strerror or str(error)
"""


@dataclasses.dataclass
class Neighbour:
    """Another task, which has said "mine" and sleeps."""

    job: str
    task: str
    token: str
    #: Its gateway's socket, as root sees it.
    socket: str
    #: Its process.
    pid: int


@pytest.fixture
def neighbour(bench: coding.Bench) -> Iterator[Neighbour]:
    there = bench.there
    job = bench.lab.fleet.submit_script(
        "agentina task progress mine; exec sleep 100000",
        budget={"tokens": 100_000},
        resources={"memory": "64MiB", "cpu": 0.1},
    )
    bench.lab.fleet.wait_state(job, State.RUNNING, seconds=host.PATIENCE)
    pid = int(there.wait("pgrep -x -f 'sleep 100000'", "the neighbour runs"))
    environment = dict(pair.split("=", 1) for pair in there.run(f"tr '\\0' '\\n' < /proc/{pid}/environ").splitlines())
    task = environment["AGENTINA_TASK_ID"]
    made = there.wait(f"ls /var/lib/agentina/.slots/*/task/orders/gateway-{task}.sock", "its gateway listens").strip()
    yield Neighbour(job, task, environment["ANTHROPIC_API_KEY"], made, pid)
    with contextlib.suppress(errors.AgentinaError):  # it has ended
        bench.lab.fleet.client.cancel_job(job)
    bench.lab.fleet.wait_final(job)


def attack(bench: coding.Bench, program: str, **fields: Any) -> tuple[str, list[str]]:
    """Have an agent run a Python program, after its command line has asked the model; its task, and what it printed."""
    return printed(bench, begin(bench, program, **fields))


def begin(bench: coding.Bench, program: str, **fields: Any) -> str:
    """Have an agent begin with a Python program; its job."""
    packed = base64.b64encode(program.encode()).decode()
    bench.provider.command = f"echo {packed} | base64 -d > ../home/program; python3 ../home/program && echo complete"
    return bench.submit(**fields)


def printed(bench: coding.Bench, job: str) -> tuple[str, list[str]]:
    """The task of an agent that has ended, and what its program printed."""
    view = bench.lab.fleet.wait_final(job)
    for line in bench.lab.fleet.output(job).decode().splitlines():
        event = json.loads(line)
        if event["type"] == "user":
            *found, last = event["message"]["content"][0]["content"].splitlines()
            assert last == "complete", event
            return view.tasks[0].id, found
    raise AssertionError(bench.lab.fleet.output(job).decode())


@pytest.mark.usefixtures("neighbour")
def test_no_key_is_in_a_task(bench: coding.Bench) -> None:
    seek = attacks.seek(*models.KEYS.values(), is_deep=True)
    bench.there.put(seek.encode(), "/root/seek.py")
    to_root = bench.there.run("python3 /root/seek.py").split()
    gateway = int(bench.there.run(coding.GATEWAY))
    handed = {f"/run/credentials/agentina@default.service/{name}" for name in ("openai", "spare")}
    assert {*models.STORES.values(), *handed, f"/proc/{gateway}/mem"} == set(to_root)
    # All three are in use: the task has asked models of each provider.
    task, found = attack(bench, seek, verify={"argv": ["false"]})
    assert found == []
    # What its command line and we wrote of it is kept, and has none either: nor have the journal and what we print.
    assert bench.there.run(f"ls -A {bench.kept(task)}/home").split() == [".agentina", ".claude.log", "program"]
    keys = " ".join(f"-e {key}" for key in models.KEYS.values())
    assert bench.there.run(f"grep -rlF {keys} /var/lib/agentina /var/cache /run/agentina /tmp || true") == ""
    assert bench.there.run(f"journalctl -a | grep -F {keys} || true") == ""
    assert bench.there.run(f"ps -eo args | grep -F {keys} | grep -v grep || true") == ""


def test_key_of_each_provider_is_used(bench: coding.Bench) -> None:
    """A model that only the spare provider serves is asked with the key that was encrypted on the disk."""
    call = (
        "import json, os, urllib.request as u\n"
        "body = json.dumps({'model': 'spare-1', 'max_tokens': 9, 'messages': [{'role': 'user', 'content': 'x'}]})\n"
        "url, key = os.environ['ANTHROPIC_BASE_URL'] + '/v1/messages', os.environ['ANTHROPIC_API_KEY']\n"
        "print(u.urlopen(u.Request(url, body.encode(), {'x-api-key': key})).status)\n"
    )
    assert attack(bench, call)[1] == ["200"]
    used = [asked.headers["x-api-key"] for asked in bench.provider.asked if asked.document["model"] == "spare-1"]
    assert used == [models.KEYS["spare"]]


def test_doctor_knows_of_keys_that_systemd_hands_over(bench: coding.Bench) -> None:
    """The daemon says whether they can be used; without it, its unit says which ones there will be."""

    def said() -> str:
        checks = json.loads(bench.there.run("agentina doctor --json"))["checks"]
        (told,) = [f"{check['verdict']}: {check['message']}" for check in checks if check["name"] == "gateway"]
        return told

    assert "ok: /etc/agentina/gateway.yaml is valid, and the daemon can use it and its keys." in said()
    bench.there.run("systemctl stop agentina@default")
    try:
        assert (
            "ok: /etc/agentina/gateway.yaml is valid and its keys are there; systemd is to hand over openai, spare."
            in (said())
        )
    finally:
        bench.there.run("systemctl start agentina@default")


def test_task_reaches_its_own_gateway_only(bench: coding.Bench, neighbour: Neighbour) -> None:
    to_root = bench.there.run("cat > /root/connect.py; python3 /root/connect.py", text=attacks.CONNECT).split()
    assert neighbour.socket in to_root
    orders = attacks.ORDERS
    program = f"""{attacks.CONNECT}{ASK}
import glob, os
print("--")
(own,) = glob.glob("{orders}/gateway-*.sock")
token = os.environ["ANTHROPIC_API_KEY"]
print(ask(own, token), ask(own, "{neighbour.token}"), ask(own, "agt_x"), ask(own, ""))
print(ask(own, "{neighbour.token}", "CONNECT example.com:443 HTTP/1.1", "example.com:443"))
print(ask(("{variables.address(neighbour.task)}", {forwarder.PORT}), "{neighbour.token}"))
for act in (
    lambda: os.unlink(own), lambda: os.rename(own, own + "x"), lambda: os.chmod(own, 0), lambda: os.link(own, "./x"),
    lambda: socket.socket(socket.AF_UNIX).bind("{orders}/x"), lambda: os.rename("{orders}", "{orders}x"),
    lambda: open(f"{{os.path.dirname(own)}}/lease", "a"),
):
    try:
        act()
        print("done")
    except OSError as error:
        print(error.strerror)
"""
    task, found = attack(bench, program)
    at = found.index("--")
    own = f"{orders}/{variables.socket_name(task)}"
    assert own in found[:at]
    assert set(found[:at]) <= {own, f"{orders}/{doors.socket_name(task)}"}
    answers, proxied, other, *acts = found[at + 1 :]
    assert answers == "200 403 403 403"
    assert proxied == "407"
    assert other == "Connection refused"
    assert set(acts) == {"Permission denied", "Operation not permitted"}, acts


def test_token_is_worth_nothing_after_its_task(bench: coding.Bench, neighbour: Neighbour) -> None:
    _, found = attack(bench, "import os; print(os.environ['ANTHROPIC_API_KEY'])")
    bench.there.put(f"{ASK}\nprint(*(ask(sys.argv[1], token) for token in sys.argv[2:]))".encode(), "/root/ask.py")
    ask = f"python3 /root/ask.py {neighbour.socket} {neighbour.token} {found[0]}"
    assert bench.there.run(ask).split() == ["200", "403"]
    bench.lab.fleet.client.cancel_job(neighbour.job)
    bench.lab.fleet.wait_final(neighbour.job)
    assert bench.there.run(ask).strip() == "No such file or directory No such file or directory"


#: Says something to a task's daemon; prints what comes of it.
SAY: Final = """
import json, os, socket, time
def say(place, **request):
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.settimeout(20)
            made.connect(place)
            made.sendall(json.dumps({"id": os.urandom(8).hex(), **request}).encode() + b"\\n")
            print(json.loads(made.makefile().readline()).get("error", {}).get("code", "heard"))
    except OSError as error:
        print(error.strerror)
"""


def test_task_speaks_for_itself_only(bench: coding.Bench, neighbour: Neighbour) -> None:
    """No task, and no other user of the host, speaks in a task's name."""
    name = doors.socket_name(neighbour.task)
    ways = [
        f"{Path(neighbour.socket).parent}/{name}",
        f"/proc/{neighbour.pid}/root{attacks.ORDERS}/{name}",
        f"/proc/{neighbour.pid}/cwd/../orders/{name}",
    ]
    outside = f"{SAY}\nfor place in {ways!r}:\n    say(place, verb='budget')\n"
    bench.there.put(outside.encode(), "/usr/local/share/say.py")
    assert bench.there.run("python3 /usr/local/share/say.py").splitlines() == ["heard"] * 3
    assert bench.there.run("python3 /usr/local/share/say.py", user="nobody").splitlines() == ["Permission denied"] * 3
    program = f"""{SAY}
own = os.environ["AGENTINA_TASK_SOCKET"]
while not os.path.exists(own):
    time.sleep(0.02)  # it opens a moment after the start
say(own, verb="progress", text="own")
for place in {[*ways, f"{attacks.ORDERS}/{name}"]!r}:
    say(place, verb="progress", text="forged")
say(own, verb="progress", text="forged", task_id={neighbour.task!r})
say(own, verb="answer", question=1)
say(own, verb="status")
say(own, method="status")
for act in (
    lambda: os.unlink(own), lambda: os.rename(own, own + "x"), lambda: os.chmod(own, 0), lambda: os.link(own, "./x")
):
    try:
        act()
        print("done")
    except OSError as error:
        print(error.strerror)
"""
    task, found = attack(bench, program)
    own, others, forged, acts = found[:1], found[1:5], found[5:9], found[9:]
    assert own == ["heard"]
    assert set(others) <= {"No such file or directory", "Permission denied"}, others
    assert forged == ["INPUT_UNKNOWN_KEY", *["INPUT_INVALID"] * 3]
    assert len(acts) == 4
    assert set(acts) <= {"Permission denied", "Operation not permitted"}, acts
    for one, text in ((neighbour.task, "mine"), (task, "own")):
        progress = bench.lab.fleet.job(one.partition(".")[0]).tasks[0].progress
        assert progress is not None
        assert progress.text == text
