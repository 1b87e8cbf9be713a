"""Language models that were trained here, opened by `transformers`: the same perplexity on held-out text.

    python benchmarks/exported.py [--steps 400]            # trains four, about a minute each on two CPU cores
    python benchmarks/exported.py --run runs/causal_lm     # one that is trained already

GPT-2 and BERT (learned positions) and the models of the shipped configs (rotary positions, so GPT-NeoX and ESM there).
Perplexity of the evaluation of the config, and the same number computed by the exported model on the same tokens; that
of BERT is a pseudo-perplexity. Needs the extra `parity`.
"""

import argparse
import pathlib
import tempfile

import numpy as np
import rich.console
import rich.table
import torch
import transformers

from ssljax import run
from ssljax.config import load
from ssljax.interop.export import export

LEARNED = [("model.positions", "learned"), ("model.rope_theta", "none")]
RUNS = {
    "GPT-2": ("configs/text/causal_lm.py", LEARNED),
    "BERT": ("configs/text/mlm.py", [*LEARNED, ("model.norm_position", "post"), ("optimizer.learning_rate", "1e-3")]),
    "causal_lm.py": ("configs/text/causal_lm.py", []),
    "mlm.py": ("configs/text/mlm.py", []),
}


def trained(config, overrides, steps, folder):
    """A run in `folder`."""
    built, _ = load(config, [*overrides, ("steps", str(steps)), ("log.progress", "false")])
    run.train(built, folder)


def ours(folder):
    """(perplexity of the evaluation, the tokens that it scored [N, T], ids of the mask (or None) and of specials)."""
    with run.restored(folder) as (program, state):
        evaluator = run.make_evaluator(program)
        name, evaluation = next((n, e) for n, e in evaluator.evaluations.items() if n.endswith("perplexity"))
        metrics = evaluator.run(run.evaluated(state), state.extra, [name])[name]
        _, arrays = evaluator.split_arrays(evaluation, evaluation.test_split)
        return (
            metrics[f"{evaluation.prefix}perplexity"],
            arrays["tokens"],
            (
                getattr(program.objective, "mask_id", None),
                sorted(program.dataset.spec.special_ids.values()),
            ),
        )


@torch.no_grad()
def theirs(folder, tokens, mask_id, specials):
    """The same by the exported model."""
    kind = transformers.AutoModelForCausalLM if mask_id is None else transformers.AutoModelForMaskedLM
    model = kind.from_pretrained(folder).eval()
    ids, total, count = torch.tensor(np.asarray(tokens, np.int64)), 0.0, 0
    for row in ids:
        if mask_id is None:
            scores = model(row[None]).logits[0, :-1].log_softmax(-1)
            total += scores.gather(1, row[1:, None]).sum().item()
            count += len(row) - 1
            continue
        hidden = row.repeat(len(row), 1)
        hidden.fill_diagonal_(mask_id)
        scores = model(hidden).logits.log_softmax(-1)
        places = torch.arange(len(row))
        counted = ~torch.isin(row, torch.tensor(specials))
        total += scores[places, places, row][counted].sum().item()
        count += int(counted.sum())
    return float(np.exp(-total / count))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--run", help="a workdir")
    known = parser.parse_args()
    table = rich.table.Table("model", "there", "perplexity here", "perplexity there", "relative difference")
    with tempfile.TemporaryDirectory() as place:
        for name, (config, overrides) in ({known.run: ("", [])} if known.run else RUNS).items():
            folder, out = pathlib.Path(known.run or f"{place}/{name}"), pathlib.Path(place) / f"{len(table.rows)} out"
            if not known.run:
                trained(config, overrides, known.steps, folder)
            model = export(folder, out)
            mine, tokens, ids = ours(folder)
            other = theirs(out, tokens, *ids)
            print(f"{name}: {mine:.5f} here, {other:.5f} there", flush=True)
            table.add_row(
                name, model.hf_config["model_type"], f"{mine:.5f}", f"{other:.5f}", f"{abs(mine / other - 1):.0e}"
            )
    rich.console.Console(width=100).print(table)


if __name__ == "__main__":
    main()
