"""The range of a model's outputs, by interval arithmetic on the equations of its forward pass."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from thinkml.record import Task

# An activation is a few operations; what is further back is not looked at.
_DEPTH = 40
# What rounding may add to a bound.
_ROUNDING = 1e-5


class Range(NamedTuple):
    """What numbers can be.

    Attributes:
        low: no number is below it.
        high: no number is above it.
        name: of the activation that they come from directly, ``'sigmoid'`` or ``'softmax'``; None
            for any other.
    """

    low: float = -math.inf
    high: float = math.inf
    name: str | None = None

    @property
    def is_constant(self) -> bool:
        """Whether all numbers are the same."""
        return self.low == self.high

    @property
    def are_probabilities(self) -> bool:
        """Whether all numbers are from 0 to 1."""
        within = self.low >= -_ROUNDING and self.high <= 1 + _ROUNDING
        return within and not self.is_constant


def output_range(jaxpr: Jaxpr, output: Any) -> Range:
    """Returns a range that holds all values of a variable; the true one may be smaller.

    Args:
        jaxpr: a forward pass.
        output: a variable of it.
    """
    return _Ranges(jaxpr).of(output)


def misread_outputs(found: Range, task: Task, own_loss: bool | None = None) -> str | None:
    """Words that outputs are no logits, which predictions and metrics take them for.

    Args:
        found: the range of the model's outputs.
        task: what they are to mean.
        own_loss: whether the loss is a custom one, which gets what the model returns; None where
            there is no loss.

    Returns:
        a sentence or two; None where the outputs may well be logits.
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
            f'logits, of which those above 0 mean yes: each row is predicted as {answer}. Return '
            'the outputs of a last layer without an activation.'
        )
    return None


