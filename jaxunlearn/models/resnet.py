"""Residual networks for small and large images (He et al., 2016, https://arxiv.org/abs/1512.03385)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxunlearn.models.layers import BatchNorm, Conv


class ResNet(nn.Module):
    """A ResNet of basic or bottleneck blocks.

    Images under 128 pixels get the CIFAR stem (3x3, stride 1), larger ones the ImageNet stem
    (7x7 stride 2, then a 3x3 max-pool of stride 2).
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    num_classes: int
    width: int
    dtype: Any = jnp.float32
    custom_gradients: bool = True

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, penultimate: bool = False) -> jax.Array:
        """Logits, float32 [N, num_classes], of images float32 [N, H, W, C].

        With the batch's moments where train, which update the running ones. `penultimate`: what
        the last layer sees, float32 [N, D], in place of its logits.
        """
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = functools.partial(
            BatchNorm, dtype=self.dtype, custom_gradients=self.custom_gradients
        )
        large = min(images.shape[1:3]) >= 128
        x = conv(self.width, size=7, stride=2)(images) if large else conv(self.width)(images)
        x = nn.relu(norm()(x, train))
        if large:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, count in enumerate(self.blocks):
            width = self.width * 2**stage
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                features = width * (4 if self.bottleneck else 1)
                if self.bottleneck:
                    y = nn.relu(norm()(conv(width, size=1)(x), train))
                    y = nn.relu(norm()(conv(width, stride=stride)(y), train))
                    y = norm()(conv(features, size=1)(y), train)
                else:
                    y = nn.relu(norm()(conv(width, stride=stride)(x), train))
                    y = norm()(conv(features)(y), train)
                if x.shape != y.shape:
                    x = norm()(conv(features, size=1, stride=stride)(x), train)
                x = nn.relu(x + y)
        x = jnp.mean(x.astype(jnp.float32), (1, 2))
        return x if penultimate else nn.Dense(self.num_classes)(x)
