"""The SAELens folder: bytes, round trip, damage, and what SAELens itself makes of it."""

import json
import struct

import pytest
import torch

from strata.sae.gates import TopK
from strata.sae.model import SAE


def make_sae(d_in: int = 6, d_sae: int = 20, k: int = 3) -> SAE:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    return SAE(
        W_enc=torch.randn(d_sae, d_in, generator=generator).t(),
        b_enc=torch.randn(d_sae, generator=generator),
        W_dec=W_dec,
        b_dec=torch.randn(d_in, generator=generator) * 5,
        gate=TopK(k),
        metadata={"hook_name": "blocks.3.hook_resid_post", "model_name": "demo"},
    )


def test_round_trip_is_exact(tmp_path):
    sae, x = make_sae(), torch.randn(50, 6) * 4
    sae.save(tmp_path / "deep" / "folder")
    again = SAE.load(tmp_path / "deep" / "folder")
    assert torch.equal(again.encode(x), sae.encode(x))
    assert torch.equal(again(x), sae(x))
    assert again.metadata["hook_name"] == "blocks.3.hook_resid_post"


def test_file_says_what_saelens_needs(tmp_path):
    make_sae().save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert {key: config[key] for key in ("architecture", "d_in", "d_sae", "dtype", "k", "apply_b_dec_to_input")} == {
        "architecture": "topk", "d_in": 6, "d_sae": 20, "dtype": "float32", "k": 3, "apply_b_dec_to_input": True,
    }  # fmt: skip
    assert config["normalize_activations"] == "none"
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    header_bytes = (tmp_path / "sae_weights.safetensors").read_bytes()
    header = json.loads(header_bytes[8 : 8 + struct.unpack("<Q", header_bytes[:8])[0]])
    shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    assert shapes == {"W_enc": [6, 20], "b_enc": [20], "W_dec": [20, 6], "b_dec": [6]}


def test_saelens_variants_load_as_the_same_function(tmp_path):
    sae, x = make_sae(), torch.randn(50, 6)
    sae.save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())

    def load_with(**changes) -> SAE:
        (tmp_path / "cfg.json").write_text(json.dumps(config | changes))
        return SAE.load(tmp_path)

    uncentred = load_with(apply_b_dec_to_input=False)
    wanted = TopK(3).dense(x @ sae.W_enc + sae.b_enc) @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(uncentred(x), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(load_with(rescale_acts_by_decoder_norm=True)(x), sae(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "cfg.json").unlink(), "holds none"),
        (lambda f: (f / "cfg.json").write_text("{"), "must be JSON"),
        (lambda f: (f / "cfg.json").write_text("{}"), "must state architecture"),
        (lambda f: (f / "sae_weights.safetensors").unlink(), "holds none"),
        (lambda f: (f / "sae_weights.safetensors").write_bytes(b"\x08\x00"), "damaged"),
        (lambda f: edit(f, architecture="standard"), "standard"),
        (lambda f: edit(f, normalize_activations="layer_norm"), "layer_norm"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    make_sae().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        SAE.load(tmp_path)


def edit(folder, **changes):
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | changes))


def test_wrong_width_is_named():
    with pytest.raises(ValueError, match="d_in=6"):
        make_sae()(torch.zeros(3, 7))


@pytest.mark.saelens
def test_saelens_computes_the_same_function(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    sae, x = make_sae(48, 384, 8), torch.randn(100, 48) * 3
    sae.save(tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    torch.testing.assert_close(
        theirs.encode(x).to_dense() if theirs.encode(x).is_sparse else theirs.encode(x), sae.encode(x)
    )
    torch.testing.assert_close(theirs(x), sae(x))
