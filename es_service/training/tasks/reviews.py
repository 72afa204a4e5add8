"""Movie reviews: 10,605 sentences from Rotten Tomatoes, each rated by about 20 people; is it praise or not?

They come with the source of the package vaderSentiment (MIT licence), but not with what pip installs of it.

Reference: Hutto & Gilbert, *VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text*,
ICWSM 2014.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from es_service import errors
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.packaged import PackagedFile
from es_service.training.tasks.splits import stratified_split
from es_service.training.tasks.supervised import Classification, TensorSet
from es_service.training.tasks.text.words import BagOfWords, hashed

__all__ = ["FILE", "LABELS", "build", "encode"]

LABELS = ("negative", "positive")
"""Names of the labels 0 and 1: the mean rating, from -4 to 4, is below or above 0."""

FILE = PackagedFile(
    package="vaderSentiment",
    url="https://files.pythonhosted.org/packages/77/8c/4a48c10a50f750ae565e341e697d74a38075a3e43ff0df6f1ab72e186902/"
    "vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    names=("movieReviewSnippets_GroundTruth.txt", "hutto_ICWSM_2014.tar.gz", "vaderSentiment-*.tar.gz"),
    folders=(
        "hutto_ICWSM_2014",
        "additional_resources",
        "additional_resources/hutto_ICWSM_2014",
        "vaderSentiment-*/additional_resources",
        "vaderSentiment-*/additional_resources/hutto_ICWSM_2014",
    ),
)
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_MOST_WORDS = 64  # of one sentence; the longest has 51


def build(data: str | None = None) -> Classification:
    """Build the task: four in five sentences to train on, one held out, both classes in equal parts, always the same.

    The sentences rated exactly 0 on average, 37 of them, are left out: 8,455 remain to train on and 2,113 held out.

    Args:
        data: the source archive of vaderSentiment, the archive hutto_ICWSM_2014.tar.gz in it, the file
            movieReviewSnippets_GroundTruth.txt in that, or a folder that holds one of these, packed or unpacked. None
            looks beside the installed package.

    Raises:
        DataError: it is not there, damaged, or of another format.
    """
    ratings_n, texts = _parse(FILE.read(data))
    kept = np.flatnonzero(ratings_n)
    words_n = encode([texts[row] for row in kept])
    labels_n = (ratings_n[kept] > 0).astype(np.int64)
    train_rows, held_out_rows = stratified_split(labels_n)
    train_set, held_out = (
        TensorSet(words_n[torch.from_numpy(rows)], labels_n[rows]) for rows in (train_rows, held_out_rows)
    )
    return Classification(
        name="reviews",
        train_set=train_set,
        held_out=held_out,
        label_names=LABELS,
        model=BagOfWords,
        defaults=TaskDefaults(epochs=12, batch_size=64, learning_rate=0.1),
        preview=lambda sample_id: texts[kept[train_rows[sample_id]]],
    )


def encode(texts: Sequence[str]) -> torch.Tensor:
    """Return int64[n, 64], the hashed words of each text, filled up with 0; what is beyond 64 words is cut off."""
    words_n = np.zeros((len(texts), _MOST_WORDS), dtype=np.int64)
    for row, text in enumerate(texts):
        words = _WORD.findall(text.lower())[:_MOST_WORDS]
        words_n[row, : len(words)] = hashed(words)
    return torch.from_numpy(words_n)


def _parse(content: bytes) -> tuple[NDArray[np.float64], list[str]]:
    """Return the mean ratings float64[n] and the sentences of lines `id, tab, mean rating, tab, sentence`."""
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise errors.DataError(f"{FILE.names[0]} is not UTF-8 text: {error}") from None
    ratings, texts = [], []
    for number, line in enumerate(lines, start=1):
        parts = line.split("\t")
        try:
            _, rating, text = parts
            ratings.append(float(rating))
        except ValueError:
            raise errors.DataError(
                f"line {number} of {FILE.names[0]} is not an id, a mean rating and a sentence, separated by tabs: "
                f"{line[:60]!r}"
            ) from None
        texts.append(text)
    return np.array(ratings), texts
