"""``run`` without a ComfyUI: what it reads, what it refuses, and servers that behave badly."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lora_workbench.headless import comfy_server
from lora_workbench.headless.cli import main
from lora_workbench.headless.comfy_server import started_server
from lora_workbench.headless.run_errors import RunFailedError
from lora_workbench.headless.set_inputs import find_settings, with_settings
from lora_workbench.headless.upload_inputs import local_inputs
from lora_workbench.lora_core.errors import LoraError

PROMPT = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["4", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
    "6": {
        "class_type": "CLIPTextEncode",
        "inputs": {"text": "sea", "clip": ["4", 1]},
        "_meta": {"title": "Positive"},
    },
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}, "_meta": {"title": "v1.5 not"}},
    "9": {
        "class_type": "Switches",
        "inputs": {"count": "2", "count.name_1": "x", "rows": "[]"},
        "_meta": {"title": "Twin"},
    },
    "10": {"class_type": "LoadImage", "inputs": {"image": "sea.png"}, "_meta": {"title": "Twin"}},
}
OBJECT_INFO = {
    "KSampler": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"default": 0}],
                "cfg": ["FLOAT", {"default": 8.0}],
                "sampler_name": [["euler", "heun"]],
            }
        }
    },
    "CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [["a.safetensors"]]}}},
    "CLIPTextEncode": {"input": {"required": {"text": ["STRING", {}], "clip": ["CLIP"]}}},
    "Switches": {
        "input": {
            "required": {"count": ["COMFY_DYNAMICCOMBO_V3", {}]},
            "optional": {
                "on": ["BOOLEAN", {}],
                "size": ["COMBO", {"options": [64, 128]}],
                "rows": ["STRING", {"widgetType": "ROWS"}],
            },
        }
    },
    "LoadImage": {"input": {"required": {"image": [["b.png"], {"image_upload": True}]}}},
}


def set_in(text):
    """The prompt's changed input after one ``--set``: node, input, value."""
    (setting,) = find_settings([text], PROMPT, OBJECT_INFO)
    assert with_settings(PROMPT, [setting])[setting.node]["inputs"][setting.input] == setting.value
    return setting.node, setting.input, setting.value


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3.seed=5", ("3", "seed", 5)),
        ("KSampler.cfg=7", ("3", "cfg", 7.0)),
        ("KSampler.sampler_name=heun", ("3", "sampler_name", "heun")),
        ("Positive.text=a lake = 2", ("6", "text", "a lake = 2")),
        ("6.text=", ("6", "text", "")),
        ('6.text="two\\nlines"', ("6", "text", "two\nlines")),
        ("6.text=5", ("6", "text", "5")),
        ("v1.5 not.text=blur", ("7", "text", "blur")),
        ("9.count.name_1=y", ("9", "count.name_1", "y")),
        ("9.on=True", ("9", "on", True)),
        ("9.size=128", ("9", "size", 128)),
        ('9.rows=[{"name": "a"}]', ("9", "rows", '[{"name": "a"}]')),
        ("9.count=3", ("9", "count", 3)),
    ],
)
def test_a_value_is_read_by_the_type_of_its_input(text, found):
    node, name, value = set_in(text)
    assert (node, name, value) == found
    assert type(value) is type(found[2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3.seed", "Cannot read --set '3.seed'"),
        ("3.seed=1.5", r'"?KSampler"? takes a whole number'),
        ("3.cfg=nan", "takes a number"),
        ("9.on=perhaps", "takes true or false"),
        ("3.sed=5", r"input of KSampler 'sed'[\s\S]*Known: cfg, model, .*[\s\S]*use 'seed'"),
        ("Sampler.seed=5", "no node is called 'Sampler'[\\s\\S]*Node 3: KSampler"),
        ("CLIPTextEncode.text=x", r"2 nodes are called[\s\S]*Node 7: \"v1.5 not\""),
        ("Twin.on=true", "2 nodes are called 'Twin'[\\s\\S]*--set 9.on="),
        ("3.model=x", "is a connection, not a value[\\s\\S]*Connected to: node 4, output 0"),
    ],
)
def test_a_setting_that_cannot_be_made_says_why(text, message):
    with pytest.raises(LoraError, match=message):
        set_in(text)


def test_settings_leave_the_graph_that_was_read_alone():
    before = json.dumps(PROMPT)
    with_settings(PROMPT, find_settings(["3.seed=77"], PROMPT, OBJECT_INFO))
    assert json.dumps(PROMPT) == before


def uploads_of(image, folders, *, chosen=False):
    setting = find_settings([f"10.image={image}"], PROMPT, OBJECT_INFO)
    prompt = with_settings(PROMPT, setting)
    found = local_inputs(prompt, OBJECT_INFO, folders, setting if chosen else ())
    return [path for _, path in found]


