import json
import math

import pytest
from hypothesis import given, settings, strategies as st

from lora_workbench.lora_core.errors import LoraError, UnknownChoiceError
from lora_workbench.lora_core.models.target import Target
from lora_workbench.lora_core.weighting import Weighting


def unet(name):
    return Target(f"model.diffusion_model.{name}", (5, 6), "unet", name)


def text_encoder(name, component="te1"):
    return Target(f"cond_stage_model.transformer.{name}", (5, 6), component, name)


def factor(rules, target):
    return Weighting.parse(rules).factor(target)


SELF_Q = unet("input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight")
CROSS_V = unet("output_blocks.3.1.transformer_blocks.1.attn2.to_v.weight")
FF = unet("middle_block.1.transformer_blocks.0.ff.net.0.proj.weight")
RES_CONV = unet("input_blocks.1.0.in_layers.2.weight")
TE_Q = text_encoder("text_model.encoder.layers.0.self_attn.q_proj.weight")
MODEL = (SELF_Q, CROSS_V, FF, RES_CONV, TE_Q)


# --- rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, "", "  \n", [], "[]"])
def test_no_rule_leaves_every_strength_as_it_is(nothing):
    weighting = Weighting.parse(nothing)
    assert weighting.is_identity
    assert [weighting.factor(target) for target in MODEL] == [1.0] * 5


def test_example_with_blocks_a_part_and_a_glob():
    """IN04 is in IN04-08; attn2 is the later rule for CROSS_V; the glob names FF."""
    rules = "IN04-08=0.5, attn2=0, *.ff.net.0*=0.2"
    assert [factor(rules, target) for target in MODEL] == [0.5, 0.0, 0.2, 1.0, 1.0]


def test_example_with_default_and_a_joined_selector():
    rules = "default=0, OUT03-05 & attn=1"
    assert [factor(rules, target) for target in MODEL] == [0.0, 1.0, 0.0, 0.0, 0.0]


def test_new_lines_separate_rules_as_commas_do():
    assert Weighting.parse("IN04=0.5,\r\nq=2\n\nv=3,") == Weighting.parse("IN04=0.5,q=2,v=3")


def test_the_later_of_two_rules_for_one_target_decides():
    assert factor("attn=0.2, IN04=0.7", SELF_Q) == 0.7
    assert factor("IN04=0.7, attn=0.2", SELF_Q) == 0.2


def test_default_is_for_what_no_rule_names_wherever_it_stands():
    assert factor("default=0, q=0.5", SELF_Q) == factor("q=0.5, default=0", SELF_Q) == 0.5
    assert factor("q=0.5, default=0", FF) == 0.0
    assert factor("default=0, default=0.3", FF) == 0.3


def test_a_star_at_the_end_overrules_what_stands_before():
    assert factor("q=0.5, *=0.25", SELF_Q) == 0.25


def test_all_of_three_joined_selectors_must_hold():
    rules = "unet & IN03-05 & q=0"
    assert [factor(rules, target) for target in MODEL] == [0.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("number", ["-0.75", ".5", "1e-3", "+2", "-100", "100"])
def test_a_factor_is_read_as_written(number):
    assert factor(f"q={number}", SELF_Q) == float(number)


# --- blocks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("select", "name"),
    [
        ("IN00", "input_blocks.0.0.weight"),
        ("in11", "input_blocks.11.0.in_layers.2.weight"),
        ("IN4", "input_blocks.4.0.in_layers.2.weight"),
        ("IN10-IN11", "input_blocks.11.0.in_layers.2.weight"),
        ("m00", "middle_block.2.out_layers.3.weight"),
        ("OUT00-02", "output_blocks.2.1.conv.weight"),
        ("D07", "double_blocks.7.img_attn.qkv.weight"),
        ("s30-37", "single_blocks.37.linear1.weight"),
        ("joint_blocks.03-07", "joint_blocks.5.x_block.attn.qkv.weight"),
        ("Blocks.12", "blocks.12.self_attn.q.weight"),
        ("vace_blocks.12", "VACE_blocks.12.self_attn.q.weight"),
        ("base", "time_embed.0.weight"),
        ("BASE", "out.2.weight"),
    ],
)
def test_a_block_name_selects_its_block(select, name):
    assert factor(f"{select}=0", unet(name)) == 0.0


