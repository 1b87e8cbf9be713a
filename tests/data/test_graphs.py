"""Graphs: two formats of text, padding, slices, errors."""

import numpy as np
import pytest

from ssljax.base.errors import UserError
from ssljax.data import describe, load_split, open_data

GRAPHS = 12


@pytest.fixture
def graphs():
    """Random graphs: (label, labels of the nodes [n], set of edges (i, j), i < j)."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(GRAPHS):
        n = int(rng.integers(1, 8))
        edges = {(a, b) for a in range(n) for b in range(a + 1, n) if rng.random() < 0.4}
        made.append((i % 3 * 2 - 1, rng.choice([2, 5, 9], n), edges))
    return made


def listing(graphs, attributes=None):
    """The text of the format of Xu et al. 2019."""
    lines, at = [str(len(graphs))], 0
    for label, tags, edges in graphs:
        lines.append(f"{len(tags)} {label}")
        for i, tag in enumerate(tags):
            near = [b if a == i else a for a, b in sorted(edges) if i in (a, b)]
            own = [] if attributes is None else attributes[at]
            lines.append(" ".join(map(str, [tag, len(near), *near, *own])))
            at += 1
    return "\n".join(lines) + "\n"


def write_tu(folder, graphs, directions=2, shuffle=None, attributes=None, node_labels=True):
    """Writes the files of the TU format; `shuffle`: order of the nodes in the files."""
    graph_of = [g for g, (_, tags, _) in enumerate(graphs) for _ in tags]
    order = np.arange(len(graph_of)) if shuffle is None else shuffle
    place = np.argsort(order)
    first = np.cumsum([0, *(len(tags) for _, tags, _ in graphs)])
    pairs = [(first[g] + a, first[g] + b) for g, (_, _, edges) in enumerate(graphs) for a, b in sorted(edges)]
    pairs += [(b, a) for a, b in pairs] if directions == 2 else []
    tags = np.concatenate([tags for _, tags, _ in graphs])
    folder.mkdir(exist_ok=True)
    texts = {
        "A": [f"{place[a] + 1}, {place[b] + 1}" for a, b in pairs],
        "graph_indicator": [graph_of[i] + 1 for i in order],
        "graph_labels": [label for label, _, _ in graphs],
        "edge_labels": ["0"] * len(pairs),
    }
    if node_labels:
        texts["node_labels"] = tags[order]
    if attributes is not None:
        texts["node_attributes"] = [", ".join(map(str, attributes[i])) for i in order]
    for name, lines in texts.items():
        (folder / f"X_{name}.txt").write_text("\n".join(map(str, lines)) + "\n")
    (folder / "README.md").write_text("not read")
    return f"graphs:{folder}"


def expected(graphs, i, features, nodes):
    """The arrays of graph i, from the definition."""
    _, tags, edges = graphs[i]
    x, a = np.zeros((nodes, features.shape[1]), np.float32), np.zeros((nodes, nodes), bool)
    start = sum(len(t) for _, t, _ in graphs[:i])
    for k in range(len(tags)):
        x[k] = features[start + k]
    for p, q in edges:
        a[p, q] = a[q, p] = True
    return {"nodes": x, "adjacency": a, "node_mask": np.arange(nodes) < len(tags)}


def one_hot(values):
    return np.eye(len(set(values)), dtype=np.float32)[[sorted(set(values)).index(v) for v in values]]


def check_rows(config, graphs, features):
    arrays = load_split(config, "all")
    nodes = arrays["node_mask"].shape[1]
    assert arrays["id"].tolist() == list(range(GRAPHS))
    for i in range(GRAPHS):
        for name, value in expected(graphs, i, features, nodes).items():
            np.testing.assert_array_equal(arrays[name][i], value, err_msg=name)
    assert arrays["label"].tolist() == [i % 3 for i in range(GRAPHS)]  # -1, 1, 3 are numbered in order
    assert describe(config).classes == ("-1", "1", "3")
    return arrays


@pytest.mark.parametrize("form", ["listing", "folder", "tu", "one direction", "other order"])
def test_formats(config, graphs, tmp_path, form):
    (tmp_path / "a.txt").write_text(listing(graphs))
    shuffle = np.random.default_rng(1).permutation(sum(len(t) for _, t, _ in graphs))
    sources = {
        "listing": lambda: f"graphs:{tmp_path}/a.txt",
        "folder": lambda: f"graphs:{tmp_path}",
        "tu": lambda: write_tu(tmp_path / "b", graphs),
        "one direction": lambda: write_tu(tmp_path / "b", graphs, directions=1),
    }
    features = one_hot(np.concatenate([tags for _, tags, _ in graphs]).tolist())
    if form == "other order":  # the order of nodes within a graph is that of the file
        arrays = load_split(config(source=write_tu(tmp_path / "b", graphs, shuffle=shuffle)), "all")
        for i in range(GRAPHS):
            want = expected(graphs, i, features, arrays["node_mask"].shape[1])
            assert np.isclose(arrays["nodes"][i].sum(0), want["nodes"].sum(0)).all()
            degrees = [np.sort((x["adjacency"] @ x["nodes"]).ravel()) for x in ({k: arrays[k][i] for k in want}, want)]
            np.testing.assert_array_equal(*degrees)
        return
    check_rows(config(source=sources[form]()), graphs, features)


@pytest.mark.parametrize("form", ["listing", "tu"])
def test_attributes_follow_labels(config, graphs, tmp_path, form):
    tags = np.concatenate([tags for _, tags, _ in graphs])
    attributes = np.round(np.random.default_rng(2).normal(size=(len(tags), 2)), 3)
    (tmp_path / "a.txt").write_text(listing(graphs, attributes))
    source = (
        f"graphs:{tmp_path}/a.txt" if form == "listing" else write_tu(tmp_path / "b", graphs, attributes=attributes)
    )
    features = np.concatenate([one_hot(tags.tolist()), attributes.astype(np.float32)], 1)
    check_rows(config(source=source), graphs, features)


@pytest.mark.parametrize("form", ["one label", "none"])
def test_the_degree_takes_the_place_of_missing_labels(config, graphs, tmp_path, form):
    plain = [(label, np.full(len(tags), 4), edges) for label, tags, edges in graphs]
    (tmp_path / "a.txt").write_text(listing(plain))
    source = f"graphs:{tmp_path}/a.txt" if form == "one label" else write_tu(tmp_path / "b", plain, node_labels=False)
    degrees = [sum(i in edge for edge in edges) for _, tags, edges in graphs for i in range(len(tags))]
    check_rows(config(source=source), plain, one_hot(degrees))


def test_repeated_edges_and_loops_are_left_out(config, tmp_path):
    (tmp_path / "a.txt").write_text("1\n3 0\n0 3 0 1 1\n1 0\n0 1 1\n")
    arrays = load_split(config(source=f"graphs:{tmp_path}/a.txt"), "all")
    assert arrays["adjacency"][0].astype(int).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


def test_batches_and_slices(config, graphs, tmp_path):
    """Slices are disjoint and random, as files are sorted by class; all splits have one shape."""
    graphs = sorted(graphs * 10, key=lambda graph: graph[0])
    (tmp_path / "a.txt").write_text(listing(graphs))
    parts = [config(source=f"graphs:{tmp_path}/a.txt", split=split) for split in ("train[:50%]", "train[50%:]")]
    ids = [load_split(part, part.split)["id"] for part in parts]
    assert sorted(np.concatenate(ids)) == list(range(len(graphs)))
    labels = load_split(parts[0], parts[0].split)["label"]
    assert len(set(labels.tolist())) == 3
    first, second = (describe(part).elements for part in parts)
    assert first == second
    batch = open_data(parts[0], 8).batch(3)
    for i, row in enumerate(batch["id"]):
        n = len(graphs[row][1])
        assert batch["node_mask"][i].sum() == n and batch["adjacency"][i].sum() == 2 * len(graphs[row][2])


def test_max_nodes(config, graphs, tmp_path):
    (tmp_path / "a.txt").write_text(listing(graphs))
    source = f"graphs:{tmp_path}/a.txt"
    largest = max(len(tags) for _, tags, _ in graphs)
    assert describe(config(source=source)).elements["nodes"]["shape"] == [largest, 3]
    assert load_split(config(source=source, max_nodes=11), "all")["adjacency"].shape == (GRAPHS, 11, 11)
    few = config(source=source, max_nodes=3, where={"num_nodes": range(1, 4)})
    assert load_split(few, "all")["id"].tolist() == [i for i in range(GRAPHS) if len(graphs[i][1]) < 4]
    with pytest.raises(UserError, match=rf"^data\.max_nodes: graph \d+ of .* has {largest} nodes, must be at most 3;"):
        describe(config(source=source, max_nodes=3))
    (tmp_path / "b.txt").write_text("1\n300 0\n" + "0 0\n" * 300)
    with pytest.raises(UserError, match=r"^data\.max_nodes: graph 0 of .* has 300 nodes, must be at most 256; raise"):
        describe(config(source=f"graphs:{tmp_path}/b.txt"))


@pytest.mark.parametrize(
    "text, pattern",
    [
        ("", "ends after line 0"),
        ("x\n", "line 1: got 'x' in place 1, must be an integer"),
        ("0\n", "no graph"),
        ("1\n2 0\n0 1 1\n", "ends after line 3, within a graph"),
        ("1\n2\n0 1 1\n0 1 0\n", "line 2: got nothing in place 2"),
        ("1\n0 1\n", "line 2: got a graph of 0 nodes"),
        ("1\n2 0\n0 1 2\n0 1 0\n", r"line 3: neighbours \[2\], must be >= 0 and < 2"),
        ("1\n2 0\n0 2 1\n0 1 0\n", "line 3: got nothing in place 4"),
        ("1\n1 0\n0 0\n0 0\n", "line 4: follows the last graph"),
        ("1\n1 0\n0 0 nan\n", "an attribute is not a finite number"),
        ("1\n1 0\n0 0 z\n", "could not convert string to float"),
        ("2\n1 0\n0 0 1.5\n1 0\n0 0\n", "nodes differ in their number of attributes"),
        ("1\n1 0.5\n0 0\n", r"line 2: got '0\.5' in place 2, must be an integer"),
    ],
)
def test_damaged_listings(config, tmp_path, text, pattern):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=rf"^data\.source: .*a\.txt is damaged or not a text of graphs \({pattern}"):
        describe(config(source=f"graphs:{tmp_path}/a.txt"))


@pytest.mark.parametrize(
    "name, text, pattern",
    [
        ("A", "1, 99\n", r"X_A\.txt is damaged.*got node 99, must be >= 1 and <= \d+"),
        ("A", "0, 1\n", r"X_A\.txt is damaged.*got node 0, must be >= 1 and <="),
        ("A", "1, 2, 3\n", r"X_A\.txt is damaged.*has 3 numbers in a line, must have 2"),
        ("A", "1, x\n", r"X_A\.txt is damaged"),
        ("graph_indicator", "1\n3\n", r"X_graph_indicator\.txt is damaged.*must have the numbers 1, 2, \.\.\."),
        ("graph_labels", "1\n", r"X_graph_labels\.txt is damaged.*has 1 lines, must have 12"),
        ("node_labels", "1\n", r"X_node_labels\.txt is damaged.*has 1 lines, must have"),
        ("node_labels", "", r"X_node_labels\.txt is damaged.*has 0 lines, must have"),
        ("graph_indicator", None, r"has no file NAME_graph_indicator\.txt"),
    ],
)
def test_damaged_folders(config, graphs, tmp_path, name, text, pattern):
    source = write_tu(tmp_path / "b", graphs)
    if text is None:
        (tmp_path / "b" / f"X_{name}.txt").unlink()
    else:
        (tmp_path / "b" / f"X_{name}.txt").write_text(text)
    with pytest.raises(UserError, match=rf"^data\.source: .*{pattern}") as error:
        describe(config(source=source))
    assert "\n" not in str(error.value)


def test_edges_between_graphs_are_refused(config, graphs, tmp_path):
    source = write_tu(tmp_path / "b", graphs)
    (tmp_path / "b" / "X_A.txt").write_text(f"1, {sum(len(tags) for _, tags, _ in graphs)}\n")
    with pytest.raises(UserError, match=r"X_A\.txt is damaged.*an edge joins two graphs"):
        describe(config(source=source))


def test_wrong_folders(config, graphs, tmp_path):
    with pytest.raises(UserError, match=r"^data\.source: .* has 0 files NAME_A\.txt and 0 files \.txt, must have one"):
        describe(config(source=f"graphs:{tmp_path}"))
    write_tu(tmp_path, graphs)
    (tmp_path / "Y_A.txt").write_text("1, 2\n")
    with pytest.raises(UserError, match=r"has 2 files NAME_A\.txt"):
        describe(config(source=f"graphs:{tmp_path}"))
    (tmp_path / "train.txt").write_text(listing(graphs))
    with pytest.raises(UserError, match=r"must be one data set, .* slices such as train\[:80%\]"):
        describe(config(source=f"graphs:{tmp_path}/{{split}}.txt"))
    with pytest.raises(UserError, match=r"does not exist"):
        describe(config(source=f"graphs:{tmp_path}/none"))


def test_a_changed_file_is_read_again(config, graphs, tmp_path):
    (tmp_path / "a.txt").write_text(listing(graphs))
    source = config(source=f"graphs:{tmp_path}/a.txt")
    before = describe(source)
    (tmp_path / "a.txt").write_text(listing(graphs[:5]))
    assert (before.size, describe(source).size) == (12, 5)
    assert before.content != describe(source).content


@pytest.mark.parametrize("name, rows, most, features", [("mutag", 188, 28, 7), ("proteins", 1040, 96, 3)])
def test_shared_graphs(config, shared_data, name, rows, most, features):
    small = config(source=f"graphs:{shared_data}/graphs_{name}", max_nodes=most, where={"num_nodes": range(1, 97)})
    arrays = load_split(small, "all")
    assert arrays["nodes"].shape == (rows, most, features) and arrays["node_mask"].any(0).all()
    assert (arrays["adjacency"] == arrays["adjacency"].swapaxes(1, 2)).all()
    assert (arrays["nodes"].sum(-1) == arrays["node_mask"]).all()
