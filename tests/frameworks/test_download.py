"""`--download` without a network: a model of the hub comes from its cache, and one that is not there is an error."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import image_files
import pytest
import tiny_language_model as tiny
import torch
import transformers

from es_service import errors
from es_service.training.tasks import build_task
from es_service.training.tasks.options import TaskOptions

SHA = "0123456789abcdef0123456789abcdef01234567"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of the network, which is not there."""
    calls: list[Any] = []

    def refuse(*args: Any, **_: Any) -> NoReturn:
        calls.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return calls


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a snapshot in a cache of the hub's layout; the model in it is called some/model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "cache" / "models--some--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(SHA)
    (place / "snapshots" / SHA).mkdir(parents=True)
    return place / "snapshots" / SHA


def write(task: str, hub: Path) -> tuple[str, torch.nn.Module]:
    """A model of a task and data for it: the path of the data, and the model."""
    if task == "images":
        model = transformers.ViTForImageClassification(
            transformers.ViTConfig(image_size=16, patch_size=8, num_labels=3, **SIZES)
        )
        model.save_pretrained(hub)
        return str(image_files.write_parquet(hub.parents[3], "all", *image_files.pictures(24, side=16))), model
    if task == "text":
        tiny.make_tokenizer(None).save_pretrained(hub)
        model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=300, **SIZES))
        model.save_pretrained(hub)
        rows: list[Any] = [{"text": f"{i} and more", "label": i % 2} for i in range(20)]
        return str(tiny.write_jsonl(hub.parents[3] / "texts.jsonl", rows)), model
    tiny.make_folder(hub, weights=True)
    return str(
        tiny.write_jsonl(hub.parents[3] / "sums.jsonl", tiny.sums(20))
    ), transformers.LlamaForCausalLM.from_pretrained(hub)


@pytest.mark.parametrize("task", ["images", "text", "sft"])
def test_a_model_comes_from_the_cache_of_the_hub(task: str, hub: Path, asked: list[Any]) -> None:
    data, model = write(task, hub)
    built = build_task(task, data, None, TaskOptions(model="some/model", download=True))
    made, saved = built.build_model().state_dict(), model.state_dict()
    for name, value in saved.items():
        (found,) = [other for its_name, other in made.items() if its_name.endswith(f".{name}")]
        assert torch.equal(found, value)
    assert asked == []  # HF_HUB_OFFLINE is set
    shutil.rmtree(hub)
    with pytest.raises(errors.DataError, match=r"--model some/model: .* cannot be loaded: .*"):
        build_task(task, data, None, TaskOptions(model="some/model", download=True))
    assert asked == []


@pytest.mark.parametrize("task", ["images", "text", "sft"])
def test_nothing_is_fetched_unless_that_is_asked_for(
    task: str, hub: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even from the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    data, _ = write(task, hub)
    with pytest.raises(errors.ConfigError, match=r"some/model: there is no such folder.*is fetched with --download"):
        build_task(task, data, None, TaskOptions(model="some/model"))
    assert asked == []


@pytest.mark.thorough  # the hub's library tries for 25 s
def test_a_network_that_is_not_there_is_an_error_that_names_the_model(
    hub: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    data, _ = write("text", hub)
    with pytest.raises(errors.DataError, match=r"--model other/model: .* cannot be loaded: .*connect"):
        build_task("text", data, None, TaskOptions(model="other/model", download=True))
    assert asked
