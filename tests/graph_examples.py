"""Toy nodes and graphs, good and bad, which ComfyUI and our runner must treat alike."""

# ruff: noqa: N802  ComfyUI's names

import asyncio
import json
import math

CHOICES = ["a", "b"]
MANY = [f"file {number}" for number in range(21)]


def node(class_type, /, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def toy(required, optional=None, hidden=None):
    """INPUT_TYPES of these inputs; a bare type stands for one without options."""
    groups = {"required": required, "optional": optional, "hidden": hidden}
    types = {
        kind: {
            name: item if isinstance(item, tuple | str) and kind == "hidden" else as_tuple(item)
            for name, item in group.items()
        }
        for kind, group in groups.items()
        if group
    }
    return classmethod(lambda cls: types)


def as_tuple(item):
    return item if isinstance(item, tuple) else (item,)


class Toy:
    FUNCTION = "work"
    RETURN_TYPES = ("INT",)
    CATEGORY = "toys"


class ToyNumber(Toy):
    INPUT_TYPES = toy({"value": ("INT", {"min": 0, "max": 100})})

    def work(self, value):
        return (value,)


class ToyFloat(Toy):
    INPUT_TYPES = toy({"value": ("FLOAT", {"min": -1.0, "max": 1.0})}, {"on": "BOOLEAN"})
    RETURN_TYPES = ("FLOAT",)

    def work(self, value, on=True):
        return (value if on else -value,)


class ToyText(Toy):
    INPUT_TYPES = toy({"text": "STRING"})
    RETURN_TYPES = ("STRING",)

    def work(self, text):
        return (text,)


class ToyAdd(Toy):
    INPUT_TYPES = toy({"a": "INT", "b": "INT"}, {"c": "INT"})

    def work(self, a, b, c=0):
        return (a + b + c,)


class ToyPair(Toy):
    INPUT_TYPES = toy({"value": "INT"})
    RETURN_TYPES = ("INT", "STRING")

    def work(self, value):
        return (value + 1, str(value))


class ToyChoice(Toy):
    INPUT_TYPES = toy(
        {"choice": (CHOICES,)},
        {
            "file": (MANY, {}),
            "combo": ("COMBO", {"options": ["x", "y"]}),
            "several": ("COMBO", {"options": ["x", "y"], "multiselect": True}),
            "bare": ("COMBO",),
        },
    )
    RETURN_TYPES = ("STRING",)

    def work(self, **choices):
        return (json.dumps(choices),)


class ToySplit(Toy):
    """A list of 0, 1, ..., count - 1."""

    INPUT_TYPES = toy({"count": "INT"})
    OUTPUT_IS_LIST = (True,)

    def work(self, count):
        return (list(range(count)),)


class ToyTotal(Toy):
    INPUT_TYPES = toy({"values": "INT"}, {"scale": ("INT", {"default": 1})})
    INPUT_IS_LIST = True

    def work(self, values, scale=(1,)):
        return (sum(values) * scale[0],)


class ToySwitch(Toy):
    """Only the chosen branch runs."""

    INPUT_TYPES = toy(
        {"on": "BOOLEAN,INT", "yes": ("INT", {"lazy": True})}, {"no": ("INT", {"lazy": True})}
    )

    def check_lazy_status(self, on, yes=None, no=None):
        return ["yes"] if on and yes is None else ["no"] if not on and no is None else []

    def work(self, on, yes=None, no=None):
        return (yes if on else no,)


class ToyBadSwitch(ToySwitch):
    def check_lazy_status(self, **_):
        return ["nothing"]


class ToyShow(Toy):
    INPUT_TYPES = toy({"value": "*"})
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    def work(self, value):
        return {"ui": {"text": [repr(value)]}}


class ToyShowAndPass(Toy):
    INPUT_TYPES = toy({"value": "INT"})
    OUTPUT_NODE = True

    def work(self, value):
        return {"ui": {"text": [value], "more": [1]}, "result": (value + 1,)}


class ToyQuiet(Toy):
    """An output that shows nothing."""

    INPUT_TYPES = toy({"value": "INT"})
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    def work(self, value):
        return {}


class ToyNamed(Toy):
    INPUT_TYPES = toy({"value": "INT"}, hidden={"unique_id": "UNIQUE_ID"})
    RETURN_TYPES = ("STRING",)

    def work(self, value, unique_id):
        return (f"{unique_id}: {value}",)


class ToyTold(Toy):
    """What the request carried."""

    INPUT_TYPES = toy(
        {"value": "INT"},
        hidden={"prompt": "PROMPT", "extra": "EXTRA_PNGINFO", "key": "API_KEY_COMFY_ORG"},
    )
    RETURN_TYPES = ("STRING",)

    def work(self, value, prompt, extra, key):
        return (json.dumps([value, prompt, extra, key]),)


class ToyOnce(Toy):
    """Results of equal nodes are not shared."""

    INPUT_TYPES = toy({"value": "INT"})
    NOT_IDEMPOTENT = True

    def work(self, value):
        return (value,)


class ToyCounter(Toy):
    """Its object lives as long as prompts have the node."""

    INPUT_TYPES = toy({"value": "INT"})

    def __init__(self):
        self.runs = 0

    def work(self, value):
        self.runs += 1
        return (self.runs,)


class ToyChanged(Toy):
    INPUT_TYPES = toy({"value": "INT"})

    @classmethod
    def IS_CHANGED(cls, value):
        return [str(value), {"of": 10}]

    def work(self, value):
        return (value,)


class ToyChangedStatic(ToyChanged):
    @staticmethod
    def IS_CHANGED(value):
        return value


class ToyChangedAsync(ToyChanged):
    @classmethod
    async def IS_CHANGED(cls, value):
        await asyncio.sleep(0)
        return value


class ToyAlways(ToyChanged):
    @classmethod
    def IS_CHANGED(cls, value):
        return float("nan")


class ToyChangedFails(ToyChanged):
    @classmethod
    def IS_CHANGED(cls, value):
        raise OSError("the file is gone")


class ToyChangedPlain(ToyChanged):
    """No classmethod: the call lacks ``self`` and fails."""

    def IS_CHANGED(self, value):
        return value


class Thing:
    """No JSON, and the same words in every message."""

    def __repr__(self):
        return "a thing"


class ToyChangedObject(ToyChanged):
    @classmethod
    def IS_CHANGED(cls, value):
        return Thing()


class ToyChecked(Toy):
    """VALIDATE_INPUTS names one input: that is not checked otherwise."""

    INPUT_TYPES = toy({"value": ("INT", {"max": 5}), "other": ("INT", {"max": 5})})

    @classmethod
    def VALIDATE_INPUTS(cls, value):
        return True if value % 2 == 0 else f"{value} is odd"

    def work(self, value, other):
        return (value,)


class ToyCheckedAll(ToyChecked):
    @classmethod
    def VALIDATE_INPUTS(cls, **values):
        return sum(value for value in values.values() if value is not None) < 50

    def work(self, value, other):
        return (value + other,)


class ToyCheckedTypes(ToyChecked):
    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return "STRING" not in input_types.values() or f"types are {input_types}"


class ToyCheckedList(ToyChecked):
    INPUT_IS_LIST = True

    @classmethod
    def VALIDATE_INPUTS(cls, value, other):
        return [value, other] == [[2], [3]]

    def work(self, value, other):
        return (value[0],)


class ToyCheckedAsync(ToyChecked):
    @classmethod
    async def VALIDATE_INPUTS(cls, value):
        await asyncio.sleep(0)
        return value < 10 or "too much"


class ToyCheckFails(ToyChecked):
    @classmethod
    def VALIDATE_INPUTS(cls, value):
        raise LookupError(f"no {value}")


class ToyCheckedNothing(ToyChecked):
    @staticmethod
    def VALIDATE_INPUTS():
        return "never asked"


class ToyInputsFail(Toy):
    @classmethod
    def INPUT_TYPES(cls):
        raise RuntimeError("the folder is gone")


class ToyFails(Toy):
    INPUT_TYPES = toy({"value": "INT", "text": ("STRING", {})}, hidden={"id": "UNIQUE_ID"})

    def work(self, value, text, id):
        if value > 0:
            raise ValueError(f"{value} is not good")
        return (value,)


class ToyNothing(Toy):
    INPUT_TYPES = toy({"value": "INT"})

    def work(self, value):
        return None


class ToyBroken(Toy):
    INPUT_TYPES = toy({"value": "INT"})

    def __init__(self):
        raise MemoryError("no room")

    def work(self, value):
        return (value,)


class ToyAsync(Toy):
    INPUT_TYPES = toy({"value": "INT"}, {"seconds": "FLOAT"})

    async def work(self, value, seconds=0.0):
        await asyncio.sleep(seconds)
        if value == 13:
            raise ValueError("unlucky")
        return (value * 2,)


class ToyQuick(Toy):
    """A coroutine that never waits."""

    INPUT_TYPES = toy({"value": "INT"})

    async def work(self, value):
        return (value * 3,)


class ToyAny(Toy):
    """Takes whatever it is given, also inputs it does not declare."""

    INPUT_TYPES = toy({}, {"value": "*", "two": "INT,STRING", "raw": ("INT", {"rawLink": True})})
    RETURN_TYPES = ("*",)

    def work(self, **values):
        return (sorted(map(str, values.items())),)


TOYS = {
    name: item
    for name, item in list(globals().items())
    if isinstance(item, type) and issubclass(item, Toy) and item is not Toy
}


def show(link):
    return node("ToyShow", value=link)


def shown(**nodes):
    """A graph of these nodes, and one that shows ``x``."""
    return {**nodes, "show": show(["x", 0])}


def number(value=1):
    return node("ToyNumber", value=value)


def add(a, b, **more):
    return node("ToyAdd", a=a, b=b, **more)


def titled(item, title):
    return {**item, "_meta": {"title": title}}


BAD = {
    "nothing": {},
    "no output": {"1": number()},
    "no class": {"1": {"inputs": {}}, "2": show(["1", 0])},
    "no class but a title": {"1": titled({"inputs": {}}, "My node"), "2": show(["1", 0])},
    "unknown class": {"1": node("Missing"), "2": show(["1", 0])},
    "unknown class with a title": {"1": titled(node("Missing"), "My node"), "2": show(["1", 0])},
    "unknown class that nobody uses": shown(x=number(), y=node("Missing")),
    "class is null": {"1": {"class_type": None, "inputs": {}}},
    "missing input": shown(x=node("ToyNumber")),
    "two missing inputs": shown(x=node("ToyAdd")),
    "missing input of the output": {"1": node("ToyShow")},
    "no inputs": shown(x={"class_type": "ToyNumber"}),
    "output without inputs": {"1": {"class_type": "ToyShow"}},
    "inputs are null": shown(x={"class_type": "ToyNumber", "inputs": None}),
    "link of one item": shown(x=add(["y"], 1), y=number()),
    "link of three items": shown(x=add(["y", 0, 0], [], c=[[], [], []]), y=number()),
    "link to a missing node": shown(x=add(["gone", 0], 1)),
    "output linked to a missing node": {"1": show(["gone", 0])},
    "link to a number": shown(x=add([7, 0], 1)),
    "link to a list": shown(x=add([["y"], 0], 1), y=number()),
    "slot out of range": shown(x=add(["y", 1], 1), y=number()),
    "negative slot out of range": shown(x=add(["y", -2], 1), y=number()),
    "slot of an output without slots": shown(x=add(["s", 0], 1), s=show(["y", 0]), y=number()),
    "slot is a fraction": shown(x=add(["y", 0.0], 1), y=number()),
    "slot is text": shown(x=add(["y", "0"], 1), y=number()),
    "wrong type": shown(x=add(["y", 0], 1), y=node("ToyText", text="z")),
    "wrong type and a missing input": shown(
        x=node("ToyAdd", a=["y", 0]), y=node("ToyText", text="z")
    ),
    "wrong type among several": shown(x=node("ToyAny", two=["y", 0]), y=node("ToyFloat", value=0)),
    "not a number": shown(x=number("many")),
    "null for a number": shown(x=number(None)),
    "infinite number": shown(x=number(math.inf)),
    "object for a number": shown(x=number({"a": 1})),
    "wrapped list for a number": shown(x=number({"__value__": [1, 2]})),
    "not a fraction": shown(x=node("ToyFloat", value="half")),
    "too small": shown(x=number(-1)),
    "too big": shown(x=number(101)),
    "too big as text": shown(x=number("101")),
    "fraction too small": shown(x=node("ToyFloat", value=-1.5)),
    "not a choice": shown(x=node("ToyChoice", choice="c")),
    "not a choice of many": shown(x=node("ToyChoice", choice="a", file="file 99")),
    "not a choice of a combo": shown(x=node("ToyChoice", choice="a", combo="z")),
    "not choices": shown(x=node("ToyChoice", choice="a", several={"__value__": ["x", "z", "w"]})),
    "choice of a combo without options": shown(x=node("ToyChoice", choice="a", bare=1)),
    "number for a choice": shown(x=node("ToyChoice", choice=3)),
    "all wrong": shown(
        x=node("ToyChoice", choice="c", file="f", combo="z"), y=add("many", ["x", 0])
    ),
    "self loop": shown(x=add(["x", 0], 1)),
    "output linked to itself": {"1": node("ToyShowAndPass", value=["1", 0])},
    "cycle": shown(x=add(["y", 0], 1), y=add(["z", 0], 1), z=add(["x", 0], 1)),
    "cycle of wrong values": shown(x=add(["y", 0], "many"), y=add("few", ["x", 0])),
    "cycle below a good node": shown(x=add(["y", 0], ["z", 0]), y=add(["x", 0], 1), z=number()),
    "two cycles": shown(x=add(["y", 0], ["z", 0]), y=add(["x", 0], 1), z=add(["x", 0], ["y", 0])),
    "cycle entered twice": {
        "x": add(["y", 0], 1),
        "y": add(["x", 0], 1),
        "show 1": show(["x", 0]),
        "show 2": show(["y", 0]),
    },
    "check refuses": shown(x=node("ToyChecked", value=3, other=1)),
    "check refuses in vain": shown(x=node("ToyChecked", value=2, other=7)),
    "check refuses and is refused": shown(x=node("ToyChecked", value=3, other=7)),
    "check of all refuses": shown(x=node("ToyCheckedAll", value=30, other=30)),
    "check of types refuses": shown(
        x=node("ToyCheckedTypes", value=["y", 1], other=1), y=node("ToyPair", value=1)
    ),
    "check of lists refuses": shown(x=node("ToyCheckedList", value=2, other=4)),
    "coroutine refuses": shown(x=node("ToyCheckedAsync", value=12, other=1)),
    "check fails": shown(x=node("ToyCheckFails", value=1, other=1)),
    "check fails on an output": shown(x=add(["y", 0], 1), y=node("ToyCheckFails", value=1)),
    "check of a missing input": shown(x=node("ToyChecked", other=1)),
    "class fails": shown(x=node("ToyInputsFail")),
    "class fails deep down": shown(
        x=add(["y", 0], "many"), y=add(["z", 0], 1), z=node("ToyInputsFail")
    ),
    "one good output": {
        "1": number(),
        "2": number(-5),
        "good": show(["1", 0]),
        "bad": show(["2", 0]),
    },
    "two bad outputs share a node": {
        "1": number(-5),
        "2": add(["1", 0], 1),
        "bad": show(["2", 0]),
        "worse": node("ToyShowAndPass", value="x"),
        "bad too": show(["1", 0]),
        "good": show(["4", 0]),
        "4": number(),
    },
}

GOOD = {
    "one number": shown(x=number("7")),
    "float for a number": shown(x=number(3.9)),
    "true for a number": shown(x=number(True)),
    "text for a switch": shown(x=node("ToyFloat", value="0.5", on="false")),
    "number for a text": shown(x=node("ToyText", text=12)),
    "null for a text": shown(x=node("ToyText", text=None)),
    "wrapped text": shown(x=node("ToyText", text={"__value__": ["a", "b"]})),
    "wrapped choices": shown(x=node("ToyChoice", choice="a", several={"__value__": ["x", "y"]})),
    "undeclared value": shown(x=add(1, 2, d=5)),
    "negative slot": shown(x=add(["y", -1], 1), y=number()),
    "slots": {
        "1": node("ToyPair", value=4),
        "2": node("ToyText", text=["1", 1]),
        "3": show(["2", 0]),
        "4": show(["1", 0]),
    },
    "diamond": {
        "4": show(["3", 0]),
        "3": add(["1", 0], ["2", 0]),
        "2": add(["0", 0], 2),
        "1": add(["0", 0], 1),
        "0": number(),
    },
    "outputs first": {
        "a": number(1),
        "b": add(["a", 0], 1),
        "c": add(["b", 0], 1),
        "last": show(["c", 0]),
        "first": show(["a", 0]),
        "both": node("ToyShowAndPass", value=["b", 0]),
        "after": show(["both", 0]),
    },
    "equal nodes": shown(a=number(), b=number(), x=add(["a", 0], ["b", 0])),
    "equal outputs": {"a": number(), "1": show(["a", 0]), "2": show(["a", 0])},
    "shared against equal": {
        "a": number(),
        "b": number(),
        "1": add(["a", 0], ["a", 0]),
        "2": add(["a", 0], ["b", 0]),
        "3": show(["1", 0]),
        "4": show(["2", 0]),
    },
    "nobody uses a node": shown(x=number(), y=add(["x", 0], 1), z=node("ToyChanged", value=1)),
    "a cycle that nobody uses": shown(x=number(), y=add(["z", 0], 1), z=add(["y", 0], 1)),
    "a missing node that nobody uses": shown(x=number(), y=add(["gone", 0], 1)),
    "lists": shown(s=node("ToySplit", count=3), x=add(["s", 0], 10)),
    "lists of two lengths": shown(
        s=node("ToySplit", count=3), t=node("ToySplit", count=2), x=add(["s", 0], ["t", 0])
    ),
    "lists of lists": shown(s=node("ToySplit", count=3), x=node("ToySplit", count=["s", 0])),
    "empty list": shown(s=node("ToySplit", count=0), x=node("ToyNumber", value=["s", 0])),
    "empty list with a value": shown(s=node("ToySplit", count=0), x=add(["s", 0], 1)),
    "list taken whole": shown(s=node("ToySplit", count=4), x=node("ToyTotal", values=["s", 0])),
    "value taken as a list": shown(x=node("ToyTotal", values=4, scale=3)),
    "shown for each": {"s": node("ToySplit", count=3), "x": show(["s", 0])},
    "lazy, one branch": shown(
        a=number(1), b=number(2), x=node("ToySwitch", on=True, yes=["a", 0], no=["b", 0])
    ),
    "lazy, for each": shown(
        s=node("ToySplit", count=2),
        a=number(1),
        b=number(2),
        x=node("ToySwitch", on=["s", 0], yes=["a", 0], no=["b", 0]),
    ),
    "lazy, of a constant": shown(x=node("ToySwitch", on=True, yes=4)),
    "lazy, both of one node": shown(
        a=number(1), x=node("ToySwitch", on=["a", 0], yes=["a", 0], no=["a", 0])
    ),
    "hidden id": {
        "a": node("ToyNamed", value=1),
        "b": node("ToyNamed", value=1),
        "1": show(["a", 0]),
        "2": show(["b", 0]),
    },
    "hidden prompt": shown(c=node("ToyChanged", value=5), x=node("ToyTold", value="3")),
    "not idempotent": {
        "a": node("ToyOnce", value=1),
        "b": node("ToyOnce", value=1),
        "1": show(["a", 0]),
        "2": show(["b", 0]),
    },
    "counter": shown(x=node("ToyCounter", value=1)),
    "changed": shown(x=node("ToyChanged", value=1)),
    "changed, static": shown(x=node("ToyChangedStatic", value=1)),
    "changed, coroutine": shown(x=node("ToyChangedAsync", value=1)),
    "changed, plain": shown(x=node("ToyChangedPlain", value=1)),
    "changed, linked": shown(y=number(), x=node("ToyChangedStatic", value=["y", 0])),
    "changed, an object": shown(x=node("ToyChangedObject", value=1)),
    "changed always": shown(y=node("ToyAlways", value=1), x=add(["y", 0], 1)),
    "changed, fails": shown(x=node("ToyChangedFails", value=1)),
    "checked": shown(x=node("ToyChecked", value=8, other=5)),
    "checked, all": shown(x=node("ToyCheckedAll", value=20, other=20)),
    "checked, types": shown(
        x=node("ToyCheckedTypes", value=["y", 0], other=1), y=node("ToyFloat", value=1)
    ),
    "checked, list": shown(x=node("ToyCheckedList", value=2, other=3)),
    "checked, coroutine": shown(x=node("ToyCheckedAsync", value=4, other=1)),
    "checked, never asked": shown(x=node("ToyCheckedNothing", value=4, other=1)),
    "checked, linked": shown(y=number(3), x=node("ToyCheckedAll", value=["y", 0], other=1)),
    "any": shown(
        y=number(), x=node("ToyAny", value=["y", 0], two=["y", 0], raw=["y", 0], more=["y", 0])
    ),
    "fails": shown(y=number(2), x=node("ToyFails", value=["y", 0], text="z")),
    "fails after another output": {
        "a": number(2),
        "1": show(["a", 0]),
        "b": node("ToyFails", value=1, text="z"),
        "2": show(["b", 0]),
    },
    "fails for the second": shown(
        s=node("ToySplit", count=3), x=node("ToyFails", value=["s", 0], text="z")
    ),
    "returns nothing": shown(x=node("ToyNothing", value=1)),
    "cannot be made": shown(x=node("ToyBroken", value=1)),
    "shows nothing": {"a": number(), "1": node("ToyQuiet", value=["a", 0])},
    "no result to show": {"1": show(5), "a": number()},
    "coroutine": shown(a=number(), x=node("ToyAsync", value=["a", 0])),
    "coroutine that never waits": shown(a=number(), x=node("ToyQuick", value=["a", 0])),
    "coroutine for each": shown(
        s=node("ToySplit", count=3), x=node("ToyAsync", value=["s", 0], seconds=0.01)
    ),
    "coroutines side by side": {
        "a": number(),
        "slow": node("ToyAsync", value=["a", 0], seconds=0.06),
        "fast": node("ToyAsync", value=["a", 0], seconds=0.02),
        "sum": add(["slow", 0], ["fast", 0]),
        "1": show(["sum", 0]),
        "2": show(["fast", 0]),
        "3": show(["a", 0]),
    },
    "coroutine fails": {
        "x": node("ToyAsync", value=13),
        "1": show(["x", 0]),
        "slow": node("ToyAsync", value=3, seconds=0.2),
        "2": show(["slow", 0]),
    },
}

# The same ends, told in our own words.
OTHER_WORDS = {
    "lazy, asks for what is not there": shown(x=node("ToyBadSwitch", on=True, yes=1)),
    "lazy, asks for what is not linked": shown(x=node("ToySwitch", on=False, yes=1)),
}

UNDECLARED_CIRCLE = shown(x=node("ToyAny", more=["y", 0]), y=node("ToyAny", more=["x", 0]))
