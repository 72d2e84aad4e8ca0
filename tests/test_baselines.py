"""What SAEs are compared with: principal components, another seed's features, a model that has learned nothing."""

import sysconfig
from pathlib import Path

import pytest
import torch

from strata.activations.harvest import collect, token_stream
from strata.errors import UserError
from strata.evaluate.baselines import Covariance, fit_pca, pca_sae
from strata.evaluate.overlap import shared_share
from strata.lm.model import LanguageModel
from strata.lm.random_weights import with_random_weights
from strata.sae import metrics
from strata.sae.gates import TopK
from strata.sae.model import SAE
from tiny_models import WIDTH, tiny_model, tiny_tokenizer

D_IN = 12


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(tiny_model("gpt_neox"), tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    library = Path(sysconfig.get_path("stdlib"))
    for name in ("string", "bisect", "keyword"):
        (folder / f"{name}.txt").write_text((library / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def rows(n: int = 500) -> torch.Tensor:
    return torch.randn(n, D_IN) @ torch.randn(D_IN, D_IN) + 5 * torch.randn(D_IN)


def fitted(x: torch.Tensor, n: int) -> SAE:
    sums = Covariance(x)
    for part in x.split(77):
        sums.add(part)
    mean, directions = sums.principal_components()
    return pca_sae(mean, directions[:n])


def test_pca_is_the_projection_of_a_singular_value_decomposition() -> None:
    x = rows()
    centred = (x - x.mean(0)).double()
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:4]
    wanted = centred @ directions.t() @ directions + x.mean(0)
    torch.testing.assert_close(fitted(x, 4)(x).double(), wanted, rtol=1e-4, atol=1e-4)


def test_pca_of_all_components_is_the_identity_and_of_none_better_than_fewer() -> None:
    x = rows()
    torch.testing.assert_close(fitted(x, D_IN)(x), x, rtol=1e-4, atol=1e-4)
    errors = [metrics.fvu(x, fitted(x, n)(x)).item() for n in (1, 4, 8)]
    assert errors == sorted(errors, reverse=True) and errors[0] < 1


def test_pca_has_as_many_active_latents_as_components() -> None:
    x = rows()
    pca = fitted(x, 5)
    code = pca.encode_sparse(x)
    assert metrics.l0(code.values).item() == 5
    assert bool((code.values >= 0).all())
    torch.testing.assert_close(code.dense(), pca.encode(x))
    torch.testing.assert_close(pca.W_dec.norm(dim=1), torch.ones(10))


def test_attention_sinks_do_not_turn_the_components() -> None:
    x = rows()
    sinks = torch.full((3, D_IN), 1e5)
    first = torch.cat([x, sinks])
    sums = Covariance(first)
    sums.add(first)
    mean, directions = sums.principal_components()
    torch.testing.assert_close(mean.float(), x.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pca_sae(mean, directions[:3])(x), fitted(x, 3)(x), rtol=1e-3, atol=1e-3)


def test_pca_is_fitted_on_training_documents_at_all_sites(lm: LanguageModel, texts: Path) -> None:
    sites = ["layers.0", "layers.2"]
    tokens = token_stream(lm, str(texts), context_tokens=32, text_batch_size=8, split="train")
    found = fit_pca(lm, tokens, sites=sites, ks=[4, 1000], n_rows=2000, lm_dtype="fp32")
    # whole batches: it stops after the one that reaches 2000 rows
    x = collect(lm, tokens, sites=sites, lm_dtype="fp32", n_tokens=2000 + 8 * 32)
    for site in sites:
        best = fitted(x[site], 4)
        ours, wanted = (metrics.fvu(x[site], sae(x[site])).item() for sae in (found[4][site], best))
        assert wanted <= ours < 1.02 * wanted
        assert found[1000][site].d_sae == 2 * WIDTH
        assert found[4][site].metadata["site"] == site
        assert [found[k][site].metadata["k"] for k in (4, 1000)] == [4, WIDTH]


def test_pca_of_a_text_without_rows_is_refused(lm: LanguageModel) -> None:
    only_ends = torch.zeros(4, 16, dtype=torch.long)
    tokens = token_stream(lm, only_ends, text_batch_size=8, split="train")
    with pytest.raises(UserError, match="at least 2 rows"):
        fit_pca(lm, tokens, sites=["layers.0"], ks=[2])


def sae_of(W_dec: torch.Tensor) -> SAE:
    d_sae, d_in = W_dec.shape
    gate = TopK(2)
    return SAE(W_enc=W_dec.t().clone(), b_enc=torch.zeros(d_sae), W_dec=W_dec, b_dec=torch.zeros(d_in), gate=gate)


def directions(n: int, d_in: int = 64) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d_in), dim=1)


