"""The range of a model's outputs, by interval arithmetic on the equations of its forward pass."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from thinkml.core.xla.traced_programs import called_program
from thinkml.tasks import Task

# An activation is a few operations, so earlier equations are not examined.
_NUM_EQUATIONS = 200
# The most that rounding adds to a bound.
_ROUNDING = 1e-5


class Range(NamedTuple):
    """The range of an array's values.

    Attributes:
        low: a lower bound.
        high: an upper bound.
        name: the activation that computes the values directly, ``'sigmoid'`` or ``'softmax'``;
            None for any other.
    """

    low: float = -math.inf
    high: float = math.inf
    name: str | None = None

    @property
    def is_constant(self) -> bool:
        """Returns True if all values are the same."""
        return self.low == self.high

    @property
    def are_probabilities(self) -> bool:
        """Returns True if all values are from 0 to 1 and they are not constant."""
        is_in_bounds = self.low >= -_ROUNDING and self.high <= 1 + _ROUNDING
        return is_in_bounds and not self.is_constant


def output_ranges(jaxpr: Jaxpr, num_outputs: int) -> tuple[Range, ...]:
    """Returns ranges that contain all values of outputs; the true ranges may be smaller.

    Args:
        jaxpr: a forward pass.
        num_outputs: the number of its first outputs whose ranges are returned.
    """
    interpreter = _Interpreter()
    with np.errstate(all='ignore'):  # bounds may be infinite
        values = interpreter.run(jaxpr, [interpreter.unknown() for _ in jaxpr.invars])
    return tuple(value.range for value in values[:num_outputs])


def misread_outputs(found: Range, task: Task, custom_loss: bool | None = None) -> str | None:
    """Returns a warning if the outputs can't be logits, which predictions and metrics expect.

    Args:
        found: the range of the model's outputs.
        task: the task of the model.
        custom_loss: True if the loss is a custom function, which gets the outputs unchanged; None
            if there is no loss.

    Returns:
        the text; None if the outputs may be logits.
    """
    if not task.is_classification or found.is_constant:
        return None
    if found.are_probabilities:
        ends = f'it ends in a {found.name}' if found.name else 'its outputs are between 0 and 1'
        activation = found.name or 'sigmoid or softmax'
        if custom_loss is False:
            return (
                f'model: {ends}, but the loss and the predictions apply it again. Return logits: '
                f'remove the {activation} from the model.'
            )
        advice = ' and apply it in the loss' if custom_loss else ''
        return (
            f'model: {ends}, but predictions and metrics expect logits and apply the sigmoid or '
            f'softmax themselves. Return logits: remove the {activation} from the model{advice}.'
        )
    by_sign = task.type.has_yes_no_outputs(task.num_outputs)
    if by_sign and (found.low >= 0 or found.high <= 0):
        side, answer = ('below', 'yes') if found.low >= 0 else ('above', 'no')
        return (
            f'model: its outputs are never {side} 0, but predictions and metrics expect logits, '
            f'where a number above 0 means yes: each row is predicted as {answer}. Return the '
            'outputs of a last layer without an activation.'
        )
    return None


class _Value(NamedTuple):
    """A variable of a program.

    Attributes:
        range: the range of its values.
        key: variables with equal keys have equal values.
        above: pairs of a key and a boolean. The variable is never below the variable with that
            key, at the same index (False) or at any index along the reduced axes (True).
        cases: the key and range of each value that ``where`` selects from; empty for others.
    """

    range: Range
    key: int
    above: frozenset[tuple[int, bool]]
    cases: Mapping[int, Range]

    def is_above(self, key: int | None) -> bool:
        """Returns True if it is never below the variable with this key."""
        return (key, True) in self.above or (key, False) in self.above


class _Interpreter:
    """An interpreter that computes the values of programs, one equation after another."""

    def __init__(self) -> None:
        self._keys: dict[tuple[Any, ...], int] = {}
        self._operations: list[tuple[Any, ...]] = []  # by key: a primitive and its operands' keys
        self._values: dict[int, _Value] = {}  # by key

    def run(self, jaxpr: Jaxpr, operands: Sequence[_Value]) -> list[_Value]:
        """Returns the values of a program's outputs."""
        values: dict[Any, _Value] = dict(zip(jaxpr.invars, operands, strict=True))

        def value_of(variable: Var | Literal) -> _Value:
            if isinstance(variable, Literal):
                return self._literal(variable)
            if variable not in values:
                values[variable] = self.unknown()
            return values[variable]

        for eqn in jaxpr.eqns[-_NUM_EQUATIONS:]:
            results = self._apply(eqn, [value_of(variable) for variable in eqn.invars])
            values.update(zip(eqn.outvars, results, strict=False))
        return [value_of(variable) for variable in jaxpr.outvars]

    def unknown(self, low: float = -math.inf, high: float = math.inf) -> _Value:
        """Returns a value that differs from all others."""
        return self._value(Range(low, high), self._key(len(self._operations)))

    def _literal(self, variable: Literal) -> _Value:
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

    def _key(self, *operation: Any) -> int:
        if operation not in self._keys:
            self._keys[operation] = len(self._operations)
            self._operations.append(operation)
        return self._keys[operation]

    def _apply(self, eqn: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        """Returns the values of an equation's results; an empty list if it has no rule."""
        primitive = eqn.primitive.name
        if primitive in _IDENTITIES:
            return operands
        if primitive == 'cond':
            branches = (self.run(branch.jaxpr, operands[1:]) for branch in eqn.params['branches'])
            return [
                self.unknown(*_union(*(value.range for value in values))[:2])
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
            part, total = operands
            is_fraction = part.range.low >= 0 and total.is_above(part.key)
            if is_fraction or total.is_above(self._keys.get(('abs', part.key, '{}'))):
                low, high = max(low, -1.0), min(high, 1.0)
            if (part.key, True) in total.above and self._operations[part.key][0] == 'exp':
                name = 'softmax'
        return self._value(Range(low, high, name), key, self._above(primitive, operands), cases)

    def _cases(self, condition: _Value, *cases: _Value) -> dict[int, Range]:
        """Returns the key and range of each value that ``where`` selects from.

        If the condition compares a value with another one, it limits the range of that value.
        """
        primitive, *compared = self._operations[condition.key]
        is_for_nan = primitive == 'ne' and compared[0] == compared[1]
        if is_for_nan or condition.range == Range(0, 0):
            cases = cases[:1]
        selected: dict[int, Range] = {}
        for is_true, case in enumerate(cases):
            for key, found in (case.cases or {case.key: case.range}).items():
                if primitive in _ORDERS and key in compared[:2]:
                    is_first = key == compared[0]
                    other = self._values[compared[is_first]].range
                    if is_true == (is_first == (primitive in ('lt', 'le'))):
                        found = Range(found.low, min(found.high, other.high))
                    else:
                        found = Range(max(found.low, other.low), found.high)
                if self._is_fraction_in_case(key, condition.key, is_true):
                    found = Range(max(found.low, 0.0), min(found.high, 1.0))
                selected[key] = _union(found, selected.get(key, found))
        return selected

    def _is_fraction_in_case(self, key: int, *case: int) -> bool:
        """Returns True if values are from 0 to 1 where ``where`` selects this case.

        Args:
            key: the key of the values.
            case: the key of the condition, and the number of the case.
        """
        primitive, *operands = self._operations[key]
        if primitive != 'div' or self._values[operands[0]].range.low < 0:
            return False
        part, total = operands[:2]
        return self._values[total].is_above(self._keys.get(('where', *case, part)))

    def _above(self, primitive: str, operands: list[_Value]) -> Iterator[tuple[int, bool]]:
        """Yields the entries of `_Value.above` for a result, except the result itself."""
        if primitive == 'select_n' and all(case.range.low >= 0 for case in operands[1:]):
            condition, *cases = operands
            for number, case in enumerate(cases):
                yield self._key('where', condition.key, number, case.key), False
        is_positive = all(value.range.low >= 0 for value in operands)
        for value, other in zip(operands, operands[::-1], strict=True):
            for key, is_reduced in value.above:
                name, *inner = self._operations[key]
                if primitive == 'reduce_max' or (primitive == 'reduce_sum' and is_positive):
                    yield key, True
                elif primitive in ('max', 'abs') or (primitive == 'add' and is_positive):
                    yield key, is_reduced
                elif primitive in _RESHAPES and is_reduced:
                    yield key, True
                elif primitive == 'log' and name == 'exp':
                    yield inner[0], is_reduced
                elif primitive == 'add' and name == 'sub' and self._are_same(inner[1], other.key):
                    yield inner[0], is_reduced  # x - y + y is x

    def _are_same(self, *keys: int) -> bool:
        """Returns True if values are the same up to their shape."""
        roots = set()
        for key in keys:
            while self._operations[key][0] in _RESHAPES:
                key = self._operations[key][1]
            roots.add(key)
        return len(roots) == 1


# --- rules ------------------------------------------------------------------------------------

Rule = Callable[..., Range]  # takes an equation and the ranges of its operands

_IDENTITIES = ('convert_element_type', 'copy', 'optimization_barrier', 'stop_gradient')
_ORDERS = ('lt', 'le', 'gt', 'ge')
_RESHAPES = ('broadcast_in_dim', 'expand_dims', 'reshape', 'squeeze')


def _union(*ranges: Range) -> Range:
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


def _integer_power(a: Range, exponent: int) -> Range:
    if exponent < 0:
        return _quotient(Range(1, 1), _integer_power(a, -exponent))
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


def _range_rule(function: Callable[..., Range]) -> Rule:
    """Returns the rule of an operation without parameters."""
    return lambda _, *ranges: function(*ranges)


def _monotonic(function: Callable[[float], Any]) -> Rule:
    """Returns the rule of a function that never decreases."""
    return _range_rule(lambda a: Range(float(function(a.low)), float(function(a.high))))


def _bounded(low: float, high: float, name: str | None = None) -> Rule:
    """Returns the rule of a function whose results are always within these bounds."""
    return lambda *_: Range(low, high, name)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(('reshape', 'squeeze'), _range_rule(lambda a: a)),
    # The results are some or all of the operand's values.
    **dict.fromkeys(
        (
            'broadcast_in_dim', 'dynamic_slice', 'expand_dims', 'gather', 'reduce_max',
            'reduce_min', 'reduce_precision', 'rev', 'sharding_constraint', 'slice', 'sort',
            'transpose',
        ),
        _range_rule(lambda a, *_: Range(a.low, a.high)),
    ),
    **dict.fromkeys(('concatenate', 'pad', 'select_n', 'stack'), _range_rule(_union)),
    **dict.fromkeys((*_ORDERS, 'ne'), _bounded(-math.inf, math.inf)),
    **dict.fromkeys(
        ('cumprod', 'reduce_prod'),
        _range_rule(lambda a: Range(0, 1) if a.low >= 0 and a.high <= 1 else Range()),
    ),
    'abs': _range_rule(_magnitude),
    'add': _range_rule(lambda a, b: Range(a.low + b.low, a.high + b.high)),
    'atan': _monotonic(math.atan),
    'ceil': _monotonic(np.ceil),
    'clamp': _range_rule(
        lambda least, a, most: Range(
            min(max(a.low, least.low), most.low), min(max(a.high, least.high), most.high)
        )
    ),
    'cos': _bounded(-1, 1),
    'div': _range_rule(_quotient),
    'eq': _range_rule(
        lambda a, b: Range(0, 0) if a.high < b.low or b.high < a.low else Range()
    ),
    'erf': _monotonic(math.erf),
    'erfc': _range_rule(lambda a: Range(math.erfc(a.high), math.erfc(a.low))),
    'exp': _monotonic(np.exp),
    'exp2': _monotonic(np.exp2),
    'floor': _monotonic(np.floor),
    'integer_pow': lambda eqn, a: _integer_power(a, eqn.params['y']),
    'log': _monotonic(lambda value: np.log(max(value, 0.0))),
    'log1p': _monotonic(lambda value: np.log1p(max(value, -1.0))),
    'logistic': _bounded(0, 1, 'sigmoid'),
    'max': _range_rule(lambda a, b: Range(max(a.low, b.low), max(a.high, b.high))),
    'min': _range_rule(lambda a, b: Range(min(a.low, b.low), min(a.high, b.high))),
    'mul': _range_rule(_product),
    'neg': _range_rule(_negative),
    'pow': _range_rule(_power),
    'reduce_sum': _sum,
    'round': _monotonic(np.rint),
    'rsqrt': _bounded(0, math.inf),
    'sign': _monotonic(np.sign),
    'sin': _bounded(-1, 1),
    'sqrt': _monotonic(lambda value: math.sqrt(max(value, 0.0))),
    'square': _range_rule(lambda a: _integer_power(a, 2)),
    'sub': _range_rule(lambda a, b: Range(a.low - b.high, a.high - b.low)),
    'tanh': _monotonic(math.tanh),
}  # fmt: skip
