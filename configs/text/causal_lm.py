"""Next-token prediction: a small GPT-2 (Radford et al. 2019) on bytes of English text.

Positions are rotary (Su et al. 2021), since learned positions start near zero and take much of a short run to grow.
The text is the documentation of Python, or books. `model=lstm`, `gru` and `rnn` are the recurrent networks of language
modelling before transformers (Mikolov et al. 2010, Zaremba et al. 2014), with about as many parameters.

    ssljax train --config configs/text/causal_lm.py --workdir runs/causal_lm
    ssljax train --config configs/text/causal_lm.py:model=lstm,data=classic-books --workdir runs/lstm-books
    ssljax train --config configs/text/causal_lm.py:data=classic-books --workdir runs/causal_lm-books
    ssljax train --config configs/text/causal_lm.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: 5 minutes on one CPU core.
Result: bits per byte of held-out books 2.604 (bigram model 3.576, unigram model 4.557); docs/results.md, section 1.
"""

import _texts
import ml_collections

from ssljax.config import arguments

MODELS = {
    "gpt": dict(name="gpt", preset=None, width=96, depth=3, heads=4, positions="none", rope_theta=10_000),
    "lstm": dict(name="rnn", cell="lstm", width=144, depth=2),
    "gru": dict(name="rnn", cell="gru", width=168, depth=2),
    "rnn": dict(name="rnn", cell="rnn", width=288, depth=2),
}


def get_config(arg=""):
    a = arguments(arg, data=_texts.DATA, model=tuple(MODELS))
    return ml_collections.ConfigDict(
        dict(
            model=MODELS[a["model"]],
            objective=dict(name="causal_lm"),
            data=dict(
                **_texts.SOURCES[a["data"]], tokenizer=dict(name="bytes"), mode="windows", seq_len=128, overlap=1
            ),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="5%", final=0.1),
            evals=dict(perplexity=dict(**_texts.HELD_OUT[a["data"]], max_examples=1000)),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=16,
            steps=1100,
        )
    )
