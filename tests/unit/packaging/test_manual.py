from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from agentina.cli import main
from releasing import manual

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {f"{page.name}.{page.section}": manual.render(page, version="1.2.3", epoch=0) for page in manual.pages(DOCS)}


def page(body: str) -> list[str]:
    text = manual.render(manual.Page("name", 1, "summary", body), version="1", epoch=0)
    return text.splitlines()[5:]


def test_every_command_has_a_page(pages: dict[str, str]) -> None:
    for section in main.SECTIONS:
        for command in section.commands:
            assert f"agentina-{command}.1" in pages
            assert f"agentina {command}".replace("-", "\\-") in pages["agentina.1"]


def test_files_have_pages(pages: dict[str, str]) -> None:
    assert {"agentina.yaml.5", "agentina-policy.5", "agentina-runners.5", "agentina-job.5"} <= pages.keys()
    assert "# runners.d/ada.yaml" in pages["agentina-runners.5"], "what looks like a heading in an example is none"


def test_every_page_has_a_line_for_whatis(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        section, line = text.splitlines()[3:5]
        assert section == ".SH NAME"
        assert line.startswith(name.rpartition(".")[0].replace("-", "\\-") + " \\- ")


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_has_no_complaint(pages: dict[str, str]) -> None:
    command = ["groff", "-man", "-Tutf8", "-Kutf8", "-ww", "-P-cbou"]
    done = subprocess.run(command, input="".join(pages.values()), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "--control-plane URL\n" in done.stdout


def test_tables_become_tagged_paragraphs() -> None:
    table = "| key | default | meaning |\n| --- | --- | --- |\n| `a_b` | `1` | One `c \\| d`. |\n"
    assert page(table) == [".TP", "\\fBa_b\\fR", "default: \\fB1\\fR. One \\fBc | d\\fR."]


def test_nothing_in_the_text_is_taken_for_a_request() -> None:
    assert page(".hidden `-x` it's \\n\n") == [".PP", "\\&.hidden \\fB\\-x\\fR it\\(aqs \\en"]
    assert page("```\n.code 'x'\n```\n") == [".PP", ".RS 4", ".EX", "\\&.code \\(aqx\\(aq", ".EE", ".RE"]


def test_headings_lists_and_links() -> None:
    assert page("## Some part\n\n- see [there](x.md)\n\n### Less\n") == [
        ".SH SOME PART",
        ".IP \\(bu 2",
        "see there",
        ".SS Less",
    ]
