"""A small convolutional network, for quick runs and tests."""

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
    plain: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits, float32 [N, num_classes], of images float32 [N, H, W, C] of 8 x 8 or more.

        Where train, by the batch's moments, which update the running ones.
        """
        x = images
        for stage in range(3):
            x = Conv(self.width * 2**stage, dtype=self.dtype, plain=self.plain)(x)
            x = nn.relu(BatchNorm(dtype=self.dtype, plain=self.plain)(x, train))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = jnp.mean(x.astype(jnp.float32), (1, 2))
        return nn.Dense(self.num_classes)(x)
