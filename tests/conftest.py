"""What all tests share: one CPU device, few threads, a compilation cache, and a few fixtures.

The environment is set while this file is imported, before anything imports JAX. `JAX_PLATFORMS=cuda pytest` runs the suite on a GPU.
"""

import codecs
import contextlib
import os
import pathlib
import signal
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("MPLBACKEND", "agg")
# Compiling is most of what tests do, and takes less time without LLVM's optimisations; XLA's own, such as fusion, remain.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores already: one thread each
    for name in ("PJRT_NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")

# A shell starts its background jobs with SIGINT ignored, which their children inherit and our commands respect: not so in tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
import pytest  # noqa: E402


def pytest_collection_modifyitems(items):
    if any(item.get_closest_marker("gpu") for item in items) and jax.default_backend() == "cpu":
        skip = pytest.mark.skip(reason="needs a GPU: JAX_PLATFORMS=cuda pytest")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


class ForgetsPrograms:
    """Drops compiled programs before the process runs out of memory mappings.

    Each program takes some, Linux gives a process 65,530, and XLA ends in a segmentation fault where it gets none.
    """

    @staticmethod
    def pytest_runtest_teardown(item, nextitem):
        maps = pathlib.Path("/proc/self/maps")
        if (nextitem is None or nextitem.path != item.path) and maps.exists() and maps.read_bytes().count(b"\n") > 15_000:
            jax.clear_caches()


def pytest_configure(config):
    config.pluginmanager.register(ForgetsPrograms())  # not a hook of this file, which would miss the examples in docstrings


@pytest.fixture
def x64():
    """The test computes in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data sets beside the checkout, in whose absence the test is skipped."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}")
    return folder


@pytest.fixture
def open_path():
    """A folder that other users may enter; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder).chmod(0o755)
        yield pathlib.Path(folder)


@contextlib.contextmanager
def nobody():
    """For root, to whom permissions mean nothing: be someone else for a moment."""
    codecs.lookup("utf-8-sig")  # loaded when first used, and Python may be installed where that user cannot read
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def as_nobody():
    return nobody
