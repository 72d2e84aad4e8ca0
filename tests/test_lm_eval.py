"""The lm-evaluation-harness on a model with SAEs in it: which tokens are replaced, and that its numbers are right."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from strata.errors import MissingExtraError, UserError
from strata.evaluate import harness
from strata.evaluate.harness import harness_table, replaced_tokens, run_lm_eval
from strata.lm.model import LanguageModel
from strata.sae.gates import ReLU, TopK
from strata.sae.model import SAE
from tiny_models import shared_language_model

SITE = "layers.3"
TEXTS = ["def add(a, b):\n    return a + b\n", "import os\n", "for i in range(10):\n    print(i)\n", "x = [1, 2"]
END = 0  # the embedded model's BOS and EOS


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel("demo")


def encode(lm: LanguageModel, text: str) -> list[int]:
    assert lm.tokenizer is not None
    return lm.tokenizer.encode(text)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lossy(lm: LanguageModel) -> SAE:
    """Random features, of which a few fire: the model feels it."""
    W_dec = normalize(torch.randn(400, lm.d_in(SITE), generator=torch.Generator().manual_seed(1)), dim=1)
    zeros = torch.zeros(lm.d_in(SITE))
    return SAE(W_enc=W_dec.t(), b_enc=torch.zeros(400), W_dec=W_dec, b_dec=zeros, gate=TopK(40))


def exact(lm: LanguageModel) -> SAE:
    """The identity: the positive and the negative part of each coordinate."""
    eye = torch.eye(lm.d_in(SITE))
    both, zeros = torch.cat([eye, -eye]), torch.zeros(lm.d_in(SITE))
    return SAE(W_enc=both.t(), b_enc=torch.zeros(len(both)), W_dec=both, b_dec=zeros, gate=ReLU())


def hooks(lm: LanguageModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.model.modules())


def by_hand(lm: LanguageModel, ids: list[int], sae: SAE | None, *, mask: bool = True) -> Tensor:
    """Logits [seq vocab] of one unpadded sequence; the mask leaves `END` as it is."""
    row = torch.tensor([ids])
    if sae is None:
        return lm.logits(row)[0]
    with lm.attach({SITE: sae}, mask=row != END if mask else None), torch.no_grad():
        return lm.logits(row)[0]


def greedy(lm: LanguageModel, prompt: list[int], sae: SAE | None, n: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(by_hand(lm, ids, sae)[-1].argmax()))
    return ids[len(prompt) :]


# --- which tokens are replaced --------------------------------------------------------------------------------------


def test_special_tokens_keep_their_activations_in_passes_of_any_shape(lm: LanguageModel) -> None:
    sae = lossy(lm)
    for ids in ([[END, 5, 6, 7], [END, 8, END, 9]], [[11, 12]]):
        own = lm.activations(ids, SITE)[SITE]
        with replaced_tokens(lm, {SITE: sae}):
            read = lm.activations(ids, SITE)[SITE]
        special = torch.tensor(ids) == END
        assert torch.equal(read[special], own[special])
        torch.testing.assert_close(read[~special], sae(own[~special]))


def test_pads_change_nothing_of_the_text(lm: LanguageModel) -> None:
    text = [END, *range(20, 29)]
    alone = by_hand(lm, text, lossy(lm))
    with replaced_tokens(lm, {SITE: lossy(lm)}), torch.no_grad():
        behind = lm.logits([text + [77] * 3, [END, *range(30, 42)]])[0, : len(text)]  # no mask: as the harness scores
    torch.testing.assert_close(behind, alone, rtol=1e-4, atol=1e-4)


def test_generation_with_a_cache_replaces_every_new_token(lm: LanguageModel) -> None:
    sae, prompts = lossy(lm), [[END, 40, 41, 42, 43], [END, 50, 51]]
    pad = max(map(len, prompts))
    ids = torch.tensor([[1] * (pad - len(prompt)) + prompt for prompt in prompts])
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "use_cache": True}
    with replaced_tokens(lm, {SITE: sae}):
        found = lm.model.generate(input_ids=ids, attention_mask=(ids != 1).long(), **options)[:, pad:].tolist()
    wanted = [greedy(lm, prompt, sae, 6) for prompt in prompts]
    assert all(END not in ids for ids in wanted), "then `min_new_tokens` forbids what greedy decoding chose"
    assert found == wanted
    assert wanted != [greedy(lm, prompt, None, 6) for prompt in prompts]


def test_a_pass_without_token_ids_is_replaced_whole(lm: LanguageModel) -> None:
    embedded = lm.model.get_input_embeddings()(torch.tensor([[END, 5, 6]]))
    whole = by_hand(lm, [END, 5, 6], lossy(lm), mask=False)
    with replaced_tokens(lm, {SITE: lossy(lm)}), torch.no_grad():
        lm.logits([[END, 5]])  # leaves no mask behind
        found = lm.model(inputs_embeds=embedded).logits[0]
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


def test_nothing_stays_behind(lm: LanguageModel) -> None:
    before = hooks(lm)
    with replaced_tokens(lm, {SITE: lossy(lm)}):
        assert hooks(lm) > before
    assert hooks(lm) == before
    with pytest.raises(UserError, match="input_ids"), replaced_tokens(lm, {SITE: lossy(lm)}):
        lm.logits([[-1]])
    assert hooks(lm) == before


# --- the wrapper ----------------------------------------------------------------------------------------------------


class FakeManager:
    """An index of tasks; counts how often the long one was read."""

    n_long = 0

    def __init__(self, *, include_path: str | None = None, include_defaults: bool = True) -> None:
        FakeManager.n_long += include_defaults
        own = ["mine"] if include_path else []
        self.all_tasks = [*own, *(["lambada_openai", "hellaswag"] if include_defaults else [])]
        self.task_index = dict.fromkeys(self.all_tasks)


def test_the_long_list_is_read_only_where_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("task: one\n")
    FakeManager.n_long = 0
    assert harness._manager(FakeManager, ["mine", str(tmp_path / "one.yaml")], tmp_path).all_tasks == ["mine"]
    assert FakeManager.n_long == 0
    assert "hellaswag" in harness._manager(FakeManager, ["mine", "hellaswag"], tmp_path).all_tasks
    assert FakeManager.n_long == 1


def test_an_unknown_task_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"`tasks` must be names of .* Got 'helaswag'\. Did you mean 'hellaswag'\?"):
        harness._manager(FakeManager, ["lambada_openai", "helaswag"], None)
    with pytest.raises(UserError, match=r"Got 'q'\. `lm-eval ls tasks` lists them\."):
        harness._manager(FakeManager, ["q"], None)


def test_a_library_that_is_missing_is_named(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    message = r"Running tasks of lm-eval needs the library `lm_eval`\. Install .*strata-sae\[lm-eval\]"
    with pytest.raises(MissingExtraError, match=message):
        run_lm_eval(lm, None, ["hellaswag"])


def test_the_model_is_handed_over_itself_and_the_tokenizer_as_a_copy(lm: LanguageModel) -> None:
    class Taken:
        def __init__(self, **options: Any) -> None:
            self.options = options

    options = harness._wrapped(Taken, lm, batch_size=3).options
    assert options["pretrained"] is lm.model
    assert options["tokenizer"] is not lm.tokenizer
    assert options["tokenizer"].encode("import os") == encode(lm, "import os")
    assert (options["backend"], options["max_length"], options["batch_size"]) == ("causal", 256, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": []}, r"`tasks` must name at least one task .* Got none"),
        ({"limit": 0}, r"`limit` must be at least 1\. Got 0"),
        ({"batch_size": 0}, r"`batch_size` must be at least 1\. Got 0"),
        ({"include_path": "no/such/folder"}, r"`include_path` must be a folder .* no/such/folder is none"),
    ],
)
def test_wrong_settings_are_named(lm: LanguageModel, changed: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"tasks": ["hellaswag"], **changed}
    with pytest.raises(UserError, match=message):
        run_lm_eval(lm, None, options.pop("tasks"), **options)


def test_models_that_cannot_be_asked_are_named(lm: LanguageModel) -> None:
    with pytest.raises(UserError, match=r"`tokenizer` must be given for tasks of text"):
        run_lm_eval(shared_language_model("gpt2"), None, ["hellaswag"])
    encoder = LanguageModel(shared_language_model("bert").model, tokenizer=lm.tokenizer)
    with pytest.raises(UserError, match=r"`model` must be a causal language model .* Got BertForMaskedLM"):
        run_lm_eval(encoder, None, ["hellaswag"])


def test_table_of_results() -> None:
    results = {
        "results": {
            "a": {"alias": "a", "sample_len": 8, "acc,none": 0.75, "acc_stderr,none": 0.1, "f1,none": 1},
            "b": {"exact_match,strict": 0.5, "exact_match_stderr,strict": "N/A", "exact_match,loose": 0.6},
        },
        "higher_is_better": {"a": {"acc": True, "f1": None}},
    }
    keys = ("task", "metric", "filter", "value", "stderr", "higher_is_better")
    assert [tuple(row[key] for key in keys) for row in harness_table(results)] == [
        ("a", "acc", "none", 0.75, 0.1, True),
        ("a", "f1", "none", 1.0, None, None),
        ("b", "exact_match", "strict", 0.5, None, None),
        ("b", "exact_match", "loose", 0.6, None, None),
    ]


# --- the harness itself ---------------------------------------------------------------------------------------------


def write_task(folder: Path, name: str, documents: list[dict[str, Any]], **settings: Any) -> None:
    """A task of the harness with its data beside it; the settings' YAML is JSON, which YAML contains."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "target_delimiter": "",
        **settings,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(config))


