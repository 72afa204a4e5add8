"""The task text with models of transformers in folders that the test makes: with weights, from scratch, new heads."""

from __future__ import annotations

import json
import os
import socket
import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

import es_service as es
from es_service import errors
from es_service.selection.named import PRESETS, preset
from es_service.storage.runs import RunStorage
from es_service.training.driver import train
from es_service.training.spec import TrainingSpec
from es_service.training.tasks import own
from es_service.training.tasks.options import TaskOptions
from es_service.training.tasks.text import TextClassification, build

_SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_WORDS = ["the", "film", "plot", "cast", "is", "very", "fine", "lovely", "poor", "dull", "a", "b"]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> NoReturn:
        raise AssertionError("something asked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _tokenizer(folder: Path) -> None:
    made = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*_SPECIAL, *_WORDS])}, unk_token="[UNK]")
    )
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


def _albert(**changes: Any) -> transformers.AlbertConfig:
    sizes = {"vocab_size": 16, "embedding_size": 8, "max_position_embeddings": 24, **_SIZES, **changes}
    return transformers.AlbertConfig(**sizes)


@pytest.fixture
def albert(tmp_path: Path) -> str:
    """A small ALBERT without weights: config.json and a tokenizer."""
    _albert().save_pretrained(tmp_path / "albert")
    _tokenizer(tmp_path / "albert")
    return str(tmp_path / "albert")


def _data(folder: Path, num: int = 40, *, pairs: bool = False, classes: int = 2) -> str:
    words = ("poor", "fine", "dull")
    rows = []
    for i in range(num):
        text = f"the {('film', 'plot', 'cast')[i % 3]} is {'very ' * (i % 4)}{words[i % classes]}"
        texts = {"premise": text, "hypothesis": "a b"} if pairs else {"sentence": text}
        rows.append({**texts, "label": i % classes})
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _built(data: str, model: str, **options: Any) -> TextClassification:
    return build(data, TaskOptions(model=model, **options))


@pytest.mark.parametrize("method", PRESETS)
def test_an_albert_from_scratch_trains_and_resumes_bit_for_bit(tmp_path: Path, albert: str, method: str) -> None:
    data = _data(tmp_path)

    def run(folder: str, **changes: Any) -> dict[str, Any]:
        watch = changes.pop("watch", lambda progress: None)
        spec = TrainingSpec(
            run="r", storage=str(tmp_path / folder), task="text", data=data, options=TaskOptions(model=albert),
            method=method, selection=preset(method), exchange="embedded", epochs=2, batch_size=16, learning_rate=0.002,
            **changes,
        )  # fmt: skip
        return train(spec, watch)

    class StoppedHere(Exception):
        pass

    def stop(progress: dict[str, Any]) -> None:
        if progress["progress"]["epoch"] == 1:
            raise StoppedHere

    whole = run("whole")
    with pytest.raises(StoppedHere):
        run("stopped", watch=stop)
    resumed = run("stopped", resume=True)
    for name in ("accuracy", "held_out_loss", "train_loss"):
        assert [one[name] for one in resumed["history"]] == [one[name] for one in whole["history"]]
    saved = [
        torch.load(tmp_path / part / "r/checkpoints/epoch-00001/training.pt", weights_only=True)["model"]
        for part in ("whole", "stopped")
    ]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    tables = [RunStorage(str(tmp_path / part), "r").table() for part in ("whole", "stopped")]
    for name in tables[0].column_names:
        np.testing.assert_array_equal(*(table[name].to_numpy() for table in tables))


