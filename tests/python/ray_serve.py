#!/usr/bin/env python3
"""Models behind Ray Serve, on a cluster of three nodes that are processes of this machine: where replicas go, what they
answer, and what clients see when a node dies under load.

    ray_serve.py

It is run by the Python of an environment that has the package, as tests/python/install.py makes one, and beside it
ray[serve]==2.60.* and tritonclient[http]. It takes one or two minutes, and has a Ray of its own, with a token.
"""

import json
import os
import secrets
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

# Read when Ray is imported, and by every process of it.
os.environ |= {
    "OMP_NUM_THREADS": "1",  # the same everywhere: sums in another order have other bits
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "1000",
}

import numpy as np
import pydantic
import ray
import torch
import tritonclient.http as client
from ray import serve
from ray.cluster_utils import Cluster

from torch_offload import _tools
from torch_offload.serve import Settings, build

PORT = 8765
CLIENTS = 8
WIDTH = 256
ROOM = {"vram_gib": 4}  # of a node
REPLICA = {"vram_gib": 3}


def say(*what):
    print(f"{time.monotonic() - BEGIN:6.1f} s", *what, flush=True)


def make_model(path):
    torch.manual_seed(1)
    layers = [layer for _ in range(6) for layer in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU())]
    torch.jit.trace(torch.nn.Sequential(*layers).eval(), torch.ones(2, WIDTH)).save(path)


def until(what, condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} seconds: {serve.status()}"
        time.sleep(0.2)
    say(what)


def replicas(state):
    application = serve.status().applications.get("models")
    deployment = application.deployments.get("models") if application else None
    return deployment.replica_states.get(state, 0) if deployment else 0


def request(path, body=None, fields=None):
    """Status and JSON of an answer."""
    wanted = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data=body, headers=fields or {})
    try:
        with urllib.request.urlopen(wanted, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def infer(connection, rows):
    tensor = client.InferInput("input", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return connection.infer("stack", [tensor]).as_numpy("output_0")


def expected_outputs(settings, inputs):
    """What the server alone answers."""
    program, environment = _tools.command("serve")
    with subprocess.Popen(
        [program, *settings.arguments()], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        address = process.stdout.readline().removeprefix("listening on ").strip()
        connection = client.InferenceServerClient(address)
        outputs = [infer(connection, rows) for rows in inputs]
        process.stdin.close()
        assert process.wait(30) == 0, "it ends with its standard input"
    return outputs


class Load:
    """Clients that compare every output, until they are told to end."""

    def __init__(self, inputs, outputs):
        self.answered, self.wrong, self.refused, self.slowest = 0, 0, [], 0.0
        self._inputs, self._outputs = inputs, outputs
        self._ended = threading.Event()
        self._mutex = threading.Lock()
        self._threads = [threading.Thread(target=self._call, args=(i,)) for i in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _call(self, first):
        connection = client.InferenceServerClient(f"127.0.0.1:{PORT}")
        turn = first
        while not self._ended.is_set():
            turn = (turn + 1) % len(self._inputs)
            begin, output, refusal = time.monotonic(), None, None
            try:
                output = infer(connection, self._inputs[turn])
            except Exception as error:
                refusal = str(error)
            with self._mutex:
                self.slowest = max(self.slowest, time.monotonic() - begin)
                if refusal is not None:
                    self.refused.append(refusal)
                else:
                    self.answered += 1
                    self.wrong += not np.array_equal(output, self._outputs[turn])

    def end(self):
        self._ended.set()
        for thread in self._threads:
            thread.join()


def check_errors():
    """All of them are the protocol's, whoever has found them."""
    assert request("/v2/health/live") == (200, {"live": True})
    for path, body, status, what in (
        ("/v2/models/none", None, 404, "none"),
        ("/v2/models/stack/infer", b"{", 400, "JSON"),
        ("/v2/models/stack/infer", b"x" * 2000000, 413, "2000000"),
    ):
        found, answer = request(path, body)
        assert found == status and what in answer["error"], (path, found, answer)
    say("errors are those of the protocol")
    for wrong in ({"models": {}}, {"models": {"a": "b"}, "replica": 2}, {"models": {"a": "b"}, "gpus": -1}):
        try:
            Settings(**wrong)
        except pydantic.ValidationError:
            continue
        raise AssertionError(f"{wrong} was taken")


def check(cluster, nodes, folder):
    path = os.path.join(folder, "stack.pt")
    make_model(path)
    settings = Settings(models={"stack": path}, examples={"stack": f"float32[2,{WIDTH}]"}, vram="1MiB", gpus=0,
                        resources=REPLICA, replicas=3, timeout_s=15, body_bytes=1000000)
    inputs = [np.random.default_rng(i).standard_normal((1 + i, WIDTH), dtype=np.float32) for i in range(8)]
    outputs = expected_outputs(settings, inputs)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": PORT, "request_timeout_s": 30})
    serve.run_many([serve.RunTarget(build(settings), name="models", route_prefix="/")], wait_for_applications_running=False)
    until("two replicas run, one on each node that has room", lambda: replicas("RUNNING") == 2)
    assert replicas("STARTING") == 1, serve.status()
    check_errors()
    load = Load(inputs, outputs)
    until("clients are served while the third waits for room", lambda: load.answered > 200)
    assert replicas("RUNNING") == 2 and not load.refused, (serve.status(), load.refused)
    cluster.remove_node(nodes[0], allow_graceful=False)
    say("a node is killed")
    before = load.answered
    until("clients are served by what is left", lambda: load.answered > before + 200)
    until("one replica runs", lambda: replicas("RUNNING") == 1)
    cluster.add_node(num_cpus=2, resources=ROOM, object_store_memory=100 << 20)
    cluster.add_node(num_cpus=2, resources=ROOM, object_store_memory=100 << 20)
    until("three replicas run on three nodes", lambda: replicas("RUNNING") == 3)
    load.end()
    say(f"{load.answered} answers, {load.wrong} of them wrong, {len(load.refused)} refused, the slowest in {load.slowest:.1f} s")
    print("\n".join(load.refused[:10]))
    assert load.wrong == 0 and load.slowest < 20
    assert len(load.refused) <= 2 * CLIENTS and not any("could not decode" in refusal for refusal in load.refused)


def main():
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 << 20},
        )
        try:
            nodes = [cluster.add_node(num_cpus=2, resources=ROOM, object_store_memory=100 << 20) for _ in range(2)]
            ray.init(address=cluster.address, log_to_driver=False)
            say("a cluster of three nodes")
            check(cluster, nodes, folder)
            serve.shutdown()
        finally:
            ray.shutdown()
            cluster.shutdown()
    say("passed")


BEGIN = time.monotonic()
if __name__ == "__main__":
    main()