def metric(kind: str, aggregation: str, *, higher: bool) -> dict[str, Any]:
    return {"metric": kind, "aggregation": aggregation, "higher_is_better": higher}


@pytest.fixture(scope="module")
def tasks(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Perplexity of texts, a choice between brackets, and what the model with an SAE says greedily."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(
        folder,
        "strata_texts",
        [{"text": text} for text in TEXTS],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[metric("byte_perplexity", "weighted_perplexity", higher=False)],
    )
    questions = [("print((1", 0), ("x = [a, b", 1), ("f(x[0], y", 0), ("y = {'a': [1, 2", 1), ("z = (x[i", 1)]
    write_task(
        folder,
        "strata_brackets",
        [{"start": start, "choices": [")", "]"], "right": right} for start, right in questions],
        output_type="multiple_choice",
        doc_to_text="{{start}}",
        doc_to_choice="{{choices}}",
        doc_to_target="right",
        metric_list=[metric("acc", "mean", higher=True)],
    )
    assert lm.tokenizer is not None
    said = [lm.tokenizer.decode(greedy(lm, encode(lm, text), lossy(lm), 5)) for text in TEXTS]
    write_task(
        folder,
        "strata_greedy",
        [{"text": text, "answer": answer} for text, answer in zip(TEXTS, said, strict=True)],
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["never said"], "max_gen_toks": 5, "do_sample": False},
        metric_list=[metric("exact_match", "mean", higher=True)],
    )
    return folder


