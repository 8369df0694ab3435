"""Language models of other programs, with tokenizers of several kinds, and texts for them."""

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import transformers
from mesa_net_folder import described, random_tensors, write_mesa_net, write_parts
from number_speakers import number_tokenizer
from safetensors.torch import load_file
from tiny_language_models import SHAPES, language_folder

from fuzzing.seeds import Seed, command

_MODEL = "{case}/model"
_DOCTOR = command(f"doctor {_MODEL}")
_NUMBERS = 112  # ids of the model that reads numbers
_MESA = described(num_hidden_layers=1)
_SMALL = {"n_layer": 1, "num_hidden_layers": 1}


def _fewer_layers(family: str) -> dict[str, int]:
    return {name: value for name, value in _SMALL.items() if name in SHAPES[family]}


def _family(family: str, words: bool, folder: Path) -> None:
    language_folder(folder / "model", family, words=words, **_fewer_layers(family))


def _parts(folder: Path) -> None:
    model = language_folder(folder / "model", "gpt2", n_layer=1)
    write_parts(model, load_file(model / "model.safetensors"))


def _mesa(folder: Path) -> None:
    write_mesa_net(folder / "model", _MESA)


def _mesa_parts(folder: Path) -> None:
    model = write_mesa_net(folder / "model", _MESA)
    write_parts(model, random_tensors(_MESA))
    _words(_MESA["vocab_size"]).save_pretrained(model)


def _words(size: int) -> Any:
    """The words w0, w1, ... as tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0} | {f"w{place}": place for place in range(1, size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@cache
def _bytes_of_gpt2() -> Any:
    """Byte pairs, trained on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=58, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the rat ran"] * 3, trainer)
    return tokenizer


def _byte_pairs(folder: Path) -> None:
    """A tokenizer in one file, with pieces and a normaliser, as fast ones are saved."""
    model = language_folder(folder / "model", "gpt2", n_layer=1)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_bytes_of_gpt2(), eos_token="<|endoftext|>"
    )
    fast.save_pretrained(model)


def _old_files(folder: Path) -> None:
    """vocab.json beside merges.txt, as GPT-2 was published."""
    model = language_folder(folder / "model", "gpt2", n_layer=1)
    _bytes_of_gpt2().model.save(str(model))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    (model / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    (model / "added_tokens.json").write_text(json.dumps({"<more>": 58}))


def _numbers(folder: Path) -> None:
    model = language_folder(
        folder / "model", "gpt2", n_layer=1, vocab_size=_NUMBERS, n_positions=160
    )
    number_tokenizer().save_pretrained(model)


def _text(folder: Path) -> None:
    language_folder(folder / "model", "gpt2", words=True, n_layer=1, n_embd=8, n_head=1)
    words = (f"w{place * 7 % 60}" for place in range(64 * 8))
    (folder / "book.txt").write_text(" ".join(words) + "\n")


_WITH_WORDS = ("gpt2", "llama", "gemma2")
_SURVEY = "--sequences 64 --length 8 --out {case}/out"
SEEDS = {
    **{
        f"hugging-face-{family}": Seed(partial(_family, family, family in _WITH_WORDS), (_DOCTOR,))
        for family in SHAPES
    },
    "hugging-face-parts": Seed(_parts, (_DOCTOR,)),
    "tokenizer-byte-pairs": Seed(_byte_pairs, (_DOCTOR,)),
    "tokenizer-old-files": Seed(_old_files, (_DOCTOR,)),
    "mesa-net": Seed(_mesa, (_DOCTOR,)),
    "mesa-net-parts": Seed(_mesa_parts, (_DOCTOR,)),
    "numbers": Seed(_numbers, (_DOCTOR, command(f"describe {_MODEL} --task numbers-1d"))),
    "text": Seed(
        _text,
        (
            command(f"analyze {_MODEL} --text {{case}}/book.txt {_SURVEY}", share=2),
            command(
                f"analyze {_MODEL} --text {{case}}/book.txt --length 8 --sequences 64 --plan",
                share=5,
            ),
        ),
    ),
}
