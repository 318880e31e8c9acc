"""Tasks as slots of the template unit, on a host with the package: contract, attacks, accidents, cost."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import container, host, lab, machine, slots

SOURCE = Path(__file__).parents[2]
#: What the contract suite needs besides them.
TEST_LIBRARIES = (
    "pytest",
    "_pytest",
    "pluggy",
    "iniconfig",
    "packaging",
    "pytest_asyncio",
    "pygments",
    "py",
    "typing_extensions",
)


@pytest.fixture(scope="module")
def there(new_container: Callable[..., container.Container]) -> container.Container:
    made = new_container("slots")
    slots.prepare(made)
    return made


# --- the contract ----------------------------------------------------------------------------------------------------


def test_contract(there: container.Container) -> None:
    """The suite every executor passes, as the daemon's user, with the real PID 1."""
    for name in TEST_LIBRARIES:
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None
        path = Path(spec.origin)
        if path.name == "__init__.py":
            there.put(path.parent, f"/opt/test/lib/{name}")
            for about in path.parent.parent.glob(f"{name}-*.dist-info"):
                there.put(about, f"/opt/test/lib/{about.name}")
        else:
            there.put(path, f"/opt/test/lib/{path.name}")
    for name in ("pyproject.toml", "tests/conftest.py", "tests/fakes", "tests/integration/executors"):
        there.put(SOURCE / name, f"/opt/test/{name}")
    said = there.run(
        f"cd /opt/test && PYTHONPATH=/opt/test/lib:{slots.RELEASE} python3 -B -m pytest -p no:cacheprovider "
        "-q -k systemd tests/integration/executors/test_contract.py 2>&1",
        user="agentina",
        seconds=600,
    )
    assert " passed" in said
    assert "failed" not in said


def test_user_of_a_task_has_a_name(there: container.Container) -> None:
    """Without libnss-systemd, and with everybody hidden who could be asked: it is in a file."""
    there.run("rm -f /lib/*/libnss_systemd.so.2")
    said = slots.run_one(
        there,
        "id -un; id -gn; whoami; getent passwd root | cut -d: -f1; ls -ld . | cut -d' ' -f3-4; "
        "echo $USER $LOGNAME $SHELL; "
        "python3 -c 'import pwd, os; print(pwd.getpwuid(os.getuid()).pw_dir, os.path.expanduser(\"~\"))'; "
        "eval echo ~$USER; ssh -G nowhere 2>&1 | grep '^user '; echo x >> /etc/passwd || echo no",
    )["output"]
    home = "/var/lib/agentina/task/home"
    name = "_contract-S1"
    assert said.splitlines()[:9] == [
        name, name, name, "root", f"{name} {name}", f"{name} {name} /bin/sh", f"{home} {home}", home, f"user {name}"
    ]  # fmt: skip
    assert said.splitlines()[-1] == "no"
    there.run("! ls /run/agentina-tasks/contract-S1/*")


# --- tasks and their supervisors -------------------------------------------------------------------------------------


def test_two_tasks_do_not_see_each_other(there: container.Container) -> None:
    seen = slots.python(
        there,
        """
        async def main():
            executor = await opened()
            first = shell("job_aaaaaaaaaaaaaaaa.1", "echo mine > /tmp/mine; echo mine > ~/mine; sleep 5; id -u")
            second = shell("job_bbbbbbbbbbbbbbbb.1", "sleep 1; id -u; ls /tmp ~; pkill -KILL sleep; true")
            await executor.start(first)
            done = await run(executor, second)
            await executor.wait(first.directory)
            print(json.dumps([show(executor, first.directory), done]))
        asyncio.run(main())
        """,
    )
    first, second = seen
    assert first["result"]["exit_code"] == 0, "its process was not ended by the other"
    user, *rest = second["output"].split()
    assert user != first["output"].strip()
    assert "mine" not in rest


def test_task_that_ends_its_supervisor_ends_itself(there: container.Container) -> None:
    done = slots.run_one(there, "kill -KILL $PPID; sleep 100")
    assert (done["result"]["signal"], done["result"]["stopped"]) == ("SIGKILL", "none")
    assert "before it could report" in done["result"]["detail"]


