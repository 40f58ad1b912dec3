"""The arguments of an example, as a failure prints them: `case=Case(batch=3), lr=0.5`."""

from __future__ import annotations

import ast
from dataclasses import fields
from typing import Any

import torch

from lenet.exact_sgd import SGD
from properties import case
from properties.strategies import LossOptions, Placed, Vectors

RECIPES: dict[str, type[LossOptions | Placed | SGD | Vectors]] = {
    recipe.__name__: recipe for recipe in (LossOptions, Placed, SGD, Vectors)
}
DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
NUMBERS = {"nan": float("nan"), "inf": float("inf")}


def parse(text: str) -> dict[str, Any]:
    """Return the arguments; raises ValueError, with a one-line message, if the text has another form."""
    try:
        call = ast.parse(f"f({text}\n)", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError("not of the form that a failure prints, name=value, name=value")
    return {_name(keyword): _value(keyword.value) for keyword in call.keywords}


def _name(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("not of the form that a failure prints, name=value, name=value")
    return keyword.arg


def _value(node: ast.expr) -> Any:
    """Return the value of a literal, of a recipe, or of a dtype; raises ValueError for any other expression."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.Tuple(elts=elements):
            return tuple(map(_value, elements))
        case ast.List(elts=elements):
            return list(map(_value, elements))
        case ast.Set(elts=elements):
            return set(map(_value, elements))
        case ast.Call(func=ast.Name(id="set"), args=[], keywords=[]):
            return set()
        case ast.Name(id=name) if name in NUMBERS:
            return NUMBERS[name]
        case ast.Attribute(value=ast.Name(id="torch"), attr=name) if name in DTYPES:
            return DTYPES[name]
        case ast.Call(func=ast.Name(id="Case")):
            return case.parse(ast.unparse(node))
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords) if name in RECIPES:
            recipe, values = RECIPES[name], {_name(keyword): _value(keyword.value) for keyword in keywords}
            if unknown := values.keys() - {field.name for field in fields(recipe)}:
                raise ValueError(f"{name} has no field {min(unknown)!r}")
            return recipe(**values)
    raise ValueError(f"{ast.unparse(node)!r} is not a value that can be read")
