"""What SAEBench asks of an SAE that it is given as an object."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import strata
from format_cases import D_IN, D_SAE, expected, inputs, make
from strata.sae.gates import TopK
from strata.sae.model import SAE

GATES = ("topk", "relu", "jumprelu", "gated")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def bare() -> SAE:
    """An SAE that knows nothing of where it comes from."""
    weights: dict[str, Any] = {name: tensor.data for name, tensor in make("topk").named_parameters(recurse=False)}
    return SAE(**weights, gate=TopK(3))


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("shape", [(6,), (3, 5)], ids=["2-D", "3-D"])
def test_encode_is_dense_and_decode_depends_on_nothing_else(kind: str, shape: tuple[int, ...]) -> None:
    sae = make(kind)
    x = inputs(sae, 15)[: torch.Size(shape).numel()].view(*shape, D_IN)
    code, output = expected(sae, x.reshape(-1, D_IN))
    latents = sae.encode(x)
    assert type(latents) is Tensor
    torch.testing.assert_close(latents.double(), code.view(*shape, D_SAE), rtol=1e-4, atol=1e-4)
    first = sae.decode(latents)
    torch.testing.assert_close(first.double(), output.view(*shape, D_IN), rtol=1e-4, atol=1e-4)
    sae.encode(torch.randn(2, D_IN))  # what was encoded last is of no concern to decode
    assert torch.equal(sae.decode(latents), first)
    torch.testing.assert_close(sae(x), first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("shape", [(6,), (3, 5)], ids=["2-D", "3-D"])
def test_a_code_can_be_edited_in_place(kind: str, shape: tuple[int, ...]) -> None:
    sae = make(kind)
    x = inputs(sae, 15)[: torch.Size(shape).numel()].view(*shape, D_IN)
    latents = sae.encode(x)
    whole, before = sae.decode(latents), latents.clone()
    ablated = before.flatten(0, -2).sum(0) > before.flatten(0, -2).sum(0).median()
    latents[..., ablated] = 0.0
    assert before[..., ablated].abs().sum() > 0
    torch.testing.assert_close(sae.decode(latents), whole - before[..., ablated] @ sae.W_dec[ablated])
    assert torch.equal(sae.encode(x), before)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_rows_of_zeros_stay_finite(kind: str, dtype: torch.dtype) -> None:
    sae = make(kind).to(dtype=dtype)
    x = inputs(sae, 15).view(3, 5, D_IN).to(dtype)
    x[0], x[2, 3:] = 0, 0
    latents = sae.encode(x)
    assert latents.dtype == sae.decode(latents).dtype == dtype
    assert latents.isfinite().all()
    assert sae.decode(latents).isfinite().all()


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_decoder_rows_have_unit_norm_in_every_dtype(kind: str, dtype: torch.dtype) -> None:
    norms = make(kind).to(dtype=dtype).W_dec.float().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(D_SAE), rtol=0, atol=TOLERANCES[dtype])


def test_a_trained_sae_has_unit_decoder_rows() -> None:
    rows = torch.randn(2048, D_IN) * 3 + 5
    config = strata.SAEConfig(architecture="jumprelu", expansion_factor=4, k=4, batch_size=256, num_epochs=2)
    sae = strata.Trainer(config).train(rows)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48), rtol=0, atol=1e-5)
    assert (sae.cfg.d_sae, sae.cfg.architecture, sae.cfg.context_size) == (48, "jumprelu", 128)


@pytest.mark.parametrize("kind", GATES)
def test_moving_returns_the_sae_and_tells_the_cfg(kind: str) -> None:
    sae = make(kind)
    cfg = sae.cfg
    assert (cfg.dtype, cfg.device) == ("float32", "cpu")
    assert sae.to(dtype=torch.bfloat16) is sae
    assert (sae.dtype, cfg.dtype) == (torch.bfloat16, "bfloat16")
    assert {tensor.dtype for tensor in sae.state_dict().values()} == {torch.bfloat16}
    assert sae.encode(torch.zeros(2, D_IN)).dtype == torch.bfloat16
    assert sae.float() is sae
    assert (sae.dtype, cfg.dtype) == (torch.float32, "float32")
    assert sae.to(device="meta", dtype=torch.float16) is sae
    assert (sae.device, sae.dtype) == (torch.device("meta"), torch.float16)
    assert sae.cfg is cfg
    assert (cfg.device, cfg.dtype) == ("meta", "float16")


def test_an_sae_inside_a_module_tells_its_cfg_too() -> None:
    held = nn.ModuleList([make("topk")])
    cfg = held[0].cfg
    held.to(torch.float64)
    assert cfg.dtype == "float64"


@pytest.mark.parametrize("kind", GATES)
def test_weights_are_parameters_in_the_places_that_are_read(kind: str) -> None:
    sae = make(kind)
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    for name, shape in shapes.items():
        assert isinstance(getattr(sae, name), nn.Parameter)
        assert getattr(sae, name).shape == shape
    assert hasattr(sae, "b_mag") == (kind == "gated")
    if kind == "gated":
        assert sae.b_mag is sae.gate.b_mag
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        sae.nothing_of_this_name  # noqa: B018


@pytest.mark.parametrize("kind", GATES)
def test_cfg_says_what_is_looked_up(kind: str) -> None:
    cfg = make(kind).cfg
    said = {
        "model_name": "pythia-70m",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "hook_layer": 3,
        "hook_name": "blocks.3.hook_resid_post",
        "hook_head_index": None,
        "prepend_bos": False,
        "context_size": 128,
        "dtype": "float32",
        "device": "cpu",
        "architecture": {"relu": "standard"}.get(kind, kind),
        "normalize_activations": "none",
        "model_from_pretrained_kwargs": {},
        "dataset_path": "",
        "dataset_trust_remote_code": False,
        "seqpos_slice": (None,),
    }
    assert {name: getattr(cfg, name) for name in said} == said
    assert cfg.to_dict() == said
    assert json.loads(json.dumps(cfg.to_dict())) == said | {"seqpos_slice": [None]}


def test_cfg_of_an_sae_from_bare_tensors() -> None:
    cfg = bare().cfg
    assert (cfg.model_name, cfg.hook_name, cfg.hook_layer) == (None, None, None)
    assert (cfg.context_size, cfg.prepend_bos, cfg.seqpos_slice) == (128, False, (None,))


@pytest.mark.parametrize(
    ("hook_name", "layer"),
    [
        ("blocks.11.hook_mlp_out", 11),
        ("layers.7", 7),
        ("transformer.h.0.mlp.c_fc", 0),
        ("gpt_neox.layers.12.attention", 12),
        ("gpt_neox.embed_in", None),
        ("decoder2.final_norm", None),
    ],
)
def test_the_layer_is_the_number_in_the_name(hook_name: str, layer: int | None) -> None:
    assert make("topk", hook_name=hook_name).cfg.hook_layer == layer


def test_what_the_metadata_states_wins_and_none_counts_as_unsaid() -> None:
    stated: dict[str, Any] = {
        "context_size": 1024,
        "prepend_bos": True,
        "seqpos_slice": [1, None],
        "hook_head_index": 2,
    }
    cfg = make("topk", **stated, model_from_pretrained_kwargs={"center_unembed": False}).cfg
    assert (cfg.context_size, cfg.prepend_bos, cfg.seqpos_slice, cfg.hook_head_index) == (1024, True, (1, None), 2)
    assert cfg.model_from_pretrained_kwargs == {"center_unembed": False}
    assert make("topk", hook_name=None).cfg.hook_name == "layers.3"
    unsaid: dict[str, Any] = dict.fromkeys(stated)
    assert make("topk", **unsaid).cfg.to_dict() == make("topk").cfg.to_dict()


def test_cfg_can_be_extended_without_touching_the_sae(tmp_path: Path) -> None:
    sae = make("topk", model_from_pretrained_kwargs={})
    cfg: Any = sae.cfg
    said, metadata = cfg.to_dict(), copy.deepcopy(sae.metadata)
    assert not hasattr(cfg, "metadata")  # SAEBench attaches one where there is none
    cfg.metadata = object()
    cfg.architecture_str = "topk"
    cfg.context_size = 64
    sae.cfg.model_from_pretrained_kwargs["fold_ln"] = False
    changed = {"context_size": 64, "model_from_pretrained_kwargs": {"fold_ln": False}}
    assert json.loads(json.dumps(sae.cfg.to_dict())) == said | changed | {"seqpos_slice": [None]}
    assert sae.metadata == metadata
    assert not any(name.startswith("cfg") for name in sae.state_dict())
    sae.save(tmp_path / "sae")
    assert SAE.load(tmp_path / "sae").cfg.to_dict() == said
    sae.cfg = copy.deepcopy(sae.cfg)
    assert sae.cfg.context_size == 64


def test_a_copy_has_a_cfg_of_its_own() -> None:
    sae = make("jumprelu")
    cfg = sae.cfg
    other = copy.deepcopy(sae).to(dtype=torch.float16)
    assert (cfg.dtype, other.cfg.dtype) == ("float32", "float16")