def test_task_that_stops_its_supervisor_is_ended_by_the_watchdog(there: container.Container) -> None:
    there.run("mkdir -p /run/systemd/system/agentina-task@.service.d")
    there.put(b"[Service]\nWatchdogSec=2s\n", "/run/systemd/system/agentina-task@.service.d/test.conf")
    there.run("systemctl daemon-reload")
    done = slots.run_one(there, "kill -STOP $PPID; sleep 1000")
    there.run("rm -r /run/systemd/system/agentina-task@.service.d; systemctl daemon-reload")
    assert "watchdog" in done["result"]["detail"]


def test_files_nobody_could_open_come_back(there: container.Container) -> None:
    script = "mkdir -p d/e; echo x > d/e/f; chmod 000 d/e/f d/e d; ln -s /etc/shadow link; mkfifo fifo; chmod 0 ."
    done = slots.run_one(there, script)
    assert done["result"]["exit_code"] == 0
    left = there.run(f"find {slots.STATE}/tasks -path '*workspace*' ! -user agentina")
    assert left == ""
    assert there.run("stat -c %U /etc/shadow").strip() == "root"


# --- accidents -------------------------------------------------------------------------------------------------------


def test_daemon_killed_before_the_start(there: container.Container) -> None:
    """A ticket without a start: the next daemon takes it back, and the task was provably never started."""
    found = slots.python(
        there,
        """
        async def main():
            launched = shell("job_dddddddddddddddd.1", "echo once")
            executor = await opened()
            number = executor._claim(launched, "lost")
            await executor.close()
            executor = await opened()
            before = executor.adopt(launched.directory)[0].value
            late = await executor._manager.start(executor._places.unit(number))
            after = executor.adopt(launched.directory)[0].value
            print(json.dumps([before, late, after, await run(executor, launched)]))
        asyncio.run(main())
        """,
    )
    assert found[:3] == ["unstarted", "failed", "unstarted"], "a start that comes late finds no ticket"
    assert found[3]["output"] == "once\n"


def test_daemon_killed_at_any_moment_starts_nothing_twice(there: container.Container) -> None:
    """SIGKILL at twelve moments of a start, and later ones where the machine has become slower since a measure."""
    counted = slots.python(
        there,
        """
        import os, signal
        def attempt(number, delay):
            launched = shell(f"job_eeeeeeeeeeeeee{number:02d}.1", "echo once")
            pid = os.fork()
            if pid == 0:
                async def begin():
                    await (await opened()).start(launched)
                    await asyncio.sleep(60)
                try:
                    asyncio.run(begin())
                finally:
                    os._exit(0)
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            async def go_on():
                executor = await opened()
                found = executor.adopt(launched.directory)[0]
                if found is Condition.UNSTARTED:
                    await executor.start(launched)
                await executor.wait(launched.directory)
                return [found.value, show(executor, launched.directory)]
            return asyncio.run(go_on())
        async def measure():
            began = time.monotonic()
            await (await opened()).start(shell("job_eeeeeeeeeeeeeeee.1", "true"))
            return time.monotonic() - began
        step = asyncio.run(measure()) * 1.5 / 12
        done = [attempt(number, step * number) for number in range(12)]
        while {found for found, _ in done} == {"unstarted"}:
            done.append(attempt(len(done), step * 2 ** (len(done) - 8)))
        print(json.dumps(done))
        """,
    )
    assert {done["condition"] for _, done in counted} == {"ended"}
    assert {done["output"] for _, done in counted} == {"once\n"}
    assert counted[0][0] == "unstarted", "the moments span the start"