def test_an_sae_shares_all_features_with_itself_in_any_order_and_scale() -> None:
    W_dec = directions(200)
    assert shared_share(sae_of(W_dec), sae_of(W_dec)) == 1
    assert shared_share(sae_of(W_dec), sae_of(3 * W_dec[torch.randperm(200)])) == 1


def test_random_and_opposite_features_are_not_shared() -> None:
    W_dec = directions(200)
    assert shared_share(sae_of(W_dec), sae_of(directions(200))) == 0
    assert shared_share(sae_of(W_dec), sae_of(-W_dec)) == 0


def test_the_share_counts_what_is_there_and_is_the_same_both_ways() -> None:
    a, b = directions(200), directions(200)
    b[:50] = a[100:150]
    assert shared_share(sae_of(a), sae_of(b)) == shared_share(sae_of(b), sae_of(a)) == 0.25
    # of the narrower one, all features are there
    assert shared_share(sae_of(a[:40]), sae_of(a)) == shared_share(sae_of(a), sae_of(a[:40])) == 1


def test_a_feature_has_one_partner() -> None:
    a = directions(10)
    b = torch.cat([a[:1] + 0.01 * directions(9), directions(1)])  # nine near copies of one feature
    assert shared_share(sae_of(a), sae_of(b)) == 0.1


def test_the_threshold_is_the_least_cosine() -> None:
    a = torch.eye(4)
    b = torch.eye(4)
    b[0, :2] = torch.tensor([0.8, 0.6])
    b[1, :2] = torch.tensor([-0.6, 0.8])
    assert shared_share(sae_of(a), sae_of(b), threshold=0.79) == 1
    assert shared_share(sae_of(a), sae_of(b), threshold=0.81) == 0.5


def test_many_features_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = directions(50), directions(50)
    b[7:20] = a[:13]
    whole = shared_share(sae_of(a), sae_of(b))
    monkeypatch.setattr("strata.evaluate.overlap._PRODUCT_BYTES", 4 * 50 * 3)
    assert shared_share(sae_of(a), sae_of(b)) == whole == 13 / 50


def test_saes_of_other_width_have_no_features_in_common_to_speak_of() -> None:
    with pytest.raises(UserError, match="d_in=64 and d_in=32"):
        shared_share(sae_of(directions(5)), sae_of(directions(5, 32)))


def weights_of(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in lm.model.state_dict().items()}


def test_random_weights_are_the_seed_s_and_leave_the_model_alone(lm: LanguageModel) -> None:
    before, state = weights_of(lm), torch.get_rng_state()
    drawn, again, other = (with_random_weights(lm, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(lm).items())
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn.fingerprint() == again.fingerprint() != other.fingerprint()
    embedding = drawn.model.get_input_embeddings().weight
    assert not torch.equal(embedding, lm.model.get_input_embeddings().weight)
    assert embedding.std().item() == pytest.approx(lm.model.config.initializer_range, rel=0.1)


def test_a_random_model_is_one_of_the_same_architecture(lm: LanguageModel) -> None:
    drawn = with_random_weights(lm)
    assert drawn.name == f"{lm.name}:random"
    assert (drawn.sites, drawn.model_class, drawn.dtype) == (lm.sites, lm.model_class, lm.dtype)
    assert drawn.tokenizer is lm.tokenizer
    assert drawn.logits([[5, 6, 7]]).isfinite().all()


def test_a_quantised_model_is_not_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt_neox")
    monkeypatch.setattr(model, "hf_quantizer", object(), raising=False)
    with pytest.raises(UserError, match="not quantised"):
        with_random_weights(LanguageModel(model))
