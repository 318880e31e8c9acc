"""The benchmarks' command line and page. Speed itself is measured, not tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import run

FIGURES = [
    run.Figure("latency", (4.0,), "ms", 5),
    run.Figure("rate", (1300.0, 900.0, 1200.0), "jobs/s", 2000, "higher"),
    run.Figure("size", (3.5,), "MiB"),
]


def test_help_lists_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in run.ALL)


def test_unknown_benchmark_is_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["dispatch", "dispach"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert "no benchmark dispach; there are floor, dispatch, " in printed.err
    assert printed.out == ""


def test_verdict_goes_by_what_is_better() -> None:
    assert [figure.verdict for figure in FIGURES] == ["0.80 x, met", "0.60 x, NOT met", ""]


def test_verdict_tells_when_only_some_runs_met_the_goal() -> None:
    figure = run.Figure("latency", (4.0, 6.0, 4.5), "ms", 5)
    assert figure.verdict == "0.90 x, met in 2 of 3"


def test_page_keeps_everything_but_earlier_figures() -> None:
    page = f"# Speed\n{run._PAGE_BEGIN}\nold\n{run._PAGE_END}\nthe end\n"
    made = run.with_figures(page, FIGURES, said="Measured once.")
    assert made.startswith("# Speed\n")
    assert made.endswith("\nthe end\n")
    assert "old" not in made
    assert "Measured once." in made
    assert "| rate | 1,200.00 jobs/s | 1,300.00 to 900.00 | ≥ 2000 jobs/s | 0.60 x, NOT met |" in made
    assert run.with_figures(made, FIGURES, said="Measured once.") == made


def test_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no lines"):
        run.with_figures("# Speed\n", FIGURES, said="")


def test_page_of_the_documentation_has_a_place() -> None:
    page = Path(__file__).parents[2] / "docs/explanation/performance.md"
    run.with_figures(page.read_text(), FIGURES, said="")
