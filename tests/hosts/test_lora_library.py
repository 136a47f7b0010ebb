"""Facts, lists and verdicts about LoRA files, from plain files in a folder."""

import json
import os
from pathlib import Path

import pytest
import torch

from lora_workbench.hosts.lora_library import Library
from lora_workbench.hosts.lora_library.error_json import error_json
from lora_workbench.hosts.lora_library.file_cache import FileCache
from lora_workbench.hosts.lora_library.listing import list_files
from lora_workbench.hosts.lora_library.norms import LARGEST
from lora_workbench.hosts.lora_library.sidecars import notes_of, preview_of, words_of
from lora_workbench.lora_core.errors import LoraError
from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.models.architectures import checkpoint_shapes
from lora_workbench.lora_core.weighting import Weighting

from ..lora_files import text_encoder_modules, unet_modules, write_lora


@pytest.fixture(scope="module")
def library():
    """One for all tests: the tables of the known bases are built once."""
    return Library()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Files of whole models that take no room: their data is a hole."""
    folder = tmp_path_factory.mktemp("models")
    return {base: hollow(folder / f"{base}.safetensors", base) for base in ("sd15", "sdxl")}


def hollow(path, base, keep=lambda name: True):
    """A safetensors file with a base's header, and a hole where its numbers would be."""
    header, end = {}, 0
    for name, shape in checkpoint_shapes(base).items():
        if keep(name):
            stop = end + 2 * torch.Size(shape).numel()
            header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, stop]}
            end = stop
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    return path


def unet_lora(path, base, metadata=None, **options):
    return write_lora(path, unet_modules(base, "ldm")[:40], metadata, rank=2, **options)


def texts(found):
    """Every text in a JSON document."""
    if isinstance(found, dict):
        return [text for pair in found.items() for item in pair for text in texts(item)]
    if isinstance(found, list):
        return [text for item in found for text in texts(item)]
    return [found] if isinstance(found, str) else []


# -- verdicts ------------------------------------------------------------------------------------


def test_a_lora_for_this_base_is_ok_with_every_tensor_counted(tmp_path, library, models):
    path = unet_lora(tmp_path / "a.safetensors", "sd15")
    found = library.verdict(path, models["sd15"]).to_json()
    assert (found["level"], found["text"]) == ("ok", "80 of 80 tensors match this model.")
    assert found["details"] == ["The file has no text-encoder part."]


def test_a_lora_with_a_text_encoder_part_does_not_say_there_is_none(tmp_path, library, models):
    modules = [*unet_modules("sd15", "ldm")[:3], *text_encoder_modules("sd15")[:3]]
    path = write_lora(tmp_path / "a.safetensors", modules, rank=2)
    found = library.verdict(path, models["sd15"])
    assert (found.level, found.details) == ("ok", ())
    assert library.facts("a", path)["has_text_encoder"] is True


def test_a_lora_for_sdxl_on_sd15_is_wrong_and_names_both(tmp_path, library, models):
    path = unet_lora(tmp_path / "a.safetensors", "sdxl")
    found = library.verdict(path, models["sd15"])
    assert found.level == "wrong"
    assert found.text == "Made for SDXL; this model is SD 1.5."
    assert any("shape" in line for line in found.details)
    assert any(line.startswith("Fix: ") for line in found.details)


def test_a_lora_of_another_base_is_wrong_though_some_tensors_match(tmp_path, library, models):
    """The first level of SDXL has SD 1.5's shapes."""
    modules = [m for m in unet_modules("sdxl", "ldm") if "input_blocks.1." in m.path]
    modules += [m for m in unet_modules("sdxl", "ldm") if "output_blocks.0.1." in m.path][:4]
    small = hollow(tmp_path / "m.safetensors", "sd15", lambda name: "output_blocks.0" not in name)
    path = write_lora(tmp_path / "a.safetensors", modules, rank=2)
    found = library.verdict(path, small)
    assert (found.level, found.text) == ("wrong", "Made for SDXL; this model is SD 1.5.")
    assert found.details[0] == f"6 of {2 * len(modules)} tensors match this model."


def test_tensors_that_match_nothing_make_it_partial(tmp_path, library, models):
    path = tmp_path / "a.safetensors"
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    down, up = torch.zeros(2, 320), torch.zeros(320, 2)
    other = {"lora_unet_more.lora_down.weight": down, "lora_unet_more.lora_up.weight": up}
    write_safetensors(
        path, {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, **other}
    )
    found = library.verdict(path, models["sd15"])
    assert (found.level, found.text) == ("partial", "2 of 4 tensors match this model.")
    assert "2 tensors unmatched" in found.details[0]


