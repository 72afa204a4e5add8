"""The error tree: what its picture says, picklable, complete."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re

import pytest

from es_service import errors

CLASSES: dict[str, type[Exception]] = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, Exception) and not issubclass(value, Warning)
}


def drawn_tree() -> dict[str, tuple[str, str | None]]:
    """Name -> (parent, built-in it also is), as drawn at the top of errors.py."""
    tree: dict[str, tuple[str, str | None]] = {}
    parents = ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([│├└─ ]*)([A-Z]\w+(?:Error))\b", line)
        if found is None:
            continue
        depth = len(found[1]) // 4
        also = re.search(r"\(also (\w+)\)", line)
        del parents[depth + 1 :]
        tree[found[2]] = (parents[depth], also[1] if also else None)
        parents.append(found[2])
    return tree


def test_the_picture_holds_every_class_and_no_other() -> None:
    assert set(drawn_tree()) == set(CLASSES)
    assert len(CLASSES) > 10


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_class_has_the_bases_of_the_picture(name: str) -> None:
    parent, also = drawn_tree()[name]
    expected = [CLASSES.get(parent, Exception)]
    if also is not None:
        expected.append(getattr(builtins, also))
    assert list(CLASSES[name].__bases__) == expected


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_error_survives_pickling_and_says_what_it_is(name: str) -> None:
    error = CLASSES[name]("what, which value, what to change")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error) == "what, which value, what to change"
    assert isinstance(error, errors.EsServiceError)
    assert (CLASSES[name].__doc__ or "").strip().endswith((".", "all."))


def test_all_is_sorted_and_complete() -> None:
    assert sorted(errors.__all__) == list(errors.__all__)
    assert set(errors.__all__) == {*CLASSES, "DataWarning", "NothingSelectedWarning", "SelectionStoppedWarning"}
