"""
Copies of definitions of this project, with all that they use, as one text that needs PyTorch and NumPy alone.

A `Bundle` starts from some functions. From their code objects it finds the global names that they read, adds the
definitions of these from this project, and so on; names of PyTorch, NumPy and Python become imports. Definitions in
`properties.stand_ins` replace those of the same name. Of the source it keeps the lines, but no annotation, no decorator
of pytest or Hypothesis, of a docstring the first line, and of a class only what something else uses.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import dis
import importlib
import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from types import CodeType, ModuleType
from typing import Any

STAND_INS = "properties.stand_ins"
PROJECT = ("lenet", "properties")
FOREIGN = ("pytest", "hypothesis", "tqdm")
"""Packages that a bundle may not import; a stand-in must replace each part of them that is used."""


class BundleError(ValueError):
    """A definition that cannot be copied; the message is one line that says why."""


@dataclass(frozen=True)
class Module:
    """The source of a module of this project, and its top-level statements by the names that they define."""

    name: str
    source: bytes
    starts: list[int]
    statements: dict[str, ast.stmt]

    def span(self, node: Any) -> tuple[int, int]:
        """Return where a node of the syntax tree begins and ends in the source, in bytes."""
        begin = self.starts[node.lineno - 1] + node.col_offset
        return begin, self.starts[node.end_lineno - 1] + node.end_col_offset

    def lines(self, node: Any) -> tuple[int, int]:
        """Return the span of all lines of a node, with the decorators if it has some."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        return self.starts[first - 1], self.starts[node.end_lineno]


@cache
def module_of(name: str) -> Module:
    """Return the module of this project with this name."""
    file = importlib.import_module(name).__file__
    assert file is not None, "modules of this project are files"
    with open(file, "rb") as opened:  # noqa: PTH123
        source = opened.read()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    statements: dict[str, ast.stmt] = {}
    for statement in ast.parse(source).body:
        for defined in _defined(statement):
            statements[defined] = statement
    return Module(name, source, starts, statements)


