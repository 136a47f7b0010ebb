"""What ComfyUI's server answers the page about LoRA files."""

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from urllib.parse import quote, urlencode

import pytest
import torch

from lora_workbench.lora_core.files.write import write_safetensors

from ..lora_files import unet_modules, write_lora

PICTURE = b"\x89PNG\r\n\x1a\n and more"
Q = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"


@pytest.fixture(scope="module")
def loras(server):
    """The server's LoRA folder with one file of every sort."""
    folder = server.loras_dir / "routes"
    folder.mkdir()
    down, up = torch.ones(4, 320), torch.ones(320, 4)
    fitting = {f"{Q}.lora_down.weight": down, f"{Q}.lora_up.weight": up}
    metadata = {"ss_tag_frequency": json.dumps({"a": {"mosaic": 9}})}
    write_safetensors(folder / "good.safetensors", fitting, metadata)
    (folder / "good.png").write_bytes(PICTURE)
    (folder / "good.txt").write_text("use at 0.7")
    write_lora(folder / "xl.safetensors", unet_modules("sdxl", "ldm")[:40], rank=2)
    (folder / "xl.webp").write_bytes(b"\0" * (16 * 1024 * 1024 + 1))
    (folder / "cut.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:-8])
    peft = folder / "peft"
    peft.mkdir()
    write_safetensors(peft / "adapter_model.safetensors", fitting)
    (peft / "adapter_config.json").write_text('{"lora_alpha": "many"}')
    (folder / "link.safetensors").symlink_to(folder / "good.safetensors")
    return folder


@pytest.fixture
def ask(server, loras):
    """Status and JSON of a route; no answer may name a folder of this machine."""

    def ask(route, **query):
        status, _, body = get(server, f"lora_workbench/{route}?{urlencode(query)}")
        text = body.decode()
        for folder in (server.base_directory, loras.resolve(), loras.parent):
            assert str(folder) not in text, text
        return status, json.loads(text)

    return ask


def get(server, path):
    try:
        with urllib.request.urlopen(f"{server.address}/{path}") as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_all_files_are_listed_with_their_pictures_at_both_addresses(ask, server, loras):
    status, found = ask("loras")
    rows = {row["name"]: row for row in found["loras"]}
    good = rows["routes/good.safetensors"]
    assert status == 200
    assert [good["preview"], rows["routes/cut.safetensors"]["preview"]] == [True, False]
    assert [row["name"] for row in found["loras"]] == sorted(rows)
    assert server.get("api/lora_workbench/loras") == found


def test_five_thousand_files_are_listed_in_time(ask, server):
    folder = server.loras_dir / "many"
    folder.mkdir()
    for number in range(5000):
        (folder / f"{number}.safetensors").touch()
    ask("loras")  # ComfyUI walks the folders once
    start = time.perf_counter()
    _, found = ask("loras")
    took = time.perf_counter() - start
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert sum(row["name"].startswith("many/") for row in found["loras"]) == 5000
    assert took < 2.0  # 0.07 s when this was written


def test_the_facts_of_a_file(ask):
    status, found = ask("lora", name="routes\\good")
    assert status == 200
    assert found["name"] == "routes/good.safetensors"
    assert (found["kinds"], found["ranks"], found["notes"]) == ({"lora": 1}, [4], "use at 0.7")
    assert found["words"] == [{"word": "mosaic", "count": 9}]
    assert found["bases"][0] == {"base": "sd15", "label": "SD 1.5", "used": 2, "of": 2}
    assert found["preview"] is True


def test_a_pin_is_the_hash_of_the_file_and_finds_it_again(ask, loras):
    data = (loras / "xl.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    name = "routes/xl.safetensors"
    assert ask("pin", name="xl") == (200, {"name": name, "size": len(data), "sha256": digest})
    query = {"name": "renamed.safetensors", "sha256": digest, "size": len(data)}
    assert ask("resolve", **query) == (200, {"name": name})


def test_a_missing_file_is_a_404_with_near_matches(ask):
    for route in ("lora", "pin", "norms", "preview"):
        status, found = ask(route, name="gooood.safetensors")
        assert status == 404
        assert "missing" in found["error"]["headline"]
        assert "routes/good.safetensors" in found["error"]["facts"]["Near matches"]
        assert found["error"]["fix"]


def test_a_row_whose_file_is_missing_or_another_resolves_to_near_matches(ask):
    status, found = ask("resolve", name="old\\gooood.safetensors")
    assert (status, found["name"]) == (200, None)
    assert found["near"] == ["routes/good.safetensors"]
    assert "missing" in found["error"]["headline"]
    _, found = ask("resolve", name="routes/good.safetensors", sha256="0" * 64)
    assert (found["name"], found["near"]) == (None, ["routes/good.safetensors"])
    assert "is not the file" in found["error"]["headline"]


def test_a_row_without_a_file_has_a_verdict(ask):
    status, found = ask("verdict", name="gooood.safetensors")
    assert (status, found["level"]) == (200, "wrong")
    assert "missing" in found["text"]
    assert any("routes/good.safetensors" in line for line in found["details"])
    assert ask("verdict", name="../x")[1]["level"] == "wrong"


@pytest.mark.parametrize("route", ["lora", "pin", "resolve", "norms", "preview"])
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "C:\\x", "", ".", "..\\x"])
def test_names_that_leave_the_folders_are_refused(ask, route, name):
    status, found = ask(route, name=name)
    assert status == 400
    assert "is not a name inside the LoRA folders" in found["error"]["headline"]
    assert found["error"]["fix"]


def test_a_bad_size_or_folder_is_refused(ask, slim_checkpoint):
    for size in ("-1", "x", "9" * 5000):
        status, found = ask("resolve", name="good", size=size)
        assert (status, found["error"]["headline"]) == (400, "The size is not a number.")
    query = {"name": "good", "checkpoint": slim_checkpoint, "folder": "user"}
    assert ask("verdict", **query)[0] == 400


