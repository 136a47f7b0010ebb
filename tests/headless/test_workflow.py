"""Reading graph files, and turning workflows into prompts; tests/web compares with the frontend."""

import json
import random
import re

import pytest
from PIL import Image, PngImagePlugin

from lora_workbench.headless.workflow.convert import to_api
from lora_workbench.headless.workflow.read import read_graph_file
from lora_workbench.lora_core.errors import LoraError

from ..workflow_examples import (
    EXAMPLES,
    INNER,
    INPUT_END,
    canvas,
    checkpoint,
    encode,
    latent,
    node,
    reroute,
    sampler,
    sent_encode,
    subgraph,
)

PROMPT = {"1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64}}}
WORKFLOW = canvas(latent(1))


def described(required, output=(), title=None, **more):
    order = {"required": list(required), **more.pop("order", {})}
    return {
        "input": {"required": required, **more},
        "input_order": order,
        "output": list(output),
        "output_name": list(output),
        "display_name": title,
        "python_module": "nodes",
    }


def combo(*names, **options):
    return [list(names), options]


def socket(kind):
    return [kind, {}]


def number(kind="INT", default=0, **options):
    return [kind, {"default": default, **options}]


TEXT = ["STRING", {"multiline": True, "dynamicPrompts": True}]
SCALES = [
    {"key": "scale dimensions", "inputs": {"required": {"width": number(default=512)}}},
    {"key": "scale by multiplier", "inputs": {"required": {"multiplier": number("FLOAT", 1.0)}}},
]
ANY_IMAGE = {"template_id": "input_type", "allowed_types": "IMAGE,MASK"}
SWITCHED = {"template_id": "switch", "allowed_types": "*"}
IMAGES = {"input": {"required": {"image": socket("IMAGE")}}, "prefix": "image", "min": 1, "max": 50}

# The nodes of the examples, as far as GET /object_info of ComfyUI 0.30 describes them.
OBJECT_INFO = {
    "CheckpointLoaderSimple": described(
        {"ckpt_name": combo("a.safetensors")}, ("MODEL", "CLIP", "VAE"), "Load Checkpoint"
    ),
    "LoraLoader": described(
        {
            "model": socket("MODEL"),
            "clip": socket("CLIP"),
            "lora_name": combo("l.safetensors"),
            "strength_model": number("FLOAT", 1.0),
            "strength_clip": number("FLOAT", 1.0),
        },
        ("MODEL", "CLIP"),
        "Load LoRA (Model and CLIP)",
    ),
    "CLIPTextEncode": described(
        {"text": TEXT, "clip": socket("CLIP")}, ("CONDITIONING",), "CLIP Text Encode (Prompt)"
    ),
    "EmptyLatentImage": described(
        {
            "width": number(default=512),
            "height": number(default=512),
            "batch_size": number(default=1),
        },
        ("LATENT",),
        "Empty Latent Image",
    ),
    "KSampler": described(
        {
            "model": socket("MODEL"),
            "seed": number(control_after_generate=True),
            "steps": number(default=20),
            "cfg": number("FLOAT", 8.0, step=0.1, round=0.01, max=100.0),
            "sampler_name": combo("euler", "heun"),
            "scheduler": combo("normal", "karras"),
            "positive": socket("CONDITIONING"),
            "negative": socket("CONDITIONING"),
            "latent_image": socket("LATENT"),
            "denoise": number("FLOAT", 1.0),
        },
        ("LATENT",),
        "KSampler",
    ),
    "ControlNetApplyAdvanced": described(
        {
            "positive": socket("CONDITIONING"),
            "negative": socket("CONDITIONING"),
            "control_net": socket("CONTROL_NET"),
            "image": socket("IMAGE"),
            "strength": number("FLOAT", 1.0),
        },
        ("CONDITIONING", "CONDITIONING"),
    ),
    "SaveImage": described(
        {"images": socket("IMAGE"), "filename_prefix": ["STRING", {}]}, (), "Save Image"
    ),
    "LoadImage": described(
        {"image": combo("in.png", image_upload=True)}, ("IMAGE", "MASK"), "Load Image"
    ),
    "PrimitiveInt": described({"value": number(control_after_generate="fixed")}, ("INT",), "Int"),
    "PrimitiveStringMultiline": described(
        {"value": ["STRING", {"multiline": True}]}, ("STRING",), "Text (Multiline)"
    ),
    "ResizeImageMaskNode": described(
        {
            "input": ["COMFY_MATCHTYPE_V3", {"template": ANY_IMAGE}],
            "resize_type": ["COMFY_DYNAMICCOMBO_V3", {"options": SCALES}],
            "scale_method": ["COMBO", {"options": ["nearest", "area"]}],
        },
        ("COMFY_MATCHTYPE_V3",),
        "Resize Image/Mask",
    ),
    "BatchImagesNode": described(
        {"images": ["COMFY_AUTOGROW_V3", {"template": IMAGES}]}, ("IMAGE",), "Batch Images"
    ),
    "ComfySwitchNode": described(
        {
            "switch": ["BOOLEAN", {}],
            "on_false": ["COMFY_MATCHTYPE_V3", {"template": SWITCHED}],
            "on_true": ["COMFY_MATCHTYPE_V3", {"template": SWITCHED}],
        },
        ("COMFY_MATCHTYPE_V3",),
        "If/Else Switch",
    ),
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_a_worked_example_gives_the_prompt_by_hand(example):
    workflow, by_hand = example()
    before = json.dumps(workflow)
    assert to_api(workflow, OBJECT_INFO) == by_hand
    assert json.dumps(workflow) == before


# --- widget values --------------------------------------------------------------------------


def values_of(required, saved, **more):
    """The inputs of one node with these declared inputs and saved values."""
    workflow = canvas(node(1, "Probe", values=saved))
    return to_api(workflow, {"Probe": described(required, **more)})["1"]["inputs"]


def test_both_spellings_of_a_combo_take_their_saved_value_or_their_first_choice():
    new = ["COMBO", {"options": ["x", "y"]}]
    assert values_of({"a": combo("x", "y"), "b": new}, ["y"]) == {"a": "y", "b": "x"}


def test_a_combo_controlled_after_each_run_has_two_more_values():
    controlled = combo("x", "y", control_after_generate=True)
    assert values_of({"a": controlled, "b": number()}, ["y", "fixed", "", 7]) == {"a": "y", "b": 7}


def test_seed_and_noise_seed_are_controlled_without_saying_so():
    assert values_of({"noise_seed": number(), "b": number()}, [3, "fixed", 7])["b"] == 7


def test_required_inputs_come_before_optional_ones_and_input_order_before_the_json_order():
    required = {"b": number(), "a": number()}
    order = {"required": ["a", "b"], "optional": ["c"]}
    inputs = values_of(required, [1, 2, 3], optional={"c": number()}, order=order)
    assert inputs == {"a": 1, "b": 2, "c": 3}


def test_hidden_inputs_are_left_out():
    assert values_of({"a": number()}, [1], hidden={"prompt": "PROMPT"}) == {"a": 1}


def test_a_forced_socket_has_no_widget_but_old_files_have_a_value_for_it():
    required = {"a": number(forceInput=True), "b": number()}
    assert values_of(required, [7]) == {"b": 7}
    assert values_of(required, ["dummy", 7]) == {"b": 7}


def test_values_may_be_saved_by_name():
    """As Video Helper Suite does."""
    assert values_of({"a": number(), "b": number()}, {"b": 7, "other": 1}) == {"a": 0, "b": 7}


def test_a_widget_that_is_never_saved_takes_no_place_among_the_values():
    inputs = values_of({"a": ["IMAGECOMPARE", {}], "b": number()}, [7])
    assert inputs == {"a": {"__value__": ["", ""]}, "b": 7}


def test_a_list_value_is_wrapped_so_that_it_is_not_taken_for_a_link():
    assert values_of({"a": ["COLORS", {}]}, [["#fff", 0]]) == {"a": {"__value__": ["#fff", 0]}}


def test_a_pack_with_its_own_widget_type_gives_one_value():
    """Our rows are declared as ("STRING", {"widgetType": ...})."""
    rows = ["STRING", {"widgetType": "LORA_WORKBENCH_ROWS", "default": "[]"}]
    assert values_of({"rows": rows, "b": number()}, ["<lora:x:1>", 7]) == {
        "rows": "<lora:x:1>",
        "b": 7,
    }


def test_a_pack_whose_javascript_makes_widgets_is_named():
    """rgthree's Power Lora Loader saves an object per row; its description has no such widget."""
    info = {**described({}), "python_module": "custom_nodes.rgthree-comfy"}
    row = {"on": True, "lora": "l.safetensors", "strength": 1}
    workflow = canvas(node(9, "Power Lora Loader (rgthree)", values=[{}, row, {}, ""]))
    with pytest.raises(LoraError, match=r"Node 9 \(Power Lora Loader \(rgthree\)\)"):
        to_api(workflow, {"Power Lora Loader (rgthree)": info})


def test_old_files_are_mended():
    """Samplers were once called sample_euler; an empty choice becomes the first one."""
    old = sampler(3, values=[5, "fixed", 20, 7.5, "sample_heun", None, 1])
    inputs = to_api(canvas(old), OBJECT_INFO)["3"]["inputs"]
    assert (inputs["sampler_name"], inputs["scheduler"]) == ("heun", "normal")


def test_a_primitive_is_rounded_to_the_step_of_its_target():
    """JavaScript rounds a half up: 7.125 on steps of 0.01 is 7.13."""
    widget = ("cfg", "FLOAT", (20, 0), "cfg")
    workflow = canvas(
        node(20, "PrimitiveNode", (), ("FLOAT",), [7.125, "fixed"]), sampler(3, more=[widget])
    )
    # The step of 0.1 leaves one decimal.
    assert to_api(workflow, OBJECT_INFO)["3"]["inputs"]["cfg"] == 7.1


def test_dynamic_prompts_take_the_choice_of_the_given_generator():
    workflow = canvas(encode(1, None, "{a|b|{c|d}} cat"))
    seen = {
        to_api(workflow, OBJECT_INFO, random.Random(seed))["1"]["inputs"]["text"]
        for seed in range(40)
    }
    assert seen == {f"{letter} cat" for letter in "abcd"}


def test_file_names_take_the_date():
    save = node(9, "SaveImage", [("images", "IMAGE", None)], (), ["%date:yyyy-MM-dd%/%other%"])
    name = to_api(canvas(save), OBJECT_INFO)["9"]["inputs"]["filename_prefix"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/%other%", name)


def test_a_group_node_with_a_sampler_keeps_every_value_in_its_place():
    """The frontend's own conversion (1.47) shifts what follows a combo of the old spelling."""
    bare = [{key: item[key] for key in item if key != "id"} for item in (latent(1), sampler(2))]
    for item in bare:
        item["inputs"] = [{**slot, "origin": None} for slot in item["inputs"]]
    group = {"nodes": bare, "links": [[0, 0, 1, 3, 1, "LATENT"]], "external": []}
    inputs = [("model", "MODEL", (4, 0)), ("positive", "CONDITIONING", (6, 0))]
    values = [96, 96, 2, 77, "fixed", 9, 3.5, "heun", "karras", 0.5]
    nodes = [
        checkpoint(4),
        encode(6, (4, 1)),
        node(5, "workflow/both", inputs, ("LATENT",), values),
        sampler(7, None, None, None, (5, 0)),
    ]
    extra = {"groupNodes": {"both": group}}
    prompt = to_api(canvas(*nodes, last_node_id=7, extra=extra), OBJECT_INFO)
    names = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")
    got = prompt["10:9"]["inputs"]
    assert [got[name] for name in names] == [77, 9, 3.5, "heun", "karras", 0.5]
    assert (got["model"], got["positive"]) == (["4", 0], ["6", 0])
    assert got["latent_image"] == ["10:8", 0]
    assert prompt["7"]["inputs"]["latent_image"] == ["10:9", 0]


# --- what cannot be converted ---------------------------------------------------------------


def refusal(workflow):
    with pytest.raises(LoraError) as caught:
        to_api(workflow, OBJECT_INFO)
    return str(caught.value)


def test_unknown_nodes_are_named_with_their_ids():
    inner = subgraph(INNER, [node(1, "SetNode")])
    nodes = [node(2, "GetNode"), node(5, "GetNode"), node(7, INNER)]
    text = refusal(canvas(*nodes, subgraphs=[inner]))
    assert "GetNode: node 2, 5" in text
    assert "SetNode: node 7:1" in text


@pytest.mark.parametrize(
    ("kind", "mode", "cause"),
    [("Reroute", 0, "holds Reroute"), ("EmptyLatentImage", 2, "muted or bypassed")],
)
def test_a_group_node_that_cannot_be_taken_apart_is_named(kind, mode, cause):
    groups = {"groupNodes": {"mine": {"nodes": [{"type": kind}], "links": []}}}
    text = refusal(canvas(node(5, "workflow>mine", mode=mode), extra=groups))
    assert "group node 'mine' (node 5)" in text
    assert cause in text


def test_nodes_that_need_a_browser_are_named():
    with pytest.raises(LoraError, match=r"3 \(WebcamCapture\)"):
        to_api(canvas(node(3, "WebcamCapture")), {"WebcamCapture": described({})})


def test_unknown_nodes_that_are_muted_or_bypassed_do_no_harm():
    nodes = [
        checkpoint(4),
        node(1, "Gone", mode=2),
        node(2, "Gone", [("clip", "CLIP", (4, 1))], ("CLIP",), mode=4),
        encode(6, (2, 0)),
    ]
    assert to_api(canvas(*nodes), OBJECT_INFO)["6"] == sent_encode(clip=["4", 1])


def test_a_circle_of_reroutes_is_an_error():
    text = refusal(canvas(reroute(1, (2, 0)), reroute(2, (1, 0)), encode(6, (1, 0))))
    assert "'clip' of node 6 (CLIPTextEncode) run in a circle" in text


def test_a_thousand_reroutes_in_a_row_are_followed():
    chain = [reroute(number, (number - 1, 0)) for number in range(11, 1500)]
    nodes = [checkpoint(4), reroute(10, (4, 1)), *chain, encode(6, (1499, 0))]
    assert to_api(canvas(*nodes), OBJECT_INFO)["6"] == sent_encode(clip=["4", 1])


def test_a_subgraph_inside_itself_is_an_error():
    inner = subgraph(INNER, [node(1, INNER)])
    assert "contains itself" in refusal(canvas(node(7, INNER), subgraphs=[inner]))


def test_a_subgraph_may_pass_an_input_straight_through():
    inner = subgraph(INNER, [latent(1)], [("clip", "CLIP")], [("LATENT", "LATENT", (1, 0))])
    inner["links"].append(
        {"id": 9, "origin_id": INPUT_END, "origin_slot": 0, "target_id": -20, "target_slot": 1}
    )
    inner["outputs"].append({"id": "p", "name": "clip", "type": "CLIP", "linkIds": [9]})
    nodes = [
        checkpoint(4),
        node(7, INNER, [("clip", "CLIP", (4, 1))], ("LATENT", "CLIP")),
        encode(6, (7, 1)),
    ]
    prompt = to_api(canvas(*nodes, subgraphs=[inner]), OBJECT_INFO)
    assert prompt["6"] == sent_encode(clip=["4", 1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda workflow: workflow["links"].clear(),
        lambda workflow: workflow["links"].__setitem__(0, [1, 4]),
        lambda workflow: workflow["links"][0].__setitem__(1, 77),
        lambda workflow: workflow["nodes"][0].pop("id"),
        lambda workflow: workflow["nodes"].append(7),
        lambda workflow: workflow.__setitem__("definitions", {"subgraphs": [{}]}),
        lambda workflow: workflow.__setitem__("last_node_id", "x"),
        lambda workflow: workflow.__setitem__("extra", {"groupNodes": {"a": {"links": [[0, 0]]}}}),
        lambda workflow: workflow["nodes"][0]["properties"].__setitem__("proxyWidgets", [7]),
    ],
)
def test_damage_is_an_error_of_ours(damage):
    workflow = canvas(checkpoint(4), encode(6, (4, 1)))
    damage(workflow)
    assert refusal(workflow)


# --- files ----------------------------------------------------------------------------------


def test_the_two_forms_of_json_are_told_apart_by_content(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(PROMPT))
    (tmp_path / "b.json").write_text("\ufeff" + json.dumps(WORKFLOW), encoding="utf-8")
    (tmp_path / "c.json").write_text(json.dumps({"prompt": PROMPT, "client_id": "x"}))
    assert read_graph_file(tmp_path / "a.json").prompt == PROMPT
    assert read_graph_file(tmp_path / "a.json").workflow is None
    assert read_graph_file(tmp_path / "b.json").workflow == WORKFLOW
    assert read_graph_file(tmp_path / "c.json").prompt == PROMPT


def save_png(path, texts, compressed=False):
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text, zip=compressed)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_picture_gives_the_prompt_that_was_run_and_the_canvas(tmp_path, compressed):
    path = tmp_path / "a.png"
    texts = {"prompt": json.dumps(PROMPT), "workflow": json.dumps(WORKFLOW)}
    save_png(path, texts, compressed)
    graph = read_graph_file(path)
    assert (graph.prompt, graph.workflow, graph.source) == (PROMPT, WORKFLOW, str(path))


def test_an_international_text_is_read(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("workflow", json.dumps(WORKFLOW))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert read_graph_file(tmp_path / "a.png").workflow == WORKFLOW


def test_webp_keeps_the_graph_in_its_exif(tmp_path):
    picture = Image.new("RGB", (8, 8))
    exif = picture.getexif()
    exif[0x0110] = "prompt:" + json.dumps(PROMPT)
    exif[0x010F] = "workflow:" + json.dumps(WORKFLOW)
    picture.save(tmp_path / "a.webp", exif=exif)
    graph = read_graph_file(tmp_path / "a.webp")
    assert (graph.prompt, graph.workflow) == (PROMPT, WORKFLOW)


def test_numbers_that_are_not_json_become_null(tmp_path):
    """ComfyUI writes NaN for a node that must always run."""
    (tmp_path / "a.json").write_text(
        '{"1": {"class_type": "X", "inputs": {"a": 1}, "is_changed": [NaN]}}'
    )
    assert read_graph_file(tmp_path / "a.json").prompt["1"]["is_changed"] == [None]


BAD_FILES = {
    "not_there.json": (None, "There is no graph file"),
    "text.json": (b"hello", "not JSON"),
    "binary.json": (b"\xff\xfe\x00", "not text"),
    "list.json": (b"[1, 2]", "not a ComfyUI graph"),
    "empty.json": (b"{}", "not a ComfyUI graph"),
    "other.json": (b'{"name": {"version": 1}}', "not a ComfyUI graph"),
    "deep.json": (b"[" * 100_000, "nested too deeply"),
    "picture.png": (b"not a picture", "cannot be read as a picture"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_an_error_that_says_what_is_wrong(name, tmp_path):
    content, message = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LoraError, match=message):
        read_graph_file(tmp_path / name)


def test_a_file_too_large_for_a_graph_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(LoraError, match="too large"):
        read_graph_file(tmp_path / "a.json")


def test_a_picture_without_a_graph_is_an_error(tmp_path):
    save_png(tmp_path / "a.png", {"parameters": "a cat, steps: 20"})
    with pytest.raises(LoraError, match="a picture without a graph"):
        read_graph_file(tmp_path / "a.png")


@pytest.mark.parametrize("kept", [10, 40, 70])
def test_a_truncated_picture_is_an_error(kept, tmp_path):
    save_png(tmp_path / "a.png", {"prompt": json.dumps(PROMPT)})
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:kept])
    with pytest.raises(LoraError, match="picture"):
        read_graph_file(tmp_path / "a.png")
