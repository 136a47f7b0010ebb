"""Names that every reader knows: kohya's, with diffusers module names behind them."""

_UNET_PREFIXES = ("unet.base_model.model.", "base_model.model.", "unet.")
_TEXT_ENCODERS = {"text_encoder_2.": "lora_te2_", "text_encoder.": "lora_te1_"}
_UNET_STARTS = (
    *("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out", "conv_norm_out"),
    *("time_embedding.", "add_embedding.", "class_embedding."),
)
_OLD_TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def kohya_key(lora_key: str) -> str:
    """The kohya name of a module that diffusers or PEFT named; other names come back unchanged.

    Source: kohya sd-scripts ``lora.py`` (``lora_unet_``, ``lora_te1_``, ``lora_te2_``).
    """
    for prefix, kohya_prefix in _TEXT_ENCODERS.items():
        if lora_key.startswith(prefix):
            return kohya_prefix + _flat(_text_module(lora_key.removeprefix(prefix)))
    plain = lora_key
    for prefix in _UNET_PREFIXES:
        plain = plain.removeprefix(prefix)
    if plain.startswith(_UNET_STARTS):
        return "lora_unet_" + _flat(_without_processor(plain))
    if plain.startswith(("text_model.", "encoder.layers.")):
        return "lora_te1_" + _flat(_text_module(plain))
    return lora_key


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _text_module(name: str) -> str:
    stem, _, last = name.removeprefix("base_model.model.").rpartition(".")
    last = _OLD_TEXT_PROJECTIONS.get(last, last)
    full = f"{stem}.{last}" if stem else last
    needs_prefix = full.startswith(("encoder.", "embeddings.", "final_layer_norm"))
    return f"text_model.{full}" if needs_prefix else full


def _without_processor(name: str) -> str:
    if ".processor." not in name:
        return name
    name = name.replace(".processor.", ".")
    return name + ".0" if name.endswith(".to_out") else name
