"""The features of a text at hand and the texts of a feature: values, what people see, and what is refused."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strata.errors import UserError
from strata.interpret.index import FeatureIndex
from strata.interpret.index_building import build_index
from strata.interpret.shown_texts import ShownText, TopTexts, shaded, visible
from strata.interpret.text_features import TextFeature, TextFeatures, top_features
from strata.lm.model import LanguageModel
from strata.sae.gates import ReLU, TopK
from strata.sae.group import GroupSAE
from strata.sae.model import SAE
from tiny_models import MAX_POSITIONS, WIDTH, tiny_model, tiny_tokenizer

D_SAE, SITE = 40, "layers.1"
TEXT = "def f(x):\n    return x"
NASTY = "<script>alert(\"1\")</script> & <b onclick='x'>"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(tiny_model("gpt_neox"), tokenizer=tiny_tokenizer())


def some_sae(*, site: str | None = SITE, relu: bool = False, d_in: int = WIDTH, bias: float = 0.0) -> SAE:
    W = torch.nn.functional.normalize(torch.randn(D_SAE, d_in, generator=torch.Generator().manual_seed(0)), dim=1)
    gate = ReLU() if relu else TopK(5)
    metadata = {} if site is None else {"site": site}
    return SAE(W_enc=W.t().contiguous(), b_enc=torch.full((D_SAE,), bias), W_dec=W, b_dec=torch.zeros(d_in), gate=gate,
               metadata=metadata)  # fmt: skip


def codes(lm: LanguageModel, sae: SAE, text: str, *, site: str = SITE) -> np.ndarray:
    """The text's latents [tokens d_sae] by hand, with the separator in front, which is no row."""
    assert lm.tokenizer is not None
    ids = [0, *lm.tokenizer(text, add_special_tokens=False)["input_ids"]]
    parts = [ids[start : start + MAX_POSITIONS] for start in range(0, len(ids), MAX_POSITIONS)]
    found = torch.cat([sae.encode(lm.activations([part], site)[site])[0] for part in parts])
    return torch.where(torch.tensor(ids)[:, None] == 0, 0, found).numpy()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("text", [TEXT, "q", "long " * 40])
@pytest.mark.parametrize("by", ["activation", "mean", "tokens"])
def test_top_features_are_those_of_the_dense_code(by: str, text: str, relu: bool, lm: LanguageModel) -> None:
    sae = some_sae(relu=relu)
    want = codes(lm, sae, text)
    score = {"activation": want.max(0), "mean": want.mean(0), "tokens": (want > 0).sum(0)}[by]
    found = lm.top_features(text, sae, n=12, by=by)
    assert found.site == SITE
    assert len(found) == min(12, int((want.max(0) > 0).sum()))
    latents = [feature.latent for feature in found]
    np.testing.assert_allclose(score[latents], np.sort(score)[::-1][: len(latents)], rtol=1e-4)
    if by == "tokens":  # whole numbers: equal ones are common
        assert latents == np.argsort(-score, kind="stable")[: len(latents)].tolist()
    for feature in found:
        assert feature.activation == pytest.approx(want[:, feature.latent].max(), rel=1e-4)
        assert feature.n_fired == (want[:, feature.latent] > 0).sum()
        np.testing.assert_allclose(feature.text.activations, want[:, feature.latent], rtol=1e-4, atol=1e-5)
        assert feature.text.peak == want[:, feature.latent].argmax()
        assert "".join(feature.text.tokens) == f"<|endoftext|>{text}"
        assert feature.text.activations[0] == 0, "special tokens are no rows"
    assert found[0] == next(iter(found))


def test_only_features_that_fire_are_given(lm: LanguageModel) -> None:
    assert len(lm.top_features(TEXT, some_sae(bias=-1e6, relu=True))) == 0
    assert len(lm.top_features("<|endoftext|>", some_sae())) == 0, "special tokens are no rows"
    assert 5 < len(lm.top_features(TEXT, some_sae(), n=10_000)) <= D_SAE
    assert repr(lm.top_features(TEXT, some_sae(bias=-1e6, relu=True))) == f"{SITE}: the strongest features"


def test_the_site_can_be_given_and_the_model_runs_no_further(lm: LanguageModel) -> None:
    ran = []
    hooks = [
        lm.model.get_submodule(lm.site(site).path).register_forward_hook(lambda *_, site=site: ran.append(site))
        for site in lm.sites
    ]
    found = lm.top_features(TEXT, some_sae(), site="layers.0", n=3)
    for hook in hooks:
        hook.remove()
    assert found.site == "layers.0"
    assert "layers.1" not in ran
    want = codes(lm, some_sae(), TEXT, site="layers.0")
    assert found[0].activation == pytest.approx(want.max(), rel=1e-4)
    assert len(top_features(lm, TEXT, some_sae(site=None), site="layers.0")) == 10


def test_an_sae_of_half_precision_is_taken(lm: LanguageModel) -> None:
    exactly, half = (lm.top_features(TEXT, sae, n=5) for sae in (some_sae(), some_sae().to(torch.bfloat16)))
    assert half[0].activation == pytest.approx(exactly[0].activation, rel=0.02)


