"""What noisy fine-tuning's noise proves, and what other accounts make of it: no run, no timing.

`python benchmarks/accountant.py` prints the tables of docs/certified.md.
"""

import math

from absl import app
from measuring import show
from ml_collections import ConfigDict

from jaxunlearn.methods import accountant, noisy_finetune

DELTA = 1e-5
MODELS = {
    "head, 512 features to 10 classes": 5_130,
    "small network": 20_000,
    "ResNet-18": 11_000_000,
}


def main(argv: list[str]) -> None:
    del argv
    print(f"μ = W/√S that proves ε at δ = {DELTA:g}; the paper's Theorem 1 asks for its own\n")
    rows = []
    for epsilon in (1, 2, 4, 8, 12):
        # σ² = 9·ln(1/δ)/(ε²·T)·(C0 + η·C1·T)², with W = 2·(C0 + η·C1·T) and S = T·σ²
        theirs = 2 * epsilon / (3 * math.sqrt(math.log(1 / DELTA)))
        mus = [accountant.renyi_mu(epsilon, DELTA), accountant.gdp_mu(epsilon, DELTA), theirs]
        their_epsilon = accountant.renyi_epsilon(theirs, DELTA)
        rows.append([str(epsilon), *(f"{mu:.4f}" for mu in mus), f"{their_epsilon:.2f}"])
    show(["ε", "Rényi (claimed)", "Gaussian DP", "Theorem 1", "whose ε by Rényi is"], rows)

    print(f"ε that the published code prints, and what its noise proves at δ = {DELTA:g}\n")
    rows = []
    for target in (0.1, 1.0, 10.0):
        cells = [f"{target:g}"]
        # It takes W²/(2S) for ε, and at λ = 0 half of that variance.
        for halves in (1, 2):
            mu = math.sqrt(2 * halves * target)
            for proved in (accountant.renyi_epsilon, accountant.gdp_epsilon):
                cells.append(f"{proved(mu, DELTA):.2f}")
        rows.append(cells)
    show(["printed", "Rényi", "Gaussian DP", "λ = 0: Rényi", "λ = 0: Gaussian DP"], rows)

    print(f"Model clipping: steps for ε = 1 at δ = {DELTA:g}\n")
    ratios = (0.268, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
    steps = [str(accountant.clipped_model_steps(r / 2, 1.0, 1.0, DELTA)) for r in ratios]
    show(["2·C2/σ", *(f"{ratio:g}" for ratio in ratios)], [["steps", *steps]])

    settings = ConfigDict(noisy_finetune.DEFAULTS)
    count, _, claims = noisy_finetune.proof(settings)
    deviation = claims["trail"]["gap"] / claims["trail"]["mu"]  # √S = W/μ
    left = settings.start_norm * (1 - settings.noisy_lr * settings.decay) ** count
    print("The default settings: lengths, after the noisy steps, of\n")
    rows = [
        [name, f"{size:,}", f"{left:.3f}", f"{deviation * math.sqrt(size):,.0f}"]
        for name, size in MODELS.items()
    ]
    show(["what has the noise", "parameters", "the original's part", "the noise"], rows)


if __name__ == "__main__":
    app.run(main)
