from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentina import errors
from agentina.host.instance import policy
from agentina.protocol import jobs


def job(**fields: Any) -> jobs.JobSpec:
    return jobs.parse_job({"name": "x", "payload": {"argv": ["/usr/bin/make", "test"]}, **fields})


def check(rules: dict[str, Any], **fields: Any) -> list[str]:
    return policy.check(policy.parse(rules, "policy"), job(**fields))


def test_absent_file_allows_everything(tmp_path: Path) -> None:
    assert policy.check(policy.load(tmp_path / "none"), job()) == []


@pytest.mark.parametrize(
    ("rules", "fields", "word"),
    [
        ({"runners": []}, {}, "runner"),
        ({"roles": ["test*"]}, {"role": "coder"}, "role"),
        ({"executables": ["/usr/bin/git"]}, {}, "/usr/bin/make"),
        ({"executables": ["/usr/bin/*"]}, {"payload": {"script": "true"}}, "/bin/sh"),
        ({"executables": ["/usr/bin/*"]}, {"verify": {"argv": ["rm"]}}, "verify"),
        ({"executables": ["/usr/bin/*"]}, {"runner": "codex", "payload": {"prompt": "x"}}, "under `runners`"),
        ({"runners": ["command"]}, {"runner": "codex", "payload": {"prompt": "x"}}, "'codex'"),
        ({"runners": ["codex@2"]}, {"runner": "codex", "payload": {"prompt": "x"}}, "'codex'"),
        ({"runners": ["codex@2"]}, {"runner": "codex@1", "payload": {"prompt": "x"}}, "'codex@1'"),
        ({"repositories": ["https://git.example/*"]}, {"workspace": {"git": "/srv/x"}}, "repository"),
        ({"max_memory": "1GiB"}, {}, "ceiling of 1 GiB"),
        ({"max_timeout": "30m"}, {}, "ceiling of 30m"),
        ({"max_cpus": 0.5}, {}, "CPU"),
        ({"denied_environment": ["LD_*"]}, {"environment": {"LD_PRELOAD": "x", "OK": "y"}}, "LD_PRELOAD may not"),
    ],
)
def test_each_rule_forbids_what_it_names(rules: dict[str, Any], fields: dict[str, Any], word: str) -> None:
    (sentence,) = check(rules, **fields)
    assert word in sentence


@pytest.mark.parametrize(
    ("rules", "fields"),
    [
        ({"roles": ["test*"]}, {"role": "tester"}),
        ({"roles": []}, {}),
        ({"executables": ["/usr/bin/*"]}, {}),
        ({"executables": [], "runners": ["codex"]}, {"runner": "codex", "payload": {"prompt": "x"}}),
        ({"runners": ["codex"]}, {"runner": "codex@1", "payload": {"prompt": "x"}}),
        ({"runners": ["codex@1"]}, {"runner": "codex@1", "payload": {"prompt": "x"}}),
        ({"repositories": ["https://git.example/*"]}, {"workspace": {"git": "https://git.example/a/b"}}),
        ({"repositories": []}, {}),
        ({"max_memory": "2GiB", "max_timeout": 3600, "max_cpus": 1}, {}),
    ],
)
def test_what_keeps_to_the_rules_may_run(rules: dict[str, Any], fields: dict[str, Any]) -> None:
    assert check(rules, **fields) == []


def test_every_broken_rule_is_told_at_once() -> None:
    assert len(check({"max_memory": 1, "max_cpus": 0.1, "executables": []})) == 3


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        ("executabels: []", "INPUT_UNKNOWN_KEY", "executables"),
        ("max_memory: lots", "INPUT_INVALID", "max_memory"),
        ("- a", "INPUT_INVALID", ""),
        ("{", "INPUT_UNREADABLE", ""),
        ("\xff".encode("latin-1").decode("latin-1") * 3 + ": [", "INPUT_UNREADABLE", ""),
    ],
)
def test_broken_files_are_errors_that_help(tmp_path: Path, text: str, code: str, word: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(errors.AgentinaError) as caught:
        policy.load(tmp_path / "policy.yaml")
    assert caught.value.code == code
    assert word in str(caught.value) + caught.value.remedy


def test_empty_file_allows_everything(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("# nothing yet\n")
    assert policy.load(tmp_path / "policy.yaml") == policy.Policy()
