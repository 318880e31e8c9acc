"""``agentina demo``: a control plane, an agent and a job on this machine, as anybody would run them, in seconds.

Control plane and daemon are ordinary child processes under one root directory; nothing outside of it is touched. They
end with the demo, whatever ends the demo, unless ``--keep`` is given and the job succeeded.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Final

import click

from agentina import errors
from agentina.cli import connection, demo_job, following, interrupts, job, job_submit, options, output
from agentina.client import api as api_client
from agentina.host import install as host_install
from agentina.protocol import api, units
from agentina.system import children, files, paths

_START_SECONDS: Final = 60.0
_LOOK_AGAIN: Final = 0.02
_STOP_SECONDS: Final = 5.0
_PATCH_LINES: Final = 12
_PATCH_WIDTH: Final = 98
_ADDRESS: Final = re.compile(rb"https?://127\.0\.0\.1:\d+")


@click.command(epilog=options.examples("agentina demo", "agentina demo --keep"))
@click.option("--keep", is_flag=True, help="Leave control plane, agent and files for you to try.")
@options.root_option
@options.json_option
def demo(*, keep: bool, as_json: bool) -> int:
    """Run a real job through all the parts, here and now: no root, no systemd, nothing left behind.

    Starts a control plane and an agent, activates the agent, submits a job that checks out a git repository, changes a
    file and runs tests, streams its output, and shows what it left. Ends with 0 when the job succeeded.
    """
    interrupts.raise_until_heard(signal.SIGTERM, signal.SIGHUP)
    layout, made = _choose_root()
    stage = _Stage(layout, made=made, keep=keep)
    try:
        view = stage.play(as_json=as_json)
        code = following.exit_code(view)
        stage.keep = keep and code == 0
    except BaseException:
        stage.keep = False
        raise
    finally:
        stage.close()
    if as_json:
        output.document({"root": str(layout.root), "kept": stage.keep, "job": _plain(view)})
    return code


class _Stage:
    """The parts of one demo and the order in which they come and go."""

    def __init__(self, layout: paths.Layout, *, made: bool, keep: bool) -> None:
        self.layout = layout
        #: Leave everything when closing.
        self.keep = keep
        self._made = made
        self._detached = keep
        self._children: list[tuple[str, children.Child]] = []
        self._client: api_client.Client | None = None
        self._job = ""

    def play(self, *, as_json: bool) -> api.JobView:
        """Go through the whole demo; returns the ended job."""
        began = time.monotonic()
        output.say(f"root directory: {self.layout.root}")
        url = self._start_control_plane()
        token = connection.read_secret(str(self._token_file), "operator token")
        connection.save_login(self.layout, connection.Login(control_plane=url, token=token))
        client = self._client = api_client.Client(url, token=token)
        output.say(f"control plane: {url} ({_since(began)})")
        instance = self._activate(client, url)
        self._start_daemon(instance)
        output.say(f"agent: instance {instance.name} is online ({_since(began)})")
        choice = demo_job.choose(self.layout.root / "demo")
        created = client.submit_job(choice.document, key=secrets.token_hex(16))
        self._job = created.id
        output.say(f"job: {created.id}")
        output.say(f"  {choice.words}")
        output.say("----- output of the job " + "-" * 40)
        stream = sys.stderr.buffer if as_json else sys.stdout.buffer
        view = following.follow(client, created.id, write=job_submit.writer(stream))
        self._job = ""
        output.say("-" * 64)
        if not as_json:
            self._show(client, view)
        output.say(f"{following.outcome_line(view)} (demo: {_since(began)})")
        self._say_what_next()
        return view

    def close(self) -> None:
        """End every process and remove every file of the demo, unless it is to be kept."""
        if self.keep:
            return
        with interrupts.ignored():
            self._end_job()
            while self._children:
                _, child = self._children.pop()
                child.stop(grace_seconds=_STOP_SECONDS)
            if self._made:
                files.remove_tree(self.layout.root)

    @property
    def _token_file(self) -> Path:
        return self.layout.config_directory / "operator-token"

    def _start_control_plane(self) -> str:
        self._token_file.parent.mkdir(mode=0o700, parents=True)
        log = self._start("control-plane", "serve", "--listen", "127.0.0.1:0", "--token-file", str(self._token_file))
        address = b""

        def is_ready() -> bool:
            nonlocal address
            found = _ADDRESS.search(log.read_bytes())
            address = found[0] if found else b""
            return bool(found) and self._token_file.exists()

        self._await(is_ready, "control-plane", log)
        return address.decode("ascii")

    def _activate(self, client: api_client.Client, url: str) -> paths.InstancePaths:
        token = client.create_tokens(api.TokenCreate(expires_seconds=600)).tokens[0].token
        instance = self.layout.instance("default")
        request = host_install.Request(control_plane=url, token=token, max_concurrent_tasks=2, service=False)
        host_install.install(instance, request, say=lambda _: None)
        return instance

    def _start_daemon(self, instance: paths.InstancePaths) -> None:
        log = self._start("daemon")
        _, child = self._children[-1]
        try:
            host_install.wait_for_heartbeat(
                instance, timeout_seconds=_START_SECONDS, is_alive=lambda: child.has_ended() is None
            )
        except errors.AgentinaError:
            _show_tail(log)
            raise

    def _start(self, *arguments: str) -> Path:
        """Start ``agentina`` with these arguments as a child; the path of its log is returned."""
        self.layout.log_directory.mkdir(parents=True, exist_ok=True)
        name = arguments[0]
        path = self.layout.instance("default").log if name == "daemon" else self.layout.log_directory / f"{name}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AGENTINA_")}
        environment |= {paths.ROOT_VARIABLE: str(self.layout.root), "PYTHONUNBUFFERED": "1"}
        with path.open("wb") as log:
            child = _spawn([*_own_command(), *arguments], log, environment, detached=self._detached)
        self._children.append((name, child))
        return path

    def _await(self, is_ready: Any, name: str, log: Path) -> None:
        deadline = time.monotonic() + _START_SECONDS
        _, child = self._children[-1]
        while not is_ready():
            if child.has_ended() is not None or time.monotonic() > deadline:
                _show_tail(log)
                raise errors.STATE_CONFLICT(what=f"The demo's {name}", state="not started", expected="running")
            time.sleep(_LOOK_AGAIN)  # another process's files: there is nothing to await

    def _end_job(self) -> None:
        """A demo that is interrupted takes its job with it."""
        if not self._job or self._client is None:
            return
        self._client.patience = api_client.Patience(attempts=1)
        with contextlib.suppress(errors.AgentinaError):
            self._client.cancel_job(self._job, reason="the demo was interrupted")
        instance = self.layout.instance("default")
        with contextlib.suppress(errors.AgentinaError, OSError):
            host_install.end_tasks(instance, timeout_seconds=_STOP_SECONDS)

    def _show(self, client: api_client.Client, view: api.JobView) -> None:
        """What the job left, and how agent and job look to an operator."""
        for item in view.artifacts:
            if item.kind == "patch":
                self._show_patch(client, view.job.id, item)
        output.answer()
        job.render(view)
        output.answer()
        output.table(
            ("AGENT", "HOST", "STATE", "TASKS", "EXECUTOR", "VERSION"),
            [
                (
                    one.id, one.name, "online" if one.online else "offline",
                    f"{len(one.tasks)}/{one.max_concurrent_tasks}", one.executor, one.version,
                )
                for one in client.list_agents().agents
            ],
        )  # fmt: skip
        output.answer()

    def _show_patch(self, client: api_client.Client, job_id: str, item: Any) -> None:
        fetched = job.fetch(client, job_id, item, self.layout.root / "demo/artifacts")
        lines = fetched.read_text(errors="replace").splitlines()
        output.answer(f"patch ({units.show_size(item.size)})")
        for line in lines[:_PATCH_LINES]:
            output.answer("  " + units.shorten(output.clean(line.expandtabs(4)), _PATCH_WIDTH))
        if len(lines) > _PATCH_LINES:
            output.answer(f"  … {len(lines) - _PATCH_LINES} more lines")

    def _say_what_next(self) -> None:
        program = _program()
        if not self.keep:
            output.say(f"Everything was ended and removed. To try it yourself: {program} demo --keep")
            return
        root = shlex.quote(str(self.layout.root))
        pids = " ".join(str(child.pid) for _, child in self._children)
        output.say("It is left running. To go on:")
        output.say(f"  export {paths.ROOT_VARIABLE}={root}")
        for line in ("status", "agent list", "job run -- uname -a", "job list"):
            output.say(f"  {program} {line}")
        output.say(f"To end it: kill {pids}; rm -r {root}")


def _choose_root() -> tuple[paths.Layout, bool]:
    """The root to use, and whether it was made here (and is removed at the end)."""
    layout = options.layout()
    if layout.is_system:
        return paths.Layout(Path(tempfile.mkdtemp(prefix="agentina-demo-"))), True
    if layout.root.exists() and any(layout.root.iterdir()):
        expected = f"an empty or new directory; without --root and {paths.ROOT_VARIABLE} it makes one for itself"
        raise errors.STATE_CONFLICT(what=str(layout.root), state="not empty", expected=expected)
    made = not layout.root.exists()
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return layout, made


def _spawn(command: list[str], log: IO[bytes], environment: dict[str, str], *, detached: bool) -> children.Child:
    return children.Child(command, log=log, environment=environment, detached=detached)


def _show_tail(log: Path) -> None:
    for line in log.read_text(errors="replace").splitlines()[-30:]:
        output.say(f"  {output.clean(line)}")


def _own_command() -> list[str]:
    """This very program: an installed command, or a module of the running Python."""
    program = Path(sys.argv[0])
    if program.name in {"agentina", "launch"} and os.access(program, os.X_OK):
        return [str(program.absolute())]
    return [sys.executable, "-m", "agentina"]


def _program() -> str:
    """How this program was called, for commands to copy."""
    if shutil.which("agentina"):
        return "agentina"
    if sys.argv[0].endswith("__main__.py"):
        return f"{shlex.quote(sys.executable)} -m agentina"
    return shlex.quote(sys.argv[0])


def _plain(view: api.JobView) -> Any:
    import msgspec

    return msgspec.to_builtins(view)


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"
