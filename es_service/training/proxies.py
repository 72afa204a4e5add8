"""Proxies of a task: the models that its scorers run, and what these cost beside the task's own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from es_service import errors
from es_service.selection.config import Selection
from es_service.selection.settings import suggest
from es_service.storage.runs import RunStorage
from es_service.training import batches, losses
from es_service.training.cost import measured, pass_seconds
from es_service.training.irreducible import Prepared
from es_service.training.optimizers import build_optimizer, learning_rate_at
from es_service.training.passes import ScoringPasses, arrange, forward_signals
from es_service.training.settings import OF_THE_TASK, TrainSettings
from es_service.training.spec import SELF, TrainingSpec
from es_service.training.step import autocast_for, train_step
from es_service.training.tasks import build_task, check_signals
from es_service.training.tasks.base import Task
from es_service.training.tasks.options import MODELS

if TYPE_CHECKING:
    from es_service.scorer import Scorer

__all__ = ["TaskProxy", "costs", "equivalent", "proxy_of", "settings_of", "started"]

_NOTE = "proxy"  # in the run's folder


def proxy_of(spec: TrainingSpec, task: Task) -> Task:
    """Return the task that a spec's scorers train: the same samples, with another model; checked.

    Raises:
        ConfigError: no proxy of this name, or it has other samples, classes or signals than the task.
    """
    proxy = _build(spec, lambda: task)
    if proxy is task:
        return task
    try:
        _check(task, proxy)
        check_signals(proxy, spec.selection)
    except errors.EsServiceError as error:
        raise errors.ConfigError(f"--proxy {spec.proxy} cannot score for the task {spec.task!r}: {error}") from error
    return proxy


def _build(spec: TrainingSpec, task: Callable[[], Task]) -> Task:
    """Return the proxy's task; that of the training is built only where it is one with another model."""
    name, files = spec.proxy or "", MODELS.get(spec.task, ())
    if ":" in name:
        return build_task(name, spec.data, spec.derived)
    if name in files:
        return build_task(spec.task, spec.data, spec.derived, dataclasses.replace(spec.options, model=name))
    built = task()
    if name == SELF:
        return built
    own = getattr(built, "proxies", None) or {}
    if name not in own:
        raise errors.ConfigError(
            f"the task {spec.task!r} has no proxy {name!r}; {suggest(name, (SELF, *own, *files))} (your own is "
            "module:function, which returns a task of the same samples)"
        )
    return cast("Task", _WithModel(built, own[name]))


class _WithModel:
    """A task with another model."""

    def __init__(self, task: Task, build_model: Callable[[], torch.nn.Module]) -> None:
        self._task, self.build_model = task, build_model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def _check(task: Task, proxy: Task) -> None:
    """Raise ConfigError unless a proxy has the task's samples and classes."""
    num, others = len(task.train_set), len(proxy.train_set)
    if num != others:
        raise errors.ConfigError(f"it has {others:,} samples to train on, the task {num:,}: ids must mean the same")
    if (task.label_names or None) != (proxy.label_names or None):
        raise errors.ConfigError(f"it has other classes: {_named(proxy)}; the task has {_named(task)}")
    labels_n, others_n = task.labels, proxy.labels
    if labels_n is None or others_n is None:
        if labels_n is not others_n:
            raise errors.ConfigError("only one of the two has labels")
    elif (differing := np.flatnonzero(labels_n != others_n)).size:
        first = int(differing[0])
        raise errors.ConfigError(
            f"its sample {first} is of class {others_n[first]}, that of the task of class {labels_n[first]}: the "
            "classes, or the order of the samples, are others"
        )
    shapes = [_output_shape(one) for one in (proxy, task)]
    if None not in shapes and shapes[0] != shapes[1]:
        raise errors.ConfigError(f"its model has outputs of shape {shapes[0]}, that of the task {shapes[1]}")


def _named(task: Task) -> str:
    names = task.label_names
    return "none with names" if names is None else f"{len(names)} ({', '.join(map(str, names))})"


def _output_shape(task: Task) -> tuple[int, ...] | None:
    """Return the shape of a model's outputs for a sample where it is [B, C], having seen that there are losses."""
    ids = range(min(2, len(task.train_set)))
    batch = task.train_set.__getitems__(list(ids))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        outputs = task.build_model().eval()(task.inputs(batch))
        try:
            losses.check_per_sample(task.losses(outputs, batch), len(ids))
        except IndexError as error:  # what torch raises for a label that is not a class
            raise errors.ConfigError(f"its model has no output for every class: {error}") from error
    return tuple(outputs.shape[1:]) if isinstance(outputs, torch.Tensor) and outputs.ndim == 2 else None


def settings_of(spec: TrainingSpec, proxy: Task) -> TrainSettings:
    """Return how a proxy learns: as its task was tuned, whatever the trainer's own model is given."""
    defaults = proxy.defaults
    if spec.proxy == SELF:
        return spec.settings(defaults)
    own = {name: getattr(defaults, name) for name in OF_THE_TASK if name != "backward_cost"}
    return TrainSettings(momentum=defaults.momentum, seed=spec.seed, **own)