def test_companions_come_and_go(there: container.Container) -> None:
    """Each is ended by the next, by its time, by the order's end, and with the task; the task notices nothing of it."""
    done = slots.python(
        there,
        """
        async def main():
            executor = await opened()
            launched = shell("job_oooooooooooooooo.1", "until test -e end; do sleep 0.1; done", has_companions=True)
            await executor.start(launched)
            def companion(name, rest, seconds=60.0):
                script = f"cd /var/lib/agentina/task/workspace; sleep 1000 & id -u > {name}; {rest}"
                wanted = contract.Companion(argv=["/bin/sh", "-c", script], seconds=seconds)
                executor.accompany(launched.directory, wanted)
            def sleepers():
                group = Path("/sys/fs/cgroup/agentina.slice/agentina-tasks.slice") / unit_of(launched) / "cgroup.procs"
                found = 0
                for pid in group.read_text().split():
                    try:
                        found += b"sleep\\x001000" in Path(f"/proc/{pid}/cmdline").read_bytes()
                    except OSError:
                        pass
                return found
            async def until(count):
                for _ in range(300):
                    if sleepers() == count:
                        return True
                    await asyncio.sleep(0.1)
                return sleepers()
            said = []
            companion("one", "sleep 1000"); said.append(await until(2))
            executor.accompany(launched.directory, None); said.append(await until(0))
            companion("two", "sleep 1000", seconds=1.0); said.append(await until(2)); said.append(await until(0))
            companion("three", "sleep 1000"); said.append(await until(2))
            companion("four", "sleep 1000; sleep 1000"); await asyncio.sleep(1.5); said.append(await until(2))
            companion("five", "touch end; sleep 1000")
            await executor.wait(launched.directory)
            names = sorted(path.name for path in (launched.directory / "workspace").iterdir())
            print(json.dumps([said, names, show(executor, launched.directory)]))
        asyncio.run(main())
        """,
    )
    said, names, shown = done
    assert said == [True] * 6
    assert names == ["end", "five", "four", "one", "three", "two"]
    assert (shown["result"]["exit_code"], shown["result"]["stopped"]) == (0, "none"), shown


def test_result_lost_and_slot_used_again(there: container.Container) -> None:
    """Root's helper was kept from finishing: unknown, never success; the slot's next task gives the files back."""
    found = slots.python(
        there,
        """
        async def main():
            executor = await opened()
            launched = shell("job_ffffffffffffffff.1", "echo kept > file; sleep 1")
            await executor.start(launched)
            (launched.directory / ".result.json.room").unlink()
            (launched.directory / ".result.json.room").mkdir()
            state = executor._places.run("contract-S1", "state")
            await executor.wait(launched.directory)
            lost = show(executor, launched.directory)
            await run(executor, shell("job_gggggggggggggggg.1", "true"))
            print(json.dumps([lost, (launched.workspace / "file").read_text(), state.exists()]))
        asyncio.run(main())
        """,
    )
    assert found[0]["condition"] == "vanished"
    assert found[1:] == ["kept\n", False]


def test_tasks_go_on_while_systemd_and_the_bus_start_anew(there: container.Container) -> None:
    again = there.start(
        f"until test -e {slots.STATE}/go; do sleep 0.1; done; systemctl daemon-reexec; sleep 1; systemctl restart dbus"
    )
    seen = slots.python(
        there,
        """
        async def main():
            executor = await opened()
            launched = shell("job_hhhhhhhhhhhhhhhh.1", "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 1; done")
            await executor.start(launched)
            (STATE / "go").touch()
            await executor.wait(launched.directory)
            print(json.dumps(show(executor, launched.directory)))
        asyncio.run(main())
        """,
    )
    assert again.communicate(timeout=host.PATIENCE)[0] == b""
    assert seen["result"]["exit_code"] == 0
    assert seen["output"].split() == [str(number) for number in range(1, 9)]


def test_stopped_by_systemctl_is_canceled_and_says_so(there: container.Container) -> None:
    done = slots.python(
        there,
        """
        import subprocess
        async def main():
            executor = await opened()
            launched = shell("job_jjjjjjjjjjjjjjjj.1", "sleep 100")
            await executor.start(launched)
            unit = unit_of(launched)
            subprocess.run(["systemctl", "stop", unit], check=True)
            print(json.dumps(show(executor, launched.directory)))
        asyncio.run(main())
        """,
    )
    assert (done["result"]["stopped"], done["result"]["signal"]) == ("canceled", "SIGTERM")
    assert "systemctl" in done["result"]["detail"]


