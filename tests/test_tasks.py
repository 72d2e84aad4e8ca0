"""Downstream tasks: pairs that differ where they should, and scores that know chance from skill."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from strata.errors import UserError
from strata.evaluate.tasks import english
from strata.evaluate.tasks.base import TaskPairs, TextPair
from strata.evaluate.tasks.registry import TASKS, make_task, tasks_for
from strata.evaluate.tasks.scores import task_scores
from strata.lm.model import LanguageModel
from strata.sae.gates import TopK
from strata.sae.model import SAE
from tiny_models import tiny_model, tiny_tokenizer

PYTHON = ["closing_bracket", "self_argument", "repeated_name", "indentation"]
ENGLISH = ["ioi", "greater_than", "subject_verb"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel("demo", device="cpu")


@cache
def word_tokenizer(*, without: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """One token per word with the space before it, numbers in pairs of digits; unknown words are ``[UNK]``."""
    words = [*english._FIRST_NAMES, *english._PLACES, *english._THINGS, *english._EVENTS]
    words += [noun for pair in english._NOUNS for noun in pair] + ["is", "are", "lasted", "from", "year"]
    words += " ".join([*english._GIVING, *english._BETWEEN]).replace(",", "").split()
    words += [f"{number:02d}" for number in range(100)]
    known = ["[UNK]", "[BOS]", ",", "The", *(f"{number:02d}" for number in range(100)), *(f" {word}" for word in words)]
    known += ["When", "After", "While", "Before", "Because"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(w for w in known if w not in without))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\d{1,2}| ?[A-Za-z]+|[^A-Za-z0-9]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", bos_token="[BOS]")


def texts(tokenizer: Any, ids: Tensor) -> list[str]:
    return [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in ids]


def as_text(tokenizer: Any, pairs: TaskPairs) -> list[TextPair]:
    columns = (
        texts(tokenizer, pairs.clean_ids[:, 1:]),
        texts(tokenizer, pairs.corrupt_ids[:, 1:]),
        texts(tokenizer, pairs.answer_ids[:, None]),
        texts(tokenizer, pairs.wrong_ids[:, None]),
    )
    return [TextPair(*row) for row in zip(*columns, strict=True)]


def tokenizer_for(task: str, lm: LanguageModel) -> Any:
    return word_tokenizer() if task in ENGLISH else lm.tokenizer


# --- Every task ---


@pytest.mark.parametrize("task", TASKS)
def test_pairs_are_one_length_start_as_documents_do_and_share_no_prompt(task: str, lm: LanguageModel) -> None:
    tokenizer = tokenizer_for(task, lm)
    pairs = make_task(task, tokenizer, n_pairs=100, seed=3)
    assert pairs.name == task and len(pairs) == 100
    assert pairs.clean_ids.shape == pairs.corrupt_ids.shape
    assert (pairs.clean_ids[:, 0] == tokenizer.bos_token_id).all()
    assert (pairs.corrupt_ids[:, 0] == tokenizer.bos_token_id).all()
    prompts = {tuple(row) for row in torch.cat([pairs.clean_ids, pairs.corrupt_ids]).tolist()}
    assert len(prompts) == 200
    assert (pairs.answer_ids != pairs.wrong_ids).all()
    assert not torch.isin(pairs.clean_ids[:, 1:], torch.tensor(tokenizer.all_special_ids)).any()


@pytest.mark.parametrize("task", TASKS)
def test_the_seed_decides(task: str, lm: LanguageModel) -> None:
    tokenizer = tokenizer_for(task, lm)
    one, same, other = (make_task(task, tokenizer, n_pairs=20, seed=seed) for seed in (0, 0, 1))
    for part in ("clean_ids", "corrupt_ids", "answer_ids", "wrong_ids"):
        assert torch.equal(getattr(one, part), getattr(same, part))
    assert not torch.equal(one.clean_ids, other.clean_ids)
    more = make_task(task, tokenizer, n_pairs=30, seed=0)
    assert torch.equal(more.clean_ids[:20], one.clean_ids)


@pytest.mark.parametrize("task", [*PYTHON, *ENGLISH])
def test_answers_are_single_tokens_where_they_stand(task: str, lm: LanguageModel) -> None:
    tokenizer = tokenizer_for(task, lm)
    pairs = make_task(task, tokenizer, n_pairs=50, seed=0)
    for number, pair in enumerate(as_text(tokenizer, pairs)):
        for prompt, ids in ((pair.clean, pairs.clean_ids[number]), (pair.corrupt, pairs.corrupt_ids[number])):
            for end, token in ((pair.answer, pairs.answer_ids[number]), (pair.wrong, pairs.wrong_ids[number])):
                expected = [*ids[1:].tolist(), int(token)]
                assert tokenizer(prompt + end, add_special_tokens=False).input_ids == expected


@pytest.mark.parametrize("task", ["closing_bracket", "ioi"])
def test_what_the_templates_say_varies(task: str, lm: LanguageModel) -> None:
    """The commonest length must not leave one template alone."""
    pairs = as_text(tokenizer_for(task, lm), make_task(task, tokenizer_for(task, lm), n_pairs=200, seed=0))
    assert len({pair.clean.split()[1 if task == "closing_bracket" else 0] for pair in pairs}) >= 5
    assert len({pair.answer for pair in pairs}) >= 3


def test_split_shares_nothing_and_loses_nothing(lm: LanguageModel) -> None:
    pairs = make_task("repeated_name", lm.tokenizer, n_pairs=30, seed=0)
    found, judged = pairs.split(12)
    assert (found.name, len(found), len(judged)) == ("repeated_name", 12, 18)
    for part in ("clean_ids", "corrupt_ids", "answer_ids", "wrong_ids"):
        assert torch.equal(torch.cat([getattr(found, part), getattr(judged, part)]), getattr(pairs, part))


# --- What each asks for, checked by rules of its own ---


def pairs_of(task: str, lm: LanguageModel) -> list[TextPair]:
    tokenizer = tokenizer_for(task, lm)
    return as_text(tokenizer, make_task(task, tokenizer, n_pairs=100, seed=1))


def test_ioi_names_the_one_who_does_not_give(lm: LanguageModel) -> None:
    first_named = 0
    for pair in pairs_of("ioi", lm):
        for prompt, receiver, giver in ((pair.clean, pair.answer, pair.wrong), (pair.corrupt, pair.wrong, pair.answer)):
            words = prompt.replace(",", "").split()
            assert words.count(giver.strip()) == 2 and words.count(receiver.strip()) == 1
        assert len(pair.clean.split()) == len(pair.corrupt.split())
        differing = [a for a, b in zip(pair.clean.split(), pair.corrupt.split(), strict=True) if a != b]
        assert differing == [pair.wrong.strip()]  # the giver, and nothing else
        first_named += pair.clean.index(pair.answer) < pair.clean.index(pair.wrong)
    assert 20 < first_named < 80  # who receives stands first about as often as second


def test_years_end_after_they_began(lm: LanguageModel) -> None:
    for pair in pairs_of("greater_than", lm):
        years = [int(prompt.split(" to ")[0][-4:]) for prompt in (pair.clean, pair.corrupt)]
        century = int(pair.clean[-2:])
        answer, wrong = (100 * century + int(end) for end in (pair.answer, pair.wrong))
        assert years[1] < wrong < years[0] < answer
        assert years[0] // 100 == years[1] // 100 == century


def test_verbs_agree_with_the_subject_and_not_with_what_stands_between(lm: LanguageModel) -> None:
    singular = {pair[0] for pair in english._NOUNS}
    nearest = []
    for pair in pairs_of("subject_verb", lm):
        for prompt, verb in ((pair.clean, pair.answer), (pair.corrupt, pair.wrong)):
            assert verb == (" is" if prompt.split()[1] in singular else " are")
        assert pair.clean.split()[2:] == pair.corrupt.split()[2:]
        nearest.append((pair.clean.split()[-1] in singular) == (pair.answer == " is"))
    assert 20 < sum(nearest) < 80  # the nearest noun tells nothing


def test_brackets_close_what_is_open(lm: LanguageModel) -> None:
    closing = {"(": ")", "[": "]", "{": "}"}
    for pair in pairs_of("closing_bracket", lm):
        for prompt, end in ((pair.clean, pair.answer), (pair.corrupt, pair.wrong)):
            assert [closing[c] for c in prompt if c in closing] == [end]


def test_indentation_follows_a_colon(lm: LanguageModel) -> None:
    for pair in pairs_of("indentation", lm):
        assert pair.clean.endswith(":") and not pair.corrupt.endswith(":")
        assert (pair.answer, pair.wrong) == ("\n" + " " * 7, "\n" + " " * 3)


def test_names_and_first_arguments(lm: LanguageModel) -> None:
    for pair in pairs_of("repeated_name", lm):
        assert pair.clean.split()[1] == pair.answer.strip() and pair.corrupt.split()[1] == pair.wrong.strip()
        assert pair.wrong.strip() in pair.clean and pair.answer.strip() in pair.corrupt
    for pair in pairs_of("self_argument", lm):
        assert "@classmethod" in pair.corrupt and "@classmethod" not in pair.clean
        assert (pair.answer, pair.wrong) == ("self", "cls")


def test_induction_repeats_what_came_before(lm: LanguageModel) -> None:
    pairs = make_task("induction", lm.tokenizer, n_pairs=50, seed=0)
    rows = zip(
        *(getattr(pairs, p).tolist() for p in ("clean_ids", "corrupt_ids", "answer_ids", "wrong_ids")), strict=True
    )
    for clean, corrupt, answer, wrong in rows:
        for ids, right, other in ((clean, answer, wrong), (corrupt, wrong, answer)):
            assert ids[ids.index(ids[-1]) + 1] == right and other not in ids
        assert sum(a != b for a, b in zip(clean, corrupt, strict=True)) == 1


# --- Which tokenizers ---


def test_tasks_are_listed_for_tokenizers_that_can_express_them(lm: LanguageModel) -> None:
    assert tasks_for(lm.tokenizer) == [*PYTHON, "induction"]
    assert tasks_for(word_tokenizer()) == [*ENGLISH, "induction"]
    assert tasks_for(word_tokenizer(without=(" is",))) == ["ioi", "greater_than", "induction"]
    assert tasks_for(tiny_tokenizer()) == ["closing_bracket", "induction"]  # a byte each


@pytest.mark.parametrize(
    ("task", "n_pairs", "message"),
    [
        (
            "closing_brackets",
            4,
            r"`task` must be the name of a task\. Got 'closing_brackets'\. Did you mean 'closing_brac",
        ),
        ("closing_bracket", 0, r"`n_pairs` must be at least 1\. Got 0\."),
        (
            "ioi",
            4,
            r"'ioi' needs a tokenizer that has English first names .* It can express: closing_bracket, self_arg",
        ),
        ("indentation", 10**6, r"`n_pairs` must be at most \d+, what the task 'indentation' gave .* Got 1000000\."),
    ],
)
def test_what_cannot_be_made_is_said(
    task: str, n_pairs: int, message: str, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strata.evaluate.tasks.python._NAMES", ("width", "height", "name", "value"))
    monkeypatch.setattr("strata.evaluate.tasks.python._METHODS", ("read",))
    monkeypatch.setattr("strata.evaluate.tasks.registry._PATIENCE", 128)
    with pytest.raises(UserError, match=message):
        make_task(task, lm.tokenizer, n_pairs=n_pairs, seed=0)


def test_no_tokenizer_and_no_split_are_said(lm: LanguageModel) -> None:
    with pytest.raises(UserError, match=r"The task 'induction' needs a tokenizer\. Got None\."):
        make_task("induction", None, n_pairs=4, seed=0)
    pairs = make_task("induction", lm.tokenizer, n_pairs=4, seed=0)
    for n_discovery in (0, 4):
        with pytest.raises(UserError, match=rf"`n_discovery` must leave pairs .* Got {n_discovery} of 4 pairs"):
            pairs.split(n_discovery)


# --- Scores ---


def zero_sae(d_in: int) -> SAE:
    W = torch.nn.functional.normalize(torch.ones(1, d_in), dim=1)
    bias = torch.full((1,), -1e9)  # it never fires
    return SAE(W_enc=W.t().clone(), b_enc=bias, W_dec=W, b_dec=torch.zeros(d_in), gate=TopK(1))


@pytest.mark.parametrize("task", PYTHON)
def test_the_embedded_model_does_the_python_tasks(task: str, lm: LanguageModel) -> None:
    scores = task_scores(lm, make_task(task, lm.tokenizer, n_pairs=64, seed=5))
    assert scores["accuracy"] > 0.85 and scores["clean_accuracy"] > 0.85
    assert scores["logit_difference"] > 3
    assert scores["n_pairs"] == 64


def test_scores_are_those_of_the_logits(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = make_task("closing_bracket", lm.tokenizer, n_pairs=7, seed=0)
    with torch.no_grad():
        clean, corrupt = (lm.logits(ids)[:, -1] for ids in (pairs.clean_ids, pairs.corrupt_ids))
    each = torch.arange(7)
    right = clean[each, pairs.answer_ids] - clean[each, pairs.wrong_ids]
    left = corrupt[each, pairs.wrong_ids] - corrupt[each, pairs.answer_ids]
    expected = {
        "accuracy": (torch.cat([right, left]) > 0).double().mean().item(),
        "logit_difference": (right.mean().item() + left.mean().item()) / 2,
        "clean_accuracy": (right > 0).double().mean().item(),
        "clean_logit_difference": right.mean().item(),
        "n_pairs": 7,
    }
    assert task_scores(lm, pairs) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr("strata.evaluate.tasks.scores._LOGITS_BYTES", 3 * 4 * 4096 * pairs.clean_ids.shape[1])
    assert task_scores(lm, pairs) == pytest.approx(expected, rel=1e-4)  # in batches of three


def test_whoever_does_not_see_the_prompt_scores_chance(lm: LanguageModel) -> None:
    """A zero SAE behind the last block leaves one prediction for all prompts: exactly half of them are right."""
    pairs = make_task("self_argument", lm.tokenizer, n_pairs=12, seed=0)
    site = lm.sites[-1]
    scores = task_scores(lm, pairs, {site: zero_sae(lm.d_in(site))})
    assert (scores["accuracy"], scores["clean_accuracy"]) in ((0.5, 0.0), (0.5, 1.0))
    assert abs(scores["logit_difference"]) < 1e-9
    alone = task_scores(lm, pairs.split(1)[0], {site: zero_sae(lm.d_in(site))})
    assert alone["clean_logit_difference"] == pytest.approx(scores["clean_logit_difference"])
    assert abs(alone["clean_logit_difference"]) > 0.01


def test_special_tokens_keep_their_own_activations(lm: LanguageModel) -> None:
    saes = {site: zero_sae(lm.d_in(site)) for site in lm.sites[2:4]}
    only_specials = TaskPairs(
        "specials", *(torch.zeros(2, 3, dtype=torch.long),) * 2, torch.tensor([5, 6]), torch.tensor([7, 8])
    )
    assert task_scores(lm, only_specials, saes) == task_scores(lm, only_specials)


def test_a_model_that_fills_masks_does_no_tasks(lm: LanguageModel) -> None:
    pairs = make_task("induction", tiny_tokenizer(), n_pairs=4, seed=0)
    with pytest.raises(UserError, match=r"`model` must predict the next token to do tasks\. Got BertForMaskedLM\."):
        task_scores(LanguageModel(tiny_model("bert")), pairs)
