"""A language model without its weights: enough to know what it would cost, made from its configuration alone."""

import contextlib
import inspect

import torch

from strata.errors import UserError
from strata.lm.capture import capture
from strata.lm.loading import load_outline, load_tokenizer
from strata.lm.model import LanguageModel


def outline(model: str, *, trust_remote_code: bool = False, tokenizer: bool = False) -> LanguageModel:
    """A `LanguageModel` whose weights have shapes and a dtype but no numbers (torch's "meta" device).

    It takes a second and no memory, also for 405 billion parameters. It knows its layers, sites, widths and parameters;
    it cannot be run. The dtype is that of the checkpoint, also where a CPU would get fp32 instead.

    Args:
        model: ``"demo"``, a folder (a `config.json` is enough), or a Hugging Face id, of which only the configuration
            is fetched.
        trust_remote_code: whether Python code that comes with the checkpoint may run.
        tokenizer: load the tokenizer too, where there is one.

    Raises:
        UserError: no such model, no network, or a configuration of which no model can be made.
    """
    found = _Outline(load_outline(model, trust_remote_code=trust_remote_code))
    found.name = model
    if tokenizer:
        found.tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code, options={})
    return found


class _Outline(LanguageModel):
    """A language model that finds out widths without numbers."""

    def _width_when_run(self, site: str) -> int:
        """From a pass in which torch works out shapes alone.

        Raises:
            UserError: no vector for each position, or a width that only the real model tells.
        """
        from torch._subclasses.fake_tensor import FakeTensorMode

        modules = {site: self._site_map.module(self.site(site))}
        with contextlib.suppress(AttributeError, ValueError):  # of the ways to run experts the one that any dtype takes
            self.model.set_experts_implementation("batched_mm")
        options = {"use_cache": False} if "use_cache" in inspect.signature(self.model.forward).parameters else {}
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                ids = torch.zeros(1, 1, dtype=torch.int64, device="meta")
                read = capture(lambda: self.model(input_ids=ids, **options), modules, batch=1, seq=1)
        except UserError:
            raise
        except Exception as error:  # a foreign model's own code: whatever in it needs a number
            raise UserError(
                f"`site` must have a width that is known without the model's weights. Got {site!r} of {self.name!r}."
                " Give a residual stream ('layers.0'), a sub-block ('layers.0.mlp') or a linear module."
            ) from error
        return read[site].shape[-1]
