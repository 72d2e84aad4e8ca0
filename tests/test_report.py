"""The report: complete, self-contained, escaped, and honest about what is missing."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import fake_run
from strata.errors import UserError
from strata.report.charts import Axis, bars, curves
from strata.report.numbers import MINUS, MISSING, NBSP, duration, moment, short_count, show, spread
from strata.report.page import write_report
from strata.report.run_files import read_run
from strata.report.snippets import snippet
from strata.report.summary import tiles

VOID = {"meta", "br", "hr", "img", "input", "link", "line", "path", "rect"}
EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """What a page consists of: tags with attributes, text by the tag that holds it, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def named(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}.items()
        return [found for name, found in self.tags if name == tag and wanted <= found.items()]

    @property
    def text(self) -> str:
        return "".join(data for tag, data in self.texts if tag not in ("script", "style"))


def report(folder: Path) -> tuple[Page, str]:
    path = write_report(folder)
    assert path == folder / "report" / "index.html"
    text = path.read_text(encoding="utf-8")
    return Page(text), text


def changed(path: Path, change: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    fake_run.write_json(path, value)


def test_page_is_complete_and_needs_nothing_else(tmp_path: Path) -> None:
    page, text = report(fake_run.write_run(tmp_path))
    assert len(text.encode()) < 1_000_000
    for _, attributes in page.tags:
        assert not {"src", "srcset", "action", "data", "poster", "xlink:href"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert not page.named("link")
    for word in ("http://", "https://json", "@import", "url("):
        assert word not in text or word == "https://json", word  # the excerpts are code that names a site
    assert [t for tag, t in page.texts if tag == "h1"] == ["demo"]
    assert [t for tag, t in page.texts if tag == "h3"] == fake_run.site_names(8)
    assert len(page.named("article")) == 8 * 8
    assert len(page.named("path", class_="line")) == 2 * 8
    assert len(page.named("rect", class_="bar")) == 8
    assert len(page.named("details", class_="site")) == 8
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {(a["href"] or "")[1:] for a in page.named("a")} | {a.get("aria-describedby") for a in page.named("button")}
    assert links - {None} <= set(ids)


def test_verdict_and_numbers(tmp_path: Path) -> None:
    page, _ = report(fake_run.write_run(tmp_path, n_features=1))
    verdict = "".join(t for tag, t in page.texts if tag == "p" and "SAEs" in t)
    assert verdict.startswith(
        f"8 SAEs of 3,072 latents, trained on 1.03{NBSP}M tokens in 71{NBSP}s; explained variance 0."
    )
    assert f"1.4{NBSP}% dead (not fired in 254{NBSP}k rows)" in verdict
    assert "Weakest is layers.7" in verdict
    found = json.loads((tmp_path / "evaluation.json").read_text())["sites"]
    cells = [t.strip() for tag, t in page.texts if tag == "td"]
    for measured in found.values():
        assert f"{measured['fvu']:.3f}" in cells
        assert f"{measured['ce_loss_score']:.3f}" in cells
        assert f"+{measured['delta_ce_percent']:.1f}{NBSP}%" in cells
    assert "0.607" in page.text
    six = ["Explained variance", "CE loss score", "All SAEs at once", "Dead latents", "Active latents", "Time"]
    assert [label for label, _, _ in tiles(read_run(tmp_path))] == six  # one row of a wide page, three of a phone
    for said in (f"{NBSP}k rows per second and SAE", "2025-03-14 15:09 UTC"):
        assert said in page.text, said
    for said in ("AMD EPYC 9B45", "2.13.0+cpu", "config", "sae.batch_size", "19.2", "GPTNeoXForCausalLM"):
        assert said in page.text, said


def test_everything_is_escaped(tmp_path: Path) -> None:
    fake_run.write_run(tmp_path, 2, n_features=1)
    changed(
        tmp_path / "run.json",
        lambda run: run.update(model={"name": EVIL}, text=EVIL, status=EVIL, date=EVIL, extra={EVIL: [EVIL]}),
    )
    for name in ("evaluation.json", "features.json"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace('"layers.1"', json.dumps(EVIL)))
    lines = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(lines.replace('"layers.1"', json.dumps(EVIL)))
    tokens = [EVIL, "</pre></script>", "\x00\u202e", "\ud800", "'\"><b>"]
    example = {"tokens": tokens, "activations": [1.0, 0.0, 0.5, 0.0, 2.0], "peak": 4}
    evil = {"latent": 1, "density": 0.1, "max_activation": 2.0, "kind": EVIL, "examples": [example]}
    changed(tmp_path / "features.json", lambda features: features[EVIL].append(evil))
    page, text = report(tmp_path)
    assert len(page.named("script")) == 3  # two charts' data and the page's own
    assert not page.named("img")
    assert not page.named("b")
    assert EVIL not in text
    assert page.text.count(EVIL) >= 9
    assert "\x00" not in text
    assert "\u202e" not in text
    data = [json.loads(t) for tag, t in page.texts if tag == "script" and t.startswith("{")]
    assert [chart["lines"][0]["site"] for chart in data] == [EVIL, EVIL]


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    fake_run.write_run(tmp_path, n_features=1)
    for name in ("evaluation.json", "features.json"):
        (tmp_path / name).unlink()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
    changed(tmp_path / "run.json", lambda run: run.update(status="running", seconds={}))
    page, _ = report(tmp_path)
    assert "This run has not finished (status: running). Last logged: step 30 of 250." in page.text
    assert "Not evaluated on held-out text" in page.text
    assert "No features were collected" in page.text
    assert "in training" in page.text
    assert page.text.count("layers.7") >= 2
    assert not page.named("article")


def test_nothing_but_an_empty_run_json(tmp_path: Path) -> None:
    fake_run.write_json(tmp_path / "run.json", {})
    page, _ = report(tmp_path)
    assert "Nothing has been logged yet." in page.text
    assert "No training step was logged" in page.text
    assert not page.named("table")


@pytest.mark.parametrize("n_sites", [1, 3, 40])
def test_few_and_many_sites(tmp_path: Path, n_sites: int) -> None:
    page, text = report(fake_run.write_run(tmp_path, n_sites, n_features=2, n_examples=1))
    assert len(page.named("details", class_="site")) == n_sites
    assert len([a for a in page.named("details", class_="site") if "open" in a]) == 1
    assert len(page.named("rect", class_="bar")) == (n_sites if n_sites > 1 else 0)
    assert len(text) < 60_000 + 15_000 * n_sites
    heads = [t for tag, t in page.texts if tag == "h3"]
    assert heads == fake_run.site_names(n_sites)  # layers.10 after layers.9
    assert ("Mean" in page.text) == (n_sites > 1)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "high", True, {}])
