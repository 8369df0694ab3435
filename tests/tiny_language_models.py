"""Small random Hugging Face language models, saved as transformers saves them.

Nothing stands at its default: norms, biases and scales are random too, so that a part which is
left out, doubled or taken from the wrong place shows.
"""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

VOCABULARY, LAYERS, WIDTH, HEADS = 61, 3, 32, 4
WINDOW = 4
_SHARED = {
    "bos_token_id": 0,
    "eos_token_id": 1,
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
}
_GROUPED = {**_SHARED, "num_key_value_heads": 2, "head_dim": 16}
_GEMMA_2 = {"query_pre_attn_scalar": 20, "sliding_window": WINDOW}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "vocab_size": VOCABULARY,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": 64,
    },
    "gpt_neox": {**_SHARED, "rotary_pct": 0.5},
    "llama": {**_GROUPED, "rope_theta": 500.0},
    "mistral": {**_GROUPED, "sliding_window": WINDOW},
    "qwen2": {name: value for name, value in _GROUPED.items() if name != "head_dim"},
    "qwen3": _GROUPED,
    "gemma": _GROUPED,
    "gemma2": {
        **_GROUPED,
        **_GEMMA_2,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {**_GROUPED, **_GEMMA_2},
}
FAMILIES = tuple(SHAPES)
_KEPT = TemporaryDirectory(prefix="tiny-language-models-")


@cache
def _state(family: str, changes: str) -> tuple[Any, dict[str, Any]]:
    shape = {**SHAPES[family], **json.loads(changes)}
    config = transformers.AutoConfig.for_model(family, **shape)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(sum(map(ord, family)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.5 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            noise = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(noise + (name.endswith("norm.weight") and "gemma" not in family))
    return config, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def language_model(family: str, **changes: Any) -> Any:
    """A PreTrainedModel of a family in `SHAPES`, in float32 for evaluation; a new one each time.

    Args:
        family: The model_type.
        changes: Fields of its config.
    """
    config, state = _state(family, json.dumps(changes))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.load_state_dict(state)
    return model.eval()


def language_folder(
    folder: Path, family: str, *, words: bool = False, dtype: Any = torch.float32, **changes: Any
) -> Path:
    """The folder, after a model of the family has been saved there.

    Args:
        folder: Where; made if need be.
        family: The model_type.
        words: Whether a tokenizer lies beside it.
        dtype: Of the saved weights.
        changes: Fields of its config.
    """
    transformers.utils.logging.disable_progress_bar()
    language_model(family, **changes).to(dtype).save_pretrained(folder)
    if words:
        word_tokenizer().save_pretrained(folder)
    return folder


@cache
def language_subject(family: str) -> Any:
    """The Subject of a saved model; each is loaded once, so it must be left as it is."""
    from probe.checkpoints.base import load

    return load(language_folder(Path(_KEPT.name) / family, family))


@cache
def word_tokenizer() -> Any:
    """A tokenizer whose tokens are the words w0 to w59, parted by spaces; <unk> is its last id."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {f"w{place}": place for place in range(VOCABULARY - 1)}
    model = models.WordLevel({**vocabulary, "<unk>": VOCABULARY - 1}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def token_ids(batch: int = 3, time: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids, (batch, time)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (batch, time), generator=generator)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest distance of two entries."""
    return float((one.double() - other.double()).abs().max())
