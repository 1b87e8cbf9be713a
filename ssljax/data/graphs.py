"""Graphs of varying size: the source `graphs:`, and their form in a batch, arrays that are padded with nodes."""

import functools
import io
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ssljax.base.errors import UserError
from ssljax.data.content import digest_files
from ssljax.data.file_source import FileSource, read_bytes, reading, stamp
from ssljax.data.paths import files_below
from ssljax.data.selection import Rows
from ssljax.data.sources import Column, Table
from ssljax.data.splits import Split

MOST_NODES = 256  # nodes of a padded graph without `data.max_nodes`: the adjacency of a graph is an array [N, N]
_TU = ("A", "graph_indicator", "graph_labels", "node_labels", "node_attributes")  # the files that are read


class GraphColumn(Sequence):
    """A column of undirected graphs without self-loops. Row i is (features [n, F], pairs of adjacent nodes [e, 2]).

    Args:
        sizes: int [G], numbers of nodes.
        features: float32 [sum of sizes, F], features of the nodes of all graphs, one graph after the other.
        edges: int64 [2 E, 2], rows of `features` that are adjacent, as `undirected` returns them.
    """

    def __init__(self, sizes: np.ndarray, features: np.ndarray, edges: np.ndarray):
        self.sizes, self.features, self.edges = sizes, features, edges
        self.first = np.concatenate([[0], np.cumsum(sizes)])
        self.first_edge = np.searchsorted(self.edges[:, 0], self.first)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(row)
        start, end = self.first[row : row + 2]
        from_edge, to_edge = self.first_edge[row : row + 2]
        return self.features[start:end], self.edges[from_edge:to_edge] - start


def undirected(edges: np.ndarray) -> np.ndarray:
    """Returns each edge [E, 2] once in each direction, sorted, int64; self-loops and repetitions are left out."""
    both = np.concatenate([edges, edges[:, ::-1]])
    return np.unique(both[both[:, 0] != both[:, 1]], axis=0)


class PaddedGraphs:
    """The selected graphs of a table as arrays of `max_nodes` nodes.

    Attributes:
        elements: "nodes" [N, F] float32, "adjacency" [N, N] bool, symmetric, and "node_mask" [N] bool, False = padding.

    Args:
        rows: the selected rows.
        column: the graphs of the table.
        max_nodes: N; None: that of the largest graph of the table.

    Raises:
        UserError: a selected graph has more than N nodes (without `max_nodes`: more than `MOST_NODES`).
    """

    def __init__(self, rows: Rows, column: GraphColumn, max_nodes: int | None):
        sizes = column.sizes[rows.index]
        limit = MOST_NODES if max_nodes is None else max_nodes
        if sizes.max() > limit:
            row = int(rows.index[sizes.argmax()])
            raise UserError(
                f"data.max_nodes: {rows.location(row)} of {rows.title} has {sizes.max()} nodes, must be at most "
                f"{limit}; raise data.max_nodes, or choose graphs with data.where=dict(num_nodes=[...])"
            )
        self.max_nodes = max_nodes or min(int(column.sizes.max()), MOST_NODES)
        self._column, self._index = column, rows.index
        self.elements: dict[str, Any] = {
            "nodes": {"shape": [self.max_nodes, column.features.shape[1]], "dtype": "float32"},
            "adjacency": {"shape": [self.max_nodes, self.max_nodes], "dtype": "bool"},
            "node_mask": {"shape": [self.max_nodes], "dtype": "bool"},
        }

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays [B, ...] of some of the selected graphs."""
        out = {key: np.zeros((len(rows), *e["shape"]), e["dtype"]) for key, e in self.elements.items()}
        for i, row in enumerate(self._index[rows]):
            features, pairs = self._column[row]
            out["nodes"][i, : len(features)] = features
            out["node_mask"][i, : len(features)] = True
            out["adjacency"][i, pairs[:, 0], pairs[:, 1]] = True
        return out


class Graphs(FileSource):
    """`graphs:PATH`: a data set of labelled graphs, in one of two formats of text.

    A folder with the files NAME_A.txt, NAME_graph_indicator.txt and, optionally, NAME_graph_labels.txt,
    NAME_node_labels.txt and NAME_node_attributes.txt (the TU collection, Morris et al. 2020), or a file in the format
    of Xu et al. 2019 (GIN), or a folder with one such file.

    Features of a node are its label, one-hot, then its attributes as they are. Without labels (or with one label for
    all nodes) and attributes, the degree takes the place of the label. Edges are undirected and have no features.

    Columns: `graph`, `label`, `num_nodes`. A slice takes graphs at random, since files are sorted by class.
    """

    kind = "graphs"
    single = True

    def files(self, split: Split) -> list[pathlib.Path]:
        (path,) = super().files(split)
        return _files_of(path)

    def content(self, split: Split) -> Any:
        """Returns a digest of the files and their names."""
        return digest_files([(path.name, path) for path in self.files(split)])

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        if "{split}" in self.location:
            raise UserError(
                f"data.source: got graphs:{self.location}, must be one data set, since labels of nodes are "
                "numbered together; slices such as train[:80%] split it"
            )
        files = tuple(_files_of(paths[0]))
        graphs, labels, classes = _columns(files, repr(stamp(list(files))))
        columns: dict[str, Column] = {"graph": graphs, "num_nodes": graphs.sizes}
        columns |= {} if labels is None else {"label": labels}
        names = tuple(name for name in ("graph", "label", "num_nodes") if name in columns)
        return Table(names, columns.__getitem__, classes=classes, location="graph {}".format, by_name=True)


def _files_of(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a data set: one file, or those of the TU format.

    Raises:
        UserError: a folder without graphs, or with those of several data sets.
    """
    if not path.is_dir():
        return [path]
    below = [file for file in sorted(files_below(path)) if file.parent == path and file.suffix == ".txt"]
    names = [file.name.removesuffix("_A.txt") for file in below if file.name.endswith("_A.txt")]
    chosen = below
    if len(names) == 1:
        chosen = [file for file in below if file.name in [f"{names[0]}_{part}.txt" for part in _TU]]
    if len(names) > 1 or (not names and len(below) != 1):
        raise UserError(
            f"data.source: {path} has {len(names)} files NAME_A.txt and {len(below)} files .txt, must have one "
            "NAME_A.txt with its companions, or a single file .txt"
        )
    return chosen