def test_a_text_encoder_part_may_go_elsewhere_on_a_diffusion_model(tmp_path, library):
    model = hollow(tmp_path / "m.safetensors", "sd15", lambda name: "diffusion_model" in name)
    modules = [*unet_modules("sd15", "ldm")[:3], *text_encoder_modules("sd15")[:2]]
    both = write_lora(tmp_path / "a.safetensors", modules, rank=2)
    found = library.verdict(both, model)
    assert (found.level, found.text) == ("ok", "6 of 10 tensors match this model.")
    assert "no text encoder is connected" in found.details[0]
    text = write_lora(tmp_path / "t.safetensors", text_encoder_modules("sd15")[:2], rank=2)
    assert library.verdict(text, model).level == "unknown"


def test_without_a_model_the_base_the_kind_and_the_rank_are_told(tmp_path, library):
    path = unet_lora(tmp_path / "a.safetensors", "sdxl")
    found = library.verdict(path)
    assert (found.level, found.text) == ("unknown", "Made for SDXL: lora, rank 2.")


def test_a_kind_that_is_not_supported_is_wrong_with_and_without_a_model(tmp_path, library, models):
    path = tmp_path / "a.safetensors"
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    write_safetensors(path, {f"{name}.ia3_l": torch.zeros(320, 1)})
    for model in (None, models["sd15"]):
        found = library.verdict(path, model)
        assert found.level == "wrong"
        assert "ia3 modules are not supported yet" in found.text
    assert "ia3" in library.facts("a", path)["problem"]


TO_Q = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
KINDS = {
    "loha": ({"hada_w1_a": (320, 2), "hada_w1_b": (2, 320)}, [2], ": loha, rank 2."),
    "lokr": ({"lokr_w1": (16, 16), "lokr_w2": (20, 20)}, [], ": lokr."),
    "oft": ({"oft_blocks": (20, 16, 16)}, [], ": oft."),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_told_with_its_rank_and_suits_its_model(kind, tmp_path, library, models):
    shapes, ranks, told = KINDS[kind]
    if kind == "loha":
        shapes = shapes | {key.replace("w1", "w2"): shape for key, shape in shapes.items()}
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {f"{TO_Q}.{key}": torch.ones(s) for key, s in shapes.items()})
    assert library.verdict(path).text.endswith(told)
    assert library.verdict(path, models["sd15"]).level == "ok"
    facts = library.facts("a", path)
    assert (facts["kinds"], facts["ranks"], facts["problem"]) == ({kind: 1}, ranks, None)
    if kind == "oft":
        with pytest.raises(LoraError, match="depends on the weights of its base"):
            library.norms(path)
    else:
        assert [row["block"] for row in library.norms(path)["norms"]] == ["IN01"]


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_file_is_wrong_and_says_what_to_do(tmp_path, library, models, damage):
    path = unet_lora(tmp_path / "a.safetensors", "sd15")
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-100], "noise": b"\xff" * 500, "empty": b""}[damage])
    found = library.verdict(path, models["sd15"]).to_json()
    assert found["level"] == "wrong"
    assert "a.safetensors" in found["text"]
    assert found["details"][-1].startswith("Fix: ")
    assert not [text for text in texts(found) if str(tmp_path) in text]
    with pytest.raises(LoraError, match="Fix: "):
        library.facts("a.safetensors", path)


def test_an_error_about_a_file_beside_it_names_no_folder(tmp_path, library):
    path = unet_lora(tmp_path / "adapter_model.safetensors", "sd15")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": "many"}')
    with pytest.raises(LoraError, match=str(tmp_path)):
        library.facts("a", path)
    found = library.verdict(path).to_json()
    assert found["level"] == "wrong"
    assert not [text for text in texts(found) if str(tmp_path) in text]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("flux.safetensors", {"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 3)}, "Only SD"),
        ("x.ckpt", None, "Only SD"),
        ("broken.safetensors", None, "damaged"),
    ],
)
def test_a_model_that_cannot_be_read_leaves_the_verdict_open(
    tmp_path, library, name, content, reason
):
    path = unet_lora(tmp_path / "a.safetensors", "sdxl")
    model = tmp_path / name
    if content is None:
        model.write_bytes(b"none of a tensor file")
    else:
        write_safetensors(model, content)
    found = library.verdict(path, model)
    assert (found.level, found.text) == ("unknown", "Made for SDXL: lora, rank 2.")
    assert reason in found.details[0]


