"""A TFDS set prepared on disk trains while TensorFlow cannot be imported."""

import json
import subprocess
import sys

PROGRAM = """
import importlib.abc, importlib.machinery, sys

class Blocked(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            return importlib.machinery.ModuleSpec(name, self)  # there to be found, as TFDS looks for it, but not to be imported
    def create_module(self, spec):
        raise ImportError("TensorFlow is blocked")
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Blocked())
from deqflow.cli import main
sys.exit(main(sys.argv[1:]))
"""
CONFIG = """
data:  {kind: digits, batch_size: 16}
model: {kind: deq_classifier, width: 8, groups: 4, stride: 4}
task:  classification
optim: {kind: adamw, lr: 1e-3}
train: {steps: 8, log_every: 2, eval_every: 4, checkpoint_every: 4}
"""


def test_mnist_from_tfds_trains_without_tensorflow(tfds_dir, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)

    arguments = ["data.kind=tfds", "data.name=mnist", f"data.data_dir={tfds_dir}", "data.batch_size=16", "--run", "run"]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, "train", "config.yaml", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert "test accuracy: " in ended.stdout
    # 54 examples to train on and 16 a step: batches straddle epochs
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == [2, 4, 6, 8]
    assert rows[-1]["split"] == "test"
