"""The real frontend in a real browser, served by a real ComfyUI."""

import os
from pathlib import Path

import pytest

from ..comfy.comfy_source import ComfyUnavailableError
from ..lora_files import text_encoder_modules, unet_modules, write_lora
from .browser import BrowserUnavailableError, Frontend, chromium, opened, wait_until_ready
from .comfyui_server import Server, ServerUnavailableError, make_base, running

LORA = "style.safetensors"
HEADER = {
    "modelspec.title": "Ink of the tests",
    "ss_network_module": "networks.lora",
    "ss_tag_frequency": '{"5_ink": {"ink wash": 9, "paper": 2}}',
}


def missing(what: str):
    """Skip by name; in CI everything has to be there."""
    if os.environ.get("LORA_WORKBENCH_CI") or os.environ.get("CI"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Server:
    """ComfyUI with our pack and no model; ``LORA`` is a file in its LoRA folder."""
    base = tmp_path_factory.mktemp("comfyui")
    modules = [*unet_modules("sd15")[:8], *text_encoder_modules("sd15")[:2]]
    write_lora(make_base(base) / LORA, modules, HEADER, alpha=4.0)
    live_pack = Path(__file__).parents[1] / "live_pack.py"
    (base / "custom_nodes" / live_pack.name).symlink_to(live_pack)
    try:
        with running(base) as started:
            yield started
    except ComfyUnavailableError as error:
        missing(f"ComfyUI is missing: {error}")
    except ServerUnavailableError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def frontend(server) -> Frontend:
    try:
        with chromium() as browser:
            shown = opened(browser, server.url)
            wait_until_ready(shown.page)
            yield shown
    except BrowserUnavailableError as error:
        missing(str(error))


@pytest.fixture(params=[False, True], ids=["classic", "nodes 2.0"])
def shown(request, frontend):
    """The frontend in one of its renderers; afterwards as it was."""
    if request.param and not frontend.has_nodes_2:
        pytest.skip("this frontend has no Nodes 2.0")
    frontend.choose_renderer(request.param)
    yield frontend
    frontend.choose_renderer(False)
