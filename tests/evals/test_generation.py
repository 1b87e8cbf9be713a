"""Generation: cached against uncached decoding, sampling against its definition, batches against single rows.

Reference decodings of `transformers` are in the folder `hf_parity` next to the one that SSLJAX_DATA names.
"""

import dataclasses
import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import models, parallel
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.evals import generation
from ssljax.evals.generation import Rules, Sampling, choose, generate, prefill, step
from ssljax.interop import hf
from ssljax.layers.masks import Causal, Full
from ssljax.models.seq2seq import EncoderDecoder

V, LENGTH = 61, 40
SMALL = {"preset": None, "width": 32, "depth": 2, "heads": 4, "vocab_size": V, "max_len": LENGTH}
CONFIGS = {
    "learned": {"name": "gpt"},
    "offset": {"name": "opt"},
    "sinusoidal": {"name": "gpt", "positions": "sinusoidal", "embedding_scale": True},
    "alibi": {"name": "gpt", "positions": "none", "position_bias": "alibi"},
    "relative": {"name": "gpt", "positions": "none", "position_bias": "relative", "relative_buckets": [6, 9]},
    "banded": {"name": "gpt3", "window": 4},
    "grouped": {"name": "llama", "kv_heads": 2},
    "unrolled": {"name": "gemma2", "kv_heads": 2, "head_dim": 8, "window": 4, "scan": False},
    "llama3": {
        "name": "llama",
        "rope_scaling": {"name": "llama3", "factor": 4.0, "original_len": 16},
    },
    "partial": {"name": "neox"},
    "mistral": {"name": "mistral", "kv_heads": 2, "window": 5},
    "qwen3": {"name": "qwen3", "kv_heads": 2, "head_dim": 8},
    "gemma2": {"name": "gemma2", "kv_heads": 2, "head_dim": 8, "window": 5},
    "gemma3": {"name": "gemma3", "kv_heads": 2, "head_dim": 8, "window": 5, "depth": 6},
    "qwen3_moe": {"name": "qwen3_moe", "kv_heads": 2, "head_dim": 8, "experts": {"count": 4, "top_k": 2, "every": 2}},
    "olmo2": {"name": "olmo2", "kv_heads": 2},
    "smollm3": {"name": "smollm3", "kv_heads": 2, "depth": 4},
    "modernbert": {"name": "modernbert-decoder", "window": 5, "depth": 3},
    "palm": {"name": "palm", "head_dim": 8},
    "mixtral": {"name": "mixtral", "kv_heads": 2, "mlp_dim": 48, "experts": {"count": 4}},
    "repeats": {"name": "gpt", "repeats": 2},
    "bfloat16": {"name": "llama", "kv_heads": 2, "dtype": "bfloat16"},
    "t5": {"name": "t5", "relative_buckets": [6, 9]},
    "switch": {"name": "switch", "relative_buckets": [6, 9], "experts": {"count": 4, "slots": 40}},
    "bart": {"name": "bart", "decoder_depth": 3, "decoder_heads": 2},
    "pegasus": {"name": "pegasus"},
    "transformer": {"name": "transformer"},
}
FIRST = ("learned", "alibi", "relative", "gemma2", "mixtral", "t5", "bart")


@functools.cache
def make(name):
    """Returns a model and random parameters, none of which is constant."""
    module = schema.build_whole(models.REGISTRY, {**SMALL, **CONFIGS[name]}, "model").standalone()
    shapes = parallel.unboxed(jax.eval_shape(module.initial, jax.random.key(0))["params"])
    rng = np.random.default_rng(0)

    def drawn(path, shape):
        around = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(around + 0.15 * rng.normal(size=shape.shape), jnp.float32)

    return module, jax.tree.map_with_path(drawn, shapes)


def draw(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, n) for n in lengths]


def padded(rows, width, fill=0):
    return np.stack([np.concatenate([row, np.full(width - len(row), fill)]) for row in rows]).astype(np.int32)


