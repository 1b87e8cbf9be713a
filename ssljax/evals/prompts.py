"""Text prompts: their continuation by a language model, and predictions for their masks."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.files import read_json
from ssljax.data.plain_text import TextEncoder, check_text
from ssljax.data.sentence_piece import SentencePiece
from ssljax.data.tokenizer_files import open_file, read_specials, unpadded
from ssljax.data.tokenizers import affixes_of_file
from ssljax.evals.generation import Sampling, check_ids, check_length, generate, on_mesh, pad, without_strict
from ssljax.interop.hf import Model
from ssljax.layers.masks import Keys, is_causal
from ssljax.models.seq2seq import EncoderDecoder
from ssljax.models.tokens import TokenModel
from ssljax.models.xlnet import XLNet
from ssljax.objectives.sequences import SequenceObjective
from ssljax.objectives.tokens import TokenObjective

if TYPE_CHECKING:
    import tokenizers

MASK = "[MASK]"  # accepted in a prompt as the mask of any tokenizer
_BATCH = 32  # prompts in a batch
# Keys of generation_config.json that are read or that change no text.
_STATED_IDS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id"),
    *("use_cache", "return_dict_in_generate", "output_scores", "output_attentions", "output_hidden_states"),
}

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model of tokens and its tokenizer.

    Attributes:
        module, params: the model.
        tokenizer: a tokenizer of the `tokenizers` library, or a SentencePiece model.
        causal: True for a model that continues texts; False for a model that predicts masked tokens.
        prefix: True for a model that continues texts and reads a prompt in both directions.
        fills: False for an encoder that predicts no masked tokens: ELECTRA's discriminator, XLNet, word vectors.
        affixes: tokens before and after a prompt; None: the tokens that the tokenizer adds.
        mask: text of the mask token; None: [MASK] or <mask>, if the tokenizer has one of them.
        specials: texts of the special tokens that the file of the tokenizer does not mark as special.
        decoder_start: first tokens of the decoder of an encoder-decoder.
        end_ids: ids that end a text.
        mesh: mesh of the parameters.
        title: name of the model in messages.
    """

    module: nn.Module
    params: Any
    tokenizer: "tokenizers.Tokenizer | SentencePiece"
    causal: bool
    prefix: bool = False
    fills: bool = True
    affixes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    mask: str | None = None
    specials: tuple[str, ...] = ()
    decoder_start: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    mesh: jax.sharding.Mesh | None = None
    title: str = "the model"

    @property
    def masks(self) -> tuple[str, ...]:
        """The texts of mask tokens that the tokenizer has."""
        names = dict.fromkeys(name for name in (self.mask, MASK, "<mask>") if name)
        return tuple(name for name in names if self.tokenizer.token_to_id(name) is not None)

    @functools.cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, self.specials, () if self.causal else self.masks)

    def encode(self, prompt: str, special_tokens: bool = False) -> np.ndarray:
        """Returns the tokens of a prompt with its affixes, int32.

        Args:
            prompt: the text.
            special_tokens: True: special tokens that the prompt spells become these tokens; False: they are text,
                except masks for a model that predicts masks.
        """
        before, after = self.affixes or ((), ())
        if isinstance(self.tokenizer, SentencePiece):
            kept = self.tokenizer.controls if special_tokens else () if self.causal else self.masks
            ids = self.tokenizer.encode_text(prompt, kept)
        elif special_tokens:
            ids = self.tokenizer.encode(prompt, add_special_tokens=self.affixes is None).ids
        else:
            encoding = self._encoder.encoding(prompt)
            ids = (self.tokenizer.post_process(encoding) if self.affixes is None else encoding).ids
        return np.array([*before, *ids, *after], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of tokens; special tokens are left out."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


class TrainedModel(Protocol):
    """The model of a run, as read from a workdir.

    Attributes:
        objective: the objective, with its module as `model`.
        model_params: parameters of `objective.model`.
        config: content of config.json.
        folder: the workdir, with the tokenizer.
    """

    @property
    def objective(self) -> Any: ...

    @property
    def model_params(self) -> Any: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def folder(self) -> pathlib.Path: ...


class Guess(NamedTuple):
    """A prediction for a masked token.

    Attributes:
        token: text of the token.
        id: id of the token.
        probability: its probability.
    """

    token: str
    id: int
    probability: float


def imported(model: Model, mesh: jax.sharding.Mesh | None = None) -> LanguageModel:
    """Returns the language model of a folder that `ssljax.interop.hf` has loaded.

    Args:
        model: the loaded folder.
        mesh: the mesh that its parameters are sharded over.

    Raises:
        UserError: the folder has no tokenizer.
    """
    if model.tokenizer is None:
        raise UserError(
            f"{model.folder}: has no tokenizer of a known kind (tokenizer.json, for example), which prompts need"
        )
    both = isinstance(model.module, EncoderDecoder)
    causal = both or model.family.causal
    stated = {k: v for k, v in _json_file(model, "generation_config.json").items() if v is not None}
    if ignored := sorted(k for k in stated.keys() - _STATED_IDS if not k.startswith(("_", "transformers_"))):
        log.warning("%s: keys of generation_config.json without effect: %s", model.folder, ", ".join(ignored))
    settings = {**model.family.complete(model.hf_config), **stated}
    start = [settings.get("decoder_start_token_id"), settings.get("forced_bos_token_id")] if both else []
    affixes = None
    if isinstance(model.tokenizer, SentencePiece):  # the file does not define affixes
        first, last = (_ids(model.hf_config.get(name)) for name in ("bos_token_id", "eos_token_id"))
        affixes = (() if both else first, () if model.family.causal else last)
    mask = _json_file(model, "tokenizer_config.json").get("mask_token")
    return LanguageModel(
        model.module,
        model.variables["params"],
        unpadded(model.tokenizer),
        causal=causal,
        fills=not (both or isinstance(model.module, XLNet) or "replaced" in model.module.config.extras),
        affixes=affixes,
        mask=mask.get("content") if isinstance(mask, Mapping) else mask,
        specials=_specials(model.folder, model.tokenizer),
        decoder_start=tuple(i for i in start if i is not None),
        end_ids=_ids(settings.get("eos_token_id")),
        mesh=mesh,
        title=str(model.folder),
    )


def trained(run: TrainedModel, mesh: jax.sharding.Mesh | None = None) -> LanguageModel:
    """Returns the language model of a run.

    Args:
        run: the model as read from a workdir.
        mesh: the mesh that its parameters are sharded over.

    Raises:
        UserError: the objective of the run trains no language model.
    """
    objective, title = run.objective, str(run.folder)
    both = isinstance(objective.model, EncoderDecoder)
    if not both and not isinstance(objective.unwrapped, TokenObjective | SequenceObjective):
        name = run.config["objective"]["name"]
        raise UserError(f"{title}: its objective {name!r} trains no language model, which prompts need")
    ids = objective.spec.special_ids
    with_affixes = run.config["data"]["mode"] == "documents"  # texts had affixes in training
    causal = both or is_causal(objective.attention)
    file = run.folder / "tokenizer.json"
    tokenizer = open_file(file if file.is_file() else file.with_suffix(".model"))
    first, last = affixes_of_file(tokenizer, ids)
    return LanguageModel(
        objective.model,
        run.model_params,
        tokenizer,
        specials=_specials(run.folder, tokenizer),
        causal=causal,
        prefix=not both and objective.prefixed,
        fills=not both and objective.unwrapped.fills_masks,
        affixes=(first if with_affixes else (), last if with_affixes and (both or not causal) else ()),
        decoder_start=(objective.model.config.decoder_start,) if both else (),
        end_ids=last,
        mesh=mesh,
        title=title,
    )


def _specials(folder: pathlib.Path | None, tokenizer: Any) -> tuple[str, ...]:
    """Returns the texts of the special tokens of a tokenizer."""
    if folder is None or isinstance(tokenizer, SentencePiece):
        return ()
    return tuple(read_specials(folder, tokenizer.get_vocab(with_added_tokens=True)).values())


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    """Returns the ids of a config value, which is one id, several, or None."""
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)


