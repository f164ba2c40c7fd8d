"""Training programs as the compilers for GPUs and TPUs write them, beside those written by hand.

    python benchmarks/compiled.py                        # all, about two hours on 2 cores
    python benchmarks/compiled.py vit_s16 --targets h200:8 v5e:4x4
    python benchmarks/compiled.py --compare w5           # compare with compiled.json
    python benchmarks/compiled.py --table                # print the tables of compiled.json

No device is needed: pip install '.[plan-gpu,plan-tpu]', and JAX_PLATFORMS=cpu in the environment.
What the compilers say is exact and the same in each run, so it is compared without noise:
temporary memory, bytes updated in place, kernels in an iteration, exchanges between devices.

The nets are those of the peers (W1 to W6), ResNet-50, ViT-S and ViT-B of `thinkml.models`, and a
GPT of 124 million parameters. The batch grows with the number of devices. W1 to W6 have all data on
each device; for the others each holds its rows, as of streamed data.
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import pathlib
import sys

RECORDED = pathlib.Path(__file__).parent / 'compiled.json'
TARGETS = ('h200', 'h200:8', 'v5e:2x2', 'v5e:4x4', 'v5e:16x16', 'v6e:8x8')
# Rows of a device.
BATCHES = {
    'w1a': 32, 'w2': 128, 'w3': 32, 'w4': 64, 'w5': 32, 'w6': 32,
    'resnet50': 64, 'vit_s16': 64, 'vit_b16': 64, 'gpt': 4,
}  # fmt: skip
VOCABULARY, TOKENS, WIDTH, HEADS, LAYERS = 50304, 1024, 768, 12, 12
# What `--compare` allows: in a newer release, the compilers may schedule a little differently.
MORE_MEMORY, MORE_KERNELS, SMALL_BYTES = 1.05, 1.05, 2**18


def strategies_of(net, target):
    """Returns how the devices train together; sharded parameters where they are large."""
    if ':' not in target:
        return ('mirrored',)
    # jaxlib 0.10.2 can't read what libtpu 0.0.52 writes for FSDP and for W6 on a v6e.
    is_v6e = target.startswith('v6e')
    if is_v6e and net == 'w6':
        return ()
    is_large = net in ('vit_b16', 'gpt') and not is_v6e
    return ('mirrored', 'fsdp') if is_large or target == 'h200:8' else ('mirrored',)


# --- the nets ---------------------------------------------------------------------------------


def make_gpt():
    """Returns a GPT-2 of 124 million parameters, with the attention of `thinkml.models`."""
    import jax.numpy as jnp
    from flax import nnx

    from thinkml.models import dot_product_attention

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm1, self.norm2 = (nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
            self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
            self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
            self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
            self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

        def __call__(self, x):
            heads = (*x.shape[:2], HEADS, WIDTH // HEADS)
            qkv = jnp.split(self.qkv(self.norm1(x)), 3, axis=-1)
            mixed = dot_product_attention(*(part.reshape(heads) for part in qkv), is_causal=True)
            x = x + self.out(mixed.reshape(x.shape))
            return x + self.down(nnx.gelu(self.up(self.norm2(x))))

    class Gpt(nnx.Module):
        def __init__(self, rngs):
            self.tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
            self.positions = nnx.Embed(TOKENS, WIDTH, rngs=rngs)
            self.blocks = nnx.List(Block(rngs) for _ in range(LAYERS))
            self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)

        def __call__(self, x):
            x = self.tokens(x) + self.positions(jnp.arange(x.shape[1]))
            for block in self.blocks:
                x = block(x)
            return self.tokens.attend(self.norm(x))

    return Gpt(nnx.Rngs(0))


def case_of(net, target, strategy):
    """Returns the training to compile."""
    from flax import nnx
    from target_programs import Case

    from thinkml.training.compile_targets import open_target

    layout = open_target(target).layout(shards_state=strategy == 'fsdp')
    rows = BATCHES[net] * layout.num_devices
    is_small = net.startswith('w')  # such data is on each device
    settings = {'layout': layout, 'sharded': layout.num_devices > 1 and not is_small}
    if net == 'gpt':
        model = nnx.eval_shape(make_gpt)
        return Case(
            model, (rows, TOKENS), VOCABULARY, precision='bfloat16', tokens=True, **settings
        )
    if is_small:
        from peers.nets_flax import draw_net
        from peers.workloads import VOCABULARY as BYTES
        from peers.workloads import WORKLOADS

        workload = WORKLOADS[net]
        model = nnx.eval_shape(lambda: draw_net(workload))
        classes, tokens = (BYTES, True) if workload.net == 'gpt' else (10, False)
        return Case(model, (rows, *workload.shape), classes, tokens=tokens, **settings)
    from thinkml.models import create

    model = nnx.eval_shape(functools.partial(create, net, num_classes=1000))
    return Case(model, (rows, 224, 224, 3), 1000, precision='bfloat16', **settings)


# --- what the compilers say -------------------------------------------------------------------


def described(target, lowered):
    """Returns the facts of a compiled program; what is missing, if it does not fit."""
    from thinkml.core.xla.compiled_program import summed
    from thinkml.training.compile_targets import TargetMemoryError, open_target

    try:
        program = open_target(target).compile(lowered)
    except TargetMemoryError as error:
        return {'does_not_fit': error.needed_bytes}
    loops = program.loops
    dtypes = {}
    for one in program.collectives:
        if one.num_bytes > 1024:
            dtypes.setdefault(one.kind, set()).add(one.dtype)
    return {
        'temporaries': program.memory.temp_size_in_bytes,
        'arguments': program.memory.argument_size_in_bytes,
        'in_place': program.donated_bytes,
        'fusions': loops[0].kernels.get('fusion', 0) if loops else None,
        'kernels': loops[0].num_kernels if loops else None,
        'trip_count': loops[0].trip_count if loops else None,
        'host_transfers': sum(loop.host_transfers for loop in loops),
        'collectives': {
            kind: [count, num_bytes, sorted(dtypes.get(kind, ()))]
            for kind, (count, num_bytes) in summed(program.collectives).items()
        },
        'wide_products': wide_products(lowered),
    }


def wide_products(lowered):
    """Returns the number of products and convolutions that are computed in float32."""
    lines = lowered.as_text().splitlines()
    products = (line for line in lines if 'stablehlo.dot_general' in line or 'convolution(' in line)
    return sum('bf16' not in line for line in products)


def facts_of(key):
    """Returns the facts of ThinkML's programs and of the step written by hand."""
    import jax
    import numpy as np
    import target_programs as programs

    from thinkml.core.parallel.sharding import ONE_DEVICE
    from thinkml.core.xla.flop_count import count_flops

    net, target, strategy = key.split('/')
    case = case_of(net, target, strategy)
    state = programs.training_of(case).state
    leaves = jax.tree.leaves((state.params, state.opt_state, state.model_state))
    shard_bytes = [
        np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64) * leaf.dtype.itemsize
        for leaf in leaves
        if not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended)
    ]
    on_cpu = programs.training_of(case._replace(layout=ONE_DEVICE, sharded=False))
    step = jax.make_jaxpr(on_cpu.step)(on_cpu.state, programs.batch_of(case))
    return {
        'rows': case.x[0],
        'devices': case.layout.num_devices,
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        'state_bytes': int(sum(shard_bytes)),
        'flops': count_flops(step.jaxpr),
        'training': described(target, programs.lower_by_thinkml(case)),
        'by hand': described(target, programs.lower_by_hand(case)),
        'evaluation': described(target, programs.lower_evaluation(case)),
        'prediction': described(target, programs.lower_prediction(case)),
    }