def test_a_sample_gives_what_transformers_itself_gives(tmp_path: Path, albert: str) -> None:
    task = _built(_data(tmp_path, pairs=True), albert)
    assert own.check(task, "text") is task
    torch.manual_seed(3)
    model = task.build_model().eval()
    torch.manual_seed(3)
    config = transformers.AutoConfig.from_pretrained(albert, num_labels=2)
    direct = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(albert)
    ids = [0, 3, 7]
    texts = [str(task.preview(i)).removeprefix("premise: ").split("\nhypothesis: ") for i in ids]  # type: ignore[misc]
    asked = {"padding": True, "return_tensors": "pt", "return_token_type_ids": True}
    encoded = tokenizer([text for text, _ in texts], [text for _, text in texts], **asked)
    batch = task.train_set.__getitems__(ids)
    given = task.inputs(batch)
    assert all(torch.equal(given[name], encoded[name]) for name in ("input_ids", "attention_mask", "token_type_ids"))
    with torch.no_grad():
        torch.testing.assert_close(model(given), direct(**encoded).logits, rtol=0, atol=1e-6)
    assert task.tokens[ids].tolist() == encoded["attention_mask"].sum(dim=1).tolist()


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    """A small BERT with weights, but no head."""
    folder = tmp_path / "encoder"
    config = transformers.BertConfig(vocab_size=16, max_position_embeddings=24, **_SIZES)
    transformers.BertModel(config).save_pretrained(folder)
    _tokenizer(folder)
    return str(folder)


def _classifier(folder: Path, num_labels: int) -> str:
    config = transformers.BertConfig(vocab_size=16, max_position_embeddings=24, num_labels=num_labels, **_SIZES)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    _tokenizer(folder)
    return str(folder)


def test_an_encoder_gets_a_head_of_the_runs_seed_and_keeps_its_weights(
    tmp_path: Path, encoder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = _data(tmp_path, classes=3)
    capfd.readouterr()
    task = _built(data, encoder)
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(task.build_model().state_dict())
    assert states[0]["net.classifier.weight"].shape == (3, 16)
    assert torch.equal(states[0]["net.classifier.weight"], states[1]["net.classifier.weight"])
    assert not torch.equal(states[0]["net.classifier.weight"], states[2]["net.classifier.weight"])
    kept = transformers.BertModel.from_pretrained(encoder).state_dict()
    capfd.readouterr()
    assert all(torch.equal(states[2][f"net.bert.{name}"], value) for name, value in kept.items())
    assert (task.defaults.optimizer, task.defaults.backward_cost) == ("adamw", None)


def test_a_head_that_is_there_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = _classifier(tmp_path / "classifier", 3)
    data = _data(tmp_path)
    capfd.readouterr()
    task = _built(data, folder)
    assert task.build_model().state_dict()["net.classifier.weight"].shape == (3, 16)  # of 2 classes it takes 2
    assert own.check(task, "text") is task
    assert capfd.readouterr() == ("", ""), "transformers printed reports and bars"
    four = tmp_path / "four"
    four.mkdir()
    path = _data(four, classes=3)
    with pytest.raises(errors.ConfigError, match="has a head of 2 classes, and the data have 3"):
        _built(path, _classifier(tmp_path / "two", 2))


def test_a_head_of_another_kind_gives_way(tmp_path: Path) -> None:
    config = transformers.BertConfig(vocab_size=16, max_position_embeddings=24, num_labels=5, **_SIZES)
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path / "tagger")
    _tokenizer(tmp_path / "tagger")
    with pytest.warns(es.DataWarning, match="lacks 2 weights"):  # the pooler's
        task = _built(_data(tmp_path), str(tmp_path / "tagger"))
    assert task.build_model().state_dict()["net.classifier.weight"].shape == (2, 16)


def test_what_is_too_long_for_the_model_is_truncated_and_counted(tmp_path: Path, albert: str) -> None:
    rows = [{"text": "a " * (40 if i < 5 else 3), "label": i % 2} for i in range(20)]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(es.DataWarning, match="5 of 20 samples were truncated to 24 tokens") as caught:
        task = _built(str(path), albert)
    assert len(caught) == 1
    assert int(task.tokens.max()) == 24
    assert task.train_set.__getitems__([0]).inputs["input_ids"][0, -1] == 3  # the end is still marked
    with pytest.raises(errors.ConfigError, match=r"--max-length 25: --model .* takes at most 24 tokens"):
        _built(str(path), albert, max_length=25)


def test_a_roberta_has_two_places_less(tmp_path: Path) -> None:
    """Its places count from the padding on; a model of 24 has room for 22."""
    folder = tmp_path / "roberta"
    transformers.RobertaConfig(vocab_size=16, max_position_embeddings=24, pad_token_id=1, **_SIZES).save_pretrained(
        folder
    )
    _tokenizer(folder)
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": "a " * 40, "label": i % 2}) + "\n" for i in range(10)))
    with pytest.warns(es.DataWarning, match="10 of 10 samples were truncated to 22 tokens"):
        task = _built(str(path), str(folder))
    batch = task.train_set.__getitems__([0, 1])
    assert "token_type_ids" not in task.inputs(batch)
    assert torch.isfinite(task.build_model()(task.inputs(batch))).all()


