"""Language models as interpreters: prompts, answers, a server that misbehaves, a model on this machine."""

import asyncio
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from loopback_server import Answer, Behaviour, LoopbackServer, chat_answer, echo_answer, task_of, tokens_of
from strata.errors import UserError
from strata.interpret.explain.interpreter import (
    Explanation,
    Failed,
    Judged,
    JudgeTask,
    Material,
    Simulated,
    SimulationTask,
    levels,
)
from strata.interpret.prompted import answers, prompts
from strata.interpret.prompted.cache import RequestCache
from strata.interpret.prompted.completer import Blanks, Chat, Message, Reply, Request
from strata.interpret.prompted.endpoint import Endpoint
from strata.interpret.prompted.endpoint_settings import EndpointSettings
from strata.interpret.prompted.interpreter import PromptedInterpreter
from strata.interpret.prompted.local import LocalModel, check_model
from strata.interpret.prompted.prompts import running_text, shown_token
from strata.interpret.windows import Windows
from strata.lm.generation import padded, until
from tiny_models import tiny_model

# Two days that fire, words that do not, and texts that could be mistaken for a frame.
VOCABULARY = ["", " Friday", " Sunday", "They", " met", " on", ",", "\n", "\t", "\\n", "⟦", "\ufffd", " not", "10", " "]
LEVEL_OF = {1: 9, 2: 10}
EXPLANATION = Explanation(key="layers.0", latent=3, text="days of the week")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("OPENAI_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[..., LoopbackServer]]:
    servers = []

    def started(behaviour: Behaviour) -> LoopbackServer:
        servers.append(LoopbackServer(behaviour).__enter__())
        return servers[-1]

    yield started
    for server in servers:
        server.__exit__(None, None, None)


def endpoint(server: LoopbackServer, *, cache: Path | str = ":memory:", **settings: Any) -> Endpoint:
    settings = {"model": "tiny", "base_url": server.url, "backoff_seconds": 0.01, "timeout_seconds": 30.0} | settings
    return Endpoint(EndpointSettings(**settings), cache=RequestCache(cache), progress=False)


def interpreter(server: LoopbackServer, **settings: Any) -> PromptedInterpreter:
    return PromptedInterpreter(endpoint(server, **settings), VOCABULARY)


def some_windows(n: int, *, fires: bool, seed: int = 0, n_tokens: int = 12) -> Windows:
    generator = np.random.default_rng(seed)
    ids = generator.integers(3, len(VOCABULARY), size=(n, n_tokens))
    if fires:
        ids[np.arange(n), generator.integers(1, n_tokens, size=n)] = generator.integers(1, 3, size=n)
    is_token = np.ones_like(ids, dtype=bool)
    is_token[:, 0] = False
    ids[:, 0] = 0
    activations = np.vectorize(lambda i: 0.5 * LEVEL_OF.get(i, 0))(ids).astype(np.float32)
    peaks = activations.argmax(1)
    return Windows(ids, activations, is_token, peaks, np.arange(n), np.arange(n) * n_tokens)


def both_kinds(n: int) -> Windows:
    mixed = Windows.joined([some_windows(n, fires=True), some_windows(n, fires=False, seed=1)])
    return mixed[np.random.default_rng(2).permutation(2 * n)]


def fires_in(windows: Windows) -> np.ndarray:
    return windows.activations.max(1) > 0


def balanced_accuracy(judged: Judged, truth: np.ndarray) -> float:
    yes = judged.probabilities > 0.5
    return float((yes[truth].mean() + (~yes[~truth]).mean()) / 2)


def requests_to_ask(n: int) -> list[Request]:
    return [Chat((Message("user", f"question {i}"),), max_tokens=10) for i in range(n)]


# What a prompt shows


def test_levels_are_floors() -> None:
    activations = np.array([-1.0, 0.0, 0.0999, 0.1, 0.55, 0.999, 1.0, 1.2], dtype=np.float32)
    assert levels(activations, max_activation=1.0).tolist() == [0, 0, 0, 1, 5, 9, 10, 10]
    assert levels(activations, max_activation=0.0).tolist() == [0] * 8
    assert levels(activations.reshape(2, 4), max_activation=2.0).shape == (2, 4)


def test_a_shown_token_keeps_to_its_line_and_stays_itself() -> None:
    texts = ["\n", "\\n", "\\\n", "\t", "\\t", "\r", "\ufffd", "\\ufffd", " a", "a", ""]
    shown = [shown_token(text) for text in texts]
    assert len(set(shown)) == len(texts)
    assert not any(character in text for text in shown for character in "\n\t\r\ufffd")


def test_marks_stand_around_runs_and_look_alikes_are_escaped() -> None:
    marked = np.array([False, True, True, False, True])
    assert running_text(["a", "b", "⟦", "⟧c", "d"], marked) == "a⟦b\\⟦⟧\\⟧c⟦d⟧"
    assert running_text(["a", "\n"], np.array([False, False])) == "a\\n"
    assert running_text(["⟦", "a"]) == "⟦a"


def test_an_explainers_prompt_repeats_the_few_that_fire() -> None:
    tokens, few, many = ["a", "b", "c", "d", "e", "f"], np.array([0, 0, 7, 0, 0, 0]), np.array([0, 5, 7, 0, 0, 0])
    sparse, dense = (prompts.explain([(tokens, shown)]).messages for shown in (few, many))
    assert sparse[-1].text == "Window 1\na\t0\nb\t0\nc\t7\nd\t0\ne\t0\nf\t0\n\nOnly the tokens above 0, again\nc\t7"
    assert dense[-1].text.count("c\t7") == 1
    assert sparse[:-1] == dense[:-1]  # what is the same for all features stands first


def test_prompts_begin_alike_for_all_features() -> None:
    chats = [prompts.simulate_in_chat(text, ["a"]) for text in ("one", "two")]
    assert chats[0].messages[:-1] == chats[1].messages[:-1]
    judged = [prompts.judge(text, [(["a"], None)]) for text in ("one", "two")]
    assert judged[0][:-1] == judged[1][:-1]
    marked = prompts.judge("one", [(["a"], np.array([True]))])
    assert marked[0] != judged[0][0]
    assert marked[-1].text.endswith("1: ⟦a⟧")


def test_levels_are_shown_of_all_windows(serve: Callable[..., LoopbackServer]) -> None:
    server = serve(lambda body, _: Answer(chat_answer(body, ' "Days of the week."\n')))
    windows = some_windows(10, fires=True)
    material = Material("layers.0", 3, windows, max_activation=5.0)
    (found,) = interpreter(server).explain([material])
    assert found == Explanation(key="layers.0", latent=3, text="Days of the week.")
    shown = task_of(server.bodies[0]).split("\n\n")
    for i in range(10):
        lines = [f"{shown_token(VOCABULARY[t])}\t{LEVEL_OF.get(t, 0)}" for t in windows.token_ids[i, 1:].tolist()]
        assert shown[i] == f"Window {i + 1}\n" + "\n".join(lines)
    assert shown[10].startswith("Only the tokens above 0")
    assert len(shown) == 11


def test_nothing_to_explain_from_asks_nothing(serve: Callable[..., LoopbackServer]) -> None:
    server = serve(lambda body, _: Answer(chat_answer(body, "Days of the week.")))
    material = Material("layers.0", 3, some_windows(2, fires=True)[:0], max_activation=0.0)
    full = Material("layers.0", 4, some_windows(2, fires=True), max_activation=5.0)
    found = interpreter(server).explain([material, full])
    assert found == [Failed("nothing to explain from"), Explanation(key="layers.0", latent=4, text="Days of the week.")]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty answer"),
        (" \n", "empty answer"),
        ("\ufffd\ufffd%% 0x00 }{", "no words"),
        ("<think>let me see", "cut off"),
        ("word " * 400, "no sentence"),
        (None, "no text"),
    ],
)
def test_garbage_is_no_explanation(serve: Callable[..., LoopbackServer], content: Any, reason: str) -> None:
    choice = {"message": {"role": "assistant", "content": content}}
    server = serve(lambda body, _: Answer({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}))
    (found,) = interpreter(server).explain([Material("layers.0", 3, some_windows(2, fires=True), max_activation=5.0)])
    assert isinstance(found, Failed)
    assert reason in found.reason


