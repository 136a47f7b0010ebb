"""Live panels in ComfyUI: their events, their routes, and how they end."""

import importlib
import io
import json
import time
import urllib.error
import urllib.request
import uuid
from contextlib import nullcontext
from threading import RLock
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from .conftest import node


class FakeServer:
    """What a panel asks of ComfyUI's server; keeps what it sends, with the time."""

    client_id = "page"

    def __init__(self):
        self.sent = []
        extra = {"extra_pnginfo": {"workflow": {"id": "w"}}}
        self.prompt_queue = SimpleNamespace(
            mutex=RLock(), currently_running={0: (0, "p", {}, extra, [])}
        )

    def send_sync(self, event, data, client):
        assert (event, client) == ("lora_workbench.live", "page")
        self.sent.append((time.monotonic(), json.loads(json.dumps(data))))

    @property
    def events(self):
        return [event for _, event in self.sent]


@pytest.fixture
def fake(comfy, monkeypatch):
    from server import PromptServer

    fake = FakeServer()
    monkeypatch.setattr(PromptServer, "instance", fake, raising=False)
    return fake


@pytest.fixture
def panels(comfy):
    return importlib.import_module(f"{comfy.pack.__name__}.hosts.live_panel").Panels()


@pytest.fixture
def live(comfy, panels):
    """Opens a panel as a node with id 12:5 does that runs in prompt p."""
    from comfy_execution.utils import CurrentNodeContext

    module = importlib.import_module(f"{comfy.pack.__name__}.hosts.comfy.live")

    with CurrentNodeContext("p", "12:5"):
        yield lambda: module.live(panels, "12:5")


