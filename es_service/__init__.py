"""Data selection for deep-learning training: train on the samples that still teach the model something.

In-process this needs numpy and pyarrow only. `connect` and `Scorer` need Ray; `wrap`, `stream` and `SelectiveLoader`
need torch. Both are imported where they are used.
"""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING, Any

from es_service.connect import connect
from es_service.errors import (
    ConfigError,
    DataError,
    DataWarning,
    EpochOrderError,
    EsServiceError,
    IdError,
    InputError,
    LossError,
    NothingSelectedWarning,
    RunError,
    RunExistsError,
    RunMismatchError,
    RunNameError,
    RunNotFoundError,
    SelectionStoppedWarning,
    ServerError,
    ServerRestartedError,
    ServerUnavailableError,
    ShapeError,
    StoppedError,
    StorageError,
    TrainingError,
)
from es_service.ledger import Ledger
from es_service.selection import methods
from es_service.selection.config import Selection
from es_service.selection.engine import Draw
from es_service.selector import Selector

if TYPE_CHECKING:
    from es_service.scorer import Scorer
    from es_service.training.loader import SelectiveLoader
    from es_service.training.streaming import stream
    from es_service.training.wrapped import wrap

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DataError",
    "DataWarning",
    "Draw",
    "EpochOrderError",
    "EsServiceError",
    "IdError",
    "InputError",
    "Ledger",
    "LossError",
    "NothingSelectedWarning",
    "RunError",
    "RunExistsError",
    "RunMismatchError",
    "RunNameError",
    "RunNotFoundError",
    "Scorer",
    "Selection",
    "SelectionStoppedWarning",
    "SelectiveLoader",
    "Selector",
    "ServerError",
    "ServerRestartedError",
    "ServerUnavailableError",
    "ShapeError",
    "StoppedError",
    "StorageError",
    "TrainingError",
    "__version__",
    "connect",
    "methods",
    "stream",
    "wrap",
]


_LAZY = {  # name: the module that has it, imported when it is used
    "Scorer": "es_service.scorer",
    "SelectiveLoader": "es_service.training.loader",
    "stream": "es_service.training.streaming",
    "wrap": "es_service.training.wrapped",
}


def __getattr__(name: str) -> Any:
    if name == "integrations":
        return _importlib.import_module("es_service.integrations")
    if name in _LAZY:
        return getattr(_importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
