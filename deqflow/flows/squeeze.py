"""Space to depth."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from deqflow.flows.bijector import Bijector, Transformed, check_event, check_latent
from deqflow.registry import Range, check_ranges


class Squeeze(Bijector):
    """Lay blocks of pixels behind one another: an image `(H, W, C)` becomes `(H/k, W/k, k² C)`, with log-determinant zero.

    With the pixels of a block numbered by rows, `z[h, w, (k i + j) C + c] = x[k h + i, k w + j, c]`. What follows mixes neighbouring
    pixels by mixing channels, and sees `k` times as far.

    Args:
      event_shape: `(H, W, C)`.
      factor: k, the side of a block in pixels.

    Raises:
      ValueError: if the event is not an image, or its sides are not multiples of `factor`.

    Example:
      >>> import jax.numpy as jnp
      >>> image = jnp.arange(4.0).reshape(1, 2, 2, 1)
      >>> Squeeze((2, 2, 1)).forward_and_log_det(image).value
      Array([[[[0., 1., 2., 3.]]]], dtype=float32)

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP. ICLR 2017.
    """

    def __init__(self, event_shape: tuple[int, ...], *, factor: Annotated[int, Range(ge=1)] = 2) -> None:
        check_ranges(Squeeze.__init__, locals())
        if len(event_shape) != 3:
            raise ValueError(f"only images (rows, columns, channels) can be squeezed, got events of shape {event_shape}")
        rows, columns, channels = event_shape
        if rows % factor or columns % factor:
            raise ValueError(
                f"an image of {rows} x {columns} pixels does not part into blocks of {factor} x {factor}; pad or crop it to multiples of "
                f"{factor}, or squeeze it fewer times"
            )
        self.event_shape = event_shape
        self._latent_shape = (rows // factor, columns // factor, factor**2 * channels)
        self.factor = factor

    def forward_and_log_det(
        self, x: Float[Array, "batch rows columns channels"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, x)
        rows, columns, _ = self.latent_shape
        blocks = x.reshape(-1, rows, self.factor, columns, self.factor, self.event_shape[2])
        value = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *self.latent_shape)
        return Transformed(value, jnp.zeros(x.shape[0], x.dtype), {})

    def inverse_and_log_det(
        self, z: Float[Array, "batch rows columns channels"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_latent(self, z)
        rows, columns, _ = self.latent_shape
        blocks = z.reshape(-1, rows, columns, self.factor, self.factor, self.event_shape[2])
        value = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *self.event_shape)
        return Transformed(value, jnp.zeros(z.shape[0], z.dtype), {})
