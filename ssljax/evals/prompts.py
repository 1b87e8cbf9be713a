"""Prompts of text to a model: how it continues them, and what it puts in the place of masks."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.errors import UserError
from ssljax.data.rows import first_token, last_token
from ssljax.data.sentence_piece import SentencePiece
from ssljax.data.tokenizers import open_file, unpadded
from ssljax.evals.generation import Sampling, check_ids, generate, pad, placed, without_strict
from ssljax.interop.hf import Model, read_object
from ssljax.interop.workdir import Learned
from ssljax.layers.masks import Keys, is_causal
from ssljax.models.seq2seq import EncoderDecoder
from ssljax.models.tokens import TokenTransformer
from ssljax.objectives.tokens import TokenObjective

if TYPE_CHECKING:
    import tokenizers

MASK = "[MASK]"  # how a prompt may write the mask of any tokenizer
_BATCH = 32  # prompts at a time


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model over tokens and its tokenizer.

    Attributes:
        module, params: the model.
        tokenizer: of the `tokenizers` library, or a SentencePiece model.
        causal: whether it writes on; else it was trained to fill masks.
        around: the tokens before and after a prompt; None: those that the tokenizer itself puts there.
        mask: the text of the mask token; None: [MASK] or <mask>, if the tokenizer has one of them.
        start: the tokens that the decoder of an encoder-decoder begins with.
        ends: ids that end a text.
        mesh: where it lies.
        title: what messages call it.
    """

    module: nn.Module
    params: Any
    tokenizer: "tokenizers.Tokenizer | SentencePiece"
    causal: bool
    around: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    mask: str | None = None
    start: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    mesh: jax.sharding.Mesh | None = None
    title: str = "the model"

    def encode(self, prompt: str) -> np.ndarray:
        """The tokens of a prompt, int32, with those around it."""
        if isinstance(self.tokenizer, SentencePiece):
            ids = self.tokenizer.encode_prompt(prompt)
        else:
            ids = self.tokenizer.encode(prompt, add_special_tokens=self.around is None).ids
        before, after = self.around or ((), ())
        return np.array([*before, *ids, *after], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; specials say nothing."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


class Guess(NamedTuple):
    """A token in the place of a mask."""

    token: str
    id: int
    probability: float


def imported(model: Model, mesh: jax.sharding.Mesh | None = None) -> LanguageModel:
    """A model that `ssljax.interop.hf` has loaded, onto `mesh` if one is given.

    Raises:
        UserError: it has no tokenizer.
    """
    if model.tokenizer is None:
        raise UserError(f"{model.folder}: has no tokenizer.json and no SentencePiece model, and prompts are text")
    both = isinstance(model.module, EncoderDecoder)
    causal = both or model.family.causal
    settings = {**model.family.complete(model.hf_config), **_beside(model, "generation_config.json")}
    start = [settings.get("decoder_start_token_id"), settings.get("forced_bos_token_id")] if both else []
    around = None
    if isinstance(model.tokenizer, SentencePiece):  # whose file does not say what stands around a text
        first, last = (_ids(model.hf_config.get(name)) for name in ("bos_token_id", "eos_token_id"))
        around = (() if both else first, () if model.family.causal else last)
    mask = _beside(model, "tokenizer_config.json").get("mask_token")
    return LanguageModel(
        model.module,
        model.variables["params"],
        unpadded(model.tokenizer),
        causal=causal,
        around=around,
        mask=mask.get("content") if isinstance(mask, Mapping) else mask,
        start=tuple(i for i in start if i is not None),
        ends=_ids(settings.get("eos_token_id")),
        mesh=mesh,
        title=str(model.folder),
    )


def trained(learned: Learned, mesh: jax.sharding.Mesh | None = None) -> LanguageModel:
    """The model of a run, whose arrays lie on `mesh`.

    Raises:
        UserError: it reads no text.
    """
    objective, title = learned.objective, str(learned.folder)
    if not isinstance(objective, TokenObjective):
        name = learned.config["objective"]["name"]
        raise UserError(f"{title}: its objective {name!r} trains no model that reads text and writes it")
    ids = objective.spec.special_ids
    whole = learned.config["data"]["mode"] == "documents"  # then a text was trained on with what stands around it
    causal = is_causal(objective.attention)
    first, last = (_ids(i) for i in (first_token(ids), last_token(ids)))
    file = learned.folder / "tokenizer.json"
    return LanguageModel(
        objective.model,
        learned.model_params,
        open_file(file if file.is_file() else file.with_suffix(".model")),
        causal=causal,
        around=(first if whole else (), last if whole and not causal else ()),
        ends=last,
        mesh=mesh,
        title=title,
    )


def _ids(given: int | Sequence[int] | None) -> tuple[int, ...]:
    """Ids as a config names them: one, several or none."""
    return () if given is None else (given,) if isinstance(given, int) else tuple(given)


def _beside(model: Model, name: str) -> dict[str, Any]:
    """A JSON file of the folder that a model came from; {} without one."""
    path = pathlib.Path(model.folder or "") / name
    return read_object(path) if model.folder and path.is_file() else {}


def complete(
    model: LanguageModel,
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    key: jax.Array | None = None,
    stop: Sequence[str] = (),
) -> list[str]:
    """What the model writes after each prompt, or in answer to it if it is an encoder-decoder.

    Args:
        model: that writes on.
        prompts: none empty.
        sampling: how tokens are chosen; a text ends with the model's own end token too.
        key: for drawing.
        stop: texts of which the first to appear ends a text; it is cut off.

    Raises:
        UserError: the model fills masks, a prompt or a stop text is empty, or a prompt is too long.
    """
    sampling = sampling or Sampling()
    if not isinstance(model.module, TokenTransformer | EncoderDecoder) or not model.causal:
        raise UserError(f"{model.title}: {_kind(model)}, no decoder; only decoders and encoder-decoders generate")
    rows = [model.encode(prompt) for prompt in _present(prompts)]
    _present(stop, "stop")
    # A stop text may come in other tokens than its usual ones, so it is looked for in the text again.
    known = [model.tokenizer.encode(text, add_special_tokens=False).ids for text in stop]
    exact = [tuple(ids) for ids, text in zip(known, stop) if ids and model.decode(ids) == text]
    ends = (*sampling.stop, *((i,) for i in model.ends if i >= 0), *exact)
    sampling = dataclasses.replace(sampling, stop=ends)
    out = []
    for first in range(0, len(rows), _BATCH):
        batch = rows[first : first + _BATCH]
        made = generate(
            model.module, model.params, batch, sampling, key, start=model.start, first_row=first, mesh=model.mesh
        )
        out += [_cut(_after(model, row, new), stop) for row, new in zip(batch, made)]
    return out


def fill(model: LanguageModel, prompts: Sequence[str], top: int = 5) -> list[list[list[Guess]]]:
    """The `top` most probable tokens for every mask of every prompt, most probable first.

    A mask is written as the tokenizer writes it, or as [MASK]. Each is predicted with all of them hidden.

    Raises:
        UserError: the model fills no masks, or a prompt is empty, too long, without a mask or with unknown tokens.
    """
    if top < 1:
        raise UserError(f"top: got {top}, must be at least 1")
    if not isinstance(model.module, TokenTransformer) or model.causal or "replaced" in model.module.config.extras:
        raise UserError(f"{model.title}: {_kind(model)}; masks are filled by models that were trained with masks")
    names = [name for name in (model.mask, MASK, "<mask>") if name and model.tokenizer.token_to_id(name) is not None]
    if not names:
        raise UserError(f"{model.title}: its tokenizer has no mask token")
    c, mask, mask_id = model.module.config, names[0], model.tokenizer.token_to_id(names[0])
    rows = [model.encode(prompt.replace(MASK, mask)) for prompt in _present(prompts)]
    places = [np.flatnonzero(row == mask_id) for row in rows]
    for number, (row, place) in enumerate(zip(rows, places), 1):
        check_ids(number, row, c.known("vocab_size"))
        if not len(place):
            raise UserError(f"prompt {number}: has no {mask} to fill")
        if c.max_len is not None and len(row) > c.max_len:
            raise UserError(f"prompt {number}: got {len(row)} tokens, must be at most {c.max_len} (model.max_len)")
    out: list[list[list[Guess]]] = []
    for first in range(0, len(rows), _BATCH):
        here = slice(first, first + _BATCH)
        tokens, lengths = pad(rows[here], c.max_len, model.mesh)
        where = np.zeros((len(tokens), max(map(len, places[here]))), np.int32)
        for row, place in zip(where, places[here]):
            row[: len(place)] = place
        with placed((tokens, lengths, where), model.mesh) as arrays:
            found = _masked(without_strict(model.module), model.params, *arrays, top=min(top, c.known("vocab_size")))
        p_BxKxN, id_BxKxN = jax.device_get(found)
        for place, p_KxN, id_KxN in zip(places[here], p_BxKxN, id_BxKxN):
            pairs = [zip(p_N.tolist(), id_N.tolist()) for p_N, id_N in zip(p_KxN[: len(place)], id_KxN)]
            out.append([[Guess(_word(model, i), i, p) for p, i in of_mask] for of_mask in pairs])
    return out


@functools.partial(jax.jit, static_argnames=("module", "top"))
def _masked(
    module: Any, params: Any, tokens_BxT: jax.Array, lengths_B: jax.Array, where_BxK: jax.Array, *, top: int
) -> tuple[jax.Array, jax.Array]:
    """The largest probabilities float32 [B, K, top] at places `where`, and their ids."""
    valid = jnp.arange(tokens_BxT.shape[1]) < lengths_B[:, None]
    encoded = module.apply({"params": params}, tokens_BxT, mask=Keys(valid))
    hidden_BxKxD = jnp.take_along_axis(encoded.tokens, where_BxK[..., None], axis=1)
    logits = module.apply({"params": params}, hidden_BxKxD, method="logits")
    p_BxKxN, id_BxKxN = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), top)
    return p_BxKxN, id_BxKxN


def _present(texts: Sequence[str], what: str = "prompt") -> Sequence[str]:
    for number, text in enumerate(texts, 1):
        if not text:
            raise UserError(f"{what} {number}: is empty; at least one token is required")
    return texts


def _after(model: LanguageModel, prompt_ids: np.ndarray, new_ids: np.ndarray) -> str:
    """The text of new tokens; after the prompt of a decoder, where a decoder of tokens may need those before."""
    if isinstance(model.module, EncoderDecoder):
        return model.decode(new_ids)
    before, whole = model.decode(prompt_ids), model.decode([*prompt_ids, *new_ids])
    return whole[len(before) :] if whole.startswith(before) else model.decode(new_ids)


def _cut(text: str, stop: Sequence[str]) -> str:
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


def _word(model: LanguageModel, token: int) -> str:
    text = model.tokenizer.decode([token], skip_special_tokens=False)
    return text or model.tokenizer.id_to_token(token) or ""


def _kind(model: LanguageModel) -> str:
    if not isinstance(model.module, TokenTransformer | EncoderDecoder):
        return f"is a {type(model.module).__name__}"
    if isinstance(model.module, EncoderDecoder):
        return "is an encoder-decoder"
    return "is a decoder" if model.causal else "is an encoder"
