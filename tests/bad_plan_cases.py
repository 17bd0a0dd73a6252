"""What `plan straight.pt` takes and does not take of budgets, formats and callers: see bad_input_cases.py."""

PLANS = [
    ("--sweep --fit 20ms", "--fit and --sweep", "contradict"),
    ("--plot --fit 20ms", "--fit and --plot", "contradict"),
    ("--plot --format json", "--plot and --format json", "contradict"),
    ("--plot --sweep --format svg", "--plot and --format svg", "contradict"),
    ("--sweep --format trace", "--format trace", "--sweep"),
    ("--fit 20ms --format trace", "--format trace", "--fit"),
    ("--fit 20ms --format svg", "--format svg", "--fit"),
    ("--fit 20", "--fit '20' is not a time", "20ms"),
    ("--fit ''", "--fit"),
    ("--fit ms", "--fit 'ms' is not a time"),
    ("--fit -5ms", "--fit"),
    ("--fit 0ms", "--fit '0ms' is not a time"),
    ("--fit nanms", "--fit 'nanms' is not a time"),
    ("--fit 1e308s", "--fit '1e308s' is not a time"),
    ("--fit '20 ms'", "--fit '20 ms' is not a time"),
    ("--fit 0.0001us", "--fit", "the best that was found is", "bytes"),
    ("--sweep --vram {below}", "--vram", "the smallest that works is {smallest} bytes"),
    ("--format pdf", "--format", "pdf", "svg", "trace"),
    ("--callers 0", "--callers", "1", "64"),
]

GOOD_PLANS = [
    "--vram {smallest} --format json",
    "--machine good.json --callers 8",
    "--sweep --plot",
    "--sweep --vram {smallest} --format json",
    "--sweep --callers 4 --format svg",
    "--fit 1000s --machine good.json",
    "--vram {smallest} --format svg",
    "--vram {smallest} --format trace",
]