def cached(name, prompts, forced, width, start=()):
    """Returns logits [B, N + 1, V] after the prompts and after each of the forced tokens [B, N], with a cache."""
    module, params = make(name)

    @jax.jit
    def run(tokens, lengths, forced):
        first, past = prefill(module, params, tokens, lengths, 32, start)

        def one(past, token):
            logits, past = step(module, params, token, past)
            return past, logits

        return jnp.concatenate([first[None], jax.lax.scan(one, past, forced.T)[1]]).swapaxes(0, 1)

    # The content of padding must not matter.
    tokens = padded(prompts, width, fill=7)
    return run(tokens, np.array([len(p) for p in prompts], np.int32), forced)


@functools.partial(jax.jit, static_argnames="module")
def recomputed(module, params, source, row):
    """Returns logits [T, V] of a single row, without a cache."""
    apply = functools.partial(module.apply, {"params": params})
    if isinstance(module, EncoderDecoder):
        memory = apply(source[None], mask=Full(), method="encode").tokens
        encoded = apply(row[None], memory, mask=Causal(), method="decode")
    else:
        encoded = apply(row[None], mask=Causal())
    return apply(encoded.tokens[0], method="logits")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FIRST else pytest.mark.full) for n in CONFIGS])
def test_cached_logits_equal_uncached_logits(name):
    module, params = make(name)
    both = isinstance(module, EncoderDecoder)
    start = (3, 1) if both else ()
    prompts, forced = draw((6, 2) if both else (3, 11, 1, 6)), np.array(draw([9] * (2 if both else 4), 1), np.int32)
    got = cached(name, prompts, forced, 11, start)
    tolerance = 0.05 if name == "bfloat16" else 1e-5
    for prompt, new, logits in zip(prompts, forced, got):
        row = np.concatenate([start if both else prompt, new]).astype(np.int32)
        fixed = padded([row], 24)[0]  # causal: later tokens do not change the logits
        want = recomputed(module, params, jnp.asarray(prompt, jnp.int32) if both else None, fixed)
        want = want[len(row) - len(new) - 1 : len(row)]
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(logits, want, rtol=tolerance, atol=tolerance * scale)
    assert np.abs(got[0] - got[1]).max() > 0.1, "all rows have equal logits"


DRAWN = Sampling(max_new_tokens=8, temperature=1.3)  # with three prompts several tests share one program


@pytest.mark.parametrize("name", ["learned", *(pytest.param(n, marks=pytest.mark.full) for n in ("mixtral", "bart"))])
def test_a_row_of_a_batch_equals_the_row_alone(name):
    module, params = make(name)
    key, start = jax.random.key(1), (3,) if name == "bart" else ()
    prompts = draw((3, 12, 1))
    together = generate(module, params, prompts, DRAWN, key, start=start)
    for i, prompt in enumerate(prompts):
        (alone,) = generate(module, params, [prompt], DRAWN, key, start=start, first_row=i)
        np.testing.assert_array_equal(together[i], alone)
    assert len({row.tobytes() for row in together}) > 1


def test_prompts_and_sampling_numbers_share_one_program():
    module, params = make("learned")
    drawn = Sampling(8, temperature=0.7, top_k=9, top_p=0.8, repetition_penalty=1.2, stop=((1, 2),))
    other = Sampling(8, temperature=1.1, top_k=3, top_p=0.5, repetition_penalty=1.9, stop=((4, 5),))
    generate(module, params, draw((3, 8)), drawn, jax.random.key(0))
    before = generation._advance._cache_size()
    for seed, lengths in enumerate(((1, 1), (20, 4), (32, 12))):
        generate(module, params, draw(lengths, seed), other, jax.random.key(seed))
    again = schema.build_named(models.REGISTRY, {**SMALL, **CONFIGS["learned"]}, "model").standalone()
    generate(again, params, draw((2, 2)), drawn, jax.random.key(0))  # an equal module shares the program
    assert generation._advance._cache_size() == before
    generate(module, params, draw((3, 8)), Sampling(2))
    assert generation._advance._cache_size() == before + 1


