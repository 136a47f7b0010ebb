"""LoRA Schedule: our stack as ComfyUI's hooks, in ComfyUI's own nodes and samplers."""

import asyncio
import copy

import pytest
import torch

from .checkpoints import SLIM, attention_targets, lora_targets, write_lora
from .conftest import NodeFailedError, PromptRejectedError, node, same_values, text_to_image

STRENGTHS = (0.8, 0.6)


@pytest.fixture(scope="module", autouse=True)
def core_hook_nodes(comfy):
    """ComfyUI's own hook nodes, which its base set leaves out."""
    import nodes

    file = comfy.root / "comfy_extras" / "nodes_hooks.py"
    asyncio.run(nodes.load_custom_node(str(file), module_parent="comfy_extras"))


@pytest.fixture(scope="module")
def executor(comfy):
    """One for all tests here: the checkpoint is loaded once."""
    return comfy.new_executor()


@pytest.fixture(scope="module")
def loras(comfy, slim_checkpoint):
    """A kohya file and a PEFT file, whose UNet names ComfyUI's own hook drops."""
    targets = lora_targets(SLIM)
    write_lora(comfy.loras_dir / "kohya.safetensors", targets, seed=1)
    peft = comfy.loras_dir / "peft.safetensors"
    write_lora(peft, attention_targets(targets), seed=2, naming="peft", rank=8)
    return ["kohya.safetensors", "peft.safetensors"]


@pytest.fixture(scope="module")
def models(comfy, slim_checkpoint):
    """The slim checkpoint's MODEL and CLIP."""
    import nodes

    return nodes.CheckpointLoaderSimple().load_checkpoint(slim_checkpoint)[:2]


@pytest.fixture(scope="module")
def stack(comfy, loras):
    """Our LORA_STACK of both files, the second with a weighting."""
    load = our_node("LoraWorkbenchLoad")
    first, _, _ = load().execute(loras[0], *STRENGTHS)
    both, _, _ = load().execute(loras[1], 0.5, 0.5, lora_stack=first, weighting="attn2=0.3")
    return both


def our_node(node_id):
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[node_id]


def hooks_of(stack, schedule=""):
    return our_node("LoraWorkbenchHooks")().execute(stack, schedule)["result"][0]


def parameters(patcher):
    return {key: value.clone() for key, value in patcher.model.state_dict().items()}


def changed(before, after):
    return {key for key in before if not same_values(before[key], after[key])}


def loaded(patcher):
    """The weights that a patcher samples with."""
    from comfy import model_management

    model_management.load_models_gpu([patcher])
    return parameters(patcher)


def hooked(patcher, hooks, clip=False, strength=None):
    """The weights while ``hooks`` are on a patcher, as a sampler or an encoder puts them on."""
    from comfy import hooks as core

    target = core.EnumWeightTarget.Clip if clip else core.EnumWeightTarget.Model
    clone = patcher.clone()
    if strength is not None:
        keyframes = core.HookKeyframeGroup()
        keyframes.add(core.HookKeyframe(strength))
        hooks = hooks.clone()
        hooks.set_keyframes_on_hooks(keyframes)
    clone.register_all_hook_patches(hooks, core.create_target_dict(target))
    loaded(clone)
    clone.apply_hooks(hooks)
    weights = parameters(clone)
    clone.clean_hooks()
    return weights


def test_a_hook_at_factor_1_gives_the_bits_of_apply(models, stack):
    """Patched weights of model and text encoders: every key, every weighting, every strength."""
    model, clip = models
    base, base_clip = loaded(model), loaded(clip.patcher)
    hooks = hooks_of(stack)
    with_hooks, clip_with_hooks = hooked(model, hooks), hooked(clip.patcher, hooks, clip=True)
    applied = our_node("LoraWorkbenchApply")().execute(model, "[]", clip, stack)["result"]
    assert changed(loaded(applied[0]), with_hooks) == set()
    assert changed(loaded(applied[1].patcher), clip_with_hooks) == set()
    targets = {target.target_key for target in lora_targets(SLIM)}
    assert changed(base, with_hooks) | changed(base_clip, clip_with_hooks) == targets


def test_hooks_combine_in_one_rounding(models, loras):
    """Two hooks of one LoRA each against one hook of both: equal but for float32's rounding."""
    model, _ = models
    load = our_node("LoraWorkbenchLoad")
    first, second = (load().execute(name, 0.5, 0.5)[0] for name in loras)
    combine = our_node("CombineHooks2")()
    (both,) = combine.combine_hooks(hooks_A=hooks_of(first), hooks_B=hooks_of(second))
    one, two = hooked(model, hooks_of([*first, *second])), hooked(model, both)
    for key in changed(loaded(model), one):
        torch.testing.assert_close(two[key].float(), one[key].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda hooks: hooks.clone()])
