"""The library from Python: arrays, classes and functions of the caller; results as objects."""

import dataclasses
import subprocess
import sys
import textwrap
import threading

import jax
import numpy as np
import pytest
import tiny_runs

import ssljax
from ssljax.base.errors import UserError
from ssljax.config import build
from ssljax.models.vit import ViTConfig
from ssljax.objectives.contrastive.simclr import SimCLR
from ssljax.runs import assemble

CONFIG = {
    **tiny_runs.LM,
    "model": {"name": ViTConfig, "preset": None, "width": 16, "depth": 1, "heads": 2, "patch_size": 4},
    "objective": {"name": SimCLR, "projector": {"hidden": 16, "output": 8}},
    "data": {"split": "train"},
    "batch_size": 16,
    "evals": {"knn": {"fit_split": "train", "test_split": "test", "k": 3}},
}


@dataclasses.dataclass(frozen=True)
class OwnObjective(SimCLR):
    """An objective of the user."""


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    make = lambda n: {"image": rng.integers(0, 256, (n, 8, 8, 3), np.uint8), "label": np.arange(n) % 3}  # noqa: E731
    return {"train": make(48), "test": make(24)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("python") / "run", []
    done = ssljax.train(CONFIG, folder, arrays=arrays(), callbacks=[(1, lambda step, state: seen.append(step))])
    return done, seen


def test_training_returns_the_run(trained):
    done, seen = trained
    assert seen == [1, 2] and int(done.state.step) == 2
    assert {line["of"] for line in done.evaluations} >= {"trained", "untrained"}
    assert [line["step"] for line in done.metrics] == [2]
    leaves = jax.tree.leaves(done.model_params)
    assert leaves and all(np.isfinite(leaf).all() for leaf in leaves)
    assert repr(done) == f"Finished(step=2, workdir={str(done.workdir)!r})"


def test_its_workdir_is_read_by_the_other_functions(trained):
    done, _ = trained
    loaded = ssljax.load(done.workdir)
    jax.tree.map(np.testing.assert_array_equal, loaded.model_params, done.model_params)
    assert ssljax.embed(done.workdir, split="test").features.shape == (24, 16)
    again = [line for line in ssljax.evaluate(done.workdir) if line["of"] == "trained"]
    assert again[0]["metrics"] == next(line["metrics"] for line in done.evaluations if line["of"] == "trained")


def test_the_same_arrays_continue_and_others_are_refused(trained):
    done, _ = trained
    assert int(ssljax.train(CONFIG, done.workdir, arrays=arrays()).state.step) == 2
    with pytest.raises(UserError, match=r"arrays: .*arrays\.npz' holds other arrays"):
        ssljax.train(CONFIG, done.workdir, arrays=arrays(1))
    with pytest.raises(UserError, match="arrays: must be"):
        ssljax.train(CONFIG, done.workdir, arrays={"image": arrays()["test"]["image"], "train": {}})


def test_a_start_that_failed_leaves_the_folder_free(tmp_path):
    """Before, other arrays were refused in a folder without a run."""
    with pytest.raises(UserError, match=r"optimizer\.name"):
        ssljax.train({**CONFIG, "optimizer": {"name": "adamv"}}, tmp_path, arrays=arrays())
    config = {**CONFIG, "evals": {}}
    assert int(ssljax.train(config, tmp_path, arrays=arrays(1)).state.step) == 2


def test_runs_with_a_class_of_the_user_are_traced_each_time():
    """Before, the second run used the program of the first, though what the class reads may have changed."""
    more = {"data": {"source": "builtin:digits"}, "evals": {}}
    config = build({**CONFIG, **more})
    assert assemble(config).program is assemble(dataclasses.replace(config, seed=1)).program
    own = build({**CONFIG, "objective": {"name": OwnObjective, "projector": {"hidden": 16, "output": 8}}, **more})
    assert assemble(own).program is not assemble(own).program


def test_a_callback_may_change_the_state(tmp_path):
    def zeros(step, state):
        return dataclasses.replace(state, params=jax.tree.map(lambda x: 0 * x, state.params))

    config = {**CONFIG, "evals": {}, "data": {}, "objective": {**CONFIG["objective"]}}
    one_split = arrays()["train"]
    done = ssljax.train(config, tmp_path, arrays=one_split, callbacks=[(2, zeros)])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(done.params))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(ssljax.load(tmp_path).params)), "saved after callbacks"


def test_in_a_thread(tmp_path):
    found = []
    run = lambda: found.append(ssljax.train({**CONFIG, "evals": {}}, tmp_path, arrays=arrays()))  # noqa: E731
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert int(found[0].state.step) == 2


def test_a_class_inside_a_function_is_one_line(tmp_path):
    class Inner(SimCLR):
        pass

    with pytest.raises(UserError, match=r"objective\.name: got the class .*Inner, must be one at the top of a module"):
        ssljax.train({**CONFIG, "objective": {"name": Inner}}, tmp_path, arrays=arrays())


def test_a_program_defines_its_own_objective(tmp_path):
    """As in a notebook: the class is in `__main__`, and `ssljax` is the only import."""
    program = f"""
        import dataclasses
        import numpy as np
        import ssljax
        from ssljax.base.schema import setting

        SimCLR = ssljax.objectives.REGISTRY.get("simclr")

        @dataclasses.dataclass(frozen=True)
        class Mine(SimCLR):
            temperature: float = setting(0.7, gt=0)

        images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
        model = dict(name="vit", preset=None, width=16, depth=1, heads=2, patch_size=4)
        config = dict(model=model, objective=dict(name=Mine), optimizer=dict(name="adamw"), steps=1, batch_size=16)
        for seed in (0, 1):
            folder = {str(tmp_path)!r} + f"/{{seed}}"
            done = ssljax.train(dict(config, seed=seed), folder, arrays=dict(image=images))
            print(type(done.objective).__name__, done.objective.temperature, int(done.state.step))
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [line for line in run.stdout.splitlines() if line.startswith("Mine")] == ["Mine 0.7 1"] * 2
    assert "absl" not in run.stderr and "Traceback" not in run.stderr


def test_names_are_imported_on_first_use():
    code = "import sys, ssljax; print('jax' in sys.modules, sorted(set(dir(ssljax)) & {'train', 'embed', 'compare'}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False ['compare', 'embed', 'train']"
    for name in ssljax.__all__:
        assert getattr(ssljax, name) is not None
    assert callable(ssljax.train) and ssljax.train.step.make_update
    with pytest.raises(AttributeError):
        ssljax.nothing  # noqa: B018
