"""A recipe of twenty steps, for tests."""

from pathlib import Path

TINY = """
task = "linear-constructed"
seed = 3
[model]
d_in = 40
d_model = 40
d_out = 10
projected = false
[[model.blocks]]
attention = { kind = "linear", heads = 1, d_head = 10 }
clip = 4.0
[optimiser]
steps = 20
batch = 16
peak_rate = 1e-2
floor_rate = 1e-2
warmup = 2
weight_decay = 0
gradient_clip = 1.0
init_std = 0.1
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text)
    return path