def _json_file(model: Model, name: str) -> dict[str, Any]:
    """Returns the content of a JSON file in the folder of a model; {} if it does not exist."""
    path = pathlib.Path(model.folder or "") / name
    return read_json(path) if model.folder and path.is_file() else {}


def complete(
    model: LanguageModel,
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    key: jax.Array | None = None,
    stop: Sequence[str] = (),
    special_tokens: bool = False,
    watch: Callable[[str], None] | None = None,
) -> list[str]:
    """Returns the continuation of each prompt, or the answer of an encoder-decoder to it.

    Args:
        model: a decoder or an encoder-decoder.
        prompts: non-empty texts.
        sampling: the choice of tokens; the end token of the model ends a text too.
        key: random key.
        stop: texts that end a continuation; the first that appears is cut off, with everything after it.
        special_tokens: True: special tokens that a prompt spells become these tokens; False: they are text.
        watch: called with the text so far, every few tokens; for a single prompt only. It never shrinks or changes.

    Raises:
        UserError: the model predicts masks, a prompt or stop text is empty, or a prompt is too long.
    """
    sampling = sampling or Sampling()
    if not isinstance(model.module, TokenModel | EncoderDecoder) or not model.causal:
        raise UserError(f"{model.title}: {_kind(model)}, must be a decoder or an encoder-decoder to generate text")
    rows = [model.encode(prompt, special_tokens) for prompt in _checked(prompts, "prompt")]
    sampling = dataclasses.replace(sampling, stop=(*sampling.stop, *_stop_ids(model, _checked(stop, "stop"))))
    out = []

    def seen(made: list[np.ndarray]) -> None:
        assert watch is not None
        watch(_settled(_new_text(model, rows[0], made[0]), stop))

    for first in range(0, len(rows), _BATCH):
        batch = rows[first : first + _BATCH]
        options: dict[str, Any] = {"start": model.decoder_start, "prefix": model.prefix}
        options |= {"first_row": first, "mesh": model.mesh}
        options["watch"] = seen if watch and len(rows) == 1 else None
        made = generate(model.module, model.params, batch, sampling, key, **options)
        out += [_cut(_new_text(model, row, new), stop) for row, new in zip(batch, made)]
    return out


