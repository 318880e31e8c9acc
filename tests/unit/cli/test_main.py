from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from agentina import errors
from agentina.cli import lazy, main

ROOT = click.Context(main.cli, info_name="agentina")


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(command)
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        yield from commands(child, f"{path} {name}")


ALL = dict(commands(main.cli, "agentina"))
ANSWER_IS_TEXT = {"agentina logs", "agentina daemon", "agentina updater", "agentina completion", "agentina job logs"}
ANSWER_IS_JSON = {"agentina job schema", "agentina control-plane serve"}


@pytest.mark.parametrize("path", ALL)
def test_every_command_has_help_and_an_example_of_itself(path: str) -> None:
    command = ALL[path]
    assert command.help
    assert path in (command.epilog or ""), "an example that can be copied"
    assert all(option.help for option in command.params if isinstance(option, click.Option))


@pytest.mark.parametrize("path", ALL)
def test_every_command_that_answers_has_json_and_root(path: str) -> None:
    names = {name for option in ALL[path].params for name in option.opts}
    if path not in ANSWER_IS_TEXT | ANSWER_IS_JSON:
        assert "--json" in names
    # In a task there is one daemon, at the task's own door.
    if path not in {"agentina completion", "agentina job schema"} and not path.startswith("agentina task "):
        assert "--root" in names


@pytest.mark.parametrize(
    ("name", "entry"), [(name, entry) for section in main.SECTIONS for name, entry in section.commands.items()]
)
def test_list_of_commands_says_what_the_commands_say(name: str, entry: lazy.Lazy) -> None:
    command = main.cli.get_command(ROOT, name)
    assert command is not None
    assert (command.help or "").splitlines()[0].startswith(entry.summary.rstrip("."))


def loaded_by(*arguments: str) -> set[str]:
    code = (
        "import sys; from agentina.cli import main\n"
        f"main.run({list(arguments)!r}); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_loads_no_command() -> None:
    loaded = loaded_by("--help")
    assert "agentina.cli.main" in loaded
    assert not {name for name in loaded if name.startswith(("agentina.host", "agentina.control", "agentina.client"))}
    assert not loaded & {"msgspec", "yaml", "asyncio", "nacl", "http.client", "ssl"}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["statsu"], "'status'"),
        (["job", "lits"], "'list'"),
        (["status", "--jsn"], "--json"),
        (["job", "show"], "JOB"),
        (["status", "--instance"], "--instance"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == errors.Exit.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert hint in said.err
    assert "code: USAGE" in said.err


def test_error_with_json_is_one_document_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["job", "list", "--json"]) == errors.Exit.USAGE
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["code"] == "CONTROL_PLANE_UNKNOWN"
    assert "remedy: Run `agentina login" in said.err


def test_json_of_the_job_is_not_json_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    main.run(["job", "run", "--", "tool", "--json"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (KeyboardInterrupt(), errors.Exit.INTERRUPTED),
        (click.Abort(), errors.Exit.INTERRUPTED),
        (errors.JOB_UNKNOWN(job="x"), errors.Exit.NOT_FOUND),
        (PermissionError(13, "Permission denied", "/etc/agentina/default.yaml"), errors.Exit.REFUSED),
        (PermissionError(1, "boom"), errors.Exit.INTERNAL),
        (RuntimeError("boom"), errors.Exit.INTERNAL),
    ],
)
def test_exit_codes(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor = importlib.import_module("agentina.cli.doctor")

    def ends(**_: object) -> None:
        raise raised

    monkeypatch.setattr(doctor.doctor, "callback", ends)
    assert main.run(["doctor"]) == code
    said = capsys.readouterr()
    if code == errors.Exit.REFUSED:
        assert "may not use /etc/agentina/default.yaml: Permission denied." in said.err
        assert "code: PATH_FORBIDDEN" in said.err
    if code == errors.Exit.INTERNAL:
        assert "boom" in said.err
        assert "code: INTERNAL" in said.err


def test_reader_that_goes_away_is_met_with_silence() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "agentina", "job", "schema"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""


@pytest.mark.parametrize("token", ["aop_5r8e31jx2m9ejty61bnb99r7fjy3xwn5", "hunter22", "two words"])
def test_what_is_no_activation_token_goes_nowhere(token: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["install", "--token", token, "--control-plane", "http://127.0.0.1:1"]) == errors.Exit.USAGE
    said = capsys.readouterr().err
    assert "agentina token create" in said
    assert token not in said


def run_in_shell(line: str) -> subprocess.CompletedProcess[str]:
    command = f"exec {sys.executable} -m agentina {line}"
    return subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("line", ["--help", "--version", "job schema", "completion bash", "job list --json"])
def test_an_answer_that_cannot_be_written_is_an_error_of_the_catalogue(line: str) -> None:
    done = run_in_shell(f"{line} > /dev/full")
    assert "Traceback" not in done.stderr
    expected = errors.CONTROL_PLANE_UNKNOWN if "list" in line else errors.OUTPUT_UNWRITABLE
    assert (done.returncode, done.stderr.count(f"code: {expected.code}")) == (expected.exit, 1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--data /dev/null", "/dev/null cannot be written: File exists."),
        ("--listen 192.0.2.1:0", "--listen 192.0.2.1:0: Cannot assign requested address"),
        ("--tls-cert {0} --tls-key {0}", "{0} with {0} cannot be read: expected a certificate chain"),
        ("--tls-cert / --tls-key {0}", "/ with {0} cannot be read: Is a directory."),
    ],
)
def test_control_plane_says_which_of_its_options_is_wrong(options: str, error: str, tmp_path: Path) -> None:
    done = run_in_shell(f"control-plane serve --root {tmp_path} --listen 127.0.0.1:0 {options.format(__file__)}")
    assert done.returncode in {errors.Exit.USAGE, errors.Exit.STATE}
    assert f"error: {error.format(__file__)}" in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_process_started_without_a_stream_ends_as_usual(closed: str) -> None:
    done = run_in_shell(f"--help {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage:") == (">&-" not in closed.split())
