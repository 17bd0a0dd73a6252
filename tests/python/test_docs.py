"""The programs of docs/python.md, as they stand there, and a notebook that shows a placement."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

PAGE = pathlib.Path(__file__).resolve().parent.parent.parent / "docs" / "python.md"
PROGRAMS = re.findall(r"<!-- program: (\w+) -->\n```python\n(.*?)```", PAGE.read_text(), re.S)


def test_the_page_has_programs():
    assert [name for name, _ in PROGRAMS] == ["minilm", "offload", "pool", "errors"]
    assert len(re.findall(r"```python", PAGE.read_text())) == len(PROGRAMS)


@pytest.mark.parametrize("name, program", PROGRAMS)
def test_a_program_of_the_page_runs(name, program, exported, tmp_path):
    for model in ("minilm.pt", "minilm.inputs.pt", "vit.pt", "bert.pt"):
        os.symlink(exported / model, tmp_path / model)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_a_notebook_shows_the_plan_as_a_picture(scripted_path, tmp_path):
    cells = [
        f"import torch_offload\nmodel = torch_offload.load({str(scripted_path)!r}, vram_budget='1MiB')",
        "model.placement",
    ]
    notebook = {
        "cells": [
            {"cell_type": "code", "id": f"cell{i}", "metadata": {}, "execution_count": None, "outputs": [], "source": cell}
            for i, cell in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "plan.ipynb").write_text(json.dumps(notebook))
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "nbconvert", "--to", "html", "--execute", "plan.ipynb"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "plan.html").read_text()
    assert "<svg " in html and "<rect " in html and "layers.7.weight" in html and "Placement on" in html