def fill(model: LanguageModel, prompts: Sequence[str], top: int = 5) -> list[list[list[Guess]]]:
    """Returns the `top` most probable tokens of every mask of every prompt, most probable first.

    A mask is written as the mask token of the tokenizer, or as [MASK]. All masks of a prompt are predicted at once.

    Raises:
        UserError: the model predicts no masks, or a prompt is empty, too long, without a mask, or has unknown tokens.
    """
    if top < 1:
        raise UserError(f"top: got {top}, must be at least 1")
    if not isinstance(model.module, TokenModel) or model.causal or not model.fills:
        raise UserError(f"{model.title}: {_kind(model)}, must be a model that was trained to predict masked tokens")
    rows, positions = _find_masks(model, prompts)
    c = model.module.config
    out: list[list[list[Guess]]] = []
    for first in range(0, len(rows), _BATCH):
        batch = slice(first, first + _BATCH)
        tokens, lengths = pad(rows[batch], c.max_len, model.mesh)
        padded_BxK = np.zeros((len(tokens), max(map(len, positions[batch]))), np.int32)
        for row, position in zip(padded_BxK, positions[batch]):
            row[: len(position)] = position
        with on_mesh((tokens, lengths, padded_BxK), model.mesh) as arrays:
            module, count = without_strict(model.module), min(top, c.known("vocab_size"))
            p_BxKxN, id_BxKxN = jax.device_get(_predict(module, model.params, *arrays, top=count))
        for position, p_KxN, id_KxN in zip(positions[batch], p_BxKxN, id_BxKxN):
            pairs = [zip(p_N.tolist(), id_N.tolist()) for p_N, id_N in zip(p_KxN[: len(position)], id_KxN)]
            out.append([[Guess(_word(model, i), i, p) for p, i in of_mask] for of_mask in pairs])
    return out


