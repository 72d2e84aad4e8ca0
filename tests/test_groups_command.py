"""`strata groups`: from a model or a store to groups, figures and a page; and the files that training takes."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch

from strata.activations.distances import LayerSimilarity
from strata.activations.harvest import collect_activations
from strata.config.groups import GroupsConfig
from strata.errors import UserError
from strata.groups.choice import check_choice, choose, grouping_table
from strata.groups.command import groups_run
from strata.groups.cost import GroupingCost
from strata.groups.files import read_groups, read_record
from strata.lm.flops import forward_flops_of
from strata.lm.model import LanguageModel
from strata.report.group_figures import curve
from strata.report.groups import groups_and_report, layers_text, write_groups_report

from tiny_models import save_tiny_model, tiny_model, tiny_tokenizer  # isort: skip

COST = GroupingCost(forward=200.0, sae_step=100.0, published_sae_step=400.0)


def similarity(n_layers: int = 5) -> LayerSimilarity:
    """Layers on a line: 0 1 2 near each other, 3 and 4 near each other."""
    place = torch.tensor([0.0, 0.1, 0.15, 0.5, 0.55, 0.6, 0.65])[:n_layers]
    d = (place[:, None] - place).abs()
    return LayerSimilarity([f"layers.{i}" for i in range(n_layers)], d, 1 - d, n_rows=90, n_mean_rows=10)


def unlike_rows() -> LayerSimilarity:
    """Four layers and a last one, for which "published" joins layers 0 and 3 where it makes three groups."""
    lower = torch.zeros(5, 5)
    lower[1:4, 0] = torch.tensor([0.9, 0.85, 0.01])
    d = lower + lower.T
    return LayerSimilarity([f"layers.{i}" for i in range(5)], d, 1 - d, n_rows=90, n_mean_rows=10)


def test_the_last_layer_has_its_own_group_unless_asked() -> None:
    assert grouping_table(similarity(), COST)[1]["groups"] == [
        ["layers.0", "layers.1", "layers.2"],
        ["layers.3"],
        ["layers.4"],
    ]
    assert grouping_table(similarity(), COST, last_layer=True)[1]["groups"] == [
        [f"layers.{i}" for i in range(3)],
        ["layers.3", "layers.4"],
    ]


def test_the_table_counts_saes_and_costs() -> None:
    table = grouping_table(similarity(), COST)
    assert [row["k"] for row in table] == [1, 2, 3, 4]
    assert [row["n_saes"] for row in table] == [2, 3, 4, 5] == [len(row["groups"]) for row in table]
    second = table[1]
    assert second["amad"] == pytest.approx(0.075)
    assert second["worst_diameter"] == pytest.approx(0.15)
    assert second["sae_share"] == pytest.approx(3 / 5)
    assert second["cost_share"] == pytest.approx((200 + 300) / (200 + 500))
    assert second["saving"] == pytest.approx(2 / 7)
    assert second["published_cost_share"] == pytest.approx((200 + 1200) / (200 + 2000))
    assert table[-1]["saving"] == 0
    assert [row["n_saes"] for row in grouping_table(similarity(), COST, last_layer=True)] == [1, 2, 3, 4, 5]


def test_without_the_cost_of_the_language_model_that_of_saes_is_told() -> None:
    unknown = GroupingCost(forward=None, sae_step=100.0, published_sae_step=400.0)
    second = grouping_table(similarity(), unknown)[1]
    assert (second["cost_share"], second["saving"], second["published_cost_share"]) == (None, None, None)
    assert second["sae_share"] == pytest.approx(3 / 5)


def test_groups_are_chosen_by_k_budget_or_threshold() -> None:
    table = grouping_table(similarity(), COST)
    assert choose(table, GroupsConfig(k=3))["k"] == 3
    assert choose(table, GroupsConfig())["k"] == 2  # AMAD 0.075 with two groups, 0.5 with one
    assert choose(table, GroupsConfig(threshold=0.05))["k"] == 3
    assert choose(table, GroupsConfig(threshold=0.6))["k"] == 1
    assert choose(table, GroupsConfig(budget=0.5))["k"] == 1  # 2 SAEs of 5; with the language model 0.57
    assert choose(table, GroupsConfig(budget=0.6))["k"] == 2
    assert choose(table, GroupsConfig(budget=0.79))["k"] == 2
    assert choose(table, GroupsConfig(budget=1.0))["k"] == 4


def test_numbers_without_groups_of_neighbours_are_passed_over() -> None:
    table = grouping_table(unlike_rows(), COST, method="published")
    assert [row["groups"] is None for row in table] == [False, True, True, False]
    assert (table[2]["amad"], table[2]["worst_diameter"], table[2]["n_saes"]) == (None, None, 4)
    assert choose(table, GroupsConfig(method="published"))["k"] == 4  # AMAD 0.9 with one group
    assert choose(table, GroupsConfig(method="published", budget=0.8))["k"] == 1  # 4 SAEs of 5 would be within it
    message = r'`k` must be a number for which `method` "published" gives groups of .*: 1, 4\. Got 3\.'
    with pytest.raises(UserError, match=message):
        choose(table, GroupsConfig(method="published", k=3))


def test_what_cannot_be_had_is_refused_before_anything_is_measured() -> None:
    check_choice(GroupsConfig(budget=0.4), n_layers=5)
    with pytest.raises(
        UserError, match=r"`budget` must be at least 0.400, the cost of one group \(2 SAEs for 5 layers\). Got 0.39"
    ):
        check_choice(GroupsConfig(budget=0.39), n_layers=5)
    check_choice(GroupsConfig(budget=0.39, last_layer=True), n_layers=5)
    with pytest.raises(UserError, match=r"`k` must be in \[1, 5\], the number of layers. Got 6"):
        check_choice(GroupsConfig(k=6, last_layer=True), n_layers=5)
    with pytest.raises(UserError, match=r"`k` must be in \[1, 4\], the number of layers, the last one left out. Got 5"):
        check_choice(GroupsConfig(k=5), n_layers=5)
    with pytest.raises(UserError, match=r"at least 2 layers, of which the last one is left out. Got 1"):
        check_choice(GroupsConfig(), n_layers=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "`k` must be at least 1. Got 0"),
        ({"k": 2, "budget": 0.5}, "`k` must not be given with budget. Got k=2 and budget=0.5. Choose one"),
        ({"k": 2, "threshold": 0.2}, "`k` must not be given with threshold. Got k=2 and threshold=0.2. Choose one"),
        ({"budget": 0.5, "threshold": 0.2}, "`budget` must not be given with threshold"),
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
    assert (record["n_rows"], record["n_mean_rows"], record["n_tokens"]) == (1800, 200, 2000)
    assert record["seconds"] > 0
    d = torch.tensor(record["distances"])
    assert d.shape == (3, 3)
    assert torch.equal(d, d.T)
    assert 0 < d[0, 1] < d[0, 2]
    lm = LanguageModel(str(model))
    assert record["model"]["weights_sha256"] == lm.fingerprint()["weights_sha256"]
    assert record["text"]["texts"]["split"] == "train"
    assert record["flops_per_token"]["forward"] == forward_flops_of(lm, lm.sites, context_tokens=32)
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
    record = read_record(written)
    assert f"Rows{record['n_tokens']:,}" in page.words and f"{record['n_tokens']:,} rows in" in page.words
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


@pytest.mark.parametrize("chosen", range(1, 6))
def test_no_line_runs_through_the_chosen_number(chosen: int) -> None:
    found = zip((0.5, 0.3, 0.2, 0.1, 0.0), (0.5, 0.32, 0.3, 0.2, 0.0), strict=True)
    rows = [{"k": k, "amad": amad, "worst_diameter": worst} for k, (amad, worst) in enumerate(found, 1)]
    drawn = ET.fromstring(curve(rows, chosen=chosen, threshold=0.2))
    spaced = "{http://www.w3.org/2000/svg}"
    [label] = [element for element in drawn.iter(f"{spaced}text") if element.text == f"K = {chosen}"]
    width, baseline = 35.0, float(label.get("y", ""))
    left = float(label.get("x", "")) - (width if label.get("text-anchor") == "end" else 0)
    assert 10 < baseline < 276, "within the picture, above the axis"
    for line in drawn.iter(f"{spaced}polyline"):
        points = np.array([pair.split(",") for pair in line.get("points", "").split()], float)
        x = np.linspace(left, left + width)
        y = np.interp(x, *points.T, left=np.inf, right=np.inf)
        assert not ((y > baseline - 10) & (y < baseline + 2)).any()


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
    with pytest.raises(
        UserError,
        match=r"`out` must be a new folder.* exists already. Give another with --out, or replace it with --overwrite",
    ):
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
    assert re.search(
        r"Of the FLOPs .* 100 % for the SAEs, 100 % with the language model's pass. 2000 rows in", said.err
    )
    record = read_record(tmp_path / "out")
    assert record["cka"] is None
    assert read_groups(tmp_path / "out") == record["groups"]


def test_groups_are_read_from_folder_file_or_list(written: Path, tmp_path: Path) -> None:
    expected = [["layers.0", "layers.1"], ["layers.2"]]
    assert read_groups(written) == read_groups(str(written / "groups.json")) == expected
    bare = tmp_path / "mine.json"
    bare.write_text('[[0, 1], ["layers.2"]]')
    assert read_groups(bare) == expected
    assert read_groups(" [[0, 1], [2]]") == expected
    with pytest.raises(UserError, match=r"`groups` must be JSON. \[\[0, 1\], \[2\] cannot be read as such"):
        read_groups("[[0, 1], [2]")


def test_groups_are_read_from_the_folder_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"groups": {"layers.0-1": ["layers.0", "layers.1"], "layers.2": ["layers.2"]}}')
    assert read_groups(tmp_path) == read_groups(tmp_path / "run.json") == [["layers.0", "layers.1"], ["layers.2"]]
    (tmp_path / "run.json").write_text('{"groups": null}')
    with pytest.raises(UserError, match=r"`groups` must be of a run that was trained in groups. .* was not"):
        read_groups(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        ("not json", "cannot be read as such"),
        ('{"k": 3}', "must be a list of lists of layers"),
        ("[]", "must be a list of lists of layers"),
        ("[0, 1]", "must be a list of lists of layers"),
        ("[[0], []]", "must be a list of lists of layers"),
        ('[["layers.1.mlp"]]', r"must name layers by number or site. Got 'layers.1.mlp'"),
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
    assert layers_text([["layers.2", "layers.5"], ["layers.7"]]) == "2+5 · 7"


def test_rows_without_groups_are_shown(written: Path, tmp_path: Path) -> None:
    far = unlike_rows()
    record = read_record(written)
    table = grouping_table(far, GroupingCost(forward=None, sae_step=1.0, published_sae_step=1.0), method="published")
    record |= {"sites": far.sites, "distances": far.angular.tolist(), "cka": None, "table": table, "k": 4}
    record |= {"groups": table[3]["groups"], "flops_per_token": {**record["flops_per_token"], "forward": None}}
    (tmp_path / "groups.json").write_text(json.dumps(record))
    page = Page(write_groups_report(tmp_path).read_text(encoding="utf-8"))
    assert page.words.count("not contiguous") == 2
    lines = (tmp_path / "groups.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("| 3 | not contiguous | 4 | – | – | 80.0") for line in lines)
    drawn = ET.parse(tmp_path / "amad.svg").getroot()
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}circle"))) == 2


def test_a_page_that_cannot_be_written_is_said(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "groups.json").write_bytes((written / "groups.json").read_bytes())
    (tmp_path / "index.html").write_text("the page before")
    original = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "index.html":
            raise OSError(28, "No space left on device")
        return original(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"`out` must be a folder that can be written.* No space left on device"):
        write_groups_report(tmp_path)
    assert (tmp_path / "index.html").read_text() == "the page before"