def until(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_events_are_few_and_hold_everything(live, fake):
    start = time.monotonic()
    with live() as shown:
        for step in range(1, 1501):
            shown.progress(step, 1500, "a")
            shown.point("loss", step, 1 / step)
            time.sleep(0.0005)
    took = time.monotonic() - start
    assert 2 <= len(fake.events) <= took / 0.1 + 3
    assert [event["number"] for event in fake.events] == list(range(1, len(fake.events) + 1))
    points = [point for event in fake.events for point in event.get("points", {}).get("loss", [])]
    assert [x for x, _ in points] == list(range(1, 1501))
    assert fake.events[0]["state"] == "running"
    assert fake.events[-1]["state"] == "done"
    assert {(e["workflow"], e["prompt"], e["node"]) for e in fake.events} == {("w", "p", "12:5")}


def test_the_last_value_is_sent_while_the_node_works_on(live, fake):
    with live() as shown:
        for step in (1, 2, 3):
            shown.progress(step, 9)
        until(lambda: fake.events[-1].get("progress", {}).get("step") == 3)


@pytest.mark.parametrize("end", ["done", "kept", "stopped", "failed"])
def test_how_a_node_ended_is_told(live, fake, panels, end):
    from comfy.model_management import InterruptProcessingException, interrupt_current_processing

    kind = {"stopped": InterruptProcessingException, "failed": RuntimeError}.get(end)
    with pytest.raises(kind) if kind else nullcontext(), live() as shown:
        assert shown.stop_requested() is None
        if end == "kept":
            assert panels.get("p", "12:5").ask_to_keep()
            assert shown.stop_requested() == "keep"
        if end == "stopped":
            interrupt_current_processing(True)
            shown.progress(1, 2)
        if end == "failed":
            raise RuntimeError
    assert fake.events[-1]["state"] == end
    assert panels.get("p", "12:5").snapshot()["state"] == end
    assert not panels.get("p", "12:5").ask_to_keep()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_picture_is_small_and_shows_what_it_was_given(live, fake, panels, dtype):
    image = torch.zeros(600, 1200, 3, dtype=dtype)
    image[..., 0] = 2.0  # beyond white
    with live() as shown:
        shown.picture(image, "step 4")
    (strip,) = [event["pictures"] for event in fake.events if "pictures" in event]
    assert strip == [{"number": 1, "caption": "step 4"}]
    picture = panels.get("p", "12:5").picture_of("1")
    with Image.open(io.BytesIO(picture.data)) as opened:
        assert opened.size == (1024, 512)
        red, green, blue = opened.convert("RGB").getpixel((500, 250))
    assert red > 245
    assert max(green, blue) < 10


def test_without_a_server_a_node_runs_all_the_same(live, comfy, monkeypatch):
    from server import PromptServer

    monkeypatch.delattr(PromptServer, "instance", raising=False)
    with live() as shown:
        shown.progress(1, 2)
        assert shown.stop_requested() is None


def call(server, path, body=None, content_type="application/json", **headers):
    """Status and JSON of a route."""
    request = urllib.request.Request(f"{server.address}/{path}", body)
    request.add_header("Content-Type", content_type)
    for name, value in headers.items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text else None


@pytest.fixture
def running(server):
    """A run of the probe that lasts until it is stopped; its id."""
    workflow = {"extra_pnginfo": {"workflow": {"id": "w"}}}
    prompt_id = str(uuid.uuid4())
    prompt = {"5": node("LiveProbe", steps=1200, label="x")}
    body = {"prompt": prompt, "prompt_id": prompt_id, "extra_data": workflow}
    prompt_id = call(server, "prompt", json.dumps(body).encode())[1]["prompt_id"]
    until(lambda: any(is_at_work(panel, prompt_id) for panel in states(server)), 30)
    yield prompt_id
    server.post("interrupt", {})
    until(lambda: not server.get("queue")["queue_running"], 30)


def states(server, **query):
    text = "&".join(f"{name}={value}" for name, value in query.items())
    return server.get(f"lora_workbench/live?{text}")["panels"]


def is_at_work(panel, prompt_id):
    return panel["prompt"] == prompt_id and panel["progress"].get("step", 0) > 12


def test_the_state_of_a_run_is_there_for_a_page_that_comes_late(server, running):
    (panel,) = states(server, node="5", workflow="w")
    assert (panel["state"], panel["workflow"], panel["prompt"]) == ("running", "w", running)
    assert panel["points"]["loss"][:2] == [[1.0, 1.0], [2.0, 0.5]]
    assert [p["caption"] for p in panel["pictures"]][:2] == ["step 1", "step 11"]
    assert states(server, node="99") == []
    assert states(server, workflow="other") == []
    address = f"{server.address}/lora_workbench/live_picture?prompt={running}&node=5&number=1"
    with urllib.request.urlopen(address) as answer:
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert Image.open(io.BytesIO(answer.read())).size == (64, 48)
    for number in ("99", "0", "-1", "x", ""):
        path = f"lora_workbench/live_picture?prompt={running}&node=5&number={number}"
        assert call(server, path)[0] == 404


def test_a_run_that_is_asked_to_keep_ends_with_what_it_has(server, running):
    wish = json.dumps({"prompt": running, "node": "5"}).encode()
    assert call(server, "lora_workbench/keep", wish) == (200, {"keep": True})
    until(lambda: running in server.get("history"), 30)
    entry = server.get("history")[running]
    assert entry["status"]["status_str"] == "success"
    ((text,),) = [output["text"] for output in entry["outputs"].values()]
    step = int(text.removeprefix("x: ").partition(" of ")[0])
    assert 12 < step < 1200
    (panel,) = states(server, node="5", workflow="w")
    assert (panel["state"], panel["progress"]["step"]) == ("kept", step)
    status, found = call(server, "lora_workbench/keep", wish)
    assert (status, found["error"]["headline"]) == (404, "This node does not run any more.")


def test_wishes_of_other_sites_and_damaged_ones_are_refused(server, running):
    wish = json.dumps({"prompt": running, "node": "5"}).encode()
    keep = "lora_workbench/keep"
    assert call(server, keep, wish, "text/plain")[0] == 415
    assert call(server, keep, wish, "application/x-www-form-urlencoded")[0] == 415
    assert call(server, keep, wish, Origin="https://evil.example")[0] == 403
    assert call(server, keep, b" " * 5000 + wish)[0] == 413
    for damaged in (b"{", b"[]", b"3", b"null", b'{"prompt": 1}', b"\xff\xfe"):
        assert call(server, keep, damaged)[0] == 400
    for unknown in ({"prompt": running, "node": "6"}, {"prompt": [], "node": {}}):
        assert call(server, keep, json.dumps(unknown).encode())[0] == 404
    (panel,) = states(server, node="5", workflow="w")
    assert (panel["state"], panel["keep"]) == ("running", False)


def test_two_copies_of_the_pack_offer_each_route_once(comfy, panels):
    from aiohttp import web

    routes = importlib.import_module(f"{comfy.pack.__name__}.hosts.comfy.live_routes")
    table = web.RouteTableDef()
    for _ in range(2):
        routes.add_live_routes(table, panels)
    web.Application().add_routes(table)
    assert [route.path for route in table] == [
        f"/lora_workbench/{name}" for name in ("live", "live_picture", "keep")
    ]
