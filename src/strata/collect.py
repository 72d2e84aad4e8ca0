"""Collecting activations: from a description to a store on disk."""

from pathlib import Path

from strata.activations.store_plan import StorePlan
from strata.activations.store_writing import write_store
from strata.amounts import counted
from strata.config.collect import CollectConfig
from strata.lm.model import LanguageModel
from strata.log import say
from strata.run_rows import chosen_sites


def collect_run(config: CollectConfig, *, progress: bool = True) -> Path:
    """Collect as described, or go on with what was collected before.

    The rows are of the text's training documents (`strata.lm.text.open_texts`), and beside them, unless switched off,
    some of held-out ones.

    Args:
        config: the collection.
        progress: say on stderr what happens.

    Returns:
        The store's folder.

    Raises:
        UserError: whatever in the description cannot be done, or a folder that holds something else; shards that are
            finished stay.
    """
    plan = StorePlan(
        dtype=config.dtype,
        n_tokens=None if config.n_tokens == "all" else config.n_tokens,
        held_out_tokens=config.held_out_tokens,
        split="train",
        part=config.part,
        shard_rows=None if config.shard_rows == "auto" else config.shard_rows,
        buffer_tokens=None if config.buffer_tokens == "auto" else config.buffer_tokens,
        context_tokens=config.context_tokens,
        text_batch_size=config.text_batch_size,
        lm_dtype=config.lm_dtype,
        seed=config.seed,
    )
    plan.check()
    lm = LanguageModel(config.model, device=config.device, trust_remote_code=config.trust_remote_code)
    sites = chosen_sites(lm, config.sites)
    folder = config.folder()
    say(
        f"{lm.name}: {counted(len(sites), 'site')} of width {lm.d_in(sites[0])}; text: {config.data}; to {folder}",
        shown=progress,
    )
    write_store(lm, config.data, sites=sites, folder=folder, plan=plan, progress=progress)
    return folder
