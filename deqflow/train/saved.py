"""A trained model, back from its run directory."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from deqflow.machine.leaves import Leaves
from deqflow.machine.refusals import refusals_told, require_device
from deqflow.registry import UserError
from deqflow.runs.checkpoint import Checkpoints
from deqflow.runs.directory import RunDirectory
from deqflow.tasks.density import DensityModel
from deqflow.tasks.language_modelling import LanguageModelling
from deqflow.train.assemble import Assembly, assemble
from deqflow.train.loop import evaluate_split
from deqflow.train.step import Program, Stream, random_key


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """The state of a run at one of its checkpoints, with the program that reads it.

    Attributes:
      step: of the checkpoint.
    """

    assembly: Assembly
    program: Program
    state: Leaves
    step: int

    @classmethod
    def open(cls, run_dir: str | Path, step: int | None = None) -> "SavedRun":
        """Read a checkpoint: by default the one that the run selects (`train.select`), of what there is so far.

        Raises:
          UserError: if this is no run directory, or the checkpoint is missing or damaged.
        """
        require_device()
        with refusals_told(f"cannot read the run directory {run_dir}", "use a machine like the one that trained this model"):
            return cls._open(RunDirectory(Path(run_dir)), step)

    @classmethod
    def _open(cls, directory: RunDirectory, step: int | None) -> "SavedRun":
        config = directory.config()
        if not directory.checkpoints.is_dir():
            raise UserError(f"{directory.path} has no checkpoints; the run has not reached its first one")
        assembly = assemble(config)
        program = assembly.program(nnx.eval_shape(assembly.make_model))
        with Checkpoints(directory.checkpoints, program.settings.keep) as checkpoints:
            if step is None and (done := directory.result()) is not None:
                step = done["selected_step"]
            elif step is None and program.settings.select == "best":
                step = checkpoints.record().best_step
            state, _ = checkpoints.restore(program.abstract, step)
        return cls(assembly, program, state, int(state["step"]))

    def model(self) -> nnx.Module:
        """The model in evaluation mode, with the averaged parameters where the run averages them."""
        return self.program.layout.model(self.state, training=False)

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """The task's numbers on `"train"`, `"validation"` or `"test"`."""
        source = self.assembly.source
        with refusals_told("cannot read the data", "use a machine like the one that trained this model"):
            return self.program.task.summarize(evaluate_split(self.program, self.state, source.split(split), source.batch_size))

    def sample(self, n: int, seed: int = 0) -> np.ndarray:
        """`n` draws from a density model, of shape `(n, *input_shape)`.

        Raises:
          UserError: if the model cannot be sampled from.
        """
        model = self.model()
        if not isinstance(model, DensityModel):
            raise UserError(f"model {self.assembly.config.model.kind} cannot be sampled from: it is no density model")
        graph, state = nnx.split(model)

        @jax.jit
        def draw(state: nnx.State, key: Array) -> Array:
            return nnx.merge(graph, state).sample(key, n)

        with refusals_told("cannot sample", f"draw fewer than {n} at once (-n)"):
            return np.asarray(draw(state, random_key(seed, Stream.SAMPLE)))

    def texts(self, n: int, length: int, seed: int = 0) -> list[str]:
        """`n` texts of `length` tokens that a language model writes.

        Raises:
          UserError: if the model is no language model.
        """
        task = self.program.task
        if not isinstance(task, LanguageModelling):
            raise UserError(f"task {self.assembly.config.task.kind} trains no language model, which alone writes texts")
        with refusals_told("cannot write texts", f"write fewer than {n} at once (-n)"):
            return task.sample(self.model(), n, length, random_key(seed, Stream.SAMPLE))

    def save_samples(self, out: Path, n: int, seed: int = 0, length: int = 256) -> list[Path]:
        """Save `n` draws as `out`, a `.npy` file, and a picture of them beside it where they are images or points in the plane.

        A language model's draws are texts of `length` tokens, in a `.txt` file.

        Returns:
          The files.

        Raises:
          UserError: if the model cannot be sampled from, or the files cannot be written.
        """
        if isinstance(self.program.task, LanguageModelling):
            out = out.with_suffix(".txt")
            texts = self.texts(n, length, seed)
            with refusals_told(f"cannot write {out}", "give another place by --out"):
                out.write_text("".join(f"--- {index} ---\n{text}\n" for index, text in enumerate(texts, 1)), encoding="utf-8")
            return [out]
        from deqflow.tasks.density_figures import samples_figure

        draws = self.sample(n, seed)
        out = out.with_suffix(".npy")
        figure = samples_figure(draws, self.assembly.spec.levels)
        with refusals_told(f"cannot write {out}", "draw fewer at once (-n)"):
            np.save(out, draws)
            if figure is None:
                return [out]
            figure.savefig(out.with_suffix(".png"), dpi=150)
        return [out, out.with_suffix(".png")]


def load(run_dir: str | Path, step: int | None = None) -> nnx.Module:
    """Give back the model that a run has trained, in evaluation mode.

    Args:
      run_dir: what `deqflow train` has made.
      step: of the checkpoint; by default the one that the run selects, the best or the last.

    Returns:
      The module, which takes data as its data source gives them: `load("runs/digits_deq")(images)` are logits.

    Raises:
      UserError: if this is no run directory, or the checkpoint is missing or damaged.
    """
    return SavedRun.open(run_dir, step).model()
