"""``lora-workbench run`` against a real ComfyUI in its own process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from lora_workbench.headless.cli import main

from .checkpoints import SLIM, lora_targets, write_lora
from .conftest import node, text_to_image
from .server_fixture import ComfyServer, server_options

LONG = 10_000  # steps, the most that ComfyUI takes: minutes


@pytest.fixture(scope="module")
def loras(server):
    """Two LoRAs for every weight of the slim checkpoint."""
    for seed, name in enumerate(("style", "detail")):
        path = server.loras_dir / f"{name}.safetensors"
        write_lora(path, lora_targets(SLIM), seed=seed, alpha=2.0)


@pytest.fixture
def run(server, tmp_path, capsys):
    """Run a graph, or a file, by the command; return its exit code and JSON document."""

    def run(graph, *arguments):
        path = graph
        if isinstance(graph, dict):
            path = tmp_path / "graph.json"
            path.write_text(json.dumps(graph))
        output = tmp_path / "results"
        command = ["run", path, "--comfyui", server.address, "--json", "--output", output]
        capsys.readouterr()
        code = main([*map(str, command), *map(str, arguments)])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def picture(run):
    """Run a graph that must succeed; return the path of its only picture."""

    def picture(graph, *arguments):
        code, document = run(graph, *arguments)
        assert (code, document["errors"]) == (0, [])
        (path,) = [output["file"] for output in document["outputs"] if "file" in output]
        return path

    return picture


def with_loras(checkpoint, rows, **options):
    """Text to image through Apply LoRAs."""
    apply = node("LoraWorkbenchApply", model=["checkpoint", 0], clip=["checkpoint", 1], rows=rows)
    return text_to_image(
        checkpoint, model=("apply", 0), clip=("apply", 1), extra={"apply": apply}, **options
    )


TWO_LORAS = "<lora:style:0.8>\n<lora:detail:-0.5:0.3>"


def pixels(path):
    """The picture without its metadata, which holds the graph and so differs."""
    with Image.open(path) as image:
        return image.tobytes()


def test_the_same_graph_writes_the_same_bytes_each_time(server, picture, loras, slim_checkpoint):
    graph = with_loras(slim_checkpoint, TWO_LORAS)
    first = picture(graph)
    server.forget()
    second = picture(graph)
    assert first != second
    assert Path(first).read_bytes() == Path(second).read_bytes()


def test_loras_change_the_picture_and_strength_0_is_the_base(picture, loras, slim_checkpoint):
    base = pixels(picture(text_to_image(slim_checkpoint)))
    assert pixels(picture(with_loras(slim_checkpoint, TWO_LORAS))) != base
    zero = with_loras(slim_checkpoint, "<lora:style:0>\n<lora:detail:0>")
    assert pixels(picture(zero)) == base


def test_nodes_are_reported_in_order_and_cached_ones_apart(server, run, slim_checkpoint):
    graph = text_to_image(slim_checkpoint)
    server.forget()
    _, first = run(graph)
    assert (set(first["executed"]), first["cached"]) == (set(graph), [])
    assert first["executed"][-3:] == ["sampler", "decode", "save"]
    _, again = run(graph, "--set", "sampler.seed=8")
    assert again["executed"] == ["sampler", "decode", "save"]
    assert set(again["cached"]) == set(graph) - set(again["executed"])


def test_a_setting_gives_the_picture_of_the_changed_graph(picture, slim_checkpoint):
    graph = text_to_image(slim_checkpoint, seed=7)
    changed = picture(graph, "--set", "KSampler.seed=8", "--set", "SaveImage.filename_prefix=set")
    assert pixels(changed) == pixels(picture(text_to_image(slim_checkpoint, seed=8)))
    assert pixels(changed) != pixels(picture(graph))


def test_a_picture_runs_again_and_gives_the_same_pixels(picture, loras, slim_checkpoint):
    first = picture(with_loras(slim_checkpoint, TWO_LORAS, seed=11))
    again = picture(first, "--set", "SaveImage.filename_prefix=again")
    assert again != first
    assert pixels(again) == pixels(first)


def image_to_image(checkpoint, image):
    graph = text_to_image(checkpoint)
    del graph["latent"]
    graph["load"] = node("LoadImage", image=str(image))
    graph["encode"] = node("VAEEncode", pixels=["load", 0], vae=["checkpoint", 2])
    graph["sampler"]["inputs"].update(latent_image=["encode", 0], denoise=0.5)
    return graph


def write_picture(path, color):
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").point(
        lambda value: value ^ color
    ).save(path)


def test_an_input_beside_the_graph_is_uploaded_and_never_replaces_another(
    server, picture, tmp_path, slim_checkpoint
):
    write_picture(server.input_dir / "sketch.png", 0)
    on_the_server = (server.input_dir / "sketch.png").read_bytes()
    from_server = pixels(picture(image_to_image(slim_checkpoint, "sketch.png")))
    write_picture(tmp_path / "sketch.png", 90)
    from_here = pixels(picture(image_to_image(slim_checkpoint, "sketch.png")))
    assert from_here != from_server
    assert (server.input_dir / "sketch.png").read_bytes() == on_the_server
    elsewhere = tmp_path / "elsewhere" / "other.png"
    elsewhere.parent.mkdir()
    write_picture(elsewhere, 90)
    graph = image_to_image(slim_checkpoint, "x.png")
    assert pixels(picture(graph, "--set", f"LoadImage.image={elsewhere}")) == from_here


def test_an_upload_that_is_too_large_is_refused(run, tmp_path, slim_checkpoint):
    (tmp_path / "big.png").write_bytes(bytes(2_000_000))
    code, document = run(image_to_image(slim_checkpoint, "big.png"))
    assert (code, document["error"]["facts"]["Answer"][:3]) == (2, "413")
    assert "--max-upload-size" in document["error"]["fix"]


def test_refused_inputs_are_named_with_their_nodes(run, slim_checkpoint):
    graph = text_to_image(slim_checkpoint, steps=0)
    graph["checkpoint"]["inputs"]["ckpt_name"] = "absent.safetensors"
    code, document = run(graph)
    assert (code, document["status"]) == (2, "refused")
    found = {(error["node"], error["class"], error["input"]) for error in document["errors"]}
    assert found == {
        ("sampler", "KSampler", "steps"),
        ("checkpoint", "CheckpointLoaderSimple", "ckpt_name"),
    }


@pytest.mark.comfyui("0.30", "its answer names no node")
def test_a_node_that_the_server_lacks_is_named(run, slim_checkpoint):
    graph = text_to_image(slim_checkpoint) | {"odd": node("NoSuchNode")}
    code, document = run(graph)
    (error,) = document["errors"]
    assert (code, error["node"], error["class"]) == (2, "odd", "NoSuchNode")


def test_outputs_that_are_valid_run_while_others_are_refused(run, slim_checkpoint):
    graph = text_to_image(slim_checkpoint)
    graph["broken"] = node("SaveImage", filename_prefix="broken")
    code, document = run(graph)
    assert (code, document["status"]) == (2, "success")
    assert [output["node"] for output in document["outputs"]] == ["save"]
    assert [(e["node"], e["input"]) for e in document["errors"]] == [("broken", "images")]


def test_a_failing_node_is_named_with_what_to_do_and_without_a_traceback(
    server, tmp_path, capsys, slim_checkpoint
):
    path = tmp_path / "graph.json"
    graph = with_loras(slim_checkpoint, "<lora:absent>")
    graph["apply"]["_meta"] = {"title": "My LoRAs"}
    path.write_text(json.dumps(graph))
    assert main(["run", str(path), "--comfyui", server.address]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert 'Node apply "My LoRAs" (LoraWorkbenchApply):\n  The LoRA file absent' in err
    assert "\n  Fix: " in err
    assert "Traceback" not in err and 'File "' not in err
    assert main(["run", str(path), "--comfyui", server.address, "--verbose"]) == 2
    assert 'File "' in capsys.readouterr().err


# A process that is started in the background may have been told to ignore Ctrl-C.
COMMAND = """\
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from lora_workbench.headless.cli import main
sys.exit(main())
"""


def start_long_run(tmp_path, checkpoint, *arguments):
    """The command in its own process, sampling for minutes."""
    path = tmp_path / "long.json"
    path.write_text(json.dumps(text_to_image(checkpoint, steps=LONG)))
    command = [sys.executable, "-c", COMMAND, "run", path, "--json", "--output", tmp_path]
    return subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_on_the_server_and_the_next_is_clean(
    number, server, picture, tmp_path, slim_checkpoint
):
    base = pixels(picture(text_to_image(slim_checkpoint)))
    process = start_long_run(tmp_path, slim_checkpoint, "--comfyui", server.address)
    wait_for(lambda: server.get("queue")["queue_running"], process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["status"]) == (1, "interrupted")
    assert "Interrupted" in err and "Traceback" not in err
    wait_for_idle(server)
    server.forget()
    assert pixels(picture(text_to_image(slim_checkpoint))) == base


def wait_for_idle(server):
    deadline = time.monotonic() + 60
    while server.get("queue")["queue_running"]:
        assert time.monotonic() < deadline, "the run goes on"
        time.sleep(0.05)


@pytest.fixture
def path_options(comfyui_folder, server_base):
    """--comfyui with a folder, for a ComfyUI of the command's own."""
    options = f"--comfyui-args={server_options(server_base)}"
    return ["--comfyui", str(comfyui_folder), options]