def _defined(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a top-level statement defines."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, (ast.Import, ast.ImportFrom)):
        for alias in statement.names:
            yield alias.asname or alias.name.partition(".")[0]
    elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for node in (node for target in targets for node in ast.walk(target)):
            if isinstance(node, ast.Name):
                yield node.id


@dataclass
class Bundle:
    """Definitions to copy."""

    recipes: frozenset[tuple[str, str]] = frozenset()  # functions of `properties.case`, and recipes that they build
    given: dict[str, tuple[str, str]] = field(default_factory=dict)  # by name: a module, and a statement as if of it
    features: frozenset[str] = frozenset()  # what lines of stand-ins that end with `# if FEATURE` are for
    last_lines: dict[str, int] = field(default_factory=dict)  # the line of the last statement to copy, by function
    texts: dict[str, str] = field(default_factory=dict)
    imports: set[tuple[str, str]] = field(default_factory=set)  # module and, for `from`, the imported name
    attributes: set[str] = field(default_factory=set)
    origins: dict[str, tuple[str, str]] = field(default_factory=dict)
    needs: dict[str, list[str]] = field(default_factory=dict)

    def add(self, roots: Iterable[tuple[str, str]]) -> None:
        """Add definitions by module and name, and all that they use."""
        before: Any = None
        while before != (len(self.attributes), len(self.texts)):
            before = len(self.attributes), len(self.texts)
            self.needs, self.texts, self.imports, self.origins = {}, {}, set(), {}
            for module, name in roots:
                self._require(module, name)

    def text(self, first: Iterable[str]) -> str:
        """Return the source: imports, the definitions named first, and the others, each after those that it uses."""
        ordered: dict[str, None] = {}
        for name in (*first, *self.texts):
            self._order(name, ordered, eager=name in first)
        imported: dict[str, list[str]] = {}
        for module, name in sorted(self.imports):
            imported.setdefault(module, []).append(name)
        lines = [f"import {name}" for name in imported.pop("", [])]
        lines += [f"from {module} import {', '.join(names)}" for module, names in imported.items()]
        standard = [line for line in lines if re.split(r"[ .]", line)[1] in sys.stdlib_module_names]
        others = [line for line in lines if line not in standard]
        parts = ["\n".join(["from __future__ import annotations", "", *standard, "", *others, ""])]
        previous = ""
        for text in dict.fromkeys(self.texts[name] for name in ordered):
            kind = "definition" if text.startswith(("def ", "class ", "@")) else "constant"
            parts.append(text if kind == previous == "constant" else f"\n{text}")
            previous = kind
        return "".join(parts)

    def _order(self, name: str, ordered: dict[str, None], eager: bool) -> None:
        """Add a definition after those that it uses, or, if it is a function to be read first, before them."""
        if name in ordered or name not in self.texts:
            return
        if eager and self.texts[name].startswith("def "):
            ordered[name] = None
            return
        pending = self.__dict__.setdefault("_pending", set())
        if name in pending:
            return
        pending.add(name)
        for needed in self.needs.get(name, ()):
            self._order(needed, ordered, eager=False)
        ordered[name] = None

    def _require(self, module: str, name: str) -> None:
        """Copy the definition of a global name that code in a module reads, and what it uses."""
        if name in self.given:
            self._add_text(self.given[name][0], name, self.given[name][1])
            return
        own = module_of(module)
        stand_ins = module_of(STAND_INS)
        replaced = stand_ins.statements.get(name)
        if replaced is not None and not isinstance(replaced, (ast.Import, ast.ImportFrom)):
            own = stand_ins
        statement = own.statements.get(name)
        if statement is None:
            if not hasattr(builtins, name) and not name.startswith("__"):
                raise BundleError(f"{module} reads {name}, which is not defined at its top level")
            return
        if isinstance(statement, ast.ImportFrom):
            source = str(statement.module)
            original = next(a.name for a in statement.names if (a.asname or a.name) == name)
            self._require_imported(source, original, name)
        elif isinstance(statement, ast.Import):
            alias = next(a for a in statement.names if (a.asname or a.name.partition(".")[0]) == name)
            if alias.name.partition(".")[0] in (*PROJECT, *FOREIGN):
                raise BundleError(f"{module} uses the module {alias.name} itself")
            self.imports.add(("", f"{alias.name} as {alias.asname}" if alias.asname else alias.name))
        else:
            self._copy(own, name, statement)

    def _require_imported(self, source: str, original: str, name: str) -> None:
        package = source.partition(".")[0]
        if package in FOREIGN:
            raise BundleError(f"{source}.{original} has no stand-in")
        if package not in PROJECT:
            self.imports.add((source, original if original == name else f"{original} as {name}"))
            return
        if isinstance(found := getattr(importlib.import_module(source), original), ModuleType):
            raise BundleError(f"the module {found.__name__} is used itself")
        if original not in module_of(source).statements:  # re-exported
            source = found.__module__
        self._require(source, original)

    def _copy(self, module: Module, name: str, statement: ast.stmt) -> None:
        if self.origins.setdefault(name, (module.name, name)) != (module.name, name):
            raise BundleError(f"two definitions have the name {name}")
        if name in self.needs:
            return
        self._add_text(module.name, name, _Copy(module, self).text(name, statement))

    def _add_text(self, module: str, name: str, text: str) -> None:
        if name in self.needs:
            return
        self.texts[name] = text
        names, attributes = reads(text)
        self.attributes |= attributes
        self.needs[name] = [read for read in names if read != name]
        for read in self.needs[name]:
            self._require(module, read)


@cache
def reads(text: str) -> tuple[list[str], set[str]]:
    """Return the global names and the attributes that a statement reads."""
    code = compile(text, "<bundle>", "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True)
    attributes = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    return list(dict.fromkeys(global_names(code))), attributes


def global_names(code: CodeType) -> Iterator[str]:
    """Yield the global names that code reads, also in nested functions and classes."""
    stored = set()
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_NAME":
            stored.add(instruction.argval)
        elif instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and instruction.argval not in stored:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from global_names(constant)


class _Copy:
    """The text of one statement, with the edits that the module's docstring names."""

    def __init__(self, module: Module, bundle: Bundle) -> None:
        self.module, self.bundle = module, bundle
        self.edits: list[tuple[int, int, bytes]] = []

    def text(self, name: str, statement: ast.stmt) -> str:
        """Return the edited source of the statement, with a newline at the end."""
        begin, end = self.module.span(statement)
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            begin = self.module.lines(statement)[0]
        if isinstance(statement, ast.FunctionDef) and name in self.bundle.last_lines:
            end = self._cut(statement, self.bundle.last_lines[name])
        self._visit(statement)
        source, position, parts = self.module.source, begin, []
        for start, stop, replacement in sorted(self.edits, key=lambda edit: (edit[0], -edit[1])):
            if start < position or start >= end:
                continue  # inside of what another edit removes, or after the last line to copy
            parts += [source[position:start], replacement]
            position = min(stop, end)
        edited = b"".join([*parts, source[position:end]]).decode()
        edited = "".join(filter(None, map(self._line, edited.splitlines(keepends=True))))
        return re.sub(r"\n{3,}", "\n\n", edited).strip() + "\n"

    def _line(self, line: str) -> str:
        """Return a line without comments for tools; empty if its comment is `# if` and a feature that is not needed."""
        code, marker, condition = line.partition("  # if ")
        if marker and condition.strip() not in self.bundle.features:
            return ""
        return re.sub(r" *# (type: ignore|noqa).*", "", f"{code}\n" if marker else line)

    def _cut(self, law: ast.FunctionDef, line: int) -> int:
        """Return where the statement of the law's body with this line ends."""
        for statement in law.body:
            if statement.lineno <= line <= (statement.end_lineno or 0):
                return self.module.span(statement)[1]
        return self.module.span(law)[1]

    def _replace(self, node: ast.AST, text: str) -> None:
        self.edits.append((*self.module.span(node), text.encode()))

    def _drop_lines(self, node: ast.AST) -> None:
        self.edits.append((*self.module.lines(node), b""))

    def _visit(self, node: ast.AST) -> None:
        """Note the edits of a node and of all nodes in it."""
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            self._visit_definition(node)
        elif isinstance(node, ast.AnnAssign) and node.value and not isinstance(node.target, ast.Subscript):
            self.edits.append((self.module.span(node.target)[1], self.module.span(node.annotation)[1], b""))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            self._visit_attribute(node, node.value.id)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__tracebackhide__":
            self._drop_lines(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(node, ast.ClassDef) and isinstance(child, ast.AnnAssign):
                self._visit_field(child)
                continue
            self._visit(child)

    def _visit_definition(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        for decorator in node.decorator_list:
            if not self._keeps(decorator):
                self._drop_lines(decorator)
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            summary = first.value.value.strip().partition("\n")[0]
            if len(node.body) == 1:
                self._replace(first, f'"""{summary}"""')
            else:
                indent = " " * first.col_offset
                begin, end = self.module.lines(first)
                self.edits.append((begin, end, f'{indent}"""{summary}"""\n'.encode()))
        if isinstance(node, ast.FunctionDef):
            self._drop_annotations(node)
            for statement, following in itertools.pairwise(node.body):
                if isinstance(statement, ast.Match) and self._visit_match(statement, node.name):
                    self._drop_lines(following)  # what an unknown recipe raises
        else:
            self._visit_class(node)

    def _keeps(self, decorator: ast.expr) -> bool:
        """Whether a decorator is one of Python, NumPy or PyTorch."""
        root: Any = decorator
        while not isinstance(root, ast.Name):
            root = root.func if isinstance(root, ast.Call) else root.value
        statement = self.module.statements.get(root.id)
        if statement is None:
            return hasattr(builtins, root.id)
        imported = statement.module if isinstance(statement, ast.ImportFrom) else None
        imported = imported or (statement.names[0].name if isinstance(statement, ast.Import) else "properties")
        return str(imported).partition(".")[0] not in (*PROJECT, *FOREIGN)

    def _drop_annotations(self, node: ast.FunctionDef) -> None:
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        unset = [None] * (len(positional) - len(arguments.defaults))
        pairs = [*zip(positional, [*unset, *arguments.defaults], strict=True)]
        pairs += [*zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
        pairs += [(argument, None) for argument in (arguments.vararg, arguments.kwarg) if argument]
        for argument, default in pairs:
            if argument.annotation is not None:
                begin = self.module.span(argument)[0] + len(argument.arg.encode())
                end = self.module.span(default)[0] if default else self.module.span(argument.annotation)[1]
                self.edits.append((begin, end, b"=" if default else b""))
        if node.returns is not None:
            begin, end = self.module.span(node.returns)
            arrow = self.module.source.rindex(b"->", 0, begin)
            self.edits.append((len(self.module.source[:arrow].rstrip()), end, b""))

    def _visit_class(self, node: ast.ClassDef) -> None:
        """Leave out what nothing uses of a class whose methods PyTorch does not call."""
        bases = [base for base in node.bases if getattr(base, "id", "") != "RuleBasedStateMachine"]
        if len(bases) < len(node.bases):
            begin = self.module.span(node.bases[0])[0] - 1
            self.edits.append((begin, self.module.span(node.bases[-1])[1] + 1, b""))
        if bases:
            return
        for number, member in enumerate(node.body):
            names = list(_defined(member))
            if isinstance(member, ast.AnnAssign) or not names or any(name.startswith("__") for name in names):
                continue
            if not self.bundle.attributes.intersection(names):
                self._drop_lines(member)
                following = node.body[number + 1 : number + 2]
                if following and isinstance(following[0], ast.Expr):
                    self._drop_lines(following[0])

    def _visit_field(self, field: ast.AnnAssign) -> None:
        """Keep the annotation of a dataclass's field if it names a type of Python."""
        names = [node.id for node in ast.walk(field.annotation) if isinstance(node, ast.Name)]
        if not all(hasattr(builtins, name) for name in names):
            self._replace(field.annotation, "object")

    def _visit_match(self, node: ast.Match, function: str) -> bool:
        """Leave out the code for other recipes than the example's; return whether it has one only."""
        needed = []
        for case in node.cases:
            value = getattr(getattr(case.pattern, "value", None), "value", None)
            begin = self.module.starts[case.pattern.lineno - 1]
            if (function, value) not in self.bundle.recipes:
                self.edits.append((begin, self.module.starts[case.body[-1].end_lineno or 0], b""))
            else:
                needed.append(case)
        if len(needed) == 1:  # its code, without the match
            begin, end = self.module.lines(needed[0].body[0])[0], self.module.lines(needed[0].body[-1])[1]
            indent = needed[0].body[0].col_offset - node.col_offset
            body = re.sub(rf"^ {{{indent}}}".encode(), b"", self.module.source[begin:end], flags=re.MULTILINE)
            self.edits.append((*self.module.lines(node), body))
        return len(needed) == 1

    def _visit_attribute(self, node: ast.Attribute, name: str) -> None:
        """Write a part of a module of this project, or of pytest, by its own name."""
        statement = self.module.statements.get(name)
        if name in module_of(STAND_INS).statements and name in ("oracle", "digits"):
            return
        if isinstance(statement, ast.Import) and statement.names[0].name.partition(".")[0] in (*PROJECT, *FOREIGN):
            self._replace(node, node.attr)
            if name in PROJECT:
                found = getattr(sys.modules[name], node.attr)
                self.module.statements.setdefault(node.attr, _import(found.__module__, node.attr))


def _import(module: str, name: str) -> ast.stmt:
    return ast.parse(f"from {module} import {name}").body[0]
