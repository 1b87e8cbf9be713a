"""Five architectures, each with denoising and with language modelling, at equal cost (Raffel et al. 2020, table 2).

An encoder-decoder of L + L layers costs about as much as a decoder of L layers, since each of its stacks reads only a
part of the tokens, and has twice the parameters in its blocks. One stack for both (`shared`) has as many as the
decoder, but for cross-attention, at the same cost; half of the layers in each halve the cost too. The decoders are a
language model and a prefix language model. Denoising is span corruption, which a decoder reads and writes in one row;
language modelling is that of a text after a random split, or of all of it in the language model. Wang et al. 2022
compare architectures and objectives in this way too.

In the paper denoising beats language modelling in each architecture, and the encoder-decoder with denoising is best
(GLUE 83.28); of the others with denoising, one stack has 82.81, the prefix language model 81.82, half of the layers
80.88, and the language model 74.70. Here the text is news, the probe tells topics, and all runs have as many steps.
Losses are comparable within denoising only. FLOPs include padding: after a random split both parts have the length of
the longest, so that encoder-decoders need more for language modelling than the paper counts.

    ssljax sweep --config configs/ablations/architectures.py --workdir runs/ablations --dry-run
    ssljax sweep --config configs/ablations/architectures.py --workdir runs/ablations
    python benchmarks/ablations.py architectures --store runs/ablations
"""

import _small

# The blocks of T5; the ids above those of the data are sentinels.
BLOCKS = dict(
    preset=None,
    width=64,
    depth=2,
    heads=4,
    vocab_size=4_008,
    norm="rms",
    norm_position="pre",
    norm_eps=1e-6,
    bias=False,
    activation="relu",
    positions="none",
    position_bias="relative",
    attention_scale=1.0,
    init="xavier",
    pool="mean",
)
T5 = dict(name="t5", **BLOCKS)
SHARED = dict(name="t5", shared=True, **BLOCKS)
HALF = dict(T5, depth=1)
DECODER = dict(name="gpt", **BLOCKS)
DENOISING, PREFIX_LM, LM = dict(name="span_corruption"), dict(name="prefix_lm"), dict(name="causal_lm")
CAUSAL = dict(name="span_corruption", bidirectional=False)  # of a decoder that is a language model
CELLS = (
    *((model, objective) for model in (T5, SHARED, HALF) for objective in (DENOISING, PREFIX_LM)),
    *((DECODER, objective) for objective in (CAUSAL, LM, DENOISING, PREFIX_LM)),
)


def get_config(arg=""):
    models, objectives = zip(*CELLS)
    axes = dict(zip=(("objective", objectives), ("model", models)), seeds=2)
    evals = dict(loss=dict(test_split="test"), linear=_small.probe())
    return _small.study(T5, DENOISING, _small.NEWS, 1000, axes, evals, batch_size=64)