def test_a_comfyui_is_started_from_its_folder_and_stopped(
    path_options, tmp_path, capsys, slim_checkpoint
):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(text_to_image(slim_checkpoint)))
    before = children_of(os.getpid(), path_options[1])
    assert main(["run", str(path), *path_options, "--output", str(tmp_path)]) == 0
    result = Path(capsys.readouterr().out.strip())
    assert (result.parent, result.suffix) == (tmp_path, ".png")
    assert children_of(os.getpid(), path_options[1]) == before


def children_of(pid, folder):
    """Processes that ``pid`` started in a folder."""
    names = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(name) for name in names if os.path.realpath(f"/proc/{name}/cwd") == folder]


def test_a_comfyui_that_dies_during_a_run_is_a_clear_error(
    path_options, server_base, tmp_path, slim_checkpoint
):
    process = start_long_run(tmp_path, slim_checkpoint, *path_options)
    wait_for(lambda: children_of(process.pid, path_options[1]), process)
    (comfyui,) = children_of(process.pid, path_options[1])
    wait_for(lambda: is_sampling(comfyui), process)
    os.kill(comfyui, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["status"]) == (1, "lost")
    assert "The connection to ComfyUI was lost" in err
    assert "Traceback" not in err


def is_sampling(comfyui):
    """Whether the ComfyUI with this process id has taken a graph."""
    _, found, rest = Path(f"/proc/{comfyui}/cmdline").read_text().partition("--port\0")
    if not found:  # forked from us a moment ago
        return False
    server = ComfyServer(f"http://127.0.0.1:{rest.partition(chr(0))[0]}", Path())
    try:
        return server.get("queue")["queue_running"]
    except OSError:
        return False
