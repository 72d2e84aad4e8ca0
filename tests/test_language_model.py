"""Loading models, naming their sites, reading activations, against Hugging Face's own outputs."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, GPTNeoXConfig, GPTNeoXForCausalLM, T5Config, T5ForConditionalGeneration

from strata.errors import UserError
from strata.lm.inputs import checked_ids
from strata.lm.model import LanguageModel
from strata.lm.precision import fast_dtype
from tiny_models import (
    ARCHITECTURES,
    ENCODERS,
    MAX_POSITIONS,
    N_LAYERS,
    VOCABULARY,
    WIDTH,
    save_tiny_model,
    shared_language_model,
    tiny_model,
    tiny_tokenizer,
)

PARTS = [f"layers.{i}{part}" for i in range(N_LAYERS) for part in ("", ".attn", ".mlp")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "neox")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these wait for a second thread longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some_ids(batch: int = 2, seq: int = 9) -> Tensor:
    return torch.randint(2, VOCABULARY, (batch, seq))


@contextmanager
def calls_of(model: nn.Module) -> Iterator[Counter]:
    """Counts how often each module of a model runs."""
    counts: Counter = Counter()
    hooks = [
        module.register_forward_pre_hook(lambda *_, path=path: counts.update([path]))
        for path, module in model.named_modules()
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def output_of(model: nn.Module, path: str, ids: Tensor) -> Tensor:
    """What a plain hook on a module sees."""
    kept = []
    hook = model.get_submodule(path).register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        model(input_ids=ids)
    hook.remove()
    return kept[0][0] if isinstance(kept[0], tuple) else kept[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestArchitectures:
    def test_residual_stream_equals_hidden_states(self, architecture: str) -> None:
        lm = shared_language_model(architecture)
        ids = some_ids()
        with torch.no_grad():
            hidden = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
        read = lm.activations(ids, lm.sites)
        assert list(read) == lm.sites == [f"layers.{i}" for i in range(N_LAYERS)]
        for i in range(N_LAYERS - 1):
            torch.testing.assert_close(read[f"layers.{i}"], hidden[i + 1], rtol=0, atol=0)
        # Hugging Face's last hidden state lies behind the final norm, in models that have one; the site does not.
        last = output_of(lm.model, lm.site(lm.sites[-1]).path, ids)
        torch.testing.assert_close(read[lm.sites[-1]], last, rtol=0, atol=0)

    def test_sub_blocks_are_what_is_added_to_the_residual_stream(self, architecture: str) -> None:
        lm = shared_language_model(architecture)
        read = lm.activations(some_ids(), PARTS)
        for i in range(1, N_LAYERS):
            before, attn, mlp = read[f"layers.{i - 1}"], read[f"layers.{i}.attn"], read[f"layers.{i}.mlp"]
            if architecture in ENCODERS:  # the norm comes behind the addition
                block = lm.model.get_submodule(lm.site(f"layers.{i}").path)
                middle = block.attention.output.LayerNorm(before + attn)
                after = block.output.LayerNorm(middle + mlp)
            else:
                after = before + attn + mlp
            torch.testing.assert_close(read[f"layers.{i}"], after, rtol=1e-5, atol=1e-5)
            assert attn.abs().mean() > 1e-3 and mlp.abs().mean() > 1e-3

    def test_runs_no_further_than_the_last_site(self, architecture: str) -> None:
        lm = shared_language_model(architecture)
        blocks, before = [lm.site(site).path for site in lm.sites], n_hooks(lm.model)
        with calls_of(lm.model) as counts:
            lm.activations(some_ids(), ["layers.1", "layers.0.mlp"])
        assert [counts[block] for block in blocks] == [1, 1, 0]
        assert not [path for path in counts if path.split(".")[0] in ("lm_head", "embed_out", "cls")]
        with calls_of(lm.model) as counts:
            lm.activations(some_ids(), ["layers.1.attn"])
        assert counts[blocks[1]] == 1 and counts[lm.site("layers.1.mlp").path] == 0 and counts[blocks[2]] == 0
        assert n_hooks(lm.model) == before

    def test_widths_and_any_module_path(self, architecture: str) -> None:
        lm = shared_language_model(architecture)
        dense = {"gpt2": "c_fc", "bloom": "dense_h_to_4h", "falcon": "dense_h_to_4h", "gpt_neox": "dense_h_to_4h"}
        last = dense.get(architecture, "norm")
        path = next(
            p for p, _ in lm.model.named_modules() if p.startswith(lm.site("layers.1").path) and last in p.lower()
        )
        expected = output_of(lm.model, path, some := some_ids())
        read = lm.activations(some, [path])[path]
        torch.testing.assert_close(read, expected.reshape(*some.shape, -1), rtol=0, atol=0)
        assert lm.d_in(path) == read.shape[-1]
        assert [lm.d_in(site) for site in PARTS] == [WIDTH] * len(PARTS)

    def test_padding_changes_nothing_where_tokens_are(self, architecture: str) -> None:
        lm = shared_language_model(architecture)
        ids = some_ids(1, 9)
        padded = torch.cat([ids, torch.ones(1, 4, dtype=torch.long)], dim=1)
        mask = padded != 1
        alone = lm.activations(ids, "layers.2")["layers.2"]
        beside = lm.activations(padded, "layers.2", attention_mask=mask)["layers.2"]
        torch.testing.assert_close(beside[:, :9], alone, rtol=1e-4, atol=1e-5)


def test_default_site_is_the_middle_layer() -> None:
    lm = LanguageModel(tiny_model("gpt_neox"))
    assert list(lm.activations(some_ids())) == ["layers.1"]
    eight = GPTNeoXConfig(vocab_size=8, hidden_size=8, num_hidden_layers=8, num_attention_heads=1, intermediate_size=8)
    assert LanguageModel(GPTNeoXForCausalLM(eight)).middle_site == "layers.3"  # behind half of the blocks


def test_activations_are_plain_tensors_that_autograd_may_use() -> None:
    lm = LanguageModel(tiny_model("llama"))
    x = lm.activations(some_ids(), "layers.0")["layers.0"]
    assert not x.requires_grad and not x.is_inference()
    weight = torch.zeros(WIDTH, requires_grad=True)
    ((x @ weight) ** 2 + x @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum((0, 1)))


def test_lists_are_accepted_and_order_is_kept() -> None:
    lm = LanguageModel(tiny_model("gpt2"))
    read = lm.activations([[5, 6, 7], [8, 9, 10]], ["layers.2", "layers.0"])
    assert list(read) == ["layers.2", "layers.0"] and read["layers.2"].shape == (2, 3, WIDTH)
    same = lm.activations(torch.tensor([[5, 6, 7], [8, 9, 10]]), ["layers.0"])["layers.0"]
    torch.testing.assert_close(read["layers.0"], same, rtol=0, atol=0)


def test_activations_keep_the_models_dtype_and_autocast_is_close() -> None:
    half = LanguageModel(tiny_model("gpt_neox"), dtype="bf16")
    assert half.dtype == torch.bfloat16
    assert half.activations(some_ids())["layers.1"].dtype == torch.bfloat16
    full = LanguageModel(tiny_model("gpt_neox"))
    ids = some_ids()
    exact = full.activations(ids, PARTS)
    fast = full.activations(ids, PARTS, autocast_dtype=torch.bfloat16)
    assert {x.dtype for x in fast.values()} == {torch.float32}
    for site in PARTS:
        relative = (fast[site] - exact[site]).norm() / exact[site].norm()
        assert 0 < relative < 0.03, (site, relative)


def test_hooks_are_removed_when_the_forward_pass_fails() -> None:
    lm = LanguageModel(tiny_model("gpt2"))

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    broken = lm.model.get_submodule("transformer.h.1").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        lm.activations(some_ids(), ["layers.0", "layers.2"])
    broken.remove()
    assert n_hooks(lm.model) == 0


def test_logits_are_the_models() -> None:
    model = tiny_model("qwen2")
    ids = some_ids()
    with torch.no_grad():
        torch.testing.assert_close(LanguageModel(model).logits(ids), model(input_ids=ids).logits, rtol=0, atol=0)
    with pytest.raises(UserError, match="head to give logits"):
        LanguageModel(model.model).logits(ids)


class TestBadInput:
    @pytest.fixture
    def lm(self) -> LanguageModel:
        return LanguageModel(tiny_model("gpt2"))

    @pytest.mark.parametrize("site", ["layers.7", "layers.1.mpl", "layer.1", "transformer.h.1.attn.c_porj", ""])
    def test_unknown_site(self, lm: LanguageModel, site: str) -> None:
        with pytest.raises(UserError, match=r"`site` must be.* Got .*Known are"):
            lm.activations(some_ids(), [site])
        with pytest.raises(UserError, match=r"`site` must be"):
            lm.d_in(site)

    def test_nearest_name_is_told(self, lm: LanguageModel) -> None:
        with pytest.raises(UserError, match=r"Did you mean 'layers.1.mlp'"):
            lm.site("layers.1.mpl")

    @pytest.mark.parametrize("site", ["blocks.1.hook_resid_post", "model.layers.1", "1", "hidden_1"])
    def test_a_layer_in_another_spelling_is_told(self, lm: LanguageModel, site: str) -> None:
        with pytest.raises(UserError, match=r"Got '[\w.]+'\. Did you mean 'layers\.1'\?"):
            lm.site(site)

    def test_a_number_that_is_no_layer_is_not_guessed(self, lm: LanguageModel) -> None:
        with pytest.raises(UserError, match=r"Got 'blocks\.9\.hook_resid_post'\. Known are"):
            lm.site("blocks.9.hook_resid_post")

    def test_site_without_a_vector_for_each_position(self) -> None:
        model = tiny_model("mixtral")
        with pytest.raises(UserError, match="one vector for each position"):
            LanguageModel(model).activations(some_ids(), ["model.rotary_emb"])

    def test_site_that_does_not_run(self, lm: LanguageModel) -> None:
        lm.model.spare = nn.Linear(2, 2)
        with pytest.raises(UserError, match="'spare' did not"):
            lm.activations(some_ids(), ["layers.0", "spare"])

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            ([[1, VOCABULARY]], f"must be in \\[0, {VOCABULARY}\\).* Got {VOCABULARY}"),
            ([[-1, 3]], "Got -1"),
            ([[1] * (MAX_POSITIONS + 1)], f"at most {MAX_POSITIONS} positions.* Got {MAX_POSITIONS + 1}"),
            ([], "must be \\[batch seq\\]"),
            ([[]], "at least one token"),
            ([[1, 2], [3]], "equal length"),
        ],
    )
    def test_wrong_ids(self, lm: LanguageModel, ids: list, message: str) -> None:
        with pytest.raises(UserError, match=message):
            lm.activations(ids)

    @pytest.mark.parametrize(
        ("ids", "message"), [(torch.tensor([1, 2]), "must be \\[batch seq\\]"), (torch.rand(1, 3), "whole numbers")]
    )
    def test_wrong_tensors(self, ids: Tensor, message: str) -> None:
        with pytest.raises(UserError, match=message):
            checked_ids(ids, vocabulary=10, positions=None)

    def test_the_longest_text_that_roberta_takes_runs(self) -> None:
        lm = LanguageModel(tiny_model("roberta"))
        assert lm.max_positions == MAX_POSITIONS - 2
        lm.activations(some_ids(1, MAX_POSITIONS - 2))
        with pytest.raises(UserError, match="positions"):
            lm.activations(some_ids(1, MAX_POSITIONS - 1))

    def test_mask_of_another_shape_and_no_sites(self, lm: LanguageModel) -> None:
        with pytest.raises(UserError, match="`attention_mask` must have the shape"):
            lm.activations([[3, 4, 5]], attention_mask=[[1, 1]])
        with pytest.raises(UserError, match="at least one site"):
            lm.activations([[3, 4, 5]], [])


class TestLoading:
    def test_folder_equals_the_model_that_was_saved(self, folder: Path, capfd: pytest.CaptureFixture) -> None:
        lm = LanguageModel(str(folder))
        ids = some_ids()
        saved = LanguageModel(tiny_model("gpt_neox")).activations(ids, PARTS)
        for site, x in lm.activations(ids, PARTS).items():
            torch.testing.assert_close(x, saved[site], rtol=0, atol=0)
        assert lm.name == str(folder) and lm.model_class == "GPTNeoXForCausalLM" and not lm.model.training
        assert not any(weight.requires_grad for weight in lm.model.parameters())
        assert lm.tokenizer is not None and lm.special_token_ids == {0, 1}
        assert capfd.readouterr() == ("", "")

    def test_demo_goes_through_the_same_code(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("strata.lm.loading.DEMO_FOLDER", folder)
        lm = LanguageModel()
        assert lm.name == "demo" and lm.sites == [f"layers.{i}" for i in range(N_LAYERS)] and lm.tokenizer is not None

    def test_half_precision_becomes_fp32_on_a_cpu_only(self, tmp_path: Path) -> None:
        model = tiny_model("gpt_neox").half()
        model.save_pretrained(tmp_path)
        loaded = LanguageModel(str(tmp_path), device="cpu")
        assert loaded.dtype == torch.float32 and loaded.tokenizer is None
        weights = dict(loaded.model.named_parameters())
        assert all(torch.equal(weights[name], weight.float()) for name, weight in model.named_parameters())
        assert LanguageModel(str(tmp_path), device="cpu", dtype="fp16").dtype == torch.float16
        assert LanguageModel(str(tmp_path), device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16
        assert LanguageModel(tiny_model("gpt_neox").half()).dtype == torch.float16  # a loaded model stays as it is

    @pytest.mark.parametrize(("architecture", "expected"), [("bert", "BertForMaskedLM"), ("opt", "OPTForCausalLM")])
    def test_the_class_follows_the_checkpoint(self, architecture: str, expected: str, tmp_path: Path) -> None:
        assert LanguageModel(str(save_tiny_model(tmp_path / "whole", architecture))).model_class == expected
        tiny_model(architecture).base_model.save_pretrained(tmp_path / "base")
        base = LanguageModel(str(tmp_path / "base"))
        assert base.model_class == expected.split("For", maxsplit=1)[0] + "Model" and base.n_layers == N_LAYERS

    def test_options_reach_hugging_face(self, folder: Path) -> None:
        assert LanguageModel(str(folder), attn_implementation="eager").model.config._attn_implementation == "eager"
        with pytest.raises(UserError, match=r"accelerate|device_map"):
            LanguageModel(str(folder), device_map="no such map")

    def test_special_tokens_without_a_tokenizer(self, folder: Path) -> None:
        bare = LanguageModel(tiny_model("llama"))  # its configuration's ids were chosen by nobody
        assert bare.special_token_ids == frozenset()
        loaded = AutoModel.from_pretrained(folder)
        assert LanguageModel(loaded).special_token_ids == {0, 1}
        marked = tiny_tokenizer()
        marked.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
        assert LanguageModel(loaded, tokenizer=marked).special_token_ids == {0, 1, len(marked) - 1}

    def test_fingerprint_tells_models_apart_and_not_folders(self, folder: Path, tmp_path: Path) -> None:
        one = LanguageModel(str(folder)).fingerprint()
        other = LanguageModel(str(save_tiny_model(tmp_path / "copy"))).fingerprint()
        assert one["config_sha256"] == other["config_sha256"] and one["name"] != other["name"]
        assert LanguageModel(tiny_model("llama")).fingerprint()["config_sha256"] != one["config_sha256"]
        assert one["n_parameters"] == sum(weight.numel() for weight in tiny_model("gpt_neox").parameters())
        json.dumps(one)


class TestLoadingFails:
    @pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "models/of/mine", "~/no such", ""])
    def test_path_that_does_not_exist(self, name: str) -> None:
        with pytest.raises(UserError, match="no such folder"):
            LanguageModel(name)

    @pytest.mark.parametrize("name", ["no-one-here/no-such-model", "demoo", "a b"])
    def test_id_that_does_not_exist_or_no_network(self, name: str) -> None:
        with pytest.raises(UserError, match=r"Hugging Face id that can be loaded. Got") as caught:
            LanguageModel(name, local_files_only=True)
        assert caught.value.__cause__ is not None and "\n" not in str(caught.value)

    def test_folder_without_configuration_or_weights(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no `config\.json`"):
            LanguageModel(str(tmp_path))
        tiny_model("gpt2").config.save_pretrained(tmp_path)
        with pytest.raises(UserError, match="must be a folder with weights"):
            LanguageModel(str(tmp_path))

    def test_broken_files(self, tmp_path: Path) -> None:
        save_tiny_model(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"nothing")
        with pytest.raises(UserError, match="can be loaded"):
            LanguageModel(str(tmp_path))
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(UserError, match="can be loaded"):
            LanguageModel(str(tmp_path))

    def test_missing_weights_are_not_made_up(self, tmp_path: Path) -> None:
        model = tiny_model("gpt_neox")
        weights = model.state_dict()
        gone = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
        model.save_pretrained(tmp_path, state_dict={key: value for key, value in weights.items() if key != gone})
        with pytest.raises(UserError, match=f"lacks 1, the first of them `{gone}`"):
            LanguageModel(str(tmp_path))

    def test_code_of_others_does_not_run_unasked(self, tmp_path: Path) -> None:
        save_tiny_model(tmp_path, tokenizer=False)
        config = json.loads((tmp_path / "config.json").read_text())
        config |= {
            "model_type": "theirs",
            "auto_map": {"AutoConfig": "theirs.Theirs", "AutoModelForCausalLM": "theirs.Model"},
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "theirs.py").write_text("raise SystemError('their code ran')")
        with pytest.raises(UserError, match="comes with code of its own"):
            LanguageModel(str(tmp_path))

    def test_settings(self, folder: Path) -> None:
        with pytest.raises(UserError, match="`dtype` must be"):
            LanguageModel(str(folder), dtype="int3")
        with pytest.raises(UserError, match="`device` must be"):
            LanguageModel(str(folder), device="toaster")
        with pytest.raises(UserError, match="`device` must be there"):
            LanguageModel(str(folder), device="cuda:99")
        with pytest.raises(UserError, match="`revision` acts while a model is loaded"):
            LanguageModel(tiny_model("gpt2"), revision="main")
        with pytest.raises(UserError, match="Got Linear"):
            LanguageModel(nn.Linear(2, 2))

    def test_encoder_decoders_are_refused(self) -> None:
        small = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        with pytest.raises(UserError, match="encoder-decoder"):
            LanguageModel(T5ForConditionalGeneration(small))

    def test_logging_is_as_before(self, folder: Path) -> None:
        logger = logging.getLogger("transformers")
        logger.setLevel(logging.INFO)
        try:
            with pytest.raises(UserError):
                LanguageModel("no-one-here/no-such-model", local_files_only=True)
            LanguageModel(str(folder))
            assert logger.level == logging.INFO
        finally:
            logger.setLevel(logging.WARNING)


def test_model_without_known_blocks_still_has_module_paths() -> None:
    shared = BertConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4)
    model = AutoModel.from_config(shared)
    model.config.num_hidden_layers = 5  # as in models that run the same few blocks several times
    lm = LanguageModel(model)
    assert lm.sites == []
    assert lm.activations(some_ids(), ["encoder.layer.0"])["encoder.layer.0"].shape == (2, 9, WIDTH)
    with pytest.raises(UserError, match="blocks were not found"):
        lm.activations(some_ids())


def test_fast_dtype_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    for bf16, amx, expected in [(0, 0, torch.float32), (1, 0, torch.bfloat16), (0, 1, torch.bfloat16)]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda found=bf16: bool(found))
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda found=amx: bool(found))
        assert fast_dtype("cpu") == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert fast_dtype(torch.device("cuda")) == expected
    assert fast_dtype("mps") == torch.float32


@pytest.mark.gpu
def test_on_cuda(folder: Path) -> None:
    lm = LanguageModel(str(folder), dtype="bf16")
    x = lm.activations(some_ids())["layers.1"]
    assert lm.device.type == "cuda" and x.device.type == "cuda" and x.dtype == torch.bfloat16