@pytest.mark.parametrize(
    ("select", "name"),
    [
        ("IN01", "input_blocks.11.0.in_layers.2.weight"),
        ("IN04-08", "output_blocks.4.0.in_layers.2.weight"),
        ("IN04-08", "input_blocks.9.0.in_layers.2.weight"),
        ("M00", "out.2.weight"),
        ("BASE", "middle_block.1.norm.weight"),
        ("D07", "single_blocks.7.linear1.weight"),
        ("blocks.07", "double_blocks.7.img_attn.qkv.weight"),
        ("blocks.07", "vace_blocks.7.self_attn.q.weight"),
        ("layers.00", "input_blocks.0.0.weight"),
    ],
)
def test_a_block_name_leaves_other_blocks_alone(select, name):
    assert factor(f"{select}=0", unet(name)) == 1.0


def test_text_encoders_are_base_and_no_block_of_a_list():
    assert factor("BASE=0", TE_Q) == 0.0
    assert factor("layers.00=0", TE_Q) == 1.0


# --- components and globs --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("select", "factors"),
    [
        *(("te", [0, 0, 0, 1]), ("te1", [0, 1, 1, 1]), ("te2", [1, 0, 1, 1])),
        *(("te3", [1, 1, 0, 1]), ("unet", [1, 1, 1, 0])),
    ],
)
def test_component_names_tell_the_text_encoders_and_the_unet_apart(select, factors):
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    targets = [*(text_encoder(name, te) for te in ("te1", "te2", "te3")), FF]
    assert [factor(f"{select}=0", target) for target in targets] == factors


def test_a_glob_matches_the_storage_name_and_the_canonical_name_whole():
    target = Target("cond.resblocks.0.attn.in_proj_weight", (4, 4), "te1", "layers.0.q_proj.weight")
    assert factor("*in_proj_weight=0", target) == 0.0
    assert factor("*q_proj*=0", target) == 0.0
    assert factor("*q_proj=0", target) == 1.0


def test_a_glob_is_case_sensitive():
    assert factor("*.FF.*=0", FF) == 1.0


# --- parts -----------------------------------------------------------------------------------

BLOCK = "input_blocks.4.1.transformer_blocks.0"
LAYER = "text_model.encoder.layers.3"
PART_EXAMPLES = [
    (unet(f"{BLOCK}.attn1.to_q.weight"), {"attn", "attn1", "q"}),
    (unet(f"{BLOCK}.attn1.to_out.0.bias"), {"attn", "attn1", "out"}),
    (unet(f"{BLOCK}.attn2.to_k.weight"), {"attn", "attn2", "k"}),
    (unet(f"{BLOCK}.attn2.to_v.weight"), {"attn", "attn2", "v"}),
    (unet(f"{BLOCK}.ff.net.0.proj.weight"), {"ff"}),
    (unet(f"{BLOCK}.norm2.weight"), {"norm"}),
    (unet("input_blocks.4.1.norm.weight"), {"norm"}),
    (unet("input_blocks.4.1.proj_in.weight"), {"proj"}),
    (unet("input_blocks.4.1.proj_out.bias"), {"proj"}),
    (unet("input_blocks.0.0.weight"), {"conv"}),
    (unet("input_blocks.3.0.op.weight"), {"conv"}),
    (unet("output_blocks.2.1.conv.weight"), {"conv"}),
    (unet("output_blocks.2.0.skip_connection.weight"), {"conv"}),
    (unet("output_blocks.2.0.out_layers.3.weight"), {"conv"}),
    (unet("output_blocks.2.0.out_layers.0.weight"), {"norm"}),
    (unet("output_blocks.2.0.in_layers.0.weight"), {"norm"}),
    (unet("output_blocks.2.0.emb_layers.1.weight"), {"time"}),
    (unet("time_embed.2.weight"), {"time"}),
    (unet("label_emb.0.0.weight"), {"time"}),
    (unet("out.0.weight"), {"norm"}),
    (unet("out.2.weight"), {"conv"}),
    (text_encoder(f"{LAYER}.self_attn.q_proj.weight"), {"attn", "attn1", "q"}),
    (text_encoder(f"{LAYER}.self_attn.out_proj.bias"), {"attn", "attn1", "out"}),
    (text_encoder(f"{LAYER}.mlp.fc1.weight"), {"ff"}),
    (text_encoder(f"{LAYER}.layer_norm2.weight"), {"norm"}),
    (text_encoder("text_model.final_layer_norm.weight"), {"norm"}),
    (text_encoder("text_model.embeddings.token_embedding.weight"), set()),
    (text_encoder("text_projection.weight", "te2"), set()),
    (unet("double_blocks.0.img_attn.qkv.weight"), {"attn"}),
    (unet("double_blocks.0.txt_attn.proj.weight"), {"attn", "out"}),
    (unet("double_blocks.0.img_mlp.2.weight"), {"ff"}),
    (unet("double_blocks.0.img_mod.lin.weight"), {"time"}),
    (unet("single_blocks.0.linear1.weight"), set()),
    (unet("joint_blocks.0.x_block.attn2.qkv.weight"), {"attn", "attn1"}),
    (unet("joint_blocks.0.context_block.adaLN_modulation.1.weight"), {"time"}),
    (unet("t_embedder.mlp.0.weight"), {"time"}),
    (unet("blocks.0.cross_attn.k.weight"), {"attn", "attn2", "k"}),
]
PARTS = ("attn", "attn1", "attn2", "q", "k", "v", "out", "ff", "proj", "conv", "norm", "time")


