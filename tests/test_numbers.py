"""Numbers in text: the layout of lines, their values, and a language model read as regression."""

from dataclasses import replace

import pytest
import torch
from number_speakers import (
    PROMPTS,
    Speaker,
    descent,
    last_answer,
    number_tokenizer,
    ridge,
)
from tiny_language_models import language_model, word_tokenizer

from probe.audit import audit
from probe.capture import capture
from probe.checkpoints.base import Subject
from probe.errors import InputError
from probe.language_task import find_prompts, lacks_numbers, posed
from probe.models.bridge import BridgedModel
from probe.models.number_reader import NumberReader, first_number
from probe.sampling import generator_for
from probe.tasks.base import Spaced, Task, find_task
from probe.tasks.numbers import NumberPrompts


def subject_of(model, **changes) -> Subject:
    return Subject("speaker", "planted", model, None, "0" * 64, (), **changes)


@pytest.fixture(scope="module")
def speaker():
    return posed(subject_of(Speaker(PROMPTS, descent(1, 0.1), ridge())), PROMPTS)


def sample(task, count=8, seed=0):
    sequences = task.sample(count, generator_for(seed))
    return sequences, task.problem(sequences)


def test_the_text_says_what_the_problem_says(speaker) -> None:
    _, task = speaker
    assert isinstance(task, Task) and isinstance(task, Spaced)
    sequences, problem = sample(task, 2)
    words = number_tokenizer().decode(sequences.tokens[0].tolist()).split()
    assert words[:3] == ["x", words[1], words[2]] and words[3] == "y" and len(words) == task.length
    shown = [int(word) for word in words if word.isdigit()]
    lines = torch.tensor(shown).view(task.points, 3)
    values = (lines - 50) / 50
    assert torch.allclose(values[:, :2], problem.queries[0]) and torch.allclose(
        values[:, 2:], problem.targets[0]
    )
    assert torch.equal(problem.keys[0, 1:], problem.queries[0, :-1])
    assert torch.equal(problem.values[0, 1:], problem.targets[0, :-1])
    # Rounding is all that parts a target from the teacher.
    apart = (problem.targets - problem.oracle).abs().max()
    assert 0 < apart <= 0.01 + 1e-6
    oracle = torch.einsum("bij,btj->bti", sequences.teachers, problem.queries)
    assert torch.allclose(oracle, problem.oracle, atol=1e-6)


def test_questions_stand_right_before_answers(speaker) -> None:
    _, task = speaker
    sequences, problem = sample(task)
    asked = torch.arange(task.length)[task.asked]
    assert len(asked) == task.points
    answers = torch.tensor(task.numerals.answers)
    shown = (problem.targets[..., 0] * 50).round().long() + 50
    assert torch.equal(sequences.tokens[:, asked + 1], answers[shown])


def test_the_reader_says_the_expected_number_and_its_mass(speaker) -> None:
    subject, task = speaker
    sequences, problem = sample(task)
    said = subject.model(sequences.tokens)[:, task.asked]
    assert torch.allclose(said.double(), ridge()(problem), atol=1e-5)
    found = subject.model.answers(sequences.tokens, task.asked)
    assert found.parsed.all() and float(found.mass.min()) > 1 - 1e-6
    language = subject.model.language
    logits = language(sequences.tokens)
    logits[..., 1] = 5.0  # the word x becomes likelier than any number
    numbers = logits[..., list(task.numerals.answers)].double().exp().sum(-1)
    wordy = replace_logits(language, logits)
    found = NumberReader(wordy, task.numerals).answers(sequences.tokens, task.asked)
    assert not found.parsed.any()
    expected = numbers / logits.double().exp().sum(-1)
    assert torch.allclose(found.mass, expected[:, task.asked])


def replace_logits(language, logits):
    class Fixed(Speaker):
        def forward(self, tokens):
            return logits

    other = Fixed.__new__(Fixed)
    other.__dict__.update(language.__dict__)
    return other


def test_layers_are_read_out_and_resumed(speaker) -> None:
    subject, task = speaker
    sequences, problem = sample(task, 16)
    seen = capture(subject.model, sequences.tokens, 16)
    checks = audit(subject.model, sequences.tokens)
    assert [check.ok for check in checks if check.part == "streams"] == [True]
    readouts = seen.at(task.asked).readouts.double()
    assert torch.allclose(readouts[1], descent(1, 0.1)(problem), atol=1e-5)
    inside = ridge()(problem).abs() < 0.9
    assert torch.allclose(readouts[2][inside], ridge()(problem)[inside], atol=1e-5)
    assert not torch.allclose(readouts[1], readouts[2], atol=1e-2)


def test_read_outs_in_parts_are_those_of_the_whole(speaker, monkeypatch) -> None:
    subject, _ = speaker
    stream = torch.randn(3, 50, 2, generator=generator_for(0))
    whole = subject.model.read_out(stream)
    monkeypatch.setattr("probe.models.number_reader.LOGITS", 1)
    assert torch.equal(subject.model.read_out(stream), whole)