def test_a_copy_of_the_hooks_applies_the_same(models, stack, copied):
    """Core clones hooks wherever it passes them on."""
    model, _ = models
    hooks = hooks_of(stack)
    assert changed(hooked(model, hooks), hooked(model, copied(hooks))) == set()


def test_a_clone_is_the_same_hook_to_comfyui(stack):
    hooks = hooks_of(stack)
    assert len(hooks.clone_and_combine(hooks.clone())) == 1
    assert len(hooks.clone_and_combine(hooks_of(stack))) == 2


@pytest.mark.parametrize("steps", [3, 20])
def test_each_step_has_the_factor_of_its_share(models, stack, steps):
    """A ramp of more keyframes than steps does not lag: the factor is that of the schedule."""
    sampling = models[0].model.model_sampling
    (hook,) = hooks_of(stack, "0=0, 20%=0.5, 0.3-0.7=1..2 in 11, 0.9=-1").hooks
    ramp = [(0.3 + 0.04 * number, 1 + 0.1 * number) for number in range(11)]
    schedule = [(0.0, 0.0), (0.2, 0.5), *ramp, (0.9, -1.0)]
    hook.initialize_timesteps(models[0].model)
    shares = [number / steps + 0.001 for number in range(steps)]
    sigmas = torch.tensor([sampling.percent_to_sigma(share) for share in shares])
    for share, sigma in zip(shares, sigmas, strict=True):
        hook.hook_keyframe.prepare_current_keyframe(sigma, {"sample_sigmas": sigmas})
        wanted = [factor for start, factor in schedule if start <= share][-1]
        assert hook.strength == pytest.approx(wanted)


def test_the_base_comes_back_bit_for_bit(models, stack):
    model, _ = models
    before = loaded(model)
    assert changed(before, hooked(model, hooks_of(stack)))
    assert changed(before, parameters(model)) == set()


def test_factors_multiply_strengths(models, stack):
    """In float32, at factor 0.25: the change is a quarter, to rounding."""
    model, _ = models
    base, hooks = loaded(model), hooks_of(stack)
    full, quarter = hooked(model, hooks), hooked(model, hooks, strength=0.25)
    for key in changed(base, full):
        if base[key].dtype == torch.float32:
            wanted = base[key].double() + 0.25 * (full[key].double() - base[key].double())
            torch.testing.assert_close(quarter[key].double(), wanted, rtol=1e-5, atol=1e-6)


def test_factor_0_leaves_every_bit(models, stack):
    model, _ = models
    assert changed(loaded(model), hooked(model, hooks_of(stack), strength=0.0)) == set()


def scheduled(checkpoint, loras, schedule, steps=1, clip=("checkpoint", 1), **extra):
    """Text to image with the schedule of both LoRAs on both prompts."""
    rows = "".join(f"<lora:{name}:0.8:0.6>" for name in loras)
    graph = text_to_image(checkpoint, clip=clip, steps=steps, extra=extra)
    graph["stack"] = node("LoraWorkbenchStack", rows=rows)
    graph["hooks"] = node("LoraWorkbenchHooks", lora_stack=["stack", 0], schedule=schedule)
    for prompt in ("positive", "negative"):
        graph[f"hooked {prompt}"] = node(
            "ConditioningSetProperties",
            cond_NEW=[prompt, 0],
            strength=1.0,
            set_cond_area="default",
            hooks=["hooks", 0],
        )
        graph["sampler"]["inputs"][prompt] = [f"hooked {prompt}", 0]
    return graph


def applied(checkpoint, loras, clip=True):
    """Text to image with both LoRAs through Apply."""
    rows = "".join(f"<lora:{name}:0.8:0.6>" for name in loras)
    inputs = {"model": ["checkpoint", 0], "rows": rows}
    inputs |= {"clip": ["checkpoint", 1]} if clip else {}
    encoder = ("apply", 1) if clip else ("checkpoint", 1)
    extra = {"apply": node("LoraWorkbenchApply", **inputs)}
    return text_to_image(checkpoint, model=("apply", 0), clip=encoder, extra=extra)


def picture(result):
    (path,) = result.pictures
    return path.read_bytes()


def test_the_model_alone_samples_as_apply(executor, slim_checkpoint, loras):
    hooks = picture(executor.run(scheduled(slim_checkpoint, loras, "")))
    assert hooks == picture(executor.run(applied(slim_checkpoint, loras, clip=False)))
    assert hooks != picture(executor.run(text_to_image(slim_checkpoint)))


@pytest.mark.parametrize("follows", [False, True])
def test_model_and_text_encoders_sample_as_apply(executor, slim_checkpoint, loras, follows):
    """Through Set CLIP Hooks, which puts the hooks on the prompts too."""
    clip = node(
        "SetClipHooks",
        clip=["checkpoint", 1],
        apply_to_conds=True,
        schedule_clip=follows,
        hooks=["hooks", 0],
    )
    graph = scheduled(slim_checkpoint, loras, "0=1", clip=("clip hooks", 0), **{"clip hooks": clip})
    graph["sampler"]["inputs"] |= {"positive": ["positive", 0], "negative": ["negative", 0]}
    assert picture(executor.run(graph)) == picture(executor.run(applied(slim_checkpoint, loras)))


