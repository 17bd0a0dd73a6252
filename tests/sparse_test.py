"""plan of archives of 300 and 100 GB that are hardly there: it reads headers, and takes no memory for weights.

usage: sparse_test.py PLAN FOLDER
"""
import json
import os
import subprocess
import sys
import time

OWN_MEMORY = 100 << 20  # beside what LibTorch's libraries take when a program that is linked to them starts
READ = 1 << 20  # headers, those of the libraries, too


def plan(program, archive, *arguments):
    """The plan as JSON, and the seconds, bytes of memory and bytes read that it took."""
    begin = time.perf_counter()
    with subprocess.Popen([program, archive, "--format", "json", *arguments], stdout=subprocess.PIPE, text=True) as process:
        report = json.loads(process.stdout.read())
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - begin
        with open(f"/proc/{process.pid}/io") as counts:
            read = int(counts.readline().split()[1])  # by system calls; what a mapping reads would stand in the memory
        return report, seconds, most_memory(process), read


def most_memory(process):
    """Its own, or that of this process when it began: so torch is loaded in processes of their own."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_maxrss << 10


def check(program, archive, weight_bytes, *arguments):
    size, blocks = os.path.getsize(archive), os.stat(archive).st_blocks
    with subprocess.Popen([program, "--machines"], stdout=subprocess.DEVNULL) as idle:
        libraries = most_memory(idle)
    report, seconds, memory, read = plan(program, archive, *arguments)
    os.remove(archive)
    planned = sum(weight["bytes"] for weight in report["weights"])
    print(f"{size / 1e9:.0f} GB, of which {blocks * 512 / 1e3:.0f} kB are there: {planned / 1e9:.0f} GB of weights planned in "
          f"{seconds:.2f} s, {memory >> 20} MiB of memory, of which {libraries >> 20} MiB are libraries, {read / 1e3:.0f} kB "
          f"read; a call is predicted to take {report['predicted']['time_us'] / 1e6:.2f} s")
    if planned != weight_bytes or memory > libraries + OWN_MEMORY or read > READ:
        sys.exit("that is not what it should be")


def main():
    program, folder = sys.argv[1:]
    archives = [os.path.join(folder, name) for name in ("layers.pt", "decoder.pt")]
    made = subprocess.run([sys.executable, os.path.join(os.path.dirname(__file__), "sparse_archives.py"), *archives])
    if made.returncode != 0:
        sys.exit("the archives could not be made")
    check(program, archives[0], 3 * 160_000**2 * 4, "--vram", "256GiB", "--device", "cpu")
    check(program, archives[1], 64 * (12 * 8192**2 + 8192) * 2, "--vram", "16GiB", "--machine", "rtx4090", "--input",
          "float16[1,128,8192]")


main()
