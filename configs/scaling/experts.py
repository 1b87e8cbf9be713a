"""Loss of a decoder against the number of experts, at equal FLOPs per token (Fedus et al. 2022, Clark et al. 2022).

Each token goes to one expert. Beside them stand the dense model of equal FLOPs and one with as many parameters as eight
experts have, whose tokens cost five times as much.

    ssljax sweep --config configs/scaling/experts.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/experts.py --workdir runs/scaling
    python benchmarks/studies.py experts --store runs/scaling
"""

import isoflop
import ml_collections

WIDTH, COUNTS = 64, (2, 4, 8, 16)


def get_config(arg=""):
    values = isoflop.get_config().to_dict()
    experts = (None, *(dict(count=count, top_k=1, normalize=False) for count in COUNTS), None)
    mlp = (*[4 * WIDTH] * (1 + len(COUNTS)), 8 * 4 * WIDTH)
    values["model"] = dict(name="gpt", preset=None, width=WIDTH, depth=3, heads=4)
    values["batch_size"] = 16
    values["steps"] = "1M tokens"
    values["study"] = dict(zip=(("model.experts", experts), ("model.mlp_dim", mlp)), seeds=2)
    return ml_collections.ConfigDict(values)
