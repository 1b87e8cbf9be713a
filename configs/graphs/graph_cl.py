"""GraphCL (You et al. 2020): two views of a graph, with nodes or edges left out, are matched among all of the batch.

Trains a GIN of three layers on molecules (MUTAG) or proteins (PROTEINS), without labels.

    ssljax train --config configs/graphs/graph_cl.py --workdir runs/graph_cl
    ssljax train --config configs/graphs/graph_cl.py:data=proteins --workdir runs/graph_cl-proteins
    ssljax train --config configs/graphs/graph_cl.py:data=files --workdir runs/own --config.data.source=graphs:DIR

Time: 2 minutes on one CPU core for MUTAG.
Result: accuracy of k-NN on held-out molecules (MUTAG): 0.734 (counts of atoms 0.702, untrained encoder 0.706, largest
class 0.660); docs/results.md, section 1.

Other objectives of two views run on graphs with the same views: `graph_cl.py:method=simclr`, `barlow_twins`, `byol` or
`vicreg`.
"""

import ml_collections

from ssljax.config import arguments

SOURCES = {
    "mutag": dict(source="graphs:$SSLJAX_DATA/graphs_mutag"),
    "proteins": dict(
        source="graphs:$SSLJAX_DATA/graphs_proteins", max_nodes=96, where=dict(num_nodes=list(range(1, 97)))
    ),
    "files": dict(source=None),
}
METHODS = {
    "graph_cl": dict(temperature=0.2),
    "simclr": dict(temperature=0.2),
    "barlow_twins": {},
    "byol": dict(predictor=dict(hidden=192)),
    "vicreg": {},
}


def get_config(arg=""):
    a = arguments(arg, data=tuple(SOURCES), method=tuple(METHODS))
    probe = dict(fit_split="train[:50%]", test_split="train[50%:]", optional=True)
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="gin", width=32, depth=3),
            objective=dict(
                name=a["method"],
                **METHODS[a["method"]],
                projector=dict(hidden=96, output=96),
                augment=dict(name="graph_views", ratio=0.2),
            ),
            data=dict(**SOURCES[a["data"]], split="train[:50%]"),
            optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=dict(knn=probe, linear=dict(probe, l2=(1e-4, 1e-3, 1e-2, 1e-1, 1.0))),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=64,
            steps=300,
        )
    )
