"""A problem whose gradient is known in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest


class Affine:
    """z = z Aᵀ + x, so that with `loss = <v, z>` the gradient with respect to x is `v (I - A)⁻¹`, and that to A its product with z."""

    def __init__(self, batch=4, width=6, radius=0.5):
        generator = np.random.default_rng(0)
        A = generator.standard_normal((width, width))
        self.A = A * (radius / np.linalg.norm(A, 2))
        self.b = generator.standard_normal((batch, width))
        self.z = jnp.zeros((batch, width))
        self.x = {"A": jnp.asarray(self.A), "b": jnp.asarray(self.b)}

    def __call__(self, z, x):
        return z @ x["A"].T + x["b"]

    def gradient(self, v):
        inverse = np.linalg.inv(np.eye(len(self.A)) - self.A)
        towards_b = np.asarray(v) @ inverse
        return [towards_b.T @ (self.b @ inverse.T), towards_b]


@pytest.fixture
def affine():
    return Affine()
