"""`tfds:NAME`: datasets prepared by TensorFlow Datasets as array_record files, read without TensorFlow."""

import contextlib
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.data.content import digest_files
from ssljax.data.file_source import stamp
from ssljax.data.sources import Blobs, Column, Table, unknown_split
from ssljax.data.splits import Split


class Tfds:
    """`tfds:NAME` in the default folder ($TFDS_DATA_DIR), or `tfds:PATH` of one prepared version.

    Nothing is downloaded. The error for a dataset that is not prepared gives the command that prepares it.
    """

    def __init__(self, location: str):
        self.location = location

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        try:
            if pathlib.Path(self.location).is_dir():
                builder = tfds.builder_from_directory(self.location)
            else:
                builder = tfds.builder(self.location)
        except Exception as error:  # the library raises many types for an unknown name
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"data.source: cannot open tfds:{self.location} ({reason[0]})") from error
        if not builder.info.splits:
            raise UserError(
                f"data.source: tfds:{self.location} is not prepared in {builder.data_dir}; run "
                f"tfds.builder({self.location!r}, file_format='array_record').download_and_prepare()"
            )
        return builder

    def _check(self, split: Split) -> tuple[str, ...]:
        names = tuple(self._builder.info.splits)
        if split.name not in (*names, "all"):
            raise unknown_split(split.name, names, f"tfds:{self.location}")
        return names

    def _files(self, split: Split) -> list[pathlib.Path]:
        names = self._check(split)
        chosen = names if split.name == "all" else (split.name,)
        return [pathlib.Path(p) for name in chosen for p in self._builder.info.splits[name].filepaths]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turns the errors of the library for damaged and missing files into a UserError."""
        try:
            yield
        except RuntimeError as error:
            raise UserError(
                f"data.source: cannot read tfds:{self.location} ({' '.join(str(error).split())})"
            ) from error

    def fingerprint(self, split: Split) -> Any:
        return stamp(self._files(split))

    def content(self, split: Split) -> Any:
        return digest_files([("", path) for path in self._files(split)])

    def table(self, split: Split) -> Table:
        import tensorflow_datasets as tfds

        names = self._check(split)
        features = dict(self._builder.info.features)
        images = {name for name, feature in features.items() if isinstance(feature, tfds.features.Image)}
        # Images stay encoded: they are decoded, resized and cached by the same code as images of other sources.
        decoders = {name: tfds.decode.SkipDecoding() for name in images}
        try:
            source = self._builder.as_data_source(None if split.name == "all" else split.name, decoders=decoders)
        except NotImplementedError as error:
            raise UserError(
                f"data.source: tfds:{self.location} has no random access; prepare it with file_format='array_record'"
            ) from error
        sources = [source[name] for name in names] if split.name == "all" else [source]
        with self._reading():
            ends = np.cumsum([len(s) for s in sources])

        def record(row: int) -> dict[str, Any]:
            k = int(np.searchsorted(ends, row, side="right"))
            with self._reading():
                return sources[k][row - int(ends[k]) + len(sources[k])]

        @functools.cache
        def values(name: str) -> list:
            # Records contain images, so only the values of one column are kept.
            return [_plain(record(row)[name]) for row in range(int(ends[-1]))]

        def get(name: str) -> Column:
            if name in images:
                if np.dtype(features[name].np_dtype) not in (np.uint8, np.uint16):
                    raise UserError(
                        f"data.keys: images {name!r} of tfds:{self.location} are {features[name].np_dtype}, must be "
                        f"uint8 or uint16"
                    )
                mode = "L" if features[name].shape[-1] == 1 else "RGB"
                return Blobs(int(ends[-1]), lambda i: record(i)[name], lambda i: f"tfds:{self.location}, row {i}", mode)
            return values(name)

        label = features.get("label")
        classes = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else None

        def numbers() -> np.ndarray:
            sizes = self._builder.info.splits
            earlier = () if split.name == "all" else names[: names.index(split.name)]
            before = sum(sizes[name].num_examples for name in earlier)
            return np.arange(before, before + int(ends[-1]))

        return Table(tuple(features), get, (*names, "all"), classes, numbers=numbers, ordered=False)


def _plain(value: Any) -> Any:
    """Decodes text features, which the library returns as bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) else value