def test_a_decoder_without_a_padding_token_classifies_too(tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    config = transformers.Qwen2Config(vocab_size=16, num_key_value_heads=2, **_SIZES)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    _tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": None, "eos_token": "[SEP]"}))
    task = _built(_data(tmp_path), str(folder))
    model = task.build_model().eval()
    batch = task.train_set.__getitems__([0, 3])
    with torch.no_grad():
        alone, beside = model(task.inputs(task.train_set.__getitems__([0]))), model(task.inputs(batch))[:1]
    torch.testing.assert_close(alone, beside, rtol=0, atol=1e-5)


def _broken(folder: Path, what: str) -> None:
    if what == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "damaged weights":
        (folder / "model.safetensors").write_bytes(b"\0" * 100)
    elif what == "no weight of it":
        transformers.DistilBertModel(
            transformers.DistilBertConfig(
                vocab_size=16, max_position_embeddings=24, dim=16, hidden_dim=16, n_layers=1, n_heads=2
            )
        ).save_pretrained(folder / "other")
        os.replace(folder / "other/model.safetensors", folder / "model.safetensors")
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **json.loads(what)}))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no tokenizer", "the folder has no tokenizer, none of tokenizer.json, vocab.txt"),
        ("no config", "config.json cannot be loaded: "),
        ("damaged weights", "its weights cannot be loaded: "),
        (
            "no weight of it",
            "lacks 19 of the .. weights of a BertForSequenceClassification, which config.json says it is",
        ),
        ('{"vocab_size": 8}', r"has the shape \[16, 16\], and by config.json \[8, 16\]"),
        ('{"model_type": "vit"}', "a model for it cannot be loaded: "),
        ('{"model_type": "frob"}', "config.json cannot be loaded: .*frob"),
        ('{"auto_map": {"AutoConfig": "own.Config"}, "model_type": "own"}', "config.json cannot be loaded: .*"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, encoder: str, what: str, message: str) -> None:
    _broken(Path(encoder), what)
    with pytest.raises(errors.DataError, match=message):
        _built(_data(tmp_path), encoder)


def test_words_that_the_model_has_no_embedding_for_are_found(tmp_path: Path, albert: str) -> None:
    _broken(Path(albert), '{"vocab_size": 8}')
    with pytest.raises(errors.DataError, match=r"makes the token .* but its model has 8 embeddings"):
        _built(_data(tmp_path), albert)


def test_weights_that_are_missing_are_warned_of(tmp_path: Path, encoder: str) -> None:
    config = transformers.AutoConfig.from_pretrained(encoder)
    transformers.BertForMaskedLM(config).save_pretrained(encoder)  # it has no pooler
    with pytest.warns(es.DataWarning, match=r"lacks 2 weights, which start at random: bert\.pooler"):
        _built(_data(tmp_path), encoder)


@pytest.mark.parametrize(
    ("name", "model", "sizes"), [("cola", "bow", (7_250, 1_301)), ("rte", "tiny", (2_490, 277)), ("rte", None, None)]
)
def test_the_real_data_are_read_and_trained_on(
    tmp_path: Path, shared_data: Path, albert: str, name: str, model: str | None, sizes: tuple[int, int] | None
) -> None:
    data = str(shared_data / f"{name}_train.parquet")
    with pytest.warns(es.DataWarning) if name == "rte" else warnings.catch_warnings():
        task = _built(data, model or albert)
    if sizes is not None:
        assert (len(task.train_set), len(task.held_out)) == sizes
    torch.manual_seed(0)
    net = task.build_model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    batch = task.train_set.__getitems__(range(32))
    found = []
    for _ in range(5):
        optimizer.zero_grad()
        losses = task.losses(net(task.inputs(batch)), batch)
        losses.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(float(losses.mean().detach()))
    assert found[-1] < found[0]