def test_nothing_in_an_explanation_moves_a_terminals_cursor() -> None:
    assert answers.explanation_of(Reply(text="Days\x1b[2J of\x00 the\x9b week")) == "Days[2J of the week"


def test_thoughts_are_no_part_of_the_explanation() -> None:
    assert answers.explanation_of(Reply(text="<think>hm</think>\n\nDays of\nthe week")) == "Days of the week"


# A server that knows the truth, and others


def judging(truth: dict[str, bool], **options: Any) -> Behaviour:
    def behaviour(body: dict[str, Any], _: int) -> Answer:
        lines = task_of(body).split("Windows\n")[1].split("\n")
        said = [(n, truth[text]) for n, _, text in (line.partition(": ") for line in lines)]
        return Answer(chat_answer(body, "\n".join(f"{n}\t{int(yes)}" for n, yes in said), **options))

    return behaviour


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("work", ["detection", "fuzzing"])
def test_an_oracle_judges_everything_right(serve: Callable[..., LoopbackServer], work: str, told: bool) -> None:
    windows = both_kinds(11)  # 22 windows: the last prompt has 2
    fires = fires_in(windows)
    marks = None
    if work == "fuzzing":  # the right tokens, or others
        marks = windows.activations > 0
        marks[~fires, 4] = True
    shown = [
        running_text(
            [VOCABULARY[t] for t in windows.token_ids[i, 1:].tolist()], None if marks is None else marks[i, 1:]
        )
        for i in range(len(windows))
    ]
    server = serve(judging(dict(zip(shown, fires.tolist(), strict=True)), told=told))
    (judged,) = interpreter(server).judge([JudgeTask(EXPLANATION, windows, marks)])
    assert balanced_accuracy(judged, fires) == 1.0
    assert judged.failures == ()
    assert len(server.requests) == 5
    assert all(("logprobs" in body) for body in server.bodies)


def test_one_who_always_says_no_is_right_half_the_time(serve: Callable[..., LoopbackServer]) -> None:
    windows = both_kinds(10)
    server = serve(lambda body, _: Answer(chat_answer(body, "\n".join(f"{n}: no" for n in range(1, 6)))))
    (judged,) = interpreter(server).judge([JudgeTask(EXPLANATION, windows)])
    assert balanced_accuracy(judged, fires_in(windows)) == 0.5
    assert judged.probabilities.tolist() == [0.0] * 20


def test_probabilities_are_those_of_the_answer(serve: Callable[..., LoopbackServer]) -> None:
    def tops(_: int, token: str) -> dict[str, float]:
        return {"1": 0.6, " 0": 0.1, "0": 0.1, "x": 0.2} if token in "01" else {token: 1.0}

    server = serve(lambda body, _: Answer(chat_answer(body, "1\t1\n2\t0", tops=tops)))
    (judged,) = interpreter(server).judge([JudgeTask(EXPLANATION, both_kinds(1))])
    assert judged.probabilities == pytest.approx([0.75, 0.75])


@pytest.mark.parametrize(
    "text", ["1\t1\n2\t0", "", "certainly!", "1\t1\n1\t1\n1\t1", "3\t1\n2\t1\n1\t1", "1 0 1", "7 7 7"]
)
def test_a_wrong_number_of_answers_answers_none(serve: Callable[..., LoopbackServer], text: str) -> None:
    server = serve(lambda body, _: Answer(chat_answer(body, text)))
    windows = some_windows(3, fires=True)
    first, second = interpreter(server).judge([JudgeTask(EXPLANATION, windows), JudgeTask(EXPLANATION, windows[:0])])
    assert np.isnan(first.probabilities).all()
    assert len(first.failures) == 3
    assert len(second.probabilities) == len(second.failures) == 0


