"""Tokens per second of greedy decoding, with and without the cache of keys and values.

    python benchmarks/decoding.py [--batch 4] [--tokens 64 256 512]

The model is a GPT-2 of 6 blocks of width 256 with random parameters; prompts have 16 tokens. Without the cache, the
whole row is computed again for each new token, padded to a multiple of 64 positions. Times are medians of three runs
after one that compiles. The script fails if the tokens with and without the cache differ.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import models, parallel
from ssljax.base import schema
from ssljax.evals.generation import Sampling, generate
from ssljax.layers.masks import Causal

PROMPT, STEP = 16, 64


@functools.partial(jax.jit, static_argnames=("module", "width"))
def whole_rows(module, params, tokens_BxS, length, until, *, width):
    """Fills tokens[:, length:until], each token from a pass over the first `width` positions."""

    def one(at, tokens_BxS):
        encoded = module.apply({"params": params}, tokens_BxS[:, :width], mask=Causal())
        logits = module.apply({"params": params}, encoded.tokens[:, at - 1], method="logits")
        return tokens_BxS.at[:, at].set(jnp.argmax(logits, axis=-1))

    return jax.lax.fori_loop(length, until, one, tokens_BxS)


def without_cache(module, params, prompts, new):
    total = PROMPT + new
    tokens = jnp.zeros((len(prompts), -(-total // STEP) * STEP), jnp.int32).at[:, :PROMPT].set(prompts)
    for width in range(STEP, tokens.shape[1] + 1, STEP):
        first, last = max(PROMPT, width - STEP + 1), min(width + 1, total)
        tokens = whole_rows(module, params, tokens, first, last, width=width)
    return np.asarray(tokens[:, PROMPT:total])


def with_cache(module, params, prompts, new):
    return np.stack(generate(module, params, prompts, Sampling(max_new_tokens=new)))


def measured(run):
    """Returns (result of run(), median seconds)."""
    result, seconds = run(), []
    for _ in range(3):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return result, statistics.median(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 512])
    arguments = parser.parse_args()
    size = {"preset": None, "width": 256, "depth": 6, "heads": 8, "vocab_size": 8192, "max_len": 1024}
    module = schema.build_named(models.REGISTRY, {"name": "gpt", **size}, "model").standalone()
    params = parallel.unboxed(jax.jit(module.initial)(jax.random.key(0))["params"])
    prompts = np.random.default_rng(0).integers(0, size["vocab_size"], (arguments.batch, PROMPT))
    print(f"{arguments.batch} prompts on {jax.devices()[0].device_kind}")
    print("| new tokens | cached, tokens/s | uncached, tokens/s | ratio |")
    print("| --- | --- | --- | --- |")
    for new in arguments.tokens:
        cached, fast = measured(lambda new=new: with_cache(module, params, prompts, new))
        uncached, slow = measured(lambda new=new: without_cache(module, params, prompts, new))
        assert (cached == uncached).all(), "the cache changes the chosen tokens"
        rates = [arguments.batch * new / seconds for seconds in (fast, slow)]
        print(f"| {new} | {rates[0]:,.0f} | {rates[1]:,.0f} | {rates[0] / rates[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
