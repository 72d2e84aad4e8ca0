"""`strata groups`: from a model or a store to groups, figures and a page; and the files that training takes."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch

from strata.activations.distances import LayerSimilarity
from strata.activations.harvest import collect_activations
from strata.errors import UserError
from strata.groups import GroupingCost, check_choice, choose, find_groups, grouping_table, language_model_flops
from strata.groups_config import GroupsConfig
from strata.groups_file import read_groups, read_record
from strata.groups_run import groups_run
from strata.lm.model import LanguageModel
from strata.report.groups import groups_and_report, layers_text, write_groups_report

from tiny_models import save_tiny_model, tiny_model, tiny_tokenizer  # isort: skip

COST = GroupingCost(forward=200.0, sae_step=100.0, published_sae_step=400.0)


def similarity(n_layers: int = 5) -> LayerSimilarity:
    """Layers on a line: 0 1 2 near each other, 3 and 4 near each other."""
    place = torch.tensor([0.0, 0.1, 0.15, 0.5, 0.55, 0.6, 0.65])[:n_layers]
    d = (place[:, None] - place).abs()
    return LayerSimilarity([f"layers.{i}" for i in range(n_layers)], d, 1 - d, n_rows=90, n_mean_rows=10)


def test_the_last_layer_has_its_own_group_unless_asked() -> None:
    found = find_groups(similarity(), n_groups=2)
    assert found == [["layers.0", "layers.1", "layers.2"], ["layers.3"], ["layers.4"]]
    assert find_groups(similarity(), n_groups=2, last_layer=True) == [
        [f"layers.{i}" for i in range(3)],
        ["layers.3", "layers.4"],
    ]
    assert find_groups(similarity(), threshold=0.1) == found  # AMAD 0.075 with two groups, 0.5 with one
    assert len(find_groups(similarity(), threshold=0.6)) == 2
    with pytest.raises(UserError, match=r"`k` must be in \[1, 4\], the number of layers, the last one left out. Got 5"):
        find_groups(similarity(), n_groups=5)


def test_the_table_counts_saes_and_costs() -> None:
    table = grouping_table(similarity(), COST)
    assert [row["k"] for row in table] == [1, 2, 3, 4]
    assert [row["n_saes"] for row in table] == [2, 3, 4, 5]
    second = table[1]
    assert second["groups"] == find_groups(similarity(), n_groups=2)
    assert second["amad"] == pytest.approx(0.075)
    assert second["worst_diameter"] == pytest.approx(0.15)
    assert second["sae_share"] == pytest.approx(3 / 5)
    assert second["cost_share"] == pytest.approx((200 + 300) / (200 + 500))
    assert second["saving"] == pytest.approx(2 / 7)
    assert second["published_cost_share"] == pytest.approx((200 + 1200) / (200 + 2000))
    assert table[-1]["saving"] == 0
    assert [row["n_saes"] for row in grouping_table(similarity(), COST, last_layer=True)] == [1, 2, 3, 4, 5]


def test_groups_are_chosen_by_k_budget_or_threshold() -> None:
    table = grouping_table(similarity(), COST)
    assert choose(table, GroupsConfig(k=3))["k"] == 3
    assert choose(table, GroupsConfig(threshold=0.2))["k"] == 2
    assert choose(table, GroupsConfig(budget=0.86))["k"] == 3  # 6/7 = 0.857
    assert choose(table, GroupsConfig(budget=0.85))["k"] == 2
    assert choose(table, GroupsConfig(budget=1.0))["k"] == 4


def test_what_cannot_be_had_is_refused_before_anything_is_measured() -> None:
    check_choice(GroupsConfig(budget=0.572), COST, n_layers=5)
    with pytest.raises(
        UserError,
        match=r"`budget` must be at least 0.572, the cost of one group \(2 SAEs, and the language model\). Got 0.5",
    ):
        check_choice(GroupsConfig(budget=0.5), COST, n_layers=5)
    check_choice(GroupsConfig(budget=0.5, last_layer=True), COST, n_layers=5)
    with pytest.raises(UserError, match=r"`k` must be in \[1, 5\], the number of layers. Got 6"):
        check_choice(GroupsConfig(k=6, last_layer=True), COST, n_layers=5)
    with pytest.raises(UserError, match=r"needs at least 2 layers to group. Got 1"):
        check_choice(GroupsConfig(), COST, n_layers=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "`k` must be at least 1. Got 0"),
        ({"k": 2, "budget": 0.5}, "`k` must not be given with budget. Got k=2 and budget=0.5. Choose one"),
        ({"budget": 1.5}, "`budget` must be a share of the cost of one SAE per layer.* Got 1.5"),
        ({"threshold": 0.0}, "`threshold` must be above 0"),
        ({"n_tokens": 5}, "`n_tokens` must be at least 20. Got 5"),
        ({"method": "minmx"}, "`GroupsConfig.method` must be 'minmax' or 'complete' or 'published'"),
        ({"treshold": 0.1}, "`GroupsConfig` has no setting 'treshold'. Did you mean 'threshold'"),
        ({"activations": "store", "model": "demo"}, "`model` must be left out when activations are of a store"),
        ({"activations": "store", "data": "x.txt"}, "`data` must be left out when activations are of a store"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GroupsConfig(**settings)


def test_folders_are_named_after_what_is_measured() -> None:
    assert GroupsConfig().folder() == Path("groups/demo-stdlib")
    assert GroupsConfig(model="org/net", data="a/b.jsonl").folder() == Path("groups/net-b")
    assert GroupsConfig(activations=Path("stores/mine")).folder() == Path("groups/mine")
    assert GroupsConfig(out=Path("here")).folder() == Path("here")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a folder whose name has to be escaped."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny <b>&")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "some.jsonl"
    lines = (json.dumps({"text": f"{i} sheep and {i * i} goats, {'very ' * (i % 5)}quiet"}) for i in range(300))
    path.write_text("\n".join(lines))
    return path


def settings(model: Path, text: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(model), "data": str(text), "n_tokens": 2000, "context_tokens": 32, "sae_k": 4, **more}


@pytest.fixture(scope="module")
def written(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("groups") / "found"
    page = groups_and_report(GroupsConfig(**settings(model, text, out=out, k=1)), progress=False)
    assert page == out / "index.html"
    return out


def test_the_folder_holds_what_was_measured(written: Path, model: Path) -> None:
    record = read_record(written)
    assert record["sites"] == ["layers.0", "layers.1", "layers.2"]
    assert record["groups"] == [["layers.0", "layers.1"], ["layers.2"]]
    assert (record["n_rows"], record["n_mean_rows"]) == (1800, 200)
    d = torch.tensor(record["distances"])
    assert d.shape == (3, 3)
    assert torch.equal(d, d.T)
    assert 0 < d[0, 1] < d[0, 2]
    lm = LanguageModel(str(model))
    assert record["model"]["weights_sha256"] == lm.fingerprint()["weights_sha256"]
    assert record["text"]["texts"]["split"] == "train"
    assert record["flops_per_token"]["forward"] == language_model_flops(lm, lm.sites, context_tokens=32)
    assert sorted(path.name for path in written.iterdir()) == [
        "amad.svg", "groups.json", "groups.md", "heatmap.svg", "index.html",
    ]  # fmt: skip


class Page(HTMLParser):
    """The tags of a page, those that take something from elsewhere, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_whole_escaped_and_needs_nothing_else(written: Path) -> None:
    page = Page((written / "index.html").read_text(encoding="utf-8"))
    assert page.links == []
    assert "b" not in page.tags
    assert "tiny <b>&" in page.words
    assert page.tags.count("svg") == 3  # distances, CKA, curve
    assert "2 SAEs for 3 layers: 0–1 · 2. The last layer has its own." in page.words
    assert page.words.count("33.3") == 0 and "66.7" in page.words  # SAEs: 2 of 3


