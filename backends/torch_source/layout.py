"""Generated text as a person would leave it: no line beyond 100 columns, and as formatters have it.

A long line is not broken: what is inside it gets a name and a line of its own.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

WIDTH = 100
SIGNS = {ast.Add: "total", ast.Sub: "difference", ast.Div: "ratio", ast.Pow: "power"}


def literal(value: object) -> str:
    """A constant of a table, its strings in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def entry(value: object, indent: int) -> list[str]:
    """A constant as one entry of a table: on one line, or an entry a line."""
    pad = " " * indent
    flat = f"{pad}{literal(value)},"
    if len(flat) <= WIDTH or not isinstance(value, tuple):
        return [flat]
    return [f"{pad}(", *(line for v in value for line in entry(v, indent + 4)), f"{pad}),"]


def laid_out(text: str) -> str:
    lines: list[str] = []
    for block in blocks(text.rstrip("\n").split("\n")):
        taken = set(re.findall(r"[^\W\d]\w*", "\n".join(block)))
        inside = False
        whole_block = "\n".join(block)
        for line in block:
            if " in s.stretches(" in line and len(re.findall(r"\bcut\b", whole_block)) == 1:
                line = line.replace(", cut in ", ", _ in ")
            quotes = line.count('"""')
            if inside or quotes:
                lines += wrapped_text(line)
                inside = inside != (quotes == 1)
            else:
                lines += laid_out_line(line, taken)
    return "\n".join(spaced(returned(lines))) + "\n"


def blocks(lines: list[str]) -> Iterator[list[str]]:
    """A function at a time: names are its own."""
    block: list[str] = []
    for line in lines:
        if line.lstrip().startswith(("def ", "class ")):
            yield block
            block = []
        block.append(line)
    yield block


def returned(lines: list[str]) -> list[str]:
    """What is returned as soon as it has a name needs none."""
    out: list[str] = []
    for line in lines:
        while m := re.match(r"^( *)return (\w+)$", line):
            named = f"{m.group(1)}{m.group(2)} = "
            if not out or not out[-1].startswith(named):
                break
            short = f"{m.group(1)}return {out[-1].removeprefix(named).split('  # ')[0]}"
            if len(short) > WIDTH or short.endswith("("):
                break
            line = short
            out.pop()
        out.append(line)
    return out


def spaced(lines: list[str]) -> Iterator[str]:
    """Two empty lines between what stands at the margin."""
    for i, line in enumerate(lines):
        if line.startswith("MODULE = "):
            yield ""
            if lines[i - 1]:
                yield ""
        yield line


def wrapped_text(line: str) -> list[str]:
    """A line of a docstring."""
    if len(line) <= WIDTH:
        return [line]
    pad = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(
        line.strip(), WIDTH, initial_indent=pad, subsequent_indent=pad, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def laid_out_line(line: str, taken: set[str]) -> list[str]:
    pad = " " * (len(line) - len(line.lstrip()))
    body = line.strip()
    if body.startswith("#"):
        if len(line) <= WIDTH:
            return [line]
        return textwrap.wrap(
            body[2:], WIDTH, initial_indent=f"{pad}# ", subsequent_indent=f"{pad}# "
        )
    code, mark, note = body.partition("  # ")
    code = in_style(code)
    if len(pad + code + mark + note) <= WIDTH:
        return [pad + code + mark + note]
    if code.startswith("def "):
        return head(code, pad)
    if len(pad + code) <= WIDTH:
        return [f"{pad}# {note}", pad + code]
    return [*([f"{pad}# {note}"] if note else []), *shortened(code, pad, taken)]


def in_style(code: str) -> str:
    """Quotes, powers and brackets as formatters have them."""
    if "'" in code and not re.search(r"f\".*'", code):
        code = re.sub(r"'([^'\"\\]*)'", r'"\1"', code)
    code = re.sub(r"(?<![\w.)\]])([\w.]+) \*\* (-?[\w.]+)(?![\w.(\[])", r"\1**\2", code)
    code = re.sub(r"^([\w, ]+,) = ", r"(\1) = ", code) if re.match(r"^\w+, = ", code) else code
    while m := re.match(r"^((?:return|[\w.]+ =) )\((.*)\)$", code):
        if not whole(m.group(2)):
            break
        code = m.group(1) + m.group(2)
    return single_brackets(code)


def single_brackets(code: str) -> str:
    """`f((x))` as `f(x)`."""
    for m in reversed(list(re.finditer(r"(?<=[\w\])])\(\(", code))):
        end = closing(code, m.start() + 1)
        if code[end + 1 : end + 2] == ")" and whole(code[m.end() : end]):
            code = code[: m.start() + 1] + code[m.end() : end] + code[end + 1 :]
    return code


def closing(code: str, at: int) -> int:
    """Where the bracket that opens at `at` closes."""
    depth = 0
    for i in range(at, len(code)):
        depth += (code[i] == "(") - (code[i] == ")")
        if not depth:
            return i
    return len(code)


def whole(inner: str) -> bool:
    """Whether the brackets around it are a pair, and no tuple."""
    try:
        return not isinstance(ast.parse(inner, mode="eval").body, ast.Tuple | ast.GeneratorExp)
    except SyntaxError:
        return False


def head(code: str, pad: str) -> list[str]:
    """A function's head whose arguments stand below it."""
    start, rest = code.split("(", 1)
    arguments, end = rest.rsplit(") ->", 1)
    inner = f"{pad}    {arguments}"
    given = [inner] if len(inner) <= WIDTH else [f"{pad}    {a}," for a in split(arguments)]
    return [f"{pad}{start}(", *given, f"{pad}) ->{end}"]


def split(arguments: str) -> list[str]:
    """At the commas that stand in no brackets."""
    parts, depth = [""], 0
    for c in arguments:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and not depth:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts if p.strip()]