def test_factor_0_throughout_samples_as_the_base(executor, slim_checkpoint, loras):
    base = picture(executor.run(text_to_image(slim_checkpoint)))
    assert picture(executor.run(scheduled(slim_checkpoint, loras, "0=0"))) == base


def test_a_span_at_0_has_the_prediction_of_the_base(executor, slim_checkpoint, loras):
    """The first of two steps is the base's; the second is not."""
    base = text_to_image(slim_checkpoint, steps=2)
    hooks = scheduled(slim_checkpoint, loras, "0=0, 50%=1", steps=2)
    assert picture(executor.run(first_step(hooks))) == picture(executor.run(first_step(base)))
    assert picture(executor.run(hooks)) != picture(executor.run(base))
    late = scheduled(slim_checkpoint, loras, "50%=0", steps=2)
    full = scheduled(slim_checkpoint, loras, "", steps=2)
    assert picture(executor.run(first_step(late))) == picture(executor.run(first_step(full)))
    assert picture(executor.run(late)) != picture(executor.run(full))


def first_step(graph):
    """The graph, sampled to the end of its first step."""
    inputs = {**graph["sampler"]["inputs"], "add_noise": "enable", "noise_seed": 7}
    inputs |= {"start_at_step": 0, "end_at_step": 1, "return_with_leftover_noise": "enable"}
    del inputs["seed"], inputs["denoise"]
    return graph | {"sampler": node("KSamplerAdvanced", **inputs)}


def test_core_keyframes_replace_the_schedule(executor, slim_checkpoint, loras):
    graph = scheduled(slim_checkpoint, loras, "0=0")
    graph["keyframe"] = node("CreateHookKeyframe", strength_mult=1.0, start_percent=0.0)
    graph["keyed"] = node("SetHookKeyframes", hooks=["hooks", 0], hook_kf=["keyframe", 0])
    for prompt in ("positive", "negative"):
        graph[f"hooked {prompt}"]["inputs"]["hooks"] = ["keyed", 0]
    constant = picture(executor.run(scheduled(slim_checkpoint, loras, "")))
    assert picture(executor.run(graph)) == constant


def test_a_second_run_patches_no_weight_of_the_model_again(
    comfy, executor, slim_checkpoint, adapter_calls
):
    """Under the hooks lies a LoRA on other weights; a run with hooks leaves it in place."""
    targets = lora_targets(SLIM)
    below = attention_targets(targets)
    write_lora(comfy.loras_dir / "below.safetensors", below, seed=3)
    above = [target for target in targets if target not in below]
    write_lora(comfy.loras_dir / "above.safetensors", above, seed=4)
    apply = node("LoraWorkbenchApply", model=["checkpoint", 0], rows="<lora:below:1:0>")
    graph = scheduled(slim_checkpoint, ["above"], "", apply=apply)
    graph["sampler"]["inputs"]["model"] = ["apply", 0]
    unet = {t.target_key for t in below if t.target_key.startswith("diffusion_model.")}
    executor.run(graph)
    assert unet <= set(adapter_calls)
    adapter_calls.clear()
    graph["sampler"]["inputs"]["seed"] = 8
    executor.run(graph)
    assert adapter_calls
    assert not unet & set(adapter_calls)


def test_an_empty_stack_changes_nothing(executor, slim_checkpoint):
    base = picture(executor.run(text_to_image(slim_checkpoint)))
    assert picture(executor.run(scheduled(slim_checkpoint, [], "0.5=0"))) == base


def test_a_lora_for_another_base_is_an_error_before_sampling(comfy, executor, slim_checkpoint):
    from safetensors.torch import save_file

    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    factors = {
        f"{name}.lora_down.weight": torch.ones(4, 7),
        f"{name}.lora_up.weight": torch.ones(9, 4),
    }
    save_file(factors, comfy.loras_dir / "foreign.safetensors")
    with pytest.raises(NodeFailedError, match=r"foreign\.safetensors is") as caught:
        executor.run(scheduled(slim_checkpoint, ["foreign"], ""))
    assert caught.value.node_id == "sampler"


def test_an_unreadable_schedule_is_refused_when_the_graph_is_queued(
    executor, slim_checkpoint, loras
):
    with pytest.raises(PromptRejectedError, match="cannot be read"):
        executor.run(scheduled(slim_checkpoint, loras, "0.5"))


def test_gguf_weights_are_refused_by_name(models, stack):
    from comfy.model_patcher import ModelPatcher

    patcher = models[0].clone()
    patcher.__class__ = type("GGUFModelPatcher", (ModelPatcher,), {})
    with pytest.raises(ValueError, match="GGUF"):
        hooked(patcher, hooks_of(stack))