class _Parts(NamedTuple):
    """The content of the files of a data set."""

    graph: np.ndarray  # int [N], number of the graph of each node, ascending
    edges: np.ndarray  # int [E, 2], pairs of nodes, numbered through all graphs
    labels: np.ndarray | None  # int [G]
    node_labels: np.ndarray | None  # int [N]
    attributes: np.ndarray | None  # float32 [N, A]


@functools.lru_cache(maxsize=4)
def _columns(
    files: tuple[pathlib.Path, ...], state: str
) -> tuple[GraphColumn, np.ndarray | None, tuple[str, ...] | None]:
    """Returns graphs, labels int32 [G] and names of the classes; `state` of the files belongs to the key of the cache.

    Raises:
        UserError: a file is damaged.
    """
    if len(files) == 1:
        with reading(files[0], "a text of graphs"):
            parts = _parse_listing(read_bytes(files[0]).decode())
    else:
        parts = _read_tu(files)
    edges = undirected(parts.edges)
    column = GraphColumn(np.bincount(parts.graph), _features(parts, edges), edges)
    if parts.labels is None:
        return column, None, None
    values, numbers = np.unique(parts.labels, return_inverse=True)
    return column, numbers.astype(np.int32), tuple(map(str, values))


def _features(parts: _Parts, edges: np.ndarray) -> np.ndarray:
    """Returns the features of all nodes, float32 [N, F]."""
    found: list[np.ndarray] = [] if parts.attributes is None else [parts.attributes]
    labels = parts.node_labels
    if labels is None or len(np.unique(labels)) == 1:
        labels = None if found else np.bincount(edges[:, 0], minlength=len(parts.graph))
    if labels is not None:
        values, numbers = np.unique(labels, return_inverse=True)
        found.insert(0, np.eye(len(values), dtype=np.float32)[numbers])
    return np.concatenate(found, axis=1)


