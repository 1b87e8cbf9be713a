"""Recipes of papers: shapes of the whole step, published numbers of parameters, docstrings; nothing is trained."""

import dataclasses
import importlib.util
import math
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

from ssljax import cli, data, parallel, runs
from ssljax.base.errors import UserError
from ssljax.config import load, topologies
from ssljax.interop import hf

ROOT = pathlib.Path(__file__).parent.parent
RECIPES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs" / "recipes").glob("[!_]*.py"))
VARIANTS = [f"{path}:{argument}" for path in RECIPES for argument in topologies(str(ROOT / path))]
NO_RESNET_50_HEAD, VIT_B16_HEAD, VIT_L16_HEAD = 2048 * 1000 + 1000, 768 * 1000 + 1000, 1024 * 1000 + 1000

# Recipe -> (parts of the parameters, published number of them); the sources are beside the numbers.
RESNET_50 = (("encoder",), 25_557_032 - NO_RESNET_50_HEAD)  # documentation of torchvision, less the classifier
# documentation of torchvision, less the classifier, with 3 x 3 pixels in the first layer
RESNET_18_SMALL = (("encoder",), 11_689_512 - (512 * 1000 + 1000) - (49 - 9) * 3 * 64)
CIFAR10_METHODS = ("simclr", "byol", "vicreg", "dino", "swav", "barlow_twins", "moco")
VIT_B16 = (("encoder",), 86_567_656 - VIT_B16_HEAD)  # documentation of torchvision, less the classifier
BERT_LARGE = (("encoder",), 335_174_458)  # weights bert-large-uncased with the head of the masked language model
BOTH_TOWERS = ("image_tower", "text_tower", "image_projection", "text_projection", "log_scale")
PUBLISHED = {
    "albert.py:": (("encoder",), 11_683_584 + 128_688),  # weights albert-base-v2, and the head of masked tokens
    "albert.py:arch=large": (("encoder",), 17_683_968),  # weights albert-large-v2
    "albert.py:arch=xlarge": (("encoder",), 58_724_864),  # weights albert-xlarge-v2
    "albert.py:arch=xxlarge": (("encoder",), 222_595_584),  # weights albert-xxlarge-v2
    "barlow_twins.py:": RESNET_50,
    "bart.py:": (("encoder",), 139_420_416),  # weights bart-base
    "bart.py:arch=large": (("encoder",), 406_291_456),  # weights bart-large
    "bert.py:": (("encoder",), 110_000_000),  # Devlin et al. 2019, section 3
    "bert.py:arch=large": BERT_LARGE,
    "bert.py:arch=large,batch=65536": BERT_LARGE,
    "byol.py:": RESNET_50,
    **{f"cifar10.py:method={name}": RESNET_18_SMALL for name in CIFAR10_METHODS},
    "clip.py:": (BOTH_TOWERS, 151_277_313),  # printed by the authors' code for ViT-B/32
    "clip.py:arch=b16": (BOTH_TOWERS, 149_620_737),  # weights clip-vit-base-patch16
    "dino.py:": (("encoder",), 21_665_664),  # weights dino-vits16; Caron et al. 2021, table 1: 21M
    "dino.py:arch=vit_b16": VIT_B16,
    "electra.py:": (("encoder",), 13_483_008),  # weights electra-small-discriminator, without its head
    "electra.py:arch=base": (("encoder",), 110_000_000),  # Clark et al. 2020, table 1
    "electra.py:arch=large": (("encoder",), 335_000_000),  # Clark et al. 2020, table 2
    "gpt2.py:": (("encoder",), 124_439_808),  # weights gpt2
    "gpt3.py:": (("encoder",), 6_700_000_000),  # Brown et al. 2020, table 2.1
    "gpt3.py:arch=13b": (("encoder",), 12_853_473_280),  # weights opt-13b, whose table of positions has 2 more rows
    "i_jepa.py:": VIT_B16,
    "i_jepa.py:arch=vit_l16": (("encoder",), 304_326_632 - VIT_L16_HEAD),  # documentation of torchvision
    "i_jepa.py:arch=vit_h14": (("encoder",), 632_000_000),  # Dosovitskiy et al. 2021, table 1
    "ibot.py:": (("encoder",), 21_665_664),  # as DINO's
    "ibot.py:arch=vit_b16": VIT_B16,
    "llama.py:": (("encoder",), 68_976_648_192),  # weights Llama-2-70b-hf
    "mae.py:": VIT_B16,
    "mae.py:arch=vit_l16": (("encoder",), 304_326_632 - VIT_L16_HEAD),  # documentation of torchvision
    "mae.py:arch=vit_h14": (("encoder",), 632_000_000),  # Dosovitskiy et al. 2021, table 1
    "moco.py:": RESNET_50,
    "moco.py:arch=vit_s16": (("encoder",), 21_665_664),  # as DINO's
    "moco.py:arch=vit_b16": VIT_B16,
    "roberta.py:": (("encoder",), 125_000_000),  # authors' model card
    "roberta.py:arch=large": (("encoder",), 355_000_000),  # authors' model card
    "siglip.py:": (
        (*BOTH_TOWERS[:2], "text_projection", "log_scale", "logit_bias"),
        203_155_970,
    ),  # siglip-base-...-224
    "simclr.py:": RESNET_50,
    "simclr.py:batch=65536": RESNET_50,
    "simmim.py:": VIT_B16,
    "simsiam.py:": RESNET_50,
    "span_bert.py:": (("encoder",), 333_579_264),  # weights bert-large-cased
    "swav.py:": RESNET_50,
    "switch.py:": (("encoder",), 7_415_217_408),  # weights switch-base-128; Fedus et al. 2022, table 9: 7B
    "t5.py:": (("encoder",), 222_903_552),  # weights t5-base; Raffel et al. 2020: about 220M
    "t5.py:arch=11b": (("encoder",), 11_307_321_344),  # weights t5-11b
    "vicreg.py:": RESNET_50,
    "vit.py:": (("encoder", "head"), 22_000_000),  # Beyer et al. 2022: ViT-S/16
    "vit.py:epochs=300": (("encoder", "head"), 22_000_000),
}
QUICK = ("vit.py:", "bert.py:", "gpt2.py:")  # one of images, masked and causal text; the others are `full`
CASES = [
    pytest.param(path, marks=() if path.endswith(tuple(f"/{q}" for q in QUICK)) else pytest.mark.full)
    for path in VARIANTS
]
# Numbers of the state of an optimiser as a multiple of those of the parameters.
MOMENTS = {"AdamW": 2, "LAMB": 2, "LARS": 1, "SGD": 1}


