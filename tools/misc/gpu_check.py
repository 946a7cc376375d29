# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Try the project on GPUs and measure it: bash tools/gpu_check.sh.

This process imports no PyTorch. Each part runs in processes of its own, which
are ended when its time is up.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from gpu_machine import Unusable, judge, look
from gpu_runs import BENCHMARK, REPO, Check, Failed, LeftOut

LEAST = 2  # minutes
GENERATE = '''
import sys
from pathlib import Path
sys.path.insert(0, 'tools/analysis_tools')
from benchmarking import index
index.generate(Path(sys.argv[1]), 0.01)
'''
TRAINING = '''
_base_ = [
    '{base}/models/{model}.py', '{base}/datasets/refshapes.py',
    '{base}/schedules/schedule_scratch.py', '{base}/default_runtime.py'
]
model = dict(backbone=dict(init_cfg=None))
image_size = {side}
optim_wrapper = dict(optimizer=dict(lr=3e-4))
train_cfg = dict(max_epochs=1000, val_interval={interval})
'''


@dataclass
class Plan:
    """What is measured."""
    configs: list[str]
    batches: list[int]
    modes: list[str]
    precision: str
    options: list[str]
    pictures: int
    training: dict
    train_seconds: float
    ranks: int


CONFIG = 'configs/cris/cris_{}_8xb8-amp-50e_refcoco-416x416.py'
GPU = Plan(
    configs=[CONFIG.format('r50'), CONFIG.format('r101')],
    batches=[8, 16, 32, 64],
    modes=['default', 'compile', 'channels-first', 'recompute'],
    precision='bf16', options=[], pictures=600,
    training=dict(model='cris_r50', side=224, interval=4), train_seconds=1e9,
    ranks=1)
CPU = Plan(
    configs=['configs/cris/cris_tiny_1xb8-6e_refshapes-128x128.py'],
    batches=[2, 4], modes=['default', 'recompute'], precision='fp32',
    options=['image_size=64'], pictures=24,
    training=dict(model='cris_tiny', side=64, interval=2), train_seconds=60,
    ranks=2)


def plan_for(machine: dict) -> Plan:
    gpus = machine['gpus']
    if not gpus:
        return CPU
    # Older ones only emulate bf16. NCCL connects no MIG slices.
    return replace(
        GPU,
        precision='bf16' if all(float(gpu['capability']) >= 8 for gpu in gpus)
        else 'fp16',
        ranks=1 if any('MIG' in gpu['name'] for gpu in gpus) else len(gpus))


