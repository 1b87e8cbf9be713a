"""Generators: each rule from its definition, and each kind of model that has a width, a depth and heads."""

import pytest
import tiny_runs

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.config import build
from ssljax.models import REGISTRY
from ssljax.scaling.cost import Costs
from ssljax.scaling.generators import dimensions
from ssljax.scaling.study import StudyConfig, make_study

CONFIG = {
    **tiny_runs.LM,
    "model": {"name": "gpt", "preset": None, "width": 32, "depth": 2, "heads": 4},
    "data": {"source": "builtin:python-docs", "seq_len": 16, "tokenizer": {"name": "bytes"}},
    "schedule": {"name": "wsd", "warmup": 2, "decay": "20%"},
}
COSTS = Costs()


def study(generator, **changes):
    group = schema.build(StudyConfig, {"generator": generator}, "study")
    return make_study({**CONFIG, **changes}, group, "study", COSTS).runs


def test_one_dial_gives_a_whole_model():
    config = build(CONFIG).model
    assert dimensions(config, 1) == {"depth": 1, "width": 16, "heads": 2}
    assert dimensions(config, 6) == {"depth": 6, "width": 96, "heads": 12}
    assert dimensions(config, 3, aspect=64, head_dim=64) == {"depth": 3, "width": 192, "heads": 3}
    assert dimensions(config, 1, aspect=1) == {"depth": 1, "width": 8, "heads": 1}, "one head at least"
    keys = {"name": "llama", "preset": None, "width": 64, "depth": 2, "heads": 8, "kv_heads": 2, "mlp_dim": 176}
    llama = build({**CONFIG, "model": keys}).model
    assert dimensions(llama, 4) == {"depth": 4, "width": 128, "heads": 16, "kv_heads": 4, "mlp_dim": 352}
    assert dimensions(llama, 3)["kv_heads"] == 3 and dimensions(llama, 1)["kv_heads"] == 1


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_sizes_of_every_family_are_sound_configs(name):
    """Each family with a width, a depth and heads at its top gives models of four depths."""
    cls = REGISTRY.get(name)
    base = schema.build_named(REGISTRY, {"name": name}, "model")
    if any(getattr(base, key, None) is None for key in ("width", "depth", "heads")):
        pytest.skip("two towers, or no transformer")
    for depth in (2, 4, 8):
        got = schema.build_named(REGISTRY, {"name": name, **dimensions(base, depth)}, "model")
        assert isinstance(got, cls) and got.depth == depth
        assert abs(got.width / depth - base.width / base.depth) <= (base.width / base.heads) / 2 / depth + 1e-9


def test_budgets_are_spent_to_half_a_step():
    runs = study({"name": "isoflop", "budgets": [1e9, 1e10], "depths": [1, 2]})
    assert [(run.changes["model.depth"], run.name) for run in runs] == [
        (1, "budget=1e9,depth=1"),
        (2, "budget=1e9,depth=2"),
        (1, "budget=1e10,depth=1"),
        (2, "budget=1e10,depth=2"),
    ]
    for run, budget in zip(runs, (1e9, 1e9, 1e10, 1e10)):
        cost = COSTS(run.config)
        assert abs(cost.flops - budget) <= cost.flops_per_step / 2
    with pytest.raises(UserError, match=r"study.generator.budgets: 1e\+07 FLOPs pay \d steps at depth 2"):
        study({"name": "isoflop", "budgets": [1e7], "depths": [2]})


def test_rules_are_power_laws_that_hold_at_the_config():
    runs = study({"name": "ladder", "depths": [1, 2, 4], "learning_rate": {"of": "width", "power": -1.0}})
    rates = [run.config.optimizer.learning_rate for run in runs]
    base = build(CONFIG).optimizer.learning_rate
    assert rates == pytest.approx([2 * base, base, base / 2], rel=1e-3)
    runs = study(
        {
            "name": "tokens",
            "depths": [2],
            "lengths": ["1024 tokens", "8192 tokens"],
            "batch_size": {"of": "tokens", "power": 1 / 3, "at": 1024},
            "batch_multiple": 8,
        }
    )
    assert [run.config.batch_size for run in runs] == [8, 16], "8 times the tokens, twice the batch"
    assert [COSTS(run.config).tokens for run in runs] == [1024, 8192]


def test_tokens_per_parameter():
    (run,) = study({"name": "tokens", "per_parameter": [20], "depths": [2]})
    cost = COSTS(run.config)
    assert abs(cost.tokens - 20 * cost.parameters) <= 8 * 16 / 2


def test_a_trunk_is_trained_once():
    runs = study({"name": "cooldowns", "lengths": [20, 10, 40]})
    by_name = {run.name: run for run in runs}
    trunks = [run for run in runs if "trunk" in run.name]
    assert [run.stop for run in trunks] == [8, 16, 32]
    assert [run.config.steps for run in trunks] == [9, 17, 33], "the last step is not trained"
    assert [run.parent for run in trunks] == [None, trunks[0].hash, trunks[1].hash]
    for steps, trunk in zip((10, 20, 40), trunks):
        assert by_name[f"steps={steps}"].parent == trunk.hash
    (plain,) = make_study({**CONFIG, "steps": 20}, StudyConfig(), "study", COSTS).runs
    assert by_name["steps=20"].hash == plain.hash, "the run is the one that its schedule gives from scratch"
    assert all(run.config.schedule.warmup == 2 for run in runs)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"name": "cosine"}, "need schedule.name=wsd"),
        ({"name": "wsd", "warmup": "5%"}, "schedule.warmup: got '5%', must be a number of steps"),
    ],
)
def test_cooldowns_need_a_common_beginning(schedule, said):
    with pytest.raises(UserError, match=said):
        study({"name": "cooldowns", "lengths": [20]}, schedule=schedule)


@pytest.mark.parametrize(
    ("generator", "said"),
    [
        ({"name": "ladder"}, r"study.generator.depths: got an empty list"),
        ({"name": "isoflop", "depths": [1]}, r"study.generator.budgets: got an empty list"),
        ({"name": "isoflops"}, r"study.generator.name: unknown generator 'isoflops'; did you mean 'isoflop'"),
        ({"name": "ladder", "depths": [1], "groups": ["objective"]}, r"objective .* has no width, depth and heads"),
    ],
)
def test_mistakes_are_one_line(generator, said):
    with pytest.raises(UserError, match=said):
        study(generator)


def test_shares_of_a_mixture():
    sources = ("builtin:python-docs", "builtin:python-code", "builtin:markov")
    mixture = [{"source": source, "weight": weight} for source, weight in zip(sources, (1.0, 3.0, 2.0))]
    data = {"mixture": mixture, "seq_len": 16, "tokenizer": {"name": "bytes"}}
    runs = study({"name": "shares", "shares": [0.2, 0.5], "source": 2}, data=data)
    weights = [[part.weight for part in run.config.data.mixture] for run in runs]
    assert weights == [pytest.approx([0.2, 0.6, 0.2]), pytest.approx([0.125, 0.375, 0.5])]
    assert [run.labels for run in runs] == [{"share": 0.2}, {"share": 0.5}]
    assert [run.name for run in runs] == ["share=0.2", "share=0.5"]
    with pytest.raises(UserError, match=r"got 3, must be the number of a source of data.mixture, which has 3"):
        study({"name": "shares", "shares": [0.2], "source": 3}, data=data)
    with pytest.raises(UserError, match="shares: got 1, must be < 1"):
        study({"name": "shares", "shares": [1.0]}, data=data)
