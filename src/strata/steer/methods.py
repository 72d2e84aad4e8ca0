"""The ways to steer that are compared, by name."""

from strata.errors import UserError, did_you_mean
from strata.steer.feature_method import FeatureMethod
from strata.steer.method import Method, Nothing
from strata.steer.prompting import Prompting
from strata.steer.vector_method import VectorMethod, contrastive_addition, difference_of_means

_OF_MAXIMUM = (0.25, 0.5, 1.0, 2.0, 4.0)
_OF_NORM = (0.1, 0.2, 0.4, 0.8, 1.6)
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Nothing(),
        FeatureMethod("sae-add", "add", _OF_MAXIMUM),
        FeatureMethod("sae-clamp", "clamp", _OF_MAXIMUM),
        VectorMethod("diff-means", difference_of_means, _OF_NORM),
        VectorMethod("caa", contrastive_addition, _OF_NORM),
        Prompting(),
    )
}
"""By name, in the order of tables."""


def named_methods(names: tuple[str, ...]) -> list[Method]:
    """The methods of these names; all for ``("all",)``.

    Raises:
        UserError: an unknown name.
    """
    if names == ("all",):
        return list(METHODS.values())
    for name in names:
        if name not in METHODS:
            raise UserError(f"`methods` must be methods that there are. Got {name!r}.{did_you_mean(name, METHODS)}")
    return [METHODS[name] for name in names]
