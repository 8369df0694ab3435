"""Models of ours: native folders, single files of tensors, pickles, run folders, an adapter."""

from functools import partial
from pathlib import Path
from typing import Any

import fabricated
import numpy as np
import torch
from garg_writer import write_run
from safetensors.torch import save_file

from fuzzing.seeds import Seed, command
from probe.checkpoints.native import write_native
from probe.models.attention import KINDS, SoftmaxAttention
from probe.models.config import BlockConfig, ModelConfig
from probe.models.norm import LayerNorm
from probe.models.transformer import SequenceTransformer
from probe.sampling import generator_for

PRESET = "--preset von-oswald-2023/linear-1l"
_ADAPTER = """
from pathlib import Path
from typing import Any
import torch
from safetensors.torch import load_file
from probe.models.reading import BlockReading, Reading, Site
from probe.models.wrapped import WrappedSequenceModel

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.mlp = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        x = x + self.mix(x)
        return x + self.mlp(x)

def build(path: Path):
    net = torch.nn.Sequential(Block(), torch.nn.Linear(4, 4))
    net.load_state_dict(load_file(path))
    block = BlockReading(Site("0", "input"), Site("0.mix"), Site("0.mlp"))
    return WrappedSequenceModel(net, Reading((block,), Site("0"), ("1",)), d_in=4, longest=16)
"""


def own_model(kind: str, seed: int = 0) -> SequenceTransformer:
    """Two small blocks for the task `linear`, with every option switched on."""
    attention = KINDS[kind](2, 4)
    blocks = (
        BlockConfig(attention, positions=6, d_mlp=5, clip=9.0),
        BlockConfig(attention, unit=("q", "k")),
    )
    model = SequenceTransformer(ModelConfig(10, 6, 10, blocks, projected=True))
    model.initialise(0.3, generator_for(seed))
    return model.eval().requires_grad_(False)


def _garg_model() -> SequenceTransformer:
    block = BlockConfig(SoftmaxAttention(2, 4), d_mlp=32)
    config = ModelConfig(
        20, 8, 1, (block, block), True, n_ctx=82, norm=LayerNorm(1e-5), biased=True
    )
    model = SequenceTransformer(config)
    model.initialise(0.3, generator_for(0))
    return model.eval().requires_grad_(False)


def _native(kind: str, folder: Path) -> None:
    write_native(own_model(kind), "linear", folder / "model")


def _torch(nested: bool, folder: Path) -> None:
    model = own_model("softmax")
    write_native(model, "linear", folder)
    (folder / "model.safetensors").unlink()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "step": 3} if nested else state, folder / "weights.pt")


def _tensors(folder: Path) -> None:
    write_native(own_model("linear"), "linear", folder)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def published_tree(scale: float = 0.1) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    place = "tf_block/blocklist_0/self_attn"
    leaves = {f"{place}/{role}_proj/kernel": draw.normal(size=(40, 40)) * scale for role in "qkvo"}
    return fabricated.nested({name: value.astype(np.float32) for name, value in leaves.items()})


def _pickle(jax: bool, folder: Path) -> None:
    fabricated.write_tree(folder / "model.pkl", published_tree(), jax)


def _python_pickle(folder: Path) -> None:
    tree = published_tree()
    content = {"trees": [tree, tree | {}], "losses": [1.0, 2.0]}
    (folder / "model.pkl").write_bytes(fabricated.python_pickle(content, 5))


def _torch_of_a_preset(folder: Path) -> None:
    state = {f"module.{name}": value for name, value in _preset_state().items()}
    torch.save(state, folder / "weights.bin")


def _preset_state() -> dict[str, torch.Tensor]:
    from probe.presets.base import find_preset

    model = SequenceTransformer(find_preset(PRESET.split()[1]).config)
    model.initialise(0.1, generator_for(0))
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _garg(folder: Path) -> None:
    run = write_run(_garg_model(), folder / "run")
    state = torch.load(run / "state.pt", weights_only=True)["model_state_dict"]
    torch.save(state, run / "model_50.pt")


def _adapted(folder: Path) -> None:
    (folder / "adapter.py").write_text(_ADAPTER)
    generator = generator_for(0)
    tensors = {}
    for layer in ("0.mix", "0.mlp", "1"):
        tensors[f"{layer}.weight"] = torch.randn(4, 4, generator=generator)
        tensors[f"{layer}.bias"] = torch.randn(4, generator=generator)
    save_file(tensors, folder / "weights.safetensors")


def _series(folder: Path) -> None:
    for step in range(3):
        model = own_model("linear", step)
        write_native(model, "linear", folder / "run" / "checkpoints" / f"step-{step:06d}")


_ONE = "{case}/model"
_BEHAVIOUR = "--only behaviour --sequences 256 --workers 1 --out {case}/out"
_CHEAP = tuple(
    command(f"{name} {_ONE}{rest}", share=30)
    for name, rest in (("describe", ""), ("doctor", ""), ("convert", " {case}/out"))
)
_ANALYZE = command(f"analyze {_ONE} {_BEHAVIOUR}", share=1)


def _of_file(file: str, options: str = "") -> tuple:
    return (
        command(f"describe {{case}}/{file} {options}"),
        command(f"doctor {{case}}/{file} {options}"),
        command(f"convert {{case}}/{file} {{case}}/out {options}"),
    )


SEEDS = {
    **{f"native-{kind}": Seed(partial(_native, kind), (*_CHEAP, _ANALYZE)) for kind in KINDS},
    "torch": Seed(partial(_torch, False), _of_file("weights.pt")),
    "torch-nested": Seed(partial(_torch, True), _of_file("weights.pt")),
    "torch-preset": Seed(_torch_of_a_preset, _of_file("weights.bin", PRESET)),
    "safetensors": Seed(_tensors, _of_file("weights.safetensors")),
    "flax-pickle": Seed(partial(_pickle, False), _of_file("model.pkl", PRESET)),
    "flax-pickle-jax": Seed(partial(_pickle, True), _of_file("model.pkl", PRESET)),
    "flax-pickle-list": Seed(_python_pickle, _of_file("model.pkl#trees.0", PRESET)),
    "garg": Seed(_garg, (*_of_file("run"), command("doctor {case}/run#50"))),
    "adapter": Seed(
        _adapted, (command("doctor {case}/weights.safetensors --adapter {case}/adapter.py:build"),)
    ),
    "series": Seed(
        _series,
        (
            command("track {case}/run --sequences 256 --workers 1 --out {case}/out", share=1),
            command("doctor {case}/run/checkpoints/step-000001", share=30),
        ),
    ),
}