def data(check: Check, limit: float, rows: list) -> None:
    """Write the sets that the other parts use."""
    check.run(sys.executable, '-c', GENERATE, check.folder / 'photographs',
              limit=limit)
    check.run('tools/dataset_converters/refshapes.py', '--out',
              check.folder / 'refshapes', '--num-train', check.plan.pictures,
              '--num-eval', 8 + check.plan.pictures // 20, limit=limit)


def tests(check: Check, limit: float, rows: list) -> None:
    workers = min(6, check.machine['cores'] // 2)
    text = check.run(sys.executable, '-m', 'pytest', '-q', '-m', 'not slow',
                     '-n', workers if workers > 1 else 0,
                     '-p', 'no:cacheprovider', 'tests/gpu', limit=limit)
    rows.append({'tests/gpu': text.strip().splitlines()[-1].strip('= ')})


def speed(check: Check, limit: float, rows: list) -> None:
    """A process for each model and way; what the time allows."""
    end, plan, failed = time.monotonic() + limit, check.plan, []
    for mode in plan.modes:
        # Each batch is compiled anew.
        batches = plan.batches[-2:-1] if mode == 'compile' else plan.batches
        for config in plan.configs:
            left = end - time.monotonic()
            name = f'{Path(config).name.split("_")[1]}, {mode}'
            try:
                if left < 10:
                    raise TimeoutError
                found = check.figures(
                    'train', config, '--mode', mode, '--precision',
                    plan.precision, '--batch', *batches, '--cfg-options',
                    *plan.options, *_set(check, 'train'), limit=left)
            except TimeoutError:
                check.note(f'no time for {name}')
                continue
            except Failed as error:
                failed.append(name)
                check.note(f'{name} failed: {error}')
                continue
            rows += found['training']
    if failed:
        raise Failed(', '.join(failed))
    if not rows:
        raise TimeoutError('no time for any model')


def evaluation(check: Check, limit: float, rows: list) -> None:
    config = check.plan.configs[0]
    found = check.figures(
        'test', config, '--precision', check.plan.precision, '--images',
        60 if check.machine['gpus'] else 4, '--expressions', 8,
        '--cfg-options', *check.plan.options, *_set(check, 'test'),
        limit=limit)
    rows.append({'what': 'tools/test.py, 7 expressions a picture',
                 'expressions/s': found['tests'][1]['expressions/s']})
    found = check.figures('model', config, '--api', 20, '--precision',
                          check.plan.precision, '--cfg-options',
                          *check.plan.options, limit=limit)
    rows.append({'what': 'CRISInferencer, 20 expressions a picture',
                 'expressions/s': 20 / found['calls'][0]['with 20, s']})


def loader(check: Check, limit: float, rows: list) -> None:
    """What one core loads, and how many cores one GPU needs."""
    found = check.figures('data', check.plan.configs[0], '--num', 200,
                          '--cfg-options', *check.plan.options,
                          *_set(check, 'train'), limit=limit)
    rate = 1000 / sum(part['ms'] for part in found['parts'])
    row = {'samples/s of one core': rate}
    speeds = [row['images/s'] for row in check.parts['speed']['rows']
              if row['mode'] == 'default'
              and isinstance(row['images/s'], float)]
    if speeds and check.machine['gpus']:
        row['cores for one GPU'] = max(speeds) / rate
    rows.append(row)


def ranks(check: Check, limit: float, rows: list) -> None:
    """Sums over all GPUs, and a sharded training on them."""
    if check.machine['gpus'] and not check.machine['nccl']:
        raise LeftOut('this PyTorch has no NCCL')
    file = check.folder / 'sums.json'
    check.run(sys.executable, '-m', 'torch.distributed.run', '--standalone',
              f'--nproc_per_node={check.plan.ranks}', BENCHMARK, 'allreduce',
              '--megabytes', 256 if check.machine['gpus'] else 4, '--json',
              file, limit=limit / 2)
    rows += json.loads(file.read_text())['sums']
    if check.plan.ranks == 1:
        del rows[0]['bus, GB/s']
    if not check.machine['gpus']:
        return
    sharded = next((REPO / 'configs/cris/sharded').glob('*.py'))
    check.run('bash', 'tools/dist_train.sh', sharded, check.plan.ranks,
              '--work-dir', check.folder / 'sharded', '--cfg-options',
              *_set(check, 'train'), *_set(check, 'val'),
              'train_dataloader.batch_size=2',
              f'val_dataloader.dataset.indices={8 * check.plan.ranks}',
              f'train_dataloader.dataset.indices={16 * check.plan.ranks}',
              'model.backbone.init_cfg=None', 'train_cfg.max_epochs=1',
              'default_hooks.logger.interval=1',
              limit=limit / 2,
              MASTER_PORT=str(20000 + os.getpid() % 9000))
    rows.append({'sharded training': f'8 steps on {check.plan.ranks} GPU(s)'})


def losses(check: Check, limit: float, rows: list) -> None:
    """One rank, two and four have the same losses."""
    if not check.machine['gpus']:
        raise LeftOut('without GPUs it takes minutes: pytest -m slow '
                      'tests/test_tools/test_ranks.py')
    if check.plan.ranks == 1:
        raise LeftOut('NCCL connects one GPU here')
    text = check.run(
        sys.executable, '-m', 'pytest', '-q', '-m', 'slow', '-k', 'losses',
        '-p', 'no:cacheprovider', 'tests/test_tools/test_ranks.py',
        limit=limit)
    rows.append({'losses': text.strip().splitlines()[-1].strip('= ')})


def training(check: Check, limit: float, rows: list) -> None:
    """RefShapes for a share of the time; then SIGTERM, as on a cluster."""
    plan, work = check.plan, check.folder / 'training'
    if limit < 30:
        raise LeftOut('there was no time left')
    config = check.folder / 'training.py'
    config.write_text(TRAINING.format(
        base=REPO / 'configs/_base_', **plan.training))
    options = ['default_hooks.logger.interval=1']
    options += [f'{part}_dataloader.dataset.data_root='
               f'{check.folder / "refshapes"}' for part in ('train', 'val')]
    if check.machine['gpus']:
        options += ['train_dataloader.batch_size=16',
                    'optim_wrapper.type=AmpOptimWrapper',
                    'optim_wrapper.dtype=' + dict(
                        bf16='bfloat16', fp16='float16')[plan.precision]]
    check.run('tools/train.py', config, '--work-dir', work, '--cfg-options',
              *options, limit=min(limit - 15, plan.train_seconds), stop=True)
    lines = [json.loads(line) for file in work.glob('*/vis_data/scalars.json')
             for line in file.read_text().splitlines()]
    found = [line for line in lines if 'loss' in line]
    scores = [line['mIoU'] for line in lines if 'mIoU' in line]
    if not found:
        raise Failed('no step was logged in this time')
    rows.append({
        'model': plan.training['model'], 'pixels': plan.training['side'],
        'steps': found[-1]['step'], 'first loss': found[0]['loss'],
        'last loss': found[-1]['loss'],
        'val mIoU so far, %': scores[-1] if scores else 'none yet'})


def _set(check: Check, part: str) -> list[str]:
    """Options: pictures as large as photographs."""
    return [f'{part}_dataloader.dataset.data_root='
            f'{check.folder / "photographs"}',
            f'{part}_dataloader.dataset.data_prefix.img_path=train2014']


def _commit() -> str:
    done = subprocess.run(['git', 'describe', '--always', '--dirty'],
                          cwd=REPO, capture_output=True, text=True)
    return done.stdout.strip() or 'unknown'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--minutes', type=float, default=10,
                        help='for all parts together (default: 10)')
    parser.add_argument('--out', type=Path,
                        default=REPO / 'work_dirs/gpu_check',
                        help='folder of check.log, check.json and table.md '
                        '(default: work_dirs/gpu_check)')
    args = parser.parse_args()
    if not LEAST <= args.minutes < 1e6:
        parser.error(f'--minutes {args.minutes}: at least {LEAST}')
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    # The script has changed the folder.
    out = Path(os.environ.get('GPU_CHECK_FROM', '.'), args.out).absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / 'check.log').touch()  # fails now, if at all
        machine = look()
        remarks = judge(machine)
    except (OSError, Unusable) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print('\n'.join(remarks))
    machine.update(remarks=remarks, minutes=args.minutes, commit=_commit(),
                   date=time.strftime('%Y-%m-%d'))
    check = Check(out, args.minutes, machine, plan_for(machine))
    print(f'Log: {check.log}')
    try:
        parts = {data: 1, tests: 4, ranks: 2, losses: 3, training: 4,
                 speed: 6, loader: 1, evaluation: 2}
        while parts:
            part, weight = next(iter(parts.items()))
            check.try_part(part, weight / sum(parts.values()))
            del parts[part]
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    finally:
        check.close()
    print(f'\n{(check.out / "table.md").read_text()}')
    unfinished, failed = (
        [name for name, part in check.parts.items()
         if part['status'].startswith(status)]
        for status in ('unfinished', 'failed'))
    if unfinished:
        print(f'{", ".join(unfinished)} found no time: give more --minutes')
    if failed:
        print(f'error: {", ".join(failed)} failed, see {check.log}',
              file=sys.stderr)
    return len(failed) > 0


if __name__ == '__main__':
    sys.exit(main())
