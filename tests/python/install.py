#!/usr/bin/env python3
"""Installs the Python package with pip into a virtual environment of its own, and runs its tests there.

    install.py --venv VENV --exported MODELS --work FOLDER [ARGUMENT OF PYTEST]...

The environment is in FOLDER/venv. It has the torch of VENV, which is not installed twice, and cmake and ninja are those on
PATH; what is built stays in FOLDER, so that the next time only what has changed is compiled. MODELS is what models/export.py
has written.
"""

import argparse
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TESTS = ROOT / "tests" / "python"


def absolute(path):
    return pathlib.Path(path).absolute()


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], cwd=ROOT, **options)
    if done.returncode != 0:
        sys.exit(f"FAILED with exit code {done.returncode}: {' '.join(map(str, command))}")


def make_environment(folder, torch_venv):
    """With the packages of `torch_venv` behind its own."""
    if not (folder / "bin" / "python").exists():
        run(torch_venv / "bin" / "python", "-m", "venv", "--clear", folder)
    packages = next((torch_venv / "lib").glob("python3*/site-packages"))
    own = next((folder / "lib").glob("python3*/site-packages"))
    (own / "of_torch.pth").write_text(f"{packages}\n")
    return folder / "bin" / "python"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=absolute, required=True)
    parser.add_argument("--exported", type=absolute, required=True)
    parser.add_argument("--work", type=absolute, required=True)
    arguments, of_pytest = parser.parse_known_args()
    python = make_environment(arguments.work / "venv", arguments.venv)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-q"]
    run(*pip, "-r", TESTS / "requirements.txt")
    run(*pip, "--no-build-isolation", "--force-reinstall", "--no-deps", f"-Cbuild-dir={arguments.work}", ".")
    run(python, "-m", "mypy")
    environment = os.environ | {"OFFLOAD_EXPORTED": str(arguments.exported)}
    run(python, "-m", "pytest", "-q", TESTS, *of_pytest, env=environment)


main()
