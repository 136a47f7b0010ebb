"""A training loop as the documentation of diffusers and PEFT writes it."""

import torch

from lora_workbench.training.objective import drawn_noise, drawn_timestep

from .runs import tiny_trainable


def plain_losses(unet, trained, config, feed, steps):
    """Losses of ``steps`` steps of 2 pictures that move ``trained``, in our order and noise."""
    from diffusers import DDPMScheduler

    trainable = tiny_trainable()
    optimizer = torch.optim.AdamW(trained, lr=config.optimizer.rate)
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    losses = []
    for step in range(steps):
        keys = [(step, 0), (step, 1)]
        batch = feed.load(feed.picks(step), keys)
        noise = torch.stack([drawn_noise((4, 8, 8), config.objective, 0, *key) for key in keys])
        draw = [drawn_timestep(trainable.levels, config.objective, 0, *key) for key in keys]
        times = torch.stack(draw)
        texts = trainable.encode_captions(batch.captions)
        states = torch.cat([text["states"] for text in texts]).detach()
        noisy = schedule.add_noise(batch.latents, noise, times)
        loss = torch.nn.functional.mse_loss(unet(noisy, times, states).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.optimizer.clip_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
