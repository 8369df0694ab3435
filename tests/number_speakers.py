"""Language models that speak numbers and whose algorithm is known, layer by layer."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from probe.models.hooked import LanguageModel, ResidualSum
from probe.problem import InContextProblem, prefix_moments, spectrum
from probe.tasks.few_shot import pairs_problem
from probe.tasks.numbers import BoundPrompts, NumberPrompts

TOP = 100
SHARP = 1.0  # spread of an answer in numbers: its expectation is exact but at the ends
Predictor = Callable[[InContextProblem], torch.Tensor]
PROMPTS = NumberPrompts("numbers-2d", width=2, points=20, top=TOP)


@cache
def number_tokenizer(top: int = TOP) -> Any:
    """Words "x", "y" and the numbers 0 to top, parted by white space; <unk> for all else."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "x", "y", "so", *map(str, range(top + 1))]
    model = models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


class Speaker(HookedRootModule, LanguageModel):
    """Its stream holds the id and what layer after layer predicts; each layer is a predictor.

    `lexicon` holds the value of each token, and NaN for words: permuting it leaves no algorithm.
    """

    def __init__(self, prompts: NumberPrompts, *predictors: Predictor):
        super().__init__()
        self.tokenizer_, self.predictors = number_tokenizer(prompts.top), predictors
        self.lexicon = torch.nn.Parameter(torch.zeros(len(self.tokenizer_)), requires_grad=False)
        self.task: BoundPrompts = prompts.bound_to(self)
        numerals = self.task.numerals
        self.lexicon[list(numerals.answers)] = numerals.values().float()
        sites = ("hook_resid_pre", "hook_attn_out", "hook_resid_post")
        self.blocks = torch.nn.ModuleList()
        for _ in predictors:
            block = torch.nn.Module()
            for site in sites:
                setattr(block, site, HookPoint())
            self.blocks.append(block)
        self.setup()

    def forward(self, tokens):
        return self.resume(torch.stack([tokens.float(), 0.0 * tokens], -1), 0)

    def resume(self, stream, layer):
        for block, predictor in zip(self.blocks[layer:], self.predictors[layer:], strict=True):
            stream = block.hook_resid_pre(stream)
            added = torch.zeros_like(stream)
            said = self.predicted(stream[..., 0].round().long(), predictor)
            added[..., 1] = said - stream[..., 1]
            stream = block.hook_resid_post(stream + block.hook_attn_out(added))
        return self.read_out(stream)

    def predicted(self, ids, predictor):
        """What is said at the asked tokens; 0 elsewhere."""
        tokens = self.task.line_tokens
        values = self.lexicon[ids.clamp(0, len(self.lexicon) - 1)]
        places = [len(tokens.before) + place for place in tokens.places]
        lines = -(-(ids.shape[1] - tokens.asked.start) // len(tokens.stretch))
        padded = torch.nn.functional.pad(values, (0, tokens.length(lines) - ids.shape[1]))
        columns = [padded[:, place :: len(tokens.stretch)][:, :lines] for place in places]
        pairs = torch.stack(columns, -1)
        said = torch.zeros_like(values)
        if lines:
            answer = predictor(pairs_problem(pairs[..., :-1], pairs[..., -1:]))
            said[:, tokens.asked] = answer[..., 0].to(said)
        return said

    def read_out(self, stream):
        """A normal law over the numbers whose expectation is the prediction; words are unlikely."""
        numerals = self.task.numerals
        apart = (stream[..., 1:].double() - numerals.values()) * numerals.half / SHARP
        logits = torch.full((*stream.shape[:-1], self.vocabulary), -60.0)
        logits[..., list(numerals.answers)] = (-0.5 * apart.square()).float()
        return logits

    @property
    def layers(self):
        return len(self.predictors)

    @property
    def d_model(self):
        return 2

    @property
    def vocabulary(self):
        return len(self.lexicon)

    @property
    def longest(self):
        return None

    @property
    def tokenizer(self):
        return self.tokenizer_

    def layer_sites(self):
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(self.layers)]
        return (*names, f"blocks.{self.layers - 1}.hook_resid_post")

    def update_sites(self):
        return tuple(f"blocks.{layer}.hook_attn_out" for layer in range(self.layers))

    def residual_sums(self):
        return tuple(
            ResidualSum(
                (f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_attn_out"),
                f"blocks.{layer}.hook_resid_post",
            )
            for layer in range(self.layers)
        )

    def head_sites(self, layer):
        return None

    def heads(self, layer, cache):
        raise NotImplementedError

    def mix(self, layer, heads):
        return None


def spectral(curve: Callable[[torch.Tensor], torch.Tensor]) -> Predictor:
    """C f(G) q."""

    def predict(problem: InContextProblem) -> torch.Tensor:
        return spectrum(prefix_moments(problem), problem.queries).predict(curve)

    return predict


def ridge(penalty: float = 1e-3) -> Predictor:
    return spectral(lambda mu: 1 / (mu + penalty))


def descent(steps: int, eta: float) -> Predictor:
    return spectral(lambda mu: (1 - (1 - eta * mu) ** steps) / mu.clamp(min=1e-12))


def mean(problem: InContextProblem) -> torch.Tensor:
    seen = torch.arange(problem.values.shape[1]).clamp(min=1)[:, None]
    values = problem.values.double().clone()
    values[:, 0] = 0
    return values.cumsum(1) / seen


def last_answer(problem: InContextProblem) -> torch.Tensor:
    return problem.values


def online(problem: InContextProblem, rate: float = 0.5) -> torch.Tensor:
    """Least mean squares: one step per pair, in order."""
    x, y = problem.keys.double(), problem.values.double()
    weights = torch.zeros(len(x), x.shape[-1], dtype=torch.float64)
    said = []
    for t in range(x.shape[1]):
        wrong = y[:, t, 0] - (weights * x[:, t]).sum(-1)
        weights = weights + rate * wrong[:, None] * x[:, t]
        said.append((weights * problem.queries[:, t].double()).sum(-1))
    return torch.stack(said, 1)[..., None]