def test_what_is_no_number_is_a_dash(tmp_path: Path, value: Any) -> None:
    fake_run.write_run(tmp_path, 3, n_features=1)
    changed(
        tmp_path / "evaluation.json",
        lambda e: e["sites"]["layers.1"].update(dict.fromkeys(e["sites"]["layers.1"], value)),
    )
    changed(tmp_path / "run.json", lambda run: run.update(n_steps=value, n_rows=value, seconds={"total": value}))
    changed(
        tmp_path / "features.json", lambda f: f["layers.0"][0].update(density=value, max_activation=value, latent=value)
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in lines[5:8]:
        line["sites"]["layers.1"].update(fvu=value, dead_share=value)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page, _ = report(tmp_path)
    cells = [t.strip() for tag, t in page.texts if tag == "td"]
    assert cells.count("–") >= 8
    assert not any(word in "".join(cells).lower() for word in ("nan", "inf", "none", "true"))
    for tag, text in page.texts:
        if tag == "script" and text.startswith("{"):
            json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    gap = page.named("path", **{"data-site": "layers.1"})[0]["d"] or ""
    assert gap.count("M") == 2


def test_user_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must hold `run.json`. Got .* Give a folder that `strata train` wrote"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
    fake_run.write_run(tmp_path, 1, n_features=1)
    written = write_report(tmp_path).read_bytes()
    lines = (tmp_path / "metrics.jsonl").read_text()
    for name, text in (
        ("evaluation.json", "[1]"),
        ("features.json", "{"),
        ("run.json", "no"),
        ("metrics.jsonl", "x\n" + lines),
    ):
        kept = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"'{name}' of a run folder must be"):
            write_report(tmp_path)
        (tmp_path / name).write_text(kept)
    assert (tmp_path / "report" / "index.html").read_bytes() == written
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["index.html"]


