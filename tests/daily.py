"""Cases that are too many for every run of the tests: each day has a share of them, `pytest -m full` the others."""

import datetime
from collections.abc import Iterable
from typing import Any

import pytest

TODAY = datetime.date.today().toordinal()


# Modules of many like tests, or of long ones: each day has every n-th of them, `pytest -m full` the others.
MANY = {
    "evals/test_definitions.py": 5,
    "evals/test_generation.py": 3,
    "evals/test_prompts.py": 4,
    "interop/test_export.py": 5,
    "interop/test_fields.py": 5,
    "interop/test_inputs.py": 5,
    "interop/test_live.py": 5,
    "interop/test_parity.py": 5,
    "layers/test_attention.py": 5,
    "layers/test_block.py": 2,
    "layers/test_experts.py": 3,
    "layers/test_ring.py": 3,
    "losses/test_contrastive.py": 5,
    "losses/test_losses_brute_force.py": 5,
    "losses/test_precision_and_limits.py": 5,
    "models/test_flops.py": 5,
    "models/test_models.py": 5,
    "models/test_presets.py": 5,
    "objectives/test_image_objectives.py": 3,
    "objectives/test_masked_patches.py": 3,
    "objectives/test_router.py": 4,
    "objectives/test_two_view.py": 3,
    "runs/test_damage.py": 3,
    "runs/test_init_from.py": 3,
    "runs/test_mirror.py": 3,
    "runs/test_plans.py": 3,
    "scaling/test_generators.py": 5,
    "scaling/test_laws.py": 5,
    "tests/test_run.py": 2,
    "train/test_leaves.py": 5,
    "train/test_optimizers.py": 5,
    "views/test_augment.py": 2,
    "views/test_image_operations.py": 3,
    "views/test_masks_and_mixing.py": 2,
}


def leave_for_other_days(items: Iterable[pytest.Item]) -> None:
    """Marks most tests of the modules in `MANY` as `full`, other ones each day."""
    counts: dict[str, int] = {}
    for item in items:
        name = "/".join(item.path.parts[-2:])
        if name in MANY:
            counts[name] = counts.get(name, -1) + 1
            if counts[name] % MANY[name] != TODAY % MANY[name]:
                item.add_marker(pytest.mark.full)


def daily(cases: Iterable[Any], every: int) -> list[Any]:
    """Parameters for all cases. Case i belongs to the days whose number is i modulo `every`; on others it is `full`."""

    def marked(case: Any) -> Any:
        return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.full)

    return [case if i % every == TODAY % every else marked(case) for i, case in enumerate(cases)]


def at_most(cases: Iterable[Any], count: int) -> list[Any]:
    """Parameters for all cases, at most `count` of them each day: a longer registry takes more days, not more time."""
    cases = list(cases)
    return daily(cases, max(1, -(-len(cases) // count)))


def on_day(number: int, every: int) -> pytest.MarkDecorator:
    """Mark of a test that belongs to the days whose number is `number` modulo `every`; on others it is `full`."""
    return pytest.mark.skipif(False, reason="of today") if TODAY % every == number else pytest.mark.full