def test_mistakes_are_said(lm: LanguageModel) -> None:
    with pytest.raises(UserError, match=r"`site` must be given .* Give site="):
        lm.top_features(TEXT, some_sae(site=None))
    with pytest.raises(UserError, match=r"`by` must be one of activation, mean, tokens\. Got 'means'.*mean"):
        lm.top_features(TEXT, some_sae(), by="means")
    with pytest.raises(UserError, match=r"`n` must be at least 1\. Got 0"):
        lm.top_features(TEXT, some_sae(), n=0)
    with pytest.raises(UserError, match=r"layers\.9"):
        lm.top_features(TEXT, some_sae(), site="layers.9")
    with pytest.raises(UserError, match="d_in=7"):
        lm.top_features(TEXT, some_sae(d_in=7))
    with pytest.raises(UserError, match="text"):
        lm.top_features("", some_sae())


def test_a_model_without_a_tokenizer_reads_no_text() -> None:
    with pytest.raises(UserError, match="tokenizer"):
        LanguageModel(tiny_model("gpt_neox")).top_features(TEXT, some_sae())


def test_a_group_is_asked_for_its_layer(lm: LanguageModel) -> None:
    group = GroupSAE({"layers.0": some_sae(site="layers.0"), "layers.1": some_sae(site="layers.1")})
    assert lm.top_features(TEXT, group.at("layers.0")).site == "layers.0"
    given: Any = group
    with pytest.raises(UserError, match=r"\.at\("):
        lm.top_features(TEXT, given)


# Texts of a feature


