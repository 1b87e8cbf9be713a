"""One file a family: its configuration there and here, and the table of names."""

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
        "bert": "ssljax.interop.families.bert:BERT",
        "roberta": "ssljax.interop.families.bert:ROBERTA",
        "distilbert": "ssljax.interop.families.bert:DISTILBERT",
        "albert": "ssljax.interop.families.bert:ALBERT",
        "electra": "ssljax.interop.families.bert:ELECTRA",
        "modernbert": "ssljax.interop.families.bert:MODERNBERT",
        "deberta-v2": "ssljax.interop.families.deberta:DEBERTA",
        "esm": "ssljax.interop.families.esm:ESM",
    },
)
