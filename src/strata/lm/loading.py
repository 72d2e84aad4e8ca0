"""Loading a Hugging Face model and tokenizer, with errors that say what is wrong in one sentence."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from strata.errors import UserError
from strata.lm.precision import HALF, named_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEMO_FOLDER = Path(__file__).parents[1] / "embedded" / "demo"
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.model", "spiece*", "tekken*")
# Options of from_pretrained that say where the files are: the configuration and the tokenizer need them too.
WHERE = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "proxies")


def source_of(model: str, *, weights: bool = True) -> str:
    """What to hand to ``from_pretrained`` for the name of a model: a folder that exists and is complete, or a Hugging
    Face id.

    Args:
        model: ``"demo"``, a folder, or a Hugging Face id.
        weights: False is content with a folder's configuration.

    Raises:
        UserError: a path that does not exist, a folder without configuration or without weights.
    """
    if model == "demo":
        model = str(DEMO_FOLDER)
    folder = Path(model).expanduser()
    if not model or not folder.is_dir():
        looks_like_path = folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or "\\" in model
        if folder.is_file() or looks_like_path or not model:
            what = "a file" if folder.is_file() else "no such folder"
            raise UserError(f"`model` must be 'demo', a folder, or a Hugging Face id. Got {model!r}: {what}.")
        return model
    if not (folder / "config.json").is_file():
        raise UserError(
            f"`model` must be a folder with a Hugging Face model. Got {model!r}, which has no `config.json`."
        )
    if weights and not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        raise UserError(
            f"`model` must be a folder with weights (`model.safetensors`). Got {model!r}, which has none. "
            "Save the model there with `save_pretrained`."
        )
    return str(folder)


def load_model(
    model: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype | str,
    trust_remote_code: bool,
    options: dict[str, Any],
) -> "PreTrainedModel":
    """Load a causal language model or an encoder, whichever the checkpoint's configuration says it is.

    Args:
        model: ``"demo"``, a folder, or a Hugging Face id.
        device: where the model goes (see `chosen_device`), unless ``options`` has a ``device_map`` or the model is
            quantised.
        dtype: ``"auto"`` or a dtype; ``"auto"`` is the checkpoint's own, but fp32 in place of half precision on a CPU:
            most CPUs emulate half precision slowly, and a residual stream rounded to it at every block is not what a
            GPU would compute.
        trust_remote_code: whether code that comes with the checkpoint may run.
        options: more arguments of ``from_pretrained``.

    Raises:
        UserError: anything that keeps the model from loading, or weights missing in the checkpoint (they would be
            random).
    """
    _check_options(options)
    device = chosen_device(device)
    source = source_of(model)
    with _errors_of(model), _silence():
        config = _config(source, trust_remote_code=trust_remote_code, options=options)
        loaded, info = _auto_class(config).from_pretrained(
            source,
            dtype="auto" if dtype == "auto" else named_dtype(dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)  # nothing reads a pooler
    if missing:
        raise UserError(
            f"`model` must hold every weight of its architecture. Got {model!r}, which lacks {len(missing)}, "
            f"the first of them `{missing[0]}`; they would be random."
        )
    if "device_map" in options or getattr(loaded, "hf_quantizer", None) is not None:
        return loaded
    if dtype == "auto" and device.type == "cpu" and loaded.dtype in HALF:
        loaded = loaded.float()
    return loaded.to(device)


def adopted_model(
    model: Any, *, device: torch.device | str, dtype: torch.dtype | str, options: dict[str, Any]
) -> "PreTrainedModel":
    """A model that the user has loaded; moved or converted only where that was asked for.

    Args:
        model: a `PreTrainedModel`.
        device: "auto" leaves it where it is.
        dtype: "auto" leaves it as it is.
        options: of loading: none.

    Raises:
        UserError: it is something else or an encoder-decoder, or there are options.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"`model` must be a name, a folder or a Hugging Face `PreTrainedModel`. Got {type(model).__name__}."
        )
    if options:
        raise UserError(
            f"`{next(iter(options))}` acts while a model is loaded. Got it with one that is loaded; leave it out."
        )
    if model.config.is_encoder_decoder:
        raise UserError(
            f"`model` must be a causal language model or an encoder. Got the encoder-decoder {type(model).__name__}."
        )
    adopted: Any = model
    if device != "auto":
        adopted = adopted.to(chosen_device(device))
    return adopted if dtype == "auto" else adopted.to(named_dtype(dtype))


