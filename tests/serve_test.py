"""serve, driven by tritonclient: right answers bit by bit, or errors that say what was wanted.

usage: serve_test.py SERVE MAKE_MODEL [--brief]
--brief: less of each, for builds that are slow.
"""
import argparse
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import warnings

import numpy as np
import torch
import tritonclient.http as http
from ml_dtypes import bfloat16
from tritonclient.utils import np_to_triton_dtype

from serve_attacks import ATTACKS
from serve_models import Mixed, make_models
from serve_process import Server

TOKENS = 16
PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "serving.md"


def as_input(name, array, datatype=None, binary=True):
    tensor = http.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def same(got, wanted):
    return got is not None and got.dtype == wanted.dtype and got.shape == wanted.shape and \
        got.tobytes() == wanted.tobytes()


def refused(call, *parts):
    """What is raised has to hold all parts."""
    try:
        call()
    except http.InferenceServerException as error:
        missing = [part for part in parts if part not in str(error)]
        assert not missing, f"{error} does not hold {missing}"
        return
    raise AssertionError(f"nothing was raised; wanted {parts}")


def tells_what_there_is(server, client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("lm") and client.is_model_ready("lm", "1")
    assert not client.is_model_ready("nothing") and not client.is_model_ready("lm", "2")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    known = client.get_model_metadata("lm", "1")
    assert known["inputs"] == [{"name": "tokens", "datatype": "INT64", "shape": [1, -1]}], known
    assert known["outputs"] == [{"name": "output_0", "datatype": "FP32", "shape": [1, -1, 32000]}], known
    assert client.get_model_config("lm")["input"][0]["data_type"] == "TYPE_INT64"
    assert sorted(model["name"] for model in client.get_model_repository_index()) == [
        "echo", "large", "layers", "lm", "mixed", "raises"]
    refused(lambda: client.load_model("lm"), "[400]", "command line")
    refused(lambda: client.get_model_metadata("nothing"), "[404]", "'nothing'", "echo, large")
    refused(lambda: client.get_model_metadata("lm", "2"), "[404]", "version '2'")
    assert server.ask("/v2/models/stats")[2]["model_stats"][0]["name"] == "echo"
    for path in ("/", "/v2/nothing", "/v2/models", "/v2/models/lm/nothing", "/v2/models/lm/versions/1/ready/x", "/x" * 200):
        status, _, answer = server.ask(path)
        assert status == 404 and "/v2" in answer["error"], (path, answer)
    assert server.ask("/v2/" + "x" * 2000)[0] == 414


def runs_a_language_model(server, client):
    plain = torch.jit.load("lm.pt")
    for length in (1, TOKENS, 40):
        tokens = np.random.randint(0, 32000, (1, length))
        wanted = plain(torch.from_numpy(tokens)).detach().numpy()
        for binary in (True, False):
            for outputs in (None, [http.InferRequestedOutput("output_0", binary_data=binary)]):
                answer = client.infer("lm", [as_input("tokens", tokens, binary=binary)], outputs=outputs,
                                      request_id="a \"name\"", model_version="1")
                assert answer.get_response()["id"] == "a \"name\""
                assert same(answer.as_numpy("output_0"), wanted)


def carries_every_dtype(server, client):
    values = {name: np.array([[0, 1, 5]]).astype(name) for name in (
        "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")}
    values["int64"][0, 2] = np.iinfo(np.int64).min
    values["uint64"][0, 2] = np.iinfo(np.uint64).max
    values["float32"][0, 2] = np.float32(0.1)
    for name, value in values.items():
        for binary in (True, False):
            if name == "float16" and not binary:
                continue  # JSON has no form for it
            for shaped in (value, value[:0], value.reshape(3, 1), value[0, 2:].reshape(())):
                answer = client.infer("echo", [as_input("x", shaped, binary=binary)],
                                      outputs=[http.InferRequestedOutput("output_0", binary_data=binary)])
                assert same(answer.as_numpy("output_0"), shaped), (name, binary, shaped.shape)
    half = np.array([1.5, -2], bfloat16)
    assert same(client.infer("echo", [as_input("x", half, "BF16")]).as_numpy("output_0"), half)
    large = np.random.rand(3, 1 << 20).astype(np.float32)
    for encoding in (None, "gzip", "deflate"):
        answer = client.infer("echo", [as_input("x", large)], request_compression_algorithm=encoding,
                              response_compression_algorithm=encoding)
        assert same(answer.as_numpy("output_0"), large), encoding
    numbers = np.array([np.nan, np.inf, -0.0], np.float32)
    assert same(client.infer("echo", [as_input("x", numbers)]).as_numpy("output_0"), numbers)
    json_output = [http.InferRequestedOutput("output_0", binary_data=False)]
    refused(lambda: client.infer("echo", [as_input("x", numbers)], outputs=json_output), "[400]", "NaN", "binary_data")
    refused(lambda: client.infer("echo", [as_input("x", values["float16"])], outputs=json_output), "[400]", "FP16")
    refused(lambda: client.infer("echo", [as_input("x", np.array([b"text"], object))]), "[400]", "'x'", "BYTES")


def mixed_inputs():
    random = np.random.default_rng(3)
    tensors = {name: random.random((2, 3), np.float32) for name in
               ("x", "many.0", "many.1", "named.a", "named.two", "pair.0", "pair.1", "more")}
    return {**tensors, "times": np.array([3]), "scale": np.array([0.5]), "negate": np.array([True]),
            "text": np.array(["grüße".encode()], object), "sizes": np.array([4, 5, 6]),
            "words": np.array([b"one", b""], object)}


def takes_every_kind_of_argument(server, client):
    given = mixed_inputs()

    def torch_of(name):
        return torch.from_numpy(given[name])

    (total, (sizes, lengths)), _, _ = Mixed()(
        torch_of("x"), [torch_of("many.0"), torch_of("many.1")], {"a": torch_of("named.a"), "two": torch_of("named.two")},
        (torch_of("pair.0"), torch_of("pair.1")), 3, 0.5, True, "grüße", [4, 5, 6], ["one", ""], torch_of("more"))
    for binary in (True, False):
        answer = client.infer("mixed", [as_input(name, array, binary=binary) for name, array in given.items()])
        assert same(answer.as_numpy("output_0.total"), total.numpy())
        assert same(answer.as_numpy("output_0.parts.0"), sizes.numpy())
        assert same(answer.as_numpy("output_0.parts.1"), lengths.numpy())
        assert answer.as_numpy("output_1.count") == 3
        assert answer.as_numpy("output_2").item() == "grüße".encode()
    without = [as_input(name, array) for name, array in given.items() if name != "more"]
    assert not same(client.infer("mixed", without).as_numpy("output_0.total"), total.numpy())
    for name, array, *parts in (
            ("y", np.array([1]), "no such input", "Tensor x"), ("x.0", np.array([1]), "no such input"),
            ("times", np.array([1, 2]), "one value", "2 are given"), ("times", np.array([1.5]), "whole numbers", "FP64"),
            ("negate", np.array([1]), "BOOL", "INT64"), ("text", np.array([1]), "strings", "INT64"),
            ("scale", np.array([b"1"], object), "numbers", "BYTES")):
        inputs = [as_input(key, value) for key, value in {**given, name: array}.items()]
        refused(lambda inputs=inputs: client.infer("mixed", inputs), "[400]", f"'{name}'", *parts)
    for name in ("x", "times", "pair.1"):
        inputs = [as_input(key, value) for key, value in given.items() if key != name]
        refused(lambda inputs=inputs: client.infer("mixed", inputs), "[400]", f"'{name}'", "not among the inputs")
    refused(lambda: client.infer("mixed", without, outputs=[http.InferRequestedOutput("nothing")]), "[400]", "'nothing'",
            "output_0.total")


def says_what_models_raise(server, client):
    refused(lambda: client.infer("raises", [as_input("x", np.ones(4, np.float32))]), "[500]", "the model raised",
            "more than three elements")
    refused(lambda: client.infer("lm", [as_input("tokens", np.array([[32000]]))]), "[500]", "the model raised")
    assert np.isinf(client.infer("raises", [as_input("x", np.ones(3, np.float32))]).as_numpy("output_0")).all()
    failed = client.get_inference_statistics("raises")["model_stats"][0]["inference_stats"]["fail"]["count"]
    assert failed == 1, failed


def many_clients(server, client):
    plain = {"layers": torch.jit.load("layers.pt"), "lm": torch.jit.load("lm.pt"), "echo": torch.jit.load("echo.pt")}
    rng = np.random.default_rng(5)
    cases = []
    for i in range(12):
        name = ("layers", "lm", "echo")[i % 3]
        array = rng.integers(0, 32000, (1, 1 + i)) if name == "lm" else rng.random((1 + i, 256), np.float32)
        wanted = plain[name](torch.from_numpy(array)).detach().numpy()
        cases.append((name, "tokens" if name == "lm" else "x", array, wanted))
    failures = []

    def work(number, calls):
        try:
            mine = http.InferenceServerClient(server.address, network_timeout=120)
            for call in range(calls):
                name, argument, array, wanted = cases[(number + call) % len(cases)]
                answer = mine.infer(name, [as_input(argument, array)]).as_numpy("output_0")
                if not same(answer, wanted):
                    failures.append(f"{name} gave other bits")
            mine.close()
        except Exception as error:  # of any kind: the test is told below
            failures.append(repr(error))

    threads = [threading.Thread(target=work, args=(number, 12)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[:3]
    metrics = server.metrics()
    assert metrics['torch_offload_streamed_bytes_total{model="lm"}'] > 0
    assert metrics['torch_offload_infer_succeeded_total{model="layers"}'] >= 64 * 4
    assert metrics["torch_offload_pool_peak_bytes"] <= metrics["torch_offload_pool_budget_bytes"]
    assert metrics["torch_offload_queue_calls"] == 0 == metrics["torch_offload_calls_at_work"]


def is_understood_by_prometheus(server, client):
    families = {}
    for line in server.ask("/metrics")[2].splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in families, name
            families[name] = kind
        elif not line.startswith("# HELP "):
            name = line.split("{")[0].split(" ")[0]
            assert name in families, line
            assert (families[name] == "counter") == name.endswith("_total"), line
    for name in ("streamed_bytes_total", "link_share", "stall_seconds_total", "resident_bytes", "passes_total",
                 "wait_door_seconds_total", "http_requests_total", "queue_calls"):
        assert f"torch_offload_{name}" in families, name


def does_what_the_page_says(serve, make_model):
    """The commands of docs/serving.md, at another port, and with the programs at hand."""
    with open(PAGE) as text:
        blocks = re.findall(r"```(sh|python)\n(.*?)```", text.read(), re.S)
    assert [kind for kind, _ in blocks] == ["sh", "sh", "python"], "the page is not as this test knows it"
    made, started = blocks[0][1].strip().splitlines()
    subprocess.run(shlex.split(made.replace("build/release/models/make_model", make_model)), check=True,
                   stdout=subprocess.DEVNULL)
    program, *arguments = shlex.split(started)
    assert program == "build/release/tools/serve"
    with Server(serve, *arguments) as server:
        for line in blocks[1][1].strip().splitlines():
            command = shlex.split(line.replace("localhost:8000", server.address))
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            assert out, line
        names = {}
        exec(blocks[2][1].replace("localhost:8000", server.address), names)
        plain = torch.jit.load("lm.pt")(torch.tensor([[5, 6, 7]])).detach().numpy()
        assert same(names["logits"], plain)


TESTS = [tells_what_there_is, runs_a_language_model, carries_every_dtype, takes_every_kind_of_argument,
         says_what_models_raise, many_clients, is_understood_by_prometheus]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("serve")
    parser.add_argument("make_model")
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # as the server: the order of sums depends on it
    serve, make_model = os.path.abspath(arguments.serve), os.path.abspath(arguments.make_model)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_models(folder)
        if os.spawnl(os.P_WAIT, make_model, make_model, "transformer", "--size", "64MiB", "lm.pt") != 0:
            sys.exit("make_model failed")
        names = ("lm", "echo", "layers", "mixed", "raises", "large")
        models = [part for name in names for part in ("--model", f"{name}={name}.pt")]
        examples = ["--example", "lm=int64[1,16]<32000", "--example", "lm=int64[1,8]<32000"]
        with Server(serve, *models, *examples, "--vram", "40MiB") as server:
            for test in TESTS:
                if arguments.only in test.__name__:
                    print(test.__name__, flush=True)
                    with http.InferenceServerClient(server.address, network_timeout=120) as client:
                        test(server, client)
        for attack in ATTACKS:
            if arguments.only in attack.__name__:
                print(attack.__name__, flush=True)
                attack(serve, arguments.brief)
        if arguments.only in does_what_the_page_says.__name__:
            print(does_what_the_page_says.__name__, flush=True)
            does_what_the_page_says(serve, make_model)
        os.chdir("/")
    print("all passed")


main()
