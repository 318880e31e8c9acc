"""Budgets with real processes: tasks of several hosts call a model at once, while its keepers are killed."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from agentina.protocol import budgets as messages
from tests.acceptance import fleet as fleets
from tests.fakes import model_provider

#: Calls a model from many threads until each is refused for the budget; calls that break off are made again.
#: Arguments: threads, calls of each, and its name, which the provider sees.
CALLER = """
import http.client, json, os, sys, threading, urllib.error, urllib.request

def call():
    body = json.dumps({"model": "claude-haiku-4-5", "stream": True, "max_tokens": 100}).encode()
    request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", body)
    request.add_header("x-api-key", os.environ["ANTHROPIC_API_KEY"])
    request.add_header("user-agent", sys.argv[3])
    with urllib.request.urlopen(request, timeout=100) as answer:
        return answer.read()

def work(most):
    while most:
        try:
            answer = call()
        except urllib.error.HTTPError as error:
            print(error.code, error.read().decode(), flush=True)
            return
        except (OSError, http.client.HTTPException):
            continue
        most -= b"message_stop" in answer
    print("done", flush=True)

threads = [threading.Thread(target=work, args=(int(sys.argv[2]),)) for _ in range(int(sys.argv[1]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def calls(provider: model_provider.ModelProvider, name: str) -> int:
    """Calls it was asked for by a caller."""
    return sum(asked.headers["user-agent"] == name for asked in list(provider.asked))


def billed(provider: model_provider.ModelProvider) -> int:
    """Tokens that count against a budget."""
    fresh, _, output = provider.billed
    return fresh + output


@contextlib.contextmanager
def made(root: Path, *instances: str) -> Iterator[tuple[fleets.Fleet, model_provider.ModelProvider]]:
    """A control plane and hosts, each for the jobs of a role that has its name."""
    provider = model_provider.ModelProvider()
    with model_provider.in_thread(provider), fleets.running(root, heartbeat_seconds=1.0) as fleet:
        for instance in instances:
            fleet.install(instance, "--role", instance)
            fleet.add_gateway(instance, provider.url)
            fleet.start_daemon(instance)
        yield fleet, provider


def submit(fleet: fleets.Fleet, role: str, *, threads: int, most: int, **keys: object) -> str:
    program = fleet.root / "caller.py"
    program.write_text(CALLER)
    argv = [sys.executable, str(program), str(threads), str(most), role]
    return fleet.submit(argv, role=role, **{"budget": {}, "retry": {"max_attempts": 1}, **keys})


def used(fleet: fleets.Fleet) -> dict[str, int]:
    """What the report says of everything."""
    total: dict[str, int] = fleet.document("report", "usage", "--json")["total"]
    return total


def counted(total: dict[str, int]) -> int:
    return total.get("input", 0) + total.get("cache_write", 0) + total.get("output", 0)


def test_fifty_callers_on_two_hosts_do_not_overrun_a_budget_while_its_keepers_are_killed(tmp_path: Path) -> None:
    # Room for all calls at once (a call holds 123 tokens, and uses 50), and for some rounds after them.
    limit, hosts, callers = 9_000, ("one", "two"), 25
    with made(tmp_path, *hosts) as (fleet, provider):
        fleet.answer("budget", "set", "--organization", "default", "--tokens", str(limit))
        provider.held_from = 1
        jobs = [submit(fleet, host, threads=callers, most=10_000) for host in hosts]
        fleets.wait_for(lambda: [calls(provider, host) for host in hosts] == [callers] * 2, "all call at once")
        fleet.kill("control-plane")
        # What these held and did not use is enough for a dozen more on each host, whoever is there to be asked.
        provider.let_go(holds_on=True)
        fleets.wait_for(
            lambda: min(calls(provider, host) for host in hosts) >= callers + 8, "hosts work on within their shares"
        )
        before = calls(provider, "one")
        fleet.kill("one")
        fleet.start_daemon("one", wait=False)
        fleet.start_control_plane()
        # Its gateway ended with it, in the middle of calls: there is another when these are made again.
        fleets.wait_for(lambda: calls(provider, "one") > before, "calls that broke off are made again")
        provider.let_go()
        for job in jobs:
            fleet.wait_final(job)
            text = fleet.output(job).decode()
            assert text.count("BUDGET_EXHAUSTED") == callers, text
            assert f"of {limit} tokens of the organization's budget of the day are used" in text
        total = used(fleet)
        # Calls that broke off are counted by an upper estimate, and what is left is less than a call may take.
        assert billed(provider) < counted(total) <= limit < counted(total) + 123
        shown = fleet.document("budget", "show", "--organization", "default", "--json")
        assert shown["used"]["tokens"] == counted(total)
        assert fleet.document("report", "usage", "--by", "agent", "--json")["rows"][1]["calls"] > 0


def test_parked_tasks_go_on_when_the_budget_is_raised(tmp_path: Path) -> None:
    with made(tmp_path, "one") as (fleet, provider):
        fleet.answer("budget", "set", "--organization", "default", "--tokens", "1300", "--on-exhausted", "park")
        check_parked(fleet, provider, "job")
        check_what_a_task_sees(fleet)
        check_parked(fleet, provider, "organization")
        actions = [entry["action"] for entry in fleet.document("audit", "list", "--json")["entries"]]
        assert (actions.count("budget.set"), actions.count("budget.raise")) == (1, 2)


def check_parked(fleet: fleets.Fleet, provider: model_provider.ModelProvider, scope: str) -> None:
    """A task is held for the budget of a scope, which says so, until it is raised."""
    before = billed(provider)
    job = submit(
        fleet,
        "one",
        threads=1,
        most=12 if scope == "job" else 24,
        budget={"tokens": 250, "on_exhausted": "park"} if scope == "job" else {},
    )
    reason = fleets.wait_for(lambda: fleet.job(job).tasks and fleet.job(job).tasks[-1].parked, "it is parked")
    assert f"of {250 if scope == 'job' else 1300} tokens" in reason
    held = billed(provider)
    if scope == "job":
        assert "parked: " in fleet.answer("job", "show", job)
        assert reason in fleet.answer("status", "--instance", "one")
        assert reason in fleet.answer("budget", "show", "--job", job)
        fleet.answer("budget", "raise", "--job", job, "--tokens", "10000")
    else:
        shown = fleet.client.raise_budget("organization", "default", messages.BudgetRaise(tokens=10_000))
        assert shown.parked == [f"{job}.1: {reason}"]
    view = fleet.wait_final(job)
    assert fleet.output(job).decode() == "done\n"
    assert before < held < billed(provider) == fleet.client.get_usage({}).total.counted
    assert any("held at a call" in event.text for event in view.events)


def check_what_a_task_sees(fleet: fleets.Fleet) -> None:
    look = 'curl -sf -H "x-api-key: $ANTHROPIC_API_KEY" "$AGENTINA_GATEWAY/agentina/budget"'
    job = fleet.submit_script(look, role="one", budget={"tokens": 5000})
    fleet.wait_final(job)
    told = json.loads(fleet.output(job))
    assert told["left"]["tokens"] == 5000
    assert told["left_of_day"]["organization"]["tokens"] < 1300
