"""The task `sft`: conversations to tokens, losses on answers only, whole runs, on a tiny Llama made on the spot."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_language_model as tiny
import torch
import transformers

import es_service as es
from es_service import errors
from es_service.selection.named import PRESETS, preset
from es_service.training import scoring
from es_service.training.driver import train
from es_service.training.loop import TrainSettings, fit_model
from es_service.training.spec import TrainingSpec
from es_service.training.step import train_step
from es_service.training.tasks import build_task
from es_service.training.tasks.derived import Derived, derive
from es_service.training.tasks.options import TaskOptions
from es_service.training.tasks.sft import adapters
from es_service.training.tasks.sft.generation import final_answer, generate
from es_service.training.tasks.sft.model import AnswerModel
from es_service.training.workers.local import LocalWorkers

_FIRST = "<|turn|>user\n0+0?<|end|>\n<|turn|>assistant\n#### 0<|end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to train from scratch, with a chat template."""
    return tiny.make_folder(tmp_path_factory.mktemp("models") / "chat", chat_template=tiny.CHAT)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with weights, and no chat template."""
    return tiny.make_folder(tmp_path_factory.mktemp("models") / "plain", weights=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 sums to train on, and 20 beside them to hold out."""
    place = tmp_path_factory.mktemp("data")
    tiny.write_jsonl(place / "sums_test.jsonl", tiny.sums(20))
    return tiny.write_jsonl(place / "sums_train.jsonl", tiny.sums(60))


def _task(data: Path, folder: Path, **options: Any) -> Any:
    return build_task("sft", str(data), None, TaskOptions(model=str(folder), **options))


def _answer_text(task: Any, sample_id: int) -> str:
    targets = task.train_set.__getitems__([sample_id])["targets"][0]
    return str(task._tokenizer.decode(targets.tolist()))


# -- tokens ---------------------------------------------------------------------------------------------------------


def test_prompts_and_answers_go_through_the_chat_template(data: Path, folder: Path) -> None:
    task = _task(data, folder)
    assert task.preview(0) == _FIRST
    assert _answer_text(task, 0) == "#### 0<|end|>"
    assert (len(task.train_set), len(task.held_out)) == (60, 20)
    assert task.tokens.tolist()[:2] == [len(task.train_set.tokens_of(0)), len(task.train_set.tokens_of(1))]
    assert (task.labels, task.metric_name) == (None, "token_accuracy")


def test_without_a_template_a_line_break_stands_between_prompt_and_answer(data: Path, plain: Path) -> None:
    task = _task(data, plain)
    assert task.preview(0) == "0+0?\n#### 0<|end|>"
    assert _answer_text(task, 0) == "#### 0<|end|>"


def test_every_answer_of_a_conversation_is_learnt_and_nothing_else(tmp_path: Path, folder: Path) -> None:
    turns = [
        ("system", "Add."),
        ("user", "1+1?"),
        ("assistant", "2"),
        ("user", "2+2?"),
        ("assistant", "4"),
        ("user", "?"),
    ]
    messages = [{"role": role, "content": content, "name": None} for role, content in turns]
    pq.write_table(pa.table({"messages": [messages] * 5}), tmp_path / "chats.parquet")
    task = _task(tmp_path / "chats.parquet", folder)
    assert _answer_text(task, 0) == "2<|end|>4<|end|>"
    expected = "".join(f"<|turn|>{role}\n{content}<|end|>\n" for role, content in turns[:5])
    assert task.preview(0) == expected.rstrip("\n")


def test_an_answer_may_hold_the_token_that_ends_it(tmp_path: Path, folder: Path) -> None:
    rows = [{"prompt": "how does a turn end?", "answer": "with <|end|>, always"}] * 5
    task = _task(tiny.write_jsonl(tmp_path / "all.jsonl", rows), folder)
    assert _answer_text(task, 0) == "with <|end|>, always<|end|>"


def test_prompts_are_tokenised_as_they_are_for_a_generation(data: Path, folder: Path) -> None:
    task = _task(data, folder)
    question = [{"role": "user", "content": tiny.sums(1)[0]["question"]}]
    tokens = task._tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"]
    assert task.held_out.tokens_of(0)[: task.held_out.prompt_lengths_n[0]].tolist() == tokens


