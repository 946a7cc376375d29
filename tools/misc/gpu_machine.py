# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What GPUs a machine has, and whether this PyTorch can use them."""
import json
import os
import shutil
import subprocess
import sys

_LOOK = '''
import json, warnings
import torch
gpus = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            gpu = dict(name=properties.name, total=properties.total_memory,
                       capability=f'{properties.major}.{properties.minor}')
            try:
                gpu['free'] = torch.cuda.mem_get_info(i)[0]
            except RuntimeError as error:
                gpu['error'] = str(error).splitlines()[0]
            gpus.append(gpu)
print(json.dumps(dict(
    torch=torch.__version__, cuda=torch.version.cuda, gpus=gpus,
    nccl=torch.distributed.is_available()
    and torch.distributed.is_nccl_available(),
    warnings=[str(w.message) for w in caught])))
'''


class Unusable(Exception):
    """There is a GPU, but PyTorch cannot use it."""


def look() -> dict:
    """Versions, ``gpus`` (name, capability, bytes in total and free) as
    PyTorch finds them, and the names that the driver's nvidia-smi lists.

    Raises:
        Unusable: If PyTorch fails.
    """
    done = subprocess.run([sys.executable, '-c', _LOOK], capture_output=True,
                          text=True)
    if done.returncode:
        raise Unusable('PyTorch cannot look for GPUs: '
                       + (done.stderr.splitlines() or ['no reason'])[-1])
    machine = json.loads(done.stdout.splitlines()[-1])
    machine.update(driver='none', listed=[],
                   cores=len(os.sched_getaffinity(0)), cpu=_cpu(),
                   visible=os.environ.get('CUDA_VISIBLE_DEVICES'))
    if shutil.which('nvidia-smi'):
        try:
            lines = subprocess.run(
                ['nvidia-smi', '--query-gpu=driver_version,name',
                 '--format=csv,noheader'], capture_output=True, text=True,
                timeout=60).stdout.splitlines()
        except subprocess.TimeoutExpired:
            lines = []
        rows = [line.split(', ', 1) for line in lines if ', ' in line]
        if rows:
            machine.update(driver=rows[0][0], listed=[r[1] for r in rows])
    return machine


def _cpu() -> str:
    try:
        with open('/proc/cpuinfo') as file:
            return next(line.partition(':')[2].strip() for line in file
                        if line.startswith('model name'))
    except (OSError, StopIteration):
        return 'unknown'


def judge(machine: dict) -> list[str]:
    """What to know before the figures are read, a sentence each.

    Raises:
        Unusable: If there is a GPU that this PyTorch cannot use.
    """
    torch = f'PyTorch {machine["torch"]}'
    if not machine['gpus']:
        small = ('a short run on the CPU, at small sizes. Its figures are no '
                 'results.')
        if machine['visible'] in ('', '-1'):
            return [f'CUDA_VISIBLE_DEVICES hides all GPUs: {small}']
        warned = any('CUDA' in line or 'NVIDIA' in line
                     for line in machine['warnings'])
        if not machine['listed'] and not warned:
            return [f'No GPU was found: {small}']
        found = ('nvidia-smi lists ' + ', '.join(machine['listed'])
                 if machine['listed'] else 'there is a driver')
        if machine['visible']:
            found += f' (CUDA_VISIBLE_DEVICES={machine["visible"]})'
        if machine['cuda'] is None:
            raise Unusable(f'{found}, but {torch} is built without CUDA: '
                           'install one with it')
        said = ' '.join(machine['warnings'])
        if 'driver' in said and 'too old' in said:
            raise Unusable(
                f'the driver {machine["driver"]} is too old for {torch}, '
                f'which is built for CUDA {machine["cuda"]}: update the '
                'driver, or install a PyTorch for an older CUDA')
        raise Unusable(f'{found}, but {torch} finds none: '
                       f'{said or "it gives no reason"}')
    remarks = []
    for index, gpu in enumerate(machine['gpus']):
        name = f'GPU {index} ({gpu["name"]})'
        if 'error' in gpu:
            raise Unusable(f'{name} cannot be used: {gpu["error"]}. Choose '
                           'others with CUDA_VISIBLE_DEVICES')
        total, taken = gpu['total'] / 1e9, (gpu['total'] - gpu['free']) / 1e9
        # The driver itself takes some hundred megabytes.
        if taken > 1 + .02 * total:
            remarks.append(
                f'{name} is in use by others: {taken:.0f} of {total:.0f} GB '
                'are taken, so that speeds will be lower and large batches '
                'may not fit.')
        if 'MIG' in gpu['name']:
            remarks.append(
                f'{name} is an MIG slice: the figures are those of the '
                'slice. NCCL connects no slices, so that one rank is tried.')
    if not machine['nccl']:
        remarks.append(f'{torch} has no NCCL: several GPUs and sharding are '
                       'not tried.')
    remarks += [line.strip() for line in machine['warnings']]
    return remarks
