"""The shell scripts: what they install and when, and the one sentence in which each failure is told.

Most tests run copies of the scripts beside a stand-in for Python that notes what it is asked to do; the last asks a real pip.
"""

import os
import pathlib
import shutil
import stat
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ("bash", "cat", "chmod", "cksum", "cp", "dirname", "grep", "head", "ls", "mkdir", "rm", "sed")

# Answers as an interpreter of version $VERSION does; `pip install` succeeds unless $PIP_SAYS holds an error text.
STAND_IN = """#!/bin/bash
[[ $# == 0 || ! -e $0.broken ]] || exit 1
VERSION=${VERSION_OF_ALL:-VERSION_HERE}
echo "$*" >>"$CALLS"
case "$*" in
  *"import ensurepip, venv"*) [[ -z $NO_VENV ]] ;;
  "-c import sys; print"*) echo "$VERSION" ;;
  "-c import sys; sys.exit"*) [[ ${VERSION#3.} -ge 11 ]] ;;
  "-c import pip") ;;
  "-m venv --clear "*)
    rm -rf "$4"
    mkdir -p "$4/bin"
    echo >"$4/pyvenv.cfg"
    cp "$0" "$4/bin/python"
    ;;
  "-m pip "*" -e .")
    [[ -z $PIP_SAYS ]] || { echo "$PIP_SAYS"; exit 1; }
    echo '#!/bin/bash' >"${0%/python}/deqflow"
    echo 'echo "deqflow $*"' >>"${0%/python}/deqflow"
    chmod +x "${0%/python}/deqflow"
    ;;
  "-m pip "*) ;;
  "-m pytest "*) echo "pytest ${*:3}" ;;
  *) echo "unexpected: $*"; exit 9 ;;
esac
"""


class Machine:
    """A checkout in a path with spaces, on a machine with a handful of tools and whatever Pythons a test puts there."""

    def __init__(self, folder: pathlib.Path):
        self.checkout = folder / "a checkout"
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.bin.mkdir(parents=True)
        self.calls.touch()
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.checkout)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))

    def add_python(self, name: str, version: str) -> pathlib.Path:
        path = self.bin / name
        path.write_text(STAND_IN.replace("VERSION_HERE", version))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        variables = {"PATH": str(self.bin), "HOME": str(self.checkout), "CALLS": str(self.calls), **environment}
        command = ["bash", str(self.checkout / "scripts" / script), *arguments]
        return subprocess.run(command, env=variables, cwd=self.bin, capture_output=True, text=True, timeout=120)

    def pip_calls(self) -> list[str]:
        """What pip was asked to install since the last look."""
        calls = [line for line in self.calls.read_text().splitlines() if line.startswith("-m pip")]
        self.calls.write_text("")
        return calls


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def sentence(result: subprocess.CompletedProcess) -> str:
    """The one line on standard error of a run that failed."""
    assert result.returncode == 1, result
    (line,) = result.stderr.splitlines()
    return line


def test_quickstart_installs_then_trains(machine):
    machine.add_python("python3", "3.11")
    result = machine.run("quickstart.sh", "train.steps=5")
    assert result.stdout.splitlines()[-1] == "deqflow train configs/digits_deq.yaml train.steps=5", result
    build, packages = machine.pip_calls()
    assert build.endswith("install --no-deps -r scripts/locks/build.txt")
    assert packages.endswith("install --no-deps --no-build-isolation -r scripts/locks/train.txt -e .")


def test_the_second_start_installs_nothing(machine):
    machine.add_python("python3", "3.12")
    machine.run("quickstart.sh")
    assert len(machine.pip_calls()) == 2
    start = time.monotonic()
    result = machine.run("quickstart.sh")
    assert time.monotonic() - start < 3
    assert result.stdout == "deqflow train configs/digits_deq.yaml\n"
    assert machine.pip_calls() == []


def test_tests_add_what_they_need_and_serve_training_too(machine):
    machine.add_python("python3", "3.11")
    machine.run("quickstart.sh")
    machine.pip_calls()
    assert machine.run("test.sh", "-k", "a name").stdout.splitlines()[-1] == "pytest -n logical --maxprocesses 8 -k a name"
    assert "scripts/locks/test.txt" in machine.pip_calls()[1]
    machine.run("quickstart.sh")
    machine.run("test.sh")
    assert machine.pip_calls() == []


@pytest.mark.parametrize("file", ["pyproject.toml", "scripts/locks/train.txt"])
def test_changed_requirements_are_installed(machine, file):
    machine.add_python("python3", "3.11")
    machine.run("quickstart.sh")
    machine.pip_calls()
    with (machine.checkout / file).open("a") as stream:
        stream.write("# changed\n")
    assert machine.run("quickstart.sh").returncode == 0
    assert len(machine.pip_calls()) == 2


def test_an_interrupted_installation_is_completed(machine):
    machine.add_python("python3", "3.11")
    result = machine.run("quickstart.sh", PIP_SAYS="ERROR: Operation cancelled by user")
    assert (result.returncode, result.stderr) == (130, "The installation was interrupted; run this again to complete it.\n")
    machine.pip_calls()
    assert machine.run("quickstart.sh").returncode == 0
    assert len(machine.pip_calls()) == 2


