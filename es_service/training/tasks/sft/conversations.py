"""Conversations from the columns of a table: prompt and answer, or whole lists of messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from es_service import errors
from es_service.training.tables.columns import check_apart, find_column
from es_service.training.tasks.options import TaskOptions

__all__ = ["ANSWERS", "MESSAGES", "PROMPTS", "Message", "conversations"]

Message = dict[str, str]

PROMPTS = ("prompt", "question", "instruction", "problem", "query", "input")
ANSWERS = ("answer", "completion", "response", "output", "solution", "target")
MESSAGES = ("messages", "conversation", "conversations")
"""Names that the columns have where none is given."""


def conversations(table: pa.Table, options: TaskOptions) -> Iterator[Callable[[], list[Message]]]:
    """Yield for each row of a table a function that returns its conversation: messages of a role and a content.

    It ends in an answer, a message of the role "assistant", and each answer has something before it. The function
    raises DataError where the row does not hold such a conversation.

    Raises:
        ConfigError: there are no such columns, or columns of both kinds were asked for.
        DataError: a column holds something else.
    """
    pair = (options.prompt_column, options.answer_column)
    if options.messages_column is not None and pair != (None, None):
        raise errors.ConfigError(
            "--messages-column is for whole conversations: leave --prompt-column and --answer-column out, or it"
        )
    folded = {name.casefold() for name in table.column_names}
    if options.messages_column is not None or (pair == (None, None) and folded.intersection(MESSAGES)):
        name = find_column(table, options.messages_column, MESSAGES, flag="--messages-column")
        kind = table.schema.field(name).type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            raise errors.DataError(f"column {name!r} holds {kind}, and a conversation is a list of {{role, content}}")
        return (lambda messages=messages: _checked(messages) for messages in table[name].to_pylist())  # type: ignore[misc]
    prompt = find_column(table, options.prompt_column, PROMPTS, flag="--prompt-column")
    answer = find_column(table, options.answer_column, ANSWERS, flag="--answer-column")
    check_apart([("--prompt-column", prompt), ("--answer-column", answer)])
    columns = []
    for name in (prompt, answer):
        kind = table.schema.field(name).type
        if not _is_text(kind):
            raise errors.DataError(f"column {name!r} holds {kind}, and not text")
        columns.append(table[name].to_pylist())
    return (
        lambda asked=asked, answered=answered: _checked(  # type: ignore[misc]
            [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        )
        for asked, answered in zip(*columns, strict=True)
    )


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return str(kind) in ("string", "large_string", "string_view", "null")  # older versions of pyarrow know no views


def _checked(messages: Any) -> list[Message]:
    """Return what a conversation has up to its last answer, or raise DataError."""
    if not isinstance(messages, list) or not messages:
        raise errors.DataError("there is no message")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise errors.DataError(f"message {number} has no text for role and content: {str(message)[:80]}")
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        roles = ", ".join(sorted({message["role"] for message in messages}))
        raise errors.DataError(f"there is no answer: no message has the role 'assistant', the roles are {roles}")
    if answers[0] == 0:
        raise errors.DataError("it begins with an answer, a message of the role 'assistant'")
    for number in answers:
        if not messages[number]["content"].strip():
            raise errors.DataError(f"the answer, message {number}, is empty")
    return [{key: message[key] for key in ("role", "content")} for message in messages[: answers[-1] + 1]]