@pytest.mark.parametrize(
    "text",
    ["1. yes\n2) no\n3 - Yes.", "yes\nno\nyes", "Here:\n1\t1\n2\t0\n3\t1\n", "<think>\n1\t0\n</think>yes\nno\nyes"],
)
def test_answers_in_other_clothes_are_understood(text: str) -> None:
    assert np.array_equal(answers.judgements_in_chat(Reply(text=text), n_windows=3), [1.0, 0.0, 1.0])


def levels_told(body: dict[str, Any]) -> list[tuple[str, int]]:
    """Tokens of a simulation's last task as they are shown, and their true levels."""
    level = {shown_token(VOCABULARY[token]): true for token, true in LEVEL_OF.items()}
    lines = task_of(body).rpartition("Tokens\n")[2].split("\n\n")[0].split("\n")
    return [(line, level.get(line, 0)) for line in lines]


def simulation_oracle(body: dict[str, Any], _: int, **options: Any) -> Answer:
    told = levels_told(body)
    if "prompt" in body:
        return Answer(echo_answer(body, lambda blank: {str(told[blank][1]): 0.5, "x": 0.5}, **options))
    return Answer(chat_answer(body, "\n".join(f"{token}\t{level}" for token, level in told), **options))


def pooled_correlation(simulated: Simulated, windows: Windows) -> float:
    known = windows.is_token
    return float(np.corrcoef(simulated.levels[known], windows.activations[known])[0, 1])


@pytest.mark.parametrize(
    ("simulation", "options"),
    [
        ("chat", {}),
        ("chat", {"told": False}),
        ("completions", {}),
        ("completions", {"begins": "<s>"}),
        ("completions", {"offsets": False, "begins": "<s>"}),
    ],
)
def test_an_oracle_simulates_everything_right(
    serve: Callable[..., LoopbackServer], simulation: str, options: dict[str, Any]
) -> None:
    windows = both_kinds(6)
    server = serve(lambda body, n: simulation_oracle(body, n, **options))
    (simulated,) = interpreter(server, simulation=simulation).simulate([SimulationTask(EXPLANATION, windows)])
    assert simulated.failures == ()
    assert pooled_correlation(simulated, windows) == pytest.approx(1.0, abs=1e-12)
    assert np.array_equal(np.isnan(simulated.levels), ~windows.is_token)
    paths = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
    assert {path for path, _, _ in server.requests} == {paths[simulation]}
    assert len(server.requests) == 12


def test_expected_levels_are_means_over_the_named_digits() -> None:
    assert answers.expected_level({"2": 0.2, "10": 0.2, "11": 0.5, "x": 0.1}) == pytest.approx(6.0)
    assert math.isnan(answers.expected_level({}))
    assert math.isnan(answers.expected_level({"7": 0.0}))


@pytest.mark.parametrize("simulation", ["chat", "completions"])
def test_absent_digits_are_told_and_never_zero(serve: Callable[..., LoopbackServer], simulation: str) -> None:
    windows = some_windows(1, fires=True)

    def behaviour(body: dict[str, Any], _: int) -> Answer:
        if simulation == "completions":
            return Answer(echo_answer(body, lambda blank: {"x": 1.0} if blank == 2 else {"3": 0.5, "4": 0.5}))
        text = "\n".join(f"{token}\t3" for token, _ in levels_told(body))
        numbers = [i for i, token in enumerate(tokens_of(text)) if token == "3"]
        likely = {place: {"3": 0.5, "4": 0.5} for place in numbers} | {numbers[2]: {"x": 1.0}}
        return Answer(chat_answer(body, text, tops=lambda i, token: likely.get(i, {token: 1.0})))

    (simulated,) = interpreter(serve(behaviour), simulation=simulation).simulate([SimulationTask(EXPLANATION, windows)])
    expected = np.full(11, 3.5)
    expected[2] = np.nan
    assert np.allclose(simulated.levels[0, 1:], expected, equal_nan=True)
    assert simulated.failures == (Failed("no level for 1 of 11 tokens: digits absent"),)


def test_lines_of_other_tokens_are_no_prediction() -> None:
    reply = Reply(text="Here you are:\na\t1\nc\t2\n c\tmany\nd\t10")
    found, reasons = answers.levels_in_table(reply, ["a", "b", "c", " d", "e"])
    assert np.array_equal(found, [1, np.nan, np.nan, 10, np.nan], equal_nan=True)
    assert reasons == ("another token", "no number", "line missing")


def test_a_ten_of_two_tokens_is_told() -> None:
    tokens = [{"token": text, "bytes": None, "logprob": 0.0, "top_logprobs": []} for text in ("a", "\t", "1", "0")]
    answer = {"choices": [{"message": {"content": "a\t10"}, "logprobs": {"content": tokens}}]}
    from strata.interpret.prompted.wire import reply

    read = reply(answer, Chat((), max_tokens=9, choices=prompts.LEVELS))
    assert isinstance(read, Reply)
    found, reasons = answers.levels_in_table(read, ["a"])
    assert math.isnan(found[0])
    assert reasons == ("a number of several tokens",)


# A server that misbehaves


@pytest.mark.parametrize(
    ("trouble", "n_sent"),
    [
        (Answer(status=500), 2),
        (Answer(b"<html>", status=503), 2),
        (Answer(status=429, headers={"Retry-After": "0"}), 2),
        (Answer(closes=True), 2),
        (Answer(b"{ not json"), 2),
        (Answer(seconds=2.0), 2),
        (Answer({"choices": []}), 1),
        (Answer({"error": {"message": "too long"}}, status=400), 1),
    ],
    ids=["500", "503", "429", "closed", "torn", "slow", "empty", "400"],
)
def test_trouble_is_counted_and_survived(serve: Callable[..., LoopbackServer], trouble: Answer, n_sent: int) -> None:
    server = serve(lambda body, _: trouble if "question 2" in task_of(body) else Answer(chat_answer(body, "fine")))
    # A busy machine is slow too: a short timeout only where it is what the test is of.
    asked = endpoint(server, n_retries=1, timeout_seconds=1.0 if trouble.seconds else 30.0)
    found = asked.complete(requests_to_ask(5))
    assert [isinstance(reply, Failed) for reply in found] == [False, False, True, False, False]
    sent = Counter(map(task_of, server.bodies))
    assert sent["question 2"] == n_sent
    account = asked.account
    assert (account.n_requests, account.n_answered, account.n_failed, account.n_sent) == (5, 4, 1, 4 + n_sent)


