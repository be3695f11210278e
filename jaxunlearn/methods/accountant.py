"""What noise proves: (ε, δ) of noisy fine-tuning, from its settings alone.

Gradient clipping: two runs on the same batches from any two starts, of norm at most C0, differ in
the end no more than N(0, S) and N(W, S) do in one dimension. Koloskova et al. 2025,
https://arxiv.org/abs/2506.06985, by shifted divergences (Feldman et al. 2018,
https://arxiv.org/abs/1808.06651). Theirs is D_α ≤ α·W²/(2S) for every Rényi order α; the code
published with the paper leaves out the α, and half of the variance where λ = 0.

Model clipping: every step shrinks δ at a fixed ε.

All numbers are Python floats. Rounding of the parameters to float32 is left out, as everywhere.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from jaxunlearn.errors import UserError

# SciPy is imported where it is used: a config file that names the method can spare it.

MOST_STEPS = 10_000  # of model clipping


def gap(start: float, clip: float, lr: float, decay: float, steps: int) -> float:
    """W: how far two runs of clipped steps can be apart without their noise, in the 2-norm.

    Args:
      start: C0, the norm that the first parameters are clipped to.
      clip: C1, that of the gradient.
      lr: η.
      decay: λ; η·λ is at most 1.
      steps: T.
    """
    # W = 2·C0·ρ^T + 2·η·C1·Σ_{t<T} ρ^t with ρ = 1 − η·λ
    rho = 1 - lr * decay
    return float(2 * start * rho**steps + 2 * lr * clip * np.sum(rho ** np.arange(steps)))


def spread(lr: float, decay: float, steps: int) -> float:
    """√S for σ = 1: the standard deviation of the noise that has added up after the last step."""
    # S = σ²·Σ_{t<T} ρ^(2t)
    rho = 1 - lr * decay
    return math.sqrt(np.sum(rho ** (2 * np.arange(steps))))


def renyi_epsilon(mu: float, delta: float) -> float:
    """ε at δ of runs whose Rényi divergence is at most α·μ²/2 for every order α; μ = W/√S.

    Every α gives a valid ε, so an optimum that is missed costs tightness and no more.
    """
    from scipy import optimize

    # ε = min over α > 1 of α·μ²/2 + ln((α−1)/α) − (ln δ + ln α)/(α−1), Canonne et al. 2020,
    # https://arxiv.org/abs/2004.00010
    def epsilon(log: float) -> float:
        excess = math.exp(log)
        alpha = 1 + excess
        return (
            alpha * mu**2 / 2
            + math.log(excess / alpha)
            - (math.log(delta) + math.log(alpha)) / excess
        )

    found = optimize.minimize_scalar(
        epsilon, bounds=(-15, 25), method="bounded", options={"xatol": 1e-9}
    )
    return max(0.0, float(found.fun))


def gdp_delta(mu: float, epsilon: float) -> float:
    """δ at ε between N(0, 1) and N(μ, 1): of the Gaussian mechanism, and of Gaussian DP."""
    from scipy import special

    # δ = Φ(−ε/μ + μ/2) − e^ε·Φ(−ε/μ − μ/2), Balle & Wang 2018, https://arxiv.org/abs/1805.06530
    ratio = epsilon / mu
    return float(
        special.ndtr(-ratio + mu / 2) - math.exp(epsilon + special.log_ndtr(-ratio - mu / 2))
    )


def gdp_epsilon(mu: float, delta: float) -> float:
    """The smallest ε at which that δ is enough."""
    if gdp_delta(mu, 0.0) <= delta:
        return 0.0
    return _root(lambda epsilon: delta - gdp_delta(mu, epsilon))


def renyi_mu(epsilon: float, delta: float) -> float:
    """The largest μ that proves (ε, δ) by Rényi divergences."""
    return _root(lambda mu: renyi_epsilon(mu, delta) - epsilon)


def gdp_mu(epsilon: float, delta: float) -> float:
    """The largest μ that proves (ε, δ) where the two are exactly N(0, 1) and N(μ, 1) apart."""
    return _root(lambda mu: gdp_delta(mu, epsilon) - delta)


def _root(function: Callable[[float], float]) -> float:
    """Where a function that rises from below 0 crosses it."""
    from scipy import optimize

    high = 1.0
    while function(high) < 0:
        high *= 2
    return float(optimize.brentq(function, 1e-12, high, xtol=1e-14))


def clipped_steps_sigma(
    epsilon: float, delta: float, *, start: float, clip: float, lr: float, decay: float, steps: int
) -> float:
    """σ of each step's noise that proves (ε, δ) of T clipped steps; see `gap` for the rest."""
    # μ = W/√S, so σ = W/(μ·√(S/σ²))
    apart = gap(start, clip, lr, decay, steps)
    return apart / (renyi_mu(epsilon, delta) * spread(lr, decay, steps))


def clipped_model_deltas(ratio: float, epsilon: float) -> Iterator[float]:
    """δ at ε after 1, 2, … steps that each clip the model to norm C2 and then add noise.

    Whatever else a step does, by the contraction of the hockey-stick divergence (Balle et al. 2019,
    https://arxiv.org/abs/1905.12264) with advanced joint convexity (Balle et al. 2018,
    https://arxiv.org/abs/1807.01647).

    Args:
      ratio: 2·C2/σ.
      epsilon: at which.
    """
    delta = 1.0  # nothing is known of where a run starts
    while True:
        # δ ← δ·θ(ε̃) with ε̃ = ln(1 + (e^ε − 1)/δ), θ the δ of the Gaussian mechanism
        delta *= gdp_delta(ratio, math.log1p(math.expm1(epsilon) / delta))
        yield delta


def clipped_model_steps(norm: float, sigma: float, epsilon: float, delta: float) -> int:
    """How many steps of model clipping prove (ε, δ).

    Args:
      norm: C2, that each step clips the model to.
      sigma: σ of each step's noise.
      epsilon: as it is to be claimed.
      delta: the same.

    Raises:
      UserError: more than `MOST_STEPS`.
    """
    deltas = itertools.islice(clipped_model_deltas(2 * norm / sigma, epsilon), MOST_STEPS)
    for steps, reached in enumerate(deltas, 1):
        if reached <= delta:
            return steps
    raise UserError(
        f"model clipping to norm {norm:g} with noise {sigma:g} does not prove (ε, δ) = "
        f"({epsilon:g}, {delta:g}) in {MOST_STEPS} steps; more noise, or a smaller norm, does"
    )
