"""Augmentation: a view follows from the sample and the epoch, and what is scored is what is trained on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import image_files
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import es_service as es
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.local_run import LocalRun
from es_service.selection.named import preset
from es_service.selection.run import RunConfig
from es_service.training import irreducible
from es_service.training.loader import SelectiveLoader
from es_service.training.loop import fit
from es_service.training.settings import TrainSettings
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.derived import Derived, derive
from es_service.training.tasks.images import ImageSet
from es_service.training.tasks.images.augment import CropAndFlip
from es_service.training.tasks.splits import stream_of, words
from es_service.training.tasks.supervised import Batch, Classification
from es_service.training.workers.local import LocalWorkers

NUM, SIZE, EPOCHS = 44, 8, 3
IMAGES, LABELS = image_files.pictures(NUM, side=16)
SAMPLES = ImageSet(IMAGES, LABELS)
BOTH = CropAndFlip(crop=True, flip=True)


pytestmark = pytest.mark.usefixtures("one_thread")


def view(sample_id: int, epoch: int, *, flip: bool = True, seed: int = 0) -> NDArray[np.uint8]:
    """What is to be seen of a sample, spelled out: pad by 2 of 16, cut, mirror."""
    word = int(words(np.array([sample_id]), stream_of(0x1AE5, seed, epoch))[0])
    padded = np.pad(IMAGES[sample_id], ((2, 2), (2, 2), (0, 0)))
    top, left = word % 5, (word >> 20) % 5
    cut = padded[top : top + 16, left : left + 16]
    return cut[:, ::-1] if flip and (word >> 40) % 2 else cut


def test_a_view_is_a_crop_and_a_flip_that_follow_from_sample_and_epoch() -> None:
    ids = np.array([5, 0, 43, 17, 5])
    for epoch in range(EPOCHS):
        batch = SAMPLES.__getitems__(ids.tolist())
        seen = BOTH(batch, ids, epoch)
        assert np.array_equal(seen.inputs.numpy(), np.stack([view(one, epoch) for one in ids]))
        assert seen.targets.tolist() == batch.targets.tolist()
        assert np.array_equal(batch.inputs.numpy(), IMAGES[ids])  # left as it was
    different = {view(one, epoch).tobytes() for one in range(NUM) for epoch in range(EPOCHS)}
    assert len(different) > 0.9 * NUM * EPOCHS


def test_a_way_may_be_left_out() -> None:
    ids = np.arange(NUM)
    batch = SAMPLES.__getitems__(ids.tolist())
    flipped = CropAndFlip(crop=False, flip=True)(batch, ids, 0).inputs.numpy()
    mirrored = [np.array_equal(one, image[:, ::-1]) for one, image in zip(flipped, IMAGES, strict=True)]
    kept = [np.array_equal(one, image) for one, image in zip(flipped, IMAGES, strict=True)]
    assert np.logical_xor(mirrored, kept).all()
    assert 10 < sum(mirrored) < 34
    cropped = CropAndFlip(crop=True, flip=False)(batch, ids, 0).inputs.numpy()
    assert np.array_equal(cropped, np.stack([view(one, 0, flip=False) for one in range(NUM)]))


# -- the loader -----------------------------------------------------------------------------------------------------


class Seen:
    """Scores by the images' bytes; keeps what it saw of each sample, and of which epoch."""

    def __init__(self) -> None:
        self.views: list[bytes] = []

    def __call__(self, batch: Batch) -> dict[str, Any]:
        self.views += [one.tobytes() for one in batch.inputs.numpy()]
        losses = batch.inputs.float().mean(dim=(1, 2, 3)) / 100
        return {"loss": losses, "correct": torch.ones(len(losses)), "confidence": torch.ones(len(losses))}