def test_a_file_that_changed_is_judged_again(tmp_path, library, models):
    path = unet_lora(tmp_path / "a.safetensors", "sdxl")
    assert library.verdict(path, models["sd15"]).level == "wrong"
    path.unlink()
    unet_lora(path, "sd15")
    assert library.verdict(path, models["sd15"]).level == "ok"


# -- facts ---------------------------------------------------------------------------------------


def test_the_facts_of_a_file_are_those_it_was_written_with(tmp_path, library):
    tags = {"1_a": {"cat": 3, "dog": 1}, "2_b": {"cat": 4, "sky": 5}}
    metadata = {"ss_tag_frequency": json.dumps(tags), "ss_output_name": "Cats", "x": "y" * 900}
    path = unet_lora(tmp_path / "a.safetensors", "sd15", metadata)
    found = library.facts("sub/a.safetensors", path)
    assert found["name"] == "sub/a.safetensors"
    assert found["size"] == len(path.read_bytes())
    assert found["kinds"] == {"lora": 40}
    assert found["ranks"] == [2]
    assert found["formats"]
    assert found["has_text_encoder"] is False
    assert found["bases"][0] == {"base": "sd15", "label": "SD 1.5", "used": 80, "of": 80}
    assert found["title"] == "Cats"
    assert found["words"] == [
        {"word": "cat", "count": 7},
        {"word": "sky", "count": 5},
        {"word": "dog", "count": 1},
    ]
    assert found["metadata"]["x"] == "y" * 500
    assert (found["problem"], found["notes"], found["preview"]) == (None, None, False)


def test_at_most_a_hundred_counted_words_and_the_authors_phrase_first(tmp_path, library):
    tags = {"a": {f"tag{number}": number for number in range(1, 300)}}
    metadata = {"ss_tag_frequency": json.dumps(tags), "modelspec.trigger_phrase": "by mosaic"}
    words = library.facts("a", unet_lora(tmp_path / "a.safetensors", "sd15", metadata))["words"]
    assert words[:2] == [{"word": "by mosaic"}, {"word": "tag299", "count": 299}]
    assert len(words) == 101


def test_words_of_sidecars_come_last_and_each_once(tmp_path, library):
    metadata = {"ss_tag_frequency": json.dumps({"a": {"cat": 3}})}
    path = unet_lora(tmp_path / "a.v1.safetensors", "sd15", metadata)
    rgthree = {"trainedWords": [{"word": "cat", "civitai": True}, {"word": "zed"}, "plain", 5]}
    (tmp_path / "a.v1.safetensors.rgthree-info.json").write_text(json.dumps(rgthree))
    manager = {"civitai": {"trainedWords": ["zed", "last one"]}}
    (tmp_path / "a.v1.metadata.json").write_text(json.dumps(manager))
    assert library.facts("a", path)["words"] == [
        {"word": "cat", "count": 3},
        {"word": "zed"},
        {"word": "plain"},
        {"word": "last one"},
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[" * 100_000, "[1]", '{"trainedWords": 5, "civitai": []}'),
        *('{"civitai": null}', '{"trainedWords": [{"word": 5}, {}, null, "  "]}', "\udcff"),
    ],
    ids=range(8),
)
def test_sidecars_of_another_form_say_nothing(tmp_path, text):
    for name in ("a.safetensors.rgthree-info.json", "a.metadata.json"):
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert list(words_of(tmp_path / "a.safetensors")) == []


def test_notes_are_read_when_they_are_short(tmp_path):
    path, notes = tmp_path / "a.safetensors", tmp_path / "a.txt"
    assert notes_of(path) is None
    notes.write_text("use at 0.7\n", encoding="utf-8")
    assert notes_of(path) == "use at 0.7"
    notes.write_bytes(b"x" * (64 * 1024 + 1))
    assert notes_of(path) is None


@pytest.mark.parametrize(
    "ending", [".png", ".jpg", ".jpeg", ".webp", ".preview.png", ".preview.jpg", ".preview.webp"]
)
def test_the_picture_beside_a_file_is_found_by_both_ways(tmp_path, ending):
    path = tmp_path / "a.v1.safetensors"
    path.write_bytes(b"12345")
    (tmp_path / "a.png").touch()  # of another file
    assert preview_of(path) is None
    assert list_files([path.name], [tmp_path])[0]["preview"] is False
    (tmp_path / f"a.v1{ending}").touch()
    assert preview_of(path) == tmp_path / f"a.v1{ending}"
    assert list_files([path.name], [tmp_path])[0]["preview"] is True