def maker():
    """The script of the page of recipes, as a module."""
    spec = importlib.util.spec_from_file_location("make_recipes_page", ROOT / "docs" / "make_recipes_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count(shapes):
    return sum(math.prod(s.shape) for s in jax.tree.leaves(shapes))


@pytest.mark.parametrize("path", CASES)
def test_shapes_of_the_step_and_published_number_of_parameters(path):
    config, _ = load(str(ROOT / path))
    assembly = runs.assemble(dataclasses.replace(config, mesh=parallel.MeshConfig()), jax.devices()[:1])
    program, spec = assembly.program, assembly.spec
    shapes = program.shapes
    assert all(isinstance(s, jax.ShapeDtypeStruct) for s in jax.tree.leaves(shapes))  # nothing is allocated
    names, published = PUBLISHED[path.rpartition("/")[2]]
    assert count([shapes.params[name] for name in names]) == pytest.approx(published, rel=0.01)
    assert {s.dtype for s in jax.tree.leaves(shapes.params)} == {np.dtype(np.float32)}
    moments = MOMENTS.get(type(config.optimizer).__name__)
    still = [pattern for pattern, factor in config.optimizer.lr_multipliers if factor == 0]  # these have no state
    updated = [s for name, s in hf.flat(shapes.params).items() if not any(re.search(p, name) for p in still)]
    parameters, state = ([s for s in leaves if s.ndim] for leaves in (updated, jax.tree.leaves(shapes.opt_state)))
    if moments:
        assert count(state) == moments * count(parameters)
    else:  # Adafactor keeps rows and columns
        assert count(state) < 0.05 * count(parameters)
    assert "loss" in shapes.meters  # the whole step has been evaluated for shapes
    flops = program.objective.flops(spec)
    assert math.isfinite(flops) and flops > 0
    if type(program.objective).__name__ == "CausalLM":  # 2 for each parameter and token, and attention
        assert 1 < flops / (2 * count(shapes.params) * spec.max_len) < 1.2
    assert assembly.steps > 1000 and program.optimization.bound()


@pytest.mark.parametrize("path", VARIANTS)
def test_the_planned_hardware_can_share_the_batch(path):
    """The mesh takes any number of devices, since one axis is -1, and activations are bfloat16."""
    config, _ = load(str(ROOT / path))
    name, _, argument = path.rpartition("/")[2].partition(":")
    topology = topologies(str(ROOT / path))[argument]
    assert re.fullmatch(r"(v4|v5p):\d+x\d+x\d+|v5e:\d+x\d+|h100:(\d+x)?8|h200:1", topology), name
    sizes = config.mesh.sizes
    assert -1 in (sizes["data"], sizes["fsdp"]) and math.prod(sizes.values()) == -1
    assert config.batch_size % (maker().devices(topology) * config.microbatches) == 0
    model = dataclasses.asdict(config.model)
    dtypes = {model[k]["dtype"] for k in ("image", "text") if k in model} or {model["dtype"]}
    assert dtypes == {"bfloat16"}


def test_every_variant_has_a_published_number():
    assert set(PUBLISHED) == {path.rpartition("/")[2] for path in VARIANTS}


@pytest.mark.parametrize("path", RECIPES)
def test_docstring_has_its_parts(path):
    found = maker().parts(path)
    text = (ROOT / path).read_text()
    assert text.count("\n") < 100 and re.search(r"\(.*\d{4}\)", found[""])
    assert list(found) == ["", "Hardware", "Time", "Result", "Source", "Data", "Differs from the paper"]
    assert f"\n    ssljax inspect --config {path}" in text
    assert f"\n    ssljax train --config {path} --workdir runs/" in text and "--config.data.source=" in text
    assert found["Time"].endswith("not run here: no such hardware.")
    assert "planned for" in found["Hardware"] or "as in the source" in found["Hardware"]
    assert re.match(r"published .*\d", found["Result"])
    assert re.search(r"arXiv:\d{4}\.\d{5}|github\.com/", found["Source"])


def test_the_page_equals_the_recipes():
    made = maker()
    assert made.PAGE.read_text() == made.page(), "stale: run python docs/make_recipes_page.py"


def test_a_recipe_is_inspected_and_not_trained(tmp_path, capsys):
    path = str(ROOT / "configs/recipes/vit.py")
    assert cli.main(["inspect", "--config", path]) == 0
    assert "declared:rows=1281167" in capsys.readouterr().out
    assert cli.main(["train", "--config", path, "--workdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.endswith("data.source: declared data has shapes only; set data.source=... to train")


def test_real_data_takes_the_place_of_the_declared(tmp_path):
    for i in range(4):
        folder = tmp_path / "train" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 200), (i, 0, 0)).save(folder / f"{i}.png")
    overrides = [("data.source", f"images:{tmp_path}/{{split}}"), ("batch_size", "4"), ("steps", "2")]
    config, _ = load(str(ROOT / "configs/recipes/simclr.py"), [*overrides, ("data.cache_dir", str(tmp_path / "cache"))])
    declared = data.describe(load(str(ROOT / "configs/recipes/simclr.py"))[0].data)
    spec = data.describe(config.data)
    assert spec.elements == declared.elements and spec.size == 4


def test_other_configs_name_no_hardware():
    assert topologies("configs/quickstart.py") == {}
    with pytest.raises(UserError, match="no file"):
        topologies("configs/recipes/none.py")
