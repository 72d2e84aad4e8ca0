"""The whole way of `strata dashboard`: index, explanations, pages."""

from dataclasses import fields
from pathlib import Path

from strata.config.dashboard import DashboardConfig
from strata.config.explain import ExplainConfig
from strata.config.interpret import IndexConfig
from strata.interpret.index import FeatureIndex
from strata.interpret.run_index import chosen_keys, index_run
from strata.log import say
from strata.out_folder import check_free
from strata.report.dashboard.explained import Explanations
from strata.report.dashboard.features import Shown
from strata.report.dashboard.write import RECORD, write_dashboard


def dashboard(config: DashboardConfig, *, progress: bool = True) -> Path:
    """Write the pages of the features of a run, or of some of its SAEs.

    What they show and is not there yet is made before: the index, by one pass of the language model, and explanations
    by token patterns (see `strata.interpret.explain.command`), which need no other language model.

    Args:
        config: the run, and what to show.
        progress: say on stderr what happens.

    Returns:
        index.html.

    Raises:
        UserError: what cannot be indexed or explained, a folder that exists or cannot be written.
    """
    check_free(config.folder(), record=RECORD, what="dashboards", overwrite=config.overwrite)
    index = index_run(config, progress=progress)
    keys = chosen_keys(index, config.sites)
    unexplained = tuple(key for key in keys if not len(Explanations.read(index[key].folder)))
    if config.explain and unexplained:
        _explain(index, config, unexplained, progress=progress)
    say("writing the pages", shown=progress)
    shown = Shown(n_examples=config.n_examples, before=config.before_tokens, after=config.after_tokens)
    return write_dashboard(
        index,
        run_folder=Path(config.run),
        out=config.folder(),
        keys=keys,
        shown=shown,
        neuronpedia=config.neuronpedia,
        progress=progress,
    )


def _explain(index: FeatureIndex, config: DashboardConfig, keys: tuple[str, ...], *, progress: bool) -> None:
    """Explain the features of some SAEs of the index, which is there already, by token patterns."""
    from strata.interpret.explain.command import explain_index

    own = ("reindex", "sites")
    same = {field.name: getattr(config, field.name) for field in fields(IndexConfig) if field.name not in own}
    explain_index(index, ExplainConfig(**same, sites=keys), progress=progress)
