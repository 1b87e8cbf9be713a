"""Training objectives: each combines views, a model and losses under the contract of `base.py`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ssljax import models
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.plain import plain
from ssljax.base.registry import Registry
from ssljax.objectives.router import with_router_losses

REGISTRY = Registry(
    "objective",
    {
        "align_uniform": "ssljax.objectives.contrastive.align_uniform:AlignUniform",
        "autoencoder": "ssljax.objectives.generative.autoencoder:Autoencoder",
        "barlow_twins": "ssljax.objectives.redundancy.barlow_twins:BarlowTwins",
        "byol": "ssljax.objectives.distillation.byol:BYOL",
        "captioning": "ssljax.objectives.autoregressive.captioning:Captioning",
        "causal_lm": "ssljax.objectives.autoregressive.causal_lm:CausalLM",
        "classification": "ssljax.objectives.supervised.classification:Classification",
        "clip": "ssljax.objectives.contrastive.clip:CLIP",
        "colorization": "ssljax.objectives.pretext.colorization:Colorization",
        "contrastive_pairs": "ssljax.objectives.contrastive.contrastive_pairs:ContrastivePairs",
        "data2vec": "ssljax.objectives.masked.data2vec:Data2Vec",
        "cpc": "ssljax.objectives.contrastive.cpc:CPC",
        "dcl": "ssljax.objectives.contrastive.dcl:DCL",
        "deep_cluster": "ssljax.objectives.clustering.deep_cluster:DeepCluster",
        "dino": "ssljax.objectives.distillation.dino:DINO",
        "fusion": "ssljax.objectives.fusion:Fusion",
        "electra": "ssljax.objectives.masked.electra:Electra",
        "distillation": "ssljax.objectives.distillation.distillation:Distillation",
        "fixmatch": "ssljax.objectives.semi_supervised.fixmatch:FixMatch",
        "gap_sentences": "ssljax.objectives.masked.gap_sentences:GapSentences",
        "ibot": "ssljax.objectives.distillation.ibot:IBOT",
        "graph_cl": "ssljax.objectives.contrastive.graph_cl:GraphCL",
        "i_jepa": "ssljax.objectives.masked.i_jepa:IJEPA",
        "image_gpt": "ssljax.objectives.autoregressive.image_gpt:ImageGPT",
        "jigsaw": "ssljax.objectives.pretext.jigsaw:Jigsaw",
        "lejepa": "ssljax.objectives.redundancy.lejepa:LeJEPA",
        "mae": "ssljax.objectives.masked.mae:MAE",
        "masked_diffusion": "ssljax.objectives.masked.masked_diffusion:MaskedDiffusion",
        "mean_teacher": "ssljax.objectives.semi_supervised.mean_teacher:MeanTeacher",
        "mixture_of_denoisers": "ssljax.objectives.masked.mixture_of_denoisers:MixtureOfDenoisers",
        "mlm": "ssljax.objectives.masked.mlm:MLM",
        "moco": "ssljax.objectives.contrastive.moco:MoCo",
        "msn": "ssljax.objectives.clustering.msn:MSN",
        "multi_label": "ssljax.objectives.supervised.regression:MultiLabel",
        "n_pair": "ssljax.objectives.contrastive.n_pair:NPair",
        "nnclr": "ssljax.objectives.contrastive.nnclr:NNCLR",
        "prefix_lm": "ssljax.objectives.autoregressive.prefix_lm:PrefixLM",
        "pseudo_label": "ssljax.objectives.semi_supervised.pseudo_label:PseudoLabel",
        "regression": "ssljax.objectives.supervised.regression:Regression",
        "relative_patch": "ssljax.objectives.pretext.relative_patch:RelativePatch",
        "rotation": "ssljax.objectives.pretext.rotation:Rotation",
        "siglip": "ssljax.objectives.contrastive.siglip:SigLIP",
        "simcse": "ssljax.objectives.contrastive.simcse:SimCSE",
        "simclr": "ssljax.objectives.contrastive.simclr:SimCLR",
        "simmim": "ssljax.objectives.masked.simmim:SimMIM",
        "simsiam": "ssljax.objectives.distillation.simsiam:SimSiam",
        "span_corruption": "ssljax.objectives.masked.span_corruption:SpanCorruption",
        "ssl_hsic": "ssljax.objectives.redundancy.ssl_hsic:SSLHSIC",
        "sup_con": "ssljax.objectives.contrastive.sup_con:SupCon",
        "swav": "ssljax.objectives.clustering.swav:SwAV",
        "text_infilling": "ssljax.objectives.masked.text_infilling:TextInfilling",
        "triplet": "ssljax.objectives.contrastive.triplet:Triplet",
        "vae": "ssljax.objectives.generative.vae:VAE",
        "word2vec": "ssljax.objectives.contrastive.word2vec:Word2Vec",
        "xlnet": "ssljax.objectives.autoregressive.xlnet:PermutationLM",
        "vicreg": "ssljax.objectives.redundancy.vicreg:VICReg",
    },
    has=("inputs", "init", "views", "encode", "loss"),
)


def modalities() -> dict[str, dict[str, tuple[str, ...]]]:
    """Returns {objective: {inputs that it reads: the model families that read them}}, as both declare."""
    families = {name: models.REGISTRY.get(name).inputs for name in models.REGISTRY}
    return {
        objective: {
            inputs: tuple(name for name, own in families.items() if own == inputs)
            for inputs in REGISTRY.get(objective).inputs
        }
        for objective in REGISTRY
    }


def create(config: Mapping[str, Any], spec: Any, steps: int | None = None) -> Any:
    """Creates an objective with its model, ready for `init`.

    Args:
        config: {"objective": ..., "model": ...}, each a mapping with a `name` or an instance of a configuration.
        spec: `ssljax.data.DataSpec` of the data (shapes, vocabulary, classes).
        steps: length of the run, for schedules inside objectives (momentum of a teacher, warm-up of a temperature);
            None: unknown.

    Raises:
        UserError: unknown name or key, a model that reads another kind of input than the objective makes, or settings
            that do not fit the data or the model (`Objective.check`).
    """
    objective, model = (plain(config[group], group) for group in ("objective", "model"))
    if isinstance(objective, Mapping):
        objective = schema.build_named(REGISTRY, objective, "objective")
    if isinstance(model, Mapping):
        model = schema.build_named(models.REGISTRY, model, "model")
    if model.inputs not in objective.inputs:
        fitting = [n for n in models.REGISTRY if models.REGISTRY.get(n).inputs in objective.inputs]
        raise UserError(
            f"model.name: this model reads {model.inputs}, but the objective makes {' or '.join(objective.inputs)} "
            f"(fitting: {', '.join(fitting)})"
        )
    objective = dataclasses.replace(objective.reading(model.inputs), spec=spec, steps=steps, reads=model.inputs)
    objective = dataclasses.replace(objective, model=models.create(model, objective.model_spec(spec)))
    objective.check()
    return with_router_losses(objective)