def test_trouble_that_passes_is_no_failure(serve: Callable[..., LoopbackServer]) -> None:
    troubles = {1: Answer(status=500), 2: Answer(closes=True), 3: Answer(status=429, headers={"Retry-After": "0.3"})}
    server = serve(lambda body, n: troubles.get(n, Answer(chat_answer(body, "fine"))))
    began = time.monotonic()
    (found,) = endpoint(server).complete(requests_to_ask(1))
    assert found == Reply(text="fine")
    assert len(server.requests) == 4
    assert time.monotonic() - began > 0.3


def test_the_wait_that_a_server_wants_has_a_bound(serve: Callable[..., LoopbackServer]) -> None:
    busy = Answer(status=429, headers={"Retry-After": "3600"})
    server = serve(lambda body, n: busy if n == 1 else Answer(chat_answer(body, "fine")))
    began = time.monotonic()
    assert endpoint(server, most_retry_after_seconds=0.1).complete(requests_to_ask(1)) == [Reply(text="fine")]
    assert 0.1 < time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (401, {"error": {"message": "wrong key secret-key-7"}}, "MY_KEY"),
        (403, {}, "API key"),
        (404, {"error": {"message": "no such model"}}, "`model`"),
        (429, {"error": {"message": "pay secret-key-7", "code": "insufficient_quota"}}, "money"),
    ],
)
def test_what_the_user_must_mend_is_an_error_at_once(
    serve: Callable[..., LoopbackServer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    status: int,
    content: Any,
    words: str,
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-key-7")
    server = serve(lambda body, _: Answer(content, status=status))
    asked = endpoint(server, api_key_variable="MY_KEY", cache=tmp_path / "a.sqlite", n_concurrent=8)
    with pytest.raises(UserError, match=words) as error:
        asked.complete(requests_to_ask(200))
    assert len(server.requests) <= 8, "those that were on their way when the first came back"
    assert server.requests[0][2]["authorization"] == "Bearer secret-key-7"
    assert "secret-key-7" not in str(error.value)
    assert all(b"secret-key-7" not in path.read_bytes() for path in tmp_path.iterdir())


def test_requests_that_are_all_refused_are_an_error(serve: Callable[..., LoopbackServer]) -> None:
    server = serve(lambda body, _: Answer({"error": {"message": "no logprobs here"}}, status=400))
    with pytest.raises(UserError, match="no logprobs here"):
        endpoint(server).complete(requests_to_ask(300))
    assert 20 <= len(server.requests) < 40
    found = endpoint(server).complete(requests_to_ask(3))
    assert all(isinstance(reply, Failed) and "no logprobs here" in reply.reason for reply in found)


def test_a_server_that_answers_none_of_many_requests_is_an_error(serve: Callable[..., LoopbackServer]) -> None:
    server = serve(lambda body, _: Answer(status=500))
    with pytest.raises(UserError, match="answered none of the first 20 requests: status 500"):
        endpoint(server, n_retries=0).complete(requests_to_ask(300))
    assert 20 <= len(server.requests) < 40
    once = serve(lambda body, n: Answer(chat_answer(body, "fine")) if n == 1 else Answer(status=500))
    asked = endpoint(once, n_retries=0, n_concurrent=1)
    assert asked.complete(requests_to_ask(60)).count(Failed("status 500")) == 59
    assert asked.complete(requests_to_ask(120)).count(Failed("status 500")) == 119  # it has answered before


def test_a_servers_words_are_passed_on_whole_and_harmless(serve: Callable[..., LoopbackServer]) -> None:
    said = "none of\n this: \x1b]0;title\x07 works"
    server = serve(lambda body, _: Answer({"error": {"message": said}}, status=400))
    (found,) = endpoint(server).complete(requests_to_ask(1))
    assert isinstance(found, Failed)
    assert "none of this: ␛]0;title␇ works" in found.reason


def as_reasoning_models_do(body: dict[str, Any], _: int) -> Answer:
    """Refuses two parameters, one after the other, in OpenAI's words."""
    wrong = {
        "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
        " 'max_completion_tokens' instead.",
        "temperature": "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1)"
        " value is supported.",
    }
    for name, message in wrong.items():
        if name in body:
            error = {
                "message": message,
                "type": "invalid_request_error",
                "param": name,
                "code": "unsupported_parameter",
            }
            return Answer({"error": error}, status=400)
    return Answer(chat_answer(body, "fine"))


@pytest.mark.parametrize("n_concurrent", [1, 8])
def test_parameters_that_are_refused_are_said_otherwise_and_that_is_remembered(
    serve: Callable[..., LoopbackServer], tmp_path: Path, capsys: pytest.CaptureFixture[str], n_concurrent: int
) -> None:
    server = serve(as_reasoning_models_do)
    asked = endpoint(server, n_retries=0, n_concurrent=n_concurrent, cache=tmp_path / "a.sqlite")
    assert asked.complete(requests_to_ask(30)) == [Reply(text="fine")] * 30
    n_sent = len(server.requests)
    assert 32 <= n_sent <= 30 + 2 * n_concurrent
    assert asked.account.n_sent == n_sent
    assert asked.complete(requests_to_ask(35))[30:] == [Reply(text="fine")] * 5
    assert len(server.requests) == n_sent + 5
    for body in server.bodies[n_sent:]:
        assert set(body) == {"model", "messages", "max_completion_tokens"} and body["max_completion_tokens"] == 10
    err = capsys.readouterr().err
    assert err.count("`max_completion_tokens`") == err.count("no `temperature`") == 1
    # An answer is kept under what was meant, so that it is found again by one who knows nothing of all this.
    assert endpoint(server, cache=tmp_path / "a.sqlite").complete(requests_to_ask(35)) == [Reply(text="fine")] * 35
    assert len(server.requests) == n_sent + 5


def test_a_refusal_that_names_a_parameter_in_passing_changes_no_words(serve: Callable[..., LoopbackServer]) -> None:
    said = "'max_tokens' or 'max_completion_tokens' is too large: 10. This model's maximum context length is 8 tokens."
    server = serve(lambda body, _: Answer({"error": {"message": said}}, status=400))
    assert isinstance(endpoint(server).complete(requests_to_ask(1))[0], Failed)
    assert len(server.requests) == 1 and "max_tokens" in server.bodies[0]


def test_more_fields_and_another_limit_are_sent_and_counted(serve: Callable[..., LoopbackServer]) -> None:
    server = serve(lambda body, _: Answer({**chat_answer(body, "fine"), "usage": None}))
    more = {"max_completion_tokens": 500, "seed": 7}
    asked = endpoint(server, extra_body=more, price_per_million_output=1.0)
    asked.complete(requests_to_ask(1))
    assert "max_tokens" not in server.bodies[0] and server.bodies[0].items() >= more.items()
    assert asked.account.cost == pytest.approx(500e-6)


def test_failures_reach_the_interpreters_results(serve: Callable[..., LoopbackServer]) -> None:
    asker = interpreter(serve(lambda body, _: Answer(status=500)), n_retries=0)
    windows = some_windows(3, fires=True)
    assert asker.explain([Material("layers.0", 3, windows, max_activation=5.0)]) == [Failed("status 500")]
    (simulated,) = asker.simulate([SimulationTask(EXPLANATION, windows)])
    assert np.isnan(simulated.levels).all()
    assert simulated.failures == (Failed("status 500"),) * 3
    (judged,) = asker.judge([JudgeTask(EXPLANATION, windows)])
    assert np.isnan(judged.probabilities).all()
    assert judged.failures == (Failed("status 500"),) * 3


# Queue, cache, cost


def all_together(n: int, text: str) -> Behaviour:
    """Answers once n requests have come; and a little later, so that one too many would be seen."""
    barrier = threading.Barrier(n)

    def behaviour(body: dict[str, Any], _: int) -> Answer:
        barrier.wait(timeout=20)
        return Answer(chat_answer(body, text), seconds=0.01)

    return behaviour


@pytest.mark.parametrize("n_concurrent", [1, 6])
def test_as_many_at_once_as_allowed_and_no_more(serve: Callable[..., LoopbackServer], n_concurrent: int) -> None:
    server = serve(all_together(n_concurrent, "fine"))
    found = endpoint(server, n_concurrent=n_concurrent, n_retries=0).complete(requests_to_ask(24))
    assert found == [Reply(text="fine")] * 24
    assert server.most_at_once == n_concurrent


def test_prompts_of_all_features_share_the_queue(serve: Callable[..., LoopbackServer]) -> None:
    server = serve(all_together(8, "1\t1"))
    tasks = [JudgeTask(EXPLANATION, some_windows(1, fires=True, seed=seed)) for seed in range(8)]
    judged = interpreter(server, n_concurrent=8).judge(tasks)
    assert server.most_at_once == 8
    assert [j.probabilities.tolist() for j in judged] == [[1.0]] * 8


def test_nothing_is_asked_twice(serve: Callable[..., LoopbackServer], tmp_path: Path) -> None:
    server = serve(lambda body, n: Answer(status=500) if n == 3 else Answer(simulation_oracle(body, n).content))
    windows = some_windows(4, fires=True)
    task = SimulationTask(EXPLANATION, windows)
    options = {"cache": tmp_path / "index" / "answers.sqlite", "n_retries": 0, "n_concurrent": 1}
    prices = {"price_per_million_input": 1.0, "price_per_million_output": 1.0}
    (first,) = interpreter(server, **options).simulate([task])
    assert len(first.failures) == 1
    again = endpoint(server, **options, **prices)
    same, repeated = PromptedInterpreter(again, VOCABULARY).simulate([task, task])
    assert len(server.requests) == 5  # the one that failed is not kept
    known = ~np.isnan(first.levels)
    assert np.array_equal(first.levels[known], same.levels[known])
    assert np.array_equal(same.levels, repeated.levels, equal_nan=True)
    assert (again.account.n_cached, again.account.n_answered, again.account.n_sent) == (7, 1, 1)
    other_model = interpreter(server, **options, model="other")
    other_model.simulate([task])
    assert len(server.requests) == 9


KILLED = """
import sys
from pathlib import Path
from strata.interpret.prompted.cache import RequestCache
from strata.interpret.prompted.completer import Chat, Message
from strata.interpret.prompted.endpoint import Endpoint
from strata.interpret.prompted.endpoint_settings import EndpointSettings
settings = EndpointSettings(model="tiny", base_url=sys.argv[1], n_concurrent=4)
asker = Endpoint(settings, cache=RequestCache(Path(sys.argv[2])))
asker.complete([Chat((Message("user", f"question {i}"),), max_tokens=10) for i in range(30)])
"""


def test_a_run_that_is_killed_asks_nothing_twice(serve: Callable[..., LoopbackServer], tmp_path: Path) -> None:
    server = serve(lambda body, n: Answer(hangs=True) if n > 12 else Answer(chat_answer(body, "fine")))
    path = tmp_path / "answers.sqlite"
    with subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(path)], stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while server.n_hanging < 4 and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()
    answered, lost = map(task_of, server.bodies[:12]), set(map(task_of, server.bodies[12:]))
    assert len(server.requests) == 16
    server.behaviour = lambda body, _: Answer(chat_answer(body, "fine"))
    found = endpoint(server, cache=path).complete(requests_to_ask(30))
    assert found == [Reply(text="fine")] * 30
    sent = Counter(map(task_of, server.bodies))
    assert all(sent[text] == 1 for text in answered)
    assert {text for text, n in sent.items() if n > 1} == lost  # asked, and never answered
    assert sum(sent.values()) == 30 + 4


def test_tokens_and_cost_are_counted(serve: Callable[..., LoopbackServer]) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 10}
    server = serve(lambda body, _: Answer({**chat_answer(body, "fine"), "usage": usage}))
    asked = endpoint(server, price_per_million_input=2.0, price_per_million_output=30.0)
    asked.complete(requests_to_ask(3))
    assert (asked.account.n_prompt_tokens, asked.account.n_completion_tokens) == (3000, 30)
    assert asked.account.cost == pytest.approx(3 * (1000 * 2.0 + 10 * 30.0) / 1e6)
    unknown = serve(lambda body, _: Answer({**chat_answer(body, "fine"), "usage": None}))
    guessed = endpoint(unknown, price_per_million_input=2.0)
    guessed.complete(requests_to_ask(3))
    assert guessed.account.n_without_usage == 3
    assert guessed.account.cost > 0