def test_shutdown_of_the_host_is_told_from_a_failure(there: container.Container) -> None:
    slots.python(
        there,
        """
        async def main():
            executor = await opened()
            await executor.start(shell("job_kkkkkkkkkkkkkkkk.1", "sleep 1000"))
            stubborn = "trap '' TERM; while :; do sleep 1; done"
            await executor.start(shell("job_mmmmmmmmmmmmmmmm.1", stubborn, grace_seconds=1.0))
            print(0)
        asyncio.run(main())
        """,
    )
    there.reboot()
    for task, signal in (("job_kkkkkkkkkkkkkkkk.1", "SIGTERM"), ("job_mmmmmmmmmmmmmmmm.1", "SIGKILL")):
        result = json.loads(there.get(f"{slots.STATE}/tasks/{task}/result.json"))
        assert (result["stopped"], result["signal"]) == ("host-shutdown", signal)


# --- the units -------------------------------------------------------------------------------------------------------


def test_units_have_no_mistakes(there: container.Container) -> None:
    done = there.try_run(
        "systemd-analyze verify --man=no /usr/lib/systemd/system/agentina@.service "
        "/usr/lib/systemd/system/agentina-task@.service 2>&1"
    )
    assert done.stdout == ""


def test_cost_of_a_task(there: container.Container) -> None:
    """Printed, with a bound that only a fault would cross: the machine is shared."""
    figures = slots.python(
        there,
        """
        async def main():
            executor = await opened()
            starts, ends = [], []
            for number in range(10):
                launched = shell(f"job_nnnnnnnnnnnnnn{number:02d}.1", "true")
                began = time.perf_counter()
                await executor.start(launched)
                starts.append(time.perf_counter() - began)
                await executor.wait(launched.directory)
                ends.append(time.perf_counter() - began)
            print(json.dumps({"start": sorted(starts)[5], "whole": sorted(ends)[5]}))
        asyncio.run(main())
        """,
    )
    started = slots.python(
        there,
        """
        async def main():
            executor = await opened()
            launches = [shell("job_" + 16 * name + ".1", "sleep 20") for name in "pq"]
            for launched in launches:
                await executor.start(launched)
            print(json.dumps(unit_of(launches[0])))
        asyncio.run(main())
        """,
    )
    pid = slots.unit_property(there, started, "MainPID")
    fields = there.run(f"cat /proc/{pid}/smaps_rollup")
    private = sum(int(line.split()[1]) for line in fields.splitlines() if line.startswith("Private_"))
    start, whole = figures["start"] * 1000, figures["whole"] * 1000
    sys.stdout.write(f"start {start:.0f} ms, start to result {whole:.0f} ms, supervisor {private} KiB private\n")
    assert figures["start"] < 10
    assert private < 6000


def test_job_with_a_repository(there: container.Container, run_lab: lab.Lab) -> None:
    """Git in a slot: history through the lent objects, a commit of its own, a patch afterwards."""
    there.run(
        "git init -q -b main /srv/repository && cd /srv/repository && echo one > file && git add . "
        "&& git -c user.name=a -c user.email=a@b commit -qm one"
    )
    run_lab.activate(there, "git")
    job = run_lab.fleet.submit_script(
        "git log --oneline | wc -l; git status --short; echo two >> file; git -c user.name=a -c user.email=a@b "
        "commit -qam two; git fsck; echo $HOME; echo report > report.txt; git count-objects -v | grep alternate",
        workspace={"git": "/srv/repository", "ref": "main"},
        artifacts=["report.txt"],
    )
    done = run_lab.fleet.wait_final(job)
    output = run_lab.fleet.output(job).decode()
    assert done.job.state.value == "succeeded", (done, output)
    assert output.splitlines() == [
        "1",
        "/var/lib/agentina/task/home",
        "alternate: /var/lib/agentina/task/mirror/objects",
    ]
    status = json.loads(there.run("agentina status --instance git --json"))
    assert status["executor"] == "systemd", status
    assert not any("not enforced:" in sentence for name, sentence in status["guarantees"].items() if name == "user")
    assert there.run("systemctl show -P NRestarts agentina@git").strip() == "0"
    assert there.run("journalctl -q -p warning -u agentina@git") == ""


