"""Our runner against ComfyUI's own validation and executor: same answers, order, events, cache.

ComfyUI keeps outputs and inputs in sets of strings, so their order depends on the process. Here its
module gets sets that keep the order of insertion, which is the order that ours defines.
"""

import asyncio
import copy
import json
import os
import threading

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from lora_workbench.headless.graph import Progress, Runner, validate

from ..graph_examples import (
    BAD,
    GOOD,
    OTHER_WORDS,
    TOYS,
    UNDECLARED_CIRCLE,
    add,
    node,
    number,
    show,
    shown,
)
from .conftest import EventLog

pytestmark = pytest.mark.comfyui("0.30.0", "answers and events are those of 0.30")

EXTRA = {"client_id": "tests", "extra_pnginfo": {"workflow": {"nodes": []}}}
FUZZ = settings(
    deadline=None,
    derandomize=True,
    max_examples=int(os.environ.get("LORA_WORKBENCH_FUZZ", "60")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class OrderedSet(dict):
    """A set that keeps the order of insertion."""

    def __init__(self, items=()):
        super().__init__(dict.fromkeys(items))

    def add(self, item):
        self[item] = None

    def union(self, other):
        return OrderedSet([*self, *other])


class Oracle:
    """ComfyUI's side."""

    def __init__(self):
        import execution

        self._execution = execution
        self.server = EventLog()
        options = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        cache = execution.CacheType.CLASSIC
        self._executor = execution.PromptExecutor(self.server, cache_type=cache, cache_args=options)

    def validate(self, prompt, targets=None):
        prompt = copy.deepcopy(prompt)
        answer = asyncio.run(self._execution.validate_prompt("id", prompt, targets))
        return (*answer, prompt)

    def run(self, prompt, outputs):
        self.server.events.clear()
        self._executor.execute(copy.deepcopy(prompt), "id", EXTRA, outputs)
        return self.server.events, self._executor.history_result["outputs"]


@pytest.fixture
def oracle(comfy, monkeypatch):
    import execution

    import nodes

    monkeypatch.setattr(execution, "set", OrderedSet, raising=False)
    for name, cls in TOYS.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, cls)
    return Oracle()


def bare(errors):
    """Without tracebacks, which name files; JSON, as clients see it."""

    def without(item):
        return {key: value for key, value in item.items() if key != "traceback"}

    return json.loads(json.dumps(errors), object_hook=without)


def compare_answers(oracle, prompt, targets=None):
    ok, error, outputs, node_errors, converted = oracle.validate(prompt, targets)
    ours = validate(prompt, TOYS, targets)
    assert (ours.ok, [*ours.outputs]) == (ok, outputs)
    assert bare(ours.error) == bare(error)
    assert bare(ours.node_errors) == bare(node_errors)
    if ours.prompt:
        assert bare(ours.prompt) == bare(converted)
    return ours


def comparable(events):
    """Without times, tracebacks and our own words; ``current_outputs`` comes from a set."""
    plain = []
    for name, data in events:
        data = {key: value for key, value in data.items() if key not in ("timestamp", "traceback")}
        if "current_outputs" in data:
            data["current_outputs"] = sorted(data["current_outputs"])
            if data["exception_type"].endswith((".LoraError", ".NodeInputError")):
                del data["exception_type"], data["exception_message"]
        plain.append((name, data))
    return plain


def compare_runs(oracle, runner, prompt):
    """Run on both sides; return what ours left."""
    checked = compare_answers(oracle, prompt)
    assert checked.ok
    events, outputs = oracle.run(checked.prompt, [*checked.outputs])
    seen = []
    result = runner.run(
        checked.prompt, "id", EXTRA, checked.outputs, lambda *event: seen.append(event)
    )
    assert seen.pop() == ("executing", {"node": None, "prompt_id": "id"})  # from ComfyUI's server
    assert comparable(seen) == comparable(events)
    assert result.outputs == outputs
    return result


@pytest.mark.parametrize("prompt", BAD.values(), ids=BAD.keys())
def test_bad_graphs_are_answered_as_comfyui_answers_them(prompt, oracle):
    answer = compare_answers(oracle, prompt)
    assert answer.error or answer.node_errors


@pytest.mark.parametrize("prompt", GOOD.values(), ids=GOOD.keys())
def test_good_graphs_run_as_in_comfyui_and_so_do_their_reruns(prompt, oracle):
    runner = Runner(TOYS)
    for _ in range(2):
        compare_runs(oracle, runner, prompt)


@pytest.mark.parametrize("prompt", OTHER_WORDS.values(), ids=OTHER_WORDS.keys())
def test_what_nodes_or_clients_do_wrong_ends_at_the_same_node(prompt, oracle):
    assert compare_runs(oracle, Runner(TOYS), prompt).status == "error"


def test_a_circle_of_undeclared_links_ends_at_the_same_node(oracle):
    checked = compare_answers(oracle, UNDECLARED_CIRCLE)
    events, _ = oracle.run(checked.prompt, [*checked.outputs])
    ((_, expected),) = [event for event in events if event[0] == "execution_error"]
    result = Runner(TOYS).run(checked.prompt, outputs=checked.outputs)
    assert (result.status, result.error["node_id"]) == ("error", expected["node_id"])


@pytest.mark.parametrize(
    "targets", [["bad"], ["good"], ["bad", "good", "nothing"], ["nothing"], []]
)
def test_chosen_outputs_are_answered_as_comfyui_answers_them(targets, oracle):
    compare_answers(oracle, BAD["one good output"], targets)


def test_bad_outputs_do_not_stop_good_ones(oracle):
    result = compare_runs(oracle, Runner(TOYS), BAD["two bad outputs share a node"])
    assert set(result.outputs) == {"good"}


CHANGES = [("c", "value", 5), ("b", "b", 2), ("a", "value", 3), ("unused", "value", 9)]


@pytest.mark.parametrize(("where", "name", "value"), CHANGES)
def test_a_change_runs_what_is_below_it(where, name, value, oracle):
    prompt = {
        "a": number(1),
        "b": add(["a", 0], 1),
        "c": number(2),
        "d": add(["b", 0], ["c", 0]),
        "e": add(["a", 0], ["a", 0]),
        "1": show(["d", 0]),
        "2": show(["e", 0]),
        "3": show(["b", 0]),
        "unused": node("ToyChanged", value=1),
    }
    runner = Runner(TOYS)
    compare_runs(oracle, runner, prompt)
    changed = copy.deepcopy(prompt)
    changed[where]["inputs"][name] = value
    below = {"c": "cd1", "b": "bd13", "a": "abde123", "unused": ""}[where]
    result = compare_runs(oracle, runner, changed)
    assert set(result.executed) == set(below)
    assert set(compare_runs(oracle, runner, prompt).executed) == set(below)  # old results are gone


def test_another_name_of_a_node_is_no_change(oracle):
    runner = Runner(TOYS)
    compare_runs(oracle, runner, GOOD["diamond"])
    renamed = json.loads(json.dumps(GOOD["diamond"]).replace('"2"', '"two"'))
    result = compare_runs(oracle, runner, renamed)
    assert (result.executed, len(result.cached)) == ((), 5)


def test_a_failed_run_keeps_what_was_done(oracle):
    runner = Runner(TOYS)
    prompt = GOOD["fails after another output"]
    compare_runs(oracle, runner, prompt)
    mended = {**prompt, "b": node("ToyFails", value=0, text="z")}
    assert compare_runs(oracle, runner, mended).executed == ("b", "2")


def test_an_interrupt_ends_the_run_before_the_next_call(oracle, monkeypatch):
    import nodes

    stop, here = threading.Event(), [nodes.interrupt_processing]
    total = TOYS["ToyAdd"].work

    def work(self, a, b, c=0):
        here[0]()
        return total(self, a, b, c)

    monkeypatch.setattr(TOYS["ToyAdd"], "work", work)
    prompt = shown(a=number(), b=add(["a", 0], 1), x=number(["b", 0]))
    checked = compare_answers(oracle, prompt)
    events, _ = oracle.run(checked.prompt, [*checked.outputs])
    here[0], seen = stop.set, []
    result = Runner(TOYS).run(
        checked.prompt, "id", EXTRA, checked.outputs, lambda *event: seen.append(event), stop
    )
    assert comparable(seen[:-1]) == comparable(events)
    assert (result.status, result.executed, stop.is_set()) == ("interrupted", ("a", "b"), False)


def test_progress_is_shown_as_comfyui_shows_it(oracle, monkeypatch):
    """ComfyUI sends ``progress`` too, from a hook of its server that is not here."""
    from comfy_execution.progress import get_progress_state

    ours = Progress()
    tell = [lambda step: get_progress_state().update_progress("x", step, 3)]

    def work(self, value):
        for step in range(1, 4):
            tell[0](step)
        return (value,)

    monkeypatch.setattr(TOYS["ToyOnce"], "work", work)
    checked = compare_answers(oracle, shown(x=node("ToyOnce", value=1)))
    events, _ = oracle.run(checked.prompt, [*checked.outputs])
    tell[0], seen = lambda step: ours.report(step, 3), []
    Runner(TOYS, ours).run(
        checked.prompt, "id", EXTRA, checked.outputs, lambda *event: seen.append(event)
    )
    steps = [data for name, data in seen if name == "progress"]
    assert steps == [
        {"value": step, "max": 3, "prompt_id": "id", "node": "x"} for step in (1, 2, 3)
    ]
    assert comparable(e for e in seen[:-1] if e[0] != "progress") == comparable(events)


# --- graphs that nobody thought of ----------------------------------------------------------

# Failing classes hide what comes after them, and timers decide on an order.
SPOILERS = {"ToyInputsFail", "ToyBroken", "ToyBadSwitch", "ToyChoice"}
KINDS = sorted(set(TOYS) - SPOILERS)
JUNK = st.one_of(
    st.integers(-2, 102),
    st.floats(),
    st.booleans(),
    st.none(),
    st.sampled_from(["", "5", "a", "x", "true"]),
    st.just({}),
    st.fixed_dictionaries({"__value__": st.lists(st.integers(0, 2), max_size=2)}),
    st.lists(st.integers(0, 2), max_size=3),
)


def constant(kind):
    simple = {"INT": st.integers(0, 3), "BOOLEAN": st.booleans(), "STRING": st.sampled_from("ab")}
    return simple.get(kind, st.integers(0, 1))


def fitting(nodes, kind):
    """Links to outputs that fit an input."""
    return [
        [node_id, slot]
        for node_id, item in nodes.items()
        for slot, given in enumerate(TOYS[item["class_type"]].RETURN_TYPES)
        if "*" in (given, kind) or given in kind.split(",")
    ]


@st.composite
def graphs(draw, wild=False):
    """A graph of toys in any order of nodes; a wild one has links and values of any kind."""
    count = draw(st.integers(1, 9))
    ids = draw(st.permutations([str(number) for number in range(count)]))
    nodes = {}
    for node_id in ids:
        cls = draw(st.sampled_from(KINDS if nodes else ["ToyNumber", "ToySplit"]))
        types = TOYS[cls].INPUT_TYPES()
        inputs = {}
        for name, (kind, *_) in {**types.get("required", {}), **types.get("optional", {})}.items():
            if name in types.get("optional", {}) and draw(st.booleans()):
                continue
            links = fitting(nodes, kind)
            values = st.one_of(constant(kind), *([st.sampled_from(links)] * 3 if links else []))
            if wild:
                anywhere = st.tuples(st.sampled_from([*ids, "gone"]), st.integers(0, 1)).map(list)
                values = st.one_of(values, values, values, anywhere, JUNK)
            inputs[name] = draw(values)
        nodes[node_id] = node(cls, **inputs)
    for index in range(draw(st.integers(1, 3))):
        outputs = fitting(nodes, "*")
        nodes[f"show {index}"] = show(draw(st.sampled_from(outputs)) if outputs else 1)
    return {node_id: nodes[node_id] for node_id in draw(st.permutations(sorted(nodes)))}


def with_a_change(prompt, data):
    """The prompt with one of its constants changed."""
    changed = copy.deepcopy(prompt)
    places = [
        (item["inputs"], name)
        for item in changed.values()
        for name, value in item["inputs"].items()
        if isinstance(value, int) and not isinstance(value, bool)
    ]
    if places:
        inputs, name = data.draw(st.sampled_from(places))
        inputs[name] = 1 - min(inputs[name], 1)
    return changed


@FUZZ
@given(prompt=graphs(), data=st.data())
def test_any_graph_runs_as_in_comfyui_and_again_after_a_change(prompt, data, oracle):
    oracle, runner = Oracle(), Runner(TOYS)
    for graph in (prompt, with_a_change(prompt, data), prompt, prompt):
        if compare_answers(oracle, graph).ok:
            compare_runs(oracle, runner, graph)


@FUZZ
@given(prompt=graphs(wild=True))
def test_any_nonsense_is_answered_as_comfyui_answers_it(prompt, oracle):
    compare_answers(oracle, prompt)