@pytest.mark.parametrize("n_concurrent", [1, 8])
def test_the_limit_on_cost_is_not_passed(
    serve: Callable[..., LoopbackServer], capsys: pytest.CaptureFixture[str], n_concurrent: int
) -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 5}  # 5 written of at most 10
    server = serve(lambda body, _: Answer({**chat_answer(body, "fine"), "usage": usage}, seconds=0.005))
    settings = EndpointSettings(
        model="tiny", base_url=server.url, n_concurrent=n_concurrent, price_per_million_output=1.0, max_cost=102e-6
    )
    asked = Endpoint(settings, cache=RequestCache(":memory:"))
    found = asked.complete(requests_to_ask(60))
    n_answered = sum(isinstance(reply, Reply) for reply in found)
    assert n_answered == len(server.requests) == 19  # 95 spent; one more might cost 10
    assert asked.account.cost == pytest.approx(95e-6)
    assert [reply for reply in found if isinstance(reply, Failed)] == [Failed("budget")] * 41
    assert "41 prompts were not asked" in capsys.readouterr().err
    assert asked.complete(requests_to_ask(19))[:19] == found[:19]  # the cache costs nothing
    assert len(server.requests) == 19


@pytest.mark.parametrize("text", ["x" * 2000, "é" * 1000])
def test_the_first_requests_do_not_pass_the_limit_either(serve: Callable[..., LoopbackServer], text: str) -> None:
    """A tokenizer that has a token for each byte, and a template around them."""

    def behaviour(body: dict[str, Any], _: int) -> Answer:
        n_read = len(task_of(body).encode()) + 100
        return Answer({**chat_answer(body, "fine"), "usage": {"prompt_tokens": n_read, "completion_tokens": 1}})

    asked = endpoint(serve(behaviour), n_concurrent=8, price_per_million_input=1.0, max_cost=6000e-6)
    found = asked.complete([Chat((Message("user", f"{text}{i}"),), max_tokens=10) for i in range(8)])
    assert sum(isinstance(reply, Reply) for reply in found) == 2
    assert asked.account.cost <= 6000e-6