def test_a_graph_uploads_only_what_lies_in_its_folder_or_the_working_folder(tmp_path):
    beside, working = tmp_path / "beside", tmp_path / "working"
    for folder in (beside, working, beside / "sub"):
        folder.mkdir()
    (tmp_path / "secret.png").touch()
    (beside / "sub" / "a.png").touch()
    (beside / "link.png").symlink_to(tmp_path / "secret.png")
    (working / "b.png").touch()
    folders = (beside, working)
    assert uploads_of("sub/a.png", folders) == [(beside / "sub" / "a.png").resolve()]
    assert uploads_of("b.png", folders) == [(working / "b.png").resolve()]
    for name in ("on_the_server.png", "../secret.png", "link.png", tmp_path / "secret.png", "sub"):
        assert uploads_of(name, folders) == []


def test_a_file_that_the_user_names_may_lie_anywhere(tmp_path):
    path = tmp_path / "photo.png"
    path.touch()
    assert uploads_of(path, (), chosen=True) == [path]


def test_an_input_that_reads_the_output_folder_is_not_uploaded(tmp_path):
    (tmp_path / "sea.png").touch()
    spec = [["b.png"], {"image_upload": True, "image_folder": "output"}]
    info = {"LoadImage": {"input": {"required": {"image": spec}}}}
    assert list(local_inputs(PROMPT, info, [tmp_path], ())) == []


@pytest.fixture
def graph(tmp_path):
    """A graph file with one node."""
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"1": {"class_type": "Some", "inputs": {}}}))
    return path


