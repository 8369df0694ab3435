"""Hugging Face folders and, where the network is allowed, names: language models."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.checkpoints.base import (
    LoadedTensor,
    Source,
    Subject,
    Weights,
    check_stream,
    described_by,
    hash_of,
    match,
    row_of,
)
from probe.checkpoints.foreign import refusing
from probe.checkpoints.tensor_folder import TensorFolder
from probe.checkpoints.tokenizer import tokenizer_of
from probe.errors import InputError
from probe.models.hooked import HookedModel, Tokens, reading_device

FAMILIES = {
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
    "llama": "LLaMA",
    "mistral": "Mistral",
    "qwen2": "Qwen 2",
    "qwen3": "Qwen 3",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
}
WRAPPED = 1e-4  # how far logits may move when a model is wrapped, in units of the largest
_ELSEWHERE = ("mesa_net",)  # read by a format of their own
_REFUSED = {
    "auto_map": "names code of its own, which is not executed",
    "quantization_config": "says that weights are quantized; only floating-point numbers are read",
    "use_bidirectional_attention": "is set; only causal attention is read",
    "pruned_heads": "is set; only whole layers are read",
}
# What a config says of computation, labels or its origin could lead elsewhere or cost memory.
_LEFT_OUT = re.compile(
    r"_.*|.*_implementation|.*kernels|architectures|.*dtype|.*label.*|model_type"
)
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers")
# Buffers of old versions, which no forward pass of the present ones reads.
_STALE = re.compile(r".*\.(attn|attention)\.(masked_)?bias|.*\.rotary_emb\.inv_freq")
_IN_FILES = {"embed_out.weight": "lm_head.weight"}  # GPT-NeoX is saved under its old name
_NAME_ON_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(?<!\.pkl)")
_FETCHED = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt")


@dataclass(frozen=True)
class HuggingFace:
    """Causal language models as `save_pretrained` writes them.

    Attributes:
        dtype: In which the model computes; None: as its weights are stored.
        device_map: Where accelerate puts its parts; None: all on the CPU.
    """

    dtype: torch.dtype | None = torch.float32
    device_map: Mapping[str, str] | str | None = None
    name: str = "hugging-face"

    def recognises(self, source: Source) -> bool:
        """A folder whose config.json has a model_type, or a name if the network is allowed."""
        if source.path.is_dir():
            kind = described_by(source.path).get("model_type")
            return kind is not None and kind not in _ELSEWHERE
        absent = source.allow_hub and not source.file.exists()
        return absent and _NAME_ON_HUB.fullmatch(str(source.path)) is not None

    def read(self, source: Source) -> Subject:
        """Reads the headers of the weights, then the weights that config.json calls for.

        Raises:
            InputError: An unknown family, code or pickles in place of weights, a damaged file, or
                one that does not match.
        """
        path = source.path
        if source.preset is not None:
            raise InputError(f"{path}: a Hugging Face folder states its own model; no --preset")
        folder = path if path.is_dir() else _fetched(str(path))
        tensors = TensorFolder.open(folder)
        config = _config_of(folder, deepest=len(tensors.described))
        names = _names_in(folder, config, tensors)
        tokenizer = tokenizer_of(folder, config.vocab_size, config)
        unwrapped = Unwrapped(folder, config, self.dtype, self.device_map)
        model = unwrapped.load()
        table = _loaded(folder, model, tensors, names)
        wrapped = _wrapped(folder, model, tokenizer)
        dropped = tuple(sorted(tensors.described.keys() - names.keys()))
        name = folder.resolve().name if path.is_dir() else str(path)
        whole = hash_of(table)
        return Subject(name, self.name, wrapped, None, whole, table, dropped, unwrapped.logits)


@dataclass(frozen=True)
class Unwrapped:
    """A model as transformers loads it, read anew each time: what a wrapped one is compared with.

    Attributes:
        folder: Its files.
        config: Its PreTrainedConfig.
        dtype: See HuggingFace.
        device_map: See HuggingFace.
    """

    folder: Path
    config: Any
    dtype: torch.dtype | None
    device_map: Mapping[str, str] | str | None

    def load(self) -> Any:
        """A PreTrainedModel of its own.

        Raises:
            InputError: The files cannot be read.
        """
        from transformers import AutoModelForCausalLM

        with refusing(self.folder, "cannot be loaded"):
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(self.folder),
                config=self.config,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="eager",
                dtype="auto" if self.dtype is None else self.dtype,
                device_map=self.device_map,
            )
        return model.eval()

    def logits(self, tokens: Tokens) -> Float[Tensor, "batch time vocabulary"]:
        """What a copy that nobody has touched says; at least float32.

        Raises:
            InputError: The files are no longer there.
        """
        return _logits(self.folder, self.load(), tokens)


@torch.no_grad()
def _logits(folder: Path, model: Any, tokens: Tokens) -> Tensor:
    with refusing(folder, "cannot be run"):
        said: Tensor = model(tokens.to(reading_device(model)), use_cache=False).logits.to(
            tokens.device
        )
    return said.float() if said.itemsize < torch.float32.itemsize else said


def _wrapped(folder: Path, model: Any, tokenizer: Any | None) -> HookedModel:
    """The model in its wrapper, which does not know some settings of old configs.

    Raises:
        InputError: Wrapped, it says something else, or its stream does not add up.
    """
    # Slow to import, and formats are imported to recognise any file.
    from probe.models.bridge import BridgedModel

    tokens = torch.arange(16).reshape(2, 8) % model.config.vocab_size
    before = _logits(folder, model, tokens)
    if not bool(before.isfinite().all()):
        raise InputError(f"{folder}: its logits hold NaN or infinity")
    with refusing(folder, "cannot be wrapped"):
        wrapped = BridgedModel(model, tokenizer)
        tokens = tokens.to(reading_device(wrapped))
        moved = float((wrapped(tokens).to(before) - before).abs().max())
        slack = max(WRAPPED, 8 * torch.finfo(model.dtype).eps)
        if not moved <= slack * float(before.abs().max()):
            raise InputError(f"{folder}: wrapped for analysis, the model says something else")
        check_stream(folder, wrapped, tokens)
    return wrapped


def _fetched(name: str) -> Path:
    """The folder of a name on the hub, without pickles and without code."""
    from huggingface_hub import constants, snapshot_download

    constants.HF_HUB_DISABLE_TELEMETRY = True
    with refusing(Path(name), "cannot be fetched"):
        return Path(snapshot_download(name, allow_patterns=list(_FETCHED)))


def _config_of(folder: Path, deepest: int) -> Any:
    """The PreTrainedConfig; of at most so many blocks as there are tensors."""
    plain = described_by(folder)
    place, kind = folder / "config.json", plain.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(f"{name} ({family})" for name, family in FAMILIES.items())
        raise InputError(f"{place}: unknown model_type {kind!a:.40}; known: {known}")
    for name, why in _REFUSED.items():
        if plain.get(name):
            raise InputError(f"{place}: {name} {why}")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder}: an adapter of another model; merge the two first")
    for name in _DEPTHS:
        if (depth := plain.get(name)) is not None and not (
            type(depth) is int and 0 < depth <= deepest
        ):
            raise InputError(f"{place}: {name} is {depth!a:.40}; the files hold {deepest} tensors")
    from transformers import AutoConfig

    kept = {name: value for name, value in plain.items() if not _LEFT_OUT.fullmatch(name)}
    with refusing(place, "describes no model"):
        return AutoConfig.for_model(kind, **kept)


def _names_in(folder: Path, config: Any, tensors: TensorFolder) -> dict[str, str]:
    """The parameter that each tensor of the files is; those that are tied go by their first name.

    Raises:
        InputError: A tensor is missing, unexpected, misshapen or of no float type.
    """
    from transformers import AutoModelForCausalLM

    with refusing(folder / "config.json", "describes no model"), torch.device("meta"):
        untyped: Any = AutoModelForCausalLM
        model = untyped.from_config(config, attn_implementation="eager")
        model.tie_weights()
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    state = model.state_dict(keep_vars=True)
    names: dict[str, str] = {}
    given: dict[str, Tensor] = {}
    for key, tensor in tensors.described.items():
        named = _IN_FILES.get(key, key)
        entry = named if named in state else f"{model.base_model_prefix}.{named}"
        if entry not in state and _STALE.fullmatch(key):
            continue
        names[key] = first[id(state[entry])] if entry in state else key
        given[names[key]] = tensor
    expected = {name: tuple(part.shape) for name, part in model.named_parameters()}
    sources = {name: f"{key:.200}" for key, name in names.items()}
    match(folder, expected, Weights(given, sources))
    return names


def _loaded(
    folder: Path, model: Any, tensors: TensorFolder, names: Mapping[str, str]
) -> tuple[LoadedTensor, ...]:
    """The load table, after the model has been compared with its files, number by number.

    Raises:
        InputError: A tensor holds NaN or infinity, or is not what the model holds.
    """
    state = model.state_dict(keep_vars=True)
    rows: dict[str, LoadedTensor] = {}
    for key, tensor in tensors.each():
        if key not in names:
            continue
        name = names[key]
        held, tensor = state[name], tensor.to(state[name].dtype)
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{folder}: {key:.200} holds NaN or infinity")
        # What accelerate keeps on disk has no numbers here.
        if not held.is_meta and not torch.equal(held.cpu(), tensor):
            raise InputError(f"{folder}: {key:.200} is not what the loaded model holds as {name}")
        rows.setdefault(name, row_of(name, f"{key:.200}", tensor))
    return tuple(rows[name] for name in state if name in rows)


NAMED = {HuggingFace.name: HuggingFace()}
