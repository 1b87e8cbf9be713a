"""Data on the host: sources, tokenizers, order and batches. NumPy only, without JAX."""

from ssljax.data.config import DataConfig, MixturePart, SourceConfig, StreamPart, TokenizerConfig
from ssljax.data.dataset import Dataset, describe, open_data
from ssljax.data.lazy_rows import LazyRows
from ssljax.data.prefetch import Prefetcher
from ssljax.data.sources import REGISTRY
from ssljax.data.spec import DataSpec, device_batch
from ssljax.data.split_arrays import RawRows, SplitArrays, SplitRows, load_split, open_split, shared_rows, split_source
from ssljax.data.tokenizer_files import TOKENIZER_FILES
from ssljax.data.tokenizers import load_tokenizer, open_tokenizer, pin_tokenizer, save_tokenizer

__all__ = [
    "REGISTRY",
    "TOKENIZER_FILES",
    "DataConfig",
    "DataSpec",
    "Dataset",
    "LazyRows",
    "MixturePart",
    "Prefetcher",
    "RawRows",
    "SourceConfig",
    "SplitArrays",
    "SplitRows",
    "StreamPart",
    "TokenizerConfig",
    "describe",
    "device_batch",
    "load_split",
    "load_tokenizer",
    "open_data",
    "open_split",
    "open_tokenizer",
    "pin_tokenizer",
    "save_tokenizer",
    "shared_rows",
    "split_source",
]
