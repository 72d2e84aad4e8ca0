"""The index of a run: the one that is there, if it is of the same SAEs and text, else a new one."""

from collections.abc import Mapping, Sequence
from typing import Any

from strata.atomic import as_json
from strata.config.interpret import IndexConfig
from strata.evaluate.places import named_places, places_of
from strata.evaluate.run_model import check_weights, language_model_of
from strata.evaluate.runs import Run, open_run
from strata.interpret.index import FeatureIndex
from strata.interpret.index_building import build
from strata.interpret.index_record import Reading, record_of, sae_hashes
from strata.lm.text import open_texts
from strata.sae.model import SAE


def index_run(config: IndexConfig, *, progress: bool = True) -> FeatureIndex:
    """The index of a run: the one that is there, if it is of the same SAEs and text, else a new one.

    An index that was interrupted is gone on with; one that lacks some of the SAEs gets them by another pass.

    Args:
        config: whose features, on which text.
        progress: say on stderr what happens.

    Raises:
        UserError: no finished run, unknown sites, a text without a token.
    """
    run = open_run(config.run)
    saes = {place.key: place.load() for place in named_places(places_of(run, progress=progress), config.sites)}
    data = run.data if config.data == "auto" else config.data
    reading = Reading(data, config.n_tokens, run.config["context_tokens"], run.text_batch_size, config.lm_dtype)
    stated = _stated(run, reading, saes)
    folder = config.index_folder
    before = record_of(folder)
    usable = before is not None and not config.reindex and _agree(before["stated"], stated)
    if before is not None and usable and before["complete"]:
        saes = {key: sae for key, sae in saes.items() if key not in before["stated"]["saes"]}
        if not saes:
            return FeatureIndex.open(folder)
        stated = stated | {"saes": {key: stated["saes"][key] for key in saes}}
    going_on = before is not None and usable and (before["complete"] or before["stated"] == stated)
    lm = language_model_of(run, device=config.device, trust_remote_code=config.trust_remote_code)
    check_weights(lm, run)
    return build(lm, saes, reading, folder=folder, stated=stated, going_on=going_on, progress=progress)


def chosen_keys(index: FeatureIndex, sites: Sequence[str]) -> list[str]:
    """Of which SAEs of an index a command speaks; an index may hold more than are asked for.

    Args:
        index: the index.
        sites: as `IndexConfig.sites`: keys, sites (of all SAEs there), or "all".

    Raises:
        UserError: there is no such SAE.
    """
    if "all" in sites:
        return index.keys
    wanted = {key for name in sites for key in index.keys_of(name)}
    return [key for key in index.keys if key in wanted]


def _stated(run: Run, reading: Reading, saes: Mapping[str, SAE]) -> dict[str, Any]:
    """What an index is of: two with the same are the same."""
    return as_json(
        {
            "model": run.model_key,
            "weights_sha256": run.record.get("model", {}).get("weights_sha256"),
            "text": open_texts(reading.texts, split="all").describe(),
            "n_tokens": reading.n_tokens,
            "lm_dtype": reading.lm_dtype,
            "saes": sae_hashes(saes),
        }
    )


def _agree(have: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether two indexes are of the same text and, where both have an SAE, of the same one."""
    same = {k: v for k, v in have.items() if k != "saes"} == {k: v for k, v in wanted.items() if k != "saes"}
    return same and all(have["saes"].get(key, found) == found for key, found in wanted["saes"].items())
