"""Models in and out of the Hugging Face format.

model = hf.load("folder")                    # config.json, *.safetensors, tokenizer.json
model.forward(input_ids=ids)["logits"]       # names of `transformers`, NumPy arrays
hf.save(model, "other-folder")               # opened by AutoModel.from_pretrained
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base import schema
from ssljax.base.errors import UserError, nearest
from ssljax.base.files import local_folder, read_json, replacing, write_whole
from ssljax.base.hashing import digest
from ssljax.data.tokenizer_files import SENTENCE_PIECE, SETTINGS, copy_files, find_file, open_file
from ssljax.interop.families import REGISTRY
from ssljax.interop.family import Family
from ssljax.interop.inputs import ALWAYS, check
from ssljax.interop.parameters import Source, flat, load_parameters, tensors_from, tree
from ssljax.interop.readouts import fit_readouts
from ssljax.interop.tensors import Planned, Tensors, planned, write

__all__ = ["Model", "flat", "load", "save", "tensors_of", "tree", "write_json"]
_COPIED = (
    "tokenizer.json",
    *SENTENCE_PIECE,
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
    """An imported model, or one to be exported."""

    module: nn.Module
    variables: Mapping[str, Any]  # {"params": ...}
    hf_config: Mapping[str, Any]  # content of config.json; empty: `save` writes it from `config`
    config: Any  # configuration of ssljax, with its preset filled in
    family: Family
    tokenizer: Any = None  # a `tokenizers.Tokenizer`, or a SentencePiece model with the same methods
    folder: pathlib.Path | None = None  # folder of the files
    bare: bool = False  # the file has the inner model only, without its prefix in the names of tensors
    missing: tuple[str, ...] = ()  # with `strict=False`: parameters that kept initial values, at least in part
    unused: tuple[str, ...] = ()  # with `strict=False`: tensors without a parameter

    @property
    def parameters(self) -> int:
        """The number of parameters, counting every entry of an array."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))

    def forward(self, **inputs: Any) -> dict[str, np.ndarray]:
        """Returns outputs for inputs, both under the names of `transformers`; an input that is None counts as absent.

        Raises:
            UserError: an input is unknown or missing, or its shape or range does not fit the model.
        """
        arrays = {k: np.asarray(value) for k, value in inputs.items() if value is not None and k not in ALWAYS}
        check(arrays, self.family.inputs, self.config, self.family.causal)
        self.family.check_inputs(self.config, arrays)
        return jax.tree.map(np.asarray, self._run(self.variables["params"], jax.tree.map(jnp.asarray, arrays)))

    @functools.cached_property
    def _run(self) -> Any:
        hf_config = self.family.complete(self.hf_config)
        return jax.jit(lambda params, inputs: self.family.outputs(self.module, params, inputs, hf_config))


def load(
    folder: str | pathlib.Path,
    strict: bool = True,
    *,
    mesh: jax.sharding.Mesh | None = None,
    leave_out: str | None = None,
    **keys: Any,
) -> Model:
    """Reads a model, tensor by tensor, onto a mesh (or the default device).

    Args:
        folder: folder with config.json and *.safetensors (or pytorch_model.bin, if torch is installed).
        strict: True: every parameter must have a tensor, and every tensor a parameter. False: parameters without a
            tensor keep their initial values.
        mesh: the parameters are sharded over it by the rules of `ssljax.parallel`.
        leave_out: regular expression of names of tensors that are left out (a classifier, for example); the model is
            then read as the class without heads.
        **keys: keys of the model's configuration that do not change the architecture: dtype, scan, remat, kernel.

    Raises:
        UserError: a file is missing or damaged, or a tensor is missing, unknown or of another shape.
    """
    folder = local_folder(folder, "folder of the model")
    hf_config = _read_config(folder)
    family: Family = REGISTRY.get(hf_config["model_type"])
    tensors = Tensors(folder, family.renames, family.prefix, leave_out)
    if leave_out is not None:
        hf_config["architectures"] = [family.heads[-1].name]
    family = family.variant(hf_config, tensors) if family.variant else family
    config = family.build_config(hf_config, str(folder / "config.json"), **keys)
    config, repeated = fit_readouts(family, config, hf_config, tensors, strict)
    source = Source(tensors, family.rules(config), family.ignored, family.copies, repeated)
    module = config.standalone()
    params, missing, unused = load_parameters(module, source, strict, mesh)
    tokenizer = _read_tokenizer(folder, family.model_type)
    variables = {"params": params}
    return Model(module, variables, hf_config, config, family, tokenizer, folder, tensors.bare, missing, unused)


