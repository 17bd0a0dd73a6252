#!/usr/bin/env python3
"""Searches sentences by meaning, with embeddings that the run tool has saved.

    export.py minilm DIR
    run DIR/minilm.pt --vram 24MiB --inputs DIR/minilm.inputs.pt --calls N --save DIR/minilm.saved.pt
    minilm_search.py DIR/minilm.pt DIR/minilm.saved.pt [--query NUMBER]

Prints a sentence of sentences.txt and the three nearest to it by cosine, and compares every saved output, bit by bit, with
what plain `torch.jit.load` gives for the saved inputs. Exit 0: all are equal; 1: one is not.
"""

import argparse
import pathlib
import sys
import warnings

import torch

SENTENCES = pathlib.Path(__file__).resolve().with_name("sentences.txt")


def plain_outputs(model, calls):
    """The graph as it stands, operator by operator: the profiling executor would fuse, and round otherwise."""
    torch._C._jit_set_profiling_executor(False)
    loaded = torch.jit.load(model, map_location="cpu")
    with torch.no_grad(), torch.jit.optimized_execution(False):
        return [loaded(*call) for call in calls]


def saved_on_gpu(path):
    """Where the run tool had its outputs, as the file says it; there may be no such device here."""
    found = []
    torch.load(path, map_location=lambda storage, location: found.append(location) or storage)
    return any(location.startswith("cuda") for location in found)


def bit_equal(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.pt")
    parser.add_argument("saved", metavar="SAVED.pt")
    parser.add_argument("--query", type=int, default=1, metavar="NUMBER", help="line of sentences.txt to search for")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)

    saved = torch.load(arguments.saved, map_location="cpu")
    on_gpu = saved_on_gpu(arguments.saved)
    outputs = [output[0] if isinstance(output, (list, tuple)) else output for output in saved["outputs"]]
    expected = plain_outputs(arguments.model, saved["inputs"])
    different = [i for i, (a, b) in enumerate(zip(expected, outputs, strict=True)) if not bit_equal(a, b)]

    sentences = SENTENCES.read_text().splitlines()
    # The calls hold the sentences in order; a run of more calls begins again.
    embeddings = torch.cat(outputs)[:len(sentences)]
    if not 1 <= arguments.query <= len(embeddings):
        parser.error(f"--query {arguments.query}: there are {len(embeddings)} sentences")
    query = arguments.query - 1
    cosine = embeddings @ embeddings[query]
    print(f"       {sentences[query]}")
    nearest = [i for i in cosine.argsort(descending=True).tolist() if i != query][:3]
    for i in nearest:
        print(f"{cosine[i]:.3f}  {sentences[i]}")

    if on_gpu:
        # A GPU sums in another order than the host, so what plain loading gives here is close, not equal; `run --check` has
        # compared with the same device. The neighbours must be the same.
        plain = torch.cat(expected)[:len(sentences)]
        same = all(torch.equal((embeddings @ embeddings[i]).topk(4).indices.sort().values,
                               (plain @ plain[i]).topk(4).indices.sort().values) for i in range(len(embeddings)))
        print(f"computed on the GPU; the nearest neighbours of all {len(embeddings)} sentences are "
              f"{'those' if same else 'NOT those'} of torch.jit.load on the host")
        return 0 if same else 1
    if different:
        largest = max((expected[i] - outputs[i]).abs().max().item() for i in different)
        print(f"{len(different)} of {len(outputs)} calls differ from torch.jit.load, by up to {largest}: {different[:10]}")
        return 1
    print(f"all {len(embeddings)} embeddings are bit-equal to those of torch.jit.load")
    return 0


if __name__ == "__main__":
    sys.exit(main())