def _find_masks(model: LanguageModel, prompts: Sequence[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the tokens of each prompt, and the positions of its masks."""
    if not model.masks:
        names = ", ".join(dict.fromkeys(name for name in (model.mask, MASK, "<mask>") if name))
        raise UserError(f"{model.title}: its tokenizer has no mask token ({names})")
    mask = model.masks[0]
    c, mask_id = model.module.config, model.tokenizer.token_to_id(mask)  # type: ignore[attr-defined]
    rows = [model.encode(prompt.replace(MASK, mask)) for prompt in _checked(prompts, "prompt")]
    positions = [np.flatnonzero(row == mask_id) for row in rows]
    for number, (row, position) in enumerate(zip(rows, positions), 1):
        check_ids(number, row, c.known("vocab_size"))
        if not len(position):
            raise UserError(f"prompt {number}: has no {mask}, must have at least one")
        check_length(number, row, c.max_len)
    return rows, positions


@functools.partial(jax.jit, static_argnames=("module", "top"))
def _predict(
    module: Any, params: Any, tokens_BxT: jax.Array, lengths_B: jax.Array, positions_BxK: jax.Array, *, top: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the largest probabilities float32 [B, K, top] at positions, and their ids."""
    valid = jnp.arange(tokens_BxT.shape[1]) < lengths_B[:, None]
    encoded = module.apply({"params": params}, tokens_BxT, mask=Keys(valid), valid=valid)
    hidden_BxKxD = jnp.take_along_axis(encoded.tokens, positions_BxK[..., None], axis=1)
    logits = module.apply({"params": params}, hidden_BxKxD, method="logits")
    p_BxKxN, id_BxKxN = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), top)
    return p_BxKxN, id_BxKxN


def _checked(texts: Sequence[str], name: str) -> Sequence[str]:
    """Returns the texts; raises UserError if one is empty or not valid Unicode."""
    for number, text in enumerate(texts, 1):
        if not text:
            raise UserError(f"{name} {number}: is empty; at least one token is required")
        check_text(text, f"{name} {number}")
    return texts


def _stop_ids(model: LanguageModel, stop: Sequence[str]) -> list[tuple[int, ...]]:
    """Returns the token sequences at which generation may end: end tokens, and stop texts with unique tokens.

    Other tokens may spell the same stop text, so `_cut` also searches the decoded text.
    """
    encoded = [model.tokenizer.encode(text, add_special_tokens=False).ids for text in stop]
    exact = [tuple(ids) for ids, text in zip(encoded, stop) if ids and model.decode(ids) == text]
    return [*((i,) for i in model.end_ids if i >= 0), *exact]


def _new_text(model: LanguageModel, prompt_ids: np.ndarray, new_ids: np.ndarray) -> str:
    """Returns the text of new tokens. A decoder's are decoded after the prompt, on which their spacing may depend."""
    if isinstance(model.module, EncoderDecoder):
        return model.decode(new_ids)
    before, whole = model.decode(prompt_ids), model.decode([*prompt_ids, *new_ids])
    return whole[len(before) :] if whole.startswith(before) else model.decode(new_ids)


def _cut(text: str, stop: Sequence[str]) -> str:
    """Returns the text before the first stop text."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


def _settled(text: str, stop: Sequence[str]) -> str:
    """Returns the beginning of an unfinished text that no further token changes.

    Left out are bytes of an unfinished character, and an end with which a stop text may begin.
    """
    text = _cut(text, stop).rstrip("\N{REPLACEMENT CHARACTER}")
    begun = [n for ending in stop for n in range(1, len(ending)) if text.endswith(ending[:n])]
    return text[: len(text) - max(begun, default=0)]


def _word(model: LanguageModel, token: int) -> str:
    text = model.tokenizer.decode([token], skip_special_tokens=False)
    return text or model.tokenizer.id_to_token(token) or ""


def _kind(model: LanguageModel) -> str:
    """Returns the kind of a model, for messages."""
    if not isinstance(model.module, TokenModel | EncoderDecoder):
        return f"is a {type(model.module).__name__}"
    if isinstance(model.module, EncoderDecoder):
        return "is an encoder-decoder"
    return "is a decoder" if model.causal else "is an encoder"
