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

VRAM = "512MiB" if torch.cuda.is_available() else "2MiB"  # two thirds of what the models take


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def check(right, what):
    if not right:
        sys.exit(f"FAILED: {what}")


def forward(port, model, x):
    body = json.dumps({"shape": list(x.shape), "values": x.flatten().tolist()}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/forward/{model}", body, {"Content-Type": "application/json"})
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

    plain = {}
    for name, layers in (("small", "4"), ("large", "8")):
        run(make_model, "stack", "--layers", layers, "--features", "256", work / f"{name}.pt")
        plain[name] = torch.jit.load(str(work / f"{name}.pt"))
    torch.set_num_threads(1)
    server = subprocess.Popen([work / "build" / "example_server", "0", VRAM, *(work / f"{name}.pt" for name in plain)],
                              stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r"listening on (\d+)", server.stdout.readline()).group(1))
        inputs = [torch.randn(1 + i % 5, 256) for i in range(64)]
        with concurrent.futures.ThreadPoolExecutor(16) as threads:
            outputs = list(threads.map(lambda i: forward(port, list(plain)[i % 2], inputs[i]), range(len(inputs))))
        for i, y in enumerate(outputs):
            check(torch.allclose(list(plain.values())[i % 2](inputs[i]), y, rtol=1e-5, atol=1e-5), "an output differs")
        for model, width, code in (("small", 17, 400), ("other", 256, 404)):
            try:
                forward(port, model, torch.randn(3, width))
                check(False, f"{model} took a width of {width}")
            except urllib.error.HTTPError as error:
                check(error.code == code, f"{model} with a width of {width}: {error.code}")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            page = answer.read().decode()
        check(page.count("Placement on") == 2 and "in a pass" in page, page)
    finally:
        server.terminate()
        server.wait()
    print(f"installed {len(headers)} headers, {len(exported)} functions; 64 calls of 16 threads")


def write(path, text):
    path.write_text(text)
    return path


main()
