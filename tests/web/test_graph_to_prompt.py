"""Our conversion against the frontend's own: the same prompt for the same workflow."""

import json

import pytest

from lora_workbench.headless.workflow.convert import to_api
from lora_workbench.headless.workflow.definitions import BROWSER_ONLY

from ..workflow_examples import EXAMPLES

PUBLISHED = (
    "ComfyUI_examples__lcm_basic_example",
    "ComfyUI_examples__lora",
    "ComfyUI_examples__lora_multiple",
    "templates__basic_switch_node",
    "templates__flux_depth_lora_example",
    "templates__image_anima_base_v1",
    "templates__video_wan2_2_14B_t2v",
)


def both_prompts(workflow, server, frontend):
    """Ours and the frontend's; where it translates the title of a class, ours is the server's."""
    theirs, titles = frontend.prompt(workflow)
    ours = to_api(workflow, server.object_info)
    for entry in theirs.values():
        kind, meta = entry["class_type"], entry["_meta"]
        if meta["title"] == titles[kind]:
            meta["title"] = server.object_info[kind]["display_name"] or kind
    return ours, theirs


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_workflow_gives_the_frontends_prompt(name, shared_data, server, frontend):
    workflow = json.loads((shared_data / "workflows" / f"{name}.ui.json").read_text())
    ours, theirs = both_prompts(workflow, server, frontend)
    assert ours == theirs


def test_every_published_workflow_is_in_the_list(shared_data):
    files = (shared_data / "workflows").glob("*.ui.json")
    assert {path.name.removesuffix(".ui.json") for path in files} == set(PUBLISHED)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_a_worked_example_gives_the_frontends_prompt(example, server, frontend):
    workflow, by_hand = example()
    ours, theirs = both_prompts(workflow, server, frontend)
    assert theirs == by_hand
    assert ours == theirs


def test_every_node_of_core_gives_the_frontends_prompt(server, frontend):
    """The widgets of each node, in their order, with their defaults."""
    names = sorted(set(server.object_info) - BROWSER_ONLY)
    assert len(names) > 500
    ours, theirs = both_prompts(frontend.canvas_of(names), server, frontend)
    assert len(theirs) == len(names)
    assert ours == theirs