def test_resumed_runs_count_each_step_once(tmp_path: Path) -> None:
    fake_run.write_run(tmp_path, 1, n_features=1)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:9] + lines[4:12]))
    assert [line["step"] for line in read_run(tmp_path).metrics] == list(range(10, 130, 10))


def test_dead_window_is_stated_before_evaluation_too(tmp_path: Path) -> None:
    fake_run.write_run(tmp_path, 1, n_features=1)
    (tmp_path / "evaluation.json").unlink()
    assert read_run(tmp_path).dead_window_rows("layers.0") == 250 // 4 * 4096
    changed(tmp_path / "run.json", lambda run: run["config"]["sae"].update(dead_feature_window=100))
    assert read_run(tmp_path).dead_window_rows("layers.0") == 100 * 4096
    changed(tmp_path / "run.json", lambda run: run.pop("config"))
    assert read_run(tmp_path).dead_window_rows("layers.0") is None


def test_snippets_shade_box_and_break() -> None:
    tokens = ["for", " i", " in", ":\n    ", "<b>"]
    shown = snippet({"tokens": tokens, "activations": [0.0, 1.0, 4.0, 2.0, 0.0], "peak": 2}, full=4.0)
    newline = '<span class="nl">↵</span>'
    assert shown["peak"] == "4.00"
    assert str(shown["html"]) == (
        'for<mark class="a3" title="1.00"> i</mark><mark class="a10 peak" title="4.00"> in</mark>'
        f'<mark class="a5" title="2.00">:</mark><mark class="a5" title="2.00">{newline}</mark>\n'
        '<mark class="a5" title="2.00">    </mark>&lt;b&gt;'
    )


def test_snippets_are_cut_around_the_peak() -> None:
    tokens = [f"{i}\n" if i % 10 == 0 else f"{i} " for i in range(400)]
    values = [0.0] * 200 + [3.0] + [0.0] * 199
    text = Page(str(snippet({"tokens": tokens, "activations": values, "peak": 200}, full=3.0)["html"])).text
    assert text.startswith("…")
    assert text.endswith("…")
    assert "200" in text
    assert text.count("\n") <= 6
    assert len(text.split()) < 80


@pytest.mark.parametrize(
    "example", [{}, {"tokens": [], "activations": []}, {"tokens": ["a"], "activations": [], "peak": 9}]
)
def test_poor_examples_do_no_harm(example: dict[str, Any]) -> None:
    assert snippet(example, full=0.0)["peak"] == "–"


