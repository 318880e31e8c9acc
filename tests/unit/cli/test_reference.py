from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentina import errors
from agentina.cli import reference
from agentina.control import metrics
from agentina.control.api import routes
from agentina.protocol import jobs

DOCS = Path(__file__).parents[3] / "docs"
PAGES = reference.pages()


@pytest.mark.parametrize("name", PAGES)
def test_page_is_what_the_code_says(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name], "run `make docs`"


def test_every_key_and_code_is_explained() -> None:
    for page in ("reference/configuration.md", "reference/exit-codes.md"):
        assert "|  |" not in PAGES[page], "a row without its meaning"
    for code in errors.CATALOGUE:
        assert f"## {code}\n" in PAGES["troubleshooting.md"]


def test_every_part_of_a_job_has_its_section() -> None:
    parts: list[Any] = [jobs.JobSpec]
    for part in parts:
        for field in msgspec.structs.fields(part):
            for kind in (field.type, *typing.get_args(field.type)):
                if hasattr(kind, "__struct_fields__") and kind not in parts:
                    parts.append(kind)
    assert jobs.Health in parts
    assert {struct for _, struct in reference._JOB_STRUCTS} >= set(parts)


def test_texts_have_no_marks_of_templates() -> None:
    assert not re.search(r"\{\{|\}\}", PAGES["troubleshooting.md"])


def test_every_address_and_message_is_listed() -> None:
    page = PAGES["reference/api.md"]
    for route in routes.table():
        assert f"| `{route.method} {route.path.replace(':path}', '}')}` |" in page
    headings = {line.removeprefix("### ").lower() for line in page.splitlines() if line.startswith("### ")}
    links = set(re.findall(r"\(#(\w+)\)", page))
    assert links
    assert links <= headings


def test_metrics_have_their_exposed_names() -> None:
    page = PAGES["reference/metrics.md"]
    exposed = set(re.findall(r"^# TYPE (\w+) ", metrics.Metrics().render().decode(), re.MULTILINE))
    assert exposed
    listed = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    assert {name for name in exposed if not name.endswith("_created")} == listed


def test_example_job_is_valid() -> None:
    from agentina.cli import job_files  # noqa: PLC0415 - beside what it checks

    _, job = job_files.parse(reference._EXAMPLE.encode(), "jobs.md")
    assert job.retry.on == ["lost", "failed"]
