"""Tasks in English, for models that read it. Words and templates are our own; the tasks are those of the literature."""

from random import Random

from strata.evaluate.tasks.base import Task, TextPair, from_text, words

_FIRST_NAMES = words(
    "Mary John Tom James Dan Sarah Anna Paul Mark Peter David Laura Lisa Kate Emma Jack Alice Bob Steve Michael Robert "
    "Jane Kevin Rachel Simon Martin George Henry Frank Maria Adam Andrew Brian Chris Eric Jason Jeff Scott"
)
_PLACES = ("park", "school", "office", "station", "garden", "market", "library", "hospital", "restaurant", "museum")
_THINGS = ("book", "letter", "key", "ring", "ball", "drink", "camera", "map", "ticket", "phone", "basket", "photo")
# All of the same number of words, so that all are left where every word is one token.
_GIVING = (
    "When {0} and {1} met at the {place}, {2} handed the {thing} to",
    "After {0} and {1} arrived at the {place}, {2} passed the {thing} to",
    "While {0} and {1} waited in the {place}, {2} showed the {thing} to",
    "Before {0} and {1} left for the {place}, {2} sold the {thing} to",
    "Because {0} and {1} worked in the {place}, {2} lent the {thing} to",
)

_EVENTS = (
    *("war", "strike", "siege", "project", "campaign", "voyage", "trial", "journey", "plague", "reform"),
    *("conflict", "expedition", "drought", "revolt", "festival", "construction", "occupation", "tour", "debate"),
)

_NOUNS = tuple(
    tuple(pair.split("/"))
    for pair in words(
        "key/keys author/authors teacher/teachers car/cars picture/pictures door/doors student/students doctor/doctors "
        "table/tables window/windows dog/dogs cat/cats boy/boys girl/girls tree/trees house/houses letter/letters "
        "box/boxes book/books painting/paintings lawyer/lawyers farmer/farmers guest/guests minister/ministers "
        "machine/machines lamp/lamps bottle/bottles horse/horses chair/chairs boat/boats"
    )
)
_BETWEEN = ("standing near the {0}", "chosen by the {0}", "right behind the {0}", "placed beside the {0}")


def _ioi(random: Random) -> TextPair:
    """Wang et al. 2022 (arXiv 2211.00593): who was named once receives; the corrupt prompt repeats the other name."""
    first, second = random.sample(_FIRST_NAMES, 2)
    template = random.choice(_GIVING)
    words = {"place": random.choice(_PLACES), "thing": random.choice(_THINGS)}
    clean, corrupt = (template.format(first, second, giver, **words) for giver in (first, second))
    pair = TextPair(clean, corrupt, f" {second}", f" {first}")
    return pair if random.random() < 0.5 else pair.swapped()


def _greater_than(random: Random) -> TextPair:
    """Hanna et al. 2023 (arXiv 2305.00586): an event ends after it began.

    Both prompts name a year of one century, the clean one the later. ``answer`` is up to nine years after it; ``wrong``
    up to nine years after the corrupt prompt's year and before the clean one: impossible in the clean prompt. In the
    corrupt prompt both years are possible and ``wrong`` is the nearer one.

    Differs: Hanna et al. compare the probabilities of all later and all earlier years; the corrupt year is always 01.
    """
    century = random.randint(11, 18)
    wrong = random.randint(12, 70)
    answer = random.randint(wrong + 10, 99)
    early = random.randint(max(2, wrong - 9), wrong - 1)
    late = random.randint(max(wrong + 1, answer - 9), answer - 1)
    event = random.choice(_EVENTS)
    clean, corrupt = (
        f"The {event} lasted from the year {century}{year:02d} to the year {century}" for year in (late, early)
    )
    return TextPair(clean, corrupt, f"{answer:02d}", f"{wrong:02d}")


def _subject_verb(random: Random) -> TextPair:
    """Linzen et al. 2016 (arXiv 1611.01368): the verb agrees with its subject, whatever noun stands between."""
    subject, other = random.sample(_NOUNS, 2)
    between = random.choice(_BETWEEN).format(random.choice(other))
    singular, plural = (f"The {noun} {between}" for noun in subject)
    pair = TextPair(singular, plural, " is", " are")
    return pair if random.random() < 0.5 else pair.swapped()


ENGLISH_TASKS = {
    "ioi": Task(
        "Who receives what is given? Of the two people named, the one who does not give (indirect-object "
        "identification). In the corrupt prompt the other one gives.",
        "English first names with a space before them",
        from_text(_ioi),
    ),
    "greater_than": Task(
        "In which year does an event end? Not before it began. In the corrupt prompt it began earlier.",
        "two-digit numbers, also as the last two digits of a year",
        from_text(_greater_than),
    ),
    "subject_verb": Task(
        "Is the verb singular or plural? As the subject is. In the corrupt prompt the subject has the other number.",
        '" is" and " are"',
        from_text(_subject_verb),
    ),
}
