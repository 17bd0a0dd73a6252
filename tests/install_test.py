"""The library as somebody has it who installs it: found by CMake, a server built against it, called by many threads at once.

usage: install_test.py BUILD_DIR MAKE_MODEL SERVER_SOURCE WORK_DIR
"""
import concurrent.futures
import json
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import torch


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def check(right, what):
    if not right:
        sys.exit(f"FAILED: {what}")


def forward(port, x):
    body = json.dumps({"shape": list(x.shape), "values": x.flatten().tolist()}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/forward", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        output = json.load(answer)
    return torch.tensor(output["values"]).reshape(output["shape"])


def main():
    build, make_model, server_source, work = map(pathlib.Path, sys.argv[1:])
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    prefix = work / "prefix"
    run("cmake", "--install", build, "--prefix", prefix)
    headers = sorted(str(p.relative_to(prefix)) for p in prefix.rglob("*.h"))
    check("include/offload/module.h" in headers and "include/offload/version.h" in headers, f"headers: {headers}")
    for header in headers:  # each stands on its own: none includes what is not there
        for name in re.findall(r"#include <(offload/[^>]+)>", (prefix / header).read_text()):
            check(f"include/{name}" in headers, f"{header} includes {name}, which is not installed")
    library = next(prefix.rglob("libtorch_offload.so"))
    exported = [line for line in run("nm", "-DC", "--defined-only", library).splitlines() if " T " in line]
    check(exported and all("offload::" in line for line in exported), f"exported: {exported}")

    source = pathlib.Path(__file__).parent / "installed"
    run("cmake", "-G", "Ninja", "-S", source, "-B", work / "build", "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_PREFIX_PATH={prefix}", f"-DEXAMPLE_SERVER={server_source.resolve()}")
    run("cmake", "--build", work / "build")
    newer = subprocess.run(["cmake", "-S", source, "-B", work / "newer", f"-DTorchOffload_DIR={next(prefix.rglob('TorchOffload'))}",
                            "-G", "Ninja", "--fresh", "-DEXAMPLE_SERVER=x", "-DCMAKE_PROJECT_Server_INCLUDE_BEFORE=" +
                            str(write(work / "newer.cmake", "find_package(TorchOffload 9.0 REQUIRED)\n"))],
                           text=True, capture_output=True)
    check(newer.returncode != 0 and "9.0" in newer.stderr, f"version 9.0 was found: {newer.stderr}")

    model = work / "model.pt"
    run(make_model, "stack", "--layers", "8", "--features", "256", model)
    plain = torch.jit.load(str(model))
    torch.set_num_threads(1)
    server = subprocess.Popen([work / "build" / "example_server", model, "0"], stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r"listening on (\d+)", server.stdout.readline()).group(1))
        inputs = [torch.randn(1 + i % 5, 256) for i in range(64)]
        with concurrent.futures.ThreadPoolExecutor(16) as threads:
            outputs = list(threads.map(lambda x: forward(port, x), inputs))
        for x, y in zip(inputs, outputs):
            check(torch.allclose(plain(x), y, rtol=1e-5, atol=1e-5), "an output differs")
        try:
            forward(port, torch.randn(3, 17))
            check(False, "a wrong width was taken")
        except urllib.error.HTTPError as error:
            check(error.code == 400, f"a wrong width: {error.code}")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            page = answer.read().decode()
        check("Placement on" in page, page)
    finally:
        server.terminate()
        server.wait()
    print(f"installed {len(headers)} headers, {len(exported)} functions; 64 calls of 16 threads")


def write(path, text):
    path.write_text(text)
    return path


main()
