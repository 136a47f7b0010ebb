"""A client of ComfyUI's HTTP and websocket interface."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import aiohttp
from yarl import URL

from ..lora_core.errors import LoraError
from .new_file import new_file
from .run_errors import NodeError, RunFailedError, failure, refusals

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300)
_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=30)
_HEARTBEAT = 60.0  # seconds; a loading ComfyUI answers nothing for a while
_MAX_MESSAGE = 64 * 2**20  # bytes; previews come through the same websocket
_POLL = 1.0  # seconds
_CHUNK = 2**20  # bytes
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# What ComfyUI says last about a run, and what that means.
_ENDS = {
    "execution_success": "success",
    "execution_error": "error",
    "execution_interrupted": "interrupted",
}

Watch = Callable[[str, Mapping[str, Any]], None]


class RefusedError(LoraError):
    """ComfyUI will not run the graph; ``errors`` says why, node by node."""

    def __init__(self, errors: tuple[NodeError, ...]) -> None:
        self.errors = errors
        super().__init__("ComfyUI refused the graph.")


@dataclass
class RunRecord:
    """What is known about one run.

    Attributes:
        prompt: In API form.
        prompt_id: ComfyUI's name of the run.
        refused: Why ComfyUI leaves some outputs out; it runs the others.
        status: "running", then "success", "error" or "interrupted".
        executed: Nodes in order; empty when the events could not be followed.
        cached: Nodes whose results ComfyUI still had.
        errors: What nodes raised.
        outputs: Node id to what it shows, as in /history.
    """

    prompt: Mapping[str, Any]
    prompt_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    refused: tuple[NodeError, ...] = ()
    status: str = "running"
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    errors: list[NodeError] = field(default_factory=list)
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def add(self, event: str, data: Mapping[str, Any]) -> None:
        """Take one event; an event may come twice, from the websocket and from the history."""
        if event == "executing" and data["node"] and data["node"] not in self.executed:
            self.executed.append(data["node"])
        elif event == "execution_cached":
            self.cached = list(data["nodes"])
        elif event == "execution_error":
            error = failure(self.prompt, data)
            if error not in self.errors:
                self.errors.append(error)
        self.status = _ENDS.get(event, self.status)


class ComfyClient:
    """A running ComfyUI; made by ``connected``."""

    def __init__(self, session: aiohttp.ClientSession, url: URL) -> None:
        self._session, self._url = session, url
        self._client_id = uuid.uuid4().hex

    async def object_info(self) -> dict[str, Any]:
        """What ComfyUI says about every node class."""
        return await self._json("GET", "object_info")

    async def upload(self, path: Path) -> str:
        """Put a file into ComfyUI's input folder.

        Returns:
            Its name there: another one when a different file of this name exists.
        """
        with path.open("rb") as file:
            form = aiohttp.FormData()
            form.add_field("image", file, filename=path.name)
            answer = await self._json("POST", "upload/image", data=form)
        return str(PurePosixPath(answer["subfolder"], answer["name"]))

    async def run(
        self, prompt: Mapping[str, Any], workflow: Mapping[str, Any] | None, watch: Watch
    ) -> RunRecord:
        """Run a graph to its end; when cancelled, ComfyUI stops it too.

        Args:
            prompt: In API form.
            workflow: The graph as the canvas draws it, for the metadata of pictures, or None.
            watch: Called with each event of this run and its data.

        Raises:
            RefusedError: validation found an error in every output.
            RunFailedError: the connection was lost.
        """
        record = RunRecord(prompt)
        async with self._websocket() as socket:
            try:
                await self._queue(record, workflow)
                async for event, data in _events(socket, record.prompt_id):
                    record.add(event, data)
                    watch(event, data)
                await self._finish(record)
            except (asyncio.CancelledError, KeyboardInterrupt):
                await self._stop(record.prompt_id)
                raise
        return record

    async def fetch(self, file: Mapping[str, str], folder: Path) -> Path:
        """Copy one result into ``folder``; an existing file is never replaced.

        Args:
            file: ``{"filename", "subfolder", "type"}`` as in /history.
            folder: Must exist.
        """
        # A server names the file: only the last part of the name is used.
        last = PurePosixPath(file["filename"].replace("\\", "/")).name or "result"
        name = "".join(letter if letter.isprintable() else "_" for letter in last)
        async with self._request("GET", "view", params=dict(file)) as response:
            await _require(response)
            path = new_file(folder, name)
            try:
                with path.open("wb") as part:
                    async for chunk in response.content.iter_chunked(_CHUNK):
                        part.write(chunk)
            except BaseException:
                path.unlink()
                raise
        return path

    async def _queue(self, record: RunRecord, workflow: Mapping[str, Any] | None) -> None:
        body: dict[str, Any] = {
            "prompt": record.prompt,
            "prompt_id": record.prompt_id,
            "client_id": self._client_id,
        }
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        async with self._request("POST", "prompt", json=body) as response:
            if response.status == 400:
                raise RefusedError(refusals(record.prompt, await _object(response)))
            await _require(response)
            record.refused = refusals(record.prompt, await _object(response))

    async def _finish(self, record: RunRecord) -> None:
        """Complete the record from the history, waiting until the run is there."""
        while True:
            waiting = await self._is_queued(record.prompt_id)
            history = await self._json("GET", f"history/{record.prompt_id}")
            if record.prompt_id in history:
                break
            if not waiting:
                raise RunFailedError(
                    "ComfyUI no longer knows the run.",
                    {"Server": _shown(self._url), "Run": record.prompt_id},
                    "it was deleted or ComfyUI was restarted; run the graph again.",
                )
            await asyncio.sleep(_POLL)
        entry = history[record.prompt_id]
        for event, data in entry["status"]["messages"]:
            record.add(event, data)
        record.outputs = entry["outputs"]

    async def _is_queued(self, prompt_id: str) -> bool:
        queue = await self._json("GET", "queue")
        return any(item[1] == prompt_id for item in queue["queue_running"] + queue["queue_pending"])

    async def _stop(self, prompt_id: str) -> None:
        """Take our run, and no other, out of the queue or interrupt it."""
        for path, body in (
            ("queue", {"delete": [prompt_id]}),
            ("interrupt", {"prompt_id": prompt_id}),
        ):
            async with self._request("POST", path, json=body) as response:
                await _require(response)

    @asynccontextmanager
    async def _websocket(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse | None]:
        """The events of this client; None where a proxy lets no websocket through."""
        url = (self._url / "ws").with_query(clientId=self._client_id)
        try:
            socket = await self._session.ws_connect(
                url, heartbeat=_HEARTBEAT, max_msg_size=_MAX_MESSAGE
            )
        except aiohttp.ClientError:
            yield None
            return
        async with socket:
            yield socket

    async def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401
        async with self._request(method, path, **options) as response:
            await _require(response)
            return await _object(response)

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        **options: Any,  # noqa: ANN401  aiohttp's own
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.request(method, self._url / path, **options) as response:
                yield response
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise RunFailedError(
                "The connection to ComfyUI was lost.",
                {"Server": _shown(self._url), "Problem": _problem(error)},
                "look into ComfyUI's log, start it again and run the graph again.",
            ) from error


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[ComfyClient]:
    """A client of the ComfyUI at ``address``, such as ``http://127.0.0.1:8188``.

    Raises:
        LoraError: nothing answers there, or something that is no ComfyUI.
    """
    url = _parsed(address)
    # A proxy named in the environment cannot reach this machine's own addresses.
    async with aiohttp.ClientSession(
        timeout=_TIMEOUT, trust_env=url.host not in _LOOPBACK
    ) as session:
        await _probe(session, url)
        yield ComfyClient(session, url)


def _parsed(address: str) -> URL:
    try:
        # A pasted address may end in the name of an open workflow.
        return URL(address).with_query(None).with_fragment(None)
    except ValueError as error:
        raise LoraError(
            "This is no address.",
            {"Address": address, "Problem": error},
            "write it like http://127.0.0.1:8188.",
        ) from error


async def _probe(session: aiohttp.ClientSession, url: URL) -> None:
    """Raise LoraError unless a ComfyUI answers."""
    facts = {"Address": _shown(url)}
    try:
        async with session.get(url / "system_stats", timeout=_PROBE_TIMEOUT) as response:
            text = await response.text(errors="replace")
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        raise LoraError(
            "No ComfyUI can be reached.",
            {**facts, "Problem": _problem(error)},
            "start ComfyUI, and give --comfyui the address that it prints, or its folder.",
        ) from error
    if response.status in (401, 403, 407):
        raise LoraError(
            "The server lets us in only with a password.",
            {**facts, "Answer": f"{response.status} {response.reason}"},
            "write the address as http://USER:PASSWORD@HOST:PORT, or open it in the proxy.",
        )
    if not _is_system_stats(text):
        raise LoraError(
            "The server at this address is no ComfyUI.",
            {**facts, "Answer": f"{response.status} {response.reason}, {response.content_type}"},
            "give --comfyui the address that ComfyUI prints when it starts.",
        )


def _is_system_stats(text: str) -> bool:
    try:
        answer = json.loads(text)
    except ValueError:
        return False
    return isinstance(answer, dict) and "comfyui_version" in answer.get("system", {})


async def _events(
    socket: aiohttp.ClientWebSocketResponse | None, prompt_id: str
) -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
    """The events of one run, until its end or until the websocket closes."""
    if socket is None:
        return
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue
        content = json.loads(message.data)
        event, data = content["type"], content["data"]
        if data.get("prompt_id") != prompt_id:
            continue
        yield event, data
        # ComfyUI: the history is complete before this event is sent (0.30.0).
        if event == "executing" and data["node"] is None:
            return


async def _require(response: aiohttp.ClientResponse) -> None:
    """Raise LoraError unless ComfyUI did what it was asked for."""
    if response.ok:
        return
    path = response.url.path
    facts = {"Asked": f"{response.method} {path}", "Answer": f"{response.status} {response.reason}"}
    if response.status == 413:
        raise LoraError(
            "The file or graph is too large for the server.",
            facts,
            "start ComfyUI with a larger --max-upload-size (in MB), or raise the proxy's limit.",
        )
    raise RunFailedError("ComfyUI refused a request.", facts, "look into ComfyUI's log.")


async def _object(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The JSON object of an answer."""
    try:
        answer = await response.json(content_type=None)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise RunFailedError(
            "The answer is not ComfyUI's.",
            {
                "Asked": f"{response.method} {response.url.path}",
                "Answer": f"{response.status} {response.reason}, {response.content_type}",
            },
            "check that the address is ComfyUI's own, or that its proxy passes everything on.",
        )
    return answer


def _problem(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _shown(url: URL) -> URL:
    """The address without a password."""
    return url.with_user(None)