def test_numbers_read_well() -> None:
    assert [show(v, "ratio") for v in (0.10449, 1.0, 0.0, 0.00012, -0.25)] == [
        "0.104",
        "1.000",
        "0.000",
        "0.00012",
        f"{MINUS}0.250",
    ]
    assert [show(v, "share") for v in (0, 0.021, 0.0004, 1)] == [f"{t}{NBSP}%" for t in ("0", "2.1", "0.040", "100.0")]
    assert [show(v, "percent") for v in (3.44, -0.5, 0.0)] == [f"{t}{NBSP}%" for t in ("+3.4", f"{MINUS}0.5", "0.0")]
    assert [short_count(v) for v in (0, 12, 999, 999_900, 65_536, 1_048_576)] == [
        *("0", "12", "999"),
        *(f"{t}{NBSP}{u}" for t, u in (("1", "M"), ("65.5", "k"), ("1.05", "M"))),
    ]
    assert [duration(v) for v in (0.84, 71.4, 200, 7500)] == [
        *(f"{t}{NBSP}s" for t in ("0.8", "71")),
        f"3{NBSP}min 20{NBSP}s",
        f"2{NBSP}h 5{NBSP}min",
    ]
    assert [show(v, "activation") for v in (26, 4.123, 0.5, 312.4, 12345, 0)] == [
        "26.0",
        "4.12",
        "0.500",
        "312",
        "12,345",
        "0.00",
    ]
    dates = ("2026-11-21T20:58:59+00:00", "2026-11-22T01:30:00+02:00", "2026-11-21 20:58:59.25")
    assert [moment(v) for v in dates] == [f"2026-11-21 {time} UTC" for time in ("20:58", "23:30", "20:58")]
    assert [moment(v) for v in ("some day", 2026, None, "")] == ["some day", "2026", MISSING, MISSING]
    assert spread([0.1, None, 0.2], "share") == f"10.0–20.0{NBSP}%"
    assert spread([0.5, 0.5], "ratio") == "0.500"


def test_axes_hold_their_values() -> None:
    for values in ([0.08, 0.093], [0.0, 0.0], [3.0], [1e-5, 2e4], [0.2, 1.4, 0.9]):
        for log in (False, True):
            axis = Axis.around(values, log=log)
            assert all(-1e-9 <= axis.at(v) <= 1 + 1e-9 for v in values if axis.holds(v)), (values, log)
            ticks = axis.ticks()
            assert 2 <= len(ticks) <= 8, (values, log, ticks)
            assert all(-1e-6 <= axis.at(t) <= 1 + 1e-6 for t in ticks)


def test_charts_place_what_they_are_given() -> None:
    chart = curves(
        "c", title="t", rows=[0.0, 50.0, 100.0], lines={"a": [1.0, 0.5, 0.0], "b": [None] * 3}, log=False, percent=True
    )
    assert [line["path"] for line in chart["lines"]] == ["M0.0 0.0h0L500.0 500.0L1000.0 1000.0"]
    long = curves(
        "c", title="t", rows=[float(i) for i in range(5000)], lines={"a": [0.5] * 5000}, log=True, percent=False
    )
    assert long["data"]["x"][0] == 0
    assert long["data"]["x"][-1] == 4999
    assert len(long["data"]["x"]) <= 240
    drawn = bars("b", title="t", values={"model.3.mlp": 0.5, "model.4.mlp": 1.0, "model.5.mlp": None})
    assert [bar["label"] for bar in drawn["bars"]] == ["3", "4", "5"]
    assert [bar["height"] for bar in drawn["bars"]] == [500.0, 1000.0, 0.0]


def test_a_group_is_shown_layer_by_layer(tmp_path: Path) -> None:
    fake_run.write_run(tmp_path, 3, n_features=1)
    text = (tmp_path / "evaluation.json").read_text()
    for site in ("layers.0", "layers.1"):
        text = text.replace(f'"{site}"', f'"layers.0-1/{site}"')
    (tmp_path / "evaluation.json").write_text(text)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["sites"] = {"layers.0-1": line["sites"]["layers.0"], "layers.2": line["sites"]["layers.2"]}
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "features.json").unlink()
    for path in list((tmp_path / "sae").iterdir()):
        if path.name != "layers.2":
            path.rename(tmp_path / path.name)
    files = read_run(tmp_path)
    assert files.sites == ["layers.0-1/layers.0", "layers.0-1/layers.1", "layers.2"], "not the group beside its layers"
    assert files.trained == ["layers.0-1", "layers.2"], "curves are of what was trained"
    (tmp_path / "evaluation.json").unlink()
    unmeasured = read_run(tmp_path)
    assert unmeasured.sites == ["layers.0-1", "layers.2"]
    page, _ = report(tmp_path)
    assert "layers.0-1" in page.text
