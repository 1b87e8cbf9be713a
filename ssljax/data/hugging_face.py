"""`hf:`: datasets of Hugging Face's library `datasets`, memory-mapped from its Arrow files."""

import functools
import itertools
import pathlib
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.data.content import digest_files
from ssljax.data.file_source import stamp
from ssljax.data.sources import Blobs, Column, OnDemand, Table, unknown_split
from ssljax.data.splits import Split


class HuggingFace:
    """`hf:FOLDER` that `save_to_disk` wrote, or `hf:NAME` or `hf:NAME@CONFIG` on the hub. Needs `ssljax[hf]`."""

    def __init__(self, location: str):
        self.location = location

    @functools.cached_property
    def _splits(self) -> dict[str, Any]:
        """The datasets by the names of their splits; images stay encoded."""
        try:
            import datasets
        except ImportError as error:
            raise UserError(
                "data.source: `hf:` needs the library `datasets`; install it with pip install 'ssljax[hf]'"
            ) from error
        folder = pathlib.Path(self.location)
        try:
            if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
                found = datasets.load_from_disk(self.location)
            else:
                name, _, config = self.location.partition("@")
                found = datasets.load_dataset(name, config or None)
        except Exception as error:  # the library raises many types
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"data.source: cannot open hf:{self.location} ({reason})") from error
        splits = found if isinstance(found, dict) else {"train": found}
        return {name: _encoded(dataset) for name, dataset in splits.items()}

    def _chosen(self, split: Split) -> list[Any]:
        names = tuple(self._splits)
        if split.name not in (*names, "all"):
            raise unknown_split(split.name, (*names, "all"), f"hf:{self.location}")
        return [self._splits[name] for name in (names if split.name == "all" else (split.name,))]

    def _files(self, split: Split) -> list[pathlib.Path]:
        return [pathlib.Path(file["filename"]) for dataset in self._chosen(split) for file in dataset.cache_files]

    def fingerprint(self, split: Split) -> Any:
        return stamp(self._files(split)) or self._in_memory(split)

    def content(self, split: Split) -> Any:
        files = [("", path) for path in self._files(split)]
        return digest_files(files) if files else self._in_memory(split)

    def _in_memory(self, split: Split) -> list[str]:
        """Returns the fingerprints by which the library tells datasets without files apart."""
        return [dataset._fingerprint for dataset in self._chosen(split)]

    def table(self, split: Split) -> Table:
        import datasets

        chosen = self._chosen(split)
        dataset = chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)
        label = dataset.features.get("label")
        sizes = {name: len(one) for name, one in self._splits.items()}
        before = 0 if split.name == "all" else sum(sizes[n] for n in itertools.takewhile(split.name.__ne__, sizes))
        return Table(
            tuple(dataset.column_names),
            functools.partial(_column, dataset, f"hf:{self.location} [{split.name}]"),
            splits=(*self._splits, "all"),
            classes=tuple(label.names) if isinstance(label, datasets.ClassLabel) else None,
            numbers=lambda: np.arange(before, before + len(dataset)),
        )


def _encoded(dataset: Any) -> Any:
    """Returns a dataset whose images are bytes, or paths of files."""
    import datasets

    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def _column(dataset: Any, title: str, name: str) -> Column:
    import datasets

    feature, one = dataset.features[name], dataset.select_columns([name])
    if isinstance(feature, datasets.Image):

        def content(row: int) -> bytes:
            value = one[row][name] or {}
            if value.get("bytes") is None and value.get("path") is None:
                raise UserError(f"data.source: {name} has no value at row {row} of {title}, must be an image")
            return value["bytes"] if value.get("bytes") is not None else pathlib.Path(value["path"]).read_bytes()

        return Blobs(len(one), content, lambda row: f"{title}, row {row}")
    if isinstance(feature, datasets.ClassLabel) or (
        isinstance(feature, datasets.Value) and np.dtype(feature.pa_type.to_pandas_dtype()).kind in "biuf"
    ):
        values = one.with_format("arrow")[:].column(name)
        if values.null_count:
            row = int(np.flatnonzero(values.is_null().to_numpy())[0])
            raise UserError(f"data.source: {name} has no value at row {row} of {title}")
        return values.to_numpy()
    return OnDemand(len(one), lambda row: one[row][name])
