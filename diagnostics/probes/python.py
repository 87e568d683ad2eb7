"""Probe `python`: facts about Python, asked for in English and as code.

What an expression is worth, which keyword begins what, which module has a function, which keyword
must come next, and that an attribute is set from the argument of its name.
"""

from __future__ import annotations

from hybridize.diagnostics.subject.items import Item

TITLE = "facts about Python: values, keywords, modules, and how code goes on"

# An example and what it prints, the expression that is asked for and what that prints.
VALUES = (
    ('len("ab")', "2", 'len("abcd")', "4"),
    ("len([1, 2])", "2", "len([5, 6, 7])", "3"),
    ("len((1, 2, 3))", "3", "len(())", "0"),
    ("max(1, 5)", "5", "max(7, 3)", "7"),
    ("min(4, 9)", "4", "min(6, 8)", "6"),
    ("sum([1, 1])", "2", "sum([2, 3])", "5"),
    ("abs(-4)", "4", "abs(-9)", "9"),
    ("17 // 5", "3", "19 // 2", "9"),
    ("11 % 4", "3", "13 % 8", "5"),
    ('"abc"[0]', "a", '"xyz"[1]', "y"),
    ('"tea".upper()', "TEA", '"box".upper()', "BOX"),
    ("[4, 5, 6][-1]", "6", "[7, 8, 1][-1]", "1"),
    ('{"a": 5, "b": 7}["a"]', "5", '{"a": 2, "b": 4}["b"]', "4"),
    ("1 < 2", "True", "5 < 3", "False"),
    ("3 > 4", "False", "not False", "True"),
    ('{"k": 1}.get("k")', "1", '{}.get("k")', "None"),
)

# Keyword, and what it begins.
KEYWORDS = {
    "def": "a function",
    "class": "a class",
    "lambda": "a function without a name",
    "for": "a loop over the items of a list",
    "while": "a loop that runs as long as a condition holds",
    "with": "a block that closes a file at its end",
    "try": "a block whose exceptions are caught",
    "raise": "a statement that throws an exception",
    "return": "a statement that gives back the result of a function",
    "assert": "a statement that checks a condition",
}

# Function or class, and the module that has it.
MODULES = {
    "sqrt": "math",
    "listdir": "os",
    "argv": "sys",
    "loads": "json",
    "findall": "re",
    "shuffle": "random",
    "deepcopy": "copy",
    "defaultdict": "collections",
    "timedelta": "datetime",
    "Thread": "threading",
}

# Code, and the keyword that goes on.
NEXT = (
    ("for name", "in"),
    ("from os.path", "import"),
    ("value = 1 if found", "else"),
    ("import numpy as np\nimport pandas", "as"),
    ("names = [x for x", "in"),
    ("if key not", "in"),
)

# Class, and the arguments that it keeps as attributes.
ATTRIBUTES = (
    ("Stack", "limit", "size"),
    ("Reader", "mode", "path"),
    ("Person", "age", "name"),
    ("Node", "parent", "value"),
    ("Task", "args", "func"),
    ("Point", "x", "y"),
)


def items() -> list[Item]:
    """Always the same 48 items."""
    return [
        *(_value(*row) for row in VALUES),
        *(_keyword(keyword, what) for keyword, what in KEYWORDS.items()),
        *(_module(name, module) for name, module in MODULES.items()),
        *(Item(code, f" {keyword}") for code, keyword in NEXT),
        *(_attribute(*names) for names in ATTRIBUTES),
    ]


def _value(example: str, printed: str, asked: str, answer: str) -> Item:
    return Item(f"print({example})  # {printed}\nprint({asked})  #", f" {answer}")


def _keyword(keyword: str, what: str) -> Item:
    told = "In Python, a statement that deletes a name begins with del, and"
    return Item(f"{told} {what} begins with", f" {keyword}")


def _module(name: str, module: str) -> Item:
    told = "partial is in the module functools. StringIO is in the module io."
    return Item(f"{told} {name} is in the module", f" {module}")


def _attribute(name: str, first: str, second: str) -> Item:
    lines = (
        f"class {name}:",
        f"    def __init__(self, {first}, {second}):",
        f"        self.{first} = {first}",
        f"        self.{second} =",
    )
    return Item("\n".join(lines), f" {second}")