def byte_perplexity(lm: LanguageModel, sae: SAE | None, *, mask: bool = True) -> float:
    loss = 0.0
    for text in TEXTS:
        ids = [END, *encode(lm, text)]
        log_p = by_hand(lm, ids[:-1], sae, mask=mask).log_softmax(-1)
        loss -= float(log_p.gather(1, torch.tensor(ids[1:])[:, None]).sum())
    return math.exp(loss / sum(len(text.encode()) for text in TEXTS))


@pytest.mark.lm_eval
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_harness_scores_what_the_model_with_saes_says(lm: LanguageModel, tasks: Path, batch_size: int) -> None:
    sae, before = lossy(lm), hooks(lm)
    names = ["strata_texts", "strata_greedy", "strata_brackets"]
    results = run_lm_eval(lm, {SITE: sae}, names, batch_size=batch_size, include_path=tasks)
    assert json.loads(json.dumps(results)) == results
    value = {(row["task"], row["metric"]): row["value"] for row in harness_table(results)}
    wanted = byte_perplexity(lm, sae)
    assert value["strata_texts", "byte_perplexity"] == pytest.approx(wanted, rel=1e-4)
    assert byte_perplexity(lm, sae, mask=False) != pytest.approx(wanted, rel=1e-3)  # BOS replaced too would be seen
    assert value["strata_greedy", "exact_match"] == 1.0
    right = []
    for document in map(json.loads, (tasks / "strata_brackets.jsonl").read_text().splitlines()):
        close = [encode(lm, choice)[0] for choice in document["choices"]]
        scores = by_hand(lm, encode(lm, document["start"]), sae)[-1, close]
        right.append(int(scores.argmax()) == document["right"])
    assert value["strata_brackets", "acc"] == sum(right) / len(right)
    assert hooks(lm) == before


@pytest.mark.lm_eval
@pytest.mark.filterwarnings("default")
def test_the_identity_changes_no_number_and_no_sae_is_the_model_itself(lm: LanguageModel, tasks: Path) -> None:
    names = ["strata_texts", "strata_greedy", "strata_brackets"]
    clean = run_lm_eval(lm, None, names, include_path=tasks)
    same = run_lm_eval(lm, {SITE: exact(lm)}, names, include_path=tasks)
    numbers = [[row["value"] for row in harness_table(results)] for results in (clean, same)]
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-5)
    assert clean["results"]["strata_texts"]["byte_perplexity,none"] == pytest.approx(
        byte_perplexity(lm, None), rel=1e-4
    )
    assert clean["results"]["strata_greedy"]["exact_match,none"] < 1.0


@pytest.mark.lm_eval
@pytest.mark.filterwarnings("default")
def test_limit_and_data_that_cannot_be_had(lm: LanguageModel, tasks: Path, tmp_path: Path) -> None:
    one = run_lm_eval(lm, None, str(tasks / "strata_brackets.yaml"), limit=2, include_path=tasks)
    assert one["n-samples"]["strata_brackets"]["effective"] == 2
    write_task(tmp_path, "strata_gone", [], output_type="multiple_choice", doc_to_text="", doc_to_target="")
    (tmp_path / "strata_gone.jsonl").unlink()
    with pytest.raises(UserError, match=r"`tasks` must be ones whose data can be had\. Got strata_gone: "):
        run_lm_eval(lm, None, ["strata_gone"], include_path=tmp_path)
