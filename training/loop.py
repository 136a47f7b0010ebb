"""The loop: steps, and what is done between them."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..lora_core.errors import FailedError, LoraError
from ..lora_core.lora import Lora
from .average import Average
from .config import TrainConfig
from .cost import Measured, measured
from .dropout import Draws
from .feed import Batch, Feed, SampleKey
from .injection import Factors, ejected
from .objective import drawn_noise, drawn_timestep, sample_losses, snr_weights
from .optimizer import make_optimizer, parameters_of
from .processes import Processes
from .randomness import seed_of
from .state import (
    RunState,
    latest_state,
    pack_optimizer,
    save_state,
    state_files,
    threads,
    unpack_optimizer,
)
from .trainable import Conditions, Trainable
from .watcher import Progress, Watcher

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_Micro = tuple[Sequence[object], Sequence[SampleKey]]


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
        factors: All that is trained.
        feed: The pictures.
        config: The run's.
        steps: Optimiser steps of the run.
        folder: Where its states lie.
        key: Of everything that the run was told.
        watcher: Is told of each step, and may end the run.
        draws: What the dropout reads.
        as_lora: Makes a LoRA of the factors as they are, for previews.
    """

    def __init__(
        self,
        model: Trainable,
        factors: Sequence[Factors],
        feed: Feed,
        config: TrainConfig,
        steps: int,
        folder: Path,
        key: str,
        watcher: Watcher,
        draws: Draws,
        as_lora: Callable[[], Lora],
    ) -> None:
        self.model, self.factors, self.feed, self.config = model, factors, feed, config
        self.steps, self.folder, self.key, self.watcher = steps, folder, key, watcher
        self.step = 0
        self.history = History()
        self.processes = Processes()
        self._draws, self._as_lora = draws, as_lora
        self._optimizer, self._schedule = make_optimizer(factors, config.optimizer, steps)
        self._parameters = parameters_of(self._optimizer)
        for parameter in self._parameters:  # so that a process without a sample has them too
            parameter.grad = torch.zeros_like(parameter)
        self._average = Average(self._parameters, config.run.ema)
        is_fp16 = config.run.precision == "fp16"
        self._is_moving = False
        self._scaler = torch.amp.GradScaler(model.device.type, enabled=is_fp16)

    def run(self) -> None:
        """Go on to the end, to the watcher's stop, or to an early end.

        An interrupt keeps the steps that are done, and goes on its way; where it comes while the
        factors move, the last state on disk is kept.

        Raises:
            FailedError: the loss is no number any more, or a state cannot be written; the states
                before are kept.
        """
        try:
            while not self.is_complete and not self._is_stopped():
                self._advance()
        except LoraError:
            raise
        except BaseException:
            if not self._is_moving:
                self.save()
            raise
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
            FailedError: the disk is full or cannot be written.
        """
        if not self.step or not self.processes.is_first:
            return
        try:
            save_state(self.folder, self._state(), self.config.checkpoint.keep)
        except OSError as error:
            raise FailedError(
                f"The state of step {self.step} cannot be written.",
                {
                    "Cause": error.strerror or error,
                    "Folder": self.folder,
                    "Last good state": self._last_state(),
                },
                "make room on the disk and run the same again; it goes on from the last state.",
            ) from error

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the factors are their average, where the run keeps one."""
        return self._average.shown()

    def _advance(self) -> None:
        started = time.perf_counter()
        loss, norm = self._optimizer_step()
        rate = max(self._schedule.get_last_lr())
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
        self._gradients()
        found = measured(self._gradients, weights)
        self._clear()
        return found

    def _optimizer_step(self) -> tuple[float, float]:
        """Loss of the step's samples, and the norm of their gradients before clipping."""
        self._clear()
        loss = self._gradients()
        if not math.isfinite(loss):
            raise self._diverged()
        self.processes.sum_gradients(self._parameters)
        self._is_moving = True
        self._scaler.unscale_(self._optimizer)
        limit = self.config.optimizer.clip_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, limit))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._average.step()
        self.step += 1
        self.history.losses.append((self.step, loss))
        self._is_moving = False
        return loss, norm

    def _clear(self) -> None:
        self._optimizer.zero_grad(set_to_none=False)

    def _gradients(self) -> float:
        """Add the step's gradients, those of this process's samples; gives the loss of all."""
        micros = list(self._micros())
        count = sum(len(picks) for picks, _ in micros)
        loss = torch.zeros((), device=self.model.device)
        for picks, keys in micros:
            own_picks, own_keys = self.processes.share(picks), self.processes.share(keys)
            if not own_picks:
                continue
            share = self._losses(self.feed.load(own_picks, own_keys), own_keys).sum() / count
            self._scaler.scale(share).backward()
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

    def _losses(self, batch: Batch, keys: Sequence[SampleKey]) -> Tensor:
        """The weighted loss of each sample, ``(n,)``, with its graph."""
        config, seed, levels = self.config, self.config.run.seed, self.model.levels
        times = torch.stack([drawn_timestep(levels, config.objective, seed, *key) for key in keys])
        shape = tuple(batch.latents.shape[1:])
        noise = torch.stack([drawn_noise(shape, config.objective, seed, *key) for key in keys])
        losses = self._errors(batch, noise, times, keys)
        weights = snr_weights(levels, times, config.objective.min_snr_gamma) * batch.weights
        return losses * weights.to(losses.device)

    def _errors(
        self, batch: Batch, noise: Tensor, times: Tensor, keys: Sequence[SampleKey] = ()
    ) -> Tensor:
        """The loss of each sample, ``(n,)``; without keys nothing is dropped out."""
        device, levels = self.model.device, self.model.levels
        latents, noise, times = (x.to(device) for x in (batch.latents, noise, times))
        with self._autocast():
            texts = batch.texts or self._encoded(batch.captions, keys)
            on_device = [{name: row.to(device) for name, row in text.items()} for text in texts]
            conditions = self.model.conditions(on_device, batch.sizes)
            noisy = levels.mixed(latents, noise, times)
            with self._draws.of(keys):
                answer = self.model.predict(noisy, times, conditions)
        mask = None if batch.mask is None else batch.mask.to(device)
        wanted = levels.wanted(latents, noise, times)
        return sample_losses(answer, wanted, self.config.objective, mask)

    def _encoded(self, captions: Sequence[str], keys: Sequence[SampleKey]) -> list[Conditions]:
        """Captions one by one: each has as many chunks as it needs."""
        texts: list[Conditions] = []
        for index, caption in enumerate(captions):
            with self._draws.of(keys[index : index + 1]):
                texts += self.model.encode_captions([caption])
        return texts

    def _autocast(self) -> torch.autocast:
        dtype = _DTYPES.get(self.config.run.precision)
        kind = self.model.device.type
        return torch.autocast(kind, dtype or torch.bfloat16, enabled=dtype is not None)

    def _validate(self) -> None:
        every = self.config.validation.every
        if every and self.step % every == 0:
            loss = self.validation_loss()
            self.history.validation.append((self.step, loss))
            self.watcher.validated(self.step, loss)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """The loss on the pictures kept apart, at the same noise every time."""
        seed, levels = self.config.run.seed, self.model.levels
        count = self.config.validation.timesteps
        places = torch.linspace(0, 1, count + 2)[1:-1] * (len(levels.signal) - 1)
        losses: list[Tensor] = []
        for index, batch in enumerate(self.feed.validation()):
            shape = tuple(batch.latents.shape[1:])
            for number, place in enumerate(places.long()):
                noise = torch.stack(
                    [
                        drawn_noise(shape, self.config.objective, seed, "validation", index, n)
                        for n in range(number * 1000, number * 1000 + len(batch.latents))
                    ]
                )
                times = place.repeat(len(batch.latents))
                losses.append(self._errors(batch, noise, times).cpu())
        return float(torch.cat(losses).mean())

    def _is_settled(self) -> bool:
        """Whether the last measurements brought nothing better."""
        patience, values = self.config.validation.patience, self.history.validation
        if not patience or len(values) <= patience:
            return False
        best = min(range(len(values)), key=lambda index: values[index][1])
        return len(values) - 1 - best >= patience

    def _preview(self) -> None:
        config = self.config.preview
        if not config.every or self.step % config.every or not self.processes.is_first:
            return
        size = config.size or self.feed.size
        lora = self._as_lora()
        with ejected(self.model.parts, self.factors), torch.no_grad():
            for index, prompt in enumerate(config.prompts):
                seed = seed_of(self.config.run.seed, "preview", index)
                picture = self.model.preview(prompt, config, size, seed, lora)
                self.watcher.pictured(self.step, prompt, picture)

    def _last_state(self) -> str:
        states = state_files(self.folder)
        return states[-1].name if states else "none was written"

    def _diverged(self) -> FailedError:
        rate = max(self._schedule.get_last_lr())
        return FailedError(
            f"The loss is no number at step {self.step + 1}.",
            {
                "Learning rate": rate,
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
        self._load(state)
        return self.step

    def _state(self) -> RunState:
        tensors = {
            f"factor.{i}": parameter.detach() for i, parameter in enumerate(self._parameters)
        }
        optimizer, facts = pack_optimizer(self._optimizer.state_dict())
        tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
        tensors |= {f"average.{name}": value for name, value in self._average.tensors().items()}
        for name in ("losses", "validation"):
            values = getattr(self.history, name)
            tensors[name] = torch.tensor(values, dtype=torch.float64).reshape(-1, 2)
        told = {
            "optimizer": facts,
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
        }
        return RunState(self.step, self.key, threads(), tensors, told)

    def _load(self, state: RunState) -> None:
        def named(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): tensor
                for name, tensor in state.tensors.items()
                if name.startswith(prefix)
            }

        with torch.no_grad():
            for index, parameter in enumerate(self._parameters):
                parameter.copy_(state.tensors[f"factor.{index}"])
        self._optimizer.load_state_dict(
            unpack_optimizer(named("optimizer."), state.facts["optimizer"])
        )
        self._schedule.load_state_dict(state.facts["schedule"])
        self._scaler.load_state_dict(state.facts["scaler"])
        self._average.load(named("average."))
        self.step, self.history = state.step, History.of(state)
