"""Flows on patches of natural images: likelihood, inverse error and Lipschitz bounds of the configs for BSDS300.

python benchmarks/bsds300.py [--runs FOLDER]

`data/bsds300.npz` is made by scripts/prepare_bsds300.py. Every config is trained in FOLDER/NAME, or read from there where it has been. The
inverse is that of 1024 test patches.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, study, write_result

from deqflow.data.files import read_array

# The published figures: Papamakarios et al. 2017; Chen et al. 2019 and Lu et al. 2021 as the latter gives them.
EXPECTED = {
    "bsds300_realnvp": {"nats": "<= -150 (published: -153.28)"},
    "bsds300_residual": {"nats": "<= -104.6, which is published"},
    "bsds300_implicit": {"nats": "<= -113.7, which is published"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="where the run directories are kept; a temporary folder by default")
    arguments = parser.parse_args()
    began = time.perf_counter()
    x = np.asarray(read_array(str(ROOT / "data" / "bsds300.npz"), "test")[::244])
    with tempfile.TemporaryDirectory() as temporary:
        runs = arguments.runs or Path(temporary)
        rows = {name: study(name, runs / name, x) for name in EXPECTED}
    write_result("bsds300", rows, EXPECTED, time.perf_counter() - began)


if __name__ == "__main__":
    main()
