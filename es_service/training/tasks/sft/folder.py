"""Language models and their tokenizers from folders in Hugging Face's layout, or with a GGUF file."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from es_service import errors
from es_service.training.tasks.folders import ModelFolder, imported

__all__ = ["LanguageModelFolder"]

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModelFolder:
    """Where a causal language model is, and what is there of it; make one with `find`.

    Args:
        folder: that holds it.
        gguf_file: name of the file with weights and tokenizer; None in the usual layout.
        has_weights: whether there are any; a new model is trained from scratch where not.
    """

    folder: ModelFolder
    gguf_file: str | None
    has_weights: bool

    @classmethod
    def find(cls, model: str | None, *, download: bool) -> LanguageModelFolder:
        """Return what is at a path.

        Args:
            model: folder, or a GGUF file.
            download: take what is no path for a name on the hub.

        Raises:
            ConfigError: there is no model, several GGUF files, weights of another format, or a package is missing.
        """
        if model is None:
            raise errors.ConfigError(
                "the task 'sft' needs --model, a folder with a causal language model and its tokenizer; see "
                "docs/how-to/sft.md"
            )
        path = Path(model).expanduser()
        if path.is_file():
            if path.suffix != ".gguf":
                raise errors.ConfigError(f"--model {model} is neither a folder nor a GGUF file")
            return cls._of_gguf(path)
        folder = ModelFolder(str(path) if path.is_dir() else model, download=download)
        if not folder.is_local:
            return cls(folder=folder, gguf_file=None, has_weights=True)
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
        return cls(folder=folder, gguf_file=None, has_weights=has_weights)

    @classmethod
    def _of_gguf(cls, path: Path) -> LanguageModelFolder:
        imported("gguf", "a GGUF file")
        return cls(folder=ModelFolder(str(path.parent), download=False), gguf_file=path.name, has_weights=True)

    def config(self) -> Any:
        """Return its configuration; DataError where it cannot be read, or needs code of its own."""
        return self._load("its configuration", "AutoConfig")

    def tokenizer(self) -> Any:
        """Return its tokenizer; DataError where it cannot be read."""
        return self._load("its tokenizer", "AutoTokenizer")

    def skeleton(self, config: Any) -> torch.nn.Module:
        """Return the model without memory for its weights, to look at.

        Raises:
            ConfigError: it is no language model.
        """
        with torch.device("meta"):
            model: Any = self._new(config)
        if model.get_output_embeddings() is None:
            raise errors.ConfigError(
                f"--model {self.folder.name} is a {type(model).__name__}, which has no head over tokens"
            )
        return model  # type: ignore[no-any-return]

    def model(self, config: Any) -> torch.nn.Module:
        """Return a model in float32 on the CPU: with its weights, or new ones from torch's global generator.

        Raises:
            ConfigError: some weights are missing.
            DataError: the weights cannot be read.
        """
        if not self.has_weights:
            return self._new(config)
        settings = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        model, found = self._load("its weights", "AutoModelForCausalLM", **settings)
        missing = sorted(found["missing_keys"])
        if missing:
            raise errors.ConfigError(
                f"--model {self.folder.name} lacks {len(missing)} weights of a causal language model, {missing[0]} "
                "among them: is it a model of another kind?"
            )
        return model  # type: ignore[no-any-return]

    def _load(self, what: str, kind: str, **settings: Any) -> Any:
        function = getattr(self.folder.library, kind).from_pretrained
        return self.folder.load(what, function, gguf_file=self.gguf_file, **settings)

    def _new(self, config: Any) -> torch.nn.Module:
        made = self.folder.library.AutoModelForCausalLM.from_config
        try:
            with self.folder.quietly():
                model: torch.nn.Module = made(config, dtype=torch.float32)
        except ValueError as error:  # a page long: each configuration that would do
            reason = str(error).strip().partition("\n")[0]
            raise errors.ConfigError(f"--model {self.folder.name} is no causal language model: {reason}") from error
        return model
