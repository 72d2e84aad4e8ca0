"""What `strata groups` does: measure the layers, find the groups, write them down."""

from pathlib import Path
from typing import Any

from strata.activations.harvest import token_stream
from strata.activations.store import open_store
from strata.amounts import counted
from strata.config.groups import GroupsConfig
from strata.groups.files import check_folder, write_groups
from strata.groups.measured import Layers, StoredLayers, TextLayers
from strata.groups.record import chosen_row, groups_record
from strata.lm.model import LanguageModel
from strata.log import say


def groups_run(config: GroupsConfig, *, progress: bool = True) -> Path:
    """Measure the layers, find the groups and write them as groups.json.

    Args:
        config: what to do.
        progress: say on stderr what happens.

    Returns:
        The folder.

    Raises:
        UserError: whatever in the description cannot be done; a folder that exists stays as it is.
    """
    folder = config.folder()
    check_folder(folder, overwrite=config.overwrite)
    record = groups_record(_layers(config, progress=progress), config, progress=progress)
    write_groups(folder, record)
    say(_summary(record), shown=progress)
    return folder


def _layers(config: GroupsConfig, *, progress: bool) -> Layers:
    if config.from_store():
        store = open_store(Path(config.activations))
        layers = StoredLayers(store)
        say(f"{config.activations}: {store.n_rows()} rows of {len(layers.sites)} layers", shown=progress)
        return layers
    model = "demo" if config.model == "auto" else config.model
    data = "stdlib" if config.data == "auto" else config.data
    lm = LanguageModel(model, device=config.device, trust_remote_code=config.trust_remote_code)
    tokens = token_stream(
        lm, data, context_tokens=config.context_tokens, text_batch_size=config.text_batch_size, split="train"
    )
    say(f"{lm.name}: {len(lm.sites)} layers of width {lm.d_in(lm.middle_site)}; text: {data}", shown=progress)
    return TextLayers(lm, tokens, lm_dtype=config.lm_dtype)


def _summary(record: dict[str, Any]) -> str:
    chosen = chosen_row(record)
    whole = chosen["cost_share"]
    total = "unknown" if whole is None else f"{100 * whole:.0f} %"
    layers, saes = counted(len(record["sites"]), "layer"), counted(chosen["n_saes"], "SAE")
    return (
        f"{layers} in {saes} (worst diameter {chosen['worst_diameter']:.3f}, AMAD {chosen['amad']:.3f}). Of the FLOPs"
        f" with one SAE per layer: {100 * chosen['sae_share']:.0f} % for the SAEs, {total} with the language model's"
        f" pass. {record['n_tokens']} rows in {record['seconds']:.0f} s"
    )
