"""Several comparisons in one table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from es_service import errors
from es_service.cli import main
from es_service.experiments.compare.rows import results
from es_service.experiments.compare.summary import summarize

Make = Callable[..., Any]


@pytest.fixture
def folders(make_comparison: Make, make_outcomes: Make, lengths: dict[str, Any], tmp_path: Path) -> list[str]:
    """Two finished comparisons, of which the second has fewer methods."""
    places = []
    for name, methods in (("fashion", "loss,es,eswp"), ("reviews", "es")):
        comparison = make_comparison(methods, task=name)
        outcomes = make_outcomes(comparison)
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results(comparison, outcomes, lengths)))
        places.append(str(tmp_path / name))
    return places


def test_all_rows_are_corrected_together(folders: list[str]) -> None:
    found = summarize(folders)
    own = [(row["task"], row["method"]) for row in found["rows"]]
    assert own == [
        *(("fashion", one) for one in ("random", "loss", "es", "eswp")),
        ("reviews", "random"),
        ("reviews", "es"),
    ]
    assert found["tests"] == 6
    by_name = dict(zip(own, (row["difference_to_short_full"] for row in found["rows"]), strict=True))
    random, es, loss = (by_name["fashion", name] for name in ("random", "es", "loss"))
    assert random["p_corrected"] == pytest.approx(6 * random["p"])
    assert es["p_corrected"] == pytest.approx(4 * es["p"])  # both of random come before
    assert loss["p_corrected"] == pytest.approx(2 * loss["p"])
    assert es["detectable"] > 0
    assert found["methods"]["es"] == {"pays": 2}
    assert json.loads(json.dumps(found)) == found


def test_named_methods_are_corrected_by_themselves(folders: list[str]) -> None:
    found = summarize(folders, ["es"])
    assert [(row["comparison"], row["method"]) for row in found["rows"]] == [(one, "es") for one in folders]
    assert found["tests"] == 2
    for row in found["rows"]:
        short = row["difference_to_short_full"]
        assert short["p_corrected"] == pytest.approx(2 * short["p"])
    assert found["methods"] == {"es": {"pays": 2}}


def test_what_is_undecided_there_stays_so_and_is_no_test(
    folders: list[str], make_comparison: Make, make_outcomes: Make, lengths: dict[str, Any]
) -> None:
    comparison = make_comparison("es", seeds=1)
    found = results(comparison, make_outcomes(comparison), lengths)
    (Path(folders[1]) / "results.json").write_text(json.dumps(found))
    summed = summarize(folders, ["es"])
    assert summed["tests"] == 1
    assert [row["decision"] for row in summed["rows"]] == ["pays", "undecided"]
    assert summed["methods"] == {"es": {"pays": 1, "undecided": 1}}


def test_the_command_prints_it(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--summary", *folders, "--methods", "es,random", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == summarize(folders, ["es", "random"])
    assert main(["compare", "--summary", *folders]) == 0
    words = capsys.readouterr().out
    assert "corrected p  would be seen  verdict" in words
    assert "es      2 × pays" in words
    assert "corrected for 6 tests (Holm)" in words


def damaged(folder: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = Path(folder) / "results.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("rows"),
        lambda values: values["rows"][-1]["difference_to_short_full"].pop("p_corrected"),  # of an earlier version
        lambda values: values["rows"][-1]["difference_to_short_full"].update(p="small"),
        lambda values: values.update(rows=[1]),
    ],
)
def test_damaged_results_are_named(change: Callable[[dict[str, Any]], object], folders: list[str]) -> None:
    damaged(folders[1], change)
    with pytest.raises(errors.StorageError, match=r"reviews/results.json does not hold .* compare command again"):
        summarize(folders)


def test_bad_usage(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "results.json").write_text("{")
    (tmp_path / "link").symlink_to(folders[0])
    cases = {
        f"--summary {tmp_path}/empty": (2, "no finished comparison is there"),
        f"--summary {tmp_path}/nowhere": (2, "no finished comparison is there"),
        f"--summary {tmp_path}/text": (1, "is not valid JSON"),
        f"--summary {folders[0]} {folders[0]}/": (2, "twice: a comparison counts once"),
        f"--summary {folders[0]} {tmp_path}/link": (2, "twice: a comparison counts once"),
        f"--summary {folders[0]} --methods es,esw": (2, "--methods esw: none of these comparisons has it, only random"),
        f"--summary {folders[0]} --out {tmp_path}/out --seeds 3": (2, "leave --seeds, --out out"),
        "--summary s3://bucket/x": (2, "not a local folder"),
        "--methods es": (2, "--out is missing"),
    }
    for words, (status, message) in cases.items():
        assert main(["compare", *words.split()]) == status, words
        printed, err = capsys.readouterr()
        assert message in err
        assert printed == ""
    assert not (tmp_path / "out").exists()
