"""Model families: configurations that express published architectures with the shared transformer block.

`create(config, spec)` returns a Flax module; the data give the shapes that the configuration leaves open.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from ssljax.base import schema
from ssljax.base.plain import plain
from ssljax.base.registry import Registry

REGISTRY = Registry(
    "model",
    {
        "vit": "ssljax.models.vit:ViTConfig",
        "deit": "ssljax.models.vision:DeiTConfig",
        "beit": "ssljax.models.vision:BEiTConfig",
        "ijepa": "ssljax.models.vision:IJEPAConfig",
        "dinov2": "ssljax.models.vision:DINOv2Config",
        "dinov3": "ssljax.models.vision:DINOv3Config",
        "ast": "ssljax.models.vision:ASTConfig",
        "bert": "ssljax.models.bert:BertConfig",
        "roberta": "ssljax.models.bert:RobertaConfig",
        "distilbert": "ssljax.models.bert:DistilBertConfig",
        "albert": "ssljax.models.bert:AlbertConfig",
        "electra": "ssljax.models.bert:ElectraConfig",
        "modernbert": "ssljax.models.bert:ModernBertConfig",
        "modernbert-decoder": "ssljax.models.bert:ModernBertDecoderConfig",
        "deberta": "ssljax.models.deberta:DebertaConfig",
        "xlnet": "ssljax.models.xlnet:XLNetConfig",
        "gpt": "ssljax.models.gpt:GPTConfig",
        "gpt1": "ssljax.models.gpt:GPT1Config",
        "gpt3": "ssljax.models.gpt:GPT3Config",
        "opt": "ssljax.models.gpt:OPTConfig",
        "imagegpt": "ssljax.models.gpt:ImageGPTConfig",
        "neox": "ssljax.models.llama:NeoXConfig",
        "llama": "ssljax.models.llama:LlamaConfig",
        "mistral": "ssljax.models.llama:MistralConfig",
        "qwen2": "ssljax.models.llama:Qwen2Config",
        "qwen3": "ssljax.models.llama:Qwen3Config",
        "gemma": "ssljax.models.llama:GemmaConfig",
        "gemma2": "ssljax.models.llama:Gemma2Config",
        "palm": "ssljax.models.llama:PaLMConfig",
        "mixtral": "ssljax.models.llama:MixtralConfig",
        "gemma3": "ssljax.models.gemma3:Gemma3Config",
        "qwen3_moe": "ssljax.models.qwen3_moe:Qwen3MoEConfig",
        "olmo2": "ssljax.models.olmo2:OLMo2Config",
        "smollm3": "ssljax.models.smollm3:SmolLM3Config",
        "phi3": "ssljax.models.phi3:Phi3Config",
        "transformer": "ssljax.models.seq2seq:Seq2SeqConfig",
        "t5": "ssljax.models.seq2seq:T5Config",
        "switch": "ssljax.models.seq2seq:SwitchConfig",
        "bart": "ssljax.models.seq2seq:BARTConfig",
        "pegasus": "ssljax.models.seq2seq:PegasusConfig",
        "clip": "ssljax.models.clip:CLIPConfig",
        "siglip": "ssljax.models.clip:SigLIPConfig",
        "llava": "ssljax.models.llava:LLaVAConfig",
        "resnet": "ssljax.models.resnet:ResNetConfig",
        "gin": "ssljax.models.gin:GINConfig",
        "rnn": "ssljax.models.rnn:RNNConfig",
        "word_vectors": "ssljax.models.word_vectors:WordVectorsConfig",
    },
    has=("inputs", "module"),
)


def create(config: Any, spec: Any) -> nn.Module:
    """Creates the Flax module of a model.

    Args:
        config: a mapping with the key `name`, or an instance of a configuration.
        spec: `ssljax.data.DataSpec` of the data.

    Raises:
        UserError: unknown name or key, or shapes that do not fit the data.
    """
    config = plain(config, "model")
    if isinstance(config, Mapping):
        config = schema.build_named(REGISTRY, config, "model")
    return config.module(spec)
