"""Compiled programs: the loops, kernels and collectives that XLA's text of a program shows."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
_NAME = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = ')
_OPCODE = re.compile(r' *([\w\-]+)\(')
_CALLED = re.compile(
    r'\b(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)'
    r'|\b(?:branch_computations|called_computations)=\{([^}]*)\}'
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
"""The kinds of exchange between devices, by XLA's names."""

# Operations that start no kernel: names for parts of memory, ends of what began, and copies between
# the memories of a TPU, which run beside the kernels.
_FREE = frozenset(
    {
        'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all',
        'partition-id', 'replica-id', 'while', 'call', 'conditional', 'opt-barrier',
        'async-done', 'async-update', 'copy-start', 'slice-start',
        *(f'{kind}-done' for kind in (*COLLECTIVES, 'copy', 'send', 'recv', 'slice')),
    }
)  # fmt: skip
# Operations that are kernels even if their result is a single number.
_UNITS = frozenset({'fusion', 'custom-call', 'reduce', *COLLECTIVES})
_HOST_TRANSFERS = frozenset({'infeed', 'outfeed', 'send', 'recv'})


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
        name: its name in the program.
        shape: the text of its shape.
        opcode: XLA's name of the operation.
        rest: the operands and attributes.
    """

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def num_bytes(self) -> int:
        """Returns the bytes of its result, or of all parts of it."""
        return shape_bytes(self.shape)

    @property
    def is_kernel(self) -> bool:
        """Returns True if it starts an operation on the device.

        Single numbers outside of fusions are computed by a TPU's scalar core, beside the others.
        """
        is_scalar = self.opcode not in _UNITS and '[]' in self.shape.split('{')[0]
        return self.opcode not in _FREE and not is_scalar

    @property
    def calls(self) -> list[str]:
        """Returns the names of the computations it consists of, without a loop's condition."""
        found = _CALLED.findall(self.rest)
        return [
            name.strip(' %') for one, many in found for name in (one or many).split(',') if name
        ]


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a program.

    Attributes:
        trip_count: the number of its iterations; None if the program computes it while it runs.
        kernels: the number of operations that one iteration starts on the device, by opcode.
            Those of an inner loop are counted there.
        inner: the loops inside it.
    """

    trip_count: int | None
    kernels: Mapping[str, int]
    inner: tuple['Loop', ...]

    @property
    def num_kernels(self) -> int:
        """Returns the number of operations of one iteration, without those of inner loops."""
        return sum(self.kernels.values())

    @property
    def host_transfers(self) -> int:
        """Returns the number of operations that exchange data with the host, in all loops."""
        own = sum(count for opcode, count in self.kernels.items() if opcode in _HOST_TRANSFERS)
        return own + sum(loop.host_transfers for loop in self.inner)


class Collective(NamedTuple):
    """An exchange between devices.

    Attributes:
        kind: one of `COLLECTIVES`.
        num_bytes: the bytes of a device that take part: those of the larger of the arrays before
            and after the exchange.
        dtype: XLA's name of the dtype of the first array.
        in_loop: True if it happens in an iteration of a loop.
        operands: the number of arrays that are exchanged together.
        channel: XLA's number of the exchange; empty if it has none.
    """

    kind: str
    num_bytes: int
    dtype: str
    in_loop: bool
    operands: int
    channel: str


class UnreadableProgramError(ValueError):
    """An error for a compiled program whose text this version of JAX can't read.

    Attributes:
        memory: the memory of the program, which is known.
    """

    def __init__(self, message: str, memory: Any):
        super().__init__(message)
        self.memory = memory


class CompiledProgram:
    """The structure of a compiled program.

    Args:
        compiled: the result of ``jax.jit(...).lower(...).compile()``.

    Raises:
        UnreadableProgramError: if the compiler is newer than JAX and wrote something it can't read.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core.xla.compiled_program import CompiledProgram
        >>> def body(x, _):
        ...     return jnp.sin(x), None
        >>> scan = jax.jit(lambda x: jax.lax.scan(body, x, length=5))
        >>> program = CompiledProgram(scan.lower(jnp.ones(3)).compile())
        >>> [loop.trip_count for loop in program.loops]
        [5]
    """

    def __init__(self, compiled: Any):
        self.memory = compiled.memory_analysis()
        try:
            self.text = compiled.as_text()
        except jax.errors.JaxRuntimeError as error:
            raise UnreadableProgramError(str(error), self.memory) from error
        self._computations, self._entry = _parse(self.text)

    @property
    def loops(self) -> tuple[Loop, ...]:
        """Returns the outermost loops."""
        return self._loops_in(self._entry)

    @property
    def collectives(self) -> list[Collective]:
        """Returns all exchanges between devices."""
        found = list(self._collectives_in(self._entry, in_loop=False))
        # A TPU splits an exchange over several fusions, which repeat it under the same number.
        return list({(one.kind, one.channel or -i): one for i, one in enumerate(found)}.values())

    @property
    def donated_bytes(self) -> int:
        """Returns the bytes of arguments that are updated in place."""
        return self.memory.alias_size_in_bytes

    def _loops_in(self, computation: str) -> tuple[Loop, ...]:
        found = []
        for instruction in self._flat(computation):
            if instruction.opcode == 'while':
                trip_count = _TRIP_COUNT.search(instruction.rest)
                (body,) = instruction.calls
                kernels = Counter(inner.opcode for inner in self._flat(body) if inner.is_kernel)
                found.append(
                    Loop(
                        None if trip_count is None else int(trip_count[1]),
                        kernels,
                        self._loops_in(body),
                    )
                )
        return tuple(found)

    def _flat(self, computation: str) -> Iterator[Instruction]:
        """Yields the instructions of a computation and of those that it calls without a loop."""
        for instruction in self._computations[computation].values():
            yield instruction
            if instruction.opcode in ('call', 'conditional', 'async-start'):
                for name in instruction.calls:
                    yield from self._flat(name)

    def _collectives_in(self, computation: str, in_loop: bool) -> Iterator[Collective]:
        for instruction in self._computations[computation].values():
            kind = instruction.opcode.removesuffix('-start')
            if kind in COLLECTIVES:
                # A TPU's reduce-scatter is an all-reduce and a slice in one fusion.
                fused = kind == 'all-reduce' and computation.startswith('all-reduce-scatter')
                kind = 'reduce-scatter' if fused else kind
                yield self._collective(kind, instruction, computation, in_loop)
            elif instruction.opcode not in ('reduce', 'sort', 'scatter', 'map', 'reduce-window'):
                for name in instruction.calls:
                    yield from self._collectives_in(name, in_loop or instruction.opcode == 'while')

    def _collective(
        self, kind: str, instruction: Instruction, computation: str, in_loop: bool
    ) -> Collective:
        known = self._computations[computation]
        names = re.findall(r'%([\w.\-]+)', instruction.rest.split(')')[0])
        before = [known[name] for name in names if name in known]
        num_bytes = sum(operand.num_bytes for operand in before)
        after = instruction.num_bytes - (num_bytes if instruction.opcode.endswith('-start') else 0)
        dtype = _ARRAY.search(instruction.shape)
        channel = re.search(r'channel_id=(\d+)', instruction.rest)
        return Collective(
            kind,
            num_bytes=max(num_bytes, after),
            dtype='' if dtype is None else dtype[1],
            in_loop=in_loop,
            operands=len(before),
            channel='' if channel is None else channel[1],
        )


def shape_bytes(shape: str) -> int:
    """Returns the bytes of the arrays in the text of a shape, such as ``'(f32[2,3], pred[])'``."""
    return sum(_array_bytes(dtype, sizes) for dtype, sizes in _ARRAY.findall(shape))


def _array_bytes(dtype: str, sizes: str) -> int:
    digits = re.match(r'[a-z]+(\d+)', dtype)
    bits = 8 if dtype == 'pred' or digits is None else int(digits[1])
    return math.prod(map(int, filter(None, sizes.split(',')))) * bits // 8


def summed(collectives: Iterable[Collective]) -> dict[str, tuple[int, int]]:
    """Returns the number and the bytes of exchanges by kind."""
    counts, sizes = Counter(), Counter()
    for collective in collectives:
        counts[collective.kind] += 1
        sizes[collective.kind] += collective.num_bytes
    return {kind: (counts[kind], sizes[kind]) for kind in COLLECTIVES if counts[kind]}


def _parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Returns the instructions of each computation by name, and the name of the first one."""
    computations, entry, current = {}, '', {}
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header is not None:
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
            continue
        instruction = _instruction(line)
        if instruction is not None:
            current[instruction.name] = instruction
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    name = _NAME.match(line)
    if name is None:
        return None
    start = name.end()
    end = _end_of_shape(line, start)
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        return None
    return Instruction(name[1], line[start:end], opcode[1], line[opcode.end() :])


def _end_of_shape(line: str, start: int) -> int:
    """Returns the position after a shape: the first space outside of brackets."""
    depth = 0
    for position in range(start, len(line)):
        character = line[position]
        depth += (character in '([{') - (character in ')]}')
        if character == ' ' and depth == 0:
            return position
    return len(line)