@pytest.mark.parametrize(
    ("target", "parts"), PART_EXAMPLES, ids=[target.canonical for target, _ in PART_EXAMPLES]
)
def test_a_weight_belongs_to_exactly_these_parts(target, parts):
    assert {part for part in PARTS if factor(f"{part}=0", target) == 0} == parts


def names_of(shared_data, model):
    tensors = json.loads((shared_data / "models" / f"{model}.json").read_text())["tensors"]
    return [name.removeprefix("diffusion_model.") for name in tensors]


@pytest.mark.parametrize("model", ["sd15", "sd21", "sdxl", "sdxl_refiner"])
def test_every_unet_weight_is_of_one_kind(shared_data, model):
    kinds = [
        Weighting.parse(f"{kind}=0") for kind in ("attn", "ff", "proj", "conv", "norm", "time")
    ]
    for name in names_of(shared_data, f"comfy_{model}_diffusion_model"):
        assert [kind.factor(unet(name)) for kind in kinds].count(0.0) == 1, name


@pytest.mark.parametrize("model", ["clip_l_text", "openclip_bigg_text_sdxl"])
def test_every_weight_of_a_text_encoder_layer_is_of_one_kind(shared_data, model):
    kinds = [Weighting.parse(f"{kind}=0") for kind in PARTS if kind not in ("attn1", *"qkv", "out")]
    layers = [name for name in names_of(shared_data, f"transformers_{model}") if ".layers." in name]
    assert layers
    for name in layers:
        assert [kind.factor(text_encoder(name)) for kind in kinds].count(0.0) == 1, name


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_attention_is_self_or_cross_and_has_four_matrices(shared_data, model):
    for name in names_of(shared_data, f"comfy_{model}_diffusion_model"):
        inside = factor("attn=0", unet(name)) == 0
        sides = [factor(f"{part}=0", unet(name)) for part in ("attn1", "attn2")].count(0.0)
        matrices = [factor(f"{part}=0", unet(name)) for part in ("q", "k", "v", "out")].count(0.0)
        assert sides == matrices == inside, name


# --- number lists ------------------------------------------------------------------------------


def names(prefix, *numbers):
    return [f"{prefix}{number:02}" for number in numbers]


ALL_26 = ["BASE", *names("IN", *range(12)), "M00", *names("OUT", *range(12))]
MEMBERS = {
    12: ["BASE", *names("IN", 4, 5, 7, 8), "M00", *names("OUT", *range(6))],
    17: ["BASE", *names("IN", 1, 2, 4, 5, 7, 8), "M00", *names("OUT", *range(3, 12))],
    20: ["BASE", *names("IN", *range(9)), "M00", *names("OUT", *range(9))],
    26: ALL_26,
}


def target_in(block):
    if block == "BASE":
        return TE_Q
    if block == "M00":
        return FF
    side, number = block.rstrip("0123456789"), int(block[-2:])
    return unet(f"{'input' if side == 'IN' else 'output'}_blocks.{number}.0.in_layers.2.weight")


@pytest.mark.parametrize("length", MEMBERS)
def test_a_number_list_gives_each_block_its_own_number_and_the_rest_zero(length):
    """The number at position i is i + 1, so a shifted or swapped block shows."""
    weighting = Weighting.parse(", ".join(str(i + 1) for i in range(length)))
    expected = {block: float(i + 1) for i, block in enumerate(MEMBERS[length])}
    found = {block: weighting.factor(target_in(block)) for block in ALL_26}
    assert found == {block: expected.get(block, 0.0) for block in ALL_26}


