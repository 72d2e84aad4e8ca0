"""SAEs in other libraries' folders and back: what `strata export` and `strata import` do."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from strata.atomic import read_object
from strata.config.settings import Auto, check_kinds, names_unknown_settings
from strata.errors import UserError
from strata.formats import hub, native
from strata.formats.folder import json_file, write_files
from strata.formats.model_card import Exported, model_card
from strata.formats.registry import FORMATS, FormatName, format_of, sae_folders
from strata.formats.weights import as_dtype
from strata.log import say
from strata.out_folder import check_free, new_folder
from strata.sae.gates import Gated
from strata.sae.model import SAE, Transcoder

_RECORD = "export.json"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """SAEs written for another library, and on request pushed to the Hugging Face Hub."""

    source: Path
    """An SAE's folder, in any format that is known, or a run's folder: all SAEs in its `sae`."""
    format: FormatName = "saelens"
    """The library that is to open them."""
    out: Path | Auto = "auto"
    """Where to write; "auto" is the source's path with -<format> at its end."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the weights, for formats in safetensors; "auto" is what they have."""
    overwrite: bool = False
    """Replace an export that stands in `out` already."""
    push_to_hub: str | Literal["no"] = "no"
    """A repository on the Hugging Face Hub to push to, as org/name; "no" keeps it here."""
    private: bool = False
    """Only you may see the repository, if it is created."""

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.push_to_hub != "no" and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub):
            raise UserError(f"`push_to_hub` must be org/name. Got {self.push_to_hub!r}. Give for example me/my-saes.")
        if FORMATS[self.format].IS_FP32_ONLY and self.dtype not in ("auto", "fp32"):
            raise UserError(
                f"`dtype` must be fp32 or auto for format {self.format!r}. Got {self.dtype!r}. Leave it out, or give"
                " format 'saelens' or 'sparsify'."
            )

    def folder(self) -> Path:
        """`out`, or the place beside the source."""
        return Path(self.out) if self.out != "auto" else _beside(Path(self.source), self.format)


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """SAEs of another library, read and written as Strata's own folders."""

    source: Path
    """A folder with an SAE, or with folders of SAEs in it."""
    format: FormatName | Auto = "auto"
    """The library that wrote them; "auto" looks at the names of the files."""
    out: Path | Auto = "auto"
    """Where to write; "auto" is the source's path with -strata at its end."""
    overwrite: bool = False
    """Replace SAEs that stand in `out` already."""

    def __post_init__(self) -> None:
        check_kinds(self)

    def folder(self) -> Path:
        """`out`, or the place beside the source."""
        return Path(self.out) if self.out != "auto" else _beside(Path(self.source), "strata")


def export(config: ExportConfig) -> list[Path]:
    """Write the SAEs as described, with a README.md; all of them or, if one cannot be, none.

    Returns:
        The folders of the SAEs.

    Raises:
        UserError: there are none, the format cannot hold one of them, `out` exists, or the push fails (the folder then
            stays).
    """
    source, out = Path(config.source), config.folder()
    saes = sae_folders(source / "sae" if (source / "sae").is_dir() else source)
    check_free(out, record=_RECORD, what="exports", overwrite=config.overwrite)
    if config.push_to_hub != "no":
        hub.require_login()
    with new_folder(out) as folder:
        exported = [_write(name, path, folder / name, config) for name, path in saes.items()]
        repository = config.push_to_hub if config.push_to_hub != "no" else out.name
        card = model_card(exported, repository=repository)
        record = {"source": source.resolve().name, "saes": [asdict(sae) for sae in exported]}
        write_files(folder, {"README.md": lambda path: _write_text(path, card), _RECORD: json_file(record)})
    if config.push_to_hub != "no":
        hub.push(out, config.push_to_hub, private=config.private)
        say(f"pushed to https://huggingface.co/{config.push_to_hub}")
    return [out / name for name in saes]


def import_(config: ImportConfig) -> list[Path]:
    """Read the SAEs as described and write each as Strata's own folder.

    Returns:
        The folders written.

    Raises:
        UserError: there are none, one is damaged or of an unknown kind, or `out` exists.
    """
    source, out = Path(config.source), config.folder()
    if source.is_file():
        source = source.parent
    found = {"": source} if config.format != "auto" else sae_folders(source)
    saes = {name: FORMATS[config.format if config.format != "auto" else format_of(path)].load(path)
            for name, path in found.items()}  # fmt: skip
    if out.exists() and not (out.is_dir() and (config.overwrite or not any(out.iterdir()))):
        raise UserError(
            f"`out` must be a new folder. {out} exists already. Give another with --out, or replace what is there with"
            " --overwrite."
        )
    for name, sae in saes.items():
        native.save(sae, out / name)
    return [out / name for name in saes]


def _write(name: str, path: Path, target: Path, config: ExportConfig) -> Exported:
    """One SAE, from its folder to its place in the export."""
    sae = FORMATS[format_of(path)].load(path) if not native.recognises(path) else native.load(path)
    dtype = "fp32" if FORMATS[config.format].IS_FP32_ONLY else config.dtype
    if dtype != "auto":
        sae = as_dtype(sae, _DTYPES[dtype])
    written = _format_for(sae, config.format, path)
    try:
        FORMATS[written].save(sae, target)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    trained_as = sae.metadata.get("training_architecture") or sae.gate.architecture
    kind = f"{trained_as} transcoder" if isinstance(sae, Transcoder) else str(trained_as)
    return Exported(
        name=name, format=written, architecture=kind, d_in=sae.d_in, d_sae=sae.d_sae, metadata=sae.metadata,
        metrics=_metrics(path),
    )  # fmt: skip


def _format_for(sae: SAE, wanted: str, path: Path) -> str:
    """The format wanted, or the one in its place where that lacks the architecture; says what is not as asked."""
    if wanted == "saelens" and not native.saelens_has(sae):
        say(f"{path}: SAELens has no TopK transcoder; written as a sparsify folder")
        return "sparsify"
    if wanted == "gemma_scope" and isinstance(sae.gate, Gated):
        say(f"{path}: Gated is written as the JumpReLU that computes the same")
    return wanted


def _metrics(path: Path) -> dict[str, Any]:
    """What the evaluation of the run says of this SAE; nothing if there is none, or it is not readable."""
    path = path.resolve()
    for parent in path.parents:
        if parent.name == "sae" and (parent.parent / "evaluation.json").is_file():
            try:
                of_sites: dict[str, Any] = read_object(parent.parent / "evaluation.json")["sites"]
                return {**of_sites.get(path.relative_to(parent).as_posix(), {})}
            except (ValueError, KeyError, TypeError, AttributeError):
                say(f"{parent.parent / 'evaluation.json'} is damaged: the model card has no metrics")
                return {}
    return {}


def _beside(source: Path, ending: str) -> Path:
    source = source.resolve() if source.name in ("", "..") else source
    return source.with_name(f"{source.name}-{ending}")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
