"""word2vec: vectors of words from the words around them, told from random words (negative sampling).

Mikolov, Sutskever, Chen, Corrado, Dean 2013, "Distributed Representations of Words and Phrases and their
Compositionality"; CBOW: Mikolov, Chen, Corrado, Dean 2013, "Efficient Estimation of Word Representations in Vector
Space".
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import parallel, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit, Texts
from ssljax.base.hashing import name_id
from ssljax.models.word_vectors import WordVectors
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply
from ssljax.objectives.pictures import TEXTS, Showing
from ssljax.objectives.tokens import TokenObjective, valid
from ssljax.views.contexts import Words
from ssljax.views.keys import example_keys, fold_in

NEAREST = 8  # words of the picture beside each of its words


@dataclasses.dataclass(frozen=True)
class Word2Vec(TokenObjective):
    """Mean over pairs of -log sigma(v u) - sum over noise words of -log sigma(-v u_noise), in nats (eq. 4).

    Noise and subsampling follow the counts of the words in earlier steps of the run, each plus one, which replace the
    counts of the whole text. As in the paper, a noise word may be the true one. Special tokens are no words.
    """

    form: Literal["skip_gram", "cbow"] = schema.setting(
        "skip_gram",
        doc="what is predicted; 'skip_gram': each word around from a word; 'cbow': a word from the mean of the words "
        "around",
    )
    window: int = schema.setting(
        5, ge=1, doc="largest number of words on each side; the number of each word is uniform in 1..window"
    )
    negatives: int = schema.setting(5, ge=1, doc="number of noise words for each prediction (k of eq. 4)")
    power: float = schema.setting(
        0.75, ge=0, doc="noise words are drawn in proportion to their counts to this power (1: unigrams, 0: uniform)"
    )
    subsample: float | None = schema.setting(
        1e-3,
        gt=0,
        doc="a token of frequency f stays in a text with probability min(1, sqrt(subsample / f)); None: all stay. The "
        "paper has 1e-5 for a vocabulary of 692,000 words",
    )

    def check(self) -> None:
        super().check()
        if not isinstance(self.model, WordVectors):
            raise UserError("model.name: word2vec trains two tables, so the model must be 'word_vectors'")

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        params, _ = super().init(key, batch)
        counts = jnp.ones(self.spec.vocab_size).at[self._special_ids].set(0.0)  # special tokens are no noise
        return Variables(params, {"counts": counts})

    @property
    def _special_ids(self) -> jax.Array:
        return jnp.array(sorted(self.spec.special_ids.values()), jnp.int32)

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        """Returns the tokens, with segments that are 0 at padding and special tokens, which are no words.

        A special token other than an unknown word or a mask ends a text: windows have several texts without segments.
        """
        tokens = batch["tokens"]
        ends = [number for name, number in self.spec.special_ids.items() if name not in ("unk", "mask")]
        words = valid(batch) & ~jnp.isin(tokens, self._special_ids)
        texts = 1 + jnp.cumsum(jnp.isin(tokens, jnp.array(ends, jnp.int32)), axis=1)  # 1 to T + 1
        segments = batch.get("segment_ids", jnp.zeros_like(tokens)) * (tokens.shape[1] + 2) + texts
        return {"tokens": tokens, "segment_ids": jnp.where(words, segments, 0)}

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        """Returns the sum of the losses, of right decisions, and the number of predictions of each example, [B]."""
        keys = example_keys(jax.random.fold_in(ctx.key, name_id("word2vec")), ctx.row)
        rows = (jax.random.key_data(keys), inputs["tokens"], inputs["segment_ids"])
        # Each device looks its own words up in whole tables: XLA's partitioner aborts where it splits the words and the
        # table over the same devices.
        return parallel.over_batch(self._own_sums, rows, (params["encoder"], extra["counts"]))

    def _own_sums(self, axis_name: Any, rows: Any, shared: Any) -> dict[str, jax.Array]:
        """The result of `encode` for some rows (data of keys, tokens, segments), from the parameters and the counts."""
        (data, tokens, segment_ids), (encoder, counts) = rows, shared
        keys = jax.random.wrap_key_data(data, impl="threefry2x32")
        keep = jnp.ones_like(counts)
        if self.subsample is not None:
            keep = views.keep_probability(counts / jnp.sum(counts), self.subsample)
        words = views.subsampled_words(keys, tokens, segment_ids, keep, self.window)
        form = self._skip_gram if self.form == "skip_gram" else self._cbow
        return form(encoder, counts, words, fold_in(keys, 1))

    def _skip_gram(self, encoder: Params, counts: jax.Array, words: Words, keys: jax.Array) -> dict[str, Any]:
        vectors_BxTxD = apply(self.model, encoder, words.tokens, method="vectors")

        @jax.checkpoint  # the vectors of noise words are looked up again in the backward pass
        def at(offset: jax.Array) -> dict[str, jax.Array]:
            target, is_context = views.context_at(words, offset)
            noise = self._noise(fold_in(keys, offset + self.window), counts, target)
            return self._told_apart(encoder, vectors_BxTxD, target, noise, is_context)

        return jax.tree.map(lambda x: jnp.sum(x, 0), jax.lax.map(at, views.offsets(self.window)))

    def _cbow(self, encoder: Params, counts: jax.Array, words: Words, keys: jax.Array) -> dict[str, Any]:
        around, is_context = jax.vmap(lambda offset: views.context_at(words, offset))(views.offsets(self.window))
        vectors_SxBxTxD = apply(self.model, encoder, around, method="vectors") * is_context[..., None]
        number_BxT = jnp.sum(is_context, 0)
        mean_BxTxD = jnp.sum(vectors_SxBxTxD, 0) / jnp.maximum(number_BxT, 1)[..., None]
        noise = self._noise(keys, counts, words.tokens)
        return self._told_apart(encoder, mean_BxTxD, words.tokens, noise, number_BxT > 0)

    def _noise(self, keys: jax.Array, counts: jax.Array, target: jax.Array) -> jax.Array:
        """Noise words int32 [B, T, K] of the words to be predicted [B, T]."""
        return views.noise_tokens(keys, counts, self.power, (target.shape[1], self.negatives))

    def _told_apart(
        self, encoder: Params, vectors: jax.Array, target: jax.Array, noise: jax.Array, counted: jax.Array
    ) -> dict[str, jax.Array]:
        """The sums over the predictions of each example: losses, right decisions (of 1 + K), predictions, [B] each.

        Args:
            encoder: parameters of the model.
            vectors: [B, T, D], from which words are predicted.
            target: int [B, T], the words.
            noise: int [B, T, K], noise words.
            counted: bool [B, T], False where nothing is predicted.
        """
        of_target, of_noise = (apply(self.model, encoder, ids, method="contexts") for ids in (target, noise))
        exact = jax.lax.Precision.HIGHEST
        logit = jnp.einsum("btd,btd->bt", vectors, of_target, precision=exact)
        noise_logits = jnp.einsum("btd,btkd->btk", vectors, of_noise, precision=exact)
        losses = jax.nn.softplus(-logit) + jnp.sum(jax.nn.softplus(noise_logits), -1)
        right = (logit > 0) + jnp.sum(noise_logits < 0, -1)
        summed = lambda x: jnp.sum(jnp.where(counted, x, 0.0), 1)  # noqa: E731
        return {"loss": summed(losses), "right": summed(right / (1 + self.negatives)), "count": summed(1.0)}

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        loss, right, count = (jnp.sum(outputs[name]) for name in ("loss", "right", "count"))
        counts = jnp.zeros_like(extra["counts"]).at[inputs["tokens"]].add(inputs["segment_ids"] > 0)
        return Loss({"negative_sampling": (1.0, loss, count)}, {"accuracy": (right, count)}, {"counts": counts})

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        return {"counts": extra["counts"] + sums["counts"]}

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        if show.decode is None:
            return {}
        table, counts = parallel.fetch((params["encoder"]["embed"]["embedding"], extra["counts"]))
        inputs = parallel.fetch(self.views(show.key[None], batch, jnp.int32(0)))
        seen = np.unique(inputs["tokens"][inputs["segment_ids"] > 0])
        text = {int(token): show.decode([int(token)]).strip() for token in seen}
        longest = sorted(text, key=lambda token: (-len(text[token]), token))
        # Among the longer half of the tokens, which are whole words, the most frequent ones.
        chosen = sorted(longest[: max(TEXTS, len(longest) // 2)], key=lambda token: -counts[token])[:TEXTS]
        lines = [
            [
                ("word", text[token]),
                ("nearest words", ", ".join(show.decode([int(i)]).strip() for i in nearest(table, counts, token))),
            ]
            for token in chosen
        ]
        caption = "Frequent words of held-out texts, and the words whose vectors have the largest cosines with theirs."
        return {"samples": Texts("Nearest words", caption, lines)} if lines else {}

    def flops(self, spec: Any) -> float:
        predictions = (self.window + 1) if self.form == "skip_gram" else 1  # on the average, without subsampling
        return 2.0 * spec.max_len * predictions * (1 + self.negatives) * self.model.width


def nearest(table: np.ndarray, counts: np.ndarray, token: int, among: int = NEAREST) -> np.ndarray:
    """Returns the tokens whose vectors have the largest cosines with that of a token, without itself.

    Args:
        table: vectors [V, D].
        counts: [V]; the rarer half of the tokens, with counts below the median, is left out.
        token: the token.
        among: number of tokens.
    """
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    cosines = np.where((counts >= np.median(counts)) & (np.arange(len(table)) != token), unit @ unit[token], -np.inf)
    order = np.argsort(-cosines, kind="stable")[:among]
    return order[np.isfinite(cosines[order])]
