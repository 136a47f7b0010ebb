"""Modules of diffusers and transformers without memory, from plain configurations."""

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from .assemble import meta

_LOG = logging.getLogger(__name__)

# diffusers and transformers are imported inside: only who loads a checkpoint needs them.


def meta_unet(config: Mapping[str, Any]) -> nn.Module:
    """Build ``UNet2DConditionModel``."""
    from diffusers import UNet2DConditionModel

    return meta(lambda: UNet2DConditionModel(**config))


def meta_text_encoder(config: Mapping[str, Any], with_projection: bool) -> nn.Module:
    """Build ``CLIPTextModel`` or ``CLIPTextModelWithProjection``."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if with_projection else CLIPTextModel
    return meta(lambda: kind(CLIPTextConfig(**config)))


def meta_vae(config: Mapping[str, Any], is_tiny: bool) -> nn.Module:
    """Build ``AutoencoderKL`` or ``AutoencoderTiny``."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    kind = AutoencoderTiny if is_tiny else AutoencoderKL
    return meta(lambda: kind(**config))


def known_arguments(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a folder's configuration that describes the module.

    Left out, with a word in the log: what begins with ``_``, the dtype of the files, notes of
    training and of other versions.

    Args:
        kind: Name of a class of diffusers, or ``CLIPTextConfig``.
        config: The contents of ``config.json``.
    """
    import diffusers
    import transformers

    found = getattr(diffusers, kind, None) or getattr(transformers, kind)
    names = inspect.signature(found.__init__).parameters
    known = {name: value for name, value in config.items() if name in names and name != "dtype"}
    _LOG.debug("%s: not used: %s", kind, ", ".join(sorted(config.keys() - known.keys())))
    return known
