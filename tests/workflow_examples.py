"""Worked examples of the canvas's rules: workflows in UI form, and their prompts by hand.

tests/headless converts them with the node descriptions below; tests/web shows them to the real
frontend, whose prompt must be the same.
"""

from itertools import count


def canvas(*nodes, subgraphs=(), version=0.4, **extra):
    """A workflow in UI form; the links are gathered from the nodes' inputs."""
    nodes, links = wired(nodes)
    if version == 0.4:
        rows = [[link[key] for key in ARRAY] for link in links]
        head = {"last_node_id": 0, "last_link_id": len(links)}
    else:
        rows = links
        head = {"state": {"lastNodeId": 0, "lastLinkId": len(links)}}
    workflow = {**head, "version": version, "nodes": nodes, "links": rows, "groups": []}
    if subgraphs:
        workflow["definitions"] = {"subgraphs": list(subgraphs)}
    return {**workflow, "config": {}, "extra": {}, **extra}


ARRAY = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
INPUT_END, OUTPUT_END = -10, -20


def node(number, kind, inputs=(), outputs=(), values=(), mode=0, title=None, **properties):
    """One node.

    ``inputs`` are (name, type, origin), where origin is (node id, slot) or None, with a fourth
    item for the widget that the input stands for; ``outputs`` are types.
    """
    item = {
        "id": number,
        "type": kind,
        "pos": [100 * number, 100],
        "size": [200, 100],
        "flags": {},
        "order": number,
        "mode": mode,
        "inputs": [socket(*entry) for entry in inputs],
        "outputs": [{"name": text, "type": text, "links": []} for text in outputs],
        "properties": properties,
        "widgets_values": values if isinstance(values, dict) else list(values),
    }
    return {**item, "title": title} if title else item


def socket(name, kind, origin=None, widget=None):
    item = {"name": name, "type": kind, "link": None, "origin": origin}
    return {**item, "widget": {"name": widget}} if widget else item


def wired(nodes, first=1):
    """Number the links that the nodes' inputs ask for, and enter them at both ends."""
    numbers, links = count(first), []
    by_id = {item["id"]: item for item in nodes}
    for item in nodes:
        for place, entry in enumerate(item["inputs"]):
            origin = entry.pop("origin", None)
            if origin is not None:
                entry["link"] = number = next(numbers)
                values = (number, *origin, item["id"], place, entry["type"])
                links.append(dict(zip(ARRAY, values, strict=True)))
                if origin[0] in by_id:
                    by_id[origin[0]]["outputs"][origin[1]]["links"].append(number)
    return list(nodes), links


