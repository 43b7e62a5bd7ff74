"""What a chat template writes before every answer, where that can be read from the template itself.

Whether the prompt of an answer is the beginning of the whole conversation is found out by rendering both. Most
templates go through the messages from the first to the last and look at nothing behind the one that they write:

    {% for message in messages %}...{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}

With these it must be so, and an answer begins behind each place where the words stand that ask for one. Those words
may depend on whose turn was last, and on nothing else.
"""

import functools
from collections.abc import Iterator

from jinja2 import TemplateSyntaxError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

SEEN_SO_FAR = ("first", "index", "index0", "previtem")
"""What a loop knows without looking ahead."""


@functools.lru_cache(maxsize=16)
def goes_forward(template: str) -> bool:
    """Whether no message is written otherwise for what comes behind it, and all answers are asked for in one way."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    try:
        body = _without_white_space(environment.parse(template).body)
    except TemplateSyntaxError:
        return False
    names = _names_of_messages(body)
    loops = [i for i, node in enumerate(body) if _is_loop(node, names)]
    if len(loops) != 1 or len(body) != loops[0] + 2:
        return False
    *before, question = body
    return not any(_looks_ahead(node, names) for node in before) and _asks_in_one_way(question)


def _without_white_space(body: list[nodes.Node]) -> list[nodes.Node]:
    return [
        node
        for node in body
        if not (
            isinstance(node, nodes.Output)
            and all(isinstance(part, nodes.TemplateData) and not part.data for part in node.nodes)
        )
    ]


def _names_of_messages(body: list[nodes.Node]) -> set[str]:
    """`messages`, and what is set to all of them or all but the first ones."""
    names = {"messages"}
    for node in body:
        for assign in [node] if isinstance(node, nodes.Assign) else node.find_all(nodes.Assign):
            if isinstance(assign.target, nodes.Name) and _is_all_or_the_rest(assign.node, names):
                names.add(assign.target.name)
    return names


def _is_all_or_the_rest(node: nodes.Node, names: set[str]) -> bool:
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        cut = node.arg
        node = node.node
        if not isinstance(cut.start, nodes.Const) or cut.stop is not None or cut.step is not None:
            return False
        if not isinstance(cut.start.value, int) or cut.start.value < 0:
            return False
    return isinstance(node, nodes.Name) and node.name in names


def _is_loop(node: nodes.Node, names: set[str]) -> bool:
    return isinstance(node, nodes.For) and _is_all_or_the_rest(node.iter, names) and not node.recursive


def _looks_ahead(node: nodes.Node, names: set[str], is_not_first: bool = False) -> bool:
    """Whether a node may read messages behind the one that is written, or whether an answer is asked for."""
    if isinstance(node, nodes.Name):
        return node.ctx == "load" and node.name in {*names, "add_generation_prompt", "loop"}
    if _is_loop_s(node):
        assert isinstance(node, nodes.Getattr)
        return node.attr not in SEEN_SO_FAR
    if isinstance(node, nodes.If) and any(
        _is_loop_s(each, "first") for each in node.test.find_all(nodes.Getattr)
    ):
        is_not_first = True
    return any(_looks_ahead(child, names, is_not_first) for child in _children(node, names, is_not_first))


def _is_loop_s(node: nodes.Node, attribute: str = "") -> bool:
    return (
        isinstance(node, nodes.Getattr)
        and isinstance(node.node, nodes.Name)
        and node.node.name == "loop"
        and attribute in ("", node.attr)
    )


def _children(node: nodes.Node, names: set[str], is_not_first: bool) -> Iterator[nodes.Node]:
    """The parts of a node but for mentions of the messages that are harmless."""
    for child in node.iter_child_nodes():
        if isinstance(node, nodes.For | nodes.Assign) and _is_all_or_the_rest(child, names):
            continue
        if isinstance(node, nodes.Test) and node.name == "defined" and _is_all_or_the_rest(child, names):
            continue
        if isinstance(child, nodes.Getitem) and isinstance(child.node, nodes.Name):
            if isinstance(child.arg, nodes.Const) and child.arg.value == 0:
                continue
            if is_not_first and _is_one_before(child.arg):  # for the first one, it would be the last
                continue
        yield child


def _is_one_before(index: nodes.Node) -> bool:
    """`loop.index0 - 1`."""
    return (
        isinstance(index, nodes.Sub)
        and _is_loop_s(index.left, "index0")
        and isinstance(index.right, nodes.Const)
        and index.right.value == 1
    )


def _asks_in_one_way(question: nodes.Node) -> bool:
    """Whether a node is `if add_generation_prompt`, and what it writes are constants."""
    return (
        isinstance(question, nodes.If)
        and isinstance(question.test, nodes.Name)
        and question.test.name == "add_generation_prompt"
        and not (question.elif_ or question.else_)
        and all(_is_constant(node) for node in question.body)
    )


def _is_constant(node: nodes.Node) -> bool:
    if isinstance(node, nodes.If) and _asks_whose_turn_was_last(node.test):
        return all(_is_constant(each) for each in (*node.body, *node.elif_, *node.else_))
    return isinstance(node, nodes.Output) and all(
        isinstance(part, nodes.TemplateData | nodes.Const) for part in node.nodes
    )


def _asks_whose_turn_was_last(test: nodes.Node) -> bool:
    """`messages[-1].role == 'user'`, written in one of the ways that there are."""
    if not isinstance(test, nodes.Compare) or not all(
        isinstance(each.expr, nodes.Const) for each in test.ops
    ):
        return False
    role = test.expr
    if isinstance(role, nodes.Getitem):
        named = isinstance(role.arg, nodes.Const) and role.arg.value == "role"
    else:
        named = isinstance(role, nodes.Getattr) and role.attr == "role"
    last = role.node if isinstance(role, nodes.Getitem | nodes.Getattr) else None
    return (
        named
        and isinstance(last, nodes.Getitem)
        and isinstance(last.node, nodes.Name)
        and isinstance(last.arg, nodes.Neg)
    )