def test_a_number_list_covers_the_unet_outside_its_blocks_with_base():
    assert factor([0.5] + [0] * 16, unet("time_embed.0.weight")) == 0.5


def test_a_number_list_is_the_same_as_text_as_json_text_and_as_a_list():
    numbers = [1, 0, 0.5, *[0] * 13, 1]
    text = ",".join(map(str, numbers))
    assert Weighting.parse(text) == Weighting.parse(f"[{text}]") == Weighting.parse(numbers)


@pytest.mark.parametrize("length", [1, 11, 16, 19, 21, 27, 61])
def test_a_number_list_of_another_length_names_the_accepted_lengths(length):
    with pytest.raises(LoraError, match=f"{length} block factors(.|\n)*12(.|\n)*17.*20.*26"):
        Weighting.parse(",".join(["1"] * length))


@pytest.mark.parametrize("letter", "RUABruab")
def test_inspire_letters_are_refused_by_name(letter):
    with pytest.raises(LoraError, match=f"letter '{letter}' is not supported"):
        Weighting.parse(",".join(["1"] * 16 + [letter]))


def test_a_comma_after_the_last_number_adds_no_number():
    assert Weighting.parse("1," * 12) == Weighting.parse([1] * 12)


def test_a_gap_in_a_number_list_is_not_skipped():
    with pytest.raises(LoraError, match="'' is not a number"):
        Weighting.parse("1,,0,0,0,0,0,0,0,0,0,0,0")


# --- round trips ---------------------------------------------------------------------------------

TERMS = [
    *("base", "in04-08", "M00", "OUT03-OUT5", "D00-18", "s7", "blocks.3", "joint_blocks.03-07"),
    *("te", "te1", "te2", "te3", "unet", "*", "*.ff.*", "[ab]*", "{*", "*.to_[qk].weight", *PARTS),
]
SELECTS = st.lists(st.sampled_from(TERMS), min_size=1, max_size=3).map("&".join)
FACTORS = st.floats(-100, 100) | st.integers(-100, 100)
ENTRIES = st.lists(
    st.fixed_dictionaries({"select": SELECTS | st.just("default"), "factor": FACTORS}), max_size=5
)


@settings(deadline=None, derandomize=True)
@given(entries=ENTRIES)
def test_text_and_json_read_back_to_an_equal_weighting(entries):
    weighting = Weighting.parse(entries)
    for written in (weighting.to_text(), weighting.to_json()):
        again = Weighting.parse(written)
        assert again == weighting
        assert hash(again) == hash(weighting)
        assert again.to_text() == weighting.to_text()


@pytest.mark.parametrize("glob", ["[mx]odel*", "{*"])
def test_rule_text_that_begins_with_a_bracket_is_not_taken_for_json(glob):
    assert Weighting.parse(f"{glob}=0.5").to_text() == f"{glob}=0.5"


def test_canonical_text_worked_example():
    weighting = Weighting.parse("in4-8 =.50\n attn2&out5 = 1e0, default=-0")
    assert weighting.to_text() == "default=0, IN04-08=0.5, attn2 & OUT05=1"
    assert json.loads(weighting.to_json()) == [
        {"select": "default", "factor": 0.0},
        {"select": "IN04-08", "factor": 0.5},
        {"select": "attn2 & OUT05", "factor": 1.0},
    ]


def test_one_meaning_written_two_ways_is_one_cache_key():
    assert (
        len({Weighting.parse("in4=0.50"), Weighting.parse('[{"select":"IN04","factor":5e-1}]')})
        == 1
    )
    assert Weighting.parse("q=-0").to_json() == Weighting.parse("q=0").to_json()
    assert len({Weighting.parse("IN04=0.5"), Weighting.parse("IN04=0.25")}) == 2


@pytest.mark.parametrize(
    ("rules", "identity"), [("IN04=1, te=1", True), ("default=0, *=1", False), ("q=0.5", False)]
)
def test_identity_means_that_every_factor_is_one(rules, identity):
    assert Weighting.parse(rules).is_identity is identity


# --- rules that name nothing ----------------------------------------------------------------------