@pytest.mark.parametrize("sampling", [Sampling(9), Sampling(9, temperature=0.7), Sampling(9, stop=((5,), (7,)))])
def test_tokens_that_are_watched_are_the_same(sampling):
    module, params = make("learned")
    key, seen = jax.random.key(3), []
    whole = generate(module, params, draw((3, 8)), sampling, key)
    before = generation._advance._cache_size()
    watched = generate(module, params, draw((3, 8)), sampling, key, watch=seen.append)
    assert generation._advance._cache_size() == before  # by the same program
    for i, row in enumerate(whole):
        np.testing.assert_array_equal(watched[i], row)
        lengths = [len(made[i]) for made in seen]
        assert lengths == [min(n, len(row)) for n in range(2, 2 * len(seen) + 1, 2)]
        for made in seen:
            np.testing.assert_array_equal(made[i], row[: len(made[i])])
    assert len(seen) == -(-max(map(len, whole)) // 2)


MESHES = [{"data": 2, "fsdp": 2, "tensor": 2}, pytest.param({"tensor": 4, "context": 2}, marks=pytest.mark.full)]


@pytest.mark.parametrize("axes", MESHES, ids=str)
@pytest.mark.parametrize("name", ["learned", *(pytest.param(n, marks=pytest.mark.full) for n in ("grouped", "t5"))])
def test_tokens_on_a_mesh_equal_tokens_on_one_device(name, axes):
    module, params = make(name)
    mesh = parallel.make_mesh(parallel.MeshConfig(**{"data": 1, **axes}))
    boxed = jax.eval_shape(module.initial, jax.random.key(0))["params"]
    places = parallel.shardings(parallel.logical_axes(boxed), parallel.unboxed(boxed), mesh)
    prompts, key, start = draw((5, 9, 2)), jax.random.key(3), (3,) if name == "t5" else ()
    one = generate(module, params, prompts, DRAWN, key, start=start)
    many = generate(module, jax.device_put(params, places), prompts, DRAWN, key, start=start, mesh=mesh)
    np.testing.assert_array_equal(many, one)


def test_the_cache_is_sharded_by_the_rules():
    mesh = parallel.make_mesh(parallel.MeshConfig(data=2, fsdp=2, tensor=2))
    module, _ = make("grouped")
    empty = jax.jit(
        lambda: (
            generation._shard_cache(generation.Past(generation.empty_cache(module.config, 2, 4, 16), None), mesh).cache
        )
    )()
    spec = jax.sharding.PartitionSpec(None, ("data", "fsdp"), None, "tensor")
    assert empty.k.shape == (2, 4, 16, 2, 8) and empty.k.sharding.is_equivalent_to(
        jax.sharding.NamedSharding(mesh, spec), 5
    )


def defined(logits, temperature=1.0, top_k=None, top_p=None):
    """Returns the probabilities of sampling, token by token."""
    p = np.exp(logits / temperature - np.max(logits / temperature))
    order = sorted(range(len(p)), key=lambda i: -p[i])
    kept = order[:top_k]
    if top_p is not None:
        mass, nucleus = 0.0, []
        for i in kept:
            if mass >= top_p:
                break
            nucleus.append(i)
            mass += p[i] / sum(p[j] for j in kept)
        kept = nucleus
    return np.array([p[i] if i in kept else 0.0 for i in range(len(p))]) / sum(p[i] for i in kept)


@jax.jit
def chosen(logits, rules, seed):
    return choose(logits, rules, jax.random.split(jax.random.key(seed), len(logits)))


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.6},
        {"temperature": 2.0},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.8},
        {"temperature": 0.5, "top_k": 100, "top_p": 0.05},
    ],
    ids=str,
)
def test_sampling_equals_its_definition(sampling):
    logits, draws = np.random.default_rng(5).normal(size=9).astype(np.float32), 20_000
    tokens = chosen(jnp.tile(logits, (draws, 1)), generation._rules(Sampling(**sampling)), 2)
    share, p = np.bincount(tokens, minlength=9) / draws, defined(logits.astype(np.float64), **sampling)
    assert not share[p == 0].any()
    assert np.all(np.abs(share - p) <= 4.5 * np.sqrt(p * (1 - p) / draws))