def refused(capsys, *arguments):
    """The error of a command whose input is wrong."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 2
    return json.loads(capsys.readouterr().out)["error"]


def test_without_comfyui_a_folder_of_models_is_needed(capsys, graph, tmp_path):
    error = refused(capsys, "run", graph, "--models", tmp_path / "no")
    assert "folder of models does not exist" in error["headline"]
    assert "--models" in error["fix"]
    assert "--comfyui" in error["fix"]


def test_an_address_without_a_scheme_is_corrected(capsys, graph):
    error = refused(capsys, "run", graph, "--comfyui", "127.0.0.1:8188")
    assert "http://127.0.0.1:8188" in error["fix"]


def test_a_graph_that_is_not_there_is_found_out_before_comfyui_starts(capsys, tmp_path):
    error = refused(capsys, "run", tmp_path / "no.json", "--comfyui", tmp_path)
    assert "no.json" in error["headline"]


def test_without_aiohttp_the_fix_is_one_pip_line(capsys, graph, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    error = refused(capsys, "run", graph, "--comfyui", "http://127.0.0.1:8188")
    assert error["fix"] == 'pip install "comfyui-lora-workbench[headless]"'


class StubHandler(BaseHTTPRequestHandler):
    """Answers from a table; it has no websocket, like some proxies."""

    def do_GET(self):
        path = urlsplit(self.path).path.strip("/")
        answer = self.server.answers.get(path, self.server.answers.get(path.partition("/")[0]))
        status, body = (404, b"<html>") if answer is None else answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        size = int(self.headers["Content-Length"])
        self.server.posted[self.path.strip("/")] = self.rfile.read(size)
        self.do_GET()

    def log_message(self, *_):
        """Quiet."""


@contextmanager
def stub_server(answers):
    server = ThreadingHTTPServer(("127.0.0.1", 0), StubHandler)
    server.answers, server.posted = answers, {}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


COMFYUI = {
    "system_stats": (200, b'{"system": {"comfyui_version": "0.30.0"}}'),
    "object_info": (200, b"{}"),
    "queue": (200, b'{"queue_running": [], "queue_pending": []}'),
}


@pytest.mark.parametrize(
    ("answers", "headline"),
    [
        ({}, "is no ComfyUI"),
        ({"system_stats": (200, b"[1]")}, "is no ComfyUI"),
        ({"system_stats": (200, b'{"system": {"name": "other"}}')}, "is no ComfyUI"),
        ({"system_stats": (502, b"Bad Gateway")}, "is no ComfyUI"),
        ({"system_stats": (401, b"")}, "only with a password"),
    ],
)
def test_a_server_of_another_kind_is_named(capsys, graph, answers, headline):
    with stub_server(answers) as (_, address):
        error = refused(capsys, "run", graph, "--comfyui", address)
    assert headline in error["headline"]
    assert error["facts"]["Address"].startswith(address)


def test_a_refused_connection_is_wrong_input(capsys, graph):
    with stub_server({}) as (_, address):
        pass
    error = refused(capsys, "run", graph, "--comfyui", address)
    assert "No ComfyUI can be reached" in error["headline"]


def test_a_password_in_the_address_is_not_shown(capsys, graph):
    with stub_server({}) as (_, address):
        secret = address.replace("//", "//me:secret@")
        error = refused(capsys, "run", graph, "--comfyui", secret)
    assert "secret" not in json.dumps(error)


def test_a_run_is_polled_where_no_websocket_comes_through_and_names_are_confined(
    capsys, graph, tmp_path
):
    """The history answers for any id, so the client must look up its own."""
    output = tmp_path / "output"
    file = {"filename": "../../C:\\ev\x1bil.png", "subfolder": "", "type": "output"}
    with stub_server(dict(COMFYUI)) as (server, address):

        def history(prompt_id):
            entry = {
                "status": {"messages": [["execution_success", {}]]},
                "outputs": {"1": {"images": [file, file]}},
            }
            return 200, json.dumps({prompt_id: entry}).encode()

        class Answers(dict):
            def get(self, path, default=None):
                if path.startswith("history/"):
                    return history(path.partition("/")[2])
                return super().get(path, default)

        server.answers = Answers(COMFYUI, prompt=(200, b"{}"), view=(200, b"pixels"))
        code = main(["run", str(graph), "--comfyui", address, "--output", str(output), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (code, document["status"]) == (0, "success")
    assert sorted(path.name for path in output.iterdir()) == ["ev_il-1.png", "ev_il.png"]
    assert json.loads(server.posted["prompt"])["prompt_id"] == document["prompt_id"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"prompt": (200, b"{}"), "history": (200, b"{}")}, "no longer knows the run"),
        ({"prompt": (200, b"<html>")}, "The answer is not ComfyUI's"),
        ({"prompt": (500, b"")}, "ComfyUI refused a request"),
    ],
)
def test_a_run_that_gets_lost_fails(capsys, graph, answers, message):
    with stub_server(COMFYUI | answers) as (_, address):
        code = main(["run", str(graph), "--comfyui", address, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (code, document["status"]) == (1, "lost")
    assert message in document["errors"][0]["message"]


@pytest.fixture
def comfyui_folder(tmp_path):
    """Write a folder that looks like a ComfyUI, with this main.py."""

    def write(source):
        folder = tmp_path / "ComfyUI"
        (folder / "comfy").mkdir(parents=True)
        (folder / "main.py").write_text(source)
        return folder

    return write


SERVING = """\
import json, os, signal, socket, subprocess, sys, time
if {stubborn}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
facts = [os.getpid(), child.pid, sys.executable, sys.argv[1:], os.getcwd()]
open("facts.json", "w").write(json.dumps(facts))
server = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
time.sleep(600)
"""


def is_running(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(*pids):
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_started_comfyui_and_its_children_are_stopped(comfyui_folder, monkeypatch, stubborn):
    monkeypatch.setattr(comfy_server, "_STOP_SECONDS", 0.2)
    folder = comfyui_folder(SERVING.format(stubborn=stubborn))
    with pytest.raises(KeyboardInterrupt), started_server(folder, "--cpu --x 'a b'") as address:
        pid, child, _, arguments, working_folder = json.loads((folder / "facts.json").read_text())
        assert (is_running(pid), is_running(child)) == (True, True)
        raise KeyboardInterrupt
    wait_until_gone(pid, child)
    assert address == f"http://127.0.0.1:{arguments[arguments.index('--port') + 1]}"
    assert arguments[-3:] == ["--cpu", "--x", "a b"]
    assert Path(working_folder) == folder.resolve()


@pytest.mark.skipif(os.name != "posix", reason="a virtual environment as on Linux")
def test_comfyui_runs_on_the_python_of_its_own_environment(comfyui_folder):
    folder = comfyui_folder(SERVING.format(stubborn=False))
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    with started_server(folder):
        assert json.loads((folder / "facts.json").read_text())[2] == str(python)


def test_a_comfyui_that_does_not_start_shows_the_end_of_its_log(comfyui_folder):
    folder = comfyui_folder("print('first', '.\\n' * 30, 'Found no NVIDIA driver'); exit(3)")
    with pytest.raises(RunFailedError) as caught, started_server(folder):
        pass
    message = str(caught.value)
    assert "exit code 3" in message
    assert "Found no NVIDIA driver" in message
    assert "first" not in message
    assert "--comfyui-args=--cpu" in caught.value.fix


def test_a_folder_without_comfyui_is_wrong_input(capsys, graph, tmp_path):
    (tmp_path / "main.py").write_text("open('ran', 'w')")
    error = refused(capsys, "run", graph, "--comfyui", tmp_path)
    assert error["facts"]["Missing"] == "comfy"
    assert not (tmp_path / "ran").exists()


def test_the_other_commands_work_without_aiohttp():
    source = "import sys; sys.modules['aiohttp'] = None; from lora_workbench.headless import cli"
    subprocess.run([sys.executable, "-c", source], check=True)