# -- lists ---------------------------------------------------------------------------------------


def test_a_list_keeps_the_order_and_the_first_folder_wins(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    for folder, size in ((first, 1), (second, 2)):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "both.safetensors").write_bytes(b"x" * size)
    (second / "only.safetensors").write_bytes(b"xyz")
    (first / "link.safetensors").symlink_to(second / "only.safetensors")
    (first / "nowhere.safetensors").symlink_to(tmp_path / "gone")
    names = [
        "only.safetensors",
        str(Path("sub", "both.safetensors")),
        "link.safetensors",
        "nowhere.safetensors",
        "gone.safetensors",
        "sub",
    ]
    found = list_files(names, [first, second])
    assert [(row["name"], row["size"]) for row in found] == list(
        zip(names[:3], (3, 1, 3), strict=True)
    )


def test_five_thousand_files_need_one_reading_of_each_folder(tmp_path, monkeypatch):
    names = [f"{number % 5}/{number}.safetensors" for number in range(5000)]
    for number in range(5):
        (tmp_path / str(number)).mkdir()
    for name in names:
        (tmp_path / name).touch()
    read, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: read.append(path) or scandir(path))
    assert [row["name"] for row in list_files(names, [tmp_path])] == names
    assert len(read) == 5


# -- blocks and norms ----------------------------------------------------------------------------


def names_of(found):
    return [block["name"] for block in found["blocks"]]


def test_blocks_are_the_models_and_else_those_of_the_loras_own_base(tmp_path, library, models):
    path = unet_lora(tmp_path / "a.safetensors", "sdxl")
    found = library.blocks(models["sd15"], path, "")
    assert (found["of"], found["family"], len(found["blocks"])) == ("model", "sd15", 26)
    assert found["blocks"][1] == {
        "name": "IN00",
        "targets": 2,
        "least": 1.0,
        "mean": 1.0,
        "most": 1.0,
    }
    assert {"name": "attn2", "targets": 80} in found["parts"]
    found = library.blocks(None, path, "")
    assert (found["of"], found["family"], len(found["blocks"])) == ("base", "sdxl", 20)
    found = library.blocks(None, None, "IN04=0.5")
    assert (found["of"], found["family"], found["blocks"]) == (None, None, [])
    assert (found["problem"], found["unmatched"]) == (None, [])


def test_what_a_weighting_does_in_each_block(library, models):
    found = library.blocks(models["sdxl"], None, "IN04-05=.5, attn2=0,OUT11=1")
    blocks = {block["name"]: block for block in found["blocks"]}
    assert (blocks["IN04"]["least"], blocks["IN04"]["most"]) == (0.0, 0.5)
    assert (blocks["IN03"]["least"], blocks["IN03"]["most"]) == (1.0, 1.0)
    assert found["text"] == "IN04-05=0.5, attn2=0, OUT11=1"
    assert found["unmatched"] == ["OUT11=1"]


def test_a_wrong_weighting_is_told_as_python_tells_it(library, models):
    found = library.blocks(models["sdxl"], None, "attn3=0")
    with pytest.raises(LoraError) as raised:
        Weighting.parse("attn3=0")
    assert found["problem"]["headline"] == raised.value.headline
    assert found["problem"]["fix"] == raised.value.fix
    assert len(found["blocks"]) == 20


def write_names(path, names):
    write_safetensors(path, {name: torch.zeros(2, 3) for name in names})
    return path


def test_a_model_that_no_table_knows_has_the_blocks_of_its_names(tmp_path, library):
    names = [f"double_blocks.{n}.img_attn.qkv.weight" for n in range(2)]
    names += [f"single_blocks.{n}.linear1.weight" for n in range(3)]
    whole = [f"model.diffusion_model.{name}" for name in (*names, "img_in.weight")]
    whole += ["text_encoders.t5xxl.transformer.shared.weight", "vae.encoder.conv_in.weight"]
    for number, known in enumerate((whole, [*names, "img_in.weight", "txt_in.weight"])):
        path = write_names(tmp_path / f"{number}.safetensors", known)
        found = library.blocks(path, None, "D01=0")
        assert names_of(found) == ["BASE", "D00", "D01", "S00", "S01", "S02"]
        assert (found["of"], found["family"]) == ("model", None)
        assert [(b["targets"], b["mean"]) for b in found["blocks"][:3]] == [(2, 1), (1, 1), (1, 0)]


