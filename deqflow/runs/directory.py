"""The run directory: what a run leaves on disk, and where."""

import contextlib
import dataclasses
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import deqflow
from deqflow.config import Config, differences, load
from deqflow.registry import UserError

_BEFORE_THE_CONFIG = {".lock", ".config.yaml.tmp"}
"""What a process may leave that is killed before it has written the config."""

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """What a run leaves on disk.

    `config.yaml` (resolved), `env.json`, `metrics.jsonl`, `timing.jsonl`, `events.jsonl`, `checkpoints/`, `plots/`, `tensorboard/`, at the
    end `DONE`, and `.lock`, which the process that trains holds.

    Args:
      path: the directory.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def untouched(self) -> bool:
        """Whether it can be taken for a new run: it is not there, or as a process left it that was killed before all else."""
        return not self.path.exists() or (self.path.is_dir() and {path.name for path in self.path.iterdir()} <= _BEFORE_THE_CONFIG)

    def require_new(self) -> None:
        """Raise `UserError` if the directory is taken, or cannot be made; nothing is written."""
        if not self.untouched:
            raise UserError(f"{self.path} exists already; choose another --run, or go on with what is there by --resume")
        parent = next(folder for folder in self.path.absolute().parents if folder.exists())
        if not parent.is_dir():
            raise UserError(f"cannot make the run directory {self.path}: {parent} is a file")
        if not os.access(parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise UserError(f"cannot make the run directory {self.path}: no permission to write in {parent}")

    @contextlib.contextmanager
    def held(self, config: Config) -> Iterator[None]:
        """Keep every other trainer out; make the directory, with config and environment, unless it is made.

        One that was made here is removed on leaving if there is nothing in it to go on from.

        Raises:
          UserError: if another process trains in it.
        """
        above = [folder for folder in self.path.absolute().parents if not folder.exists()]
        made = not self.config_file.is_file()
        if made:
            self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            try:
                if made:
                    write_whole(self.config_file, config.dump())
                    write_whole(self.path / "env.json", json.dumps(environment(), indent=2) + "\n")
                yield
            finally:
                if made and not self.begun:
                    shutil.rmtree(self.path, ignore_errors=True)
                    with contextlib.suppress(OSError):  # another run may have found a place there meanwhile
                        for folder in above:
                            folder.rmdir()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.path / ".lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which the kernel gives back when the process ends, however it ends
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise UserError(
                    f"another process ({holder}) trains in {self.path}; wait for it, end it, or choose another --run"
                ) from error
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):  # of a file system that has no locks
                    raise
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            yield

    def reopen(self, config: Config) -> None:
        """Let the run, finished or not, go on with another config."""
        write_whole(self.config_file, config.dump())
        (self.path / "DONE").unlink(missing_ok=True)

    @property
    def begun(self) -> bool:
        """Whether a step was trained and something of it is kept, numbers or a checkpoint."""
        metrics = self.path / "metrics.jsonl"
        return any(self.checkpoints.glob("[0-9]*")) or (metrics.is_file() and metrics.stat().st_size > 0)

    def config(self) -> Config:
        """The resolved config that the run was started with.

        Raises:
          UserError: if this is no run directory.
        """
        if not self.config_file.is_file():
            what = "there is no such directory" if not self.path.exists() else "it has no config.yaml"
            raise UserError(f"{self.path} is not a run directory: {what}; expected what `deqflow train` has made")
        return load(self.config_file)

    def require_same(self, config: Config, *, allow_change: bool = False) -> str:
        """The differences from the config that the run was started with, one a line; nothing where there are none.

        Raises:
          UserError: if there are differences, unless they are allowed.
        """
        changed = differences(self.config(), config)
        listed = "".join(f"\n  {path}: {before!r} there, {now!r} here" for path, before, now in changed)
        if changed and not allow_change:
            raise UserError(
                f"{self.path} was started with another config; undo the differences, or go on with them by --allow-config-change:{listed}"
            )
        return listed

    def finish(self, result: dict[str, Any]) -> None:
        """Mark the run as finished, with its result."""
        write_whole(self.path / "DONE", json.dumps(result, indent=2) + "\n")

    def result(self) -> dict[str, Any] | None:
        """What `finish` wrote, or `None` if the run is not finished."""
        done = self.path / "DONE"
        if not done.is_file():
            return None
        try:
            result = json.loads(done.read_bytes())
            if not isinstance(result, dict) or not result.keys() >= {"step", "selected_step", "test", "pictures"}:
                raise ValueError("not the result of a run")
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError among them
            raise UserError(f"{done} is damaged; delete it, and --resume will test the model anew ({error})") from error
        return result


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, also when the power fails."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def default_directory(name: str, *, resume: bool) -> RunDirectory:
    """`runs/NAME`, with a number behind it: the first that is free, or to resume the last that is there."""
    number, path = 1, Path("runs") / name
    following = Path("runs") / name
    while following.exists():
        number, path = number + 1, following
        following = Path("runs") / f"{name}-{number}"
    return RunDirectory(path if resume else following)


def environment() -> dict[str, Any]:
    """What a result depends on besides the config: versions, device and source."""
    device = jax.devices()[0]
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {
            "python": platform.python_version(),
            "deqflow": deqflow.__version__,
            **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count(), "cores": os.cpu_count()},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the source that runs, `+` behind it if files were changed since; `None` outside a checkout."""
    folder = Path(deqflow.__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