# --- tables and the guard ---------------------------------------------------------------------


def megabytes(num_bytes):
    return f'{num_bytes / 1e6:,.1f}' if num_bytes < 1e8 else f'{num_bytes / 1e6:,.0f}'


def exchanged(facts):
    kinds = facts.get('collectives', {}).items()
    return ', '.join(
        f'{count} {kind} {megabytes(num_bytes)}' for kind, (count, num_bytes, _) in kinds
    )


def beside(ours, by_hand, key, text=str):
    """Returns the two numbers and their ratio."""
    ours, by_hand = ours.get(key), by_hand.get(key)
    if ours is None or by_hand is None:
        return f'{text(ours) if ours is not None else "none"}'
    return f'{text(ours)} / {text(by_hand)} ({ours / max(1, by_hand):.2f})'


def row_of(key, facts):
    net, target, strategy = key.split('/')
    ours, hand = facts['training'], facts['by hand']
    parts = [ours, *(facts[part] for part in ('evaluation', 'prediction'))]
    if any('does_not_fit' in part for part in parts):
        needed = megabytes(max(part.get('does_not_fit', 0) for part in parts))
        return [net, target, strategy, f'does not fit: {needed} of temporaries', *[''] * 6]
    temporaries = beside(ours, hand, 'temporaries', megabytes)
    if 'does_not_fit' in hand:
        temporaries += f' / does not fit: {megabytes(hand["does_not_fit"])}'
    return [
        net, target, strategy,
        temporaries,
        beside(ours, hand, 'kernels'),
        f'{megabytes(ours["in_place"])} of {megabytes(facts["state_bytes"])}',
        exchanged(ours) or 'none',
        exchanged(hand) or 'none',
        megabytes(facts['evaluation']['temporaries']),
        megabytes(facts['prediction']['temporaries']),
    ]  # fmt: skip


