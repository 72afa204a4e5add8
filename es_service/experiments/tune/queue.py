"""Which trial comes next, and what has become of all of them: the search's state, without Ray.

proposals ── settings ──► queue ── a trial for each seed ──► whoever trains it
    ▲                      │  ▲                                │
    └── values, ends ──────┘  └──── epochs, its end ◄──────────┘
                           └──► journal
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from es_service import errors
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.proposals import Proposals
from es_service.experiments.tune.trials import FAILED, RUNNING, Journal, Trial

__all__ = ["Queue"]


class Queue:
    """The trials of a search. One caller at a time.

    Args:
        proposals: where settings come from.
        seeds: every setting is trained with each of them.
        seed_major: all settings with the first seed before any with the second: where the settings are known already.
        objective: what counts.
        journal: where all that happens goes.
        name: of a trial's run, by its number.
    """

    def __init__(
        self,
        proposals: Proposals,
        seeds: Sequence[int],
        objective: Objective,
        journal: Journal,
        *,
        seed_major: bool,
        name: Callable[[int], str] = "trial-{:04d}".format,
    ) -> None:
        self._proposals, self._seeds, self._objective, self._journal = proposals, seeds, objective, journal
        self._name = name
        self.trials: list[Trial] = []
        self._to_do: list[Trial] = []  # begun by an earlier command, and not ended
        self._failed: set[int] = set()  # at least once
        self._settings: list[dict[str, Any]] = []
        self._waiting: list[tuple[int, int]] = []  # (setting, seed) to come before further settings
        if seed_major:
            while (settings := proposals.ask()) is not None:
                self._settings.append(settings)
            self._waiting = [(k, seed) for seed in seeds for k in range(len(self._settings))]

    def restore(self, tell: Callable[[str, Trial, Mapping[str, Any]], None]) -> None:
        """Go through the journal of an earlier command, as if it all happened again.

        Args:
            tell: called with ("begun" | "epoch" | "ended" | "retried", trial, the event), in the order of the journal.

        Raises:
            StorageError: the journal is not this search's.
        """
        for event in self._journal.read():
            try:
                self._restore(event, tell)
            except (LookupError, TypeError, ValueError) as error:
                raise errors.StorageError(f"the journal of the search is damaged at {event}: {error!r}") from error
        self._to_do = [one for one in self.trials if one.status == RUNNING]

    def _restore(self, event: dict[str, Any], tell: Callable[[str, Trial, Mapping[str, Any]], None]) -> None:
        kind, number = event.get("event"), event.get("number")
        if kind == "begun":
            trial = self._begin()
            if trial is None or any(getattr(trial, name) != event.get(name) for name in ("settings", "seed")):
                was = f"settings {event.get('settings')}, seed {event.get('seed')}"
                raise errors.StorageError(
                    f"trial {number} in the journal was begun with {was}, this version begins it with "
                    f"{None if trial is None else trial.settings}: name another --out"
                )
        else:
            trial = self.trials[int(number or 0)]
            if kind == "retried":
                trial.begin_again()
            elif kind == "epoch":
                self._take(trial, {key: value for key, value in event.items() if key not in ("event", "number")})
            else:
                self._close(trial, str(event["status"]), event.get("error"))
        tell(str(kind), trial, event)

    def next(self) -> Trial | None:
        """Return the trial to train now: one that was not ended, else a new one, None where there are no more."""
        while self._to_do:
            trial = self._to_do.pop(0)
            if trial.status == RUNNING:
                return trial
        begun = self._begin()
        if begun is not None:
            named = {name: getattr(begun, name) for name in ("setting", "settings", "seed", "run")}
            self._journal.write("begun", begun.number, **named)
        return begun

    def retry(self, number: int) -> None:
        """Have a failed trial be trained from its beginning, before any new one.

        Where settings come from hears of its end once more; of its epochs it has heard when it failed.
        """
        self._journal.write("retried", number)
        self.trials[number].begin_again()
        self.take_up(number)

    def set_aside(self, number: int) -> None:
        """Leave a trial that was begun for later."""
        self._to_do = [one for one in self._to_do if one.number != number]

    def take_up(self, number: int) -> None:
        """Have a trial that was begun be gone on with, before any new one."""
        self.set_aside(number)
        self._to_do = sorted([*self._to_do, self.trials[number]], key=lambda one: one.number)

    def epoch(self, number: int, entry: dict[str, Any]) -> Trial:
        """Take an epoch of a trial; one that was told before changes nothing."""
        trial = self.trials[number]
        if len(trial.epochs) <= entry["epoch"]:
            self._journal.write("epoch", number, **entry)
            self._take(trial, entry)
        return trial

    def end(self, number: int, status: str, error: str | None = None) -> Trial:
        """Take the end of a trial."""
        trial = self.trials[number]
        if trial.status == RUNNING:
            self._journal.write("ended", number, status=status, error=error)
            self._close(trial, status, error)
        return trial

    def _begin(self) -> Trial | None:
        if not self._waiting:
            settings = self._proposals.ask()
            if settings is None:
                return None
            self._settings.append(settings)
            self._waiting = [(len(self._settings) - 1, seed) for seed in self._seeds]
        setting, seed = self._waiting.pop(0)
        number = len(self.trials)
        trial = Trial(
            number=number, setting=setting, settings=self._settings[setting], seed=seed, run=self._name(number)
        )
        self.trials.append(trial)
        return trial

    def _take(self, trial: Trial, entry: dict[str, Any]) -> None:
        trial.epochs.append(entry)
        if trial.number not in self._failed:
            self._proposals.report(trial.setting, entry["epoch"], self._objective.values(trial.epochs)[0])

    def _close(self, trial: Trial, status: str, error: str | None) -> None:
        trial.status, trial.error = status, error
        if status == FAILED:
            self._failed.add(trial.number)
        own = [one for one in self.trials if one.setting == trial.setting]
        if len(own) == len(self._seeds) and all(one.status != RUNNING for one in own):
            self._proposals.tell(trial.setting, own)