def as_is(batch: Any) -> Any:
    return batch


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("reuse_losses", [True, False])
@pytest.mark.parametrize("method", ["es", "random", "full", "kakurenbo"])
def test_what_is_scored_is_what_is_trained_on(method: str, reuse_losses: bool, num_workers: int) -> None:
    """Steps that draw without losses, and hidden samples, see this epoch's view too."""
    selector = es.Selector(preset(method, anneal=(0.0, 0.0)), num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE)
    seen = Seen()
    loader = SelectiveLoader(
        SAMPLES, selector, seen, reuse_losses=reuse_losses, collate_fn=as_is, augment=BOTH, num_workers=num_workers
    )
    num_scored = 0
    for epoch in range(EPOCHS):
        seen.views.clear()
        for batch, _ in loader.epoch(epoch):
            assert loader.draw is not None
            trained = [view(one, epoch) for one in loader.draw.ids.tolist()]
            assert np.array_equal(batch.inputs.numpy(), np.stack(trained))
            assert batch.targets.tolist() == LABELS[loader.draw.ids].tolist()
            if seen.views:
                assert {one.tobytes() for one in trained} <= set(seen.views)
            if reuse_losses:
                loader.observe(Seen()(batch))
        assert set(seen.views) <= {view(one, epoch).tobytes() for one in range(NUM)}
        num_scored += len(seen.views)
    assert (num_scored > 0) == (method in ("es", "kakurenbo") or not reuse_losses)


def test_samples_that_are_collated_again_get_their_view_too() -> None:
    """One at a time, so that `recollate` makes the mini-batch of single samples."""
    singles = [(torch.from_numpy(image), int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]
    selector = es.Selector(preset("es", anneal=(0.0, 0.0)), num_samples=NUM, num_epochs=1, batch_size=SIZE)

    def collate(samples: list[Any]) -> Batch:
        images, labels = zip(*samples, strict=True)
        return Batch(torch.stack(images), torch.tensor(labels))

    loader = SelectiveLoader(singles, selector, Seen(), collate_fn=collate, recollate=True, augment=BOTH)
    for batch, _ in loader.epoch(0):
        assert loader.draw is not None
        assert np.array_equal(batch.inputs.numpy(), np.stack([view(one, 0) for one in loader.draw.ids.tolist()]))


@pytest.mark.parametrize("world_size", [1, 2])
def test_views_do_not_depend_on_the_number_of_ranks(world_size: int) -> None:
    selection = preset("es", anneal=(0.0, 0.0))
    shape = {"num_samples": NUM, "num_epochs": EPOCHS, "batch_size": SIZE}
    keeper = LocalRun(RunConfig(selection=selection, **shape))
    loaders = [
        SelectiveLoader(
            SAMPLES,
            es.Selector(selection, **shape, exchange=Embedded(keeper, Position(rank, world_size))),
            Seen(),
            collate_fn=as_is,
            augment=BOTH,
        )
        for rank in range(world_size)
    ]
    for epoch in range(EPOCHS):
        for row in itertools.zip_longest(*(loader.epoch(epoch) for loader in loaders)):
            for loader, (batch, _) in zip(loaders, row, strict=True):
                assert loader.draw is not None
                assert np.array_equal(batch.inputs.numpy(), np.stack([view(one, epoch) for one in loader.draw.ids]))


# -- tasks made of others -----------------------------------------------------------------------------------------


def task(**settings: Any) -> Classification:
    """Nothing but a linear layer over the mean of each channel."""

    def model() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16 * 16 * 3, 3))

    class Small(Classification):
        def inputs(self, batch: Any) -> Any:
            return batch[0].float() / 255

    return Small(
        name="small",
        train_set=SAMPLES,
        held_out=ImageSet(*image_files.pictures(9, side=16, seed=1)),
        model=model,
        defaults=TaskDefaults(epochs=EPOCHS, batch_size=SIZE, learning_rate=0.01),
        **settings,
    )


