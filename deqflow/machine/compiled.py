"""Compiled programs that outlive their process."""

import os
import warnings
from pathlib import Path
from typing import Any

import jax


def keep_compiled_programs() -> None:
    """Let JAX keep on disk what this process compiles, and find there what an earlier one has: in `~/.cache/deqflow/jax`.

    JAX's own settings go first: `JAX_COMPILATION_CACHE_DIR` names another folder, and `JAX_ENABLE_COMPILATION_CACHE=0` keeps nothing.
    Where nothing can be kept, all is compiled.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is not None or not settings.jax_enable_compilation_cache:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deqflow" / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # a start compiles many small programs, which add up
        _forget_what_is_damaged(folder)


def _forget_what_is_damaged(folder: Path) -> None:
    """Empty the folder as soon as JAX warns that it cannot read an entry, and say nothing of it.

    JAX writes an entry in place, and only where there is none: one that a kill or a full disk has cut would be met at every start.
    """
    show = warnings.showwarning

    def hear(message: Warning | str, *rest: Any, **named: Any) -> None:
        if "persistent compilation cache entry" not in str(message):
            show(message, *rest, **named)
        elif "reading" in str(message):
            for entry in folder.iterdir():
                entry.unlink(missing_ok=True)

    warnings.showwarning = hear
