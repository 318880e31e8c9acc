"""``make bench``: speed and size in one run, as ratios to goals, to limits of this machine, and to peers.

Absolute numbers depend on the machine; the ratios are what to compare between versions. What varies from one run to the
next is measured several times: the median counts, and the best and the worst are told. ``--help`` lists the benchmarks;
``--page`` puts the figures into docs/explanation/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from agentina.protocol import api as messages
from agentina.system import clock
from benchmarks import gateway as gateways
from benchmarks import lab as labs
from benchmarks import measure
from benchmarks.peers import buildbot, slurm

#: Lines of a page between which the figures are.
_PAGE_BEGIN: Final = "<!-- figures: written by python -m benchmarks.run --page -->"
_PAGE_END: Final = "<!-- end of figures -->"
#: Figures that others are compared with.
_DISPATCH: Final = "dispatch latency p50"
_RATE: Final = "trivial jobs per second, submitted one after the other"


class Figure(NamedTuple):
    """One thing measured, once or several times."""

    name: str
    values: tuple[float, ...]
    unit: str
    goal: float | None = None
    better: str = "lower"

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """How the median compares with its goal, and in how many runs it was met; empty without one."""
        if self.goal is None:
            return ""
        met = sum(value <= self.goal if self.better == "lower" else value >= self.goal for value in self.values)
        said = "met" if met == len(self.values) else f"met in {met} of {len(self.values)}" if met else "NOT met"
        return f"{self.value / self.goal:.2f} x, {said}"


#: What was measured so far, by name.
FIGURES: dict[str, Figure] = {}


def show(name: str, value: float, unit: str, *, goal: float | None = None, better: str = "lower") -> None:
    """Note one figure and print it; with a goal also the ratio to it."""
    earlier = FIGURES[name].values if name in FIGURES else ()
    FIGURES[name] = Figure(name, (*earlier, value), unit, goal, better)
    verdict = "" if goal is None else f"   goal {goal:g} {unit}: {Figure(name, (value,), unit, goal, better).verdict}"
    print(f"  {name:<58} {value:10.2f} {unit}{verdict}", flush=True)


def floor() -> None:
    """What this machine takes with no product: a process for each job, what must be durable, and Python itself."""
    count = 500
    show("floor: a million small steps of this Python", min(_step_ms() for _ in range(5)), "ms")
    with marking() as marks, tempfile.TemporaryFile() as log:
        measure.wait_quiet()
        began, busy = time.monotonic(), measure.machine_busy_seconds()
        for number in range(count):
            os.waitpid(os.posix_spawn(marks.program, marks.argv(f"job-{number}"), {}), 0)
        cpu, seconds = measure.machine_busy_seconds() - busy, time.monotonic() - began
        show("floor: a process that does nothing, started and waited for", 1000 * seconds / count, "ms")
        show("floor: its CPU", 1000 * cpu / count, "ms")
        began, busy = time.monotonic(), measure.machine_busy_seconds()
        for _ in range(count):
            os.write(log.fileno(), bytes(4096))
            os.fdatasync(log.fileno())
        cpu, seconds = measure.machine_busy_seconds() - busy, time.monotonic() - began
        show("floor: 4 KiB made durable", 1000 * seconds / count, "ms")
        show("floor: their CPU", 1000 * cpu / count, "ms")


def _step_ms() -> float:
    """CPU of a loop that does what the product does most: look up, add, format."""
    began = time.process_time()
    counts: dict[int, int] = {}
    for number in range(1_000_000):
        counts[number % 100] = counts.get(number % 100, 0) + len(str(number))
    return 1000 * (time.process_time() - began)


def dispatch() -> None:
    """Submit call to first instruction, one job at a time."""
    with labs.running(slots=8) as lab, marking() as marks:
        measure.wait_quiet()
        found = measure.latencies_ms(marks, lab.submit, count=200, gap_seconds=0.03)
        show(_DISPATCH, measure.percentile(found, 0.5), "ms", goal=5)
        show("dispatch latency p99", measure.percentile(found, 0.99), "ms", goal=10)


def throughput() -> None:
    """Many trivial jobs, eight at a time, submitted together, from first submit until the last has ended."""
    rate, cpu = _throughput(lambda lab, argvs: lab.submit_all(argvs)[-1])
    show("trivial jobs per second, durable, end to end", rate, "jobs/s", goal=600, better="higher")
    show("CPU per trivial job, all processes but the submitter", cpu, "ms", goal=2)


def singly() -> None:
    """The same jobs submitted one after the other, each with a request and a durable commit of its own."""
    rate, cpu = _throughput(lambda lab, argvs: [lab.submit(argv) for argv in argvs][-1])
    show(_RATE, rate, "jobs/s")
    show("CPU per trivial job, submitted one after the other", cpu, "ms")


def _throughput(submit: Callable[[labs.Lab, list[list[str]]], str], *, count: int = 2000) -> tuple[float, float]:
    """Jobs per second, and milliseconds of CPU for each; ``submit`` returns the last one's id."""
    with labs.running(slots=8) as lab, marking() as marks:
        measure.wait_quiet()
        for name in ("warm-1", "warm-2"):
            lab.submit(marks.argv(name))
        marks.wait({"warm-1", "warm-2"})
        names = [f"job-{number}" for number in range(count)]
        busy, mine, began = measure.machine_busy_seconds(), time.process_time(), time.monotonic()
        last = submit(lab, [marks.argv(name) for name in names])
        # Asked first, for the answer is held meanwhile: looking at marks again and again would take CPU from the jobs.
        wait_final(lab, last)
        marks.wait(set(names))
        seconds = time.monotonic() - began
        cpu = measure.machine_busy_seconds() - busy - (time.process_time() - mine)
        return count / seconds, 1000 * cpu / count