def _parse_listing(text: str) -> _Parts:
    """Parses the format of Xu et al. 2019.

    The first line is the number of graphs; a graph is a line "n label", then for each of its n nodes a line with its
    label, the number of its neighbours, the neighbours (from 0 within the graph) and, optionally, its attributes.

    Raises:
        ValueError: the text has another form.
    """
    lines = text.splitlines()
    rows: list[tuple[int, int]] = []  # graph and label of each node
    edges, labels, attributes, at = [], [], [], 1
    for graph in range(_number(lines, 0, 0)):
        size, first = _number(lines, at, 0), len(rows)
        if size < 1:
            raise ValueError(f"line {at + 1}: got a graph of {size} nodes, must have at least 1")
        labels.append(_number(lines, at, 1))
        for i in range(at + 1, at + 1 + size):
            count = _number(lines, i, 1)
            near = [_number(lines, i, 2 + k) for k in range(count)]
            if near and (min(near) < 0 or max(near) >= size):
                raise ValueError(f"line {i + 1}: neighbours {near}, must be >= 0 and < {size}")
            edges += [(len(rows), first + other) for other in near]
            rows.append((graph, _number(lines, i, 0)))
            attributes.append([float(value) for value in lines[i].split()[2 + count :]])
        at += size + 1
    if any(line.strip() for line in lines[at:]):
        raise ValueError(f"line {at + 1}: follows the last graph")
    if not rows:
        raise ValueError("no graph")
    graph_of, node_labels = np.array(rows).T
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    return _Parts(graph_of, pairs, np.array(labels), node_labels, _finite(attributes))


def _number(lines: list[str], line: int, place: int) -> int:
    """Returns an integer of a line. Raises ValueError if it is absent or no integer."""
    if line >= len(lines):
        raise ValueError(f"ends after line {len(lines)}, within a graph")
    words = lines[line].split()
    if place >= len(words) or not words[place].lstrip("-").isdigit():
        found = repr(words[place]) if place < len(words) else "nothing"
        raise ValueError(f"line {line + 1}: got {found} in place {place + 1}, must be an integer")
    return int(words[place])


def _finite(rows: Any) -> np.ndarray | None:
    """Returns attributes float32 [N, A]; None without any. Raises ValueError if they are ragged or not finite."""
    if len({len(row) for row in rows}) > 1:
        raise ValueError("nodes differ in their number of attributes")
    found = np.array(rows, np.float32)
    if not np.isfinite(found).all():
        raise ValueError("an attribute is not a finite number")
    return found if found.size else None


def _read_tu(files: tuple[pathlib.Path, ...]) -> _Parts:
    """Reads the files of the TU format; nodes and graphs are numbered from 1.

    Raises:
        UserError: a file is missing or damaged, or does not fit the others.
    """
    of = {next(part for part in _TU if file.stem.endswith(f"_{part}")): file for file in files}
    for part in _TU[:2]:
        if part not in of:
            raise UserError(f"data.source: {files[0].parent} has no file NAME_{part}.txt")
    with reading(of["graph_indicator"], "a list of graphs"):
        graph = _table(of["graph_indicator"], int, 1)[:, 0] - 1
        if len(np.unique(graph)) != graph.max() + 1 or graph.min() < 0:
            raise ValueError("graphs must have the numbers 1, 2, ... without a gap")
    order = np.argsort(graph, kind="stable")
    place = np.argsort(order)  # place of each node after sorting by graph
    with reading(of["A"], "a list of edges"):
        edges = _table(of["A"], int, 2) - 1
        wrong = edges[(edges < 0) | (edges >= len(graph))]
        if wrong.size:
            raise ValueError(f"got node {wrong[0] + 1}, must be >= 1 and <= {len(graph)}")
        if (graph[edges[:, 0]] != graph[edges[:, 1]]).any():
            raise ValueError("an edge joins two graphs")
    counts = {"graph_labels": int(graph.max()) + 1, "node_labels": len(graph), "node_attributes": len(graph)}
    found: dict[str, Any] = dict.fromkeys(counts)
    for part, count in counts.items():
        if part in of:
            with reading(of[part], "a list of numbers"):
                values = _table(of[part], float if part == "node_attributes" else int)
                if len(values) != count:
                    raise ValueError(f"has {len(values)} lines, must have {count}")
                found[part] = _finite(values) if part == "node_attributes" else values[:, 0]
    nodes = [None if found[p] is None else found[p][order] for p in ("node_labels", "node_attributes")]
    return _Parts(graph[order], place[edges], found["graph_labels"], *nodes)


def _table(path: pathlib.Path, kind: type, columns: int | None = None) -> np.ndarray:
    """Returns the numbers of a file with commas, [lines, columns]. Raises ValueError if it has another form."""
    text = read_bytes(path).decode()
    if not text.strip():
        return np.zeros((0, columns or 1), kind)
    found: np.ndarray = np.loadtxt(io.StringIO(text), kind, delimiter=",", ndmin=2)
    if columns is not None and found.shape[1] != columns:
        raise ValueError(f"has {found.shape[1]} numbers in a line, must have {columns}")
    return found
