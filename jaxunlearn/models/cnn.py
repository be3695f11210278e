"""A small convolutional network, for quick runs and tests."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxunlearn.models.layers import BatchNorm, Conv


class CNN(nn.Module):
    """Three layers of 3x3 convolution, batch norm, ReLU and max-pool, of width x 1, 2 and 4."""

    num_classes: int
    width: int
    dtype: Any = jnp.float32
    custom_gradients: bool = True

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, penultimate: bool = False) -> jax.Array:
        """Logits, float32 [N, num_classes], of images float32 [N, H, W, C] of 8 x 8 or more.

        With the batch's moments where train, which update the running ones. `penultimate`: what
        the last layer sees, float32 [N, D], in place of its logits.
        """
        x = images
        norm = functools.partial(
            BatchNorm, dtype=self.dtype, custom_gradients=self.custom_gradients
        )
        for stage in range(3):
            x = Conv(self.width * 2**stage, dtype=self.dtype)(x)
            x = nn.relu(norm()(x, train))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = jnp.mean(x.astype(jnp.float32), (1, 2))
        return x if penultimate else nn.Dense(self.num_classes)(x)
