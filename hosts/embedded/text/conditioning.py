"""From a prompt to what the UNet reads: states of the text encoders, and a pooled vector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..parts import EncoderName, TextPart
from .tokenizer import END, Tokenizer, clip_tokenizer
from .tokens import Token, empty_chunk, tokenize


@dataclass(frozen=True, eq=False)
class Conditioning:
    """An encoded prompt, on the encoders' device.

    Attributes:
        states: ``(1, 77 * chunks, width)``, float32; width is the sum over the encoders.
        pooled: ``(1, width)``, float32, of the last encoder; None where the model has no
            projection that it is defined by (SD2 from a diffusers folder, whose UNet needs none).
    """

    states: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class _Reading:
    """How a model family reads a CLIP encoder.

    Attributes:
        layer: Whose output is read, from the end: -1 is the last.
        is_normed: Whether the final layer norm follows, whichever layer is read.
        is_projected: Whether the pooled vector goes through the text projection.
    """

    layer: int
    is_normed: bool
    is_projected: bool


# By the encoders of the model. Source: ComfyUI 0.30; arXiv:2307.01952, section 2.1, for SDXL.
_READINGS: Mapping[tuple[EncoderName, ...], Mapping[EncoderName, _Reading]] = MappingProxyType(
    {
        ("l",): {"l": _Reading(-1, is_normed=True, is_projected=False)},
        ("h",): {"h": _Reading(-2, is_normed=True, is_projected=True)},
        ("l", "g"): {
            "l": _Reading(-2, is_normed=False, is_projected=False),
            "g": _Reading(-2, is_normed=False, is_projected=True),
        },
        ("g",): {"g": _Reading(-2, is_normed=False, is_projected=True)},
    }
)


def encode(
    part: TextPart, text: str, clip_skip: int | None = None, tokenizer: Tokenizer | None = None
) -> Conditioning:
    """``encode_for_training`` without gradients."""
    with torch.no_grad():
        return encode_for_training(part, text, clip_skip, tokenizer)


def encode_for_training(
    part: TextPart, text: str, clip_skip: int | None = None, tokenizer: Tokenizer | None = None
) -> Conditioning:
    """Encode a prompt, with the gradients of the encoders' trainable parameters.

    Args:
        part: The encoders.
        text: With weights such as ``(word:1.2)``; any length.
        clip_skip: The layer to read, -1 for the last, as CLIPSetLastLayer counts. None is the
            family's own, and so is a layer that an encoder does not have.
        tokenizer: CLIP's; None finds it, as the last resort beside the model.

    Raises:
        LoraError: the prompt names an embedding or is no valid Unicode, or no tokenizer is
            installed.
    """
    tokenizer = tokenizer or clip_tokenizer(part.tokenizer)
    readings = _READINGS[tuple(part.encoders)]
    states, pooled = [], None
    for name, encoder in part.encoders.items():
        chunks = tokenize(text, name, tokenizer)
        found, pooled = _encode_with(encoder, readings[name], name, chunks, clip_skip)
        states.append(found)
    return Conditioning(torch.cat(states, dim=-1), pooled)


def _encode_with(
    encoder: nn.Module,
    reading: _Reading,
    name: EncoderName,
    chunks: Sequence[Sequence[Token]],
    clip_skip: int | None,
) -> tuple[Tensor, Tensor | None]:
    """States ``(1, 77 * chunks, width)`` and the pooled vector ``(1, width)`` of one encoder."""
    weights = torch.tensor([[token.weight for token in chunk] for chunk in chunks])
    is_weighted = bool((weights != 1).any())
    read = [*chunks, empty_chunk(name)] if is_weighted else chunks
    device = next(encoder.parameters()).device
    ids = torch.tensor([[token.id for token in chunk] for chunk in read], device=device)

    output = encoder(input_ids=ids, output_hidden_states=True)
    # One more than there are layers: the first are the embeddings.
    depth = len(output.hidden_states) - 1
    states = output.hidden_states[_layer(reading, name, depth, clip_skip)]
    if reading.is_normed:
        # transformers: 5 has it on the encoder itself where there is no projection.
        states = getattr(encoder, "text_model", encoder).final_layer_norm(states)
    states = states.float()  # (n, 77, width)
    if is_weighted:
        states = _weighted(states[:-1], states[-1], weights.to(device))
    pooled = _pooled(encoder, output.last_hidden_state, chunks[0], reading.is_projected)
    return states.reshape(1, -1, states.shape[-1]), pooled


def _layer(reading: _Reading, name: EncoderName, depth: int, clip_skip: int | None) -> int:
    """The layer to read, counted from the end of an encoder of ``depth`` layers.

    SD2's folders of diffusers leave out the last of 24 layers, which SD2 does not read.
    """
    missing = 1 if name == "h" and depth == 23 else 0
    wanted = (reading.layer if clip_skip is None else clip_skip) + missing
    return wanted if -depth <= wanted < 0 else reading.layer + missing


def _weighted(states: Tensor, empty: Tensor, weights: Tensor) -> Tensor:
    """Move states away from those of the empty prompt, or towards them.

    Args:
        states: ``(n, 77, width)``.
        empty: ``(77, width)``.
        weights: ``(n, 77)``; where one is exactly 1 the states come back bit for bit.
    """
    weights = weights[..., None]  # (n, 77, 1)
    return torch.where(weights == 1, states, (states - empty) * weights + empty)


def _pooled(
    encoder: nn.Module, last: Tensor, chunk: Sequence[Token], is_projected: bool
) -> Tensor | None:
    """What the last layer holds at the first end token of the first chunk; no weight changes it."""
    end = next(index for index, token in enumerate(chunk) if token.id == END)
    pooled = last[:1, end]  # (1, width)
    if not is_projected:
        return pooled.float()
    projection = getattr(encoder, "text_projection", None)
    return None if projection is None else projection(pooled).float()
