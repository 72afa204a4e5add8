"""Models in folders of Hugging Face's layout: opened quietly, and never from the network unless that is asked for."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from es_service import errors
from es_service.selection.settings import suggest

__all__ = ["ModelFolder", "imported"]

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def imported(name: str, why: str) -> Any:
    """Return a library that comes with the extra [transformers]; ConfigError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise errors.ConfigError(f"{why} needs {name}: pip install 'es-service[transformers]' ({error})") from error


class ModelFolder:
    """A model that a user names by its folder, or by its name on the hub if it may be downloaded.

    Args:
        name: as given with --model.
        download: allow it to be fetched from the hub.
        models: names that the task knows beside folders, for the message.

    Raises:
        ConfigError: there is no such folder, or transformers is not installed.
    """

    def __init__(self, name: str, *, download: bool, models: Sequence[str] = ()) -> None:
        self.name, self.is_local = name, Path(name).is_dir()
        if not self.is_local and not download:
            raise errors.ConfigError(
                f"--model {name}: there is no such folder{', and ' + suggest(name, models) if models else ''}; a model "
                "of the Hugging Face hub is fetched with --download"
            )
        self.library = imported("transformers", f"--model {name}")

    @property
    def has_weights(self) -> bool:
        """Whether it has weights, or only describes a model that starts from scratch."""
        return not self.is_local or any(found for one in _WEIGHTS for found in Path(self.name).glob(one))

    def load(self, what: str, function: Callable[..., Any], **settings: Any) -> Any:
        """Return function(name, **settings), e.g. of transformers' `AutoConfig.from_pretrained`.

        Raises:
            DataError: whatever it raised; the message names `what`.
        """
        try:
            with self.quietly():
                return function(self.name, local_files_only=self.is_local, trust_remote_code=False, **settings)
        except Exception as error:  # transformers raises almost anything, some of it a page long
            reason = (str(error) or repr(error)).strip().partition("\n")[0]
            raise errors.DataError(f"--model {self.name}: {what} cannot be loaded: {reason}") from error

    def tokenizer(self) -> Any:
        """Return its tokenizer.

        Raises:
            DataError: it has none; transformers itself would make one without any words.
        """
        found = self.load("its tokenizer", self.library.AutoTokenizer.from_pretrained)
        names = {"tokenizer.json", *type(found).vocab_files_names.values()}
        has_words = not type(found).vocab_files_names or any(Path(self.name, name).is_file() for name in names)
        if self.is_local and not has_words:
            raise errors.DataError(
                f"--model {self.name}: the folder has no tokenizer, none of {', '.join(sorted(names))}: save it there "
                "with tokenizer.save_pretrained(folder)"
            )
        return found

    @contextlib.contextmanager
    def quietly(self) -> Iterator[None]:
        """Keep progress bars and reports, which are no errors, off a terminal."""
        logging = self.library.utils.logging
        verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the bar of GGUF files has no switch
                yield
        finally:
            logging.set_verbosity(verbosity)
            if has_bars:
                logging.enable_progress_bar()