def burst() -> None:
    """A hundred one-second jobs at once: submitted together, and one after the other."""
    with labs.running(slots=100) as lab, marking() as marks:
        measure.wait_quiet()
        seconds = measure.burst_seconds(marks, lab.submit_all, count=100)
        show("burst of 100 jobs until all run", seconds, "s", goal=0.15)
        # The first hundred have ended.
        wait_until(lambda: not lab.fences())
        measure.wait_quiet()
        seconds = measure.burst_seconds(marks, lambda argvs: [lab.submit(argv) for argv in argvs], count=100)
        show("burst of 100 jobs submitted one after the other", seconds, "s")


def supervision() -> None:
    """What one running task costs besides itself."""
    count, trivial = 50, 500
    with labs.running(slots=count) as lab, marking() as marks:
        wait_until(lambda: len(lab.supervisors()) >= count)
        for _ in range(count):
            lab.submit(["/bin/sleep", "5"])
        wait_running(lab, count)
        sizes = [measure.memory_kib(pid)["Private"] / 1024 for pid in lab.fences()]
        show("supervisors of running tasks", len(sizes), "", goal=count, better="higher")
        show("private memory of one supervisor, mean", sum(sizes) / len(sizes), "MiB", goal=3)
        helpers = [pid for root in lab.helpers() for pid in measure.descendants(root)]
        wait_until(lambda: not lab.fences())
        spent = measure.cpu_seconds(helpers)
        names = [f"job-{number}" for number in range(trivial)]
        last = [lab.submit(marks.argv(name)) for name in names][-1]
        marks.wait(set(names))
        wait_final(lab, last)
        spent = measure.cpu_seconds(helpers) - spent
        show("CPU of supervision per trivial task, with the task itself", 1000 * spent / trivial, "ms", goal=3)


def idle() -> None:
    """The daemon and the control plane with nothing to do, over TLS."""
    with labs.running(slots=8, tls=True) as lab:
        time.sleep(5)
        daemon = lab.processes["daemon"].pid
        seconds = 30.0
        before = measure.run_seconds(daemon)
        time.sleep(seconds)
        spent = measure.run_seconds(daemon) - before
        helpers = [pid for root in lab.helpers() for pid in measure.descendants(root)]
        show("idle daemon RSS, TLS", measure.memory_kib(daemon)["Rss"] / 1024, "MiB", goal=45)
        show("idle daemon private memory", measure.memory_kib(daemon)["Private"] / 1024, "MiB")
        show(
            "its nursery and a free supervisor for each of 8 slots, PSS",
            sum(measure.memory_kib(pid)["Pss"] for pid in helpers) / 1024,
            "MiB",
        )
        show("idle daemon CPU between heartbeats", 100 * spent / seconds, "%", goal=0.02)
        server = lab.processes["control-plane"].pid
        show("idle control plane RSS", measure.memory_kib(server)["Rss"] / 1024, "MiB", goal=60)


