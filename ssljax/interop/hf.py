"""Models in and out of the Hugging Face format.

model = hf.load("folder")                    # config.json, *.safetensors, tokenizer.json
model.forward(input_ids=ids)["logits"]       # names of `transformers`, NumPy arrays
hf.save(model, "other-folder")               # what AutoModel.from_pretrained opens
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax import parallel
from ssljax.base import schema
from ssljax.base.errors import UserError, nearest
from ssljax.base.hashing import digest
from ssljax.data.sentence_piece import SentencePiece
from ssljax.data.tokenizers import SETTINGS, copy_files
from ssljax.interop.families import REGISTRY
from ssljax.interop.family import Family
from ssljax.interop.inputs import ALWAYS, check
from ssljax.interop.rules import active
from ssljax.interop.tensors import Tensors, write
from ssljax.models.tokens import TokenConfig

# Where there is no tokenizer.json; without the specials that other classes of `transformers` add to it.
_SENTENCE_PIECE = ("tokenizer.model", "spiece.model", "spm.model")
_COPIED = (
    "tokenizer.json",
    *_SENTENCE_PIECE,
    *SETTINGS,
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)


@dataclasses.dataclass(frozen=True)
class Model:
    """An imported (or to be exported) model.

    module: Flax module. variables: {"params": ...}. config: as in config.json. ours: our configuration, resolved.
    tokenizer: a `tokenizers.Tokenizer`, or one of a SentencePiece model with the same methods (see
    `ssljax.data.sentence_piece`); None where the folder has none. folder: where it came from. bare: the names of its
    tensors begin inside the inner model (its file has no head). missing: parameters that kept initial values, at least
    in part; unused: tensors that have no parameter (both empty unless the model was loaded with `strict=False`).
    """

    module: nn.Module
    variables: Mapping[str, Any]
    config: Mapping[str, Any]
    ours: Any
    family: Family
    tokenizer: Any = None
    folder: pathlib.Path | None = None
    bare: bool = False
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))

    def forward(self, **inputs: Any) -> dict[str, np.ndarray]:
        """Outputs by the names that `transformers` gives them, for inputs by its names; None is no input.

        Raises:
            UserError: an input is unknown, missing, or has another shape or range than the model reads.
        """
        given = {k: np.asarray(value) for k, value in inputs.items() if value is not None and k not in ALWAYS}
        check(given, self.family.inputs, self.ours, self.family.causal)
        self.family.fit(self.ours, given)
        out = self._run(self.variables["params"], {name: jnp.asarray(value) for name, value in given.items()})
        return jax.tree.map(np.asarray, out)

    @functools.cached_property
    def _run(self) -> Any:
        theirs = {**self.family.defaults, **self.config}
        return jax.jit(lambda params, inputs: self.family.outputs(self.module, params, inputs, theirs))


def load(
    folder: str | pathlib.Path, strict: bool = True, *, mesh: jax.sharding.Mesh | None = None, **keys: Any
) -> Model:
    """Reads a model, tensor by tensor, onto a mesh (or the default device).

    Args:
        folder: with config.json and *.safetensors (or pytorch_model.bin, where torch is installed).
        strict: every parameter must have a tensor and every tensor a parameter; else the model keeps its initial
            values for those that are missing.
        mesh: where parameters are split by the rules of `ssljax.parallel`.
        **keys: of the model's configuration that are not its architecture's: dtype, scan, remat, kernel.

    Raises:
        UserError: a file or a tensor is missing, cut short, unknown or of another shape.
    """
    folder = pathlib.Path(folder)
    theirs = _read_config(folder)
    kind = str(theirs.get("model_type"))
    if kind not in REGISTRY:
        raise UserError(f"{folder / 'config.json'}: model_type {kind!r} is not supported{nearest(kind, REGISTRY)}")
    if theirs.get("quantization_config") is not None:
        raise UserError(f"{folder / 'config.json'}: quantization_config: quantised weights are not supported")
    family: Family = REGISTRY.get(kind)
    ours = family.built(theirs, str(folder / "config.json"), **keys)
    tensors = Tensors(folder, family.renames)
    family = family.variant(theirs, tensors) if family.variant else family
    left_out = "" if any(name.startswith(family.prefix) for name in tensors) else family.prefix
    told = strict and not left_out and bool(_READOUT.search("".join(theirs.get("architectures") or ())))
    ours, repeated = _readouts(family, ours, tensors, left_out, strict, told)
    module = ours.standalone()
    read = _read_parameters(module, family, ours, tensors, left_out, repeated, folder, strict, mesh)
    return Model(
        module,
        {"params": read.params},
        theirs,
        ours,
        family,
        _read_tokenizer(folder, kind),
        folder,
        bool(left_out),
        read.missing,
        read.unused,
    )


def save(model: Model, folder: str | pathlib.Path, note: str = "") -> None:
    """Writes what `AutoModel.from_pretrained(folder)` opens: config, tensors, tokenizer, model card.

    Files of `model.folder` that say how to use the tokenizer, how to prepare images and how to generate come with it.
    `note` is a sentence for the model card.

    Raises:
        UserError: the architecture of `transformers` cannot compute what the model does.
    """
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder}: is no folder") from error
    config = model.config
    if not config:
        config = model.family.config_back(model.ours)
        if lost := model.family.lost(model.ours, config):
            raise UserError(f"{', '.join(lost)}: cannot be written as {config['model_type']}")
    params = model.variables["params"]
    covered = {name for rule in model.family.rules(model.ours) for name in rule.ours}
    lost = [name for name in flat(params) if name not in covered]
    if lost:
        raise UserError(f"{config['model_type']} has no tensor for: {', '.join(lost)}")
    inner = model.family.prefix if model.bare else ""
    constants = {name.removeprefix(inner): value for name, value in model.family.constants(model.ours).items()}
    tensors = {**tensors_of(model, params), **constants}
    if not getattr(model.ours, "tied", True):  # then `transformers` ties none of the tables
        copies = {a.removeprefix(inner): b.removeprefix(inner) for a, b in model.family.copies.items()}
        tensors |= {name: tensors[same] for name, same in copies.items() if same in tensors and name not in tensors}
    write(tensors, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if model.folder is not None:
        if model.folder.resolve() != folder.resolve():
            copy_files(_COPIED, model.folder, folder)
    elif model.tokenizer is not None:
        model.tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "README.md").write_text(_card(model, config, note))


def tensors_of(model: Model, params: Any) -> dict[str, np.ndarray]:
    """Parameters (or their gradients) of a model under the names of `transformers`."""
    arrays = flat(params)
    out: dict[str, np.ndarray] = {}
    inner = model.family.prefix if model.bare else ""
    for rule in active(model.family.rules(model.ours), arrays):
        parts = [arrays[name] for name in rule.ours]
        for name, index in rule.names(parts[0].shape):
            out[name] = np.asarray(rule.op.write([np.asarray(part[index]) for part in parts]), order="C")
    return {name.removeprefix(inner): value for name, value in out.items()}


_READOUT = re.compile("LM|ForPreTraining|ForConditionalGeneration|ForCausalImageModeling")  # classes that have one
_EXTRAS = {"pooler": "pooler/kernel", "pair": "pair/kernel", "replaced": "replaced_dense/kernel"}


def _readouts(
    family: Family, ours: Any, tensors: Tensors, left_out: str, strict: bool, told: bool
) -> tuple[Any, Sequence[str]]:
    """The configuration with the read-outs that the tensors have, and the tensors that repeat the token table.

    `told`: the class that the config names has a read-out; then those of the class are there, besides others that the
    tensors have, and the matrix is missing only where it is tied. Otherwise the tensors tell, as a file of the bare
    model has none. A pooler is an option of its class in `transformers`: it is there where its tensors are.
    """
    if "pooler" in getattr(ours, "heads_on", ()) and not any("pooler." in name for name in tensors):
        return dataclasses.replace(ours, heads_on=()), ()
    if not isinstance(ours, TokenConfig):
        return ours, ()

    def names(*paths: str) -> list[str]:
        return [rule.theirs.removeprefix(left_out) for rule in family.rules(ours) if _within(rule.ours[0]) in paths]

    def found(*paths: str) -> list[str]:
        return [name for name in names(*paths) if name in tensors]

    own, tables = found("head_kernel"), found("embed/embedding")
    if own:
        tied = ours.tied and bool(tables) and np.array_equal(tensors[own[0]], tensors[tables[0]])
    else:
        tied = ours.tied or not told or "replaced" in ours.extras
    ours = dataclasses.replace(ours, tied=tied)
    if strict:
        extras = tuple(name for name, path in _EXTRAS.items() if found(path) or (told and name in ours.extras))
        ours = dataclasses.replace(ours, extras=extras)
        ends = "head_dense/kernel", "head_norm/scale", "head_bias"
        if not found(*ends) and (not told or set(names(*ends)) <= set(family.zeros)):
            ours = dataclasses.replace(ours, readout_transform=False, readout_bias=False)
    return ours, own if tied else ()


def _within(path: str) -> str:
    """A path in the part of an encoder-decoder that has the read-out."""
    return path.removeprefix("decoder/")


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: has no config.json")
    return read_object(path)


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file of keys and values.

    Raises:
        UserError: it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object but {type(content).__name__}")
    return content


def _read_tokenizer(folder: pathlib.Path, kind: str) -> Any:
    file = folder / "tokenizer.json"
    if file.is_file():
        import tokenizers

        try:
            return tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{file}: not a tokenizer ({error})") from error
    if kind == "pegasus":  # whose ids are not those of the file
        return None
    return next((SentencePiece(folder / name) for name in _SENTENCE_PIECE if (folder / name).is_file()), None)


class _Read(NamedTuple):
    params: Any
    missing: tuple[str, ...]  # parameters
    unused: tuple[str, ...]  # tensors


def _read_parameters(
    module: Any,
    family: Family,
    ours: Any,
    tensors: Tensors,
    left_out: str,
    repeated: Sequence[str],
    folder: pathlib.Path,
    strict: bool,
    mesh: jax.sharding.Mesh | None,
) -> _Read:
    boxed = jax.eval_shape(module.initial, jax.random.key(0))["params"]
    shapes = flat(parallel.unboxed(boxed))
    places: Mapping[str, Any] = dict.fromkeys(shapes)
    if mesh is not None:
        places = flat(parallel.shardings(parallel.logical_axes(boxed), parallel.unboxed(boxed), mesh))
    copies = {a.removeprefix(left_out): b.removeprefix(left_out) for a, b in family.copies.items()}
    rules = active(family.rules(ours), shapes)
    if left_out:
        rules = [rule._replace(theirs=rule.theirs.removeprefix(left_out)) for rule in rules]
    problems: list[str] = []
    used: set[str] = set()
    missing: set[str] = set()
    params: dict[str, jax.Array] = {}
    if not strict:  # a block whose tensor is missing keeps its initial values, the other blocks of the stack do not
        born = None if mesh is None else tree(places)
        initial = jax.jit(lambda key: parallel.unboxed(module.initial(key)["params"]), out_shardings=born)
        params = flat(initial(jax.random.key(0)))
    for rule in rules:
        for name, index in rule.names(shapes[rule.ours[0]].shape):
            if name not in tensors and copies.get(name) in tensors:  # what is stored twice may be stored once
                name = copies[name]
            if name not in tensors:
                problems.append(f"missing: {name}")
                missing.update(rule.ours)
                continue
            used.add(name)
            tensor = tensors[name]
            if not jnp.issubdtype(tensor.dtype, jnp.floating) or tensor.itemsize == 1:
                raise UserError(f"{folder}: {name}: is {tensor.dtype}, and quantised weights are not supported")
            try:
                parts = rule.op.read(tensor)
            except ValueError:
                parts = ()
            if [part.shape for part in parts] != [shapes[mine].shape[len(index) :] for mine in rule.ours]:
                problems.append(f"shape: {name} {list(tensors.shape(name))} does not fit the configuration")
                missing.update(rule.ours)
                continue
            for mine, part in zip(rule.ours, parts):
                params[mine] = _put(params.get(mine), part, index, shapes[mine], places[mine])
    covered = {name for rule in rules for name in rule.ours}
    problems += [f"no rule: {name}" for name in shapes if name not in covered]
    rest = [name for name in tensors if name not in used and name not in repeated and 0 not in tensors.shape(name)]
    skipped = {name for rule in rules if rule.skip for name in rule.ours}
    for name in skipped - params.keys() - missing:  # a stack of only those blocks that do without it
        params[name] = jnp.zeros(shapes[name].shape, shapes[name].dtype, device=places[name])
    unused = []
    for name in (name for name in rest if not any(re.search(pattern, name) for pattern in family.ignored)):
        same = copies.get(name)
        if same is None or same not in tensors or not np.array_equal(tensors[name], tensors[same]):
            unused.append(name)
            problems.append(f"extra: {name}" + (f", other than {same}" if same else ""))
    if problems and strict:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise UserError(f"{folder}: {len(problems)} tensors do not match: {shown}")
    return _Read(tree(params), tuple(sorted({*missing, *(shapes.keys() - covered)})), tuple(unused))


def _put(whole: Any, part: np.ndarray, index: tuple[int, ...], shape: Any, place: Any) -> jax.Array:
    """A part on its device: all of a parameter, or one layer of a stack. Only that part is ever held by the host."""
    part = np.asarray(part, shape.dtype)
    if not index:
        return jax.device_put(part, place)
    if whole is None:
        whole = jnp.zeros(shape.shape, shape.dtype, device=place)
    return _set(whole, part, index)


@functools.partial(jax.jit, donate_argnums=0)
def _set(whole: jax.Array, part: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
    start: list[Any] = [*index, *[0] * part.ndim]
    return jax.lax.dynamic_update_slice(whole, part.reshape(*[1] * len(index), *part.shape), start)


def flat(tree: Any, before: str = "") -> dict[str, Any]:
    """{"a/b": leaf} of nested mappings."""
    out: dict[str, Any] = {}
    for name, value in tree.items():
        out |= flat(value, f"{before}{name}/") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return out


def tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings of {"a/b": leaf}."""
    out: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        here = out
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = value
    return out


def _card(model: Model, config: Mapping[str, Any], note: str) -> str:
    hashed = digest(json.loads(json.dumps(schema.to_dict(model.ours))))
    return (
        f"---\nlibrary_name: transformers\n---\n# {config.get('model_type')}\n\n"
        f"Written by ssljax. {model.parameters:,} parameters; configuration {hashed}.\n{note}\n"
    )