def test_equal_logits_have_distinct_ranks():
    for rules in (Rules(np.float32(1), top_k=np.int32(3)), Rules(np.float32(1), top_p=np.float32(0.3))):
        assert set(chosen(jnp.zeros((20_000, 9)), rules, 0).tolist()) == {0, 1, 2}


def test_the_penalty_equals_its_definition():
    logits = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    present = np.random.default_rng(1).random((300, 3)) < 0.5
    want = logits.copy()
    for b, v in zip(*np.nonzero(present)):
        want[b, v] = logits[b, v] / 1.7 if logits[b, v] > 0 else logits[b, v] * 1.7
    got = choose(jnp.asarray(logits), Rules(penalty=np.float32(1.7)), None, jnp.asarray(present))
    np.testing.assert_array_equal(got, want.argmax(-1))
    for sign in (1, -1):  # of the largest logit
        assert (got != logits.argmax(-1))[sign * logits.max(-1) > 0].any()


@pytest.mark.parametrize("penalty", [3.0, pytest.param(1.0, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", ["learned", pytest.param("bart", marks=pytest.mark.full)])
def test_greedy_decoding_with_penalty_equals_uncached_decoding(name, penalty):
    module, params = make(name)
    both = name == "bart"
    prompts = draw((5, 2, 8), 4)
    made = generate(module, params, prompts, Sampling(8, repetition_penalty=penalty), start=(3,) if both else ())
    for prompt, new in zip(prompts, made):
        row = [3] if both else list(prompt)
        for token in new:
            source = jnp.asarray(prompt, jnp.int32) if both else None
            logits = np.array(recomputed(module, params, source, padded([row], 24)[0])[len(row) - 1])
            for v in set(row):
                logits[v] = logits[v] / penalty if logits[v] > 0 else logits[v] * penalty
            assert token == logits.argmax()
            row.append(token)


def test_stop_sequences():
    module, params = make("learned")
    prompts, key = draw((4, 7, 2)), jax.random.key(8)
    free = generate(module, params, prompts, DRAWN, key)
    # The last sequence begins in a prompt. Stop sequences are searched in new tokens only.
    stop = tuple(free[0][3:5].tolist()), tuple(free[1][6:7].tolist()), (int(prompts[2][-1]), int(free[2][0]))

    def cut(row):
        ends = [n for n in range(1, len(row) + 1) if any(tuple(row[n - len(s) : n]) == s for s in stop if n >= len(s))]
        return row[: min(ends, default=len(row))]

    stopped = generate(module, params, prompts, dataclasses.replace(DRAWN, stop=stop), key)
    for a, b in zip(stopped, free, strict=True):
        np.testing.assert_array_equal(a, cut(b))
    assert len(stopped[0]) == 5 and len(stopped[1]) < 8 and len(stopped[2]) > 1


def test_draws_depend_on_key_and_row_number():
    module, params = make("learned")
    run = functools.partial(generate, module, params, [np.array([5, 9])] * 3, DRAWN)
    (a, b, _), again, (other, *_) = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    assert a.tolist() == again[0].tolist() and a.tolist() != b.tolist() and a.tolist() != other.tolist()
    assert run(jax.random.key(0), first_row=1)[0].tolist() == b.tolist()


def test_errors_are_one_line():
    module, params = make("learned")
    both, weights = make("bart")
    dynamic = {**SMALL, "name": "llama", "rope_scaling": {"name": "dynamic", "factor": 2.0, "original_len": 16}}
    scaled = schema.build_named(models.REGISTRY, dynamic, "model").standalone()
    cases = [
        (r"got a str, must be a decoder or an encoder-decoder", ("text", params, [[1]])),
        (r"prompt 2: is empty", (module, params, [[1], []])),
        (r"prompt 1: got token 61, must be in 0..60", (module, params, [[V]])),
        (r"prompt 1: got token -1, must be", (module, params, [[-1]])),
        (r"30 tokens of the prompt and 11 new tokens are more than the 40 positions", (module, params, [[1] * 30])),
        (r"start: missing", (both, weights, [[1]])),
        (r"prompt 1: got 41 tokens, must be at most 40", (both, weights, [[1] * 41])),
        (r"the 16 positions of the model \(model.rope_scaling.original_len", (scaled, None, [[1] * 10])),
    ]
    for message, (model, values, prompts) in cases:
        start = (3,) if "41" in message else ()
        with pytest.raises(UserError, match=message) as error:
            generate(model, values, prompts, Sampling(max_new_tokens=11), start=start)
        assert "\n" not in str(error.value)
    for message, sampling in {
        r"sampling.top_p: got 2.0, must be <= 1": Sampling(top_p=2),
        r"sampling.temperature: got -1.0, must be >= 0": Sampling(temperature=-1),
        r"sampling.max_new_tokens: got 0, must be >= 1": Sampling(max_new_tokens=0),
        r"sampling.stop: has an empty sequence": Sampling(stop=((),)),
        r"sampling.temperature: got 0.5, which draws at random and needs a key": Sampling(
            max_new_tokens=3, temperature=0.5
        ),
    }.items():
        with pytest.raises(UserError, match=message):
            generate(module, params, [[1]], sampling)
    assert generate(module, params, []) == []


FOLDER = pathlib.Path(os.environ.get("SSLJAX_DATA", "missing")).parent / "hf_parity"
DECODERS = ["openai-gpt", "gpt2", "opt", "gpt_neox", "gpt_neox_seq", "llama", "mistral", "mixtral", "qwen2", "qwen3"]
GREEDY = [*DECODERS, "gemma", "gemma2", "t5", "t5_v1_1", "switch_transformers", "bart", "pegasus"]
fixtures = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no reference models in {FOLDER}")


@fixtures
def test_the_list_of_reference_models_is_complete():
    found = [path.parent.name for path in FOLDER.glob("*/io.npz") if "out.gen.greedy_ids" in np.load(path).files]
    assert sorted(found) == sorted(GREEDY) and len(GREEDY) == 17


SOME = ("gpt2", "gpt_neox", "mistral", "gemma2", "mixtral", "t5", "bart")


@fixtures
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SOME else pytest.mark.full) for n in GREEDY])
def test_greedy_decodings_equal_transformers(name):
    arrays, model = np.load(FOLDER / name / "io.npz"), hf.load(FOLDER / name)
    want = arrays["out.gen.greedy_ids"]
    if isinstance(model.module, EncoderDecoder):
        mask = arrays["in.attention_mask"]
        prompts = [row[: kept.sum()] for row, kept in zip(arrays["in.input_ids"], mask)]
        assert all(kept[: kept.sum()].all() for kept in mask), "padding is not on the right"
        start = (model.hf_config["decoder_start_token_id"],)
        assert (want[:, 0] == start[0]).all()
        want = want[:, 1:]
    else:
        prompts, start = arrays["out.gen.prompt_ids"], ()
        np.testing.assert_array_equal(want[:, : prompts.shape[1]], prompts)
        want = want[:, prompts.shape[1] :]
    made = generate(
        model.module, model.variables["params"], prompts, Sampling(max_new_tokens=want.shape[1]), start=start
    )
    np.testing.assert_array_equal(np.stack(made), want)