def test_figures_stand_by_themselves(written: Path) -> None:
    record = read_record(written)
    drawn = ET.parse(written / "heatmap.svg").getroot()
    spaced = "{http://www.w3.org/2000/svg}"
    words = [element.text for element in drawn.iter(f"{spaced}text")]
    shown = f"{record['distances'][1][0]:.2f}".removeprefix("0")
    assert words.count(shown) == 2
    outlines = [e for e in drawn.iter(f"{spaced}rect") if e.get("fill") == "none"]
    assert len(outlines) == len(record["groups"])
    curve = ET.parse(written / "amad.svg").getroot()
    dots = [element.find(f"{spaced}title") for element in curve.iter(f"{spaced}circle")]
    assert len(dots) == len(record["table"])
    assert "threshold" not in (written / "amad.svg").read_text()  # chosen by k


def test_the_table_in_markdown(written: Path) -> None:
    lines = (written / "groups.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 2
    assert rows[2].startswith("| **1** | **0–1 · 2** | **2** |")
    assert rows[3].startswith("| 2 | 0 · 1 · 2 | 3 | 0.000 | 0.000 | 100.0")


def test_pages_of_many_layers_have_no_numbers_in_cells(written: Path, tmp_path: Path) -> None:
    n = 40
    place = torch.linspace(0, 0.9, n)
    far = (place[:, None] - place).abs()
    many = LayerSimilarity([f"layers.{i}" for i in range(n)], far, 1 - far, n_rows=1, n_mean_rows=1)
    record = read_record(written)
    record |= {"sites": many.sites, "distances": far.tolist(), "cka": None, "table": grouping_table(many, COST)}
    record |= {"groups": record["table"][4]["groups"], "k": 5, "config": {**record["config"], "k": "auto"}}
    (tmp_path / "groups.json").write_text(json.dumps(record))
    page = Page(write_groups_report(tmp_path).read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 2
    assert page.tags.count("text") < 150
    assert "threshold 0.2" in page.words


def test_a_store_is_measured_without_its_model(model: Path, text: Path, tmp_path: Path) -> None:
    lm = LanguageModel(tiny_model("gpt_neox"), tokenizer=tiny_tokenizer())
    collect_activations(lm, str(text), [*lm.sites, "layers.1.mlp"], n_tokens=2000, context_tokens=32,
                        store=tmp_path / "store", progress=False)  # fmt: skip
    given = {"activations": tmp_path / "store", "n_tokens": 2000, "sae_k": 4, "out": tmp_path / "out", "k": 1}
    record = read_record(groups_run(GroupsConfig(**given), progress=False))
    assert record["sites"] == lm.sites
    assert record["flops_per_token"]["forward"] == 0
    assert record["table"][0]["cost_share"] == pytest.approx(2 / 3)
    assert record["store"]["n_rows"] == 2000
    with pytest.raises(UserError, match=r"`sae_k` must be in \[1, 512\]"):
        groups_run(GroupsConfig(**{**given, "sae_k": 513, "overwrite": True}), progress=False)


def test_folders_are_not_overwritten_by_accident(written: Path, model: Path, text: Path, tmp_path: Path) -> None:
    before = (written / "groups.json").read_bytes()
    given = settings(model, text, out=written)
    with pytest.raises(UserError, match=r"`out` must be a new folder.* exists already. Give another, or --overwrite"):
        groups_run(GroupsConfig(**given), progress=False)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"`overwrite` replaces groups only.* holds no groups.json"):
        groups_run(GroupsConfig(**{**given, "out": tmp_path, "overwrite": True}), progress=False)
    with pytest.raises(UserError, match=r"`out` must be a folder.* is a file"):
        groups_run(GroupsConfig(**{**given, "out": tmp_path / "thesis.txt"}), progress=False)
    with pytest.raises(UserError, match="The text holds"):
        groups_run(GroupsConfig(**{**given, "n_tokens": 10**6, "overwrite": True}), progress=False)
    assert (written / "groups.json").read_bytes() == before
    assert (tmp_path / "thesis.txt").exists()


def test_it_says_what_it_does(model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups_run(GroupsConfig(**settings(model, text, out=tmp_path / "out", cka=False)))
    said = capsys.readouterr()
    assert said.out == ""
    assert "3 layers of width 32" in said.err
    assert "% less FLOPs than one per layer; 2000 rows in" in said.err
    record = read_record(tmp_path / "out")
    assert record["cka"] is None
    assert read_groups(tmp_path / "out") == record["groups"]


def test_groups_are_read_from_folder_file_or_list(written: Path, tmp_path: Path) -> None:
    expected = [["layers.0", "layers.1"], ["layers.2"]]
    assert read_groups(written) == read_groups(str(written / "groups.json")) == expected
    bare = tmp_path / "mine.json"
    bare.write_text('[[0, 1], ["layers.2"]]')
    assert read_groups(bare) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        ("not json", "cannot be read as one"),
        ('{"k": 3}', "must be a list of lists of layers"),
        ("[]", "must be a list of lists of layers"),
        ("[0, 1]", "must be a list of lists of layers"),
        ("[[0], []]", "must be a list of lists of layers"),
        ("[[0.5]]", r"must name layers by number or site. Got 0.5"),
        ("[[-1]]", r"must name layers by number or site. Got -1"),
    ],
)
def test_files_without_groups_are_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"`groups` must .*|{message}") as caught:
        read_groups(path)
    assert caught.match(message)


def test_groups_in_a_line() -> None:
    assert layers_text([["layers.0", "layers.1", "layers.2"], ["layers.3"]]) == "0–2 · 3"
