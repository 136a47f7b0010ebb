"""Steps, rates, gradients and ends of a run."""

import math

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError
from lora_workbench.training.config import (
    AdapterConfig,
    CheckpointConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)

from .runs import ListFeed, Quiet, run, short_run, tiny_trainable

SCHEDULES = {
    "constant": {},
    "constant_with_warmup": {"warmup_steps": 3},
    "linear": {"warmup_steps": 3},
    "cosine": {"warmup_steps": 3},
    "cosine_with_restarts": {"warmup_steps": 2, "cycles": 2},
    "polynomial": {"warmup_steps": 1, "power": 2.0},
}


def altered(config, **parts):
    return TrainConfig(**{**vars(config), **parts})


def every_step(config):
    return altered(config, checkpoint=CheckpointConfig(every=1))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("accumulation", "rate"), [(1, 1e-3), (3, 2e-4)])
def test_the_rate_at_each_step_is_diffusers(name, accumulation, rate, tmp_path):
    """Steps are optimiser steps, whatever is accumulated, and after a resume."""
    from diffusers.optimization import get_scheduler

    options = OptimizerConfig(rate=rate, schedule=name, **SCHEDULES[name])
    config = short_run(AdapterConfig(rank=2, targets=("attn2 & q",)), options, 8)
    config = altered(config, run=type(config.run)(steps=8, accumulation=accumulation))
    watcher = Quiet(stop_after=5)
    run(config, tmp_path, watcher=watcher)
    rest = Quiet()
    run(config, tmp_path, watcher=rest)
    plain = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=rate)
    wanted = get_scheduler(
        name,
        plain,
        num_warmup_steps=options.warmup_steps,
        num_training_steps=8,
        num_cycles=options.cycles,
        power=options.power,
    )
    rates = []
    for _ in range(8):
        plain.step()
        wanted.step()
        rates.append(wanted.get_last_lr()[0])
    assert [each.rate for each in watcher.progress + rest.progress] == rates


def test_accumulated_batches_are_one_large_batch(tmp_path):
    adapter = AdapterConfig(rank=2, targets=("attn",))
    large, _ = run(short_run(adapter, steps=3), tmp_path / "a", feed=ListFeed(4, 4))
    parts = short_run(adapter, steps=3, accumulation=2)
    small, _ = run(parts, tmp_path / "b", feed=ListFeed(4, 2))
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, rtol=1e-4, atol=1e-6)


def test_a_short_last_accumulation_is_divided_by_its_real_count(tmp_path):
    """Five batches in steps of two: the last step has one batch, and its gradient is whole."""
    adapter = AdapterConfig(rank=2, targets=("attn",))
    sgd = OptimizerConfig(name="sgd", rate=0.1, clip_norm=0.0, betas=(0.0, 0.0), weight_decay=0.0)
    config = short_run(adapter, sgd, steps=0, epochs=1, accumulation=2)
    watcher = Quiet()
    run(config, tmp_path / "a", feed=ListFeed(5, 1), watcher=watcher)
    assert len(watcher.progress) == 3
    alone = Quiet()
    run(short_run(adapter, sgd, steps=3), tmp_path / "b", feed=ListFeed(5, 1), watcher=alone)
    ratio = watcher.progress[-1].norm / alone.progress[-1].norm
    assert 0.2 < ratio < 5  # by the wanted count of two it would still be of this order
    assert watcher.progress[-1].loss > 0.5  # a mean, not half of one


