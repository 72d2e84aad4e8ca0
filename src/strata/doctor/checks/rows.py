"""The rows: drift away from the normalisation, outliers, and whether the buffer shuffles."""

from statistics import median

from strata.amounts import counted
from strata.doctor.findings import Finding
from strata.doctor.record import Record
from strata.doctor.words import number, percent

_DRIFT, _FAR_DRIFT = 1.25, 2.0
_MANY_OUTLIERS = 0.01
_SUDDEN = 5.0
_FEWEST_FORWARDS = 3.0  # passes of the language model that a buffer should hold; 4 or more by default
_FEWEST_TEXTS = 64.0


def normalisation_drift(run: Record) -> list[Finding]:
    """Rows longer or shorter than those on which the frozen normalisation was estimated."""
    found: list[Finding] = []
    for key in run.keys:
        points = run.points(key, "relative_length")
        if len(points) < 4:
            continue
        start, now = median(value for _, value in points[:3]), median(value for _, value in points[-3:])
        if start <= 0 or now <= 0:
            continue
        factor = max(now / start, start / now)
        if factor < _DRIFT:
            continue
        way = "longer" if now > start else "shorter"
        found.append(
            Finding(
                name="normalisation-drift",
                severity="error" if factor >= _FAR_DRIFT else "warning",
                what=f"Rows have become {way} than those on which the normalisation was estimated, once and for all.",
                evidence=f"Their mean distance from the site's median row was {number(start)} (in units of the"
                f" estimate) in the first lines and is {number(now)} at step {points[-1][0]:,}.",
                todo="Shuffle the documents: the text changes its kind on the way.",
                numbers={"relative_length_start": start, "relative_length_now": now},
                sites=(key,),
                weight=factor,
            )
        )
    return found


def outlier_rows(run: Record) -> list[Finding]:
    """Rows far from all others, which are left out of the training as attention sinks."""
    found: list[Finding] = []
    for key in run.keys:
        points = run.points(key, "outlier_share")
        if not points:
            continue
        usual = max(_MANY_OUTLIERS, 2 / (run.facts.context_tokens or 256))  # one or two of each sequence are sinks
        recent = median(value for _, value in points[-5:])
        before = [value for _, value in points[:-1]]
        step, last = points[-1]
        sudden = len(before) >= 3 and last > usual and last > _SUDDEN * median(before)
        if recent <= usual and not sudden:
            continue
        found.append(
            Finding(
                name="outlier-rows",
                severity="warning",
                what="Suddenly many rows lie so far from all others that they are left out of the training."
                if sudden and recent <= usual
                else "Many rows lie so far from all others that they are left out of the training.",
                evidence=f"{percent(last)} of the rows since the line before step {step:,}, {percent(recent)} in the"
                f" middle of the last lines; up to {percent(usual)} are usual (first tokens of sequences). They lie"
                " more than 10 times the median distance from the median row.",
                todo="Look at the text of these rows; if they are what you want to study, train on their site alone.",
                numbers={"outlier_share": last, "median_outlier_share": recent, "usual": usual},
                sites=(key,),
                weight=max(recent, last),
            )
        )
    return found


def small_buffer(run: Record) -> list[Finding]:
    """A shuffle buffer that holds so little that the rows of a batch come from a few texts."""
    facts = run.facts
    buffer, forward, context = facts.buffer_rows, facts.forward_rows, facts.context_tokens
    if not buffer or not forward or (facts.n_rows is not None and buffer >= facts.n_rows):
        return []
    texts = buffer / (context or forward)
    forwards = buffer / forward
    if forwards >= _FEWEST_FORWARDS and (texts >= _FEWEST_TEXTS or context is None):
        return []
    batch = facts.batch_size or 0
    same = f" In a batch of {batch:,} rows {number(round(batch / texts, 1))} come from the same text." if batch else ""
    return [
        Finding(
            name="small-buffer",
            severity="warning",
            what="The shuffle buffer is too small to shuffle: the rows of a batch come from few texts.",
            evidence=f"It holds {buffer:,} rows, {number(round(forwards, 1))} forward passes of {forward:,} tokens, or"
            f" {counted(round(texts), 'text')} of {context or forward:,} tokens.{same}",
            todo=f"Set buffer_tokens to {facts.usual_buffer_rows:,} (or auto), or lower text_batch_size.",
            numbers={"buffer_rows": buffer, "forward_rows": forward, "texts": texts},
            weight=1 / forwards,
        )
    ]
