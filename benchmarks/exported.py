"""Held-out perplexity of language models trained with ssljax, computed by ssljax and by `transformers` after export.

    python benchmarks/exported.py [--steps 400]            # trains four, about a minute each on two CPU cores
    python benchmarks/exported.py --run runs/causal_lm     # evaluates a finished run

The models are GPT-2 and BERT with learned positions, and the models of the two shipped configs, whose rotary positions
make them GPT-NeoX and ESM. ssljax and `transformers` score the same tokens; for masked models the number is the
pseudo-perplexity. Needs the extra `parity`.
"""

import argparse
import pathlib
import tempfile

import numpy as np
import rich.console
import rich.table
import torch
import transformers

from ssljax import run, runs
from ssljax.config import load
from ssljax.runs.evaluation import evaluation_params, make_evaluator
from ssljax.runs.export import export

LEARNED = [("model.positions", "learned"), ("model.rope_theta", "none")]
RUNS = {
    "GPT-2": ("configs/text/causal_lm.py", LEARNED),
    "BERT": ("configs/text/mlm.py", [*LEARNED, ("model.norm_position", "post"), ("optimizer.learning_rate", "1e-3")]),
    "causal_lm.py": ("configs/text/causal_lm.py", []),
    "mlm.py": ("configs/text/mlm.py", []),
}


def trained(config, overrides, steps, folder):
    """Trains a run in `folder`."""
    built, _ = load(config, [*overrides, ("steps", str(steps)), ("log.progress", "false")])
    run.train(built, folder)


def perplexity_of_run(folder):
    """Returns (perplexity, scored tokens [N, T], (id of the mask or None, ids of special tokens))."""
    with runs.open_run(runs.Workdir(folder)) as (assembly, state):
        evaluator = make_evaluator(assembly)
        name, evaluation = next((n, e) for n, e in evaluator.evaluations.items() if n.endswith("perplexity"))
        metrics = evaluator.run(evaluation_params(state), state.extra, [name])[name]
        _, arrays = evaluator.splits.open(evaluation, evaluation.test_split)
        return (
            metrics[f"{evaluation.prefix}perplexity"],
            arrays["tokens"],
            (
                getattr(assembly.program.objective, "mask_id", None),
                sorted(assembly.spec.special_ids.values()),
            ),
        )


@torch.no_grad()
def perplexity_of_export(folder, tokens, mask_id, specials):
    """Perplexity of the exported model, computed by `transformers` on the same tokens."""
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
        positions = torch.arange(len(row))
        counted = ~torch.isin(row, torch.tensor(specials))
        total += scores[positions, positions, row][counted].sum().item()
        count += int(counted.sum())
    return float(np.exp(-total / count))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--run", help="workdir of a finished run")
    arguments = parser.parse_args()
    table = rich.table.Table("run", "exported as", "ssljax", "transformers", "relative difference")
    with tempfile.TemporaryDirectory() as temporary:
        for name, (config, overrides) in ({arguments.run: ("", [])} if arguments.run else RUNS).items():
            folder, out = (
                pathlib.Path(arguments.run or f"{temporary}/{name}"),
                pathlib.Path(temporary) / f"{len(table.rows)} out",
            )
            if not arguments.run:
                trained(config, overrides, arguments.steps, folder)
            model, _ = export(folder, out)
            in_ssljax, tokens, ids = perplexity_of_run(folder)
            in_transformers = perplexity_of_export(out, tokens, *ids)
            print(f"{name}: {in_ssljax:.5f} in ssljax, {in_transformers:.5f} in transformers", flush=True)
            difference = abs(in_ssljax / in_transformers - 1)
            values = (f"{in_ssljax:.5f}", f"{in_transformers:.5f}", f"{difference:.0e}")
            table.add_row(name, model.hf_config["model_type"], *values)
    rich.console.Console(width=100).print(table)


if __name__ == "__main__":
    main()
