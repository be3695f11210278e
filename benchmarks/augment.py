"""Times each augmentation against the same one in Pillow: `python benchmarks/augment.py`.

Prints images/s of the compiled augmentation (batch of 128; compile time apart), of Pillow in one
process and of Pillow in as many processes as there are cores, taken in turn in one run so that a
machine whose speed drifts does not favour one. Pillow is given its choices, its images stay where
they are worked on, and it starts and ends with an array: what a loader does besides is not charged.
Last, the share of a training step of ResNet-18 that each augmentation takes.
"""

import concurrent.futures
import multiprocessing
import os
import statistics
import time

import jax
import numpy as np
from absl import app, flags, logging
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from jaxunlearn.augment import POLICIES, build, policies

SIZES = flags.DEFINE_multi_integer("size", [28, 32, 64, 224], "Image sizes in pixels.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timings of each; the median counts.")
SECONDS = flags.DEFINE_float("seconds", 0.3, "Seconds a timing, about.")
STEP = flags.DEFINE_bool("step", True, "Also time the training step.")
BATCH = 128

SPACES = {
    "trivialaugment": lambda shape: policies.wide_space(31, shape),
    "randaugment": lambda shape: policies.narrow_space(31, shape),
    "autoaugment": lambda shape: policies.narrow_space(10, shape) | {"invert": np.zeros(10)},
    "augmix": lambda shape: policies.mix_space(10, shape),
}


def pillow_op(image: Image.Image, name: str, value: float) -> Image.Image:
    """One op of the library, by Pillow."""

    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    return {
        "identity": lambda: image,
        "shear_x": lambda: affine(1, value, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, value, 1, 0),
        "translate_x": lambda: affine(1, 0, value, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, value),
        "rotate": lambda: image.rotate(value),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(value),
        "color": lambda: ImageEnhance.Color(image).enhance(value),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(value),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(value),
        "posterize": lambda: ImageOps.posterize(image, int(value)),
        "solarize": lambda: ImageOps.solarize(image, value),  # type: ignore[arg-type]
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "smooth": lambda: image.filter(ImageFilter.SMOOTH),
    }[name]()


def recipe(policy: str, choices: dict, shape: tuple[int, ...]) -> list[tuple]:
    """The choices of a policy for one image of `shape` (H, W, C), in plain Python for Pillow."""
    choices = {name: np.asarray(value).tolist() for name, value in choices.items()}
    if policy in SPACES:
        space = SPACES[policy](shape)
        names = list(space)

        def chain(op, level, sign):
            names_of_ops = [names[i] for i in op]
            return [
                (name, policies.magnitude(space, name, *where))
                for name, *where in zip(names_of_ops, level, sign, strict=True)
            ]

        if policy != "augmix":
            return chain(choices["op"], choices["level"], choices["sign"])
        rows = zip(choices["op"], choices["level"], choices["sign"], strict=True)
        return [("mix", [chain(*row) for row in rows], choices["weights"])]
    if policy == "crop_flip":
        pad = round(max(shape[:2]) / 8)
        return [("crop", pad, *choices["corner"]), ("flip", choices["flip"])]
    if policy == "rotate90_flip":
        return [("turn", choices["turns"]), ("flip", choices["flip"])]
    if policy in ("random_erasing", "cutmix"):
        return [("fill" if policy == "random_erasing" else "paste", choices["box"])]
    if policy == "mixup":
        return [("mix", [[("before",)]], [65536 - choices["own"], choices["own"]])]
    raise KeyError(policy)


def follow(image: Image.Image, before: Image.Image, steps: list[tuple]) -> Image.Image:
    """Carries a recipe out in Pillow; `before` is the image before in the batch."""
    width, height = image.size
    for name, *args in steps:
        if name == "crop":
            pad, top, left = args
            padded = ImageOps.expand(image, pad)
            image = padded.crop((left, top, left + width, top + height))
        elif name == "flip":
            image = ImageOps.mirror(image) if args[0] else image
        elif name == "turn":
            image = image.rotate(90 * args[0])
        elif name in ("fill", "paste"):
            top, left, bottom, right = args[0]
            box = (left, top, right, bottom)
            image = image.copy()
            image.paste(before.crop(box) if name == "paste" else (128,) * len(image.mode), box)
        elif name == "before":
            image = before
        elif name == "mix":
            chains, weights = args
            mixed = [*(follow(image, before, chain) for chain in chains), image]
            total = sum(np.asarray(m, np.int32) * w for m, w in zip(mixed, weights, strict=True))
            image = Image.fromarray(((total + 32768) >> 16).astype(np.uint8))
        else:
            image = pillow_op(image, name, args[0])
    return image


