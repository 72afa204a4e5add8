"""What is typed: mistakes are answered with the nearest word, help has examples that work, the shell completes."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from es_service.cli import build_parser, main
from es_service.cli.training import _spec

COMMANDS = list(build_parser().commands.choices)


def examples() -> list[str]:
    found = []
    for name, parser in build_parser().commands.choices.items():
        lines = (parser.epilog or "").partition("examples:\n")[2].splitlines()
        assert lines, name
        assert all(line.startswith(f"  es-service {name} ") for line in lines)
        found += [line.strip() for line in lines]
    return found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --epoch 3", "es-service train: unknown flag --epoch: did you mean --epochs?"),  # no abbreviation either
        ("train --epoch=3", "es-service train: unknown flag --epoch: did you mean --epochs?"),
        ("train --run x --methdo es", "unknown flag --methdo: did you mean --method?"),
        ("compare --uot x", "es-service compare: unknown flag --uot: did you mean --out?"),  # --out is missing, too
        ("tune --trails 3", "unknown flag --trails: did you mean --trials?"),
        ("top demo --wher w>1", "unknown flag --wher: did you mean --where?"),
        ("top demo --zzzzzz", "es-service top: unknown flag --zzzzzz (es-service top --help)"),
        ("trian --epochs 3", "es-service: unknown command 'trian': did you mean train?"),
        ("--versoin", "unknown flag --versoin: did you mean --version?"),
        ("train --epochs many", "argument --epochs: invalid int value: 'many'"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err


@pytest.mark.parametrize("example", examples())
def test_the_examples_in_help_are_accepted(example: str) -> None:
    build_parser().parse_args(shlex.split(example.partition(" >")[0])[1:])


@pytest.mark.parametrize("name", ["train", "compare", "tune"])
def test_flags_stand_in_groups(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    own = {"train": "selection:", "compare": "comparison:", "tune": "search:"}[name]
    assert {"task and data:", own, "training:", "examples:"} <= set(lines)
    assert lines[lines.index("options:") + 2] == ""  # --help alone has no group


def test_the_number_of_trials_has_the_name_of_what_it_counts() -> None:
    for flag in ("--trials", "--samples"):
        assert build_parser().parse_args(["tune", "--out", "x", flag, "7"]).samples == 7


@pytest.mark.parametrize(("typed", "name"), [("evolved", "es"), ("selective-backprop", "selective_backprop")])
def test_a_run_keeps_the_one_name_of_its_method(typed: str, name: str) -> None:
    spec = _spec(build_parser().parse_args(["train", "--method", typed]))
    assert spec.description()["method"] == name
    assert spec.run.startswith(f"fashion-{name}-")


def complete(script: str, *words: str) -> list[str]:
    line = shlex.join(["es-service", *words])
    program = f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}; _es_service; echo "${{COMPREPLY[*]}}"'
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_the_shell_completes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert complete(script, "t") == ["train", "tune", "top"]
    assert complete(script, "") == COMMANDS
    assert complete(script, "train", "--meth") == ["--method"]
    assert complete(script, "train", "--method", "kak") == ["kakurenbo"]
    assert complete(script, "tune", "--trials", "3", "--obj") == ["--objective"]
    assert complete(script, "export", "demo", "--format", "") == ["parquet", "arrow", "csv"]
    assert complete(script, "runs", "r") == []  # a file's name, which is the shell's own
    assert main(["completion", "zsh"]) == 0
    prepared, same = capsys.readouterr().out.split("bashcompinit\n")[0], script
    assert prepared.startswith("autoload")
    assert "_es_service" in same
