"""The loop: steps, and what is done between them."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..lora_core.errors import FailedError
from ..lora_core.lora import Lora
from .config import TrainConfig
from .cost import Measured, measured
from .dropout import Draws
from .feed import Feed, SampleKey
from .injection import ejected
from .losses import Losses
from .moved import Moved
from .mover import Mover
from .processes import Processes
from .randomness import seed_of
from .state import RunState, latest_state, save_state, state_files, threads
from .trainable import Trainable
from .watcher import Progress, Watcher

_Micro = tuple[Sequence[object], Sequence[SampleKey]]


class _NotKeptError(FailedError):
    """The run as it stands is no state to go on from, or cannot be written."""


@dataclass
class History:
    """What was measured, as ``(step, value)`` in order."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)

    @classmethod
    def of(cls, state: RunState) -> "History":
        """What a state remembers."""
        return cls(
            *(
                [(int(step), value) for step, value in state.tensors[name].tolist()]
                for name in ("losses", "validation")
            )
        )


class Trainer:
    """Moves the factors of a model, step by step.

    Args:
        model: Loaded, with the factors injected.
        factors: All that is trained: those of ``injected``, or weights themselves.
        feed: The pictures.
        config: The run's.
        steps: Optimiser steps of the run.
        folder: Where its states lie.
        key: Of everything that the run was told.
        watcher: Is told of each step, and may end the run.
        draws: What the dropout reads.
        as_lora: Makes a LoRA of the factors as they are, for previews; None where weights move,
            of which there are none.
    """

    def __init__(
        self,
        model: Trainable,
        factors: Sequence[Moved],
        feed: Feed,
        config: TrainConfig,
        steps: int,
        folder: Path,
        key: str,
        watcher: Watcher,
        draws: Draws,
        as_lora: Callable[[], Lora] | None,
    ) -> None:
        self.model, self.factors, self.feed, self.config = model, factors, feed, config
        self.steps, self.folder, self.key, self.watcher = steps, folder, key, watcher
        self.step = 0
        self.history = History()
        self.processes = Processes()
        self._as_lora = as_lora
        self._losses = Losses(model, config, draws)
        is_half = config.run.precision == "fp16" or _has_half_weights(model, factors)
        self._mover = Mover(factors, config, steps, model.device, is_half)

    def run(self) -> None:
        """Go on to the end, to the watcher's stop, or to an early end.

        An interrupt or an error keeps the steps that are done, and goes on its way; where it comes
        while the factors move, the last state on disk is kept.

        Raises:
            FailedError: loss, gradients or factors are no numbers any more, no step moved anything,
                or a state cannot be written; the states before are kept.
            LoraError: a picture cannot be read any more.
        """
        try:
            self._validate()
            while not self.is_complete and not self._is_stopped():
                self._advance()
        except _NotKeptError:
            raise
        except BaseException:
            if self._mover.is_whole:
                self.save()
            raise
        self._look_at_skipped()
        self.save()

    def _is_stopped(self) -> bool:
        """Whether the watcher of any process wants to stop: all stop at the same step."""
        wishes = torch.tensor(float(self.watcher.wish() is not None), device=self.model.device)
        return bool(self.processes.summed(wishes))

    @property
    def is_complete(self) -> bool:
        """Whether all steps are done, or more of them brought nothing better."""
        return self.step >= self.steps or self._is_settled()

    def save(self) -> None:
        """Keep the run as it stands.

        Raises:
            FailedError: the factors are no numbers, or the disk is full or cannot be written.
        """
        if not self._mover.is_finite:
            raise self._diverged(f"The factors are no numbers after step {self.step}.")
        if not self.step or not self.processes.is_first:
            return
        try:
            save_state(self.folder, self._state(), self.config.checkpoint.keep)
        except OSError as error:
            raise _NotKeptError(
                f"The state of step {self.step} cannot be written.",
                {
                    "Cause": error.strerror or error,
                    "Folder": self.folder,
                    "Last good state": self._last_state(),
                },
                "make room on the disk and run the same again (without retrain); it goes on "
                "from the last state.",
            ) from error

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the factors are their average, where the run keeps one."""
        return self._mover.averaged()

    def _advance(self) -> None:
        started = time.perf_counter()
        loss, norm = self._optimizer_step()
        rate = self._mover.rate
        self.watcher.stepped(
            Progress(self.step, self.steps, loss, rate, norm, time.perf_counter() - started)
        )
        every = self.config.checkpoint.every
        self._validate()
        if every and self.step % every == 0:
            self.save()
        self._preview()

    def measure(self) -> Measured:
        """Time and memory of the coming step; nothing is moved.

        The step runs once before: it makes latents that are not in the cache, and warms up.
        """
        weights = [p for part in self.model.parts.values() for p in part.parameters()]
        weights += [p for each in self.factors for p in each.parameters.values()]
        self._gradients()
        found = measured(self._gradients, weights)
        self._mover.clear()
        return found

    def _optimizer_step(self) -> tuple[float, float]:
        """Loss of the step's samples, and the norm of their gradients before clipping."""
        self._mover.clear()
        loss = self._gradients()
        if not math.isfinite(loss):
            raise self._diverged(f"The loss is no number at step {self.step + 1}.")
        self._mover.is_moving = True
        norm = self._mover.step(self.processes)
        if not math.isfinite(norm) and not self._mover.may_skip:
            raise self._diverged(f"The gradients are no numbers at step {self.step + 1}.")
        self.step += 1
        self.history.losses.append((self.step, loss))
        self._mover.is_moving = False
        return loss, norm

    def _gradients(self) -> float:
        """Add the step's gradients, those of this process's samples; gives the loss of all."""
        micros = list(self._micros())
        count = sum(len(picks) for picks, _ in micros)
        loss = torch.zeros((), device=self.model.device)
        for picks, keys in micros:
            _, first = keys[0]  # over the whole step, so that batches of one are shared too
            own_picks = self.processes.share(picks, first)
            own_keys = self.processes.share(keys, first)
            if not own_picks:
                self._mover.add_nothing(self.model.device)
                continue
            share = self._losses.of(self.feed.load(own_picks, own_keys), own_keys).sum() / count
            self._mover.add_gradients(share)
            loss += share.detach()
        return float(self.processes.summed(loss))

    def _micros(self) -> Iterator[_Micro]:
        """The batches of this optimiser step, over all processes; the last of a run may be less."""
        run = self.config.run
        first = self.step * run.accumulation
        last = first + run.accumulation
        if not run.steps:
            last = min(last, run.epochs * self.feed.batches_per_epoch)
        place = 0
        for number in range(first, last):
            picks = self.feed.picks(number)
            yield picks, [(self.step, place + index) for index in range(len(picks))]
            place += len(picks)

    def _validate(self) -> None:
        """Measure where it is time and has not been done, as after an interrupt."""
        every, done = self.config.validation.every, self.history.validation
        is_due = every and self.step and self.step % every == 0
        if is_due and not (done and done[-1][0] == self.step):
            with self.averaged():
                measured_loss = self._losses.of_validation(self.feed.validation())
            loss = self.processes.of_first(measured_loss, self.model.device)  # decides for all
            done.append((self.step, loss))
            self.watcher.validated(self.step, loss)

    def _is_settled(self) -> bool:
        """Whether the last measurements brought nothing better."""
        patience, values = self.config.validation.patience, self.history.validation
        if not patience or len(values) <= patience:
            return False
        best = min(range(len(values)), key=lambda index: values[index][1])
        return len(values) - 1 - best >= patience

    def _preview(self) -> None:
        config = self.config.preview
        is_due = config.every and self.step % config.every == 0
        if self._as_lora is None or not is_due or not self.processes.is_first:
            return
        size = config.size or self.feed.size
        with self.averaged():
            lora = self._as_lora()
        with ejected(self.factors), torch.no_grad():
            for index, prompt in enumerate(config.prompts):
                seed = seed_of(self.config.run.seed, "preview", index)
                picture = self.model.preview(prompt, config, size, seed, lora)
                self.watcher.pictured(self.step, prompt, picture)

    def _last_state(self) -> str:
        states = state_files(self.folder)
        return states[-1].name if states else "none was written"

    def _look_at_skipped(self) -> None:
        """Say which steps moved nothing; refuse a whole run of them."""
        skipped = self.step - self._mover.moves
        if skipped and not self._mover.moves and self.is_complete:
            raise _NotKeptError(
                "Nothing was learnt: the gradients overflowed fp16 in every step.",
                {"Steps": self.step},
                "compute in bf16 or fp32 and load the model so, or take more steps: the first ones "
                "look for a scale that fits.",
            )
        if skipped:
            self.watcher.noted(
                f"{skipped} of {self.step} steps moved nothing: their gradients overflowed fp16."
            )

    def _diverged(self, headline: str) -> FailedError:
        return _NotKeptError(
            headline,
            {
                "Learning rate": self._mover.rate,
                "Precision": self.config.run.precision,
                "Last good state": self._last_state(),
            },
            "lower the learning rate, clip gradients (clip_norm = 1), or compute in bf16 or fp32.",
        )

    def resume(self) -> int:
        """Go on from the last state in the folder, if there is one; gives the steps done.

        Raises:
            LoraError: all states are damaged, or one is of a run that was told something else.
        """
        state = latest_state(self.folder, self.key, self.watcher.noted)
        if state is None:
            return 0
        if state.threads != threads():
            self.watcher.noted(
                f"the run began on {state.threads} threads and goes on with {threads()}: "
                "its numbers will differ in their last digits."
            )
        self._mover.load(state.tensors, state.facts)
        self.step, self.history = state.step, History.of(state)
        return self.step

    def _state(self) -> RunState:
        tensors, told = self._mover.saved()
        for name in ("losses", "validation"):
            values = getattr(self.history, name)
            tensors[name] = torch.tensor(values, dtype=torch.float64).reshape(-1, 2)
        return RunState(self.step, self.key, threads(), tensors, told)


def _has_half_weights(model: Trainable, factors: Sequence[Moved]) -> bool:
    components = {each.component for each in factors} | {"unet"}
    return any(
        parameter.dtype is torch.float16
        for name in components
        for parameter in model.parts[name].parameters()
    )