def test_long_sequences_lose_their_end_and_are_counted(
    data: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _task(data, folder)
    assert not caplog.records
    task = _task(data, folder, max_length=40)
    assert task.tokens.max() == 40
    assert task.train_set.tokens_of(1).tolist() == whole.train_set.tokens_of(1)[:40].tolist()
    longer = [int((one.tokens > 40).sum()) for one in (whole,)]
    found = [record.getMessage() for record in caplog.records]
    assert len(found) == 2  # once for each part
    assert (
        found[0]
        == f"train samples: {longer[0]} of 60 sequences are longer than 40 tokens, and lose their end (--max-length)"
    )


def test_a_share_of_the_rows_is_held_out_where_no_file_is(tmp_path: Path, folder: Path) -> None:
    with gzip.open(tmp_path / "all.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in tiny.sums(40))
    task = _task(tmp_path / "all.jsonl.gz", folder, held_out="0.25", prompt_column="question", answer_column="answer")
    assert (len(task.train_set), len(task.held_out)) == (30, 10)


def test_a_gguf_file_brings_weights_tokenizer_and_template(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "packed").mkdir()
    model = tiny.make_gguf(tmp_path / "packed/tiny.gguf")
    capsys.readouterr()
    for place in (tmp_path / "packed", tmp_path / "packed/tiny.gguf"):
        task = _task(data, place)
        assert task.preview(0) == _FIRST
    found = task.build_model().language_model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert capsys.readouterr().err == ""  # no bar


def test_text_may_be_dictionary_encoded(tmp_path: Path, folder: Path) -> None:
    rows = tiny.sums(10)
    columns = {name: pa.array([row[name] for row in rows]).dictionary_encode() for name in rows[0]}
    pq.write_table(pa.table(columns), tmp_path / "all.parquet")
    assert _task(tmp_path / "all.parquet", folder).tokens.size == 8


def test_nothing_asks_the_network(data: Path, folder: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(*args: Any, **options: Any) -> Any:
        asked.append(args)
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for place in (folder, plain):
        _task(data, place, lora=2).build_model()
    assert asked == []


# -- losses ---------------------------------------------------------------------------------------------------------


def _by_hand(task: Any, model: Any, sample_id: int) -> tuple[float, float]:
    """The mean cross entropy of an answer's tokens, and how many are right, from the logits of all tokens."""
    tokens = torch.from_numpy(task.train_set.tokens_of(sample_id))
    text = task._tokenizer.decode(tokens.tolist())
    start = len(task._tokenizer(text[: text.index("assistant\n") + len("assistant\n")])["input_ids"])
    logits = model.language_model(input_ids=tokens[None]).logits[0, start - 1 : -1].detach()
    loss = torch.nn.functional.cross_entropy(logits, tokens[start:])
    return float(loss), float((logits.argmax(dim=1) == tokens[start:]).float().mean())


def test_losses_are_those_of_each_answer_by_itself(data: Path, folder: Path) -> None:
    task = _task(data, folder)
    torch.manual_seed(1)
    model = task.build_model()
    batch = task.train_set.__getitems__([0, 9, 25, 3])
    outputs = model(task.inputs(batch))
    with torch.no_grad():
        again = model(task.inputs(batch))
    for found in (outputs, again):
        for row, sample_id in enumerate([0, 9, 25, 3]):
            loss, accuracy = _by_hand(task, model, sample_id)
            assert task.losses(found, batch)[row].item() == pytest.approx(loss, rel=1e-5)
            assert float(task.metric(found, batch)[row]) == pytest.approx(accuracy)
    assert outputs.losses.requires_grad
    assert not again.losses.requires_grad


def test_only_answers_get_logits_and_a_pass_without_gradient_is_cut_by_tokens(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = _task(data, folder)
    model = task.build_model()
    shapes: list[tuple[int, ...]] = []
    head = model.language_model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    ids = list(range(12))
    batch = task.train_set.__getitems__(ids)
    whole = model(batch)
    assert shapes == [(12, int(batch["lengths"][:, 1].max()), 258)]
    shapes.clear()
    monkeypatch.setattr("es_service.training.tasks.sft.model._MOST_TOKENS", 128)
    with torch.no_grad():
        pieces = model(batch)
    lengths = sorted(batch["lengths"][:, 1].tolist(), reverse=True)
    assert sum(shape[0] for shape in shapes) == 12
    assert shapes[0][1] == lengths[0]
    assert shapes[-1][1] < lengths[0]
    torch.testing.assert_close(pieces.losses, whole.losses.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pieces.accuracies, whole.accuracies)


def test_the_gradient_bound_holds_for_every_answer(data: Path, folder: Path) -> None:
    task = _task(data, folder)
    model = task.build_model()
    for sample_id in (0, 9):
        batch = task.train_set.__getitems__([sample_id])
        logits: list[torch.Tensor] = []

        def keep(module: Any, args: Any, output: torch.Tensor, kept: list[torch.Tensor] = logits) -> None:
            output.retain_grad()
            kept.append(output)

        hook = model.language_model.get_output_embeddings().register_forward_hook(keep)
        outputs = model(batch)
        outputs.losses.sum().backward()
        hook.remove()
        exact = float(logits[0].grad[0].norm(dim=1).sum())  # of the mean over tokens: the sum of their parts
        assert exact <= float(task.signals(outputs, batch)["grad_norm"][0]) <= 1.5 * exact


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_loss_per_token_is_the_mean_over_the_tokens_of_a_step_however_it_is_cut(
    micro_batch_size: int | None, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("es_service.training.loop.learning_rate_at", lambda *_, **__: 0.5)
    task = derive(_task(data, folder, loss_per="token"), Derived(limit=8))
    selector = es.Selector(preset("full"), num_samples=8, num_epochs=1, batch_size=8)
    settings = TrainSettings(learning_rate=0.5, momentum=0.0, weight_decay=0.0, micro_batch_size=micro_batch_size)
    result, trained = fit_model(task, selector, settings, LocalWorkers(Path("kept")))

    torch.manual_seed(0)
    model: Any = task.build_model()
    batch = task.train_set.__getitems__(range(8))
    nums = torch.from_numpy(batch["lengths"][:, 1])
    losses = model(batch).losses
    (nums * losses).sum().div(nums.sum()).backward()
    for name, parameter in model.named_parameters():
        expected = parameter.detach() - 0.5 * parameter.grad
        torch.testing.assert_close(trained.get_parameter(name), expected, rtol=1e-4, atol=1e-6, msg=name)
    # Scores are means over each sequence all the same.
    np.testing.assert_allclose(selector.table()["last_loss"].to_numpy(), losses.detach().numpy(), rtol=1e-5)
    assert result["history"][0]["train_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert _task(data, folder).weights is None


def test_gradient_checkpointing_gives_the_same_gradients(data: Path, folder: Path) -> None:
    task = _task(data, folder)
    batch = task.train_set.__getitems__(range(6))
    gradients, num_passes = [], []
    for is_on in (False, True):
        torch.manual_seed(0)
        model = task.build_model().train()
        passes: list[int] = []
        model.language_model.model.layers[0].self_attn.register_forward_hook(lambda *_, kept=passes: kept.append(1))
        if is_on:
            model.gradient_checkpointing_enable()
        model(batch).losses.mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        num_passes.append(len(passes))
    assert num_passes == [1, 2]
    torch.testing.assert_close(*gradients)


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6*7 = 42\n#### 42", "42"),
        ("#### 1\nno\n#### $1,234.\nbye", "1234"),
        (" Paris \n", "Paris"),
        ("#### 3.50", "3.50"),
        ("####", ""),
    ],
)
def test_what_counts_of_an_answer(text: str, expected: str) -> None:
    assert final_answer(text) == expected


def test_generated_answers_are_those_of_each_prompt_by_itself(data: Path, plain: Path) -> None:
    task = _task(data, plain)
    model = task.build_model().train()
    model.language_model.generation_config.repetition_penalty = 9.0  # as folders have it: not ours
    prompts = [task.held_out.tokens_of(i)[: task.held_out.prompt_lengths_n[i]] for i in range(4)]
    prompts += [np.arange(40, 60), np.array([70])]
    made = generate(model.language_model, prompts, most=9, ends=(256,), to_device=lambda batch: batch)
    assert model.training
    assert model.language_model.generation_config.repetition_penalty == 9.0
    for prompt, answer in zip(prompts, made, strict=True):
        tokens = torch.from_numpy(prompt)[None]
        model.eval()
        for _ in range(9):
            following = model.language_model(input_ids=tokens).logits[:, -1].argmax(dim=1, keepdim=True)
            if int(following) == 256:
                break
            tokens = torch.cat([tokens, following], dim=1)
        assert answer.tolist() == tokens[0, prompt.size :].tolist()


def test_a_model_that_has_learnt_its_sums_answers_them(tmp_path: Path, plain: Path) -> None:
    rows = tiny.sums(4)
    for name in ("train", "test"):
        tiny.write_jsonl(tmp_path / f"{name}.jsonl", rows)
    task = _task(tmp_path / "train.jsonl", plain)
    torch.manual_seed(0)
    model = task.build_model()
    before = task.final_metrics(model, np.arange(4), lambda batch: batch)
    assert before == {"exact_match": (0.0, 4)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batch = task.train_set.__getitems__(range(4))
    for _ in range(60):
        train_step(model, optimizer, batch, torch.ones(4), lambda model, part: model(part).losses)
    assert task.final_metrics(model, np.arange(4), lambda batch: batch) == {"exact_match": (4.0, 4)}
    assert task.final_metrics(model, np.array([2]), lambda batch: batch) == {"exact_match": (1.0, 1)}
    assert task.final_metrics(model, np.array([], dtype=int), lambda batch: batch) == {"exact_match": (0.0, 0)}


# -- runs -------------------------------------------------------------------------------------------------------------


def _spec(data: Path, folder: Path, run: str, method: str = "es", **more: Any) -> TrainingSpec:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 16, "learning_rate": 0.2, "micro_batch_size": 6, **more}
    return TrainingSpec(
        run=run,
        storage="runs",
        method=method,
        task="sft",
        data=str(data),
        selection=settings.pop("selection", preset(method, seed=0)),
        options=settings.pop("options", TaskOptions(model=str(folder))),
        exchange="embedded",
        **settings,
    )


def _saved(run: str, epoch: int) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(f"runs/{run}/checkpoints/epoch-{epoch:05d}/training.pt", weights_only=True)
    return found


@pytest.mark.filterwarnings("ignore::es_service.errors.NothingSelectedWarning")
@pytest.mark.parametrize("method", [name for name in PRESETS if name != "short_full"])
def test_every_method_selects_sequences(method: str, data: Path, folder: Path) -> None:
    result = train(_spec(data, folder, method, method, batch_size=8, derived=Derived(limit=16)), lambda _: None)
    assert np.isfinite([result["held_out_loss"], result["history"][0]["train_loss"]]).all()
    assert result["samples"]["full"] == 32


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("loss_per", ["sequence", "token"])
def test_a_resumed_run_ends_bit_identically(
    loss_per: Any, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = es.Selection(es.methods.evolved(), ratio=0.5, prune_ratio=0.2, seed=1)
    more = {"selection": selection, "epochs": 3, "options": TaskOptions(model=str(folder), loss_per=loss_per)}
    whole = train(_spec(data, folder, "whole", "eswp", **more), lambda _: None)

    def stop(progress: dict[str, Any]) -> None:
        if progress["progress"]["epoch"] == 2:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        train(_spec(data, folder, "cut", "eswp", **more), stop)
    assert not Path("runs/cut/checkpoints/epoch-00002").exists()
    resumed = train(_spec(data, folder, "cut", "eswp", resume=True, **more), lambda _: None)
    expected, found = _saved("whole", 2), _saved("cut", 2)
    for name, value in expected["model"].items():
        assert torch.equal(value, found["model"][name]), name
    assert [one["held_out_loss"] for one in resumed["history"]] == [one["held_out_loss"] for one in whole["history"]]
    for table in ("scores.arrow",):
        places = [Path(f"runs/{run}/checkpoints/epoch-00002/{table}") for run in ("whole", "cut")]
        assert places[0].read_bytes() == places[1].read_bytes()


def test_scoring_leaves_the_model_as_it_was_and_agrees_with_the_step(data: Path, folder: Path) -> None:
    task = _task(data, folder)
    model = task.build_model().train()
    batch = task.train_set.__getitems__(range(8))
    scored = scoring.score(model, batch, lambda model, part: model(part).losses, micro_batch_size=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trained = train_step(model, optimizer, batch, torch.ones(8), lambda model, part: model(part).losses)
    np.testing.assert_allclose(scored, trained.numpy(), rtol=1e-5)


def test_the_negative_loss_can_be_the_metric(data: Path, folder: Path) -> None:
    task = _task(data, folder, metric="negative_loss")
    batch = task.held_out.__getitems__(range(4))
    outputs = task.build_model()(batch)
    sums = task.statistics(outputs, batch).double().sum(dim=0).detach().numpy()
    assert task.metric_name == "negative_loss"
    assert task.metric_of(sums, 4) == pytest.approx(-outputs.losses.mean().item())
    assert (_task(data, folder).statistics, _task(data, folder).metric_of) == (None, None)


def test_problems_of_gsm8k_train_a_tiny_model(shared_data: Path) -> None:
    table = pq.read_table(shared_data / "gsm8k_train.parquet").slice(0, 24)
    pq.write_table(table, "gsm8k_train.parquet")
    pq.write_table(table.slice(0, 4), "gsm8k_test.parquet")
    longer = tiny.make_folder(Path("longer"), chat_template=tiny.CHAT, max_position_embeddings=2048)
    options = TaskOptions(model=str(longer), max_length=512)
    result = train(_spec(Path("gsm8k_train.parquet"), longer, "gsm8k", options=options), lambda _: None)
    assert result["history"][-1]["train_loss"] < result["history"][0]["train_loss"]


# -- bad input --------------------------------------------------------------------------------------------------------


def _refused(data: Path, folder: Path, kind: type[Exception], *parts: str, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        _task(data, folder, **options)
    for part in parts:
        assert part in str(caught.value)


def test_columns_that_are_not_there(data: Path, folder: Path) -> None:
    there = "there are question, answer"
    _refused(data, folder, errors.ConfigError, "--prompt-column questoin", "mean 'question'", there,
             prompt_column="questoin")  # fmt: skip
    _refused(data, folder, errors.ConfigError, "--answer-column", "answer", answer_column="anwser")
    _refused(data, folder, errors.ConfigError, "--messages-column", there, messages_column="messages")
    _refused(data, folder, errors.ConfigError, "--messages-column", messages_column="m", prompt_column="question")


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([{"prompt": "a", "answer": " "}], ["row 2 (from 0) of the train samples", "message 1, is empty"]),
        ([{"prompt": "a", "answer": None}], ["row 2", "message 1 has no text"]),
        ([{"prompt": None, "answer": "b"}], ["row 2", "message 0 has no text"]),
        ([{"prompt": "a" * 99, "answer": "b"}], ["row 2", "answer lies beyond the 64 tokens of --max-length"]),
        ([{"prompt": None, "answer": None}] * 2, ["row 2", "2 of 4 rows cannot be used"]),
    ],
)
def test_rows_that_cannot_be_used_are_named_or_skipped(
    rows: list[Any], parts: list[str], tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = {"prompt": "1?", "answer": "1"}
    place = tiny.write_jsonl(tmp_path / "train.jsonl", [good, good, *rows])
    tiny.write_jsonl(tmp_path / "test.jsonl", [good])
    _refused(place, folder, errors.DataError, "--skip-broken", *parts, max_length=64)
    task = _task(place, folder, max_length=64, skip_broken=True)
    assert len(task.train_set) == 2
    assert f"train samples: {len(rows)} of {2 + len(rows)} rows cannot be used" in caplog.text
    assert dataclasses.asdict(task.left_out) == {"rows": len(rows), "files": 0, "truncated": 0}


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([], "there is no message"),
        ([{"role": "user", "content": "a"}], "no message has the role 'assistant', the roles are user"),
        ([{"role": "assistant", "content": "a"}], "begins with an answer"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}], "message 1 has no text"),
    ],
)
def test_conversations_that_cannot_be_used(messages: Any, part: str, tmp_path: Path, folder: Path) -> None:
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    place = tiny.write_jsonl(tmp_path / "train.jsonl", [{"messages": good}, {"messages": messages}])
    _refused(place, folder, errors.DataError, "row", part, held_out="0.5")


def test_one_column_for_both(data: Path, folder: Path) -> None:
    both = "--prompt-column and --answer-column are both the column 'answer'"
    _refused(data, folder, errors.ConfigError, both, prompt_column="answer", answer_column="answer")


def test_what_was_cut_is_counted(data: Path, tmp_path: Path, folder: Path) -> None:
    place = tiny.write_jsonl(tmp_path / "train.jsonl", [*tiny.sums(10), {"question": "1?", "answer": "1" * 90}])
    task = _task(place, folder, max_length=64)
    assert dataclasses.asdict(task.left_out) == {"rows": 0, "files": 0, "truncated": 1}


def test_columns_of_another_type(tmp_path: Path, folder: Path) -> None:
    place = tiny.write_jsonl(tmp_path / "n.jsonl", [{"prompt": 1, "answer": 2, "chat": "hello"}] * 5)
    _refused(place, folder, errors.DataError, "column 'prompt' holds int64, and not text")
    _refused(place, folder, errors.DataError, "column 'chat' holds string", messages_column="chat")


def test_a_chat_template_that_refuses(tmp_path: Path, data: Path) -> None:
    strict = "{{ raise_exception('roles must alternate') }}"
    _refused(data, tiny.make_folder(tmp_path / "a", chat_template=strict), errors.DataError, "roles must alternate")
    rewriting = "{{ messages | length }}"
    place = tiny.make_folder(tmp_path / "b", chat_template=rewriting)
    _refused(data, place, errors.DataError, "chat template renders what comes before an answer in another way")


def test_model_folders_that_cannot_be_used(tmp_path: Path, data: Path, folder: Path) -> None:
    for name in ("empty", "bare", "bin", "gguf", "broken"):
        (tmp_path / name).mkdir()
    _refused(data, tmp_path / "nothing", errors.ConfigError, "no such folder", "--download")
    _refused(data, Path("nobody/nothing"), errors.DataError, "its tokenizer cannot be loaded", download=True)  # offline
    _refused(data, tmp_path / "empty", errors.ConfigError, "holds no model")
    tiny.make_config().save_pretrained(tmp_path / "bare")
    _refused(data, tmp_path / "bare", errors.ConfigError, "has no tokenizer", "save_pretrained")
    (tmp_path / "bin/config.json").write_text("{}")
    (tmp_path / "bin/pytorch_model.bin").touch()
    _refused(data, tmp_path / "bin", errors.ConfigError, "pytorch_model.bin", "only model.safetensors is read")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "gguf" / name).touch()
    _refused(data, tmp_path / "gguf", errors.ConfigError, "2 GGUF files", "a.gguf, b.gguf")
    _refused(data, tmp_path / "gguf/a.gguf", errors.DataError, "cannot be loaded")
    tiny.make_folder(tmp_path / "broken")
    (tmp_path / "broken/config.json").write_text('{"model_type": "nothing"}')
    _refused(data, tmp_path / "broken", errors.DataError, "its configuration cannot be loaded")
    with pytest.raises(errors.ConfigError, match="needs --model"):
        build_task("sft", str(data))
    small = tiny.make_folder(tmp_path / "small", vocab_size=100)
    _refused(data, small, errors.ConfigError, "an embedding for 100", "do not belong together")


def test_weights_of_another_model_are_refused(tmp_path: Path, data: Path) -> None:
    place = tiny.make_folder(tmp_path / "encoder")
    transformers.LlamaModel(tiny.make_config(num_hidden_layers=1)).save_pretrained(place)
    task = _task(data, place)
    with pytest.raises(errors.ConfigError, match="lacks 1 weights of a causal language model, lm_head"):
        task.build_model()


def test_options_that_cannot_be_used(data: Path, folder: Path) -> None:
    _refused(data, folder, errors.ConfigError, "the model takes 128 tokens at most", max_length=1000)
    _refused(data, folder, errors.ConfigError, "token_accuracy, negative_loss", "end of each run", metric="exact_match")
    _refused(data, folder, errors.ConfigError, "give --lora too", lora_targets="q_proj")


def test_layers_that_can_have_adapters_are_named(data: Path, folder: Path) -> None:
    _refused(data, folder, errors.ConfigError, "--lora-targets q_prj", "q_proj", "down_proj", lora=2,
             lora_targets="v_proj,q_prj")  # fmt: skip
    _refused(data, folder, errors.ConfigError, "names no module", lora=2, lora_targets=",")
    model = transformers.LlamaForCausalLM(tiny.make_config())
    known = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert adapters.targets_of(model, None) == known
    assert adapters.targets_of(model, "self_attn.q_proj, lm_head") == ["self_attn.q_proj", "lm_head"]


@pytest.mark.parametrize(("package", "options"), [("peft", {"lora": 2}), ("transformers", {}), ("gguf", {})])
def test_a_package_that_is_missing(
    package: str, options: dict[str, Any], data: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package == "gguf":
        folder = tmp_path / "model.gguf"
        folder.touch()
    monkeypatch.setitem(__import__("sys").modules, package, None)
    _refused(data, folder, errors.ConfigError, f"needs {package}", "pip install 'es-service[transformers]'", **options)


def test_warnings_go_through_logging(caplog: pytest.LogCaptureFixture, data: Path, folder: Path) -> None:
    with caplog.at_level(logging.WARNING):
        _task(data, folder)
    assert not caplog.records
    assert isinstance(_task(data, folder).build_model(), AnswerModel)
