"""The polynomial sine of deqflow.nn against XLA's own: time of value and of gradient, and the largest error.

python benchmarks/sine.py
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from common import write_result

from deqflow.nn.sine import sin

SIZE = 2_000_000


def milliseconds(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """The median of 15 calls, compiled before."""
    f = jax.jit(f)
    jax.block_until_ready(f(x))
    times = []
    for _ in range(15):
        start = time.perf_counter()
        jax.block_until_ready(f(x))
        times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times), 3)


def main():
    start = time.perf_counter()
    x = jax.random.uniform(jax.random.key(0), (SIZE,), minval=-10.0, maxval=10.0)
    metrics: dict[str, float] = {"floats": SIZE}
    for name, f in {"polynomial": sin, "jnp": jnp.sin}.items():
        metrics[f"{name}_ms"] = milliseconds(f, x)
        metrics[f"{name}_gradient_ms"] = milliseconds(jax.grad(lambda x, f=f: f(x).sum()), x)
        metrics[f"{name}_error"] = float(np.abs(np.asarray(f(x)) - np.sin(np.asarray(x, np.float64))).max())
    metrics["copy_ms"] = milliseconds(lambda x: x + 1, x)
    expected = {"polynomial_error": "below 1.3e-7", "polynomial_ms": "at least 5 times less than jnp_ms"}
    write_result("sine", metrics, expected, time.perf_counter() - start)


if __name__ == "__main__":
    main()
