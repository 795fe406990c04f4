"""The SLURM script: what it asks `srun` for, and what it says where it cannot work. SLURM itself is a stand-in."""

import os
import pathlib
import re
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "train.slurm"


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def submit(folder, *arguments, **environment):
    executable(folder / "bin" / "srun", '#!/bin/bash\necho "$PWD: srun $*"\n')
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **environment}
    return subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=60, cwd="/")


def test_every_process_runs_the_command(tmp_path):
    executable(tmp_path / ".venv" / "bin" / "deqflow", "#!/bin/bash\n")
    ended = submit(tmp_path, "a b.yaml", "--run", "runs/a", SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{tmp_path}: srun --kill-on-bad-exit=1 .venv/bin/deqflow train a b.yaml --run runs/a --distributed\n"


@pytest.mark.parametrize(
    ("arguments", "job", "message"),
    [
        (["a.yaml"], {}, "no SLURM job here: submit this script with sbatch"),
        ([], {"SLURM_JOB_ID": "7"}, "Expected what 'deqflow train' takes"),
        (["a.yaml"], {"SLURM_JOB_ID": "7"}, "no deqflow in .*/.venv: submit from the checkout"),
    ],
)
def test_what_is_missing_is_told(arguments, job, message, tmp_path):
    ended = submit(tmp_path, *arguments, SLURM_SUBMIT_DIR=str(tmp_path), **job)
    assert ended.returncode == 1
    assert re.search(message, ended.stderr)
    assert ended.stdout == ""
