"""Families of `transformers`, one file each: the fields of the configuration and the table of tensors.

A new family is a `Family` in a file of this folder and its line in the registry.
"""

from ssljax.base.registry import Registry

REGISTRY = Registry(
    "Hugging Face architecture (model_type)",
    {
        "openai-gpt": "ssljax.interop.families.gpt:GPT1",
        "gpt2": "ssljax.interop.families.gpt:GPT2",
        "imagegpt": "ssljax.interop.families.gpt:IMAGE_GPT",
        "opt": "ssljax.interop.families.opt:OPT",
        "gpt_neox": "ssljax.interop.families.neox:NEOX",
        "llama": "ssljax.interop.families.llama:LLAMA",
        "mistral": "ssljax.interop.families.llama:MISTRAL",
        "qwen2": "ssljax.interop.families.llama:QWEN2",
        "qwen3": "ssljax.interop.families.llama:QWEN3",
        "gemma": "ssljax.interop.families.llama:GEMMA",
        "gemma2": "ssljax.interop.families.llama:GEMMA2",
        "mixtral": "ssljax.interop.families.llama:MIXTRAL",
        "t5": "ssljax.interop.families.seq2seq:T5",
        "switch_transformers": "ssljax.interop.families.seq2seq:SWITCH",
        "bart": "ssljax.interop.families.seq2seq:BART",
        "pegasus": "ssljax.interop.families.seq2seq:PEGASUS",
        "vit": "ssljax.interop.families.vit:VIT",
        "deit": "ssljax.interop.families.vit:DEIT",
        "beit": "ssljax.interop.families.beit:BEIT",
        "ijepa": "ssljax.interop.families.vit:IJEPA",
        "dinov2": "ssljax.interop.families.dino:DINOV2",
        "dinov2_with_registers": "ssljax.interop.families.dino:DINOV2_REGISTERS",
        "dinov3_vit": "ssljax.interop.families.dino:DINOV3",
        "vit_mae": "ssljax.interop.families.mae:MAE",
        "audio-spectrogram-transformer": "ssljax.interop.families.vit:AST",
        "clip": "ssljax.interop.families.pairs:CLIP",
        "siglip": "ssljax.interop.families.pairs:SIGLIP",
        "llava": "ssljax.interop.families.pairs:LLAVA",
        "bert": "ssljax.interop.families.bert:BERT",
        "roberta": "ssljax.interop.families.bert:ROBERTA",
        "distilbert": "ssljax.interop.families.bert:DISTILBERT",
        "albert": "ssljax.interop.families.bert:ALBERT",
        "electra": "ssljax.interop.families.bert:ELECTRA",
        "modernbert": "ssljax.interop.families.bert:MODERNBERT",
        "deberta-v2": "ssljax.interop.families.deberta:DEBERTA",
        "xlnet": "ssljax.interop.families.xlnet:XLNET",
        "esm": "ssljax.interop.families.esm:ESM",
    },
)
