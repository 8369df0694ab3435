"""What a language model reads: windows that do not overlap, or random ids."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import InputError
from probe.models.hooked import LanguageModel
from probe.text import RandomIds, TextWindows, reading_of


class _Reader(LanguageModel):
    """As much of a language model as reading needs."""

    tokenizer = vocabulary = longest = None

    def __init__(self, tokenizer=None, vocabulary=300, longest=32):
        super().__init__()
        self.tokenizer, self.vocabulary, self.longest = tokenizer, vocabulary, longest


_Reader.__abstractmethods__ = frozenset()


class _Bytes:
    """One token per byte."""

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return list(text.encode())


def windows(tokens=100, length=8):
    return TextWindows("t", "0", torch.arange(tokens), length)


@given(st.integers(0, 2**31), st.integers(1, 11), st.integers(0, 12))
def test_draws_do_not_depend_on_how_they_are_cut(seed, cut, total):
    for reading in (windows(), RandomIds(50, 8)):
        whole = reading.draw(0, max(total, cut + 1), seed)
        parts = [reading.draw(0, cut, seed), reading.draw(cut, len(whole) - cut, seed)]
        assert torch.equal(torch.cat(parts), whole)


def test_no_window_comes_twice_and_the_remainder_is_left():
    drawn = windows().draw(0, 12, 3)
    assert sorted(drawn.flatten().tolist()) == list(range(96))
    with pytest.raises(InputError, match="12 windows of 8 tokens; 13 are needed"):
        windows().draw(0, 13, 3)


def test_seeds_differ_and_ids_are_uniform():
    reading = RandomIds(10, 64)
    drawn = reading.draw(0, 400, 1)
    counts = torch.bincount(drawn.flatten(), minlength=10).double() / drawn.numel()
    assert float((counts - 0.1).abs().max()) < 0.01  # five standard errors
    assert not torch.equal(drawn, reading.draw(0, 400, 2))
    assert not torch.equal(drawn[0], drawn[1])


def test_a_text_is_read_with_the_model_s_tokenizer(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij" * 10)
    reading = reading_of(_Reader(_Bytes()), path, 10)
    assert reading.available == 10
    assert reading.draw(0, 1, 0).tolist() == [list(b"abcdefghij")]
    assert reading.params()["text"] == "text.txt"


def test_what_cannot_be_read_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="not a readable UTF-8 text"):
        reading_of(_Reader(_Bytes()), path, None)
    with pytest.raises(InputError, match="no tokenizer"):
        reading_of(_Reader(), path, None)
    with pytest.raises(InputError, match="8 to 32 tokens"):
        reading_of(_Reader(), None, 33)
    path.write_text("z" * 100)
    with pytest.raises(InputError, match="ids that the model does not have"):
        reading_of(_Reader(_Bytes(), vocabulary=100), path, None)
