"""The embedded host: diffusers and transformers models, without ComfyUI; needs [headless]."""
