"""Tables, pictures and reports, from results made by hand."""

from __future__ import annotations

import html.parser
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from es_service.experiments.compare import report
from es_service.experiments.compare.comparison import Candidate
from es_service.experiments.compare.outcomes import SECTION_NAMES, history_table, results_table
from es_service.experiments.compare.pictures import PICTURES
from es_service.experiments.compare.rows import results
from es_service.experiments.report import write_table

Make = Callable[..., Any]


def write(folder: Path, comparison: Any, outcomes: list[Any], lengths: dict[str, Any]) -> tuple[str, str, set[str]]:
    runs, history = results_table(comparison, outcomes), history_table(comparison, outcomes)
    found = json.loads(json.dumps(results(comparison, outcomes, lengths)))
    report.write(folder, found, runs.to_pylist(), history.to_pylist())
    drawn = {path.stem for path in (folder / "pictures").glob("*.png")}
    return (folder / "report.md").read_text(), (folder / "report.html").read_text(), drawn


class Links(html.parser.HTMLParser):
    """Every address a page would fetch, and every tag that is still open at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_shows_every_row_and_every_picture(
    make_comparison: Make, make_outcome: Make, make_outcomes: Make, lengths: dict[str, Any], tmp_path: Path
) -> None:
    comparison = make_comparison()
    outcomes = [one for one in make_outcomes(comparison) if one.spec.method not in ("es", "eswp")]
    *_, es, eswp = comparison.candidates
    for seed, accuracy in enumerate((0.902, 0.899, 0.905)):
        outcomes.append(make_outcome(comparison, es, seed, accuracy, scored=9, held_out_loss=0.9))
        scorers = {"scored": 100, "trained": 0, "seconds": 7.0, "passes": 100.0}
        outcomes.append(make_outcome(comparison, eswp, seed, accuracy - 0.008, scored=9, scorers=scorers))
    markdown, page, drawn = write(tmp_path, comparison, outcomes, lengths)
    assert drawn == set(PICTURES)
    for text in (markdown, page):
        assert "short_full (6 epochs)" in text
        assert "pays: +0.53 points" in text
        assert "Of 4 methods: 1 × pays" in text
        assert "but by held_out_loss it hurts" in text
        assert "corrected for 4 tests (Holm)" in text
        assert "With these 3 seeds a difference of " in text
        assert "would be seen in 80 % of such comparisons" in text
        assert "Scorers worked beside the training of eswp (7.0 s)" in text
        assert "corrupted" not in text
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 7
    assert len({line.count("|") for line in table}) == 1
    links = Links()
    links.feed(page)
    assert links.open == []
    assert len(links.addresses) == len(PICTURES)
    assert all(address.startswith("data:image/png;base64,") for address in links.addresses)
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page


def test_what_was_not_measured_is_left_out_and_said(
    make_comparison: Make, make_outcomes: Make, lengths: dict[str, Any], tmp_path: Path
) -> None:
    comparison = make_comparison(seeds=1)
    missing = dict.fromkeys(("balanced_accuracy", "accuracy_by_label", "trained_by_label", "label_shares"))
    outcomes = make_outcomes(comparison, exclusive=False, **missing, label_names=None)
    markdown, _, drawn = write(tmp_path, comparison, outcomes, lengths)
    assert drawn == {"accuracy_against_cost", "curves"}
    assert "One seed decides nothing" in markdown
    assert "their seconds are not reported" in markdown
    assert "Up to 30 % of a run's time other processes had its cores" in markdown
    assert "where the seconds went" in markdown
    assert "balanced" not in markdown


def test_pictures_of_an_earlier_report_do_not_stay(
    make_comparison: Make, make_outcomes: Make, lengths: dict[str, Any], tmp_path: Path
) -> None:
    comparison = make_comparison()
    write(tmp_path, comparison, make_outcomes(comparison), lengths)
    _, _, drawn = write(tmp_path, comparison, make_outcomes(comparison, exclusive=False), lengths)
    assert drawn == set(PICTURES) - {"seconds"}


def test_noise_failures_and_strange_names_are_shown_as_they_are(
    make_comparison: Make, make_outcome: Make, make_outcomes: Make, lengths: dict[str, Any], tmp_path: Path
) -> None:
    strange = Candidate(label="es:draw=<b>|race", name="es")
    comparison = make_comparison("loss,es,eswp", derived={"label_noise": 0.2})
    comparison = make_comparison(candidates=(*comparison.candidates, strange), derived={"label_noise": 0.2})
    usual = make_comparison("loss,es,eswp", derived={"label_noise": 0.2})
    outcomes = make_outcomes(usual, corrupted={"share_of_set": 0.2, "share_of_trained": 0.34})
    outcomes += [make_outcome(comparison, strange, seed, 0.0, error="loss <nan>") for seed in comparison.seeds]
    markdown, page, _ = write(tmp_path, comparison, outcomes, lengths)
    assert "34.0 %" in markdown
    assert "20.0 % of the train set have a wrong label" in markdown
    assert "es:draw=<b>\\|race" in markdown
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "loss &lt;nan&gt;" in page
    assert "Runs that failed" in page


def test_tables_have_a_row_a_run_and_a_row_an_epoch(
    make_comparison: Make, make_outcome: Make, make_outcomes: Make, tmp_path: Path
) -> None:
    comparison = make_comparison("loss,es,eswp")
    outcomes = [one for one in make_outcomes(comparison) if one.spec.run != "es-s0"]
    outcomes.append(make_outcome(comparison, comparison.candidates[3], 0, 0.0, error="loss nan"))
    runs, history = results_table(comparison, outcomes), history_table(comparison, outcomes)
    assert runs.num_rows == len(outcomes)
    [failed] = [run for run in runs.to_pylist() if run["error"] is not None]
    assert failed["run"] == "es-s0"
    assert failed["accuracy"] is None
    [es] = [run for run in runs.to_pylist() if run["run"] == "es-s1"]
    assert es["method"] == "evolved"
    assert json.loads(es["settings"])["settings"]["beta1"] == 0.2
    assert es["cost"] == pytest.approx(0.6875)
    assert es["total_s"] == pytest.approx(6.9)
    assert sum(es[f"{name}_s"] for name in SECTION_NAMES) == pytest.approx(6.9)
    assert es["trained_by_label"] == [0.2, 0.2, 0.25, 0.35]
    last = [one for one in history.to_pylist() if one["run"] == "es-s1"][-1]
    assert last["cost"] == pytest.approx(0.6875)
    assert last["seconds"] == pytest.approx(6.9)
    write_table(tmp_path / "t.parquet", runs)
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


@pytest.mark.parametrize("num_labels", [2, 31])
def test_a_label_too_many_draws_no_heat_map(num_labels: int, make_comparison: Make, make_outcomes: Make) -> None:
    comparison = make_comparison()
    shares = [1 / num_labels] * num_labels
    outcomes = make_outcomes(
        comparison, label_shares=shares, trained_by_label=shares, accuracy_by_label=None, label_names=None
    )
    runs = results_table(comparison, outcomes).to_pylist()
    figure = PICTURES["labels"].draw(results(comparison, outcomes, {}), runs, [])
    assert (figure is None) == (num_labels > 30)


def test_links_planted_beside_a_report_are_not_followed(
    make_comparison: Make, make_outcomes: Make, lengths: dict[str, Any], tmp_path: Path
) -> None:
    """Nor are those in its place: they make room for the file."""
    victim, folder = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    folder.mkdir()
    (folder / "pictures").mkdir()
    names = ("report.md", "report.html", "results.parquet", "pictures/curves.png")
    for name in names:
        (folder / name).symlink_to(victim)
        (folder / f"{name}.partial").symlink_to(victim)
    comparison = make_comparison()
    outcomes = make_outcomes(comparison)
    write(folder, comparison, outcomes, lengths)
    write_table(folder / "results.parquet", results_table(comparison, outcomes))
    assert victim.read_text() == "precious"
    for name in names:
        assert (folder / name).stat().st_size > 500
        assert not (folder / name).is_symlink()


def test_another_metric_takes_the_place_of_accuracy(
    make_comparison: Make, make_outcome: Make, tmp_path: Path, lengths: dict[str, Any]
) -> None:
    comparison = make_comparison("es")
    outcomes = [
        make_outcome(comparison, one, seed, 0.9, metrics={"r2": 0.5 + 0.1 * seed, "exact_match": 0.25}, scored=9)
        for one in comparison.candidates
        for seed in comparison.seeds
    ]
    markdown, page, drawn = write(tmp_path, comparison, outcomes, lengths)
    head = next(line for line in markdown.splitlines() if line.startswith("| method"))
    assert head.startswith("| method | r2 | exact match | cost | saving at equal r2 |")
    assert "60.00 ± 10.00 | 25.00 ± 0.00" in markdown
    assert "## r2 against cost" in markdown
    assert "r2: times 100, mean" in page
    assert "Accuracies" not in markdown
    assert {"accuracy_against_cost", "curves"} <= drawn
    runs, history = results_table(comparison, outcomes), history_table(comparison, outcomes)
    assert runs.column("r2").to_pylist()[:3] == pytest.approx([0.5, 0.6, 0.7])
    assert runs.column("exact_match").to_pylist() == [0.25] * 9
    assert history.column("r2").to_pylist()[7] == pytest.approx(0.5)