def test_a_derived_task_shows_the_views_of_the_task_it_was_made_of() -> None:
    derived = derive(task(augment=BOTH), Derived(limit=20, seed=3))
    ids = np.array([3, 0, 19])
    batch = derived.train_set.__getitems__(ids.tolist())
    seen = derived.augment(batch, ids, 2)  # type: ignore[attr-defined]
    assert np.array_equal(seen.inputs.numpy(), np.stack([view(one, 2) for one in derived.source_ids[ids]]))  # type: ignore[attr-defined]
    assert derive(task(), Derived(limit=20)).augment is None  # type: ignore[attr-defined]


def test_hold_out_models_are_trained_on_views_and_asked_about_the_samples_themselves() -> None:
    asked: list[tuple[int, bytes]] = []

    def augment(batch: Any, ids_B: NDArray[np.int64], epoch: int, seed: int) -> Any:
        asked.extend((int(one), image.numpy().tobytes()) for one, image in zip(ids_B, batch.inputs, strict=True))
        return BOTH(batch, ids_B, epoch, seed)

    settings = TrainSettings(learning_rate=0.01)
    found = irreducible.hold_out_losses(
        task(augment=augment), settings, num_epochs=2, batch_size=SIZE, selection_seed=0
    )
    assert sorted(one for one, _ in asked) == list(range(NUM))  # each half for one epoch
    assert all(content == IMAGES[one].tobytes() for one, content in asked)
    assert np.isfinite(found.losses).all()


def test_evaluation_sees_the_samples_themselves_and_a_resumed_training_the_same_views(tmp_path: Path) -> None:
    class InterruptedHere(Exception):
        pass

    views: dict[str, list[bytes]] = {}

    def run(name: str, *, fail_at: int | None = None) -> list[torch.Tensor]:
        kept = views.setdefault(name, [])

        def augment(batch: Any, ids_B: NDArray[np.int64], epoch: int, seed: int) -> Any:
            if len(kept) == fail_at:
                raise InterruptedHere
            kept.append(BOTH(batch, ids_B, epoch, seed).inputs.numpy().tobytes())
            return BOTH(batch, ids_B, epoch, seed)

        selector = es.Selector(preset("es", anneal=(0.0, 0.0)), num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE)
        folder = tmp_path / name.split()[0]
        fit(task(augment=augment), selector, TrainSettings(learning_rate=0.01), LocalWorkers(folder))
        (place,) = folder.glob("epoch-*")
        return list(torch.load(place / "training.pt", weights_only=True)["model"].values())

    whole = run("whole")
    steps = len(views["whole"]) // EPOCHS
    assert steps == 6  # a meta-batch each: nothing for the held-out samples
    with pytest.raises(InterruptedHere):
        run("parts 1", fail_at=steps + 3)
    resumed = run("parts 2")
    assert views["parts 1"][:steps] + views["parts 2"] == views["whole"]
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))


def test_views_follow_from_the_seed_of_the_training(tmp_path: Path) -> None:
    """Of a derived task too, and of a method that scores: the step sees what was scored."""

    def seen(seed: int) -> set[bytes]:
        kept: set[bytes] = set()

        class Watched(CropAndFlip):
            def __call__(self, *of: Any) -> Batch:
                made = super().__call__(*of)
                kept.update(one.tobytes() for one in made.inputs.numpy())
                return made

        derived = derive(task(augment=Watched(crop=True, flip=True)), Derived(limit=20))
        selector = es.Selector(preset("es", anneal=(0.0, 0.0)), num_samples=20, num_epochs=1, batch_size=SIZE)
        settings = TrainSettings(learning_rate=0.01, seed=seed)
        fit(derived, selector, settings, LocalWorkers(tmp_path / str(len(list(tmp_path.iterdir())))))
        assert kept == {view(one, 0, seed=seed).tobytes() for one in derived.source_ids.tolist()}  # type: ignore[attr-defined]
        return kept

    assert seen(0) == seen(0)
    assert len(seen(0) & seen(1)) < 5