def cli() -> None:
    """Start-up of `agentina status` against the interpreter's own."""
    with labs.running(slots=1) as lab:
        command = [str(Path(sys.executable).with_name("agentina")), "status"]
        # Compiled once, as it is where it is installed, whatever the environment says.
        compiled = {**lab.environment, "PYTHONPYCACHEPREFIX": str(lab.home / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
        status = median_seconds(command, compiled)
        bare = median_seconds([sys.executable, "-c", "pass"], compiled)
        show("python3 -c pass", 1000 * bare, "ms")
        show("agentina status", 1000 * status, "ms")
        show("agentina status against python3 -c pass", status / bare, "x", goal=8)
        show("agentina status against python3 -c pass, stretch", status / bare, "x", goal=4.5)


def output() -> None:
    """Output of a task until the control plane has all of it."""
    size = 256 << 20
    with labs.running(slots=1) as lab:
        document = {"name": "output", "payload": {"argv": ["head", "-c", str(size), "/dev/zero"]}}
        began = time.monotonic()
        job = lab.client.submit_job({**document, "limits": {"output": size + 1}}).id
        wait_final(lab, job)
        show("task output to durable storage", size / (time.monotonic() - began) / 1e6, "MB/s")


class Simulator:
    """The process of :mod:`benchmarks.simulator`, as a context."""

    def __init__(self, lab: labs.Lab, *arguments: str, secrets: list[str]) -> None:
        command = [sys.executable, "-m", "benchmarks.simulator", arguments[0], lab.url, str(lab.ca_file or "")]
        self._process = subprocess.Popen([*command, *arguments[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._write("".join(f"{secret}\n" for secret in secrets))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def answer(self) -> dict[str, float]:
        """Its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the simulator failed; its message is above")
        answer: dict[str, float] = json.loads(line)
        return answer

    def go(self) -> None:
        """Let it do the next."""
        self._write("go\n")

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()


def control() -> None:
    """The control plane alone: trivial jobs submitted one after the other to one simulated agent."""
    count = 2000
    with labs.running() as lab:
        token = lab.client.create_tokens(messages.TokenCreate()).tokens[0].token
        server = lab.processes["control-plane"].pid
        measure.wait_quiet()
        secrets = [lab.token_file.read_text().strip(), token]
        spent = measure.run_seconds(server)
        with Simulator(lab, "jobs", str(count), "8", secrets=secrets) as simulator:
            found = simulator.answer()
            cpu = 1000 * (measure.run_seconds(server) - spent) / count
            show("control plane CPU per trivial job", cpu, "ms", goal=0.8)
            show("jobs per second through the control plane, durable", count / found["seconds"], "jobs/s")
            simulator.go()
            spent = measure.run_seconds(server)
            found = simulator.answer()
            cpu = 1000 * (measure.run_seconds(server) - spent) / count
            show("control plane CPU per trivial job, at leisure", cpu, "ms")
            show("submit answered, at leisure, p50", found["p50"], "ms")
            show("submit answered, at leisure, p99", found["p99"], "ms")


def polls() -> None:
    """Five thousand agents with held polls over TLS, then their heartbeats."""
    count, seconds = 5000, 10
    with labs.running(tls=True) as lab:
        lab.client.set_organization("default", messages.OrganizationUpdate(max_agents=count))
        tokens: list[str] = []
        while len(tokens) < count:
            tokens += [made.token for made in lab.client.create_tokens(messages.TokenCreate(count=1000)).tokens]
        server = lab.processes["control-plane"].pid
        before, spent = measure.memory_kib(server), measure.run_seconds(server)
        with Simulator(lab, "polls", str(count), str(seconds), secrets=tokens) as simulator:
            found = simulator.answer()
            held = int(found["held"])
            show("agents activated and polls held, per second", held / found["seconds"], "1/s")
            cpu = 1000 * (measure.run_seconds(server) - spent) / count
            show("control plane CPU per TLS handshake, activation, session, poll", cpu, "ms")
            show("agents with open long polls, TLS, one process", held, "", goal=count, better="higher")
            time.sleep(2)
            after = measure.memory_kib(server)
            memory = (after["Anonymous"] - before["Anonymous"]) / held
            show("control plane memory per held agent", memory, "KiB", goal=60)
            spent = measure.run_seconds(server)
            time.sleep(seconds)
            show("control plane CPU, all polls held", 100 * (measure.run_seconds(server) - spent) / seconds, "%")
            spent = measure.run_seconds(server)
            simulator.go()
            found = simulator.answer()
            spent = measure.run_seconds(server) - spent
            rate = found["heartbeats_per_second"]
            per_cpu = rate * seconds / spent
            show("empty heartbeats per second, sharing two cores with the agents", rate, "1/s")
            show("empty heartbeats per second of control plane CPU", per_cpu, "1/s", goal=4500, better="higher")
            show("agents whose poll is still held", found["held"], "", goal=count, better="higher")
            began = time.monotonic()
            lab.processes["control-plane"].terminate()
            lab.processes["control-plane"].wait(30)
            show("control plane stops with all polls held", time.monotonic() - began, "s", goal=5)


def rollouts() -> None:
    """An operator aborts a rollout that 10,000 agents have: how long others wait for the event loop."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "benchmarks.rollouts", "10000", directory]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    show("abort of a rollout of 10,000 agents: event loop held at once", found["longest_ms"], "ms", goal=10)
    show("the same: all of it until every agent is told", found["wall_ms"], "ms")


def peers() -> None:
    """The same jobs through Buildbot and Slurm: one at a time, and many."""
    for name, benchmark in ((_DISPATCH, dispatch), (_RATE, singly)):
        if name not in FIGURES:
            benchmark()
    home = Path.home() / ".cache/agentina-bench"
    home.mkdir(parents=True, exist_ok=True)
    with marking() as marks:
        with buildbot.running(buildbot.install(home), builders=8) as peer:
            measure.wait_quiet()
            found = measure.latencies_ms(marks, peer.submit, count=40, gap_seconds=0.1)
            peer.wait_idle()
            rate = measure.jobs_per_second(marks, peer.submit, count=60)
            peer.wait_idle()
        _compare("buildbot", found, rate, goal=50)
        if not slurm.available():
            print("  slurm: skipped (needs root and Debian's slurm packages)")
            return
        with slurm.running() as batch:
            measure.wait_quiet()
            found = measure.latencies_ms(marks, batch.submit, count=60, gap_seconds=0.05)
            rate = measure.jobs_per_second(marks, batch.start, count=200)
        _compare("slurm", found, rate, goal=1)


def _compare(peer: str, latencies_ms: list[float], rate: float, *, goal: float) -> None:
    """Show a peer's figures and how many times better ours are."""
    latency = measure.percentile(latencies_ms, 0.5)
    show(f"{peer} dispatch latency p50", latency, "ms")
    show(f"times faster than {peer}, dispatch", latency / FIGURES[_DISPATCH].value, "x", goal=goal, better="higher")
    show(f"{peer} trivial jobs per second", rate, "jobs/s")
    show(f"times faster than {peer}, many jobs", FIGURES[_RATE].value / rate, "x", goal=goal, better="higher")


def gateway() -> None:
    """What the egress gateway adds to a call of a model, and what passes through it."""
    found = gateways.run()
    direct, through = (measure.percentile(values, 0.5) for values in (found.direct_ms, found.through_ms))
    show("call of a model, directly, p50", direct, "ms")
    show("added by the gateway, p50", through - direct, "ms", goal=1)
    late = measure.percentile(found.through_ms, 0.99) - measure.percentile(found.direct_ms, 0.99)
    show("added by the gateway, p99", late, "ms")
    show("CPU of the gateway for one call", found.call_cpu_ms, "ms")
    show("streamed answer, per core of the gateway", found.answer_per_cpu, "MB/s", goal=200, better="higher")
    show("streamed answer, as seen by the task", found.answer_per_second, "MB/s")
    show("tunnel, per core of the gateway", found.tunnel_per_cpu, "MB/s", goal=200, better="higher")
    show("tunnel, as seen by the task", found.tunnel_per_second, "MB/s")
    show("gateway RSS after 256 MiB", found.resident_mib, "MiB")


# fmt: off
ALL: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        floor, dispatch, throughput, singly, burst, supervision, idle, cli, output, control, polls, rollouts, gateway,
        peers,
    )
}
# fmt: on


#: Those whose figures vary most from one run to the next.
REPEATED: Final = frozenset({"dispatch", "throughput", "singly", "burst"})


class marking:  # noqa: N801 - reads as a context manager
    """Marks that are removed at the end."""

    def __enter__(self) -> measure.Marks:
        self._marks = measure.Marks()
        return self._marks

    def __exit__(self, *_: object) -> None:
        self._marks.close()


def wait_final(lab: labs.Lab, job: str) -> None:
    """Wait until the job has ended."""
    after = 0
    while True:
        events = lab.client.get_events(job, after=after, wait=20)
        after = max([after, *(event.number for event in events.events)])
        if events.final:
            return


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the daemon did not get there")
        time.sleep(0.1)


def wait_running(lab: labs.Lab, count: int) -> None:
    """Wait until ``count`` tasks run."""
    wait_until(lambda: len(lab.fences()) >= count)


def median_seconds(argv: list[str], environment: dict[str, str], *, runs: int = 31) -> float:
    """Median wall time of a command."""
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        seconds.append(time.perf_counter() - began)
    return measure.percentile(seconds, 0.5)


def table(figures: Sequence[Figure]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| what | median | best to worst | goal | |", "| --- | ---: | ---: | ---: | --- |"]
    for figure in figures:
        unit = f" {figure.unit}" if figure.unit else ""
        sign = "≤" if figure.better == "lower" else "≥"
        goal = "" if figure.goal is None else f"{sign} {figure.goal:g}{unit}"
        ordered = sorted(figure.values, reverse=figure.better != "lower")
        spread = f"{_shown(ordered[0])} to {_shown(ordered[-1])}" if len(ordered) > 1 else ""
        lines.append(f"| {figure.name} | {_shown(figure.value)}{unit} | {spread} | {goal} | {figure.verdict} |")
    return "\n".join(lines)


def _shown(value: float) -> str:
    return f"{value:,.{2 if value == 0 or abs(value) >= 0.1 else 4}f}"


def with_figures(page: str, figures: Sequence[Figure], *, said: str) -> str:
    """``page`` with the figures, below the sentence ``said``, in the place of earlier ones.

    Raises:
        ValueError: It has no place for them.

    """
    before, begin, rest = page.partition(_PAGE_BEGIN)
    _, end, after = rest.partition(_PAGE_END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {_PAGE_BEGIN} and {_PAGE_END}")
    return f"{before}{begin}\n\n{said}\n\n{table(figures)}\n\n{end}{after}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    listing = "\n".join(f"  {name:<12} {(function.__doc__ or '').strip()}" for name, function in ALL.items())
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description="Measure speed and size on this machine. Leave it alone meanwhile: what else runs is measured too.",
        epilog=f"benchmarks:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("names", nargs="*", metavar="BENCHMARK", help="which to run (default: all)")
    again = ", ".join(sorted(REPEATED))
    made.add_argument("--runs", type=int, default=5, metavar="N", help=f"how often to run each of {again} (default: 5)")
    made.add_argument("--page", type=Path, metavar="FILE", help="put the figures into this page, between its marks")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the named benchmarks, or all."""
    line = parser()
    chosen = line.parse_args(arguments)
    unknown = sorted(set(chosen.names) - ALL.keys())
    if unknown:
        line.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(ALL)}")
    for name in chosen.names or ALL:
        print(f"{name}: {(ALL[name].__doc__ or '').strip()}", flush=True)
        for _ in range(chosen.runs if name in REPEATED else 1):
            ALL[name]()
    if chosen.page is not None:
        day = clock.show_time(time.time_ns() // 1_000_000)[:10]
        said = f"Measured on {day} on a machine with {os.cpu_count()} processors."
        chosen.page.write_text(with_figures(chosen.page.read_text(), list(FIGURES.values()), said=said))


if __name__ == "__main__":
    main()
