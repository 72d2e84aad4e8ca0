"""Tasks in Python source text, which the embedded model was trained on. Names and templates are our own."""

from random import Random

from strata.evaluate.tasks.base import Task, TextPair, from_text, words

# One token each in the embedded model's vocabulary, with a space before them and without.
_NAMES = words(
    "width height name value key path size start stop line text index count result item node mode level offset length "
    "first last left right source target parent child message error code group func host port url user buffer stream "
    "handler timeout encoding prefix module package version default filename token string pattern match state limit "
    "body header address socket server request response parser option section entry field"
)
_METHODS = words(
    "read write close open run start stop get reset clear update add remove append pop send copy items keys find parse "
    "load save check test handle join wait push"
)
_CLASSES = ("Node", "Stream", "File", "Option", "Text", "Set")
_CLOSING = {"(": ")", "[": "]", "{": "}"}

# `{o}` is the bracket left open. In the first three a tuple, a list and a set (or a generator …) all make sense.
_ANY_BRACKET = ("    {0} = {o}{1} for {1} in {2}", "    {0} = {o}1, 2, 3", "    {0} = {o}{1} for {1} in {0}")
_CALL_OR_INDEX = (
    "    {0} = {o}{1}, {2}, {3}",
    "    if {0} in {1}.{2}{o}{3}",
    "    for {0} in {1}.{2}{o}{3}",
)
_STATEMENTS = (  # each opens a block, or not, with as many tokens
    ("if not {0}:", "{0} = not {1}"),
    ("if {0}.{1}:", "{0}.{1} = {2}"),
    ("while {0}:", "{0} = {1}"),
    ("for {0} in {1}:", "{0} = {1} + {2}"),
    ("if {0} in {1}:", "{0} = {1}.{2}"),
)


def _closing_bracket(random: Random) -> TextPair:
    template = random.choice(_ANY_BRACKET + _CALL_OR_INDEX)
    opened, other = random.sample("([{" if template in _ANY_BRACKET else "([", 2)
    names = random.sample(_NAMES, 4)
    clean, corrupt = (template.format(*names, o=bracket) for bracket in (opened, other))
    return TextPair(clean, corrupt, _CLOSING[opened], _CLOSING[other])


def _self_argument(random: Random) -> TextPair:
    body = f"class {random.choice(_CLASSES)}:\n    {random.choice(_NAMES)} = None\n\n    @"
    method = f"\n    def {random.choice(_METHODS)}("
    ordinary = random.choice(("property", "abstractmethod"))
    return TextPair(f"{body}{ordinary}{method}", f"{body}classmethod{method}", "self", "cls")


def _repeated_name(random: Random) -> TextPair:
    name, other = random.sample(_NAMES, 2)
    template = "    if {0} is None:\n        {0} = self.{1}\n    " + random.choice(("if", "return"))
    return TextPair(template.format(name, other), template.format(other, name), f" {name}", f" {other}")


def _indentation(random: Random) -> TextPair:
    names = random.sample(_NAMES, 4)
    before = "def {m}({0}, {1}):\n    {2} = {3}\n    ".format(*names, m=random.choice(_METHODS))
    block, statement = (before + text.format(*names) for text in random.choice(_STATEMENTS))
    return TextPair(block, statement, "\n" + 7 * " ", "\n" + 3 * " ")  # one space belongs to the token that follows


PYTHON_TASKS = {
    "closing_bracket": Task(
        "Which bracket closes the one that is open? In the corrupt prompt it is one of another kind.",
        "the brackets, also after a name",
        from_text(_closing_bracket),
    ),
    "self_argument": Task(
        "What is a method's first argument: `self`, or `cls` in the corrupt prompt, where it is a class method?",
        "`self` and `cls` after `(`",
        from_text(_self_argument),
    ),
    "repeated_name": Task(
        "Which of the two names seen before is used again? The corrupt prompt exchanges them.",
        "common names of variables with a space before them",
        from_text(_repeated_name),
    ),
    "indentation": Task(
        "How deep is the next line? Deeper behind a colon; as deep as before in the corrupt prompt, a statement.",
        "a line break with seven spaces, and with three",
        from_text(_indentation),
    ),
}