def test_daemon_that_hangs_is_ended_by_its_watchdog(there: container.Container, run_lab: lab.Lab) -> None:
    """And one that does not hang is left alone, with no control plane to be reached."""
    unit = "agentina@watched"
    run_lab.activate(there, "watched")
    there.put(b"[Service]\nWatchdogSec=10s\n", f"/run/systemd/system/{unit}.service.d/test.conf")
    there.set_network(up=False)
    there.run(f"systemctl daemon-reload; systemctl restart {unit}; sleep 13")
    assert slots.unit_property(there, unit, "NRestarts") == "0"
    there.run(f"systemctl kill --kill-whom=main --signal=STOP {unit}")
    there.wait(f'test "$(systemctl show -P NRestarts {unit})" = 1', "it is started again")
    assert "watchdog" in there.run(f"journalctl -u {unit} -q --grep watchdog -n 1")
    there.set_network(up=True)


# --- what only a kernel with limits does -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(new_machine: Callable[..., machine.Machine]) -> machine.Machine:
    made = new_machine("limits")
    slots.prepare(made)
    return made


HOG = "python3 -c 'import time; x = bytearray(300 << 20); time.sleep(60)'"


def test_over_its_memory_limit_it_ends_as_a_whole_and_its_neighbor_does_not_notice(limited: machine.Machine) -> None:
    hog, neighbor = slots.python(
        limited,
        f"""
        async def main():
            executor = await opened()
            neighbor = shell("job_aaaaaaaaaaaaaaaa.1", "python3 -c 'x = bytearray(30 << 20)'; sleep 15; echo fine")
            await executor.start(neighbor)
            hog = shell("job_bbbbbbbbbbbbbbbb.1", "sleep 1000 & {HOG}; echo lived on")
            done = await run(executor, hog)
            await executor.wait(neighbor.directory)
            print(json.dumps([done, show(executor, neighbor.directory)]))
        asyncio.run(main())
        """,
    )
    result = hog["result"]
    assert (result["oom"], result["stopped"], result["signal"]) == ("full", "memory-limit", "SIGKILL")
    assert hog["output"] == ""
    limit = 64 << 20
    assert 0.9 * limit < result["usage"]["memory_peak_bytes"] <= limit
    assert str(limit) in result["detail"]
    assert neighbor["result"]["exit_code"] == 0
    assert neighbor["output"] == "fine\n"
    assert result["usage"]["io_operations"] is not None


def test_with_continue_only_the_process_ends(limited: machine.Machine) -> None:
    done = slots.run_one(limited, f"{HOG}; echo lived on", oom="continue")
    assert (done["result"]["oom"], done["result"]["exit_code"], done["result"]["stopped"]) == ("partial", 0, "none")
    assert done["output"].splitlines()[-1] == "lived on"
    alone = slots.run_one(limited, f"exec {HOG}", oom="continue")
    assert (alone["result"]["oom"], alone["result"]["stopped"]) == ("full", "memory-limit")


def test_companion_has_room_beyond_the_limit_of_its_task(limited: machine.Machine) -> None:
    """A task with 50 of its 64 MiB in use, and a companion that takes 60 more: neither is ended for the other."""
    done = slots.python(
        limited,
        """
        async def main():
            executor = await opened()
            task = "x = b'x' * (50 << 20); import os, time\\nwhile not os.path.exists('had'): time.sleep(0.1)"
            launched = launch("job_pppppppppppppppp.1", "python3", "-c", task, has_companions=True)
            await executor.start(launched)
            hog = "python3 -c 'x = b\\"x\\" * (60 << 20)'"
            script = f"cd /var/lib/agentina/task/workspace; {hog} && touch had"
            executor.accompany(launched.directory, contract.Companion(argv=["/bin/sh", "-c", script], seconds=60))
            await executor.wait(launched.directory)
            print(json.dumps(show(executor, launched.directory)))
        asyncio.run(main())
        """,
    )
    assert (done["result"]["exit_code"], done["result"]["oom"]) == (0, "none"), done
    assert done["result"]["usage"]["memory_peak_bytes"] > 110 << 20


