"""Texts with a feature's activations, as people look at them: shaded in a notebook, as lines elsewhere."""

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import escape

from strata.interpret.windows import Windows
from strata.visible_text import visible

_SHADE = "214, 102, 0"  # of firing tokens, behind the text; readable on light and dark


@dataclass(frozen=True)
class ShownText:
    """One text.

    Attributes:
        tokens: its tokens.
        activations: the feature's at each of them; 0 where it is silent.
        peak: the place of the token around which it was cut.
    """

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int

    @property
    def strength(self) -> float:
        """The largest activation."""
        return max(self.activations, default=0.0)

    def __str__(self) -> str:
        """The text in one line, the peak in ⟦brackets⟧, what fires at least half as strongly in ⟨others⟩."""
        pieces: list[str] = []
        for place, (token, value) in enumerate(zip(self.tokens, self.activations, strict=True)):
            text = visible(token)
            near = value >= self.strength / 2 > 0
            marks = ("⟦", "⟧") if place == self.peak else ("⟨", "⟩") if near else ("", "")
            pieces.append(f"{marks[0]}{text}{marks[1]}")
        return "".join(pieces)

    def html(self, *, full: float) -> str:
        """The text with each firing token shaded by its share of `full`; nothing in it can become markup."""
        return "".join(
            shaded(token, value, full=full, peak=place == self.peak)
            for place, (token, value) in enumerate(zip(self.tokens, self.activations, strict=True))
        )


@dataclass(frozen=True)
class TopTexts:
    """Texts on which a feature is strongest, the strongest first.

    Attributes:
        title: of which feature.
        density: the share of rows on which it fires.
        texts: the texts.
    """

    title: str
    density: float
    texts: tuple[ShownText, ...]

    @classmethod
    def of(cls, windows: Windows, vocabulary: list[str], *, title: str, density: float) -> "TopTexts":
        """From windows of an index."""
        texts: list[ShownText] = []
        for number in range(len(windows)):
            there = windows.is_token[number]
            tokens = tuple(vocabulary[int(i)] for i in windows.token_ids[number][there])
            values = tuple(float(v) for v in windows.activations[number][there])
            texts.append(ShownText(tokens, values, int(there[: windows.peaks[number]].sum())))
        return cls(title, density, tuple(texts))

    def __len__(self) -> int:
        """How many texts."""
        return len(self.texts)

    def __iter__(self) -> Iterator[ShownText]:
        """The texts, the strongest first."""
        return iter(self.texts)

    def __getitem__(self, place: int) -> ShownText:
        """One of the texts."""
        return self.texts[place]

    def __repr__(self) -> str:
        head = f"{self.title}: fires on {100 * self.density:.3g} % of tokens"
        return "\n".join([head, *(f"{text.strength:8.3g}  {text}" for text in self.texts)])

    def _repr_html_(self) -> str:
        full = max((text.strength for text in self.texts), default=0.0)
        rows = "".join(
            f'<tr><td style="text-align:right;vertical-align:top">{text.strength:.3g}</td>'
            f'<td style="text-align:left"><pre style="margin:0;white-space:pre-wrap">{text.html(full=full)}</pre></td>'
            "</tr>"
            for text in self.texts
        )
        head = f"{escape(self.title)}: fires on {100 * self.density:.3g} % of tokens"
        return f"<p>{head}</p><table>{rows}</table>"


def shaded(token: str, value: float, *, full: float, peak: bool = False) -> str:
    """A token as HTML, its background as strong as its value's share of `full`, the value on hover; escaped."""
    text = escape(visible(token, breaks=True))
    if value <= 0 or full <= 0:
        return f"<b>{text}</b>" if peak else str(text)
    weight = ";font-weight:bold;text-decoration:underline" if peak else ""
    share = 0.15 + 0.75 * min(value / full, 1.0)
    return f'<span title="{value:.3g}" style="background:rgba({_SHADE},{share:.2f}){weight}">{text}</span>'