@pytest.fixture(scope="module")
def index(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    saes = {SITE: some_sae(relu=True), "layers.2": some_sae(site="layers.2")}
    texts = [f"{TEXT} {n}" for n in range(20)] + [NASTY, "語 é"]
    return build_index(lm, saes, texts, folder=tmp_path_factory.mktemp("i") / "index", context_tokens=32,
                       lm_dtype="fp32", progress=False)  # fmt: skip


def test_top_texts_are_the_strongest_windows(index: FeatureIndex) -> None:
    for latent in range(0, D_SAE, 4):
        windows = index[SITE].top(latent, n=4, before=5, after=3)
        found = index.top_texts(latent, SITE, n=4, before=5, after=3)
        assert isinstance(found, TopTexts)
        assert len(found) == len(windows) == 4
        assert found.density == pytest.approx(index[SITE].density(latent))
        for number, text in enumerate(found):
            there = windows.is_token[number]
            assert list(text.tokens) == [
                index.vocabulary[i] for i in windows.token_ids[number][windows.is_token[number]].tolist()
            ]
            assert list(text.activations) == windows.activations[number][there].tolist()
            assert text.activations[text.peak] == windows.activations[number, 5]
        assert found[0].strength == index[SITE].max_activation[latent]
        assert found.title == f"{SITE}, latent {latent}"


def test_texts_come_by_falling_strength(index: FeatureIndex) -> None:
    for latent in range(D_SAE):
        strengths = [text.strength for text in index.top_texts(latent, SITE, n=20, before=4, after=4)]
        assert strengths == sorted(strengths, reverse=True)


def test_the_site_may_be_left_out_where_there_is_one(index: FeatureIndex, lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`site` must be given.*layers\.1.*layers\.2"):
        index.top_texts(0)
    with pytest.raises(UserError, match=r"no SAE 'layers\.3'"):
        index.top_texts(0, "layers.3")
    with pytest.raises(UserError, match=r"`latent` must be in \[0, 40\)"):
        index.top_texts(40, SITE)
    single = build_index(lm, {SITE: some_sae()}, [TEXT], folder=tmp_path / "i", progress=False)
    assert single.top_texts(0).title == f"{SITE}, latent 0"


def test_a_feature_that_never_fires_has_no_texts(lm: LanguageModel, tmp_path: Path) -> None:
    sae = some_sae(relu=True)
    sae.b_enc[3] = -1e6
    found = build_index(lm, {SITE: sae}, [TEXT], folder=tmp_path / "i", progress=False).top_texts(3)
    assert len(found) == 0
    assert repr(found) == f"{SITE}, latent 3: fires on 0 % of tokens"
    assert "<table></table>" in found._repr_html_()


# What people see


class Parsed(HTMLParser):
    """The tags and the text of some HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(*tokens: str, peak: int = 0) -> ShownText:
    return ShownText(tokens, tuple(float(n + 1) for n in range(len(tokens))), peak)


def pages(text: ShownText, *, title: str = "layers.1, latent 0") -> list[str]:
    return [
        TopTexts(title, 0.5, (text,))._repr_html_(),
        TextFeatures(title, (TextFeature(0, 2.0, 1, text),))._repr_html_(),
        text.html(full=text.strength),
    ]


@pytest.mark.parametrize(
    "tokens",
    [(NASTY, "x"), ("<", "script", ">", "1", "</", "script>"), ("</pre>", "</span>", '"', "'"), ("&lt;", "&#60;")],
)
def test_nothing_in_a_token_becomes_markup(tokens: tuple[str, ...]) -> None:
    for page in pages(shown(*tokens, peak=1), title=NASTY):
        parsed = Parsed(page)
        assert set(parsed.tags) <= {"p", "table", "tr", "td", "th", "pre", "span", "b"}
        assert parsed.attributes <= {"style", "title"}
        assert "".join(tokens) in parsed.text


def test_the_text_of_an_index_is_escaped(index: FeatureIndex, lm: LanguageModel) -> None:
    latents = [latent for latent in range(D_SAE) if any("<" in t.tokens for t in index.top_texts(latent, SITE, n=50))]
    for latent in latents[:5]:
        html = index.top_texts(latent, SITE, n=50)._repr_html_()
        assert set(Parsed(html).tags) <= {"p", "table", "tr", "td", "pre", "span", "b"}
        assert "&lt;" in html
    assert latents
    parsed = Parsed(lm.top_features(NASTY, some_sae())._repr_html_())
    assert "script" not in parsed.tags
    assert NASTY in parsed.text


@pytest.mark.parametrize("lone", ["\ud800", "a\udc80b"])
def test_lone_surrogates_are_shown_as_the_replacement_character(lone: str) -> None:
    text = shown(lone, "x", peak=1)
    for page in [*pages(text), repr(TopTexts("t", 0.5, (text,))), str(text)]:
        page.encode("utf-8")
    expected = "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in lone)
    assert visible(lone) == expected
    assert expected in Parsed(text.html(full=2.0)).text


@pytest.mark.parametrize("character", ["\n", "\r\n", "\x0c", "\x85", "\u2028"])
def test_a_text_is_one_line(character: str) -> None:
    text = shown("a", character, f"b{character}c")
    assert len(str(text).splitlines()) == 1
    assert len(repr(TopTexts("title", 0.5, (text, text))).splitlines()) == 3


@pytest.mark.parametrize("character", ["\x1b[31m", "\x08", "\x9b2J"])
def test_a_token_does_not_command_the_terminal(character: str) -> None:
    assert not set(str(shown("a", character))) & {chr(n) for n in [*range(32), *range(127, 160)]}


def test_line_ends_and_tabs_are_to_be_seen() -> None:
    assert visible("a\n\tb") == "a⏎⇥b"
    assert visible("a\n\tb", breaks=True) == "a⏎\n⇥\tb"


def test_what_moves_or_hides_text_is_to_be_seen() -> None:
    turned, joined = "a\u202eb", "a\u200bb"  # the rest from right to left; a space of no width
    assert visible(turned) == visible(joined) == "a\ufffdb"
    assert visible("a\u00a0é漢\U0001f600") == "a\u00a0é漢\U0001f600", "what can be seen stays"
    assert "⏎\n" in shown("x", "\n").html(full=2.0)
    assert str(shown("x", "\n", "y", peak=2)) == "x⟨⏎⟩⟦y⟧"


def test_marks_tell_the_peak_and_what_is_half_as_strong() -> None:
    text = ShownText(("a", "b", "c", "d", "e"), (0.0, 1.0, 4.0, 2.0, 1.9), 2)
    assert str(text) == "ab⟦c⟧⟨d⟩e"
    assert text.strength == 4.0
    assert str(ShownText(("a", "b"), (0.0, 0.0), 1)) == "a⟦b⟧"
    assert repr(TopTexts("of it", 0.0123, (text,))) == "of it: fires on 1.23 % of tokens\n       4  ab⟦c⟧⟨d⟩e"
    features = TextFeatures("layers.1", (TextFeature(17, 4.0, 4, text),))
    assert repr(features) == "layers.1: the strongest features\n      17         4    4 tokens  ab⟦c⟧⟨d⟩e"
    assert repr(TextFeatures("layers.1", (TextFeature(17, 4.0, 1, text),))).endswith("     1 token  ab⟦c⟧⟨d⟩e")


def test_shades_follow_the_activation() -> None:
    def share(html: str) -> float:
        return float(html.split("background:rgba(")[1].split(")", maxsplit=1)[0].rsplit(",", maxsplit=1)[-1])

    shares = [share(shaded("x", value, full=4.0)) for value in (0.001, 1.0, 2.0, 4.0)]
    assert shares == sorted(set(shares))
    assert 0 < shares[0] < shares[-1] <= 1
    assert share(shaded("x", 9.0, full=4.0)) == shares[-1]
    assert shaded("x", 0.0, full=4.0) == "x"
    assert "span" not in shaded("x", 0.0, full=0.0, peak=True)
    assert 'title="2"' in shaded("x", 2.0, full=4.0)


def test_an_empty_text_can_be_shown() -> None:
    empty = ShownText((), (), 0)
    assert str(empty) == empty.html(full=1.0) == ""
    assert empty.strength == 0
    assert TopTexts("t", 0.0, (empty,))._repr_html_()