def test_a_bridged_model_is_posed_and_keeps_its_sites() -> None:
    hugging = language_model("gpt2", vocab_size=len(number_tokenizer(20)))
    bridged = BridgedModel(hugging, number_tokenizer(20))
    before = subject_of(bridged, original=bridged.forward)
    subject, task = posed(before, replace(PROMPTS, points=40, top=100))
    # The tokenizer knows 0 to 20, the model 64 tokens: 5 per line, and the first x.
    assert task.numerals.top == 20 and task.points == 12
    assert task.params()["numbers"] == "0 to 20" and task.params()["points"] == 12
    sequences, _ = sample(task, 16)
    seen = capture(subject.model, sequences.tokens, 16)
    assert all(check.ok for check in audit(subject.model, sequences.tokens, subject.original))
    assert seen.output.shape == (16, task.length, 1)
    assert torch.allclose(subject.original(sequences.tokens), seen.output)
    assert subject.model.head_sites(0) == bridged.head_sites(0)
    assert float(seen.output.abs().max()) <= 1


def test_tokenizers_without_numbers_are_refused() -> None:
    plain = language_model("gpt2")
    for tokenizer, message in (
        (word_tokenizer(), "0 to 8 at least must be single tokens .* 0 is not"),
        (number_tokenizer(5), "in this tokenizer 6 is not"),
        (None, "no tokenizer"),
    ):
        with pytest.raises(InputError, match=message) as error:
            posed(subject_of(BridgedModel(plain, tokenizer)), PROMPTS)
        assert "\n" not in str(error.value)
        plain = language_model("gpt2")


def test_models_with_too_little_room_or_none_for_text_are_refused(tiny_subject) -> None:
    short = BridgedModel(
        language_model("gpt2", n_positions=30, vocab_size=200), number_tokenizer(20)
    )
    with pytest.raises(InputError, match="reads 30 tokens, room for 5 lines"):
        posed(subject_of(short), PROMPTS)
    small = BridgedModel(language_model("gpt2", vocab_size=12), number_tokenizer(20))
    with pytest.raises(InputError, match="must be single tokens"):
        posed(subject_of(small), PROMPTS)
    with pytest.raises(InputError, match="reads vectors"):
        posed(tiny_subject, PROMPTS)
    with pytest.raises(InputError, match="numbers-2d"):
        find_prompts("numbers-9d")


def byte_pairs(merges: list[tuple[str, str]]):
    """Byte pair encoding as GPT-2 has it: a number carries the space before it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel

    letters = [*"0123456789xyĠĊ"]
    vocabulary = {token: i for i, token in enumerate([*letters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_byte_pairs_carry_the_space_and_end_where_merges_end() -> None:
    spaced = [("Ġ", digit) for digit in "0123456789"]
    tens = [(f"Ġ{first}", second) for first in "12" for second in "0123456789"]
    tokenizer = byte_pairs([*spaced, *tens, ("Ġ", "y")])
    language = BridgedModel(language_model("gpt2", n_positions=512), tokenizer)
    task = NumberPrompts("numbers-1d", 1, 20).bound_to(language)
    assert task.numerals.top == 28  # 0 to 29 are single tokens; the top is even
    sequences, _ = sample(task, 4)
    for row in sequences.tokens:
        text = tokenizer.decode(row.tolist())
        assert tokenizer.encode(text) == row.tolist() and text.startswith("x ")
    digits = BridgedModel(language_model("gpt2", n_positions=512), byte_pairs([("Ġ", "y")]))
    task = NumberPrompts("numbers-1d", 1, 20).bound_to(digits)
    assert task.numerals.top == 8 and len(task.line_tokens.stretch) == 7


def test_the_first_number_of_a_text() -> None:
    found = [first_number(text) for text in (" 42\nx", "is -3.5, 7", "none", "", "y 1 2")]
    assert found == [42.0, -3.5, None, None, 1.0]


def test_answers_of_several_tokens_are_read_from_greedy_text(speaker) -> None:
    subject, task = speaker
    sequences, _ = sample(task, 4)
    text = subject.model.continued(sequences.tokens[:, : task.asked.start + 1], 1)
    said = subject.model(sequences.tokens)[:, task.asked.start, 0] * 50 + 50
    assert [first_number(one) for one in text] == said.round().tolist()


def test_other_subjects_lack_numbers(speaker, tiny_subject) -> None:
    subject, task = speaker
    assert lacks_numbers(subject, task) is None
    assert lacks_numbers(tiny_subject, find_task("linear")) == "numbers in text"
    assert lacks_numbers(subject, find_task("linear")) == "numbers in text"


def test_an_algorithm_that_copies_is_told_from_one_that_solves() -> None:
    subject, task = posed(subject_of(Speaker(PROMPTS, last_answer)), PROMPTS)
    sequences, problem = sample(task, 64)
    said = subject.model(sequences.tokens)[:, task.asked].double()
    inside = problem.values.abs() < 0.9
    assert torch.allclose(said[inside], problem.values.double()[inside], atol=1e-4)
    assert float((said - ridge()(problem)).square().mean()) > 0.01
