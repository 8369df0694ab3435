"""A model of 70 billion parameters on 64 GPUs, from shapes, assumed rates and the measured fits."""

from dataclasses import dataclass

from benchmarks.growth.fits import Fit
from probe.streaming import ROWS, StreamSums


@dataclass(frozen=True)
class Large:
    """What is assumed; rates are those of data sheets, and `reached` the share that runs reach.

    Attributes:
        parameters: Of the model.
        layers: Blocks; two sites each.
        width: Of the stream.
        targets: That the probes read.
        tokens: That are read.
        gpus: Among which layers and sites are shared out.
        memory: Bytes of one GPU.
        bandwidth: Bytes per second of its memory.
        bf16: Operations per second of bfloat16 products on one GPU.
        float32: Of products in float32.
        network: Bytes per second between GPUs of two machines.
        disk: Bytes per second to a shared disk.
        reached: Share of the rates of GPUs and network.
    """

    parameters: float = 70e9
    layers: int = 80
    width: int = 8_192
    targets: int = 30
    tokens: int = 10_000_000
    gpus: int = 64
    memory: float = 80e9
    bandwidth: float = 3.35e12
    bf16: float = 989e12
    float32: float = 67e12
    network: float = 50e9
    disk: float = 5e9
    reached: float = 0.5

    @property
    def sites(self) -> int:
        """After each attention and each MLP."""
        return 2 * self.layers

    @property
    def site_bytes(self) -> int:
        """The sums of one site."""
        return StreamSums.size(self.width, self.targets)


LARGE = Large()


@dataclass(frozen=True)
class Cost:
    """Seconds of one part, and how they come about."""

    part: str
    seconds: float
    how: str


def costs(large: Large, eigen: Fit) -> list[Cost]:
    """What a run takes, part by part, on all GPUs together.

    Args:
        large: The model and the machines.
        eigen: Seconds of an eigendecomposition by width, on one core of the measured machine.
    """
    share = large.reached * large.gpus
    half = large.width * (large.width + 1)  # operations of half a symmetric product, per token
    adds = large.tokens / ROWS * half / 2 * (8 + 8 + 4)  # read and write float64, read float32
    solves = -(-large.sites // large.gpus)
    held = large.sites * large.site_bytes
    return [
        Cost(
            "forward passes",
            2 * large.parameters * large.tokens / large.bf16 / share,
            "2 operations per parameter and token, bfloat16",
        ),
        Cost(
            "products of the moments",
            large.sites * half * large.tokens / large.float32 / share,
            "d (d + 1) operations per token and site, float32",
        ),
        Cost(
            "adding them up in float64",
            large.sites * adds / large.bandwidth / share,
            f"20 bytes per sum of half a site and {ROWS:,} tokens, memory of the GPU",
        ),
        Cost(
            "merging over the network",
            held / large.gpus / large.network / large.reached,
            "every GPU sends its sites once",
        ),
        Cost("writing accumulators", held / large.disk, "one shared disk"),
        Cost(
            "eigendecompositions",
            solves * eigen(large.width),
            f"{solves} per GPU's host, one core, by the fit above; float64",
        ),
    ]


def first_to_break(found: list[Cost]) -> Cost:
    """What takes longest beside the model itself."""
    return max(found[1:], key=lambda cost: cost.seconds)
