# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Try the project on GPUs and measure it: bash tools/gpu_check.sh.

This process imports no PyTorch. Each part runs in processes of its own, which
are ended when its time is up.
"""
import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from gpu_machine import Unusable, judge, look

REPO = Path(__file__).parents[2]
BENCHMARK = 'tools/analysis_tools/benchmark.py'
LEAST = 2  # minutes
#: Share of the time that a part may take, or 2 minutes (tests: 5), if longer.
SHARES = dict(tests=.25, speed=.4, training=1)
GENERATE = '''
import sys
from pathlib import Path
sys.path.insert(0, 'tools/analysis_tools')
from benchmarking import index
index.generate(Path(sys.argv[1]), 0.02)
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


CONFIG = 'configs/cris/cris_{}_8xb8-amp-50e_refcoco-416x416.py'
GPU = Plan(
    configs=[CONFIG.format('r50'), CONFIG.format('r101')],
    batches=[8, 16, 32, 64],
    modes=['default', 'compile', 'channels-first', 'recompute'],
    precision='bf16', options=[], pictures=1200,
    training=dict(model='cris_r50', side=224, interval=4), train_seconds=1e9)
CPU = Plan(
    configs=['configs/cris/cris_tiny_1xb8-3e_refshapes-160x160.py'],
    batches=[2, 4], modes=['default', 'recompute'], precision='fp32',
    options=['image_size=64'], pictures=24,
    training=dict(model='cris_tiny', side=64, interval=2), train_seconds=60)


class LeftOut(Exception):
    """Why a part was not tried."""


class Failed(Exception):
    """What went wrong in a part."""


class Check:
    """All parts.

    Args:
        out (Path): Folder for what is written.
        minutes (float): For all parts together.
        machine (dict): From :func:`gpu_machine.look`.
    """

    def __init__(self, out: Path, minutes: float, machine: dict):
        self.out, self.minutes, self.machine = out, minutes, machine
        self.end = time.monotonic() + 60 * minutes
        self.parts: dict[str, dict] = {}
        self.plan = GPU if machine['gpus'] else CPU
        if any(float(gpu['capability']) < 8 for gpu in machine['gpus']):
            # They only emulate bf16.
            self.plan = replace(self.plan, precision='fp16')
        self.ranks = len(machine['gpus']) or 2
        if any('MIG' in gpu['name'] for gpu in machine['gpus']):
            self.ranks = 1
        out.mkdir(parents=True, exist_ok=True)
        self.log = out / 'check.log'
        self.log.write_text(f'{json.dumps(machine, indent=2)}\n')

    def run(self, *command: object, limit: float, stop: bool = False,
            **env: str) -> str:
        """What a command printed; it goes to the log.

        Args:
            limit (float): Seconds, after which it is ended. With ``stop``
                that is its usual end, with the status 143.

        Raises:
            TimeoutError: If it did not end in time.
            Failed: If it ended with another status than 0.
        """
        words = [str(word) for word in command]
        if words[0].endswith('.py'):
            words.insert(0, sys.executable)
        with open(self.log, 'a') as log:
            log.write(f'\n$ {" ".join(words)}\n')
        begin = self.log.stat().st_size
        with open(self.log, 'a') as log:
            process = subprocess.Popen(
                words, cwd=REPO, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, env={
                    **os.environ, 'GPU_CHECK': str(os.getpid()),
                    'PYTHON': sys.executable, **env})
        try:
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                process.terminate()
                if not stop:
                    raise TimeoutError(
                        f'it was ended after {limit:.0f} s; give more '
                        '--minutes') from None
                status = process.wait(120)
        finally:
            end_processes()
        with open(self.log, 'rb') as log:
            log.seek(begin)
            text = log.read().decode(errors='replace')
        if status != 0 and not (stop and status == 143):
            raise Failed(_reason(text, status))
        return text

    def figures(self, *command: object, limit: float) -> dict:
        """The tables of a subcommand of benchmark.py."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, 'figures.json')
            text = self.run(BENCHMARK, *command, '--json', file, limit=limit)
            for line in re.findall('.* does not fit .*', text):
                self.note(line)
            return json.loads(file.read_text())

    def note(self, text: str) -> None:
        self.parts[self.part]['notes'].append(text)
        print(f'[{text}]', end=' ', flush=True)

    def try_part(self, name: str, part: Callable) -> None:
        begin = time.monotonic()
        limit = min(self.end - begin, max(
            300 if name == 'tests' else 120,
            60 * self.minutes * SHARES.get(name, 0)))
        self.part = name
        entry = self.parts[name] = dict(status='passed', rows=[], notes=[])
        print(f'{name} ...', end=' ', flush=True)
        try:
            if limit < 5:
                raise LeftOut('there was no time left')
            part(self, limit, entry['rows'])
        except LeftOut as reason:
            entry['status'] = f'left out: {reason}'
        except TimeoutError as error:
            entry['status'] = f'unfinished: {error}'
        except Failed as error:
            entry['status'] = f'failed: {error}'
        entry['seconds'] = round(time.monotonic() - begin, 1)
        print(f'{entry["status"]} ({entry["seconds"]:.0f} s)', flush=True)
        self.write()

    def write(self) -> None:
        (self.out / 'check.json').write_text(json.dumps(
            dict(machine=self.machine, parts=self.parts), indent=2))
        (self.out / 'table.md').write_text(table(self.machine, self.parts))