HEADER = (
    'net', 'target', 'strategy', 'temporaries / by hand', 'kernels / by hand', 'in place',
    'exchanged in a step', 'by hand', 'evaluation', 'prediction',
)  # fmt: skip


def print_table(recorded):
    print(f'| {" | ".join(HEADER)} |')
    print('| --- | --- | --- | ---: | ---: | ---: | --- | --- | ---: | ---: |')
    for key, facts in recorded.items():
        print(f'| {" | ".join(row_of(key, facts))} |')


def losses(key, before, now):
    """Returns what is worse than recorded, as lines."""
    worse = []
    for program in ('training', 'evaluation', 'prediction'):
        old, new = before[program], now[program]
        name = f'{key}, {program}'
        if 'does_not_fit' in new:
            if 'does_not_fit' not in old:
                worse.append(f'{name}: does not fit any more')
            continue
        if 'does_not_fit' in old:
            continue
        if new['temporaries'] > MORE_MEMORY * old['temporaries'] + SMALL_BYTES:
            worse.append(f'{name}: temporaries {old["temporaries"]:,} -> {new["temporaries"]:,}')
        if (new['kernels'] or 0) > MORE_KERNELS * (old['kernels'] or 0) + 1:
            worse.append(f'{name}: kernels {old["kernels"]} -> {new["kernels"]}')
        if new['in_place'] < old['in_place']:
            worse.append(f'{name}: updated in place {old["in_place"]:,} -> {new["in_place"]:,}')
        if new['host_transfers'] > old['host_transfers']:
            worse.append(f'{name}: the loop waits for the host')
        if new['trip_count'] != old['trip_count']:
            worse.append(f'{name}: loop of {old["trip_count"]} -> {new["trip_count"]} iterations')
        for kind, (_, num_bytes, _) in new['collectives'].items():
            recorded = old['collectives'].get(kind, [0, 0])[1]
            if num_bytes > MORE_MEMORY * recorded + SMALL_BYTES:
                worse.append(f'{name}: {kind} {recorded:,} -> {num_bytes:,} bytes')
    return worse


def main():
    parser = argparse.ArgumentParser(description='Compiles trainings for GPUs and TPUs.')
    parser.add_argument('nets', nargs='*', default=list(BATCHES), help='names such as w1a or gpt')
    parser.add_argument('--targets', nargs='+', default=list(TARGETS))
    parser.add_argument('--strategies', nargs='+', default=['mirrored', 'fsdp'])
    parser.add_argument('--compare', action='store_true', help='compare with compiled.json')
    parser.add_argument('--table', action='store_true', help='only print the tables')
    parser.add_argument('--jobs', type=int, default=2)
    options = parser.parse_args()
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if options.table:
        return print_table(recorded)
    keys = [
        f'{net}/{target}/{strategy}'
        for net in options.nets
        for target in options.targets
        for strategy in strategies_of(net, target)
        if strategy in options.strategies
    ]
    if options.compare and (unknown := [key for key in keys if key not in recorded]):
        sys.exit(f'Not in compiled.json: {", ".join(unknown)}')
    worse, spawn = [], multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(
        options.jobs, mp_context=spawn, max_tasks_per_child=1
    ) as pool:
        tasks = {pool.submit(facts_of, key): key for key in keys}
        for task in concurrent.futures.as_completed(tasks):
            key, facts = tasks[task], task.result()
            print(f'| {" | ".join(row_of(key, facts))} |', flush=True)
            if options.compare:
                worse += losses(key, recorded[key], facts)
                continue
            recorded[key] = facts
            order = {f'{n}/{t}/{s}': i for i, (n, t, s) in enumerate(all_cases())}
            in_order = dict(sorted(recorded.items(), key=lambda item: order.get(item[0], 0)))
            RECORDED.write_text(json.dumps(in_order, indent=1) + '\n')
    if worse:
        sys.exit('\n'.join(['Worse than recorded:', *worse]))


def all_cases():
    for net in BATCHES:
        for target in TARGETS:
            for strategy in strategies_of(net, target):
                yield net, target, strategy


if __name__ == '__main__':
    main()