def test_a_rule_over_text_encoders_is_no_mistake_on_a_model_without_them(tmp_path, library):
    model = hollow(tmp_path / "m.safetensors", "sd15", lambda name: "diffusion_model" in name)
    found = library.blocks(model, None, "te=0, te2 & ff=0, IN12=0, unet & te=1, blocks.03=0")
    assert found["problem"]["facts"]["Rule"] == "IN12=0"
    found = library.blocks(model, None, "te=0, te2 & ff=0, unet & te=1, blocks.03=0")
    assert found["unmatched"] == ["unet & te=1", "blocks.03=0"]
    assert "te" not in {part["name"] for part in found["parts"]}


def test_a_file_without_blocks_says_nothing(tmp_path, library):
    renamed = write_names(
        tmp_path / "a.safetensors",
        ["single_transformer_blocks.0.proj_out.weight", "transformer_blocks.0.ff.net.2.weight"],
    )
    other = write_names(tmp_path / "b.safetensors", ["encoder.conv_in.weight"])
    damaged = tmp_path / "c.safetensors"
    damaged.write_bytes(b"x" * 100)
    pickled = tmp_path / "d.ckpt"
    pickled.write_bytes(b"x")
    for path in (renamed, other, damaged, pickled):
        assert library.blocks(path, None, "")["of"] is None


def test_norms_are_those_of_the_loras_own_base(tmp_path, library):
    """Of one module: up is (320, 2) ones, down (2, 320) ones, scale 4 / 2."""
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 320), f"{name}.alpha": torch.tensor(4.0)}
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {**tensors, f"{name}.lora_up.weight": torch.ones(320, 2)})
    found = library.norms(path)
    assert found == {"base": "SD 1.5", "norms": [{"block": "IN01", "norm": 2 * 2 * 320.0}]}
    assert library.norms(path) is found


def test_norms_are_refused_for_a_large_file_and_for_an_unknown_base(tmp_path, library):
    large = tmp_path / "large.safetensors"
    large.touch()
    os.truncate(large, LARGEST + 1)
    with pytest.raises(LoraError, match="too large") as raised:
        library.norms(large)
    assert raised.value.facts["Most"] == LARGEST
    tensors = {"lora_unet_x.lora_down.weight": torch.ones(2, 8)}
    tensors["lora_unet_x.lora_up.weight"] = torch.ones(8, 2)
    write_safetensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(LoraError, match="are not known"):
        library.norms(tmp_path / "x.safetensors")


# -- what does not leave, and what is kept -------------------------------------------------------


def test_an_error_loses_the_folders_of_this_machine(tmp_path):
    inner = tmp_path / "loras" / "sub"
    inner.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "loras", target_is_directory=True)
    error = LoraError(
        f"{link}/sub/a.safetensors is damaged.",
        {"Path": inner / "a.safetensors", "Cause": f"in {str(inner / 'b')!r}", "Bytes": 5},
        f"look into {tmp_path / 'loras'}.",
    )
    found = error_json(error, [link])
    assert found["headline"] == "sub/a.safetensors is damaged."
    assert found["facts"] == {"Path": "a.safetensors", "Cause": "in 'sub/b'", "Bytes": "5"}
    assert not [text for text in texts(found) if str(tmp_path) in text]


def test_a_cache_reads_once_forgets_the_oldest_and_keeps_no_failure(tmp_path):
    read = []

    def reading(path: Path) -> int:
        read.append(path.name)
        if path.name == "bad":
            raise LoraError("no")
        return len(path.read_bytes())

    for name in ("a", "b", "c", "bad"):
        (tmp_path / name).write_bytes(name.encode())
    cache = FileCache(reading, 2)
    for name in ("a", "a", "b", "a", "c", "a", "b"):
        assert cache.get(tmp_path / name) == 1
    assert read == ["a", "b", "c", "b"]
    (tmp_path / "b").write_bytes(b"longer")
    assert cache.get(tmp_path / "b") == 6
    for _ in range(2):
        with pytest.raises(LoraError):
            cache.get(tmp_path / "bad")
    assert read[-2:] == ["bad", "bad"]