def test_clipping_clips(tmp_path):
    """The step of plain SGD is the clipped gradient, over all groups together."""
    adapter = AdapterConfig(rank=2, targets=("attn",), text_encoder=("te1 & q",))
    options = OptimizerConfig(
        name="sgd", rate=1.0, betas=(0.0, 0.0), weight_decay=0.0, clip_norm=1e-3, lora_plus=1.0
    )
    start, _ = run(short_run(adapter, options), tmp_path / "0", watcher=Quiet(stop_after=0))
    watcher = Quiet()
    end, _ = run(short_run(adapter, options, steps=1), tmp_path / "1", watcher=watcher)
    moved = math.sqrt(sum(float(((end[n] - start[n]) ** 2).sum()) for n in start))
    assert watcher.progress[0].norm > 1e-3
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_lora_plus_keeps_its_ratio(tmp_path):
    options = OptimizerConfig(
        name="sgd", rate=0.01, betas=(0.0, 0.0), weight_decay=0.0, clip_norm=0.0, lora_plus=16.0
    )
    plain = OptimizerConfig(**{**vars(options), "lora_plus": 1.0})
    adapter = AdapterConfig(rank=2, targets=("attn",))
    fast, _ = run(short_run(adapter, options, steps=1), tmp_path / "a")
    slow, _ = run(short_run(adapter, plain, steps=1), tmp_path / "b")
    for name in fast:
        if name.endswith(".up"):  # starts at zero, so it is what it was moved by
            torch.testing.assert_close(fast[name], 16 * slow[name], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_float32_factors(precision, tmp_path):
    exact, _ = run(short_run(steps=3), tmp_path / "a")
    half, losses = run(short_run(steps=3, precision=precision), tmp_path / "b")
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert all(map(math.isfinite, losses))
    assert any(not torch.equal(half[name], exact[name]) for name in half)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_state(tmp_path):
    feed = ListFeed()
    feed.latents[4] = torch.full((4, 8, 8), float("nan"))  # of the third batch
    with pytest.raises(LoraError, match="no number at step 3") as error:
        run(every_step(short_run(steps=6)), tmp_path, feed=feed)
    assert "state-00000002" in str(error.value)
    assert "lower the learning rate" in error.value.fix


def test_gradients_that_are_no_numbers_end_the_run_before_they_move_anything(tmp_path):
    """The loss is a number, and so are the factors of every state on disk."""
    feed = ListFeed()
    load, model = feed.load, tiny_trainable()

    def load_with_endless_slope(picks, keys):
        batch = load(picks, keys)
        if keys[0][0] == 2:
            hook = model.parts["unet"].conv_out.register_full_backward_hook(_no_numbers)
            feed.after = hook
        return batch

    feed.load = load_with_endless_slope
    with pytest.raises(LoraError, match="gradients are no numbers at step 3") as error:
        run(every_step(short_run(steps=6)), tmp_path, model, feed)
    feed.after.remove()
    assert "state-00000002" in str(error.value)
    values, losses = run(every_step(short_run(steps=6)), tmp_path, model)
    assert all(bool(value.isfinite().all()) for value in values.values())
    assert len(losses) == 6


def _no_numbers(module, inputs, outputs):
    return tuple(gradient * math.nan for gradient in inputs)


def test_factors_that_are_no_numbers_are_not_saved(tmp_path):
    options = OptimizerConfig(name="sgd", rate=3e38, clip_norm=0.0, weight_decay=0.0)
    config = short_run(AdapterConfig(rank=2, alpha=1e9), options, steps=1)
    with pytest.raises(LoraError, match="factors are no numbers after step 1"):
        run(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_in_fp16_that_moves_nothing_is_refused(tmp_path):
    """Of 40 steps the seventeenth is at scale 1, at which no overflow is fp16's."""
    config, model = short_run(steps=2, precision="fp16"), tiny_trainable()
    hook = model.parts["unet"].conv_out.register_full_backward_hook(_no_numbers)
    with pytest.raises(LoraError, match="Nothing was learnt"):
        run(config, tmp_path, model)
    with pytest.raises(LoraError, match="gradients are no numbers at step 17"):
        run(short_run(steps=40, precision="fp16"), tmp_path / "longer", model)
    hook.remove()


def test_steps_that_fp16_skips_are_told(tmp_path):
    model, watcher = tiny_trainable(), Quiet()

    def overflow_once(*facts):
        hook.remove()
        return _no_numbers(*facts)

    hook = model.parts["unet"].conv_out.register_full_backward_hook(overflow_once)
    run(short_run(steps=4, precision="fp16"), tmp_path, model, watcher=watcher)
    assert watcher.notes == ["1 of 4 steps moved nothing: their gradients overflowed fp16."]


def test_an_error_between_two_checkpoints_keeps_the_steps_before_it(tmp_path):
    """As when a picture was taken away; afterwards the run goes on with the same bits."""
    whole, _ = run(short_run(steps=6), tmp_path / "whole")
    feed = ListFeed()
    kept, feed.latents[4] = feed.latents[4], None  # of the third batch
    load = feed.load

    def load_what_is_there(picks, keys):
        if any(feed.latents[pick.index] is None for pick in picks):
            raise LoraError("A picture is not there.")
        return load(picks, keys)

    feed.load = load_what_is_there
    with pytest.raises(LoraError, match="not there"):
        run(short_run(steps=6), tmp_path / "parts", feed=feed)
    feed.latents[4] = kept
    watcher = Quiet()
    values, _ = run(short_run(steps=6), tmp_path / "parts", feed=feed, watcher=watcher)
    assert [each.step for each in watcher.progress] == [3, 4, 5, 6]
    assert all(torch.equal(values[name], whole[name]) for name in whole)


def test_validation_is_at_the_same_noise_and_ends_a_settled_run(tmp_path):
    nothing = OptimizerConfig(rate=0.0, weight_decay=0.0)
    config = altered(short_run(optimizer=nothing, steps=9), validation=ValidationConfig(2, 2, 2))
    watcher = Quiet()
    run(config, tmp_path, watcher=watcher)
    losses = [loss for _, loss in watcher.measured]
    assert [step for step, _ in watcher.measured] == [2, 4, 6]  # nothing better in two more
    assert len(set(losses)) == 1


def test_validation_measures_the_noise_that_is_trained(tmp_path, monkeypatch):
    seen, model = set(), tiny_trainable()
    predict = model.predict

    def noted(noisy, times, conditions):
        seen.update(times.tolist())
        return predict(noisy, times, conditions)

    monkeypatch.setattr(model, "predict", noted)
    config = altered(
        short_run(steps=1),
        validation=ValidationConfig(1, 3),
        objective=ObjectiveConfig(first_timestep=200, last_timestep=240),
    )
    run(config, tmp_path, model)
    assert {210, 220, 230} <= seen
    assert min(seen) >= 200
    assert max(seen) <= 240


def test_an_interrupt_before_a_measurement_loses_none(tmp_path):
    config = altered(short_run(steps=4), validation=ValidationConfig(2, 2))
    whole = Quiet()
    run(config, tmp_path / "whole", watcher=whole)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parts", watcher=Quiet(raise_after=2))
    rest = Quiet()
    run(config, tmp_path / "parts", watcher=rest)
    assert rest.measured == whole.measured


def test_only_the_latest_states_are_kept(tmp_path):
    config = altered(short_run(steps=6), checkpoint=CheckpointConfig(every=1, keep=2))
    run(config, tmp_path)
    names = [path.name for path in sorted(tmp_path.glob("*"))]
    assert names == ["state-00000005.safetensors", "state-00000006.safetensors"]


def test_training_lowers_the_loss(tmp_path):
    options = OptimizerConfig(rate=5e-3)
    config = short_run(AdapterConfig(rank=8, targets=("unet",)), options, steps=60)
    config = altered(config, objective=ObjectiveConfig(first_timestep=400))
    _, losses = run(config, tmp_path)
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (OptimizerConfig(warmup_steps=3), "no warm-up"),
        (OptimizerConfig(schedule="cosine", warmup_steps=5), "still be rising"),
        (OptimizerConfig(name="adamv"), "Unknown optimizer"),
    ],
)
def test_a_schedule_that_cannot_act_is_refused(options, said, tmp_path):
    with pytest.raises(LoraError, match=said):
        run(short_run(optimizer=options, steps=5), tmp_path)