def to_pillow(image: np.ndarray) -> Image.Image:
    """A Pillow image of uint8 `[H, W, C]`."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pillow(image: Image.Image) -> np.ndarray:
    """Uint8 `[H, W, C]` of a Pillow image."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def by_pillow(images: np.ndarray, recipes: list[list[tuple]]) -> np.ndarray:
    """Carries one recipe an image out in Pillow; uint8 `[B, H, W, C]`."""
    pillows = [to_pillow(image) for image in images]
    return np.stack(
        [from_pillow(follow(pillows[i], pillows[i - 1], steps)) for i, steps in enumerate(recipes)]
    )


def rate(work, count: int, seconds: float) -> float:
    """Images/s of calling `work`, which does `count` images, for about so many seconds."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        work()
        done += count
    return done / (time.perf_counter() - start)


def pillow_rate(images: np.ndarray, recipes: list[list[tuple]], seconds: float) -> float:
    return rate(lambda: by_pillow(images, recipes), len(images), seconds)


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores; images/s, median of {ROUNDS.value}; jax {jax.__version__}")
    print(
        f"{'policy':16}{'size':>5}{'compile s':>11}{'ours':>9}{'Pillow':>8}{f'x{cores}':>8}  ratios"
    )
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(cores, mp_context=context)
    list(pool.map(abs, range(cores)))
    targets = np.eye(10, dtype=np.float32)[np.arange(BATCH) % 10]
    ours_at_32 = {}
    for policy in POLICIES:
        for size in SIZES.value:
            rng = np.random.default_rng(0)
            # Smooth images, as photographs are; noise would be the worst case of no op.
            coarse = rng.integers(0, 256, (BATCH, 8, 8, 3), np.uint8)
            images = np.stack([np.asarray(Image.fromarray(i).resize((size, size))) for i in coarse])
            on_device, key = jax.device_put(images), jax.random.key(0)
            start = time.perf_counter()
            augment = jax.jit(build((policy,))).lower(on_device, targets, key).compile()
            compiling = time.perf_counter() - start

            def ours(augment=augment, on_device=on_device, key=key):
                jax.block_until_ready(augment(on_device, targets, key))

            ours()
            recipes = None
            if policy not in ("none", "stain_jitter"):
                choices = policies.draw_batch(POLICIES[policy]()[0], key, images.shape)
                each = [
                    jax.tree.map(lambda c, i=i: np.asarray(c[i]), choices) for i in range(BATCH)
                ]
                recipes = [recipe(policy, one, images.shape[1:]) for one in each]
            rates: dict[str, list[float]] = {"ours": [], "one": [], "all": []}
            for _ in range(ROUNDS.value):
                rates["ours"].append(rate(ours, BATCH, SECONDS.value))
                if recipes:
                    work = (images, recipes, SECONDS.value)
                    rates["one"].append(pillow_rate(*work))
                    futures = [pool.submit(pillow_rate, *work) for _ in range(cores)]
                    rates["all"].append(sum(future.result() for future in futures))
            medians = {name: statistics.median(values or [0]) for name, values in rates.items()}
            ours_rate, one, every = medians.values()
            if size == 32:
                ours_at_32[policy] = ours_rate
            pillows = ""
            if recipes:
                pillows = f"{one:8.0f}{every:8.0f}{ours_rate / one:7.1f}{ours_rate / every:7.1f}"
            print(f"{policy:16}{size:5}{compiling:11.1f}{ours_rate:9.0f}{pillows}", flush=True)
    pool.shutdown()
    if STEP.value:
        step = step_rate()
        print(f"\nResNet-18 of width 64, 32 px: {step:.1f} images/s; of its step at 32 px:")
        for policy, ours_rate in ours_at_32.items():
            print(f"  {policy:16}{100 * step / ours_rate:6.2f} %")


def step_rate() -> float:
    """Images/s of a gradient of ResNet-18 of width 64 at 32 px, without augmentation."""
    from jaxunlearn import devices, models, training

    model = models.build("resnet18", num_classes=10, width=64)
    images = jax.numpy.zeros((64, 32, 32, 3))
    variables = model.init(jax.random.key(0), images)

    def loss(params, state):
        logits, _ = model.apply({"params": params, **state}, images, True, None)
        return jax.numpy.mean(jax.nn.log_softmax(logits)[:, 0])

    state = {name: value for name, value in variables.items() if name != "params"}
    programs = training.Programs(devices.make_mesh(1))
    args = devices.replicate((variables["params"], state), programs.mesh)
    gradient = programs(jax.grad(loss), *args)
    jax.block_until_ready(gradient(*args))
    timings = [rate(lambda: jax.block_until_ready(gradient(*args)), 64, 1) for _ in range(3)]
    return statistics.median(timings)


if __name__ == "__main__":
    app.run(main)
