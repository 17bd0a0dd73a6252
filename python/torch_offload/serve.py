"""Models behind Ray Serve, on any number of machines: replicas that each run the server of this package.

A replica is a process of `torch-offload-serve` with a pool of its own, and an actor that hands requests to it. In front
of them stands a deployment that speaks to clients: it tries again elsewhere when a replica dies, and turns what goes
wrong into the errors of the protocol. docs/many-servers.md describes it. This module needs `ray[serve]`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

import aiohttp
import pydantic
import ray
from ray import serve
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from torch_offload import _tools

#: Of HTTP, between machines and what serves on them: they are about a connection, not about a request.
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "expect", "upgrade"}

#: What the end of a replica, or of its machine, looks like.
_DEATHS = (
    RayActorError,
    ObjectLostError,
    NodeDiedError,
    WorkerCrashedError,
    DeploymentUnavailableError,
    aiohttp.ClientConnectionError,
)


class Settings(pydantic.BaseModel):
    """What is served, and what a replica takes of the cluster. In a file for `serve deploy` they are `args`."""

    model_config = pydantic.ConfigDict(extra="forbid")

    #: By name, paths of TorchScript archives, which have to be there on every machine that has replicas.
    models: dict[str, str] = pydantic.Field(min_length=1)
    #: By name, inputs of an example call, as `--example` of `torch-offload-serve` takes them.
    examples: dict[str, str] = {}
    #: The budget of device memory of each replica, for all of its models.
    vram: str | None = None
    #: The same of host memory.
    host: str | None = None
    #: "cpu" or "cuda:0". Default: the GPU that Ray gives the replica, or the CPU where `gpus` is 0.
    device: str | None = None
    #: Of each replica; less than 1 where several share one.
    gpus: float = pydantic.Field(default=1, ge=0)
    #: What else of a machine each replica takes, as in {"vram_gib": 8}, of what its node was started with.
    resources: dict[str, float] = {}
    #: Bytes of host memory that Ray counts for each replica. 0: it does not count them.
    memory: int = pydantic.Field(default=0, ge=0)
    #: How many replicas: as many as are needed, from the one to the other, where they differ.
    replicas: int = pydantic.Field(default=1, ge=1)
    max_replicas: int = pydantic.Field(default=0, ge=0)
    #: Calls that a replica makes at the same time, and requests that may wait for one beside them.
    calls: int = pydantic.Field(default=8, ge=1, le=64)
    queue: int = pydantic.Field(default=256, ge=1, le=800)
    #: The largest body of a request, and the most of all that are under way, in the front and in each replica.
    body_bytes: int = pydantic.Field(default=64 << 20, ge=1)
    bodies_bytes: int = pydantic.Field(default=1 << 30, ge=1)
    #: Seconds after which a client gets an error, and how often a request is tried again when a replica has died.
    timeout_s: float = pydantic.Field(default=60, gt=0)
    retries: int = pydantic.Field(default=2, ge=0)

    def arguments(self) -> list[str]:
        """Of `torch-offload-serve`."""
        given = ["--bind", "127.0.0.1", "--port", "0", "--calls", str(self.calls), "--queue", str(self.queue)]
        given += ["--connections", str(self.calls + self.queue + 8), "--until-eof"]
        given += ["--body", str(self.body_bytes), "--bodies", str(max(self.body_bytes, self.bodies_bytes))]
        for name, path in self.models.items():
            given += ["--model", f"{name}={path}"]
        for name, inputs in self.examples.items():
            given += ["--example", f"{name}={inputs}"]
        for option, value in (("--vram", self.vram), ("--host", self.host)):
            given += [] if value is None else [option, value]
        device = self.device or ("cpu" if self.gpus == 0 else None)
        return given + ([] if device is None else ["--device", device])


class Answer(NamedTuple):
    """Of a replica to a request."""

    status: int
    fields: dict[str, str]
    body: bytes


class Replica:
    """A process that serves the models on this machine, and who hands requests to it. They end together."""

    def __init__(self, settings: Settings) -> None:
        program, environment = _tools.command("serve")
        self._process = subprocess.Popen(
            [program, *settings.arguments()], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._ends = False
        self._patience = settings.timeout_s
        self._url = "http://" + self._await_address()
        threading.Thread(target=self._watch, daemon=True).start()
        self._session: aiohttp.ClientSession | None = None
        self._timeout = aiohttp.ClientTimeout(total=settings.timeout_s)

    def _await_address(self) -> str:
        """When all models are there. Models may print before that."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("listening on "):
                return line.removeprefix("listening on ").strip()
            print(line, end="", file=sys.stderr)
        self._process.kill()
        raise RuntimeError(
            f"torch-offload-serve has ended with status {self._process.wait()}: the log of this replica has what it said"
        )

    def _watch(self) -> None:
        """Passes on what models print. When the process has ended by itself, so does the actor, which Ray sees at once."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            print(line, end="", file=sys.stderr)
        status = self._process.wait()
        if not self._ends:
            print(f"torch-offload-serve has ended with status {status}", file=sys.stderr, flush=True)
            os._exit(1)

    async def answer(self, method: str, path: str, fields: dict[str, str], body: bytes) -> Answer:
        if self._session is None:  # made where its event loop runs
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, auto_decompress=False)
        async with self._session.request(method, self._url + path, headers=fields, data=body) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    def __del__(self) -> None:
        self._ends = True
        process: subprocess.Popen[str] | None = getattr(self, "_process", None)
        if process is None or process.stdin is None:
            return
        process.stdin.close()  # it answers what is under way, and ends
        try:
            process.wait(self._patience)
        except subprocess.TimeoutExpired:
            process.kill()


def _refusal(status: int, what: str) -> Response:
    fields = {"Retry-After": "1"} if status == 503 else {}
    return Response(json.dumps({"error": what}), status, fields, "application/json")


class Front:
    """Takes requests from clients, and hands each to a replica."""

    def __init__(self, replicas: DeploymentHandle, settings: Settings) -> None:
        self._replicas = replicas
        self._settings = settings
        self._bytes = 0  # of bodies under way

    async def __call__(self, request: Request) -> Response:
        if request.url.path == "/v2/health/live":
            return Response(json.dumps({"live": True}), media_type="application/json")
        length = request.headers.get("content-length", "0" if request.method in ("GET", "HEAD") else "")
        if "transfer-encoding" in request.headers or not length.isdecimal():
            return _refusal(411, "Content-Length is missing: bodies of unknown length are not taken")
        size, most = int(length), self._settings
        if size > most.body_bytes:
            return _refusal(413, f"the body has {size} bytes, and at most {most.body_bytes} are taken (body_bytes)")
        if self._bytes + size > most.bodies_bytes:
            return _refusal(503, f"requests under way take all of the {most.bodies_bytes} bytes of bodies_bytes: try again")
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        fields = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
        self._bytes += size
        try:
            return await self._answer(request.method, path, fields, await request.body())
        finally:
            self._bytes -= size

    async def _answer(self, method: str, path: str, fields: dict[str, str], body: bytes) -> Response:
        """Calls write nothing that outlives them, so what a replica that died had begun may be begun again."""
        deadline = time.monotonic() + self._settings.timeout_s
        why = ""
        for again in range(self._settings.retries + 1):
            if again > 0:
                await asyncio.sleep(min(0.1 * 2**again, max(0.0, deadline - time.monotonic())))
            try:
                response = self._replicas.answer.remote(method, path, fields, body)
                answer = await asyncio.wait_for(response, max(0.0, deadline - time.monotonic()))
            except (TimeoutError, asyncio.TimeoutError, RequestCancelledError):
                break
            except BackPressureError:
                return _refusal(503, "more requests wait than may: try again")
            except _DEATHS as error:
                why = f"; a replica had died ({type(error).__name__})"
                continue
            except Exception as error:
                return _refusal(500, f"the request could not be handed on: {error}")
            kept = {name: value for name, value in answer.fields.items() if name.lower() not in _HOP_BY_HOP}
            return Response(answer.body, answer.status, kept)
        if time.monotonic() >= deadline:
            return _refusal(503, f"no replica has answered within {self._settings.timeout_s:g} seconds{why}: try again")
        return _refusal(503, f"the request was tried {self._settings.retries + 1} times{why}: try again")


def build(settings: Settings) -> serve.Application:
    """The application, for `serve.run` and for `import_path: torch_offload.serve:build` in a file of `serve deploy`."""
    settings = settings if isinstance(settings, Settings) else Settings.model_validate(settings)
    actor: dict[str, Any] = {"num_gpus": settings.gpus, "resources": settings.resources}
    if settings.memory:
        actor["memory"] = settings.memory
    scale: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas > settings.replicas:
        scale = {
            "autoscaling_config": {
                "min_replicas": settings.replicas,
                "max_replicas": settings.max_replicas,
                "target_ongoing_requests": settings.calls,
            }
        }
    replicas = serve.deployment(
        Replica,
        name="models",
        ray_actor_options=actor,
        max_ongoing_requests=settings.calls + settings.queue,
        max_queued_requests=settings.queue,
        graceful_shutdown_timeout_s=settings.timeout_s,
        **scale,
    )
    front = serve.deployment(
        Front,
        name="front",
        # Where the head of the cluster is: it does not die with a machine that has replicas.
        ray_actor_options={"num_cpus": 0.1, "resources": {"node:__internal_head__": 0.001}},
        max_ongoing_requests=4096,
        max_queued_requests=4096,
    )
    return front.bind(replicas.bind(settings), settings)


def _named(texts: list[str], option: str) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in texts)
    if len(pairs) < len(texts) or not all(name and value for name, value in pairs.items()):
        sys.exit(f"error: {option} {' '.join(texts)}: NAME=VALUE was wanted, each name once")
    return pairs


def main(arguments: list[str]) -> None:
    """`torch-offload-serve --ray`: starts Ray Serve on this machine or on a cluster, and serves until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="torch-offload-serve --ray", description=main.__doc__)
    parser.add_argument("--model", action="append", default=[], required=True, metavar="NAME=PATH")
    parser.add_argument("--example", action="append", default=[], metavar="NAME=INPUTS")
    for name in ("vram", "host", "device"):
        parser.add_argument(f"--{name}", help=f"as without --ray: {name} of each replica")
    parser.add_argument("--gpus", type=float, help="of each replica; default: 1, or 0 with --device cpu")
    parser.add_argument("--resource", action="append", default=[], metavar="NAME=AMOUNT", help="that a replica takes")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--max-replicas", type=int, default=0, help="replicas are added by load, up to so many")
    parser.add_argument("--timeout", type=float, default=60, help="seconds after which a client gets an error")
    parser.add_argument("--port", type=int, default=8000, help="at which every machine of the cluster answers")
    parser.add_argument("--bind", default="127.0.0.1", help="Serve asks for no authentication at its port")
    parser.add_argument("--address", help="of a Ray cluster; default: one on this machine, for as long as this runs")
    given = parser.parse_args(arguments)
    on_cpu = given.device == "cpu"
    try:
        settings = Settings(
            models=_named(given.model, "--model"),
            examples=_named(given.example, "--example"),
            vram=given.vram,
            host=given.host,
            device=given.device,
            gpus=given.gpus if given.gpus is not None else 0 if on_cpu else 1,
            resources={name: float(amount) for name, amount in _named(given.resource, "--resource").items()},
            replicas=given.replicas,
            max_replicas=given.max_replicas,
            timeout_s=given.timeout,
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    ray.init(address=given.address or "local", include_dashboard=False, log_to_driver=True)
    serve.start(http_options={"host": given.bind, "port": given.port, "request_timeout_s": given.timeout + 10})
    try:
        serve.run(build(settings), name="torch_offload", blocking=True)
    except KeyboardInterrupt:
        serve.delete("torch_offload")
