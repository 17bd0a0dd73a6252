"""The table of measured figures in README.md, made from the JSON that `bench` wrote.

usage: figures.py BENCH_JSON            prints it
       figures.py BENCH_JSON README     fails unless it stands there, word for word
"""
import json
import statistics
import sys


def milliseconds(us):
    return f"{us / 1e3:.1f}" if us >= 1e4 else f"{us / 1e3:.2f}"


def lines(report):
    setup = report["setup"]
    yield (f"{setup['gpu']}, 16 cores, torch {setup['torch']}, link {setup['link_bytes_per_us'] / 1e3:.1f} GB/s, {setup['date']}, "
           f"commit {setup['commit']}. Milliseconds a call.")
    yield ""
    yield "| stack | weights on the GPU | ours | limit | ours / limit | plain, all on the GPU | load and unload at each call |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for table in report["tables"]:
        if table["measured_as"] or not table["record"] and table["input_rows"] > 1:
            continue
        rows = table["rows"]
        for row in [rows[0], rows[len(rows) // 2]]:
            yield (f"| {table['title'].split(': ')[-1] if table['record'] else table['title']} "
                   f"| {100 * row['layers_on_gpu'] / table['layers']:.0f}% | {milliseconds(row['time_us'])} "
                   f"| {milliseconds(row['limit_us'])} | {row['ratio_to_limit']:.3f} "
                   f"| {milliseconds(statistics.median(row['plain_us'] or table['plain_us']))} "
                   f"| {milliseconds(statistics.median(row['auto_us']))} |")
    worst = max(row["ratio_to_limit"] for table in report["tables"] for row in table["rows"])
    count = sum(len(table["rows"]) for table in report["tables"])
    yield ""
    yield f"The worst of all {count} rows is at {worst:.3f} of its limit."


def main():
    with open(sys.argv[1]) as file:
        table = "\n".join(lines(json.load(file)))
    if len(sys.argv) == 2:
        print(table)
        return
    with open(sys.argv[2]) as file:
        if table not in file.read():
            sys.exit(f"{sys.argv[2]}: the figures are not those of {sys.argv[1]}; they should be:\n{table}")


main()
