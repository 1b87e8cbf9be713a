"""ELECTRA, its three other forms and masked language modelling, with as many FLOPs (Clark et al. 2020, section 3.3).

The text is news; the probe tells topics. The generator has half of the width. In the paper the order is ELECTRA, the
copy gate (`all_tokens_mlm`), replaced tokens (`replace_mlm`), the loss on chosen tokens alone (`electra_15`), BERT.

    ssljax sweep --config configs/ablations/electra.py --workdir runs/ablations --dry-run
    ssljax sweep --config configs/ablations/electra.py --workdir runs/ablations
    python benchmarks/ablations.py electra --store runs/ablations
"""

import _small

# Form -> steps of equal FLOPs in all, as `--dry-run` counts them.
STEPS = {"mlm": 1600, "electra": 1203, "electra_15": 1203, "replace_mlm": 1010, "all_tokens_mlm": 530}


def get_config(arg=""):
    forms = [dict(name="mlm"), *(dict(name="electra", form=form, generator=0.5) for form in STEPS if form != "mlm")]
    axes = dict(zip=(("objective", tuple(forms)), ("steps", tuple(STEPS.values()))), seeds=2)
    evals = dict(linear=_small.probe())
    model = dict(_small.BERT, extras=("replaced",))
    return _small.study(model, dict(name="mlm"), _small.NEWS, 1000, axes, evals, batch_size=64)