def subgraph(name, nodes, inputs=(), outputs=()):
    """A subgraph definition.

    Nodes take a value from its n-th input with the origin (INPUT_END, n); ``inputs`` are
    (name, type) and ``outputs`` are (name, type, origin).
    """
    nodes, links = wired(nodes)
    by_id = {item["id"]: item for item in nodes}
    for slot, (_, kind, (origin, place)) in enumerate(outputs):
        number = len(links) + 1
        values = (number, origin, place, OUTPUT_END, slot, kind)
        links.append(dict(zip(ARRAY, values, strict=True)))
        by_id[origin]["outputs"][place]["links"].append(number)

    def port(slot, text, kind, end, key):
        found = [link["id"] for link in links if link[f"{end}_id"] == key[0]]
        at_slot = {link["id"]: link[f"{end}_slot"] for link in links}
        numbers = [number for number in found if at_slot[number] == slot]
        return {"id": f"{name}-{text}", "name": text, "type": kind, "linkIds": numbers}

    return {
        "id": name,
        "version": 1,
        "state": {"lastNodeId": 0, "lastLinkId": len(links), "lastGroupId": 0, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": f"The {name[:4]}",
        "inputNode": {"id": INPUT_END, "bounding": [0, 0, 100, 100]},
        "outputNode": {"id": OUTPUT_END, "bounding": [900, 0, 100, 100]},
        "inputs": [
            port(slot, text, kind, "origin", (INPUT_END,))
            for slot, (text, kind) in enumerate(inputs)
        ],
        "outputs": [
            port(slot, text, kind, "target", (OUTPUT_END,))
            for slot, (text, kind, _) in enumerate(outputs)
        ],
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": links,
        "extra": {},
    }


# --- the nodes of the examples --------------------------------------------------------------


def checkpoint(number, name="a.safetensors", **more):
    return node(number, "CheckpointLoaderSimple", (), ("MODEL", "CLIP", "VAE"), [name], **more)


def lora(number, model, clip, name="l.safetensors", strengths=(1, 1), **more):
    inputs = [("model", "MODEL", model), ("clip", "CLIP", clip)]
    return node(number, "LoraLoader", inputs, ("MODEL", "CLIP"), [name, *strengths], **more)


def encode(number, clip, text="a cat", **more):
    return node(
        number, "CLIPTextEncode", [("clip", "CLIP", clip)], ("CONDITIONING",), [text], **more
    )


def latent(number, values=(64, 64, 1), inputs=(), **more):
    return node(number, "EmptyLatentImage", inputs, ("LATENT",), values, **more)


def sampler(number, model=None, positive=None, negative=None, image=None, more=(), **rest):
    inputs = [
        ("model", "MODEL", model),
        ("positive", "CONDITIONING", positive),
        ("negative", "CONDITIONING", negative),
        ("latent_image", "LATENT", image),
        *more,
    ]
    values = rest.pop("values", [5, "randomize", 20, 7.5, "euler", "normal", 1])
    return node(number, "KSampler", inputs, ("LATENT",), values, **rest)


def reroute(number, origin, kind="*"):
    item = node(number, "Reroute", [("", "*", origin)], (kind,))
    return {**item, "properties": {"showOutputText": False, "horizontal": False}}


# --- the same in a prompt -------------------------------------------------------------------


def sent(kind, title, **inputs):
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}


def sent_checkpoint(name="a.safetensors"):
    return sent("CheckpointLoaderSimple", "Load Checkpoint", ckpt_name=name)


def sent_lora(name="l.safetensors", strengths=(1, 1), **links):
    model, clip = strengths
    values = {"lora_name": name, "strength_model": model, "strength_clip": clip}
    return sent("LoraLoader", "Load LoRA (Model and CLIP)", **values, **links)


def sent_encode(text="a cat", **links):
    return sent("CLIPTextEncode", "CLIP Text Encode (Prompt)", text=text, **links)


