"""How far an accelerator's gradients are from a CPU's: `python benchmarks/precision.py`.

Of a fresh ResNet-18 of width 16 on 64 random images of 32 pixels, in float32, by how JAX is to
multiply: as JAX would by default, and in full, as this library has it. Relative error by parameter
tensor, ‖g − g_CPU‖ / ‖g_CPU‖.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app
from measuring import show

from jaxunlearn import models


def main(argv: list[str]) -> None:
    del argv
    rng = np.random.default_rng(0)
    images = rng.normal(size=(64, 32, 32, 3)).astype(np.float32)
    labels = rng.integers(10, size=64)
    model = models.build("resnet18", num_classes=10, width=16)
    with jax.default_device(jax.devices("cpu")[0]):
        variables = jax.device_get(model.init(jax.random.key(0), images[:1]))

    def loss(params, variables, images):
        logits, _ = model.apply({**variables, "params": params}, images, True, None)
        log_p = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(log_p, jnp.asarray(labels)[:, None], 1))

    def gradients(device: jax.Device, precision: str) -> list[np.ndarray]:
        with jax.default_matmul_precision(precision):
            args = jax.device_put((variables["params"], variables, images), device)
            return jax.tree.leaves(jax.device_get(jax.jit(jax.grad(loss))(*args)))

    right = gradients(jax.devices("cpu")[0], "float32")
    device, rows = jax.devices()[0], []
    for precision in ("default", "tensorfloat32", "float32"):
        pairs = zip(gradients(device, precision), right, strict=True)
        errors = [np.linalg.norm(given - g) / np.linalg.norm(g) for given, g in pairs]
        rows.append([precision, f"{np.median(errors):.1e}", f"{max(errors):.1e}"])
    print(f"{device.device_kind}, jax {jax.__version__}\n")
    show(["precision", "median error", "largest"], rows)


if __name__ == "__main__":
    app.run(main)
