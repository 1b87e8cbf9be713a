"""Masked language models as pseudo-likelihood, on texts of which both likelihoods can be summed.

Windows of five letters of a Markov chain with 16 symbols: the 16^5 probabilities are known, so the entropy of a letter
given those before it, and given all others, are exact sums. A causal model (`model=gpt`) should reach the
first. A masked model reaches the second if one letter is hidden at a time (rate 0.2); with independent masks of more
letters it learns other conditionals as well, and is worse at this one.

    ssljax sweep --config configs/ablations/pseudo_likelihood.py --workdir runs/ablations
    ssljax sweep --config configs/ablations/pseudo_likelihood.py:model=gpt --name likelihood --workdir runs/ablations
    python benchmarks/ablations.py pseudo_likelihood --store runs/ablations
"""

import _small

from ssljax.config import arguments

DATA = dict(source="builtin:markov", tokenizer=dict(name="bytes"), mode="windows", seq_len=5)


def get_config(arg=""):
    causal = arguments(arg, model=("bert", "gpt"))["model"] == "gpt"
    if causal:
        model = dict(name="gpt", preset=None, width=64, depth=2, heads=4, positions="none", rope_theta=10_000)
        evals, axes = dict(perplexity=dict(max_examples=20_000)), dict(seeds=2)
        return _small.study(model, dict(name="causal_lm"), DATA, 2000, axes, evals)
    # Every chosen letter is replaced by the mask, so that the model learns conditionals of the true letters alone.
    objective = dict(name="mlm", mask_share=1.0, random_share=0.0)
    axes = dict(grid=(("objective.rate", (0.2, 0.4, 0.6, 0.8)),))
    evals = dict(pseudo_perplexity=dict(max_examples=20_000))
    return _small.study(_small.BERT, objective, DATA, 4000, axes, evals, batch_size=256, learning_rate=5e-3)