def costs(spec: TrainingSpec, storage: RunStorage, task: Task, proxy: Task) -> dict[str, float]:
    """Return what passes over a sample cost in forward passes of the task's model, kept with the run.

    That is: "score" and "learn" (with a backward pass) of the proxy, and "train" of the task's own model. Both models
    are measured where the run begins, as `cost.pass_seconds` does. "self" scores as it would in the training.
    """
    if proxy is task:
        return {"score": 1.0}
    kept = storage.read_note(_NOTE)
    if kept is None:
        size = spec.filled(task.defaults).batch_size
        assert size is not None, "it is filled"
        own_s, both_s = measured(pass_seconds, task, spec.settings(task.defaults), size)
        score_s, learn_s = measured(pass_seconds, proxy, settings_of(spec, proxy), size)
        train = 1 + (spec.backward_cost or both_s / own_s - 1)
        kept = {"score": round(score_s / own_s, 4), "learn": round(learn_s / own_s, 4), "train": round(train, 4)}
        storage.write_note(_NOTE, kept)
    return kept


def equivalent(spec: TrainingSpec, prepared: Prepared) -> int:
    """Return how many samples the task's own model trains on for what a proxy's irreducible losses cost."""
    cost = spec.proxy_costs
    assert cost is not None, "it is measured"
    return round((prepared.scored * cost["score"] + prepared.trained * cost["learn"]) / cost["train"])


@contextlib.contextmanager
def started(spec: TrainingSpec, num_epochs: int) -> Iterator[Scorer | None]:
    """Start the scorers of one worker, for as long as the block lasts; None where the spec has none."""
    if not spec.scorers:
        yield None
        return
    from es_service.scorer import Scorer

    assert spec.proxy_costs is not None, "the driver measures them"
    learns = spec.proxy != SELF
    scorer = Scorer(
        functools.partial(TaskProxy.of, spec.to_dict(), num_epochs),
        cost=spec.proxy_costs["learn" if learns else "score"],
        num=spec.scorers,
        learns=learns,
    )
    try:
        yield scorer
    finally:
        scorer.close()


class TaskProxy:
    """Scores samples of a task's train set, and learns from them on the way, or takes the trainer's weights.

    A sample's loss is the one before the step that the proxy takes with it.

    Args:
        task: the proxy's, see `proxy_of`.
        selection: what signals are wanted.
        settings: of the passes and the optimiser.
        num_epochs: of the training; the proxy's learning rate follows the same schedule.
        learns: False leaves the weights to `load`.
    """

    def __init__(
        self, task: Task, selection: Selection, settings: TrainSettings, num_epochs: int, *, learns: bool
    ) -> None:
        self._task, self._settings, self._num_epochs, self._learns = task, settings, num_epochs, learns
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(settings.seed)
        self._model = task.build_model()
        arrange(self._model, settings)
        self._model.to(self._device).train()
        self._optimizer = build_optimizer(self._model, settings)
        self._forward = forward_signals(task, selection)
        self._score = ScoringPasses(self._model, self._forward, settings, self._device)

    @classmethod
    def of(cls, values: dict[str, Any], num_epochs: int) -> TaskProxy:
        """Make it from `TrainingSpec.to_dict()` of a filled spec."""
        spec = TrainingSpec.from_dict(values)
        proxy = _build(spec, lambda: build_task(spec.task, spec.data, spec.derived, spec.options))
        return cls(proxy, spec.selection, settings_of(spec, proxy), num_epochs, learns=spec.proxy != SELF)

    def __call__(self, ids_B: NDArray[np.int64], at: float) -> Any:
        """Return the losses float32[B] of samples, or signals by name; see `es.Scorer`."""
        batch = batches.to_device(self._task.train_set.__getitems__(ids_B.tolist()), self._device)
        augment = getattr(self._task, "augment", None)
        if augment is not None:
            batch = augment(batch, ids_B.copy(), int(at), self._settings.seed)
        if not self._learns:
            return self._score(batch)
        settings = self._settings
        rate = learning_rate_at(
            at / self._num_epochs, settings.learning_rate, warm_up=settings.warm_up, schedule=settings.schedule
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        scale = torch.ones(ids_B.size, device=self._device)
        autocast = functools.partial(autocast_for, self._device)
        signals = train_step(self._model, self._optimizer, batch, scale, self._forward, autocast=autocast)
        if isinstance(signals, Mapping):
            return {name: values.cpu().numpy() for name, values in signals.items()}
        return signals.cpu().numpy()

    def state(self) -> Any:
        """Return the weights and the optimizer's state on the CPU; None where it does not learn."""
        if not self._learns:
            return None
        return batches.to_device({"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}, "cpu")

    def load(self, state: Any) -> None:
        """Take `state`'s return, or where it does not learn the trainer's weights."""
        if not self._learns:
            self._model.load_state_dict(state, strict=False)  # frozen parameters are made again
            return
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
