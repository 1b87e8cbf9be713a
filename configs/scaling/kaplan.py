"""Why Kaplan et al. (2020) and Hoffmann et al. (2022) disagree: warm-up, learning rate, and what is counted.

Three budgets by five sizes, as in `configs/scaling/isoflop.py`, once for each warm-up and learning rate. Kaplan et al.
had one warm-up for all runs. A warm-up of 400 steps is most of a short run of a large model, so it favours small models
at small budgets; and no one rate suits all sizes (Porian et al. 2024). Whether embeddings and the last layer count is a
matter of the columns of the fit.

    ssljax sweep --config configs/scaling/kaplan.py --workdir runs/scaling --dry-run
    ssljax sweep --config configs/scaling/kaplan.py --workdir runs/scaling
    python benchmarks/studies.py kaplan --store runs/scaling
"""

import isoflop
import ml_collections


def get_config(arg=""):
    values = isoflop.get_config().to_dict()
    values["study"] = dict(
        grid=(("schedule.warmup", ("5%", 400)), ("optimizer.learning_rate", (1.5e-3, 3e-3, 6e-3))),
        generator=dict(
            values["study"]["generator"],
            budgets=(2e11, 4e11, 8e11),
            depths=(1, 2, 3, 4, 5),
            learning_rate=None,
        ),
    )
    return ml_collections.ConfigDict(values)
