"""Every error this package raises on purpose, as one tree.

    EsServiceError
    ├── ConfigError            a setting is outside what it may be            (also ValueError)
    ├── InputError             a call's arrays cannot be used; nothing was written (also ValueError)
    │   ├── ShapeError             wrong length, dtype or number of dimensions
    │   ├── IdError                an id out of range, or twice in one report
    │   └── LossError              a loss that is NaN, infinite or negative
    ├── RunError               the named run is not what the caller takes it for
    │   ├── RunNameError           a name that could not be a folder's name   (also ValueError)
    │   ├── RunNotFoundError       no such run, on Ray or in the storage      (also LookupError)
    │   ├── RunExistsError         the name is taken
    │   └── RunMismatchError       the run has another size, method or seed
    ├── EpochOrderError        epochs opened twice, out of order, or by a fenced rank
    ├── StorageError           the storage folder cannot be read or written, or a file in it is damaged
    ├── DataError              a data set is missing or unreadable
    ├── TrainingError          the workers ended before the training did
    ├── StoppedError           the training was asked to stop
    └── ServerError            the score server cannot answer
        ├── ServerUnavailableError no answer before the deadline              (also TimeoutError)
        └── ServerRestartedError   it restarted and lost what was not yet on storage

Three warnings (UserWarning): NothingSelectedWarning, of settings that train on everything, SelectionStoppedWarning, of
selection that does not pay, and DataWarning, of samples that were changed or left out as they were read.

A message states what is wrong, which value, and what to change. All of them survive pickling, which Ray relies on.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DataError",
    "DataWarning",
    "EpochOrderError",
    "EsServiceError",
    "IdError",
    "InputError",
    "LossError",
    "NothingSelectedWarning",
    "RunError",
    "RunExistsError",
    "RunMismatchError",
    "RunNameError",
    "RunNotFoundError",
    "SelectionStoppedWarning",
    "ServerError",
    "ServerRestartedError",
    "ServerUnavailableError",
    "ShapeError",
    "StoppedError",
    "StorageError",
    "TrainingError",
]


class EsServiceError(Exception):
    """Base of every error raised on purpose here; catch it to catch them all."""


class ConfigError(EsServiceError, ValueError):
    """A setting is outside what it may be, or two settings exclude each other."""


class InputError(EsServiceError, ValueError):
    """The arrays of a call cannot be used; the call changed nothing."""


class ShapeError(InputError):
    """An array has the wrong length, dtype or number of dimensions."""


class IdError(InputError):
    """A sample id is out of range, or repeated in one report."""


class LossError(InputError):
    """A loss is NaN or infinite, or negative where it becomes a sampling weight."""


class RunError(EsServiceError):
    """The named run is not what the caller takes it for."""


class RunNameError(RunError, ValueError):
    """A run name holds characters that could leave its folder."""


class RunNotFoundError(RunError, LookupError):
    """No run of this name, on Ray or in the storage folder."""


class RunExistsError(RunError):
    """The run name is taken by an earlier run."""


class RunMismatchError(RunError):
    """The run exists with another size, method or seed than the caller's."""


class EpochOrderError(EsServiceError):
    """An epoch was opened twice or out of order, or the caller's generation was fenced by a newer one."""


class StorageError(EsServiceError):
    """The storage folder cannot be read or written, or a file in it is damaged."""


class DataError(EsServiceError):
    """A data set is missing, or its files are not what they should be."""


class TrainingError(EsServiceError):
    """The workers ended before the training did, for a reason that is not ours."""


class StoppedError(EsServiceError):
    """The training was asked to stop; it can be resumed from its last checkpoint."""


class ServerError(EsServiceError):
    """The score server cannot answer."""


class ServerUnavailableError(ServerError, TimeoutError):
    """No answer from the score server before the deadline."""


class ServerRestartedError(ServerError):
    """The score server restarted; what it had not yet written to storage is gone."""


class NothingSelectedWarning(UserWarning):
    """The settings of a run leave no step and no epoch that selects: it trains on everything."""


class SelectionStoppedWarning(UserWarning):
    """The guard of a run stopped selection for some epochs: by the run's own figures it does not pay."""


class DataWarning(UserWarning):
    """Samples were truncated or left out as they were read, or weights that a model's folder lacks start at random."""
