"""Noisy fine-tuning: forget by clipped, noisy steps that prove (ε, δ), then fine-tune on retain.

Koloskova et al. 2025, https://arxiv.org/abs/2506.06985. What holds for any two starts that the
noisy steps could have had holds for the original and for a model that never saw the forget set:
whoever looks at the result tells the two apart no better than (ε, δ) allows. The fine-tuning after
it sees nothing but retain and costs nothing. By `mechanism`:

- gradient_clipping: x ← Π_C0(θo), then `steps` times x ← x − η·(Π_C1(g) + λ·x) + N(0, σ²), where σ
  follows from ε and δ; with one step, C1 = 0 and λ = 0 it is output perturbation;
- model_clipping: x ← Π_C2(x − η·(g + λ·x)) + N(0, σ²), as many times as ε and δ need at that σ.

g is the gradient of a batch of retain, Π_c scales all parameters together down to a 2-norm of c.
What is proved, what is not, and where the published code proves less than it prints, is in
docs/certified.md and `jaxunlearn.methods.accountant`.

A claim needs settings that were chosen without a look at the original or the forget set, a norm
rounded from the original's included. Running statistics are averages over the forget set too: they
start anew, twice. No mask: it comes from the forget set, and freezes the original's weights.

`part = "head"` trains the last layer alone, in all passes, and what is claimed is of that layer.
The rest stays the original's, running statistics included: none of it must have seen the forget
set, as features learnt on another data set have not, which only its owner can say.

Where it fails: every parameter gets the noise, so that a network of millions loses what it knew.
Then this is retraining for `epochs`, from an unusual start. The defaults are of the published ones
(their grids go over all but ε, δ and batch size); there the fine-tuning has no momentum, and a rate
of at most 0.1.
"""

from collections.abc import Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from jaxunlearn import rules
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.errors import UserError
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods import accountant, parts
from jaxunlearn.methods.task import Task
from jaxunlearn.rules import Rule, Unread
from jaxunlearn.training.links import add_decay, add_noise_of, clip_norm, clipped, keep
from jaxunlearn.training.passes import Link, Pass, Replace, Variables, cross_entropy


def from_original(settings: Any) -> bool:
    """Of the head: the rest, as its owner vouches for it, must be the original's."""
    return settings.part == "head"


NEEDS = ("retain", "labels")
COST = "E · (1 − f), and the noisy steps"
FIRST = from_original
DEFAULTS = {
    "batch_size": 128,
    "mechanism": "gradient_clipping",  # or model_clipping
    "part": "all",  # what is trained and certified; or head, the last layer
    "backbone_never_saw_forget": False,  # of head: True where its owner says so of all else
    "epsilon": 1.0,  # ε, as claimed
    "delta": 1e-5,  # δ, as claimed
    "noisy_lr": 1e-3,  # η
    "decay": 500.0,  # λ
    "start_norm": 1.0,  # C0, of gradient clipping
    "gradient_norm": 100.0,  # C1, of gradient clipping
    "steps": 5,  # of gradient clipping; those of model clipping follow from the rest
    "model_norm": 0.5,  # C2, of model clipping
    "noise": 0.5,  # σ, of model clipping; that of gradient clipping follows from the rest
    "epochs": 50,  # of fine-tuning after the noisy steps; 0: nothing is done or claimed
    "lr": 0.01,  # of fine-tuning, as are optimizer, momentum and weight_decay
}
TUNE: dict = {}  # the claim is of settings that were not chosen by what they lead to
MECHANISMS = ("gradient_clipping", "model_clipping")
PARTS = ("all", "head")
RULES = {
    "mechanism": rules.one_of(MECHANISMS),
    "part": rules.one_of(PARTS),
    "epsilon": Rule(lambda value: 1e-6 <= value <= 100, "1e-6 to 100"),
    "delta": Rule(lambda value: 1e-15 <= value < 1, "1e-15 to below 1"),
    "noisy_lr": rules.above(0),
    "decay": rules.at_least(0),
    "start_norm": rules.above(0),
    "gradient_norm": rules.at_least(0),
    "steps": rules.whole(1),
    "model_norm": rules.above(0),
    "noise": rules.above(0),
}
READS = {
    **dict.fromkeys(
        ("start_norm", "gradient_norm", "steps"),
        Unread(
            lambda settings: settings.mechanism == "gradient_clipping",
            "set mechanism='gradient_clipping'",
        ),
    ),
    **dict.fromkeys(
        ("model_norm", "noise"),
        Unread(
            lambda settings: settings.mechanism == "model_clipping",
            "set mechanism='model_clipping'",
        ),
    ),
    "backbone_never_saw_forget": Unread(
        lambda settings: settings.part == "head", "set part='head'"
    ),
}
CAVEAT = (
    "The two bound how well anyone who sees this one result can tell it from that of the same "
    "steps on retain from any other start. Nothing is promised of how close it is to retrained, "
    "nor against anyone who has original or what it predicts, who knows or can guess the seed "
    "(the noise is drawn from it, and these results hold it: keep both secret), or who sees a "
    "second result, of another seed or other settings. The settings must have been chosen without "
    "a look at original or the forget set."
)
OF_HEAD = " It is of the head alone: that the rest never saw the forget set is what its owner says."


