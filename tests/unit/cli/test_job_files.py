from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agentina import errors
from agentina.cli import job_files
from agentina.protocol import jobs

GOOD = b"""\
name: tests
payload:
  argv: [make, test]
retry:
  on: [lost, failed]
environment:
  ANSWER: no
  SINCE: 2026-11-21
"""


def refused(content: bytes, where: str = "job.yaml") -> errors.AgentinaError:
    with pytest.raises(errors.AgentinaError) as caught:
        job_files.parse(content, where)
    return caught.value


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1e3", 1000.0), ("1E+2", 100.0), ("0.5", 0.5), (".5", 0.5), ("2", 2), ("-1", -1), ("0x10", 16), ("1.", 1.0),
        ("1:30", "1:30"), ("0123", "0123"), ("1_000", "1_000"), ("0b1", "0b1"), (".", "."), ("1e", "1e"),
        ("2026-11-21", "2026-11-21"), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(written: str, read: object) -> None:
    found = yaml.load(f"a: {written}", Loader=job_files._Loader)
    assert found == {"a": read}
    assert type(found["a"]) is type(read)


def test_words_stay_words() -> None:
    document, job = job_files.parse(GOOD, "job.yaml")
    assert job.retry.on == ["lost", "failed"]
    assert jobs.environment_values(job) == {"ANSWER": "no", "SINCE": "2026-11-21"}
    assert jobs.parse_job(document) == job


@pytest.mark.parametrize(
    ("content", "code", "place"),
    [
        (b"name: x\npayload: {argv: [a]}\nname: y\n", "INPUT_UNREADABLE", "job.yaml, line 3, column 1"),
        (b"name: x\npayload:\n  argv: [a]\n  argv: [b]\n", "INPUT_UNREADABLE", "line 4, column 3"),
        (b"a: &a [x]\nb: *a\n", "INPUT_UNREADABLE", "line 2, column 4"),
        (b"name: x\npayload:\n\targv: [a]\n", "INPUT_UNREADABLE", "line 3"),
        (b"name: x\n---\nname: y\n", "INPUT_UNREADABLE", "line 3"),
        (b"name: !!python/object/apply:os.system ['id']\n", "INPUT_UNREADABLE", "line 1"),
        (b"name: x\npayload: {argv: [a]}\nresources:\n  memori: 1\n", "INPUT_UNKNOWN_KEY", "line 4: job.resources"),
        (b"name: x\npayload:\n  argv: [a, 5]\n", "INPUT_INVALID", "line 3: job.payload.argv[1]"),
        (b"name: x\npayload: {argv: [a]}\nlimits:\n  timeout: soon\n", "INPUT_INVALID", "line 4: job.limits.timeout"),
        (b"name: x\npayload: {argv: [a]}\nneeds:\n- a\n- 7\n", "INPUT_INVALID", "line 5: job.needs[1]"),
        (b"name: [\n", "INPUT_UNREADABLE", "line 2"),
        (b"name: \xff\n", "INPUT_UNREADABLE", "byte 6"),
        (b"\x00", "INPUT_UNREADABLE", "job.yaml"),
        (
            b"name: x\npayload: {argv: [a]}\nenvironment:\n  A: b\n  PORT: 80\n",
            "INPUT_INVALID",
            "line 5: job.environment.PORT",
        ),
        (b"name: x\npayload: {argv: [a]}\nenvironment: {A B: x}\n", "NAME_INVALID", "job.yaml: environment variable"),
        (b"", "INPUT_INVALID", "job.yaml: it is empty; expected a job"),
        (b"---\n# nothing\n", "INPUT_INVALID", "it is empty; expected a job"),
        (b"[" * 50_000, "INPUT_UNREADABLE", "nested too deeply"),
    ],
)
def test_faults_name_file_and_line(content: bytes, code: str, place: str) -> None:
    error = refused(content)
    assert error.code == code
    assert place in error.message


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b'{"name": "x",\n "name": "y"}', "twice"),
        (b'{"name": "x",\n oops}', "line 2, column 2"),
        (b'{"a":' * 50_000, "nested too deeply"),
    ],
)
def test_json_faults(content: bytes, place: str) -> None:
    assert place in refused(content, "job.json").message


def test_json_may_be_indented_with_tabs() -> None:
    _, job = job_files.parse(b'{\n\t"name": "x",\n\t"payload": {"argv": ["a"]}\n}', "stdin")
    assert job.name == "x"


def test_size_is_bounded_for_files_and_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = b"# " + b"x" * jobs.MAX_JOB_BYTES
    path = tmp_path / "job.yaml"
    path.write_bytes(large)

    class Stdin:
        buffer = io.BytesIO(large)

    monkeypatch.setattr(sys, "stdin", Stdin)
    for source in (str(path), "-"):
        with pytest.raises(errors.AgentinaError) as caught:
            job_files.read(source)
        assert caught.value.entry is errors.INPUT_TOO_LARGE


def test_several_jobs_in_one_file(tmp_path: Path) -> None:
    one = "name: {}\npayload: {{argv: [a]}}\n"
    path = tmp_path / "jobs.yaml"
    path.write_text("---\n".join(one.format(name) for name in "abc"))
    assert [document["name"] for document in job_files.read_all(str(path))] == ["a", "b", "c"]
    with pytest.raises(errors.AgentinaError, match="line 4 cannot be read: a second document"):
        job_files.read(str(path))
    path.write_text(one.format("a") + "---\nname: b\npayloads: {argv: [a]}\n")
    with pytest.raises(errors.AgentinaError, match="line 5: job") as caught:
        job_files.read_all(str(path))
    assert caught.value.entry is errors.INPUT_UNKNOWN_KEY


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for source in (str(tmp_path / "none.yaml"), str(tmp_path)):
        with pytest.raises(errors.AgentinaError) as caught:
            job_files.read(source)
        assert caught.value.entry is errors.FILE_UNREADABLE
        assert source in caught.value.message
        assert "syntax" not in caught.value.remedy


def test_secret_values_stay_out_of_errors() -> None:
    error = refused(b"name: x\npayload: {argv: [a]}\nenvironment:\n  KEY: {secret: hunter2, extra: 1}\n")
    assert "hunter2" not in f"{error.message} {error.context}"


values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode) | values.map(json.dumps).map(str.encode))
def test_anything_else_is_a_usage_error_of_the_catalogue(content: bytes) -> None:
    error = refused(content)
    assert error.entry.exit is errors.Exit.USAGE
    assert "job.yaml" in error.message
