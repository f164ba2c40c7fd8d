"""The range of a model's outputs, by interval arithmetic on the equations of its forward pass."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from thinkml.core.xla.nested_calls import called_program
from thinkml.model_record import Task

# An activation is a few operations. What is further back is not looked at.
_NUM_EQUATIONS = 200
# Rounding adds at most this to a bound.
_ROUNDING = 1e-5


class Range(NamedTuple):
    """The range of an array's numbers.

    Attributes:
        low: a number that none is below.
        high: a number that none is above.
        name: the activation that they come from directly, ``'sigmoid'`` or ``'softmax'``; None
            for any other.
    """

    low: float = -math.inf
    high: float = math.inf
    name: str | None = None

    @property
    def is_constant(self) -> bool:
        """True if all numbers are the same."""
        return self.low == self.high

    @property
    def are_probabilities(self) -> bool:
        """True if all numbers are from 0 to 1."""
        within = self.low >= -_ROUNDING and self.high <= 1 + _ROUNDING
        return within and not self.is_constant


def output_range(jaxpr: Jaxpr, output: Any) -> Range:
    """Returns a range that holds all values of a variable; the true one may be smaller.

    Args:
        jaxpr: a forward pass.
        output: a variable of it.
    """
    interpreter = _Interpreter()
    with np.errstate(all='ignore'):  # numbers may be infinite
        values = interpreter.run(jaxpr, [interpreter.unknown() for _ in jaxpr.invars])
    return values[jaxpr.outvars.index(output)].range


def misread_outputs(found: Range, task: Task, own_loss: bool | None = None) -> str | None:
    """Returns a warning of outputs that are not logits, as which predictions and metrics read them.

    Args:
        found: the range of the model's outputs.
        task: the task that they are for.
        own_loss: True if the loss is a custom one, which gets the outputs as they are; None where
            there is no loss.

    Returns:
        the text; None where the outputs may be logits.
    """
    if not task.is_classification or found.is_constant:
        return None
    if found.are_probabilities:
        ends = f'it ends in a {found.name}' if found.name else 'its outputs are between 0 and 1'
        activation = found.name or 'sigmoid or softmax'
        if own_loss is False:
            return (
                f'model: {ends}, which the loss and the predictions apply as well. Return logits: '
                f'remove the {activation} from the model.'
            )
        advice = ' and apply it in the loss' if own_loss else ''
        return (
            f'model: {ends}, but predictions and metrics take what it returns for logits, to which '
            f'they apply the sigmoid or softmax themselves. Return logits: remove the {activation} '
            f'from the model{advice}.'
        )
    by_sign = task.kind == 'multilabel' or task.num_outputs == 1
    if by_sign and (found.low >= 0 or found.high <= 0):
        side, answer = ('below', 'yes') if found.low >= 0 else ('above', 'no')
        return (
            f'model: its outputs are never {side} 0, but predictions and metrics take them for '
            f'logits, where a number above 0 means yes: each row is predicted as {answer}. Return '
            'the outputs of a last layer without an activation.'
        )
    return None


class _Value(NamedTuple):
    """A variable of a program.

    Attributes:
        range: the range of its numbers.
        key: variables of equal keys hold equal numbers.
        above: pairs of a key and a boolean: it is never below the number of that key at the same
            place (False), or at any place of the axes that were reduced (True).
        cases: the keys and ranges of the numbers that ``where`` chose it from; empty for others.
    """

    range: Range
    key: int
    above: frozenset[tuple[int, bool]]
    cases: Mapping[int, Range]

    def is_above(self, key: int | None) -> bool:
        return (key, True) in self.above or (key, False) in self.above


class _Interpreter:
    """Computes the values of programs, one equation after another."""

    def __init__(self) -> None:
        self._keys: dict[tuple[Any, ...], int] = {}
        self._made: list[tuple[Any, ...]] = []  # by key: an operation and the keys of its operands
        self._values: dict[int, _Value] = {}  # by key

    def run(self, jaxpr: Jaxpr, operands: Sequence[_Value]) -> list[_Value]:
        """Returns the values of a program's outputs."""
        known: dict[Any, _Value] = dict(zip(jaxpr.invars, operands, strict=True))

        def value_of(variable: Any) -> _Value:
            if isinstance(variable, Literal):
                return self._literal(variable)
            if variable not in known:
                known[variable] = self.unknown()
            return known[variable]

        for eqn in jaxpr.eqns[-_NUM_EQUATIONS:]:
            results = self._apply(eqn, [value_of(variable) for variable in eqn.invars])
            known.update(zip(eqn.outvars, results, strict=False))
        return [value_of(variable) for variable in jaxpr.outvars]

    def unknown(self, low: float = -math.inf, high: float = math.inf) -> _Value:
        """Returns a value that equals no other one."""
        return self._value(Range(low, high), self._key(len(self._made)))

    def _literal(self, variable: Any) -> _Value:
        value = np.asarray(variable.val, np.float64)
        found = Range(float(value.min()), float(value.max())) if value.size else Range()
        return self._value(found, self._key('literal', value.tobytes()))

    def _value(
        self,
        found: Range,
        key: int,
        above: Iterable[tuple[int, bool]] = (),
        cases: Mapping[int, Range] = MappingProxyType({}),
    ) -> _Value:
        self._values[key] = _Value(found, key, frozenset({(key, False), *above}), cases)
        return self._values[key]

    def _key(self, *made: Any) -> int:
        if made not in self._keys:
            self._keys[made] = len(self._made)
            self._made.append(made)
        return self._keys[made]

    def _apply(self, eqn: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        """Returns the values of an equation; none of one that has no rule."""
        primitive = eqn.primitive.name
        if primitive in _SAME:
            return operands
        if primitive == 'cond':
            branches = (self.run(branch.jaxpr, operands[1:]) for branch in eqn.params['branches'])
            return [
                self.unknown(*_any_of(*(value.range for value in values))[:2])
                for values in zip(*branches, strict=True)
            ]
        inner = called_program(eqn)
        if inner is not None:
            return self.run(inner.jaxpr, operands)
        if primitive in _RULES and len(eqn.outvars) == 1:
            return [self._compute(eqn, operands)]
        return []

    def _compute(self, eqn: JaxprEqn, operands: list[_Value]) -> _Value:
        primitive = eqn.primitive.name
        cases = self._cases(*operands) if primitive == 'select_n' else {}
        ranges = list(cases.values()) or [value.range for value in operands]
        low, high, name = _RULES[primitive](eqn, *ranges)
        if math.isnan(low) or math.isnan(high):
            low, high = -math.inf, math.inf
        key = self._key(primitive, *(value.key for value in operands), str(eqn.params))
        if primitive == 'sub' and operands[1].is_above(operands[0].key):
            high = min(high, 0.0)
        if primitive == 'div':
            part, whole = operands
            is_share = part.range.low >= 0 and whole.is_above(part.key)
            if is_share or whole.is_above(self._keys.get(('abs', part.key, '{}'))):
                low, high = max(low, -1.0), min(high, 1.0)
            if (part.key, True) in whole.above and self._made[part.key][0] == 'exp':
                name = 'softmax'
        return self._value(Range(low, high, name), key, self._above(primitive, operands), cases)

    def _cases(self, which: _Value, *cases: _Value) -> dict[int, Range]:
        """Returns the keys of the numbers that a choice takes, and the ranges it takes them in."""
        primitive, *compared = self._made[which.key]
        is_for_nan = primitive == 'ne' and compared[0] == compared[1]
        if is_for_nan or which.range == Range(0, 0):
            cases = cases[:1]
        taken: dict[int, Range] = {}
        for is_true, case in enumerate(cases):
            for key, found in (case.cases or {case.key: case.range}).items():
                if primitive in _ORDERS and key in compared[:2]:
                    is_first = key == compared[0]
                    other = self._values[compared[is_first]].range
                    if is_true == (is_first == (primitive in ('lt', 'le'))):
                        found = Range(found.low, min(found.high, other.high))
                    else:
                        found = Range(max(found.low, other.low), found.high)
                if self._is_share_where(key, which.key, is_true):
                    found = Range(max(found.low, 0.0), min(found.high, 1.0))
                taken[key] = _any_of(found, taken.get(key, found))
        return taken

    def _is_share_where(self, key: int, *chosen: int) -> bool:
        """Returns True if numbers are at most 1 where a choice takes this case."""
        primitive, *operands = self._made[key]
        if primitive != 'div' or self._values[operands[0]].range.low < 0:
            return False
        part, whole = operands[:2]
        return self._values[whole].is_above(self._keys.get(('where', *chosen, part)))

    def _above(self, primitive: str, operands: list[_Value]) -> Iterator[tuple[int, bool]]:
        """Yields what a result is never below, except itself."""
        if primitive == 'select_n' and all(case.range.low >= 0 for case in operands[1:]):
            which, *cases = operands
            for number, case in enumerate(cases):
                yield self._key('where', which.key, number, case.key), False
        is_positive = all(value.range.low >= 0 for value in operands)
        for value, other in zip(operands, operands[::-1], strict=True):
            for key, of_axis in value.above:
                made = self._made[key]
                if primitive == 'reduce_max' or (primitive == 'reduce_sum' and is_positive):
                    yield key, True
                elif primitive in ('max', 'abs') or (primitive == 'add' and is_positive):
                    yield key, of_axis
                elif primitive in _PLACES and of_axis:
                    yield key, True
                elif primitive == 'log' and made[0] == 'exp':
                    yield made[1], of_axis
                elif primitive == 'add' and made[0] == 'sub' and self._are_same(made[2], other.key):
                    yield made[1], of_axis  # x - y + y is x

    def _are_same(self, *keys: int) -> bool:
        """Returns True if numbers are the same but for their places."""
        roots = set()
        for key in keys:
            while self._made[key][0] in _PLACES:
                key = self._made[key][1]
            roots.add(key)
        return len(roots) == 1


# --- rules ------------------------------------------------------------------------------------

Rule = Callable[..., Range]  # of an equation and the ranges of its operands

_SAME = ('convert_element_type', 'copy', 'optimization_barrier', 'stop_gradient')
_ORDERS = ('lt', 'le', 'gt', 'ge')
_PLACES = ('broadcast_in_dim', 'expand_dims', 'reshape', 'squeeze')


def _any_of(*ranges: Range) -> Range:
    return Range(min(one.low for one in ranges), max(one.high for one in ranges))


def _product(a: Range, b: Range) -> Range:
    ends = [0.0 if 0 in (x, y) else x * y for x in a[:2] for y in b[:2]]
    return Range(min(ends), max(ends))


def _quotient(a: Range, b: Range) -> Range:
    if b.high < 0:
        a, b = _negative(a), _negative(b)
    if b.low < 0 or b.high <= 0:
        return Range()
    return _product(a, Range(1 / b.high, 1 / b.low if b.low > 0 else math.inf))


def _negative(a: Range) -> Range:
    return Range(-a.high, -a.low)


def _magnitude(a: Range) -> Range:
    return Range(max(0.0, a.low, -a.high), max(-a.low, a.high))


def _whole_power(a: Range, exponent: int) -> Range:
    if exponent < 0:
        return _quotient(Range(1, 1), _whole_power(a, -exponent))
    base = a if exponent % 2 else _magnitude(a)
    return Range(*np.power(base[:2], float(exponent)).tolist())


def _power(a: Range, exponent: Range) -> Range:
    if a.low < 0 or not exponent.is_constant or exponent.low < 0:
        return Range()
    return Range(*np.power(a[:2], exponent.low).tolist())


def _sum(eqn: JaxprEqn, a: Range) -> Range:
    count = _size(eqn.invars[0].aval) // max(_size(eqn.outvars[0].aval), 1)
    return _product(a, Range(count, count))


def _size(array: Any) -> int:
    return math.prod(array.shape)


def _of_ranges(function: Callable[..., Range]) -> Rule:
    """Returns the rule of an operation that has no settings."""
    return lambda _, *ranges: function(*ranges)


def _rising(function: Callable[[float], Any]) -> Rule:
    """Returns the rule of a function that never falls."""
    return _of_ranges(lambda a: Range(float(function(a.low)), float(function(a.high))))


def _within(low: float, high: float, name: str | None = None) -> Rule:
    """Returns the rule of a function whose results are all within bounds."""
    return lambda *_: Range(low, high, name)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(('reshape', 'squeeze'), _of_ranges(lambda a: a)),
    # The same numbers, some of which may be left out.
    **dict.fromkeys(
        (
            'broadcast_in_dim', 'dynamic_slice', 'expand_dims', 'gather', 'reduce_max',
            'reduce_min', 'reduce_precision', 'rev', 'sharding_constraint', 'slice', 'sort',
            'transpose',
        ),
        _of_ranges(lambda a, *_: Range(a.low, a.high)),
    ),
    **dict.fromkeys(('concatenate', 'pad', 'select_n', 'stack'), _of_ranges(_any_of)),
    **dict.fromkeys((*_ORDERS, 'ne'), _within(-math.inf, math.inf)),
    **dict.fromkeys(
        ('cumprod', 'reduce_prod'),
        _of_ranges(lambda a: Range(0, 1) if a.low >= 0 and a.high <= 1 else Range()),
    ),
    'abs': _of_ranges(_magnitude),
    'add': _of_ranges(lambda a, b: Range(a.low + b.low, a.high + b.high)),
    'atan': _rising(math.atan),
    'ceil': _rising(np.ceil),
    'clamp': _of_ranges(
        lambda least, a, most: Range(
            min(max(a.low, least.low), most.low), min(max(a.high, least.high), most.high)
        )
    ),
    'cos': _within(-1, 1),
    'div': _of_ranges(_quotient),
    'eq': _of_ranges(
        lambda a, b: Range(0, 0) if a.high < b.low or b.high < a.low else Range()
    ),
    'erf': _rising(math.erf),
    'erfc': _of_ranges(lambda a: Range(math.erfc(a.high), math.erfc(a.low))),
    'exp': _rising(np.exp),
    'exp2': _rising(np.exp2),
    'floor': _rising(np.floor),
    'integer_pow': lambda eqn, a: _whole_power(a, eqn.params['y']),
    'log': _rising(lambda value: np.log(max(value, 0.0))),
    'log1p': _rising(lambda value: np.log1p(max(value, -1.0))),
    'logistic': _within(0, 1, 'sigmoid'),
    'max': _of_ranges(lambda a, b: Range(max(a.low, b.low), max(a.high, b.high))),
    'min': _of_ranges(lambda a, b: Range(min(a.low, b.low), min(a.high, b.high))),
    'mul': _of_ranges(_product),
    'neg': _of_ranges(_negative),
    'pow': _of_ranges(_power),
    'reduce_sum': _sum,
    'round': _rising(np.rint),
    'rsqrt': _within(0, math.inf),
    'sign': _rising(np.sign),
    'sin': _within(-1, 1),
    'sqrt': _rising(lambda value: math.sqrt(max(value, 0.0))),
    'square': _of_ranges(lambda a: _whole_power(a, 2)),
    'sub': _of_ranges(lambda a, b: Range(a.low - b.high, a.high - b.low)),
    'tanh': _rising(math.tanh),
}  # fmt: skip
