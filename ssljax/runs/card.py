"""The model card of an export: origin, inputs, features, and Python for `transformers` that repeats `ssljax embed`."""

import dataclasses
import textwrap
from collections.abc import Sequence

from ssljax.base.hashing import digest
from ssljax.data.tokenizer_files import find_file, open_file
from ssljax.data.tokenizers import affixes_of_file
from ssljax.interop import hf
from ssljax.models.clip import CLIPConfig
from ssljax.models.llava import LLaVAConfig
from ssljax.models.seq2seq import EncoderDecoder
from ssljax.models.vit import ViTConfig
from ssljax.runs.trained import Trained


@dataclasses.dataclass(frozen=True)
class Card:
    """The description of an exported model.

    Attributes:
        facts: topic -> a sentence about it.
        code: Python that defines `embed` (and, for a model of text, `next_token_logits` or `generate`) with the folder
            of the model as current folder; empty if `transformers` cannot prepare the inputs.
    """

    facts: dict[str, str]
    code: str

    def page(self) -> str:
        """Returns the card as the text of a README.md, without its title."""
        facts = "".join(f"- **{topic}**: {sentence}\n" for topic, sentence in self.facts.items())
        code = (
            f"\nThese lines give the features that are described above:\n\n```python\n{self.code}```\n"
            if self.code
            else ""
        )
        return f"{facts}{code}"


def describe(trained: Trained, model: hf.Model) -> Card:
    """Returns the card of a trained model.

    Args:
        trained: the model of a workdir.
        model: its form for `transformers`, as exported.
    """
    facts, config = _origin(trained, model), model.config
    if isinstance(config, CLIPConfig | LLaVAConfig):
        facts |= _image_facts(trained) | _text_facts(trained)
    elif isinstance(config, ViTConfig):
        facts |= _image_facts(trained)
    else:
        facts |= _text_facts(trained)
    features, code = _lines(trained, model)
    return Card({**facts, "features": features, "licence": "none is stated; it is for you to choose"}, code)


def _origin(trained: Trained, model: hf.Model) -> dict[str, str]:
    """Returns the facts about the training, the weights and the architecture."""
    config, params = trained.config, trained.params
    sources = [f"{part['source']} [{part['split']}]" for part in config["data"].get("mixture") or [config["data"]]]
    weights = f"averaged (`ema` {config['ema']})" if config.get("ema") is not None else "as trained, not averaged"
    if trained.of_teacher:
        weights = "those of the teacher, an average of the student's"
    kind, (architecture,) = model.hf_config["model_type"], model.hf_config["architectures"]
    name = config["model"]["name"]
    why = "its configuration, read back, is that of the trained model, so it computes the same function"
    key = trained.objective.unwrapped.model_key
    left_out = [] if key is None else sorted(part for part in params if part != key)
    facts = {
        "objective": f"{config['objective']['name']}, on {', '.join(sources)}",
        "checkpoint": f"step {trained.step}, run {digest(trained.identity)} (`steps` of its config: {config['steps']})",
        "weights": weights,
        "architecture": f"`{kind}` ({architecture}) for the model `{name}`: {why}. It does not name the objective",
    }
    if left_out:
        facts["left out"] = f"other parts of the objective: {', '.join(left_out)}"
    if (dtype := getattr(model.config, "dtype", "float32")) != "float32":
        facts["precision"] = f"trained with activations in {dtype}; the weights are float32"
    return facts


def _image_facts(trained: Trained) -> dict[str, str]:
    """Returns the facts about the inputs of an image encoder, or of one of spectrograms."""
    objective, config = trained.objective.unwrapped, trained.config["data"]
    normal = f"(x - {_numbers(objective.mean)}) / {_numbers(objective.std)}"
    if objective.reads == "spectrograms":
        model = objective.model.config
        frequency, time, _ = model.image_shape
        facts = {"input": f"spectrograms [{time} frames, {frequency} bins], normalised as {normal}"}
        if model.sample_rate is not None:
            facts["preparation"] = f"of sounds of {model.sample_rate} samples per second: {model.spectrogram}"
        return facts
    height, width, channels = objective.spec.elements["image"]["shape"]
    colour = "grey" if channels == 1 else "RGB"
    pixels = f"{colour} images of {height} x {width} pixels, values 0..255 divided by 255, then normalised as {normal}"
    if height != width:
        how = "pictures must have this size; they are neither resized nor cropped"
    else:
        how = (
            "the central square of a picture, resized with Pillow's bicubic filter. `preprocessor_config.json` states "
            "the resizing and the normalisation; a picture that is not square is cropped before (without the crop, "
            "`transformers` crops after resizing, and edges differ a little)"
        )
    if config.get("image_fit") == "squeeze":
        how += (
            ". The evaluations of the run squeezed whole pictures and cut the square out of the result, by bilinear "
            "interpolation, so their pixels differ a little from those of a bicubic filter"
        )
    return {"input": pixels, "preparation": f"{how}. Transparent pixels count as white"}


