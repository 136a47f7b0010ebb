"""Which weights are trained, and with what rank, alpha and rate."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ..lora_core.errors import LoraError
from ..lora_core.models.target import Target
from ..lora_core.weighting.selectors import Selector, parse_selector
from .config import AdapterConfig, TargetRule
from .kinds import LYCORIS, oft_blocks, require_library, role_sizes

_TRAINED_TYPES = (nn.Linear, nn.Conv2d)
_FULL_LOKR = {"lokr_w1", "lokr_w2"}


@dataclass(frozen=True)
class TrainedTarget:
    """One module that gets factors.

    Attributes:
        component: ``"unet"``, ``"te1"`` or ``"te2"``.
        module: Its name in the component's live module.
        target: Its weight.
        rank: Columns of its factors.
        alpha: As PEFT counts it: the scale is alpha / rank, or alpha / sqrt(rank) for rsLoRA.
        rate: Its learning rate, or None for the run's.
    """

    component: str
    module: str
    target: Target
    rank: int
    alpha: float
    rate: float | None


def choose_targets(
    parts: Mapping[str, nn.Module],
    weights: Mapping[str, Mapping[str, Target]],
    config: AdapterConfig,
) -> tuple[TrainedTarget, ...]:
    """The modules that a run trains, in the order of the model.

    Args:
        parts: Live module of each component.
        weights: For each component, name of a module to its weight.
        config: The run's.

    Raises:
        LoraError: nothing is selected, a selector or rule names nothing, or a weight cannot be
            trained.
    """
    trainable = {
        component: {
            module: target
            for module, target in modules.items()
            if isinstance(parts[component].get_submodule(module), _TRAINED_TYPES)
        }
        for component, modules in weights.items()
    }
    return chosen_weights(trainable, config)


def chosen_weights(
    weights: Mapping[str, Mapping[str, Target]], config: AdapterConfig
) -> tuple[TrainedTarget, ...]:
    """``choose_targets`` among weights that all can be trained."""
    asked = [("targets", config.targets, "unet"), ("text_encoder", config.text_encoder, "te")]
    chosen: dict[tuple[str, str], Target] = {}
    for option, texts, prefix in asked:
        ours = {
            (component, module): target
            for component, modules in weights.items()
            if component.startswith(prefix)
            for module, target in modules.items()
        }
        for text in texts:
            found = {key for key, target in ours.items() if _matches(_selectors(text), target)}
            if not found and not (option == "targets" and texts == AdapterConfig.targets):
                raise _nothing(option, text, ours.values())
            chosen |= {key: ours[key] for key in ours if key in found}
    order = [(component, module) for component in weights for module in weights[component]]
    targets = [_trained(*key, chosen[key], config) for key in order if key in chosen]
    _refuse_idle_rules(config.rules, targets)
    kept = tuple(target for target in targets if target.rank > 0)
    if not kept:
        raise LoraError(
            "Nothing is trained.",
            {"Targets": ", ".join(config.targets) or "none", "Rules": len(config.rules)},
            "name targets, for example attn and ff.",
        )
    if config.method in LYCORIS:
        require_library(config.method)
        _refuse_idle_options(config, kept)
    if config.method == "oft" and not config.rescale:
        _refuse_blocks_of_one(kept)
    return kept


def _trained(component: str, module: str, target: Target, config: AdapterConfig) -> TrainedTarget:
    if target.rows is not None or target.transposed:
        raise LoraError(
            f"{target.canonical} is part of a fused weight, which cannot be trained by itself.",
            {"Stored in": target.target_key},
            "load the model in ComfyUI or as a diffusers folder, which keep it apart.",
        )
    rank, ratio, rate = config.rank, (config.alpha or config.rank) / config.rank, None
    alpha: float | None = None
    for rule in config.rules:
        if _matches(_selectors(rule.select), target):
            rank = rank if rule.rank is None else rule.rank
            alpha = alpha if rule.alpha is None else rule.alpha
            rate = rate if rule.rate is None else rule.rate
    return TrainedTarget(component, module, target, rank, alpha or ratio * rank, rate)


def _selectors(text: str) -> tuple[Selector, ...]:
    return parse_selector(text, text)


def _matches(selectors: Iterable[Selector], target: Target) -> bool:
    return all(selector.matches(target) for selector in selectors)


def _nothing(option: str, text: str, targets: Iterable[Target]) -> LoraError:
    some = sorted(target.canonical for target in targets)[:3]
    return LoraError(
        f"{option}: {text!r} names no weight of this model.",
        {"Weights": ", ".join(some) or "none of this kind"},
        "take the selector out, or choose another.",
    )


def _refuse_idle_rules(rules: Iterable[TargetRule], targets: Iterable[TrainedTarget]) -> None:
    for rule in rules:
        selectors = _selectors(rule.select)
        if not any(_matches(selectors, trained.target) for trained in targets):
            raise LoraError(
                f"The rule {rule.select!r} names no trained weight.",
                {},
                "take the rule out, or add its weights to the targets.",
            )


def _refuse_idle_options(config: AdapterConfig, targets: Sequence[TrainedTarget]) -> None:
    """Options of LyCORIS that no target has a use for."""
    roles = [set(role_sizes(t.target.shape, t.rank, config)) for t in targets]
    is_full = all(own == _FULL_LOKR for own in roles)
    has_core = any("hada_t1" in own for own in roles)
    has_two = any("lokr_w1_a" in own for own in roles)
    for name, is_set, acts, needs in (
        ("tucker", config.tucker, has_core, "convolutions of more than one place"),
        ("decompose_both", config.decompose_both, has_two, "first matrices larger than the rank"),
        ("alpha", config.alpha not in (None, config.rank), not is_full, "matrices of low rank"),
    ):
        if is_set and not acts:
            raise LoraError(
                f"adapter.{name} would do nothing.",
                {"Method": config.method, "Rank": config.rank, "Needs": needs},
                f"leave adapter.{name} out, or change rank and targets.",
            )
    for rule in config.rules:
        selectors = _selectors(rule.select)
        own = [has for t, has in zip(targets, roles, strict=True) if _matches(selectors, t.target)]
        if rule.alpha is not None and own and all(has == _FULL_LOKR for has in own):
            raise LoraError(
                f"The alpha of the rule {rule.select!r} would do nothing.",
                {"Method": config.method, "Needs": "matrices of low rank"},
                "leave it out, or give the rule a smaller rank.",
            )


def _refuse_blocks_of_one(targets: Iterable[TrainedTarget]) -> None:
    """A block of one output cannot be turned."""
    for trained in targets:
        outputs = trained.target.shape[0]
        size, _ = oft_blocks(outputs, trained.rank)
        if size == 1:
            raise LoraError(
                f"OFT would learn nothing of {trained.target.canonical}.",
                {"Outputs": outputs, "Rank": trained.rank, "Outputs that are turned together": 1},
                "take a smaller rank that divides the outputs, or leave this weight out.",
            )
