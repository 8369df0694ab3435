"""The tokenizer that lies in a folder beside a model."""

import json
from pathlib import Path
from typing import Any

from probe.checkpoints.foreign import refusing
from probe.errors import InputError

TRIAL = "x 1"
_ENOUGH = ("tokenizer.json", "tokenizer.model", "vocab.json")


def tokenizer_of(folder: Path, vocabulary: int, config: Any | None = None) -> Any | None:
    """The tokenizer that lies in a folder; None if there is none.

    Args:
        folder: Where its files are.
        vocabulary: Number of token ids of the model.
        config: The model's PreTrainedConfig, for old tokenizers that do not state their kind.

    Raises:
        InputError: It cannot be read, brings its own code, or has more tokens than the model.
    """
    if not any((folder / name).is_file() for name in _ENOUGH):
        return None
    # Slow to import, and most folders have none.
    from transformers import AutoTokenizer, PreTrainedConfig

    with refusing(folder, "its tokenizer cannot be read"):
        said = _described(folder / "tokenizer_config.json")
        if config is None or "tokenizer_class" in said:
            config = PreTrainedConfig()
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder),
            config=config,
            local_files_only=True,
            trust_remote_code=False,
        )
        tokens = len(tokenizer)
        # Settings of a wrong kind are not looked at before it is used.
        tokenizer.decode(tokenizer.encode(TRIAL, add_special_tokens=False))
    if tokens > vocabulary:
        raise InputError(f"{folder}: {tokens} tokens in the tokenizer, {vocabulary} in the model")
    return tokenizer


def _described(path: Path) -> dict[str, Any]:
    """What tokenizer_config.json says."""
    plain = json.loads(path.read_text()) if path.is_file() else {}
    if not isinstance(plain, dict):
        raise ValueError("tokenizer_config.json is no object with named fields")
    if "auto_map" in plain:
        raise ValueError("its auto_map names code of its own, which is not executed")
    return plain
