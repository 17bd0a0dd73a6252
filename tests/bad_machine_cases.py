"""What `plan` is told of another machine: cases as in bad_input_cases.py, in a folder with the files of bad_input_files.py."""

# What stands after --machine, and what the line holds.
MACHINES = [
    ("no_such.json", "no_such.json", "no such file", "rtx4090", "gtx1060-w2133", "h200"),
    ("RTX4090", "'RTX4090'", "rtx4090"),
    ("rtx9090", "'rtx9090'", "rtx4090"),
    ("''", "--machine"),
    ("folder.pt", "folder.pt", "JSON object"),
    ("straight.pt", "straight.pt", "JSON object"),
    ("garbage.json", "garbage.json", "JSON object", "bench --profile"),
    ("nothing.json", "nothing.json", "JSON object", "bench --profile"),
    ("list.json", "list.json", "JSON object", "bench --profile"),
    ("deep.json", "deep.json", "JSON object", "bench --profile"),
    ("bytes.json", "bytes.json", "JSON object", "bench --profile"),
    ("overflow.json", "overflow.json"),
    ("empty.json", "empty.json", "no 'version'", "reads 2", "bench --profile"),
    ("older.json", "older.json", "no 'version'", "reads 2", "bench --profile"),
    ("later.json", "later.json", "'version' is 3", "reads 2", "bench --profile"),
    ("memory.json", "memory.json", "'device_memory_bytes' must be"),
    ("nothing_but_version.json", "nothing_but_version.json", "'link_bytes_per_us' is missing"),
    ("missing.json", "missing.json", "'link_bytes_per_us' is missing"),
    ("negative.json", "negative.json", "'copy_overhead_us' must be a positive number"),
    ("zero.json", "zero.json", "'memory_bytes_per_us' must be a positive number"),
    ("huge.json", "huge.json", "'memory_bytes_per_us' must be"),
    ("quoted.json", "quoted.json", "'fp32_flops_per_us' must be a positive number"),
    ("unknown.json", "unknown.json", "unknown key 'colour'"),
    ("name.json", "name.json", "'name' must be text"),
    ("good.json --machine good.json", "--machine"),
    ("rtx4090 --vram 24GiB", "--vram 24 GiB", "25769803776", "23.5 GiB", "NVIDIA GeForce RTX 4090"),
    ("gpu.json --vram 4294967297", "--vram", "4294967297", "4294967296", "device memory of the machine"),
    ("rtx4090 --vram 1KiB", "--vram 1 KiB", "the smallest that works is"),
]

# What ought to work.
GOOD_MACHINES = [
    "--machines",
    "--machines --format json",
    "--machine rtx4090",
    "--machine rtx4090-x8 --callers 4 --format json",
    "--machine good.json --callers 8",
    "--machine gpu.json --vram 4GiB",
]