class _Ranges:
    """The ranges of the variables of a program, or of a call within one."""

    def __init__(self, jaxpr: Jaxpr, arguments: dict[Any, Callable[[int], Range]] | None = None):
        self._made_by = {variable: eqn for eqn in jaxpr.eqns for variable in eqn.outvars}
        self._arguments = arguments or {}
        self._known: dict[Any, Range] = {}

    def of(self, variable: Any, depth: int = 0) -> Range:
        if isinstance(variable, Literal):
            value = np.asarray(variable.val, np.float64)
            return Range(float(value.min()), float(value.max())) if value.size else Range()
        if variable not in self._known:
            self._known[variable] = self._found(variable, depth + 1)
        return self._known[variable]

    def _found(self, variable: Any, depth: int) -> Range:
        if depth > _DEPTH:
            return Range()
        if variable in self._arguments:
            return self._arguments[variable](depth)
        eqn = self._made_by.get(variable)
        if eqn is None:
            return Range()
        primitive = eqn.primitive.name
        if primitive in _CALLS:
            return self._of_call(eqn, variable, depth)
        if primitive == 'select_n':
            return self._of_choice(eqn, depth)
        if primitive not in _RULES:
            return Range()
        low, high, name = _RULES[primitive](eqn, *(self.of(v, depth) for v in eqn.invars))
        if math.isnan(low) or math.isnan(high):
            return Range()
        if primitive == 'div' and self._is_share(eqn, depth):
            low, high = max(low, 0.0), min(high, 1.0)
            made = [part and part.primitive.name for part in map(self._made, eqn.invars)]
            name = 'softmax' if made == ['exp', 'reduce_sum'] else None
        if primitive == 'sub' and self._is_log_share(eqn, depth):
            high = min(high, 0.0)
        return Range(low, high, name)

    def _of_call(self, eqn: JaxprEqn, variable: Any, depth: int) -> Range:
        for value in eqn.params.values():
            inner = value.jaxpr if isinstance(value, ClosedJaxpr) else value
            if isinstance(inner, Jaxpr) and len(inner.invars) == len(eqn.invars):
                arguments = {
                    own: lambda depth, outer=outer: self.of(outer, depth)
                    for own, outer in zip(inner.invars, eqn.invars, strict=True)
                }
                output = inner.outvars[eqn.outvars.index(variable)]
                return _Ranges(inner, arguments).of(output, depth)
        return Range()

    def _of_choice(self, eqn: JaxprEqn, depth: int) -> Range:
        which, *cases = eqn.invars
        chosen = self._made(which)
        if chosen and chosen.primitive.name == 'ne' and chosen.invars[0] is chosen.invars[1]:
            cases = cases[:1]  # the other is for NaN
        return _any_of(*(self.of(case, depth) for case in cases))

    def _is_share(self, eqn: JaxprEqn, depth: int) -> bool:
        """Whether what is divided is a term of what it is divided by, none of them below 0."""
        part, whole = eqn.invars
        return self.of(part, depth).low >= 0 and self._has_term(
            whole, lambda term: self._are_same(term, part), depth
        )

    def _is_log_share(self, eqn: JaxprEqn, depth: int) -> bool:
        """Whether it is the logarithm of a share: ``x - log(sum(exp(x)))``, in either form."""
        part, whole = eqn.invars
        logarithm, largest = self._made(whole), None
        if logarithm is not None and logarithm.primitive.name == 'add':
            whole, largest = logarithm.invars  # log(sum(exp(x - largest))) + largest
            logarithm = self._made(whole)
        if logarithm is None or logarithm.primitive.name != 'log':
            return False

        def is_exp_of_part(term: Any) -> bool:
            exp = self._made(term)
            if exp is None or exp.primitive.name != 'exp':
                return False
            if largest is None:
                return self._are_same(exp.invars[0], part)
            moved = self._made(exp.invars[0])
            return (
                moved is not None
                and moved.primitive.name == 'sub'
                and self._are_same(moved.invars[0], part)
                and self._are_same(moved.invars[1], largest)
            )

        return self._has_term(logarithm.invars[0], is_exp_of_part, depth)

    def _has_term(
        self, total: Any, is_it: Callable[[Any], bool], depth: int, moved: bool = False
    ) -> bool:
        """Whether a number is at least a term of this kind, one at the same place or one summed.

        Args:
            total: the number.
            is_it: whether a variable is such a term, which is never below 0.
            depth: how far back it is.
            moved: whether the numbers were brought to other places, and not summed before.
        """
        if not moved and is_it(total):
            return True
        eqn = self._made(total)
        if eqn is None or depth > _DEPTH:
            return False
        moved = moved or eqn is not self._made(total, _SAME_PLACES)
        primitive, terms = eqn.primitive.name, eqn.invars
        if primitive == 'reduce_sum':
            moved = False
        elif primitive in ('add', 'max'):
            terms = terms if all(self.of(term, depth).low >= 0 for term in terms) else []
        elif primitive != 'abs':
            terms = []
        return any(self._has_term(term, is_it, depth + 1, moved) for term in terms)

    def _made(self, variable: Any, through: tuple[str, ...] | None = None) -> JaxprEqn | None:
        """The equation of a variable, before operations that leave its numbers as they are."""
        through = through or (*_SAME_PLACES, *_OTHER_PLACES)
        eqn = None if isinstance(variable, Literal) else self._made_by.get(variable)
        while eqn is not None and eqn.primitive.name in through:
            variable = eqn.invars[0]
            eqn = None if isinstance(variable, Literal) else self._made_by.get(variable)
        return eqn

    def _are_same(self, a: Any, b: Any, depth: int = 0) -> bool:
        """Whether two variables are the same, or come of the same operation on the same ones."""
        if isinstance(a, Literal) or isinstance(b, Literal):
            both = isinstance(a, Literal) and isinstance(b, Literal)
            return both and np.array_equal(a.val, b.val)
        if a is b:
            return True
        one, other = self._made(a, _SAME_PLACES), self._made(b, _SAME_PLACES)
        if one is None or other is None or len(one.outvars) > 1 or depth > 3:
            return False
        return one is other or (
            one.primitive is other.primitive
            and len(one.invars) == len(other.invars)
            and str(one.params) == str(other.params)
            and all(
                self._are_same(x, y, depth + 1)
                for x, y in zip(one.invars, other.invars, strict=True)
            )
        )


# --- rules ------------------------------------------------------------------------------------

Rule = Callable[..., Range]  # of an equation and the ranges of its operands

_CALLS = (
    'jit', 'pjit', 'closed_call', 'core_call', 'remat', 'remat2', 'checkpoint', 'custom_jvp_call',
    'custom_vjp_call', 'custom_vjp_call_jaxpr',
)  # fmt: skip
_SAME_PLACES = ('convert_element_type', 'copy', 'stop_gradient')
_OTHER_PLACES = ('broadcast_in_dim', 'reshape', 'squeeze')


def _any_of(*ranges: Range) -> Range:
    return Range(min(one.low for one in ranges), max(one.high for one in ranges))


def _times(a: float, b: float) -> float:
    return 0.0 if 0 in (a, b) else a * b


