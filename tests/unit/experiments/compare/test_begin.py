"""What is said of a comparison or a search before its first process starts."""

from __future__ import annotations

import warnings

import pytest

from es_service import errors
from es_service.experiments.compare.comparison import parse_candidates

pytest.importorskip("torch")

from es_service.experiments.compare import comparison
from es_service.experiments.tune.search import begin
from es_service.experiments.tune.space import read_space


def compared(methods: str, epochs: int) -> None:
    comparison.begin(
        task="fashion",
        data=None,
        derived={},
        candidates=parse_candidates(methods),
        seeds=(0,),
        epochs=epochs,
        batch_size=None,
        learning_rate=None,
    )


def test_compare_says_which_method_never_selects() -> None:
    with pytest.warns(errors.NothingSelectedWarning) as caught:
        compared("es,es:anneal=[0.5,0.5],infobatch", 1)
    said = [str(one.message) for one in caught]
    assert len(said) == 2
    assert said[0].startswith("method 'es:anneal=[0.5,0.5]' never selects: ")
    assert said[1].startswith("method 'infobatch' never selects: ")


def test_two_epochs_with_the_usual_methods_are_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compared("random,loss,es,eswp,infobatch", 2)


def test_tune_says_which_trial_never_selects() -> None:
    space = read_space("es", {"anneal": "choice([0, 0], [0.5, 0.5])"})
    with pytest.warns(errors.NothingSelectedWarning, match=r"a trial with anneal=\[0.5, 0.5\] never selects: "):
        begin("fashion", space, epochs=2)