def check(settings: Any, dataset: Dataset, policies: Any) -> None:
    """Raises where the settings prove nothing."""
    if settings.mask.ratio < 1:
        raise UserError(
            f"noisy_finetune cannot be masked, got mask.ratio={settings.mask.ratio}: what a mask "
            "freezes stays the original's, so that nothing would be proved; set mask.ratio=1"
        )
    if settings.noisy_lr * settings.decay > 1:
        raise UserError(
            f"noisy_finetune: noisy_lr · decay must be at most 1, got {settings.noisy_lr} · "
            f"{settings.decay}; lower one of them"
        )
    if settings.part == "head":
        if not settings.backbone_never_saw_forget:
            raise UserError(
                "noisy_finetune with part='head' proves nothing of an original whose other layers "
                "were trained on the forget set, as one that is trained here was; set "
                "backbone_never_saw_forget=True if yours were not, or part='all'"
            )
        if settings.mechanism != "gradient_clipping":
            raise UserError(
                "noisy_finetune with part='head' needs mechanism='gradient_clipping', got "
                f"{settings.mechanism!r}; set it, or part='all'"
            )
    proof(settings)


def proof(settings: Any) -> tuple[int, float, dict[str, Any]]:
    """How many noisy steps there are, the σ of their noise, and what they prove."""
    epsilon, delta = settings.epsilon, settings.delta
    if settings.mechanism == "model_clipping":
        norm, sigma = settings.model_norm, settings.noise
        steps = accountant.clipped_model_steps(norm, sigma, epsilon, delta)
        trail: dict[str, Any] = {"model_norm": norm}
    else:
        steps = settings.steps
        noisy = {
            "start": settings.start_norm,
            "clip": settings.gradient_norm,
            "lr": settings.noisy_lr,
            "decay": settings.decay,
            "steps": steps,
        }
        exact = accountant.clipped_steps_sigma(epsilon, delta, **noisy)
        sigma = float(np.nextafter(np.float32(exact), np.float32(np.inf)))  # rounded up
        gap = accountant.gap(**noisy)
        mu = gap / (sigma * accountant.spread(*(noisy[name] for name in ("lr", "decay", "steps"))))
        trail = {
            "start_norm": settings.start_norm,
            "gradient_norm": settings.gradient_norm,
            "gap": gap,
            "mu": mu,
            "epsilon_renyi": accountant.renyi_epsilon(mu, delta),
            "epsilon_gaussian_dp": accountant.gdp_epsilon(mu, delta),
        }
    claims = {
        "epsilon": epsilon,
        "delta": delta,
        "part": settings.part,
        "mechanism": settings.mechanism,
        "sigma": sigma,
        "steps": steps,
        "trail": {**trail, "lr": settings.noisy_lr, "decay": settings.decay},
        "caveat": CAVEAT + OF_HEAD * (settings.part == "head"),
    }
    return steps, sigma, claims


def batches_of(task: Task, steps: int) -> Iterator[np.ndarray]:
    """The retain set in epochs, the last cut short, that make so many batches; by it alone."""
    size, epoch = task.bench.setup.batch_size, 0
    while steps > 0:
        order = stage_rng("noisy batches", task.seed, epoch).permutation(task.retain)
        yield order[: steps * size]
        steps, epoch = steps - -(-len(order) // size), epoch + 1


def check_state(task: Task) -> None:
    """Raises where a step would read, besides the parameters, what earlier steps left behind."""
    apply = task.bench.setup.model.apply
    state = {name: tree for name, tree in task.original.items() if name != "params"}

    def logits(state: Variables, params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
        return apply({"params": params, **state}, images, True, key)[0]

    images = jax.ShapeDtypeStruct((2, *task.bench.images.shape[1:]), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.make_jaxpr(logits)(state, task.original["params"], images, key)
    _, read = partial_eval.dce_jaxpr(traced.jaxpr, [True])
    if any(read[: len(jax.tree.leaves(state))]):
        raise UserError(
            f"noisy_finetune: in training the model reads of its {', '.join(sorted(state))}, which "
            "carry earlier steps around the noise, so that nothing would be proved; choose a model "
            "whose training reads parameters alone, as with batch norm, or another method"
        )


def passes(task: Task, config: Any) -> Generator[Pass | Replace, None, dict[str, Any]]:
    """Noisy steps from the original's parameters alone, then fine-tuning; returns its claims."""
    if not config.epochs:
        return {}
    steps, sigma, claims = proof(config)
    original = task.original["params"]
    before: tuple[Link, ...] = (add_decay(config.decay),)
    after: tuple[Link, ...] = (add_noise_of(task.stream, sigma),)
    if config.mechanism == "gradient_clipping":
        # x₀ = Π_C0(θo); x ← x − η·(Π_C1(g) + λ·x) + N(0, σ²)
        before = (clip_norm(config.gradient_norm), *before)
        most = config.start_norm
    else:
        # x₀ = θo; x ← Π_C2(x − η·(g + λ·x)) + N(0, σ²)
        after = (clip_norm(config.model_norm), *after)
        most = np.inf
    frozen: tuple[Link, ...] = ()
    if config.part == "head":
        mask, state = parts.last(original, parts.layers_of(task), 1), {}
        before, frozen = (keep(mask, gradient=True), *before), (keep(mask),)
        moving = jax.tree.map(lambda leaf, m: np.where(m, leaf, 0), original, mask)
        params = jax.tree.map(np.where, mask, clipped(moving, most), original)
        yield Replace({**task.original, "params": params})
    else:
        check_state(task)
        state = {name: tree for name, tree in task.fresh().items() if name != "params"}
        yield Replace(lambda now: {**state, "params": clipped(now["params"], most)})
    portions = list(batches_of(task, steps))
    total = len(portions) + config.epochs
    for indices in portions:
        yield Pass(
            cross_entropy,
            indices,
            task.labels,
            config.noisy_lr,
            total,
            before=before,
            after=(*after, *frozen),
            train=not frozen,
            plain=True,
        )
    # The steps' own averages are not of the last x alone, which is what is proved.
    yield Replace(lambda now: {**now, **state})
    fine = Pass(
        cross_entropy, task.retain, task.labels, config.lr, total, after=frozen, train=not frozen
    )
    for _ in range(config.epochs):
        yield fine
    return claims
