#!/usr/bin/env python3
"""What `plan` predicts for the two machines of the record, which are not here, beside what the record measured there.

usage: tests/record_table.py BUILD_DIR      the table goes to standard output, as Markdown
Rows come from tools/record.h. A stack of 4 GiB at a time is written to the folder for temporary files.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
MACHINES = {"kDesktop": "rtx4090-i9-14900k", "kWorkstation": "gtx1060-w2133"}
FEATURES = {4: 1024, 16: 2048, 64: 4096}  # of square weights of float32, by MiB
MIB = 1 << 20


def record():
    """Rows of layers on the GPU, and those of all on it, as the record has them."""
    row = re.compile(r"RecordRow\{(\d+), (k\w+), Residence::(\w+), (\d+), (\d+), (\d+), ([\d.]+)\}")
    for table, hardware, residence, layers, mib, on_gpu, ms in row.findall((ROOT / "tools/record.h").read_text()):
        yield int(table), hardware, residence, int(layers), int(mib), int(on_gpu), float(ms)


def tool(build, *arguments):
    return subprocess.run([build / "tools" / "plan", *arguments], check=True, capture_output=True, text=True).stdout


def plan(build, stack, machine, features, vram=None):
    arguments = [stack, "--machine", machine, "--input", f"float32[{features},{features}]", "--format", "json"]
    return json.loads(tool(build, *arguments, *([] if vram is None else ["--vram", str(vram)])))


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    links = {known["name"]: known["profile"]["link_bytes_per_us"]
             for known in json.loads(tool(build, "--machines", "--format", "json"))}
    rows = list(record())
    print("| machine | stack | layers on the GPU | record, ms | link alone, ms | predicted, ms | streamed |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for table in sorted({row[0] for row in rows}):
        _, hardware, _, layers, mib, _, _ = next(row for row in rows if row[0] == table)
        machine, features = MACHINES[hardware], FEATURES[mib]
        with tempfile.TemporaryDirectory() as folder:
            stack = pathlib.Path(folder) / "stack.pt"
            subprocess.run([build / "models" / "make_model", "stack", "--layers", str(layers), "--features",
                            str(features), stack], check=True, capture_output=True)
            everything = plan(build, stack, machine, features)["budget"]
            for _, _, residence, _, _, on_gpu, ms in (row for row in rows if row[0] == table):
                name = f"| {machine} | {layers} x {mib} MiB |"
                if residence == "cpu":
                    print(f"{name} none, computed on the host | {ms:.1f} | | | |")
                    continue
                missing = (layers - on_gpu) * mib * MIB
                ring = min(missing, max(96 * MIB, 3 * mib * MIB))  # as in bench
                vram = on_gpu * mib * MIB + ring + everything["reserve"] + everything["fixed"] + 4 * MIB
                predicted = plan(build, stack, machine, features, vram)["predicted"]
                link_ms = missing / links[machine] / 1e3
                share = "all, and plain" if residence == "gpu" else on_gpu
                print(f"{name} {share} | {ms:.1f} | {link_ms:.1f} | {predicted['time_us'] / 1e3:.1f} "
                      f"| {predicted['streamed_bytes'] / MIB:.0f} MiB |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
