"""The check of a GPU, on a machine that has none: it says so before it installs anything."""

import pathlib
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.sh"


@pytest.mark.parametrize(
    "driver", [None, "#!/bin/bash\necho 'No devices were found' >&2\nexit 6\n", "#!/bin/bash\n"], ids=["none", "fails", "empty"]
)
def test_without_a_gpu_it_says_so(driver, tmp_path):
    for tool in ("bash", "dirname", "grep"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    if driver is not None:
        (tmp_path / "nvidia-smi").write_text(driver)
        (tmp_path / "nvidia-smi").chmod(0o755)
    ended = subprocess.run([tmp_path / "bash", str(SCRIPT)], env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr == "There is no NVIDIA GPU here that nvidia-smi can see: run this on a machine that has one.\n"
    assert ended.stdout == ""
