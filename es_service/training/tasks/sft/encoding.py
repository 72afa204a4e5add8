"""Tokens of conversations, and which of them are the answers'."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from es_service import errors
from es_service.training.tasks.sft.conversations import Message
from es_service.training.tasks.sft.sequences import Encoded, Sequences

__all__ = ["Encoder", "Part"]

_log = logging.getLogger(__name__)
_Pieces = list[tuple[str, bool]]  # texts, and whether each is an answer


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """The samples of one part of the data.

    Args:
        sequences: their tokens.
        answers: text of the last answer of each.
        num_truncated: how many lost their end.
    """

    sequences: Sequences
    answers: list[str]
    num_truncated: int


class Encoder:
    """Makes tokens of conversations.

    With the tokenizer's chat template where it has one: an answer is then what the template adds for it behind the
    prompt for a generation, up to the end of the turn. Else each message that is no answer is followed by a line break,
    and each answer by the token that ends a text. Prompts and answers are tokenised apart, as they are where a model
    generates.

    Args:
        tokenizer: of transformers.
        max_length: most tokens of a sequence; what is longer loses its end.
        ends: tokens that end an answer; the first is put behind it where there is no chat template.
    """

    def __init__(self, tokenizer: Any, max_length: int, ends: tuple[int, ...]) -> None:
        self._tokenizer, self._max_length, self._ends = tokenizer, max_length, ends
        self._pieces = self._plain if tokenizer.chat_template is None else self._from_template
        bos = tokenizer.bos_token_id
        begins = tokenizer.chat_template is None and bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
        self._begin = [bos] if begins else []

    def encode(
        self, name: str, found: Iterable[Callable[[], list[Message]]], rows: Iterable[int], *, skip_broken: bool
    ) -> Part:
        """Return the sequences of conversations; how many were cut or left out is logged.

        Args:
            name: what messages call these rows.
            found: returns the conversation of each row, or raises DataError.
            rows: their numbers in the files.
            skip_broken: leave out what cannot be used, instead of raising.

        Raises:
            DataError: a row has no conversation, the template refuses it, or its answers lie beyond `max_length`; or no
                row is left.
        """
        pieces: list[tuple[int, _Pieces, str]] = []
        problems: dict[int, str] = {}
        for row, conversation in zip(rows, found, strict=True):
            try:
                messages = conversation()
                pieces.append((row, self._pieces(messages), messages[-1]["content"]))
            except errors.DataError as error:
                problems[row] = str(error)
        texts = [text for _, of_row, _ in pieces for text, _ in of_row]
        tokens = iter(self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
        sequences, answers, num_truncated = [], [], 0
        for row, of_row, answer in pieces:
            try:
                one, is_truncated = self._joined([(next(tokens), is_answer) for _, is_answer in of_row])
            except errors.DataError as error:
                problems[row] = str(error)
                continue
            sequences.append(one)
            answers.append(answer)
            num_truncated += is_truncated
        num = len(sequences) + len(problems)
        if problems and not skip_broken:
            row = min(problems)
            others = f"; {len(problems)} of {num} rows cannot be used" if len(problems) > 1 else ""
            raise errors.DataError(
                f"row {row} (from 0) of the {name} samples: {problems[row]}{others}: correct it, or leave such rows "
                "out with --skip-broken"
            )
        if not sequences:
            raise errors.DataError(f"none of the {num} rows of the {name} samples holds an answer to learn")
        if problems:
            _log.warning("%s samples: %d of %d rows cannot be used, and are left out", name, len(problems), num)
        if num_truncated:
            _log.warning(
                "%s samples: %d of %d sequences are longer than %d tokens, and lose their end (--max-length)",
                *(name, num_truncated, len(sequences), self._max_length),
            )
        return Part(Sequences(sequences), answers, num_truncated)

    def _plain(self, messages: list[Message]) -> _Pieces:
        return [
            (one["content"], True) if one["role"] == "assistant" else (one["content"] + "\n", False) for one in messages
        ]

    def _from_template(self, messages: list[Message]) -> _Pieces:
        pieces: _Pieces = []
        done = ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._rendered(messages[:number], for_answer=True)
            after = self._rendered(messages[: number + 1], for_answer=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise errors.DataError(
                    "the tokenizer's chat template renders what comes before an answer in another way once the answer "
                    f"is there (message {number}), so its tokens cannot be found: change the template, or remove "
                    "it from the tokenizer for the plain form"
                )
            pieces += [(before[len(done) :], False), (after[len(before) :], True)]
            done = after
        return pieces

    def _rendered(self, messages: list[Message], *, for_answer: bool) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=for_answer))
        except Exception as error:  # whatever a template raises
            raise errors.DataError(f"the tokenizer's chat template refuses the conversation: {error}") from error

    def _joined(self, pieces: list[tuple[list[int], bool]]) -> tuple[Encoded, bool]:
        """Return the sequence of pieces, and whether it was cut."""
        tokens, is_answer, prompt_length = list(self._begin), [False] * len(self._begin), 0
        for number, (ids, of_answer) in enumerate(pieces):
            rest: list[int] = []
            if of_answer:
                prompt_length = len(tokens)
                if self._tokenizer.chat_template is None:
                    ids = [*ids, *self._ends[:1]]
                else:  # the template may add a line break behind the end of a turn, which is no answer
                    length = max((place + 1 for place, one in enumerate(ids) if one in self._ends), default=len(ids))
                    ids, rest = ids[:length], ids[length:] if number + 1 < len(pieces) else []
            tokens += [*ids, *rest]
            is_answer += [of_answer] * len(ids) + [False] * len(rest)
        length = min(len(tokens), self._max_length)
        is_kept = np.array(is_answer[:length], dtype=np.bool_)
        is_kept[:1] = False  # nothing comes before it that could predict it
        if not is_kept.any():
            raise errors.DataError(
                f"its answer lies beyond the {self._max_length} tokens of --max-length, of which its prompt takes all: "
                "give more"
            )
        kept = Encoded(np.array(tokens[:length], dtype=np.int32), is_kept, min(prompt_length, length))
        return kept, length < len(tokens)
