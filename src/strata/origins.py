"""What an SAE says of where it comes from: the names under which SAELens and SAEBench look for it."""

from typing import Any

from strata.activations.source import RowSource
from strata.assignments import Assignment


def origins(source: RowSource, assignment: Assignment) -> dict[str, Any]:
    """The metadata of the SAE of an assignment that is trained on a source; of a group by site."""
    if assignment.group is None:
        return _origin(source, assignment, assignment.site)
    shared = {"group": assignment.site, "group_sites": list(assignment.sites)}
    return {site: _origin(source, assignment, site) | shared for site in assignment.sites}


def _origin(source: RowSource, assignment: Assignment, site: str) -> dict[str, Any]:
    description = source.describe()
    model, text = description.get("model", {}), description.get("text", {})
    target, hook = assignment.target_site, _hook_name(site)
    of_target = {} if target is None else {"target_site": target, "hook_name_out": _hook_name(target)}
    return {
        "model_name": model.get("name"),
        "hf_model_name": model.get("name"),
        "model_class_name": "HookedTransformer" if hook.startswith("blocks.") else "AutoModelForCausalLM",
        "hook_name": hook,
        "hook_head_index": None,
        **of_target,
        "site": site,
        "context_size": text.get("context_tokens"),
        "dataset_path": text.get("texts", {}).get("source"),
        "strata": description,
    }


def _hook_name(site: str) -> str:
    """TransformerLens' name of a residual or sub-block site, by which SAELens, SAEBench and Neuronpedia know it; else
    the site itself.
    """
    hooks = {"": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out"}
    layers, number, part = (*site.split(".", 2), "", "")[:3]
    return f"blocks.{number}.{hooks[part]}" if layers == "layers" and number and part in hooks else site