def test_rules_that_name_no_target_are_listed_in_order():
    weighting = Weighting.parse("default=0, in11=0.5, attn2=0, D03=1, te2 & q=2, *.nothing.*=0")
    assert weighting.unmatched_rules(iter(MODEL)) == [
        "IN11=0.5",
        "D03=1",
        "te2 & q=2",
        "*.nothing.*=0",
    ]


def test_zeros_of_a_number_list_are_no_unmatched_rules():
    """A full list on SDXL: only the blocks that SDXL lacks and that are not 0 are worth a word."""
    numbers = ["0"] * 26
    numbers[ALL_26.index("IN04")] = numbers[ALL_26.index("OUT11")] = "1"
    assert Weighting.parse(",".join(numbers)).unmatched_rules(MODEL) == ["OUT11=1"]


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "near"),
    [("attn3", "attn"), ("IN12", "IN"), ("OUT", "OUT"), ("te4", "te"), ("Attn2", "attn2")],
)
def test_an_unknown_selector_is_named_with_its_rule_and_a_near_match(selector, near):
    with pytest.raises(UnknownChoiceError) as caught:
        Weighting.parse(f"q=1, {selector}=0.5")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"Unknown selector '{selector}'."
    assert lines[1] == f"  Rule: {selector}=0.5"
    assert lines[-1].startswith(f"Fix: use '{near}")
    assert "glob over weight names needs a '*'" in lines[-1]


@pytest.mark.parametrize(
    "selector",
    ["", "q &", "M01", "IN05-OUT05", "double_blocks.0.img_attn", "IN04=0.5 *.ff.*", "default & q"],
)
def test_what_is_no_selector_is_refused(selector):
    with pytest.raises(UnknownChoiceError, match="Unknown selector"):
        Weighting.parse(f"{selector}=0.5")


@pytest.mark.parametrize("select", ["IN04, IN05", "a*,b*", "*=1", "a*\nb*"])
def test_a_json_selector_holds_one_selector(select):
    with pytest.raises(UnknownChoiceError, match="Unknown selector"):
        Weighting.parse([{"select": select, "factor": 1}])


def test_a_backward_range_says_what_to_write():
    with pytest.raises(LoraError, match=r"ends before it begins(.|\n)*write 'IN04-08'"):
        Weighting.parse("IN08-04=0")


def test_a_rule_without_a_factor_is_named():
    with pytest.raises(LoraError, match="Rule 'IN04' has no factor"):
        Weighting.parse("IN04")


def test_a_decimal_comma_is_explained():
    with pytest.raises(LoraError, match=r"Rule '5' has no factor(.|\n)*decimal point"):
        Weighting.parse("IN04=0,5")


@pytest.mark.parametrize("number", ["", "nan", "inf", "half", "1_0", "0x1", "１"])
def test_what_is_no_number_is_named_with_its_rule(number):
    with pytest.raises(LoraError, match=f"'{number}' is not a number(.|\n)*Rule: IN04={number}"):
        Weighting.parse(f"IN04={number}")


@pytest.mark.parametrize("number", ["100.5", "-101", "1e999"])
def test_a_factor_out_of_range_is_named_with_its_rule(number):
    with pytest.raises(LoraError, match=f"out of range(.|\n)*IN04={number}(.|\n)*-100 to 100"):
        Weighting.parse(f"IN04={number}")


@pytest.mark.parametrize("number", [math.nan, math.inf, 10**400, True, "0.5", None])
def test_json_factors_obey_the_same_limits(number):
    with pytest.raises(LoraError, match=r"out of range|not a number"):
        Weighting.parse([{"select": "q", "factor": number}])


@pytest.mark.parametrize("text", ['[{"select": "q",]', "[" * 100_000 + "]", "{'q': 1}"])
def test_damaged_json_is_an_error_of_ours(text):
    with pytest.raises(LoraError, match="not valid JSON"):
        Weighting.parse(text)


@pytest.mark.parametrize(
    "value",
    [
        '{"q": 1}',
        0.5,
        {"q": 1},
        [{"select": "q"}],
        [{"select": 3, "factor": 1}],
        [{"select": "q", "factor": 1, "strength": 2}],
        [1, {"select": "q", "factor": 1}],
    ],
)
def test_another_form_is_refused_with_the_form_that_is_read(value):
    with pytest.raises(LoraError, match=r'no form that is read(.|\n)*"select": "IN04-08"'):
        Weighting.parse(value)
