"""What finished runs leave: results and tables, a training that can go on, published results."""

import contextlib
import io
from pathlib import Path

import fabricated
import numpy as np
from tiny_recipe import TINY, write

from fuzzing.own_seeds import own_model, published_tree
from fuzzing.seeds import Seed, command
from probe.checkpoints.native import write_native

_SETTINGS = "--set optimiser.steps=3 --set optimiser.batch=4"
_FAMILIES = """layer,positions,family,parameters,r2,site
0,9-50,ridge,lambda 0.1,0.75,output
1,9-50,gradient,steps 2,0.5,output
"""
_RECIPE = f"{{case}}/tiny.toml {_SETTINGS}"


def _run(folder: Path) -> None:
    """The report of a small model that lies beside it."""
    from probe.cli import main

    write_native(own_model("linear"), "linear", folder / "model")
    options = "--only behaviour --sequences 256 --workers 1 --out"
    with contextlib.redirect_stdout(io.StringIO()):
        main(["analyze", str(folder / "model"), *options.split(), str(folder / "run")])
    (folder / "run/tables/families.csv").write_text(_FAMILIES)
    kept = ("results.json", "run.json", "tables/behaviour.csv", "tables/families.csv")
    for path in sorted((folder / "run").rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(folder / "run").as_posix() not in kept:
            path.unlink()


def _recipe(folder: Path) -> None:
    write(folder, TINY)


def _training(folder: Path) -> None:
    """Interrupted after one step of three."""
    from probe.models.recipes import read_recipe
    from probe.models.recipes.changes import changed
    from probe.models.training import Trainer
    from probe.models.training_folder import TrainingFolder

    settings = [word for word in _SETTINGS.split() if "=" in word]
    recipe = changed(read_recipe(write(folder, TINY)), settings)
    training, trainer = (
        TrainingFolder.claimed(folder / "run", recipe, resume=False),
        Trainer(recipe),
    )
    training.write_checkpoint(trainer.model, 0)
    trainer.step()
    training.write_state(trainer.state())


def _published(folder: Path) -> None:
    """A model and a file of losses where published ones would lie; their numbers are drawn."""
    draw, place = np.random.default_rng(0), folder / "linear_seq_fully"
    place.mkdir()
    fabricated.write_tree(place / "model_lin_1l_constr.pkl", published_tree(scale=1e-3))
    content = {"losses": [np.abs(draw.normal(size=(5, 50))) for _ in range(4)]}
    (place / "seqperf_results_constr_multi.pkl").write_bytes(fabricated.python_pickle(content))


_COMPARED = "--no-verdicts --sequences 256 --workers 1 --out {case}/out"
SEEDS: dict[str, Seed] = {
    "run": Seed(
        _run,
        (
            command("doctor {case}/run"),
            command(f"compare {{case}}/run/results.json {_COMPARED}", share=5),
            command(f"compare {{case}}/run {{case}}/model {_COMPARED}", share=2),
            command(
                "transplant {case}/model --results {case}/run/results.json --sequences 256 "
                "--workers 1 --out {case}/out",
                share=2,
            ),
        ),
    ),
    "recipe": Seed(_recipe, (command(f"train {_RECIPE} --out {{case}}/out"),)),
    "training": Seed(_training, (command(f"train {_RECIPE} --resume --out {{case}}/run"),)),
    "published": Seed(_published, (command("reproduce {case} --out {case}/out"),)),
}
