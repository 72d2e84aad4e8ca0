"""Steering with examples before the prompt."""

from dataclasses import dataclass
from typing import Any

from strata.costs.steering import SteeringCost, prefix_flops
from strata.steer.intervention import Number
from strata.steer.material import Contrast
from strata.steer.method import Applied, Lengths
from strata.steer.subject import Subject

_EXAMPLE_TOKENS = 64  # of an example that is put before a prompt


@dataclass(frozen=True)
class Prompting:
    """Training texts with the concept before the prompt.

    Attributes:
        name: of the method.
        strengths: how many texts.
        unit: in words.
    """

    name: str = "prompting"
    strengths: tuple[Number, ...] = (1, 2)
    unit: str = "examples before the prompt"

    def build(self, subject: Subject, material: Contrast) -> "BuiltPrompt":
        """Keep the first short texts, so that they leave room for the prompt; the shortest where there are none."""
        n, lengths = int(max(self.strengths)), {text: _n_tokens(subject, text) for text in material.positive}
        short = [text for text, length in lengths.items() if length <= _EXAMPLE_TOKENS]
        return BuiltPrompt(subject, tuple((short if len(short) >= n else sorted(lengths, key=lengths.__getitem__))[:n]))


@dataclass(frozen=True)
class BuiltPrompt:
    """Examples of a concept.

    Attributes:
        subject: the language model.
        examples: texts.
    """

    subject: Subject
    examples: tuple[str, ...]

    @property
    def found(self) -> str:
        """How many examples there are."""
        return f"{len(self.examples)} examples"

    def at(self, strength: Number) -> Applied:
        """The first so many examples, as a prefix."""
        return Applied(prefix="".join(self.examples[: int(strength)]))

    def cost(self, strength: Number, lengths: Lengths) -> SteeringCost:
        """No training and nothing for a concept; the prefix runs with every text."""
        config = self.subject.lm.model.config.get_text_config()
        added = prefix_flops(
            _n_tokens(self.subject, self.at(strength).prefix),
            n_tokens=lengths.prompt + lengths.written,
            forward_flops=self.subject.model_flops,
            d_attention=config.hidden_size,
            n_layers=self.subject.lm.n_layers,
        )
        return SteeringCost(training=0.0, concept=0.0, token=added / lengths.written)


def _n_tokens(subject: Subject, text: str) -> int:
    tokenizer: Any = subject.lm.tokenizer
    assert tokenizer is not None
    return len(tokenizer(text)["input_ids"])