def test_a_hash_that_is_none_is_refused(ask):
    for route in ("resolve", "pin", "lora", "norms"):
        status, found = ask(route, name="good", sha256="ABCDEF1234")
        assert (status, found["error"]["facts"]) == (400, {"Got": "ABCDEF1234"})
    status, found = ask("verdict", name="good", sha256="x" * 64)
    assert (status, found["text"]) == (200, "The sha256 is not 64 hexadecimal digits.")


def test_verdicts_on_a_checkpoint_behind_a_link(ask, slim_checkpoint):
    status, found = ask("verdict", name="good", checkpoint=slim_checkpoint)
    assert (status, found["level"]) == (200, "ok")
    assert found["text"] == "2 of 2 tensors match this model."
    assert found["details"] == ["The file has no text-encoder part."]
    _, found = ask("verdict", name="xl", checkpoint=slim_checkpoint)
    assert found["level"] == "wrong"
    assert found["text"] == "Made for SDXL; this model is SD 1.5."
    assert ask("verdict", name="xl")[1]["text"] == "Made for SDXL: lora, rank 2."


def test_a_model_that_is_not_listed_is_named_beside_what_is_known_of_the_lora(ask, slim_checkpoint):
    for name in ("gone.safetensors", "../checkpoints/" + slim_checkpoint, "/etc/passwd"):
        status, found = ask("verdict", name="good", checkpoint=name)
        assert (status, found["level"]) == (200, "unknown")
        assert found["details"][0] == f"The model {name} is missing."


def test_a_damaged_file_is_no_server_error(ask, slim_checkpoint):
    status, found = ask("verdict", name="cut", checkpoint=slim_checkpoint)
    assert (status, found["level"]) == (200, "wrong")
    assert "cut short" in found["text"]
    status, found = ask("lora", name="cut")
    assert status == 400
    assert "download or copy it again" in found["error"]["fix"]


def test_an_error_about_a_file_beside_it_names_no_folder(ask):
    """``ask`` looks for folders in every answer; this error is made with the whole path."""
    status, found = ask("lora", name="adapter_model")
    assert status == 400
    assert "adapter_config.json" in str(found)


def test_the_blocks_of_a_checkpoint_and_what_a_weighting_does_there(ask, slim_checkpoint):
    query = {"checkpoint": slim_checkpoint, "folder": "checkpoints", "weighting": "IN01=0.5"}
    status, found = ask("blocks", **query)
    blocks = {block["name"]: block["mean"] for block in found["blocks"]}
    assert (status, found["of"], found["family"]) == (200, "model", "sd15")
    assert (blocks["IN01"], blocks["BASE"], found["text"]) == (0.5, 1.0, "IN01=0.5")
    assert "attn2" in {part["name"] for part in found["parts"]}


def test_without_a_model_the_blocks_are_those_of_the_loras_base(ask, slim_checkpoint):
    for more in ({}, {"checkpoint": "gone"}, {"checkpoint": "../checkpoints/" + slim_checkpoint}):
        status, found = ask("blocks", name="xl", **more)
        assert (status, found["of"], found["family"]) == (200, "base", "sdxl")
    for name in ("gooood", "../x", ""):
        assert ask("blocks", name=name, weighting="no")[1]["of"] is None
    assert ask("blocks", name="xl", checkpoint="x", folder="user")[0] == 400


def test_a_wrong_weighting_is_an_answer_with_its_reason(ask):
    status, found = ask("blocks", name="xl", weighting="IN04=0,5")
    assert (status, found["problem"]["headline"]) == (200, "Rule '5' has no factor.")


def test_the_norms_of_a_file(ask, loras):
    status, found = ask("norms", name="good")
    assert (status, found["base"]) == (200, "SD 1.5")
    ((block, norm),) = [(each["block"], each["norm"]) for each in found["norms"]]
    assert (block, norm) == ("IN01", pytest.approx(4 * 320.0))  # of a matrix of fours
    large = loras / "large.safetensors"
    large.touch()
    os.truncate(large, (2 << 30) + 1)
    status, found = ask("norms", name="large")
    assert (status, found["error"]["facts"]["Most"]) == (400, str(2 << 30))
    large.unlink()
    assert ask("norms", name="cut")[0] == 400
    assert ask("norms", name="gooood")[0] == 404


def test_the_picture_beside_a_file(ask, server, loras):
    status, headers, body = get(server, f"lora_workbench/preview?name={quote('routes/good')}")
    assert (status, headers["Content-Type"], body) == (200, "image/png", PICTURE)
    status, found = ask("preview", name="xl")
    assert (status, found["error"]["headline"]) == (400, "The picture xl.webp is too large.")
    status, found = ask("preview", name="cut")
    assert status == 404
    assert "has no picture" in found["error"]["headline"]


def test_asking_writes_nothing_beside_the_files(ask, loras):
    before = sorted(path.name for path in loras.rglob("*"))
    for route in ("loras", "lora", "pin", "verdict", "blocks", "norms"):
        ask(route, name="good")
    assert sorted(path.name for path in loras.rglob("*")) == before


def test_two_copies_of_the_pack_offer_each_route_once(comfy):
    import importlib

    from aiohttp import web

    routes = importlib.import_module(f"{comfy.pack.__name__}.hosts.comfy.routes")
    files = importlib.import_module(f"{comfy.pack.__name__}.hosts.comfy").ComfyHost().files
    table = web.RouteTableDef()
    for _ in range(2):
        routes.add_routes(table, files)
    web.Application().add_routes(table)
    assert len({route.path for route in table}) == len(table) == 8
