"""Language models and their tokenizers from folders in Hugging Face's layout, or with a GGUF file. No network."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from es_service import errors

__all__ = ["ModelFolder", "imported"]

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def imported(name: str, why: str) -> Any:
    """Return a library that comes with the extra [transformers]; ConfigError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise errors.ConfigError(f"{why} needs {name}: pip install 'es-service[transformers]' ({error})") from error


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """Where a causal language model is, and what is there of it; make one with `find`.

    Args:
        place: folder, or name on the Hugging Face hub where it may be fetched from there.
        gguf_file: name of the file with weights and tokenizer; None in the usual layout.
        has_weights: whether there are any; a new model is trained from scratch where not.
        download: whether the hub may be asked.
    """

    place: str
    gguf_file: str | None
    has_weights: bool
    download: bool

    @classmethod
    def find(cls, model: str | None, *, download: bool) -> ModelFolder:
        """Return what is at a path.

        Args:
            model: folder, or a GGUF file.
            download: take what is no path for a name on the hub.

        Raises:
            ConfigError: there is no model, several GGUF files, weights of another format, or the package gguf is
                missing.
        """
        imported("transformers", "the task 'sft'")
        if model is None:
            raise errors.ConfigError(
                "the task 'sft' needs --model, a folder with a causal language model and its tokenizer; see "
                "docs/how-to/sft.md"
            )
        path = Path(model).expanduser()
        if not path.exists():
            if download:
                return cls(place=model, gguf_file=None, has_weights=True, download=True)
            raise errors.ConfigError(
                f"--model {model}: there is no such folder; with --download it is fetched from the Hugging Face hub"
            )
        if path.is_file() and path.suffix == ".gguf":
            return cls._of_gguf(path)
        if not path.is_dir():
            raise errors.ConfigError(f"--model {model} is neither a folder nor a GGUF file")
        names = sorted(os.listdir(path))
        gguf_files = [name for name in names if name.endswith(".gguf")]
        has_weights = any(name in names for name in _WEIGHTS)
        if gguf_files and not has_weights:
            if len(gguf_files) > 1:
                raise errors.ConfigError(
                    f"--model {model} holds {len(gguf_files)} GGUF files: name one of {', '.join(gguf_files)} with "
                    "its folder"
                )
            return cls._of_gguf(path / gguf_files[0])
        if "config.json" not in names:
            raise errors.ConfigError(f"--model {model} holds no model: there is no config.json and no GGUF file")
        others = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".safetensors"))]
        if others and not has_weights:
            raise errors.ConfigError(
                f"--model {model} holds weights as {', '.join(others[:3])}, and only model.safetensors is read: save "
                "them with save_pretrained of transformers, or remove them to train a new model from config.json"
            )
        if not any(name in names for name in _TOKENIZERS):
            raise errors.ConfigError(
                f"--model {model} has no tokenizer (none of {', '.join(_TOKENIZERS)}): save it there with "
                "tokenizer.save_pretrained"
            )
        return cls(place=str(path), gguf_file=None, has_weights=has_weights, download=False)

    @classmethod
    def _of_gguf(cls, path: Path) -> ModelFolder:
        imported("gguf", "a GGUF file")
        return cls(place=str(path.parent), gguf_file=path.name, has_weights=True, download=False)

    @property
    def _asked(self) -> dict[str, Any]:
        return {"local_files_only": not self.download, "trust_remote_code": False, "gguf_file": self.gguf_file}

    def config(self) -> Any:
        """Return its configuration; ConfigError where it cannot be read, or needs code of its own."""
        from transformers import AutoConfig

        with self._explained("configuration"):
            return AutoConfig.from_pretrained(self.place, **self._asked)

    def tokenizer(self) -> Any:
        """Return its tokenizer; ConfigError where it cannot be read."""
        from transformers import AutoTokenizer

        with self._explained("tokenizer"):
            return AutoTokenizer.from_pretrained(self.place, **self._asked)

    def skeleton(self, config: Any) -> torch.nn.Module:
        """Return the model without memory for its weights, to look at; ConfigError where it is no language model."""
        with torch.device("meta"):
            model: Any = self._new(config)
        if model.get_output_embeddings() is None:
            raise errors.ConfigError(f"--model {self.place} is a {type(model).__name__}, which has no head over tokens")
        return model  # type: ignore[no-any-return]

    def model(self, config: Any) -> torch.nn.Module:
        """Return a model in float32 on the CPU: with its weights, or new ones from torch's global generator.

        Raises:
            ConfigError: the weights cannot be read, or some are missing.
        """
        from transformers import AutoModelForCausalLM

        if not self.has_weights:
            return self._new(config)
        with self._explained("weights"), _no_progress_bars():
            model, found = AutoModelForCausalLM.from_pretrained(
                self.place, **self._asked, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        missing = sorted(found["missing_keys"])
        if missing:
            raise errors.ConfigError(
                f"--model {self.place} lacks {len(missing)} weights of a causal language model, {missing[0]} among "
                "them: is it a model of another kind?"
            )
        return model  # type: ignore[no-any-return]

    def _new(self, config: Any) -> torch.nn.Module:
        from transformers import AutoModelForCausalLM

        with self._explained("configuration"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except errors.EsServiceError:
            raise
        except Exception as error:  # transformers and what it reads with raise almost anything
            raise errors.ConfigError(
                f"--model {self.place}: its {what} cannot be used for a causal language model: "
                f"{str(error).strip().partition(chr(10))[0] or repr(error)}"
            ) from error


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing on a terminal that shows how far the training is."""
    from transformers.utils import logging

    shows = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows:
            logging.enable_progress_bar()
