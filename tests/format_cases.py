"""SAEs of every kind for the tests of folder formats, and what they compute, written down once more in float64."""

import torch
from torch import Tensor

from strata.sae.gates import Gate, Gated, JumpReLU, ReLU, TopK
from strata.sae.model import SAE, Transcoder

D_IN, D_SAE, K = 12, 40, 5
METADATA = {
    "model_name": "pythia-70m",
    "hf_model_name": "EleutherAI/pythia-70m",
    "hook_name": "blocks.3.hook_resid_post",
    "site": "layers.3",
    "context_size": 128,
    "training_architecture": "given by the test",
    "l0": 4.5,
}

# name: (gate, transcoder, skip)
KINDS = {
    "topk": ("topk", False, False),
    "relu": ("standard", False, False),
    "jumprelu": ("jumprelu", False, False),
    "gated": ("gated", False, False),
    "relu transcoder": ("standard", True, False),
    "relu skip transcoder": ("standard", True, True),
    "jumprelu transcoder": ("jumprelu", True, False),
    "jumprelu skip transcoder": ("jumprelu", True, True),
    "topk transcoder": ("topk", True, False),
    "topk skip transcoder": ("topk", True, True),
    "gated transcoder": ("gated", True, True),
}


def make(kind: str, *, d_out: int = D_IN, dtype: torch.dtype = torch.float32, **metadata) -> SAE:
    """A random SAE of that kind, with a large b_dec as folded means are; the same on every call."""
    name, is_transcoder, skip = KINDS[kind]
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    b_enc = normal(D_SAE) * 0.5
    weights = {
        "W_enc": normal(D_SAE, D_IN).t().to(dtype),
        "b_enc": b_enc.to(dtype),
        "W_dec": torch.nn.functional.normalize(normal(D_SAE, d_out), dim=1).to(dtype),
        "b_dec": (normal(d_out) * 5).to(dtype),
    }
    gate: Gate
    if name == "topk":
        gate = TopK(K)
    elif name == "jumprelu":
        gate = JumpReLU((normal(D_SAE).abs() * 2).to(dtype))
    elif name == "gated":
        r_mag, b_mag = normal(D_SAE) * 0.3, normal(D_SAE)
        gate = Gated(r_mag=r_mag.to(dtype), b_mag=b_mag.to(dtype), b_gate=weights["b_enc"].clone())
    else:
        gate = ReLU()
    if not is_transcoder:
        return SAE(**weights, gate=gate, metadata=METADATA | metadata)
    W_skip = normal(d_out, D_IN).to(dtype) if skip else None
    return Transcoder(W_skip=W_skip, **weights, gate=gate, metadata=METADATA | metadata)


def inputs(sae: SAE, n: int = 64) -> Tensor:
    """Rows around what the SAE is centred on."""
    x = torch.randn(n, sae.d_in, generator=torch.Generator().manual_seed(3)) * 2
    return x if isinstance(sae, Transcoder) else x + sae.b_dec.float()


def expected(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Code and output by the definitions of the gates, in float64, from nothing but the tensors."""
    t = {name: tensor.double() for name, tensor in sae.state_dict().items()}
    x = x.double()
    product = (x if isinstance(sae, Transcoder) else x - t["b_dec"]) @ t["W_enc"]
    pre = product + t["b_enc"]
    if isinstance(sae.gate, TopK):
        least = pre.topk(sae.gate.k, dim=-1).values[:, -1:]
        code = pre.relu() * (pre >= least)
    elif isinstance(sae.gate, JumpReLU):
        code = pre.relu() * (pre > t["gate.threshold"])
    elif isinstance(sae.gate, Gated):
        open_ = product + t["gate.b_gate"] > 0
        code = open_ * (t["gate.r_mag"].exp() * product + t["gate.b_mag"]).relu()
    else:
        code = pre.relu()
    output = code @ t["W_dec"] + t["b_dec"]
    return code, output + x @ t["W_skip"].t() if "W_skip" in t else output


def assert_same_function(loaded: SAE, sae: SAE, *, tolerance: float = 1e-4) -> None:
    """Latents, output and L0 on raw activations."""
    x = inputs(sae)
    code, output = expected(sae, x)
    torch.testing.assert_close(loaded.encode(x).double(), code, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(loaded(x).double(), output, rtol=tolerance, atol=tolerance)
    assert torch.equal((loaded.encode(x) != 0).sum(1), (code != 0).sum(1))
    assert 1 < (code != 0).double().sum(1).mean() < D_SAE - 1  # the case tells something