def _reason(text: str, status: int) -> str:
    """The last line that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines
              if re.match(r'(error:|FAILED|\w*(\.\w+)*Error\b)', line)]
    last = (errors or lines or ['it printed nothing'])[-1]
    counts = re.findall(r'^\d+ failed.*', text, re.MULTILINE)  # pytest's
    return f'{"; ".join([*counts[-1:], last[:300]])} (status {status})'


def end_processes() -> None:
    """Also those of torchrun, which are in sessions of their own."""
    mark = f'GPU_CHECK={os.getpid()}'.encode()
    for _ in range(50):
        found = []
        for folder in Path('/proc').glob('[0-9]*'):
            try:
                if (mark in (folder / 'environ').read_bytes().split(b'\0')
                        and '\nState:\tZ' not in (
                            folder / 'status').read_text()):
                    found.append(int(folder.name))
            except OSError:  # it has just ended, or belongs to another user
                continue
        if not found:
            return
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(.1)


def data(check: Check, limit: float, rows: list) -> None:
    """Write the sets that the other parts use."""
    check.run(sys.executable, '-c', GENERATE, check.folder / 'photographs',
              limit=limit)
    check.run('tools/dataset_converters/refshapes.py', '--out',
              check.folder / 'refshapes', '--num-train', check.plan.pictures,
              '--num-eval', 8 + check.plan.pictures // 20, limit=limit)


def tests(check: Check, limit: float, rows: list) -> None:
    text = check.run(sys.executable, '-m', 'pytest', '-q', '-m', 'not slow',
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
              if row['mode'] == 'default']
    if speeds and check.machine['gpus']:
        row['cores for one GPU'] = max(speeds) / rate
    rows.append(row)


def ranks(check: Check, limit: float, rows: list) -> None:
    """Sums over all GPUs, and a sharded training on them."""
    if check.machine['gpus'] and not check.machine['nccl']:
        raise LeftOut('this PyTorch has no NCCL')
    file = check.folder / 'sums.json'
    check.run(sys.executable, '-m', 'torch.distributed.run', '--standalone',
              f'--nproc_per_node={check.ranks}', BENCHMARK, 'allreduce',
              '--megabytes', 256 if check.machine['gpus'] else 4, '--json',
              file, limit=limit / 3)
    rows += json.loads(file.read_text())['sums']
    if check.ranks == 1:
        del rows[0]['bus, GB/s']
    if not check.machine['gpus']:
        return
    sharded = next((REPO / 'configs/cris/sharded').glob('*.py'))
    check.run('bash', 'tools/dist_train.sh', sharded, check.ranks,
              '--work-dir', check.folder / 'sharded', '--cfg-options',
              *_set(check, 'train'), 'train_dataloader.batch_size=2',
              f'train_dataloader.dataset.indices={16 * check.ranks}',
              'model.backbone.init_cfg=None', 'train_cfg.max_epochs=1',
              'train_cfg.val_interval=9', 'default_hooks.logger.interval=1',
              limit=limit * 2 / 3,
              MASTER_PORT=str(20000 + os.getpid() % 9000))
    rows.append({'sharded training': f'8 steps on {check.ranks} GPU(s)'})


def losses(check: Check, limit: float, rows: list) -> None:
    """One rank, two and four have the same losses."""
    if not check.machine['gpus']:
        raise LeftOut('without GPUs it takes minutes: pytest -m slow '
                      'tests/test_tools/test_ranks.py')
    if check.ranks == 1:
        raise LeftOut('there is one GPU')
    text = check.run(
        sys.executable, '-m', 'pytest', '-q', '-m', 'slow', '-k', 'losses',
        '-p', 'no:cacheprovider', 'tests/test_tools/test_ranks.py',
        limit=limit)
    rows.append({'losses': text.strip().splitlines()[-1].strip('= ')})


def training(check: Check, limit: float, rows: list) -> None:
    """RefShapes for the time that is left; then SIGTERM, as on a cluster."""
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


def table(machine: dict, parts: dict) -> str:
    """Markdown, for the README."""
    cards = [f'{gpu["name"]} ({gpu["total"] / 1e9:.0f} GB)'
             for gpu in machine['gpus']]
    text = '; '.join([
        f'{len(cards)} x {", ".join(dict.fromkeys(cards))}' if cards
        else 'No GPU', f'{machine["cores"]} CPU cores, {machine["cpu"]}',
        f'driver {machine["driver"]}', f'torch {machine["torch"]}',
        f'commit {machine["commit"]}', machine['date'],
        f'{machine["minutes"]:g} minutes']) + '\n'
    for remark in machine['remarks']:
        text += f'\n{remark}\n'
    for name, part in parts.items():
        found = '; '.join([part['status'], *part['notes']])
        text += f'\n**{name}**: {found}\n'
        for heads, rows in groupby(part['rows'], tuple):
            text += f'\n| {" | ".join(heads)} |\n|{"---|" * len(heads)}\n'
            for row in rows:
                text += f'| {" | ".join(map(_cell, row.values()))} |\n'
    return text


def _cell(value: object) -> str:
    return f'{value:.3g}' if isinstance(value, float) else str(value)


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
        (out / 'check.log').touch()
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
    check = Check(out, args.minutes, machine)
    print(f'Log: {check.log}')
    check.folder = Path(tempfile.mkdtemp(dir=check.out))
    try:
        for part in (data, tests, speed, evaluation, loader, ranks, losses,
                     training):
            check.try_part(part.__name__, part)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    finally:
        end_processes()
        shutil.rmtree(check.folder, ignore_errors=True)
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
