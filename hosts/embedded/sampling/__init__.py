"""KSampler's mathematics for SD1, SD2 and SDXL, equal to ComfyUI's stage by stage; torch only."""

from .ksampler import sample
from .noise import starting_noise
from .samplers import SAMPLERS
from .schedulers import SCHEDULERS, sigmas_for

__all__ = ["SAMPLERS", "SCHEDULERS", "sample", "sigmas_for", "starting_noise"]