def save(model: Model, folder: str | pathlib.Path, note: str = "") -> None:
    """Writes a folder for `AutoModel.from_pretrained`: config, tensors, tokenizer, model card.

    Files of `model.folder` for tokenizer, image processor and generation are copied.

    Args:
        model: the model to write.
        folder: the folder, created if missing.
        note: text for the model card, in Markdown.

    Raises:
        UserError: the architecture of `transformers` cannot compute the same.
    """
    folder = local_folder(folder, "folder of the model")
    hf_config, tensors = model.hf_config or _write_config(model), _tensors_to_save(model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder}: is no folder") from error
    write(tensors, folder)
    write_json(folder / "config.json", hf_config)
    if model.folder is not None:
        if os.path.realpath(model.folder) != os.path.realpath(folder):
            copy_files(_COPIED, model.folder, folder)
    elif model.tokenizer is not None:
        with replacing(folder / "tokenizer.json") as path:
            model.tokenizer.save(str(path))
    write_whole(folder / "README.md", _card(model, hf_config, note))


def tensors_of(model: Model, params: Any) -> dict[str, np.ndarray]:
    """Returns parameters (or their gradients) of a model under the names of `transformers`."""
    tensors = _inner(model, tensors_from(model.family.rules(model.config), params))
    return {name: tensor.make() for name, tensor in tensors.items()}


def _inner(model: Model, tensors: Mapping[str, Planned]) -> dict[str, Planned]:
    """Returns tensors under the names of the model's file, which lack the prefix if it is bare."""
    prefix = model.family.prefix if model.bare else ""
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def _tensors_to_save(model: Model) -> dict[str, Planned]:
    """Returns the tensors of a file: parameters, constant tensors, and copies of untied tables."""
    family, config, params = model.family, model.config, model.variables["params"]
    covered = {path for rule in family.rules(config) for path in rule.paths}
    if uncovered := [path for path in flat(params) if path not in covered]:
        raise UserError(f"{family.model_type} has no tensor for: {', '.join(uncovered)}")
    constants = {name: planned(np.asarray(value)) for name, value in family.constants(config).items()}
    tensors = {**tensors_from(family.rules(config), params), **constants}
    if not getattr(config, "tied", True):  # then `transformers` ties no table at all
        copies = {name: same for name, same in family.copies.items() if same in tensors and name not in tensors}
        tensors |= {name: tensors[same] for name, same in copies.items()}
    return _inner(model, tensors)


def _write_config(model: Model) -> dict[str, Any]:
    hf_config = model.family.write_config(model.config)
    if missing := model.family.unrepresented(model.config, hf_config):
        raise UserError(f"{', '.join(missing)}: cannot be written as {hf_config['model_type']}")
    return hf_config


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: has no config.json")
    hf_config = read_json(path)
    kind = str(hf_config.get("model_type"))
    if kind not in REGISTRY:
        raise UserError(f"{path}: model_type {kind!r} is not supported{nearest(kind, REGISTRY)}")
    if hf_config.get("quantization_config") is not None:
        raise UserError(f"{path}: quantization_config: quantised weights are not supported")
    return hf_config


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes a readable JSON file."""
    write_whole(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def _read_tokenizer(folder: pathlib.Path, kind: str) -> Any:
    """Returns the tokenizer of a folder, without padding and truncation; None if it has none of a known kind."""
    file = find_file(folder)
    if file is None or (file.suffix == ".model" and kind == "pegasus"):  # `transformers` gives its pieces other ids
        return None
    return open_file(file)


def _card(model: Model, hf_config: Mapping[str, Any], note: str) -> str:
    hashed = digest(json.loads(json.dumps(schema.to_dict(model.config))))
    return (
        f"---\nlibrary_name: transformers\n# license: choose one\n---\n# {hf_config.get('model_type')}\n\n"
        f"Written by ssljax. {model.parameters:,} parameters; configuration {hashed}.\n\n{note}"
    )