def _text_facts(trained: Trained) -> dict[str, str]:
    """Returns the facts about the tokens of a model of text."""
    config, spec = trained.config["data"], trained.objective.spec
    if spec.vocab_size is None:
        return {}
    before, after = affixes(trained)
    room = f"at most {spec.max_len} tokens"
    facts = {"tokenizer": f"{config['tokenizer']['name']}, {spec.vocab_size:,} tokens, {room} in an example"}
    if config["mode"] == "documents":
        facts["special tokens"] = f"ids {list(before)} before a text and {list(after)} after it"
    else:
        facts["special tokens"] = (
            f"ids {list(after)} after each text. Examples of the run ({config['mode']}) are cut from all texts end to "
            f"end, and so are the rows of `ssljax embed` for the workdir; the lines below take one text. "
            "`ssljax embed` for this folder adds no special tokens, as its tokenizer states"
        )
    return facts


def affixes(trained: Trained) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the ids of the tokens before and after a text in the data of a run."""
    file = find_file(trained.folder)
    assert file is not None, "a run on text keeps its tokenizer"
    first, last = affixes_of_file(open_file(file), trained.objective.spec.special_ids)
    return (first, last) if trained.config["data"]["mode"] == "documents" else ((), last)


def _lines(trained: Trained, model: hf.Model) -> tuple[str, str]:
    """Returns the fact about the features of `ssljax embed`, and the lines that compute them."""
    config = trained.objective.model.config
    if isinstance(config, CLIPConfig):
        return _pair(trained, config)
    if isinstance(config, LLaVAConfig):
        first = config.image.prefix if config.feature_tokens == "patches" else 0
        body = [
            "states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states",
            f"patches = torch.cat([states[layer][:, {first}:] for layer in {config.layers}], dim=-1)",
            "return model.model.multi_modal_projector(patches).mean(1)",
        ]
        return "the mean of the projected patches", _image_code(trained, "AutoModelForImageTextToText", body)
    if isinstance(config, ViTConfig):
        read, words = _pooling(config)
        if trained.objective.unwrapped.reads == "spectrograms":
            return words, _sound_code(trained, read)
        return words, _image_code(trained, "AutoModel", ["outputs = model(pixels)", f"return {read}"])
    return _text(trained, model)


def _pooling(config: ViTConfig) -> tuple[str, str]:
    """Returns the expression that pools the outputs of an image encoder, and its description."""
    states = "outputs.last_hidden_state"
    if config.pool == "map":
        return "outputs.pooler_output", "attention pooling of the patch tokens (`pooler_output`)"
    if config.norm_after_pool:
        return "outputs.pooler_output", "the mean of the patch tokens, then the final norm (`pooler_output`)"
    if config.pool == "mean":
        return f"{states}[:, {config.prefix}:].mean(1)", "the mean of the patch tokens after the final norm"
    if config.distillation:
        return f"{states}[:, :2].mean(1)", "the mean of the class and the distillation token after the final norm"
    return f"{states}[:, 0]", "the class token after the final norm"


def _pair(trained: Trained, config: CLIPConfig) -> tuple[str, str]:
    """Returns features and lines of a pair of towers."""
    image, text = "model.vision_model(pixels).pooler_output", "model.text_model(encode(text)).pooler_output"
    if config.embed_dim is not None:
        image, text = f"model.visual_projection({image})", f"model.text_projection({text})"
    code = _image_code(trained, "AutoModel", [f"return {image}"], others="AutoTokenizer, ")
    code += f"\n\ntokenizer = AutoTokenizer.from_pretrained(folder)\n\n\n{_encode(trained)}\n\n"
    code += _function("embed_text(text)", [f"return {text}"])
    return "the projected vectors of images (`embed`) and texts (`embed_text`), not normalised", code


def _image_code(trained: Trained, cls: str, body: Sequence[str], others: str = "") -> str:
    """Returns lines that define `embed(path)` for a picture; `body` computes the features of `pixels`."""
    height, width, channels = trained.objective.spec.elements["image"]["shape"]
    prepared = [
        'image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")' + ('.convert("L")' if channels == 1 else "")
    ]
    if height == width:
        prepared += [
            "side = min(image.size)",
            "left, top = (image.width - side) // 2, (image.height - side) // 2",
            "image = image.crop((left, top, left + side, top + side))",
        ]
    prepared.append('pixels = processor(image, return_tensors="pt").pixel_values')
    names = ", ".join(sorted(["AutoImageProcessor", cls, *(name for name in others.split(", ") if name)]))
    return (
        f"import torch\nfrom PIL import Image, ImageOps\nfrom transformers import {names}\n\n"
        'folder = "."  # of this file\nprocessor = AutoImageProcessor.from_pretrained(folder)\n'
        f"model = {cls}.from_pretrained(folder).eval()\n\n\n{_function('embed(path)', body, prepared)}"
    )


def _sound_code(trained: Trained, read: str) -> str:
    """Returns lines that define `embed(spectrogram)`."""
    objective = trained.objective.unwrapped
    values = f"(torch.as_tensor(spectrogram)[None] - {_numbers(objective.mean)}) / {_numbers(objective.std)}"
    body = [f"outputs = model({values})", f"return {read}"]
    return (
        "import torch\nfrom transformers import AutoModel\n\n"
        f'model = AutoModel.from_pretrained(".").eval()\n\n\n{_function("embed(spectrogram)", body)}'
    )


def _text(trained: Trained, model: hf.Model) -> tuple[str, str]:
    """Returns features and lines of a model of text."""
    module, kind = trained.objective.model, "AutoModel"
    if isinstance(module, EncoderDecoder):
        kind, states = "AutoModelForSeq2SeqLM", "model.get_encoder()(encode(text)).last_hidden_state"
    elif model.family.causal:
        kind, states = "AutoModelForCausalLM", "model.base_model(encode(text)).last_hidden_state"
    else:
        states = "model(encode(text)).last_hidden_state"
    pool = "pooler" if "pooler" in getattr(module.config, "extras", ()) else getattr(module.config, "pool", "mean")
    read = {"mean": ".mean(1)", "first": "[:, 0]", "last": "[:, -1]"}
    words = {
        "mean": "the mean of all tokens of a text, special tokens included, after the final norm",
        "first": "the first token after the final norm",
        "last": "the last token after the final norm",
        "pooler": "the tanh layer on the first token (`pooler_output`)",
    }[pool]
    file = find_file(trained.folder)
    if file is None or file.suffix == ".model":
        return f"{words}. The tokenizer is a SentencePiece model, which the package sentencepiece reads", ""
    if getattr(module, "maps_tokens", False):
        return f"{words}. `transformers` returns the states of another width, after one more map", ""
    feature = states.replace("last_hidden_state", "pooler_output") if pool == "pooler" else f"{states}{read[pool]}"
    code = (
        f"import torch\nfrom transformers import {', '.join(sorted((kind, 'AutoTokenizer')))}\n\n"
        'folder = "."  # of this file\ntokenizer = AutoTokenizer.from_pretrained(folder)\n'
        f"model = {kind}.from_pretrained(folder).eval()\n\n\n{_encode(trained)}\n\n"
        + _function("embed(text)", [f"return {feature}"])
    )
    if kind != "AutoModel":
        code += f"\n\n{_generation(trained, kind == 'AutoModelForSeq2SeqLM')}"
    return words, code


def _encode(trained: Trained) -> str:
    """Returns lines that define `encode(text)`; special tokens that a text spells are ordinary text."""
    before, after = (list(ids) for ids in affixes(trained))
    room = trained.objective.spec.max_len - len(before) - len(after)
    ids = f"{before} + ids[:{room}] + {after}" if before else f"ids[:{room}] + {after}"
    return (
        "def encode(text):\n"
        "    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids\n"
        f"    return torch.tensor([{ids}])\n"
    )


def _generation(trained: Trained, both: bool) -> str:
    """Returns lines that define `generate(prompt)`, as `ssljax generate` continues a text without sampling."""
    after = affixes(trained)[1]
    whole = not after or (both and trained.config["data"]["mode"] == "documents")
    cut = "" if whole else f"[:, :-{len(after)}]"
    made = "made[0, 1:]" if both else "made[0, ids.shape[1] :]"
    options = "attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False"
    return (
        "def generate(prompt, tokens=64):\n"
        f"    ids = encode(prompt){cut}\n"
        f"    made = model.generate(ids, {options})\n"
        f"    return tokenizer.decode({made}, skip_special_tokens=True)\n"
    )


def _function(head: str, body: Sequence[str], before: Sequence[str] = ()) -> str:
    """Returns a function whose body, after some lines, computes without gradients."""
    lines = "\n".join([*before, "with torch.no_grad():", *(f"    {line}" for line in body)])
    return f"def {head}:\n{textwrap.indent(lines, '    ')}\n"


def _numbers(values: Sequence[float]) -> str:
    """Returns one number, or a list with one number per channel, as text."""
    return f"{values[0]:g}" if len(values) == 1 else f"[{', '.join(f'{value:g}' for value in values)}]"
