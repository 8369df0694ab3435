"""What a config.yaml of Garg et al. 2022 states: a GPT-2, and the task that it was trained on."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # it ships no types

from probe import registry, tasks
from probe.errors import InputError
from probe.files import read_text
from probe.models.attention import SoftmaxAttention
from probe.models.config import LARGEST_SIDE, MOST_BLOCKS, BlockConfig, ModelConfig
from probe.models.norm import LayerNorm
from probe.tasks.functions import DecisionTree, FunctionClass, Linear, Quadratic, TwoLayer
from probe.tasks.interleaved_regression import InterleavedRegression
from probe.tasks.weights import SparseWeights

LARGEST, DEEPEST = 2**16, 100  # bytes of a config.yaml, and brackets in it
NOISY = "noisy_linear_regression"


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain values of a small file without aliases, whose sharing could explode.

    Raises:
        InputError: It is damaged, too large, or holds no fields with names.
    """
    try:
        text = read_text(path, LARGEST)
        if text.count("[") + text.count("{") > DEEPEST:
            raise InputError(f"{path}: more than {DEEPEST} brackets")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise InputError(f"{path}: aliases are not read")
        plain = yaml.safe_load(text)
    except InputError:
        raise
    except Exception as error:  # odd tags make its constructors fail in many ways
        reason = ascii(f"{type(error).__name__}: {error!s:.160}")[1:-1]
        raise InputError(f"{path}: not readable ({reason})") from None
    if not isinstance(plain, dict):
        raise InputError(f"{path}: expected fields with names")
    return plain


def _section(stated: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = stated.get(name)
    if not isinstance(section, dict):
        raise InputError(f"no section {name}")
    return section


def _whole(section: Mapping[str, Any], name: str, most: int = LARGEST_SIDE) -> int:
    if name not in section:
        raise InputError(f"missing {name}")
    value = section[name]
    if type(value) is not int or not 1 <= value <= most:
        raise InputError(f"{name} is {_shown(value)}, expected a whole number from 1 to {most}")
    return value


def _shown(value: object) -> str:
    """Neither containers nor huge numbers are printed: they can be long."""
    if type(value) is int and abs(value) >= 2**63:
        return "a huge number"
    return ascii(value)[:40] if isinstance(value, str | int | float | None) else "a container"


def model_of(stated: Mapping[str, Any]) -> ModelConfig:
    """GPT-2 with the sizes of the file; n_positions counts pairs, of two tokens each.

    Raises:
        InputError: A size is missing or no size, or the family is not known.
    """
    model = _section(stated, "model")
    if model.get("family") != "gpt2":
        raise InputError(f"family is {_shown(model.get('family'))}, known: gpt2")
    width, heads = _whole(model, "n_embd"), _whole(model, "n_head")
    if width % heads:
        raise InputError(f"n_embd {width} is no multiple of n_head {heads}")
    block = BlockConfig(SoftmaxAttention(heads, width // heads), d_mlp=4 * width)
    return ModelConfig(
        d_in=_whole(model, "n_dims"),
        d_model=width,
        d_out=1,
        blocks=(block,) * _whole(model, "n_layer", MOST_BLOCKS),
        projected=True,
        n_ctx=2 * _whole(model, "n_positions"),
        norm=LayerNorm(1e-5),
        biased=True,
    )


def task_of(stated: Mapping[str, Any]) -> str | None:
    """The registered task that the model was trained on; None if there is none.

    Raises:
        InputError: The task, its inputs or one of its options is not known.
    """
    model, training = _section(stated, "model"), _section(stated, "training")
    if training.get("data", "gaussian") != "gaussian":
        raise InputError(f"data is {_shown(training['data'])}, known: gaussian")
    options = _options(training)
    noise = options.pop("noise_std", 0.0) if training.get("task") == NOISY else 0.0
    functions = _functions(training.get("task"), options)
    # The labels of classification are trained through a logit; a pool of tasks is not in the file.
    if functions is None or options or training.get("num_tasks") is not None:
        return None
    width, points = _whole(model, "n_dims"), _whole(model, "n_positions")
    if "curriculum" in training:
        points = _whole(_section(_section(training, "curriculum"), "points"), "end")
    wanted = InterleavedRegression("", functions, width=width, points=points, noise=noise)
    for name, task in registry.discover(tasks).items():
        if isinstance(task, InterleavedRegression) and replace(task, name="") == wanted:
            return name
    return None


def _options(training: Mapping[str, Any]) -> dict[str, float]:
    options = training.get("task_kwargs") or {}
    if not isinstance(options, dict):
        raise InputError(f"task_kwargs is {_shown(options)}, expected named options")
    for name, value in options.items():
        if not (
            isinstance(name, str) and isinstance(value, int | float) and abs(value) < LARGEST_SIDE
        ):
            raise InputError(f"task_kwargs: {_shown(name)} is {_shown(value)}, expected a number")
    return {name: float(value) for name, value in options.items()}


def _count(options: dict[str, float], name: str, otherwise: int) -> int:
    """Takes a whole number out of the options."""
    value = options.pop(name, float(otherwise))
    if not value.is_integer() or value < 1:
        raise InputError(f"task_kwargs: {name} is {value}, expected a whole number")
    return int(value)


def _functions(task: object, options: dict[str, float]) -> FunctionClass | None:
    """The class of functions of a task; the options that it knows are taken out of `options`."""
    if task in ("linear_regression", NOISY):
        return Linear()
    if task == "sparse_linear_regression":
        return Linear(SparseWeights(_count(options, "sparsity", 3)))
    if task == "quadratic_regression":
        return Quadratic()
    if task == "relu_2nn_regression":
        return TwoLayer(_count(options, "hidden_layer_size", 100))
    if task == "decision_tree":
        return DecisionTree(_count(options, "depth", 4))
    if task == "linear_classification":
        return None
    raise InputError(f"task is {_shown(task)}, which is not known")