def shortened(code: str, pad: str, taken: set[str]) -> list[str]:
    """Names for what is inside, until the rest fits."""
    lines: list[str] = []
    while len(pad + code) > WIDTH:
        opened = exploded(code, pad)
        if len(opened) == 3 and len(opened[1]) <= WIDTH:
            return lines + opened
        found = piece(code, pad, taken)
        if found is None:
            return lines + exploded(code, pad)
        name, inner, code = found
        lines += laid_out_line(f"{pad}{name} = {inner}", taken)
        code = in_style(code)
    return [*lines, pad + code]


def piece(code: str, pad: str, taken: set[str]) -> tuple[str, str, str] | None:
    """The part that leaves two lines of like length: its name, itself, and the line without it."""
    tree = ast.parse(code).body[0]
    value = getattr(tree, "value", None)
    if not isinstance(tree, ast.Assign | ast.Return) or value is None:
        return None
    raw = code.encode()
    long, best = len(pad) + len(code), None
    for node in inner_nodes(value):
        size = node.end_col_offset - node.col_offset
        rest, own = len(pad) + len(code) - size + 12, len(pad) + size + 16
        worse = max(rest, own)
        if size >= 16 and worse < long:
            long, best = worse, node
    if best is None:
        return None
    node = best
    a, b = node.col_offset, node.end_col_offset
    name = new_name(node, taken)
    before, inner, after = raw[:a].decode(), raw[a:b].decode(), raw[b:].decode()
    if before.endswith("(") and after.startswith(")") and not re.search(r"[\w\])]\($", before):
        before, after = before[:-1], after[1:]
    return name, inner, f"{before}{name}{after}"


def inner_nodes(value: ast.expr) -> Iterator[Any]:
    """What may have a name of its own: not the callee of a call, nor what a loop inside binds."""
    stack: list[ast.AST] = list(ast.iter_child_nodes(value))
    while stack:
        node = stack.pop()
        if isinstance(
            node, ast.DictComp | ast.ListComp | ast.GeneratorExp | ast.Lambda | ast.JoinedStr
        ):
            continue
        if isinstance(node, ast.Call | ast.BinOp):
            yield node
        stack.extend(ast.iter_child_nodes(node))


def new_name(node: ast.Call | ast.BinOp, taken: set[str]) -> str:
    wish = called(node)
    n = 1
    while f"{wish}_{n}" in taken:
        n += 1
    taken.add(f"{wish}_{n}")
    return f"{wish}_{n}"


def called(node: ast.Call | ast.BinOp) -> str:
    """What it is the result of; a change of axes has the name of what it changes."""
    if isinstance(node, ast.BinOp):
        return SIGNS.get(type(node.op), "product")
    function = node.func
    if isinstance(function, ast.Attribute):
        inner = function.value
        shape = ("transpose", "unsqueeze", "squeeze", "movedim", "flatten", "unflatten", "detach")
        if function.attr in shape and isinstance(inner, ast.Call):
            return called(inner)
        return function.attr
    return function.id if isinstance(function, ast.Name) else "value"


def exploded(code: str, pad: str) -> list[str]:
    """A call whose arguments stand below it, where none of them is worth a name."""
    start = code.find("(")
    if start < 0 or closing(code, start) != len(code) - 1:
        return [pad + code]
    arguments = code[start + 1 : -1]
    inner = f"{pad}    {arguments}"
    given = [inner] if len(inner) <= WIDTH else [f"{pad}    {a}," for a in split(arguments)]
    return [f"{pad}{code[:start]}(", *given, f"{pad})"]