def load_outline(model: str, *, trust_remote_code: bool) -> "PreTrainedModel":
    """The model of `load_model` on torch's "meta" device, from its configuration alone: shapes without numbers.

    Args:
        model: ``"demo"``, a folder with a `config.json`, or a Hugging Face id.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        UserError: no such model, no network, or a configuration of which no model can be made.
    """
    source = source_of(model, weights=False)
    with _errors_of(model), _silence():
        config = _config(source, trust_remote_code=trust_remote_code, options={})
        auto_class = _auto_class(config)
        with torch.device("meta"):
            return auto_class.from_config(config, dtype=config.dtype, trust_remote_code=trust_remote_code)


def load_tokenizer(model: str, *, trust_remote_code: bool, options: dict[str, Any]) -> "PreTrainedTokenizerBase | None":
    """The tokenizer of a model or folder; None if the folder has none of the files of one.

    Raises:
        UserError: the tokenizer's files are there but do not load, or the Hugging Face id has none.
    """
    from transformers import AutoTokenizer

    folder = DEMO_FOLDER if model == "demo" else Path(model).expanduser()
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        return None
    where = {key: options[key] for key in WHERE if key in options}
    with _errors_of(model, setting="tokenizer"), _silence():
        source = str(folder) if folder.is_dir() else model
        return cast(Any, AutoTokenizer).from_pretrained(source, trust_remote_code=trust_remote_code, **where)


def chosen_device(device: torch.device | str) -> torch.device:
    """``"auto"`` is CUDA where there is a CUDA device, else the CPU.

    Raises:
        UserError: no such kind of device, or not on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"`device` must be 'auto', 'cpu', 'cuda' or 'cuda:<number>'. Got {device!r}.") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"`device` must be there. Got {str(device)!r} with {torch.cuda.device_count()} CUDA devices. Use 'cpu'."
        )
    return chosen


def _check_options(options: dict[str, Any]) -> None:
    if "torch_dtype" in options:
        raise UserError("`torch_dtype` must be given as `dtype`. Rename it.")
    if "output_loading_info" in options:
        raise UserError("`output_loading_info` must be left out: `LanguageModel` reads it itself.")


def _config(source: str, *, trust_remote_code: bool, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    if options.get("config"):
        return options["config"]
    where = {key: options[key] for key in WHERE if key in options}
    return cast(Any, AutoConfig).from_pretrained(source, trust_remote_code=trust_remote_code, **where)


def _auto_class(config: Any) -> Any:
    """The automatic class whose heads the checkpoint has: by the class that its configuration names."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"`model` must be a causal language model or an encoder. Got an encoder-decoder ({config.model_type})."
        )
    name = (getattr(config, "architectures", None) or [""])[0]
    if name.endswith(("ForMaskedLM", "ForPreTraining")) and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return AutoModelForMaskedLM
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return AutoModelForCausalLM
    in_causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if name.endswith("ForConditionalGeneration") and in_causal:
        return AutoModelForCausalLM
    if name == "" and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return AutoModelForMaskedLM
    return AutoModelForCausalLM if name == "" and in_causal else AutoModel


@contextmanager
def _errors_of(model: str, *, setting: str = "model") -> Generator[None, None, None]:
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError, json.JSONDecodeError) as error:
        text = " ".join(str(error).split())
        reason = text if len(text) <= 300 else text[:300] + "…"
        if "trust_remote_code" in text:
            raise UserError(
                f"`{setting}` {model!r} comes with code of its own. If you trust it, pass `trust_remote_code=True`."
            ) from error
        raise UserError(
            f"`{setting}` must be a local folder or a Hugging Face id that can be loaded. Got {model!r}: {reason}"
        ) from error


@contextmanager
def _silence() -> Generator[None, None, None]:
    """No progress bars, no log lines of transformers and its hub client; what matters in them is raised as an error."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub = getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        if bars:
            logging.enable_progress_bar()
