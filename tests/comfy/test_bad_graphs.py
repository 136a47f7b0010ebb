"""Bad input and bad timing: a node and a cause are named, and the next run is clean."""

import importlib
import shutil

import pytest
import torch

from .checkpoints import SLIM, LoraTarget, lora_targets, write_lora
from .conftest import NodeFailedError, node, text_to_image

GOOD = "good.safetensors"
OTHER_SHAPES = [LoraTarget("unet.mid_block.attentions.0.proj_in", "", (1280, 1280, 1, 1))]


@pytest.fixture(scope="module")
def good_lora(comfy, slim_checkpoint):
    """A LoRA for every weight, which a test may put under other names."""
    path = comfy.loras_dir / GOOD
    write_lora(path, lora_targets(SLIM), seed=21, alpha=2.0)
    return path


@pytest.fixture
def own_lora(good_lora):
    """A copy of the LoRA that a test may spoil."""
    path = good_lora.with_name("own.safetensors")
    shutil.copyfile(good_lora, path)
    yield path
    path.unlink(missing_ok=True)


def applied(checkpoint, rows, steps=1):
    """Text to image through Apply LoRAs."""
    apply = node("LoraWorkbenchApply", model=["checkpoint", 0], clip=["checkpoint", 1], rows=rows)
    return text_to_image(
        checkpoint, model=("apply", 0), clip=("apply", 1), extra={"apply": apply}, steps=steps
    )


def picture(result):
    (path,) = result.pictures
    return path.read_bytes()


@pytest.fixture(scope="module")
def clean_pictures(comfy, slim_checkpoint, good_lora):
    """Graphs of the base and of the LoRA, with their pictures."""
    graphs = [text_to_image(slim_checkpoint), applied(slim_checkpoint, f"<lora:{GOOD}>")]
    return [(graph, picture(comfy.run(graph))) for graph in graphs]


@pytest.fixture
def clean_afterwards(executor, clean_pictures):
    """Check that base and LoRA give, in the ComfyUI of the test, what they gave before."""
    yield
    for graph, expected in clean_pictures:
        assert picture(executor.run(graph)) == expected


def missing(path):
    path.unlink()


def for_another_base(path):
    write_lora(path, OTHER_SHAPES)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def without_a_header(path):
    path.write_bytes(b"\xff" * 4096)


def an_html_page(path):
    path.write_text("<!DOCTYPE html><html><body>Please log in.</body></html>")


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (missing, "own.* is missing"),
        (for_another_base, r"own\.safetensors[\s\S]*(base|model)"),
        (cut, r"own\.safetensors[\s\S]*(damaged|incomplete)"),
        (without_a_header, r"own\.safetensors[\s\S]*Fix: "),
        (an_html_page, r"own\.safetensors[\s\S]*Fix: "),
    ],
)
def test_a_file_that_cannot_be_applied_is_named_by_the_node(
    spoil, cause, executor, slim_checkpoint, own_lora, clean_afterwards
):
    spoil(own_lora)
    with pytest.raises(NodeFailedError, match=cause) as caught:
        executor.run(applied(slim_checkpoint, "<lora:own>"))
    assert (caught.value.node_id, caught.value.node_type) == ("apply", "LoraWorkbenchApply")
    assert "\nFix: " in caught.value.message


def when_node_runs(executor, monkeypatch, node_id, action):
    """Call ``action`` once, just before a node runs."""
    send = executor._server.send_sync

    def send_sync(event, data, sid=None):
        send(event, data, sid)
        if event == "executing" and data["node"] == node_id:
            action()

    monkeypatch.setattr(executor._server, "send_sync", send_sync)


def replaced(path):
    other = path.with_suffix(".new")
    write_lora(other, lora_targets(SLIM), seed=22, alpha=2.0)
    other.replace(path)


def loaded_then_applied(checkpoint):
    """The file's names are read by one node and its factors by the next."""
    graph = applied(checkpoint, "[]")
    graph["load"] = node(
        "LoraWorkbenchLoad", lora_name="own.safetensors", strength_model=1.0, strength_clip=1.0
    )
    graph["apply"]["inputs"]["lora_stack"] = ["load", 0]
    return graph


@pytest.mark.parametrize("spoil", [missing, cut, replaced])
def test_a_file_that_changes_before_it_is_applied_stops_the_run(
    spoil, executor, monkeypatch, slim_checkpoint, own_lora, clean_afterwards
):
    """A mixture of two files must not become a picture."""
    with monkeypatch.context() as patch:
        when_node_runs(executor, patch, "apply", lambda: spoil(own_lora))
        with pytest.raises(NodeFailedError, match=r"own\.safetensors") as caught:
            executor.run(loaded_then_applied(slim_checkpoint))
    assert (caught.value.node_id, caught.value.node_type) == ("apply", "LoraWorkbenchApply")
    assert "\nFix: " in caught.value.message


def test_a_file_that_was_replaced_is_read_anew_by_the_next_run(
    comfy, executor, monkeypatch, slim_checkpoint, own_lora
):
    graph = loaded_then_applied(slim_checkpoint)
    with monkeypatch.context() as patch:
        when_node_runs(executor, patch, "apply", lambda: replaced(own_lora))
        with pytest.raises(NodeFailedError):
            executor.run(graph)
    assert picture(executor.run(graph)) == picture(comfy.run(graph))


@pytest.mark.parametrize("spoil", [missing, replaced])
def test_a_file_that_changes_after_it_is_applied_changes_nothing_in_this_run(
    spoil, executor, monkeypatch, slim_checkpoint, own_lora, clean_pictures
):
    """``own`` began as a copy of the LoRA whose picture is known."""
    when_node_runs(executor, monkeypatch, "sampler", lambda: spoil(own_lora))
    (_, with_lora) = clean_pictures[1]
    assert picture(executor.run(applied(slim_checkpoint, "<lora:own>"))) == with_lora


@pytest.fixture
def interrupt_at_step(comfy):
    """Interrupt a sampler as the server's progress hook does."""
    from comfy import model_management, utils

    def interrupt_at(step):
        def hook(value, total, preview, **_):
            if value >= step:
                raise model_management.InterruptProcessingException

        utils.set_progress_bar_global_hook(hook)

    yield interrupt_at
    utils.set_progress_bar_global_hook(None)


def test_an_interrupt_while_sampling_leaves_a_clean_model(
    executor, interrupt_at_step, slim_checkpoint, clean_afterwards
):
    interrupt_at_step(2)
    result = executor.run(applied(slim_checkpoint, f"<lora:{GOOD}:0.7>", steps=3))
    interrupt_at_step(1000)
    assert (result.executed[-1], result.pictures) == ("sampler", ())


@pytest.mark.parametrize("after", [1, 20])
def test_an_interrupt_while_patching_leaves_a_clean_model(
    after, comfy, executor, monkeypatch, slim_checkpoint, clean_afterwards
):
    from comfy import model_management

    module = importlib.import_module(f"{comfy.pack.__name__}.hosts.comfy.adapter")
    update, calls = module.FusedLoraAdapter.update, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) > after:
            raise model_management.InterruptProcessingException
        return update(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module.FusedLoraAdapter, "update", interrupted)
        result = executor.run(applied(slim_checkpoint, f"<lora:{GOOD}:0.6>"))
    assert after < len(calls) <= after + torch.get_num_threads()  # each thread may be in one
    assert result.pictures == ()