def _product(a: Range, b: Range) -> Range:
    ends = [_times(x, y) for x in a[:2] for y in b[:2]]
    return Range(min(ends), max(ends))


def _quotient(a: Range, b: Range) -> Range:
    if b.high < 0:
        a, b = Range(-a.high, -a.low), Range(-b.high, -b.low)
    if b.low < 0 or b.high <= 0:
        return Range()
    least, most = 1 / b.high, 1 / b.low if b.low > 0 else math.inf
    return _product(a, Range(least, most))


def _power(a: Range, exponent: int) -> Range:
    if exponent < 0:
        return _quotient(Range(1, 1), _power(a, -exponent))
    ends = [_to_power(a.low, exponent), _to_power(a.high, exponent)]
    if exponent % 2:
        return Range(min(ends), max(ends))
    return Range(0.0 if a.low < 0 < a.high else min(ends), max(ends))


def _to_power(value: float, exponent: int) -> float:
    try:
        return value**exponent
    except OverflowError:
        return math.copysign(math.inf, value) if exponent % 2 else math.inf


def _of_ranges(function: Callable[..., Range]) -> Rule:
    """The rule of an operation that has no settings."""
    return lambda _, *ranges: function(*ranges)


def _rising(function: Callable[[float], float]) -> Rule:
    """The rule of a function that never falls."""
    return _of_ranges(lambda a: Range(function(a.low), function(a.high)))


def _within(low: float, high: float, name: str | None = None) -> Rule:
    """The rule of a function whose results are all within bounds."""
    return lambda *_: Range(low, high, name)


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)


def _log(value: float) -> float:
    return -math.inf if value <= 0 else math.log(value)


def _sum(eqn: JaxprEqn, a: Range) -> Range:
    before, after = _size(eqn.invars[0].aval), _size(eqn.outvars[0].aval)
    count = before // max(after, 1)
    return _product(a, Range(count, count))


def _size(array: Any) -> int:
    return math.prod(array.shape)


def _kept(eqn: JaxprEqn, a: Range) -> Range:
    return a


def _moved(eqn: JaxprEqn, a: Range, *_: Range) -> Range:
    """The same numbers, of which some may be left out."""
    return Range(a.low, a.high)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(('convert_element_type', 'copy', 'reshape', 'squeeze'), _kept),
    **dict.fromkeys(
        (
            'broadcast_in_dim', 'dynamic_slice', 'expand_dims', 'reduce_max', 'reduce_min',
            'reduce_precision', 'rev', 'sharding_constraint', 'slice', 'stop_gradient', 'transpose',
        ),
        _moved,
    ),
    **dict.fromkeys(('concatenate', 'pad', 'stack'), _of_ranges(_any_of)),
    'abs': _of_ranges(
        lambda a: Range(max(0.0, a.low, -a.high), max(abs(a.low), abs(a.high)))
    ),
    'add': _of_ranges(lambda a, b: Range(a.low + b.low, a.high + b.high)),
    'atan': _rising(math.atan),
    'clamp': _of_ranges(
        lambda least, a, most: Range(
            min(max(a.low, least.low), most.low), min(max(a.high, least.high), most.high)
        )
    ),
    'cos': _within(-1, 1),
    'div': _of_ranges(_quotient),
    'erf': _rising(math.erf),
    'erfc': _of_ranges(lambda a: Range(math.erfc(a.high), math.erfc(a.low))),
    'exp': _rising(_exp),
    'integer_pow': lambda eqn, a: _power(a, eqn.params['y']),
    'log': _rising(_log),
    'log1p': _rising(lambda value: _log(1 + value)),
    'logistic': _within(0, 1, 'sigmoid'),
    'max': _of_ranges(lambda a, b: Range(max(a.low, b.low), max(a.high, b.high))),
    'min': _of_ranges(lambda a, b: Range(min(a.low, b.low), min(a.high, b.high))),
    'mul': _of_ranges(_product),
    'neg': _of_ranges(lambda a: Range(-a.high, -a.low)),
    'reduce_sum': _sum,
    'rsqrt': _within(0, math.inf),
    'sin': _within(-1, 1),
    'sqrt': _rising(lambda value: math.sqrt(max(value, 0.0))),
    'square': _of_ranges(lambda a: _power(a, 2)),
    'sub': _of_ranges(lambda a, b: Range(a.low - b.high, a.high - b.low)),
    'tanh': _rising(math.tanh),
}  # fmt: skip
