"""Values of settings as they are typed."""

from __future__ import annotations

from typing import Any

import pytest

from es_service.selection.settings import parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("5e-2", 0.05),
        (".5", 0.5),
        ("1_000", 1000),
        ("null", None),
        ("None", None),
        ("true", True),
        ("False", False),
        ("[0.1, 0]", [0.1, 0]),
        ("(0,0)", (0, 0)),
        ('"3"', "3"),
        ("'3'", "3"),
        ("topk", "topk"),
        ("grad_norm", "grad_norm"),
        ("1/3", "1/3"),
        ("", ""),
        (" x", " x"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_json_then_a_literal_then_the_word(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)