def test_files_in_memory_do_not_keep_the_result_from_being_written(limited: machine.Machine) -> None:
    """What the task left in /dev/shm and a full limit: root's helper makes room first."""
    done = slots.run_one(limited, "head -c 300M /dev/zero > /dev/shm/x; echo never")
    assert (done["result"]["oom"], done["output"]) == ("full", "")


def test_memory_of_all_tasks_together_is_not_blamed_on_one(limited: machine.Machine) -> None:
    limited.run("systemctl set-property --runtime agentina-tasks.slice MemoryMax=150M")
    try:
        done = slots.run_one(limited, HOG, memory_bytes=1 << 30)
    finally:
        limited.run("systemctl set-property --runtime agentina-tasks.slice MemoryMax=85%")
    assert done["result"]["oom"] == "full"
    assert "below its own limit" in done["result"]["detail"]


def test_fork_bomb_ends_at_its_number_of_processes(limited: machine.Machine) -> None:
    done = slots.run_one(limited, "bomb() { bomb | bomb & }; bomb; sleep 5", pids=40, timeout_seconds=20.0)
    assert "could not make another process" in done["result"]["detail"]
    assert limited.run("pgrep -u _contract-S1 || echo none") == "none\n"


def test_processor_time_is_limited(limited: machine.Machine) -> None:
    group = "/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)"
    script = f"timeout 5 sh -c 'while :; do :; done & while :; do :; done'; cat {group}/cpu.max {group}/cpu.stat"
    done = slots.run_one(limited, script, cpus=0.25)
    quota, counted = done["output"].split("\n", 1)
    assert quota == "25000 100000"
    stat = dict(line.split() for line in counted.splitlines())
    assert int(stat["nr_throttled"]) > 0, done
    # By the kernel's own periods, of which a machine that is short of time has more than five seconds' worth.
    assert int(stat["usage_usec"]) < (int(stat["nr_periods"]) + 1) * 25_000 * 1.2, done


def test_disk_filler_is_ended(limited: machine.Machine) -> None:
    done = slots.run_one(
        limited, "for i in 1 2 3 4 5 6 7 8 9; do head -c 20M /dev/zero > f$i; sleep 1; done", disk_bytes=50 << 20
    )
    assert done["result"]["stopped"] == "disk-limit"


def test_power_cut_leaves_unknown_and_never_starts_it_again(limited: machine.Machine) -> None:
    slots.python(
        limited,
        """
        async def main():
            executor = await opened()
            await executor.start(shell("job_cccccccccccccccc.1", "sleep 1000"))
            executor._claim(shell("job_dddddddddddddddd.1", "true"), "waits")
            print(0)
        asyncio.run(main())
        """,
    )
    limited.run("sync")
    limited.power_cut()
    found = slots.python(
        limited,
        """
        async def main():
            executor = await opened()
            found = [executor.adopt(STATE / "tasks" / name)[0].value for name in
                     ("job_cccccccccccccccc.1", "job_dddddddddddddddd.1")]
            try:
                await executor.start(shell("job_cccccccccccccccc.1", "true"))
            except Exception as error:
                found.append(error.code)
            found.append((await run(executor, shell("job_eeeeeeeeeeeeeeee.1", "echo next")))["output"])
            found.append((STATE / "tasks/job_cccccccccccccccc.1/workspace").is_dir())
            print(json.dumps(found))
        asyncio.run(main())
        """,
    )
    assert found == ["vanished", "unstarted", "STATE_CONFLICT", "next\n", True]