def test_attempts_that_time_out_count_as_spent(serve: Callable[..., LoopbackServer]) -> None:
    server = serve(lambda body, _: Answer(hangs=True))
    asked = endpoint(
        server, n_retries=9, timeout_seconds=0.1, price_per_million_output=1.0, max_cost=35e-6, n_concurrent=1
    )
    assert asked.complete(requests_to_ask(2)) == [Failed("budget"), Failed("budget")]
    assert asked.account.cost_of_timeouts == pytest.approx(30e-6)
    assert len(server.requests) == 3


def test_a_notebooks_loop_is_no_obstacle(serve: Callable[..., LoopbackServer]) -> None:
    server = serve(lambda body, _: Answer(chat_answer(body, "fine")))

    async def cell() -> list[Reply | Failed]:
        return endpoint(server).complete(requests_to_ask(3))

    assert asyncio.run(cell()) == [Reply(text="fine")] * 3
    refusing = serve(lambda body, _: Answer(status=401))

    async def wrong() -> None:
        endpoint(refusing).complete(requests_to_ask(3))

    with pytest.raises(UserError, match="API key"):
        asyncio.run(wrong())


def test_no_proxy_leads_to_this_machine(
    serve: Callable[..., LoopbackServer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = serve(lambda body, _: Answer(chat_answer(body, "fine")))
    assert endpoint(server, n_retries=0).complete(requests_to_ask(1)) == [Reply(text="fine")]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_cost": 1.0}, "prices to count with. Got 1 and prices of 0"),
        ({"base_url": "localhost"}, "base_url"),
        ({"base_url": "http://[::1"}, "base_url"),
        ({"base_url": "http://localhost:x/v1"}, "base_url"),
        ({"simulation": "both"}, "simulation"),
        ({"n_top_tokens": 21}, "n_top_tokens"),
        ({"n_concurrent": 0}, "n_concurrent"),
        ({"n_retries": -1}, "n_retries"),
        ({"timeout_seconds": 0.0}, "timeout_seconds"),
        ({"price_per_million_input": -1.0}, "price_per_million_input"),
        ({"max_cost": math.nan}, "max_cost"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], words: str) -> None:
    with pytest.raises((UserError, TypeError) if "both" in settings.values() else UserError, match=words):
        EndpointSettings(**({"model": "tiny"} | settings))


@pytest.mark.parametrize(
    "base_url",
    ["https://me:secret@models.example/v1", "https://secret@models.example/v1", "https://models.example/v1?key=secret",
     "https://models.example/v1#secret", "me:secret@models.example"],
)  # fmt: skip
def test_an_address_holds_no_secrets(base_url: str) -> None:
    with pytest.raises(UserError, match="`base_url` must") as error:
        EndpointSettings(model="tiny", base_url=base_url)
    assert "secret" not in str(error.value)


def test_a_named_variable_must_hold_a_key() -> None:
    settings = EndpointSettings(model="tiny", base_url="https://models.example/v1", api_key_variable="MY_KEY")
    asked = Endpoint(settings, cache=RequestCache(":memory:"))
    with pytest.raises(UserError, match="`MY_KEY` must hold the API key"):
        asked.complete(requests_to_ask(1))
    assert EndpointSettings(model="tiny", base_url="http://[::1]:8000/v1").is_loopback
    assert not settings.is_loopback


def test_openais_key_goes_to_openai_alone(
    serve: Callable[..., LoopbackServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "secret-of-openai")

    def key(base_url: str, **settings: Any) -> str:
        return EndpointSettings(model="tiny", base_url=base_url, **settings).api_key()

    assert key("https://api.openai.com/v1") == key("https://EU.api.openai.com/v1") == "secret-of-openai"
    others = ("https://models.example/v1", "https://api.openai.com.example/v1", "https://myapi.openai.com/v1")
    assert [key(other) for other in others] == ["", "", ""]
    assert key("https://models.example/v1", api_key_variable="OPENAI_API_KEY") == "secret-of-openai"
    server = serve(lambda body, _: Answer(chat_answer(body, "fine")))
    endpoint(server).complete(requests_to_ask(1))
    assert "secret-of-openai" not in str(server.requests[0][2])
    refusing = serve(lambda body, _: Answer(status=401))
    with pytest.raises(UserError, match=r"a request without one\. Name its variable with `api_key_variable`"):
        endpoint(refusing).complete(requests_to_ask(1))


@pytest.mark.parametrize(
    ("base_url", "variable", "warned"),
    [
        ("http://models.example/v1", "MY_KEY", True),
        ("https://models.example/v1", "MY_KEY", False),
        ("http://models.example/v1", "auto", False),
        ("http://127.0.0.1:8000/v1", "MY_KEY", False),
    ],
)
def test_a_key_that_others_can_read_is_told(
    capsys: pytest.CaptureFixture[str], base_url: str, variable: str, warned: bool
) -> None:
    settings = EndpointSettings(model="tiny", base_url=base_url, api_key_variable=variable)
    Endpoint(settings, cache=RequestCache(":memory:"), progress=False)
    assert ("without TLS" in capsys.readouterr().err) == warned


def test_the_extra_is_named_where_it_lacks(
    serve: Callable[..., LoopbackServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"strata-sae\[openai\]"):
        endpoint(serve(lambda body, _: Answer())).complete(requests_to_ask(1))


def test_a_cache_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match="SQLite"):
        RequestCache(tmp_path / "answers.sqlite")


# A model on this machine


def tokenizer(*, ten: bool = True, template: bool = False) -> PreTrainedTokenizerFast:
    """Bytes, and "10" as one token or as two."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0, "<|pad|>": 1, **{symbol: i + 2 for i, symbol in enumerate(alphabet)}}
    merges = [("1", "0")] if ten else []
    backend = Tokenizer(models.BPE(vocab=vocabulary | ({"10": len(vocabulary)} if ten else {}), merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|pad|>")
    if template:
        made.chat_template = (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
    return made


def roomy_model(architecture: str = "llama", *, most_tokens: int = 4096) -> Any:
    """A tiny model that reads our prompts."""
    import tiny_models

    sizes = {"max_position_embeddings": most_tokens, "n_positions": most_tokens}
    before = tiny_models._CONFIGS[architecture]
    try:
        tiny_models._CONFIGS[architecture] = before | {key: size for key, size in sizes.items() if key in before}
        return tiny_model(architecture)
    finally:
        tiny_models._CONFIGS[architecture] = before


def by_hand(model: Any, request: Blanks) -> list[dict[str, float]]:
    """One dense softmax at each blank, over ids that are written down byte by byte."""
    byte = tokenizer().convert_tokens_to_ids
    encoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def ids_of(text: str) -> list[int]:
        ids = [byte(symbol) for symbol in encoder.pre_tokenize_str(text)[0][0]]
        one, zero, ten = byte("1"), byte("0"), byte("10")
        joined: list[int] = []
        for token in ids:
            if joined and joined[-1] == one and token == zero:
                joined[-1] = ten
            else:
                joined.append(token)
        return joined

    text = "\n\n".join(message.text for message in request.messages) + "\n\n"
    ids, found = ids_of(text), []
    for piece in request.pieces:
        ids += ids_of(piece)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        dense = logits.softmax(-1)
        chosen = {choice: float(dense[ids_of(choice)[0]]) for choice in request.choices}
        found.append({choice: p / sum(chosen.values()) for choice, p in chosen.items()})
        ids += ids_of(request.filler)
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_local_models_probabilities_are_exact(architecture: str) -> None:
    model = roomy_model(architecture)
    local = LocalModel(model, tokenizer(), progress=False)
    short, long = (
        prompts.simulate_in_blanks("days", ["a", "10", "\n"]),
        prompts.simulate_in_blanks("x", ["b", " c"] * 3),
    )
    for reply, request in zip(local.complete([short, long, short]), [short, long, short], strict=True):
        assert isinstance(reply, Reply)
        for told, expected in zip(reply.blanks, by_hand(model, request), strict=True):
            assert told == pytest.approx(expected, rel=1e-4)
            assert sum(told.values()) == pytest.approx(1.0, rel=1e-5)
            assert answers.expected_level(told) == pytest.approx(sum(int(c) * p for c, p in expected.items()), rel=1e-4)
    assert (local.account.n_requests, local.account.n_answered, local.account.n_cached) == (3, 2, 1)


def test_how_prompts_are_batched_changes_nothing() -> None:
    model = roomy_model()
    requests: list[Request] = [prompts.simulate_in_blanks("x" * n, ["a"] * n) for n in (1, 9, 4)]
    together = LocalModel(model, tokenizer(), batch_tokens=100_000, progress=False).complete(requests)
    alone = LocalModel(model, tokenizer(), batch_tokens=1, progress=False).complete(requests)
    for one, other in zip(together, alone, strict=True):
        assert isinstance(one, Reply) and isinstance(other, Reply)
        for a, b in zip(one.blanks, other.blanks, strict=True):
            assert dict(a) == pytest.approx(dict(b), rel=1e-4)


@pytest.mark.parametrize("template", [True, False])
def test_a_local_model_does_all_of_an_interpreters_work(template: bool) -> None:
    model = roomy_model()
    local = LocalModel(model, tokenizer(template=template), progress=False)
    asker = PromptedInterpreter(local, VOCABULARY, windows_per_prompt=2)
    windows = some_windows(3, fires=True)
    (simulated,) = asker.simulate([SimulationTask(EXPLANATION, windows)])
    assert simulated.failures == ()
    assert (simulated.levels[windows.is_token] > 0).all() and (simulated.levels[windows.is_token] < 10).all()
    (judged,) = asker.judge([JudgeTask(EXPLANATION, windows, windows.activations > 0)])
    assert judged.failures == ()
    assert ((judged.probabilities > 0) & (judged.probabilities < 1)).all()
    if template:  # what random weights write may be garbage, and then is told
        (found,) = asker.explain([Material("layers.0", 3, windows[:1], max_activation=5.0)])
        assert isinstance(found, (Explanation, Failed))


def test_a_local_model_writes_what_generate_writes() -> None:
    model, own = roomy_model(), tokenizer()
    requests: list[Request] = [Chat((Message("user", text),), max_tokens=12) for text in ("They met", "on Friday, 10")]
    found = LocalModel(model, own, progress=False).complete(requests)
    for reply, text in zip(found, ("They met", "on Friday, 10"), strict=True):
        ids, read = own(text + "\n\n")["input_ids"], len(own(text + "\n\n")["input_ids"])
        for _ in range(12):
            with torch.no_grad():
                ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
            if ids[-1] == 0:
                break
        assert reply == Reply(text=own.decode(ids[read:], skip_special_tokens=True))


def test_a_checkpoints_generation_settings_change_nothing() -> None:
    model, own = roomy_model(), tokenizer()
    requests: list[Request] = [Chat((Message("user", "They met"),), max_tokens=16)]
    plain = LocalModel(model, own, progress=False).complete(requests)
    before = model.generation_config
    ids = own("They met\n\n")["input_ids"]
    with torch.no_grad():
        likeliest = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    stated = GenerationConfig(
        eos_token_id=before.eos_token_id, repetition_penalty=9.0, no_repeat_ngram_size=1, suppress_tokens=[likeliest],
        min_length=20, forced_eos_token_id=5,
    )  # fmt: skip
    try:
        model.generation_config = stated
        assert LocalModel(model, own, progress=False).complete(requests) == plain
        assert model.generation_config is stated
        with torch.no_grad():
            theirs = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=16)
        assert int(theirs[0, len(ids)]) != likeliest  # so they would have changed something
    finally:
        model.generation_config = before


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_stands_where_it_is_wanted(side: Any) -> None:
    batch, is_token = padded([[3, 4, 5], [6]], pad=9, side=side)
    assert batch.tolist() == [[3, 4, 5], [9, 9, 6] if side == "left" else [6, 9, 9]]
    assert torch.equal(is_token, batch != 9)


def test_text_is_cut_at_the_first_token_that_ends_it() -> None:
    assert until([4, 5, 2, 6, 3], frozenset({3, 2})) == [4, 5]
    assert until([4, 5], frozenset({2})) == [4, 5]
    assert until([4, 5], frozenset()) == [4, 5]


def test_the_chat_template_is_used() -> None:
    from strata.interpret.prompted.local_ids import PromptIds

    own = tokenizer(template=True)
    request = Blanks((Message("user", "Q"),), pieces=("a\t", "\nb\t"), choices=("0", "10"))
    ids, places = PromptIds(own).blanks(request)
    assert own.decode(ids) == "<user>Q</user><assistant>a\t?\nb\t?"
    assert [own.decode(ids[: place + 1])[-2:] for place in places] == ["a\t", "b\t"]


def test_a_tokenizer_that_splits_ten_is_refused() -> None:
    local = LocalModel(roomy_model(), tokenizer(ten=False), progress=False)
    asker = PromptedInterpreter(local, VOCABULARY)
    windows = some_windows(1, fires=True)
    with pytest.raises(UserError, match="'10'"):
        asker.simulate([SimulationTask(EXPLANATION, windows)])
    (judged,) = asker.judge([JudgeTask(EXPLANATION, windows)])  # which needs no 10
    assert judged.failures == ()


def test_prompts_that_are_too_long_for_a_local_model_are_told() -> None:
    local = LocalModel(roomy_model(most_tokens=64), tokenizer(), progress=False)
    windows = some_windows(2, fires=True)
    (simulated,) = PromptedInterpreter(local, VOCABULARY).simulate([SimulationTask(EXPLANATION, windows)])
    assert np.isnan(simulated.levels).all()
    assert simulated.failures == (Failed("a prompt longer than the 64 tokens that it reads"),) * 2
    long: list[Request] = [Chat((Message("user", "a"),), max_tokens=64)]
    assert isinstance(local.complete(long)[0], Failed)


def test_a_local_model_is_loaded_by_its_folder(tmp_path: Path) -> None:
    roomy_model().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    local = LocalModel(tmp_path, progress=False)
    assert local.name == str(tmp_path)
    assert isinstance(local.complete([prompts.simulate_in_blanks("days", ["a"])])[0], Reply)
    check_model(tmp_path, choices=prompts.LEVELS, trust_remote_code=False)
    for wrong in (LocalModel, lambda path: check_model(path, choices=(), trust_remote_code=False)):
        with pytest.raises(UserError, match="The interpreting model must be a causal language model"):
            wrong(tmp_path / "nothing")
    with pytest.raises(UserError, match="tokenizer"):
        LocalModel(roomy_model())


def test_requests_are_keyed_by_all_that_is_asked() -> None:
    asked = {"base_url": "a", "path": "b", "body": {"x": 1, "y": [2]}, "read": ("0",)}
    assert RequestCache.key(asked) == RequestCache.key(json.loads(json.dumps(dict(reversed(asked.items())))))
    assert RequestCache.key(asked) != RequestCache.key(asked | {"base_url": "c"})