def sent_sampler(**inputs):
    values = {"seed": 5, "steps": 20, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal"}
    return sent("KSampler", "KSampler", **{**values, "denoise": 1, **inputs})


def sent_latent(width=64, height=64, batch_size=1):
    values = {"width": width, "height": height, "batch_size": batch_size}
    return sent("EmptyLatentImage", "Empty Latent Image", **values)


# --- the rules ------------------------------------------------------------------------------


def links_of_both_schemas():
    """The seed's control value is skipped; links are arrays in schema 0.4, objects in schema 1."""
    nodes = [checkpoint(4), encode(6, (4, 1)), latent(5), sampler(3, (4, 0), (6, 0), None, (5, 0))]
    prompt = {
        "4": sent_checkpoint(),
        "6": sent_encode(clip=["4", 1]),
        "5": sent_latent(),
        "3": sent_sampler(model=["4", 0], positive=["6", 0], latent_image=["5", 0]),
    }
    return nodes, prompt


def array_links():
    nodes, prompt = links_of_both_schemas()
    return canvas(*nodes), prompt


def object_links():
    nodes, prompt = links_of_both_schemas()
    return canvas(*nodes, version=1), prompt


def classic_reroutes():
    """A chain of reroutes passes the link on; a reroute without an input leaves none."""
    nodes = [
        checkpoint(4),
        reroute(10, (4, 1)),
        reroute(11, (10, 0)),
        encode(6, (11, 0)),
        reroute(12, None),
        encode(7, (12, 0), "a dog"),
    ]
    prompt = {"4": sent_checkpoint(), "6": sent_encode(clip=["4", 1]), "7": sent_encode("a dog")}
    return canvas(*nodes), prompt


def native_reroute():
    """A floating reroute is a bend in a link."""
    extra = {
        "linkExtensions": [{"id": 1, "parentId": 1}],
        "reroutes": [{"id": 1, "pos": [50, 50], "linkIds": [1]}],
    }
    workflow = canvas(checkpoint(4), encode(6, (4, 1)), extra=extra)
    return workflow, {"4": sent_checkpoint(), "6": sent_encode(clip=["4", 1])}


def muted():
    """A muted node is left out, and so is every input that it fed."""
    nodes = [checkpoint(4), lora(8, (4, 0), (4, 1), mode=2), sampler(3, (8, 0)), encode(6, (8, 1))]
    prompt = {"4": sent_checkpoint(), "3": sent_sampler(), "6": sent_encode()}
    return canvas(*nodes), prompt


def bypassed():
    """Each output of a bypassed node passes on the input at its place, where the types fit."""
    nodes = [checkpoint(4), lora(8, (4, 0), (4, 1), mode=4), sampler(3, (8, 0)), encode(6, (8, 1))]
    prompt = {
        "4": sent_checkpoint(),
        "3": sent_sampler(model=["4", 0]),
        "6": sent_encode(clip=["4", 1]),
    }
    return canvas(*nodes), prompt


def bypassed_by_type():
    """KSampler's LATENT comes from its fourth input, CLIPTextEncode has no CONDITIONING."""
    nodes = [
        checkpoint(4),
        latent(5),
        encode(6, (4, 1), mode=4),
        sampler(3, (4, 0), (6, 0), None, (5, 0), mode=4),
        sampler(9, (4, 0), (6, 0), None, (3, 0)),
    ]
    prompt = {
        "4": sent_checkpoint(),
        "5": sent_latent(),
        "9": sent_sampler(model=["4", 0], latent_image=["5", 0]),
    }
    return canvas(*nodes), prompt


def bypassed_by_place():
    """Of two inputs of the type, the one at the output's place."""
    inputs = [("positive", "CONDITIONING", (6, 0)), ("negative", "CONDITIONING", (7, 0))]
    inputs += [("control_net", "CONTROL_NET"), ("image", "IMAGE")]
    outputs = ("CONDITIONING", "CONDITIONING")
    nodes = [
        encode(6, None),
        encode(7, None, "a dog"),
        node(8, "ControlNetApplyAdvanced", inputs, outputs, [1, 0, 1], mode=4),
        sampler(3, None, (8, 0), (8, 1)),
    ]
    prompt = {
        "6": sent_encode(),
        "7": sent_encode("a dog"),
        "3": sent_sampler(positive=["6", 0], negative=["7", 0]),
    }
    return canvas(*nodes), prompt


def primitive():
    """A primitive writes its value into every widget that it drives, rounded to their steps."""
    widget = ("seed", "INT", (20, 0), "seed")
    driver = node(20, "PrimitiveNode", (), ("INT",), [41, "fixed"])
    nodes = [driver, sampler(3, more=[widget]), sampler(9, more=[widget])]
    return canvas(*nodes), {"3": sent_sampler(seed=41), "9": sent_sampler(seed=41)}


def primitive_text():
    driver = node(20, "PrimitiveNode", (), ("STRING",), ["a {red|red} hat // not this"])
    target = node(
        6,
        "CLIPTextEncode",
        [("clip", "CLIP"), ("text", "STRING", (20, 0), "text")],
        ("CONDITIONING",),
        ["old"],
    )
    return canvas(driver, target), {"6": sent_encode("a red hat ")}


def driven_widget():
    """A link into a widget takes the place of its value; without one the value stays."""
    nodes = [
        node(20, "PrimitiveInt", (), ("INT",), [128, "fixed"]),
        latent(
            5, (64, 32, 1), [("width", "INT", (20, 0), "width"), ("height", "INT", None, "height")]
        ),
    ]
    prompt = {
        "20": sent("PrimitiveInt", "Int", value=128),
        "5": sent_latent(["20", 0], 32),
    }
    return canvas(*nodes), prompt


def notes():
    nodes = [
        node(1, "Note", values=["read me"]),
        node(2, "MarkdownNote", values=["# read me"]),
        latent(5),
    ]
    return canvas(*nodes), {"5": sent_latent()}


def titles_and_defaults():
    """A node keeps its own title; missing values are the defaults of the definition."""
    workflow = canvas(latent(5, (96,), title="Canvas size"))
    prompt = {"5": sent_latent(96, 512)}
    prompt["5"]["_meta"]["title"] = "Canvas size"
    return workflow, prompt


def dynamic_prompts():
    """Comments go, a block of equal choices is that choice, a backslash keeps braces."""
    text = "a /* big */ {cat|cat} in a \\{box\\} // or not"
    workflow = canvas(encode(6, None, text))
    return workflow, {"6": sent_encode("a  cat in a {box} ")}


def file_name_patterns():
    """%title.widget% takes another node's value, without what file names cannot hold."""
    save = node(9, "SaveImage", [("images", "IMAGE", None)], (), ["%Load Checkpoint.ckpt_name%_x"])
    prompt = {
        "4": sent_checkpoint("sd/a.safetensors"),
        "9": sent("SaveImage", "Save Image", filename_prefix="sd_a.safetensors_x"),
    }
    return canvas(checkpoint(4, "sd/a.safetensors"), save), prompt


def upload_button():
    """LoadImage's upload button has a saved value and no part in the prompt."""
    workflow = canvas(node(1, "LoadImage", (), ("IMAGE", "MASK"), ["in.png", "image"]))
    return workflow, {"1": sent("LoadImage", "Load Image", image="in.png")}


def branching_combo():
    """The inputs of a dynamic combo's choice follow it, among the values and by name."""
    inputs = [
        ("input", "IMAGE,MASK", (1, 0)),
        ("resize_type.multiplier", "FLOAT", None, "resize_type.multiplier"),
    ]
    nodes = [
        node(1, "LoadImage", (), ("IMAGE", "MASK"), ["in.png", "image"]),
        node(2, "ResizeImageMaskNode", inputs, ("*",), ["scale by multiplier", 2.5, "area"]),
    ]
    values = {"resize_type": "scale by multiplier", "resize_type.multiplier": 2.5}
    prompt = {
        "1": sent("LoadImage", "Load Image", image="in.png"),
        "2": sent(
            "ResizeImageMaskNode",
            "Resize Image/Mask",
            **{"input": ["1", 0], **values, "scale_method": "area"},
        ),
    }
    return canvas(*nodes), prompt


def growing_inputs():
    """Sockets beyond those of an empty node come from the file."""
    images = [(f"images.image{place}", "IMAGE", (1, 0)) for place in range(3)]
    nodes = [
        node(1, "LoadImage", (), ("IMAGE", "MASK"), ["in.png", "image"]),
        node(2, "BatchImagesNode", [*images, ("images.image3", "IMAGE")], ("IMAGE",)),
    ]
    links = {name: ["1", 0] for name, *_ in images}
    prompt = {
        "1": sent("LoadImage", "Load Image", image="in.png"),
        "2": sent("BatchImagesNode", "Batch Images", **links),
    }
    return canvas(*nodes), prompt


def matching_types_bypassed():
    """A bypassed switch passes on the input at its output's place, if that has the type."""
    inputs = [
        ("on_false", "*", (4, 1)),
        ("on_true", "*", (5, 1)),
        ("switch", "BOOLEAN", None, "switch"),
    ]
    nodes = [
        checkpoint(4),
        checkpoint(5, "b.safetensors"),
        node(2, "ComfySwitchNode", inputs, ("*",), [True], mode=4),
        encode(6, (2, 0)),
    ]
    prompt = {
        "4": sent_checkpoint(),
        "5": sent_checkpoint("b.safetensors"),
        "6": sent_encode(clip=["4", 1]),
    }
    return canvas(*nodes), prompt


def group_node():
    """A group node is its nodes: values in their order, a repeated name with the title in front.

    The next free ids go to the nodes inside, the one after them to the group.
    """
    inside = [encode(0, None, "inner"), latent(0), encode(0, None, "inner")]
    group = {
        "nodes": [{key: item[key] for key in item if key != "id"} for item in inside],
        "links": [],
        "external": [],
    }
    inputs = [("clip", "CLIP", (4, 1)), ("CLIPTextEncode clip", "CLIP", (4, 1))]
    outputs = ("CONDITIONING", "LATENT", "CLIPTextEncode CONDITIONING")
    values = ["a cat", 96, 32, 2, "a dog"]
    nodes = [
        checkpoint(4),
        node(5, "workflow>three", inputs, outputs, values),
        sampler(3, (4, 0), (5, 0), (5, 2), (5, 1)),
    ]
    prompt = {
        "4": sent_checkpoint(),
        "9:6": sent_encode("a cat", clip=["4", 1]),
        "9:7": sent_latent(96, 32, 2),
        "9:8": sent_encode("a dog", clip=["4", 1]),
        "3": sent_sampler(
            model=["4", 0], positive=["9:6", 0], negative=["9:8", 0], latent_image=["9:7", 0]
        ),
    }
    extra = {"groupNodes": {"three": group}}
    return canvas(*nodes, last_node_id=5, extra=extra), prompt


# --- subgraphs ------------------------------------------------------------------------------

INNER, OUTER = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


def encoder_subgraph():
    """CLIP in, CONDITIONING out, with the text of the encoder as a widget of the host."""
    inside = node(
        1,
        "CLIPTextEncode",
        [("clip", "CLIP", (INPUT_END, 0)), ("text", "STRING", (INPUT_END, 1), "text")],
        ("CONDITIONING",),
        ["inner text"],
    )
    ports = [("clip", "CLIP"), ("text", "STRING")]
    return subgraph(INNER, [inside], ports, [("CONDITIONING", "CONDITIONING", (1, 0))])


def host(number, kind, clip, values=(), mode=0, text=None, **properties):
    inputs = [("clip", "CLIP", clip), ("text", "STRING", text, "text")]
    return node(number, kind, inputs, ("CONDITIONING",), values, mode, **properties)


def two_hosts():
    """Two nodes of one subgraph, each with its own promoted value; ids are HOST:INNER.

    Node 1 exists outside too, so the inner one is given the next free id.
    """
    nodes = [
        checkpoint(1),
        host(7, INNER, (1, 1), ["a cat"]),
        host(8, INNER, (1, 1), ["a dog"]),
        sampler(3, (1, 0), (7, 0), (8, 0)),
    ]
    prompt = {
        "1": sent_checkpoint(),
        "7:9": sent_encode("a cat", clip=["1", 1]),
        "8:9": sent_encode("a dog", clip=["1", 1]),
        "3": sent_sampler(model=["1", 0], positive=["7:9", 0], negative=["8:9", 0]),
    }
    return canvas(*nodes, subgraphs=[encoder_subgraph()], last_node_id=8), prompt


def nested_hosts():
    """The value promoted twice is the outermost one; an unconnected CLIP leaves no input."""
    inside = host(2, INNER, (INPUT_END, 0), ["middle"], text=(INPUT_END, 1))
    outputs = [("CONDITIONING", "CONDITIONING", (2, 0))]
    outer = subgraph(OUTER, [inside], [("clip", "CLIP"), ("text", "STRING")], outputs)
    nodes = [host(7, OUTER, None, ["outside"]), sampler(3, None, (7, 0))]
    prompt = {
        "7:2:1": sent_encode("outside"),
        "3": sent_sampler(positive=["7:2:1", 0]),
    }
    return canvas(*nodes, subgraphs=[outer, encoder_subgraph()], last_node_id=7), prompt


def driven_promotion():
    """A link into a promoted widget wins over the promoted value."""
    nodes = [
        node(20, "PrimitiveStringMultiline", (), ("STRING",), ["from outside"]),
        host(7, INNER, None, ["promoted"], text=(20, 0)),
        sampler(3, None, (7, 0)),
    ]
    prompt = {
        "20": sent("PrimitiveStringMultiline", "Text (Multiline)", value="from outside"),
        "7:1": sent_encode(["20", 0]),
        "3": sent_sampler(positive=["7:1", 0]),
    }
    return canvas(*nodes, subgraphs=[encoder_subgraph()], last_node_id=20), prompt


def old_promotion():
    """Before 1.47 a host named the widgets it showed, with its values in that order."""
    inside = node(1, "CLIPTextEncode", [("clip", "CLIP", None)], ("CONDITIONING",), ["inner"])
    outputs = [("CONDITIONING", "CONDITIONING", (1, 0))]
    inner = subgraph(INNER, [inside], (), outputs)
    shown = [["1", "text"], ["1", "$$canvas-image-preview"]]
    nodes = [
        node(7, INNER, (), ("CONDITIONING",), ["shown"], proxyWidgets=shown),
        node(8, INNER, (), ("CONDITIONING",)),
        sampler(3, None, (7, 0), (8, 0)),
    ]
    prompt = {
        "7:1": sent_encode("shown"),
        "8:1": sent_encode("inner"),
        "3": sent_sampler(positive=["7:1", 0], negative=["8:1", 0]),
    }
    return canvas(*nodes, subgraphs=[inner], last_node_id=8), prompt


def old_promotion_of_a_primitive():
    """The host's value takes the place of the primitive."""
    width = ("width", "INT", (20, 0), "width")
    inside = [node(20, "PrimitiveNode", (), ("INT",), [104, "fixed"]), latent(5, inputs=[width])]
    inner = subgraph(INNER, inside, (), [("LATENT", "LATENT", (5, 0))])
    shown = [["20", "value"]]
    nodes = [
        node(7, INNER, (), ("LATENT",), [336], proxyWidgets=shown),
        node(8, INNER, (), ("LATENT",), proxyWidgets=shown),
    ]
    prompt = {"7:5": sent_latent(336), "8:5": sent_latent()}
    return canvas(*nodes, subgraphs=[inner], last_node_id=20), prompt


def muted_and_bypassed_hosts():
    """Nothing inside a muted host is sent; a bypassed one has no CONDITIONING to pass on."""
    nodes = [
        host(7, INNER, None, ["a cat"], mode=2),
        host(8, INNER, None, ["a dog"], mode=4),
        sampler(3, None, (7, 0), (8, 0)),
    ]
    workflow = canvas(*nodes, subgraphs=[encoder_subgraph()], last_node_id=8)
    return workflow, {"3": sent_sampler()}


EXAMPLES = (
    array_links,
    object_links,
    classic_reroutes,
    native_reroute,
    muted,
    bypassed,
    bypassed_by_type,
    bypassed_by_place,
    primitive,
    primitive_text,
    driven_widget,
    notes,
    titles_and_defaults,
    dynamic_prompts,
    file_name_patterns,
    upload_button,
    branching_combo,
    growing_inputs,
    matching_types_bypassed,
    group_node,
    two_hosts,
    nested_hosts,
    driven_promotion,
    old_promotion,
    old_promotion_of_a_primitive,
    muted_and_bypassed_hosts,
)
