"""The SAELens folder: bytes, round trip, SAELens' own variants, damage, and what SAELens itself makes of it."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from format_cases import D_IN, D_SAE, KINDS, K, assert_same_function, expected, inputs, make
from strata.formats import saelens
from strata.sae.gates import JumpReLU
from strata.sae.model import SAE, Transcoder

HELD = [kind for kind, (gate, is_transcoder, _) in KINDS.items() if not (is_transcoder and gate == "topk")]
OWN = [kind for kind in HELD if kind != "gated transcoder"]  # which SAELens lacks: written as JumpReLU


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | changes))


def edit_tensors(folder: Path, **changes) -> None:
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path) | changes
    save_file({name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}, path)


def header_of(path: Path) -> dict:
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])


@pytest.mark.parametrize("kind", OWN)
def test_round_trip_is_exact(tmp_path, kind):
    sae = make(kind)
    sae.save(tmp_path / "deep" / "folder")
    again = SAE.load(tmp_path / "deep" / "folder")
    assert type(again) is type(sae)
    assert type(again.gate) is type(sae.gate)
    wanted, found = sae.state_dict(), again.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert torch.equal(again(inputs(sae)), sae(inputs(sae)))
    assert sae.metadata.items() <= again.metadata.items()


GOLDEN_TENSORS = {
    "topk": {"W_dec": [D_SAE, D_IN], "W_enc": [D_IN, D_SAE], "b_dec": [D_IN], "b_enc": [D_SAE]},
    "jumprelu": {
        "W_dec": [D_SAE, D_IN], "W_enc": [D_IN, D_SAE], "b_dec": [D_IN], "b_enc": [D_SAE], "threshold": [D_SAE],
    },
    "gated": {
        "W_dec": [D_SAE, D_IN], "W_enc": [D_IN, D_SAE], "b_dec": [D_IN], "b_gate": [D_SAE], "b_mag": [D_SAE],
        "r_mag": [D_SAE],
    },
    "relu skip transcoder": {
        "W_dec": [D_SAE, 7], "W_enc": [D_IN, D_SAE], "W_skip": [7, D_IN], "b_dec": [7], "b_enc": [D_SAE],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", GOLDEN_TENSORS)
def test_golden_header(tmp_path, kind):
    sae = make(kind, d_out=7 if "transcoder" in kind else D_IN)
    sae.save(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    header = header_of(path)
    assert {name: entry["shape"] for name, entry in header.items()} == GOLDEN_TENSORS[kind]
    assert list(header) == list(GOLDEN_TENSORS[kind])
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    starts = [entry["data_offsets"] for entry in header.values()]
    assert starts[0][0] == 0
    assert [end for _, end in starts[:-1]] == [start for start, _ in starts[1:]]
    first = struct.unpack("<f", path.read_bytes()[-starts[-1][1] :][:4])[0]
    assert first == sae.W_dec[0, 0].item()


def test_golden_description(tmp_path):
    make("jumprelu skip transcoder", d_out=7).save(tmp_path)
    assert (
        (tmp_path / "cfg.json").read_text()
        == """{
  "architecture": "jumprelu_skip_transcoder",
  "d_in": 12,
  "d_sae": 40,
  "d_out": 7,
  "dtype": "float32",
  "device": "cpu",
  "apply_b_dec_to_input": false,
  "normalize_activations": "none",
  "reshape_activations": "none",
  "metadata": {
    "sae_lens_version": "6.0.0",
    "sae_lens_training_version": null,
    "model_from_pretrained_kwargs": {},
    "prepend_bos": false,
    "model_name": "pythia-70m",
    "hf_model_name": "EleutherAI/pythia-70m",
    "hook_name": "blocks.3.hook_resid_post",
    "site": "layers.3",
    "context_size": 128,
    "training_architecture": "given by the test",
    "l0": 4.5
  }
}
"""
    )
    make("topk").save(tmp_path / "topk")
    config = json.loads((tmp_path / "topk" / "cfg.json").read_text())
    assert [config[key] for key in ("architecture", "k", "apply_b_dec_to_input", "rescale_acts_by_decoder_norm")] == [
        "topk", K, True, False,
    ]  # fmt: skip
    assert "d_out" not in config


def test_a_site_by_heads_is_joined_by_saelens(tmp_path):
    make("relu", hook_name="blocks.3.attn.hook_z").save(tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["reshape_activations"] == "hook_z"


# --- what SAELens writes otherwise ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["topk", "relu", "jumprelu", "gated"])
def test_input_that_is_not_centred(tmp_path, kind):
    sae, x = make(kind), torch.randn(64, D_IN) * 2
    sae.save(tmp_path)
    edit(tmp_path, apply_b_dec_to_input=False)
    code, output = expected(Transcoder(**_parts(sae)), x)  # a transcoder is what does not subtract b_dec
    again = SAE.load(tmp_path)
    assert not isinstance(again, Transcoder)
    torch.testing.assert_close(again.encode(x).double(), code, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again(x).double(), output, rtol=1e-4, atol=1e-4)


def _parts(sae: SAE) -> dict:
    return {name: getattr(sae, name).data for name in ("W_enc", "b_enc", "W_dec", "b_dec")} | {"gate": sae.gate}


@pytest.mark.parametrize("kind", [kind for kind in OWN if kind != "topk"])
def test_decoder_rows_of_any_norm(tmp_path, kind):
    sae = make(kind)
    sae.save(tmp_path)
    norms = torch.rand(D_SAE) * 3 + 0.2
    norms[4] = 0  # a latent that died
    edit_tensors(tmp_path, W_dec=sae.W_dec * norms[:, None])
    again, x = SAE.load(tmp_path), inputs(sae)
    code, _ = expected(sae, x)
    shown = norms.where(norms > 0, 1)
    torch.testing.assert_close(again.encode(x).double(), code * shown, rtol=1e-4, atol=1e-4)
    output = code @ (sae.W_dec * norms[:, None]).double() + sae.b_dec
    if isinstance(sae, Transcoder) and sae.W_skip is not None:
        output = output + x.double() @ sae.W_skip.t().double()
    torch.testing.assert_close(again(x).double(), output, rtol=1e-4, atol=1e-4)
    alive = torch.arange(D_SAE) != 4
    torch.testing.assert_close(again.W_dec.norm(dim=1)[alive], torch.ones(D_SAE - 1))
    assert again.W_dec.isfinite().all()


def test_topk_of_activations_scaled_by_the_decoder_norm(tmp_path):
    sae, x = make("topk"), inputs(make("topk"))
    sae.save(tmp_path)
    norms = torch.rand(D_SAE) * 3 + 0.2
    edit_tensors(tmp_path, W_dec=sae.W_dec * norms[:, None])
    pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).double()
    for scaled, score in ((True, pre * norms), (False, pre)):
        edit(tmp_path, rescale_acts_by_decoder_norm=scaled)
        again = SAE.load(tmp_path)
        code = score.relu() * (score >= score.topk(K, dim=-1).values[:, -1:])
        output = (code / norms if scaled else code) @ (sae.W_dec * norms[:, None]).double() + sae.b_dec
        torch.testing.assert_close(again.encode(x).double(), code, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again(x).double(), output, rtol=1e-4, atol=1e-4)


def test_a_description_of_version_3(tmp_path):
    sae = make("topk")
    sae.save(tmp_path)
    flat = {
        "d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "hook_point": "blocks.3.hook_resid_post",
        "model_name": "gpt2-small", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K},
        "normalize_activations": False, "apply_b_dec_to_input": True,
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(flat))
    again = SAE.load(tmp_path)
    assert_same_function(again, sae)
    assert again.metadata == {"model_name": "gpt2-small", "hook_name": "blocks.3.hook_resid_post"}
    (tmp_path / "cfg.json").write_text(json.dumps(flat | {"activation_fn_str": "tanh-relu"}))
    with pytest.raises(ValueError, match=r"activation_fn.*tanh-relu"):
        SAE.load(tmp_path)


def test_a_scaling_factor_of_one_is_none(tmp_path):
    sae = make("relu")
    sae.save(tmp_path)
    edit_tensors(tmp_path, scaling_factor=torch.ones(D_SAE))
    assert_same_function(SAE.load(tmp_path), sae)
    edit_tensors(tmp_path, scaling_factor=torch.full((D_SAE,), 2.0))
    with pytest.raises(ValueError, match="scaling_factor"):
        SAE.load(tmp_path)


def test_half_precision_keeps_its_bits(tmp_path):
    sae = make("jumprelu", dtype=torch.bfloat16)
    sae.save(tmp_path)
    again = SAE.load(tmp_path)
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in sae.state_dict().items())


# --- damage ---------------------------------------------------------------------------------------------------------


def cut(folder: Path) -> None:
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "cfg.json").unlink(), r"cfg\.json.*holds none"),
        (lambda f: (f / "cfg.json").write_text("{"), "must be a JSON object"),
        (lambda f: (f / "cfg.json").write_text("[]"), "JSON object"),
        (lambda f: (f / "cfg.json").write_text("{}"), "must state architecture, d_in, d_sae, dtype"),
        (lambda f: (f / "sae_weights.safetensors").unlink(), r"sae_weights\.safetensors.*holds none"),
        (lambda f: (f / "sae_weights.safetensors").write_bytes(b"\x08\x00"), "damaged"),
        (cut, "damaged"),
        (lambda f: edit(f, architecture="temporal"), "'temporal'.*Known are: 'standard', 'topk'"),
        (lambda f: edit(f, architecture="jumprelu"), "Missing: threshold"),
        (lambda f: edit(f, architecture="gated"), "Missing: r_mag, b_mag, b_gate"),
        (lambda f: edit(f, architecture="skip_transcoder"), "Missing: W_skip"),
        (lambda f: edit(f, dtype="int8"), "dtype.*'int8'"),
        (lambda f: edit(f, k=None), "`k` must be a whole number.*None"),
        (lambda f: edit(f, k=D_SAE + 1), rf"k must be in \[1, d_sae\].*k={D_SAE + 1} with d_sae={D_SAE}"),
        (lambda f: edit(f, d_in=13), r"agree with the weights.*\(13, 40, 12\).*\(12, 40, 12\)"),
        (lambda f: edit(f, normalize_activations="layer_norm"), "layer_norm"),
        (lambda f: edit_tensors(f, b_enc=torch.zeros(3)), r"b_enc must have the shape \[40\].*has \[3\]"),
        (lambda f: edit_tensors(f, W_enc=torch.zeros(3)), "matrices"),
        (lambda f: edit_tensors(f, b_enc=torch.zeros(D_SAE, dtype=torch.int32)), "b_enc is int32"),
        (lambda f: edit_tensors(f, b_enc=None), "Missing: b_enc"),
        (lambda f: edit_tensors(f, log_threshold=torch.zeros(D_SAE)), "Got also log_threshold"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    make("topk").save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        SAE.load(tmp_path)


def test_wrong_width_is_named():
    with pytest.raises(ValueError, match="d_in=12"):
        make("topk")(torch.zeros(3, 7))


# --- SAELens itself -------------------------------------------------------------------------------------------------


@pytest.mark.saelens
@pytest.mark.parametrize(
    ("kind", "d_out"), [*((kind, D_IN) for kind in HELD), *((kind, 7) for kind in HELD if "transcoder" in kind)]
)
def test_saelens_computes_the_same_function(tmp_path, kind, d_out):
    sae_lens = pytest.importorskip("sae_lens")
    sae = make(kind, d_out=d_out)
    x = inputs(sae, 500)
    saelens.save(sae, tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    code, output = expected(sae, x)
    found = theirs.encode(x)
    torch.testing.assert_close(found.double(), code, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs(x).double(), output, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, sae.encode(x), rtol=1e-4, atol=1e-4)
    assert torch.equal((found != 0).sum(1), (sae.encode(x) != 0).sum(1))
    assert theirs.cfg.metadata.hook_name == sae.metadata["hook_name"]
    assert_same_function(SAE.load(tmp_path), sae)


@pytest.mark.saelens
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", [kind for kind in OWN if "transcoder" not in kind])
def test_what_saelens_writes_is_read(tmp_path, kind, centred):
    sae_lens = pytest.importorskip("sae_lens")
    sae = make(kind)
    saelens.save(sae, tmp_path / "ours")
    edit(tmp_path / "ours", apply_b_dec_to_input=centred)
    edit_tensors(tmp_path / "ours", W_dec=sae.W_dec * (torch.rand(D_SAE, 1) * 3 + 0.2))
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "ours"))
    theirs.save_model(str(tmp_path / "theirs"))
    again, x = SAE.load(tmp_path / "theirs"), inputs(sae, 500)
    torch.testing.assert_close(again(x), theirs(x), rtol=1e-3, atol=1e-3)
    assert torch.equal((again.encode(x) != 0).sum(1), (theirs.encode(x) != 0).sum(1))
    if kind == "jumprelu":
        assert isinstance(again.gate, JumpReLU)


@pytest.mark.saelens
def test_topk_scaled_by_the_decoder_norm_as_saelens_does(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    sae = make("topk")
    saelens.save(sae, tmp_path)
    edit(tmp_path, rescale_acts_by_decoder_norm=True)
    edit_tensors(tmp_path, W_dec=sae.W_dec * (torch.rand(D_SAE, 1) * 3 + 0.2))
    theirs, again, x = sae_lens.SAE.load_from_disk(str(tmp_path)), SAE.load(tmp_path), inputs(sae, 500)
    torch.testing.assert_close(again.encode(x), theirs.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.saelens
def test_saelens_evaluates_it_in_the_model(tmp_path):
    """As docs/export.md says: the model from the Hugging Face library, the hook by its module's path."""
    sae_lens = pytest.importorskip("sae_lens")
    from datasets import Dataset
    from sae_lens.evals import EvalConfig, run_evals
    from sae_lens.load_model import load_model
    from sae_lens.training.activation_scaler import ActivationScaler

    import strata

    code = "".join(f"def add{i}(a, b):\n    return a + b * {i}\n\n" for i in range(400))
    lm = strata.LanguageModel("demo")
    config = strata.SAEConfig(expansion_factor=4, k=16, batch_size=512)
    lm.train_sae(dataset=[code], site="layers.3", config=config).save(tmp_path / "sae")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "sae"))
    assert theirs.cfg.metadata.model_class_name == "HookedTransformer"
    theirs.cfg.metadata.hook_name = lm.site("layers.3").path
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    model = load_model("AutoModelForCausalLM", str(tmp_path / "model"), device="cpu")
    rows = sae_lens.ActivationsStore.from_sae(
        *(model, theirs), dataset=Dataset.from_dict({"text": [code] * 4}), streaming=False, device="cpu",
        context_size=64, store_batch_size_prompts=4, n_batches_in_buffer=4,
    )  # fmt: skip
    asked = EvalConfig(
        batch_size_prompts=2, n_eval_reconstruction_batches=2, compute_ce_loss=True, compute_sparsity_metrics=True,
        n_eval_sparsity_variance_batches=2, compute_variance_metrics=True,
    )  # fmt: skip
    found, _ = run_evals(theirs, rows, model, ActivationScaler(), asked)
    assert found["sparsity"]["l0"] == pytest.approx(16, abs=0.1)
    assert found["reconstruction_quality"]["explained_variance"] > 0.5
    assert found["model_performance_preservation"]["ce_loss_score"] > 0.5
