"""The gradient that a config's training step takes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from deqflow.bench.problem import Problem, Taken
from deqflow.config import Config
from deqflow.data.spec import DataSpec
from deqflow.deq import DEQ
from deqflow.implicit import Gradient, Implicit, Picard, Solver
from deqflow.machine.leaves import section
from deqflow.registry import UserError
from deqflow.tasks.model_reports import solver_numbers
from deqflow.train.assemble import assemble
from deqflow.train.state import Layout
from deqflow.train.step import Stream, abstract_batch, random_key


def of_config(config: Config) -> Problem:
    """The gradient of the task's loss with respect to the parameters, at the first parameters of a run and a random batch.

    Every equilibrium layer of the model gets the solver and the gradient that are asked for in place of the config's. No data are read.

    Raises:
      UserError: if the model has no equilibrium layer, or a component refuses its arguments.
    """
    assembly = assemble(config)
    model = assembly.make_model()
    layers = [module for _, module in nnx.iter_modules(model) if isinstance(module, DEQ)]
    if not layers:
        raise UserError(
            f"model {config.model.kind} has no equilibrium layer, so there are no solver steps to differentiate; expected one that holds a "
            "deqflow.DEQ, such as deq_classifier"
        )
    leaves = Layout.of(model).leaves(model)

    def function(solver: Solver, gradient: Gradient) -> Callable[..., Taken]:
        gradient.check(solver)
        for layer in layers:
            layer.solver, layer.gradient = solver, gradient
        layout = Layout.of(model)

        def loss(params: Any, variables: Any, batch: Any) -> Any:
            model = layout.model(params | variables, training=True)
            value, _ = assembly.task.loss(model, batch, random_key(config.seed, Stream.LOSS))
            return value, solver_numbers(model)

        def taken(*arguments: Any) -> Taken:
            gradient, numbers = jax.grad(loss, has_aux=True)(*arguments)
            return jax.tree.leaves(gradient), numbers["solver_max_steps"], numbers["solver_failures"], numbers["solver_residual"]

        return taken

    batch = _random_batch(assembly.spec, assembly.source.batch_size, config.seed)
    problem = Problem((section(leaves, "params"), section(leaves, "model"), batch), function)
    try:
        jax.eval_shape(function(Picard(), Implicit()), *problem.arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"model {config.model.kind} and task {config.task.kind} do not work on data {config.data.kind}: {error}") from error
    return problem


def _random_batch(spec: DataSpec, size: int, seed: int) -> dict[str, jax.Array]:
    """Noise in the form of the data: normal numbers, or levels and classes that are equally likely."""
    batch = {}
    for index, (name, like) in enumerate(abstract_batch(spec, size).items()):
        key = random_key(seed, Stream.SAMPLE, index)
        if jnp.issubdtype(like.dtype, jnp.floating):
            batch[name] = jax.random.normal(key, like.shape, like.dtype)
        else:
            values = spec.classes if name == "y" else spec.levels
            batch[name] = jax.random.randint(key, like.shape, 0, values or 2).astype(like.dtype)
    return batch
