"""Host side of the data: sources, tokenizers, order, batches. NumPy only; device arrays are made elsewhere."""

from ssljax.data.config import DataConfig, MixturePart, Part, StreamPart, TokenizerConfig
from ssljax.data.dataset import Dataset, Split, describe, load_split, open_data
from ssljax.data.prefetch import Prefetcher
from ssljax.data.sources import REGISTRY
from ssljax.data.spec import DataSpec, device_part
from ssljax.data.tokenizers import TOKENIZER_FILES, load_tokenizer, open_tokenizer, save_tokenizer

__all__ = [
    "REGISTRY",
    "TOKENIZER_FILES",
    "DataConfig",
    "DataSpec",
    "Dataset",
    "MixturePart",
    "Part",
    "Prefetcher",
    "Split",
    "StreamPart",
    "TokenizerConfig",
    "describe",
    "device_part",
    "load_split",
    "load_tokenizer",
    "open_data",
    "open_tokenizer",
    "save_tokenizer",
]
