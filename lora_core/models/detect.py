"""Which model family a UNet belongs to, read from its shapes."""

from collections.abc import Mapping

_FAMILY = {
    # model channels, context width
    (320, 768): "sd15",
    (320, 1024): "sd21",
    (320, 2048): "sdxl",
    (384, 1280): "sdxl-refiner",
}
_INPAINT_CHANNELS = 9  # latent 4 + masked latent 4 + mask 1


def detect_family(unet_shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Name the family of a UNet.

    Args:
        unet_shapes: Canonical (ldm) name -> shape.

    Returns:
        A name of ``BASES``, or None for a model that is none of these.
    """
    first = unet_shapes.get("input_blocks.0.0.weight", ())
    context = (
        shape[1] for name, shape in unet_shapes.items() if name.endswith(".attn2.to_k.weight")
    )
    if len(first) != 4:
        return None
    family = _FAMILY.get((first[0], next(context, 0)))
    return f"{family}-inpaint" if family and first[1] == _INPAINT_CHANNELS else family
