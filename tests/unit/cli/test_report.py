from __future__ import annotations

import csv
import io

import pytest

from agentina.cli import output, report
from agentina.protocol import budgets


def found(*rows: budgets.UsageRow, by: str = "job") -> budgets.UsageReport:
    return budgets.UsageReport(by=by, since="2026-11-01", until="2026-11-30", rows=list(rows), total=budgets.add(rows))


def test_the_total_says_what_is_not_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        budgets.UsageRow(
            key="job_1", name="fix", calls=2, input=10, cached=500, output=7, cost_nano=2 * budgets.DOLLAR
        ),
        budgets.UsageRow(key="job_2", name="try", calls=1, output=1, unpriced=1, estimated=1),
    ]
    report._print(found(*rows))
    shown = capsys.readouterr()
    assert "job_1  fix   2      10     500     0            7       0      $2.0000" in shown.out
    assert "total        3      10     500     0            8       0      $2.0000 + 1 unpriced" in shown.out
    assert "not known and not in the sum" in shown.err
    assert "upper estimate" in shown.err


def test_groups_without_names_have_no_column_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    report._print(found(budgets.UsageRow(key="gpt-5", calls=1), by="model"))
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["MODEL", "CALLS"]


def test_a_job_s_name_is_no_formula_in_a_spreadsheet(capsys: pytest.CaptureFixture[str]) -> None:
    report._write_csv(found(budgets.UsageRow(key="job_1", name='=1+1,"x"', calls=3, cost_nano=12)))
    header, line = csv.reader(io.StringIO(capsys.readouterr().out))
    assert dict(zip(header, line, strict=True)) == {
        "job": "job_1", "name": "'=1+1,\"x\"", **dict.fromkeys(budgets.FIGURES, "0"), "calls": "3", "cost_nano": "12",
    }  # fmt: skip


def test_json_has_zeros_too() -> None:
    (row,) = output.whole(found(budgets.UsageRow(key="job_1", calls=1)))["rows"]
    assert row == {"key": "job_1", "name": "", **dict.fromkeys(budgets.FIGURES, 0), "calls": 1}
