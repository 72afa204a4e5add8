"""Hugging Face Accelerate: a selective loader in the loop of an Accelerator.

    model, optimizer = accelerator.prepare(model, optimizer)
    loader = prepare(accelerator, es.wrap(DataLoader(...), selection, epochs=6, model=model, losses=losses))
    for epoch in range(loader.next_epoch, 6):
        for batch, scale in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loader.mean(losses(model, batch)))
                optimizer.step()
                optimizer.zero_grad()

Accelerate's own loaders fetch a batch ahead to see which one is the last, and that batch would be drawn by scores that
are a step old. Here the plan of the epoch says it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.utils import synchronize_rng_states

from es_service import errors
from es_service.training.loader import SelectiveLoader

__all__ = ["PreparedLoader", "prepare"]


def prepare(accelerator: Accelerator, loader: Any) -> PreparedLoader:
    """Return a selective loader for the loop of an Accelerator, and register its state for checkpoints.

    Args:
        accelerator: of the training run. Model, optimizer and scheduler are prepared by its own `prepare`.
        loader: what `es.wrap` returned, or an `es.SelectiveLoader`.

    Raises:
        ConfigError: it is another loader; or the accelerator was made to split batches among processes, to dispatch
            them from one, to leave them uneven, or to shuffle by a seed of its own.
    """
    if isinstance(loader, PreparedLoader):
        return loader
    if not isinstance(loader, SelectiveLoader):
        raise errors.ConfigError(
            f"prepare takes what es.wrap returned, or an es.SelectiveLoader, got {type(loader).__name__}: other "
            "loaders are for accelerator.prepare; es.stream does not know where an epoch ends, which accumulation needs"
        )
    _check(accelerator)
    prepared = PreparedLoader(accelerator, loader)
    accelerator.register_for_checkpointing(prepared)
    return prepared


def _check(accelerator: Accelerator) -> None:
    """Raise ConfigError where the accelerator's settings of loaders contradict what a selector does."""
    several = accelerator.num_processes > 1
    refused = {
        "split_batches=True": (several and accelerator.split_batches, "batch_size is the meta-batch of each process"),
        "dispatch_batches=True": (several and accelerator.dispatch_batches, "each process fetches its own batches"),
        "even_batches=False": (several and not accelerator.even_batches, "all processes make the same number of steps"),
        f"data_seed={accelerator.dataloader_config.data_seed}": (
            accelerator.dataloader_config.data_seed is not None,
            "the order follows Selection(seed=...)",
        ),
    }
    for setting, (is_set, reason) in refused.items():
        if is_set:
            raise errors.ConfigError(
                f"the accelerator has {setting}, and with a selective loader {reason}: leave that setting out"
            )


class PreparedLoader:
    """A selective loader that shows Accelerate where its epochs end; `prepare` makes it.

    What is not defined here is as the loader within has it: `mean`, `observe`, `set_epoch`, `selector`, …
    """

    def __init__(self, accelerator: Accelerator, loader: SelectiveLoader) -> None:
        self._accelerator, self._loader = accelerator, loader
        self.end_of_dataloader = False
        """Whether the batch just yielded is the last of its epoch; Accelerate reads it."""
        self.remainder = 0
        """How many samples of the last batch are no repetitions, 0 for all of them; Accelerate reads it."""

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # not set yet
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __len__(self) -> int:
        """Return the number of steps of the epoch that is iterated, or else of the next one."""
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Yield (batch of b samples, scale float32[b]) for every step of the next epoch, or the rest of it."""
        return self._counted(self._loader)

    def epoch(self, epoch: int) -> Iterator[tuple[Any, Any]]:
        """Yield (batch of b samples, scale float32[b]) for every step of this epoch."""
        return self._counted(self._loader.epoch(epoch))

    def _counted(self, steps: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Yield the steps of an epoch, and show Accelerate which of them is the last."""
        synchronize_rng_states([kind for kind in self._accelerator.rng_types if kind != "generator"])
        gradients, num_left = self._accelerator.gradient_state, None
        gradients._add_dataloader(self)
        try:
            for one in steps:
                num_left = (len(self._loader.selector.batches()) if num_left is None else num_left) - 1
                self.end_of_dataloader = num_left == 0
                yield one
        finally:
            self.end_of_dataloader = False
            gradients._remove_dataloader(self)

    @property
    def next_epoch(self) -> int:
        """The epoch to begin or continue with; see `Selector.next_epoch`."""
        return self._loader.selector.next_epoch

    @property
    def scheduler_steps(self) -> int:
        """The total number of steps of a scheduler that `accelerator.prepare` returned.

        It makes one for each process at every optimizer step. Fewer where epochs are pruned by their losses.
        """
        accelerator, selector = self._accelerator, self._loader.selector
        steps = [selector.steps(epoch) for epoch in range(selector.config.num_epochs)]
        if not accelerator.step_scheduler_with_optimizer:
            return sum(steps)
        each = accelerator.gradient_accumulation_steps
        ends_with_epoch = accelerator.gradient_state.sync_with_dataloader
        updates: int = sum(-(-num // each) for num in steps) if ends_with_epoch else sum(steps) // each
        return updates * (1 if accelerator.split_batches else accelerator.num_processes)

    @property
    def batch_sampler(self) -> Any:
        """There is none, and `accelerator.skip_first_batches` asks for it.

        Raises:
            ConfigError: always.
        """
        raise errors.ConfigError(
            "a selective loader has no batch_sampler: its selector plans the batches. To continue inside an epoch call "
            "accelerator.load_state or loader.load_state_dict, and iterate the loader as it is; skip_first_batches "
            "would leave the scores of what it skips unknown"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: in one process at any step, else between two epochs."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Continue from `state_dict`'s return; every process calls it. Return the epoch that is iterated next.

        Raises:
            RunMismatchError: the state is of a run with another config.
            ConfigError: it was taken inside an epoch, in one process, and is loaded by several.
            StorageError: it is damaged, or of another version.
        """
        return self._loader.load_state_dict(state)