def test_a_moved_checkout_gets_a_new_environment(machine):
    machine.add_python("python3", "3.11")
    machine.run("quickstart.sh")
    machine.checkout = machine.checkout.rename(machine.checkout.parent / "moved")
    (machine.checkout / ".venv" / "old").touch()
    machine.pip_calls()
    assert machine.run("quickstart.sh").returncode == 0
    assert len(machine.pip_calls()) == 2
    assert not (machine.checkout / ".venv" / "old").exists()


def test_a_broken_environment_is_made_anew(machine):
    machine.add_python("python3", "3.11")
    machine.run("quickstart.sh")
    (machine.checkout / ".venv" / "bin" / "python.broken").touch()
    machine.pip_calls()
    assert machine.run("quickstart.sh").returncode == 0
    assert len(machine.pip_calls()) == 2


def test_python_and_environment_can_be_chosen(machine):
    machine.add_python("python3", "3.11")
    machine.run("test.sh")
    machine.pip_calls()
    other = machine.add_python("other", "3.12")
    assert machine.run("test.sh", PYTHON=str(other), DEQFLOW_VENV=".venv-3.12").returncode == 0
    assert len(machine.pip_calls()) == 2
    assert (machine.checkout / ".venv-3.12" / "deqflow-installed").exists()
    machine.run("test.sh")
    machine.run("test.sh", PYTHON=str(other), DEQFLOW_VENV=".venv-3.12")
    assert machine.pip_calls() == []
    # The same environment for another Python is made anew: it was made by the script.
    assert machine.run("test.sh", PYTHON=str(other)).returncode == 0
    assert len(machine.pip_calls()) == 2


def test_a_tested_python_is_preferred(machine):
    machine.add_python("python3", "3.14")
    machine.add_python("python3.12", "3.12")
    machine.run("quickstart.sh")
    assert "VERSION_OF_ALL:-3.12" in (machine.checkout / ".venv" / "bin" / "python").read_text()


def test_a_newer_python_will_do(machine):
    machine.add_python("python3", "3.14")
    assert machine.run("quickstart.sh").returncode == 0


def test_no_python(machine):
    assert sentence(machine.run("quickstart.sh")).startswith("deqflow needs Python 3.11 or newer, and no python3 was found")


def test_named_python_does_not_run(machine):
    machine.add_python("python3", "3.11")
    assert sentence(machine.run("quickstart.sh", PYTHON="/nowhere/python")) == "PYTHON=/nowhere/python does not run."


@pytest.mark.parametrize("version", ["3.10", "2.7"])
@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_too_old_a_python(machine, script, version):
    machine.add_python("python3", version)
    message = sentence(machine.run(script))
    assert message.startswith(f"deqflow needs Python 3.11 or newer, and this one is Python {version}: ")
    assert not (machine.checkout / ".venv").exists()


def test_python_without_venv(machine):
    machine.add_python("python3", "3.12")
    message = sentence(machine.run("quickstart.sh", NO_VENV="1"))
    assert message.startswith("Python 3.12 cannot make virtual environments: install its venv package")
    assert "python3.12-venv" in message


@pytest.mark.parametrize(
    ("pip_says", "told"),
    [
        ("WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError'", "the package registry did not answer"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: No matching distribution found for jax==0.10.2", "has no jax==0.10.2 for this Python (3.11)"),
        ("error: subprocess-exited-with-error", "says why"),
    ],
)
def test_pip_fails(machine, pip_says, told):
    machine.add_python("python3", "3.11")
    message = sentence(machine.run("quickstart.sh", PIP_SAYS=pip_says))
    log = machine.checkout / ".venv" / "install.log"
    assert told in message
    assert str(log) in message
    assert pip_says in log.read_text()


def test_a_folder_in_the_way_is_left_alone(machine):
    machine.add_python("python3", "3.11")
    (machine.checkout / ".venv").mkdir()
    (machine.checkout / ".venv" / "thesis.tex").touch()
    assert "is in the way: it is not a virtual environment" in sentence(machine.run("quickstart.sh"))
    assert (machine.checkout / ".venv" / "thesis.tex").exists()


def test_an_environment_of_the_users_own_is_kept(machine):
    python = machine.add_python("python3", "3.11")
    own = machine.checkout / ".venv"
    subprocess.run([python, "-m", "venv", "--clear", own], env={"CALLS": str(machine.calls), "PATH": str(machine.bin)}, check=True)
    (own / "kept").touch()
    assert machine.run("quickstart.sh").returncode == 0
    assert (own / "kept").exists()
    (own / "deqflow-installed").unlink()
    assert "an environment of Python 3.10" in sentence(machine.run("quickstart.sh", VERSION_OF_ALL="3.10"))
    assert (own / "kept").exists()


def test_a_real_pip_without_a_registry(machine):
    """Nothing listens on port 9 of this machine."""
    result = machine.run(
        "quickstart.sh",
        PYTHON=sys.executable,
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="1",
    )
    assert "the package registry did not answer" in sentence(result)
