# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Feed damaged files to everything that reads one.

Bytes of valid files are flipped, cut, spliced and doubled, values of
annotations are replaced by nasty ones. A reader may answer with a result or
with a ValueError or OSError. Any other exception, the end of the process, a
minute without an answer, a process that is started, and a file that is opened
outside the folder are findings; the input is kept. Memory is limited.

Example:
    python tools/misc/fuzz.py --seconds 300 --out work_dirs/fuzz
"""
import argparse
import json
import multiprocessing
import os
import os.path as osp
import pickle
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from cris.datasets.masks import decode_mask, read_mask
from cris.datasets.readers.refer import load_refer
from cris.io.checkpoints import read_checkpoint
from cris.io.images import image_size

MEMORY = 4 << 30  # bytes beyond what the process has at its start
MINUTE = 60
NASTY = [
    None, True, -1, 0, 2**31, 2**63, 2**64, 10**400, 1e308, float('nan'),
    float('inf'), -0.5, '', '../../x', '/etc/passwd', '\0', '\ud800',
    'a' * 10000, b'\xff', [], {}, [[]], [[1e308] * 6], [[float('nan')] * 6],
    [[0, 0, 9e6, 9e6, 0, 9e6]], dict(size=[2**31, 2**31], counts='0'),
    dict(size=[48, 64], counts='o' * 5000), dict(size=[48, 64], counts=[-1])
]
FORBIDDEN = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'os.spawn',
             'subprocess.Popen', 'socket.connect')


def annotations() -> tuple:
    """A small set in the REFER layout."""
    box = [5, 5, 30, 5, 30, 40, 5, 40]
    rle = dict(size=[48, 64], counts=[100, 50, 48 * 64 - 150])
    instances = dict(
        images=[dict(id=1, file_name='1.jpg', height=48, width=64)],
        annotations=[
            dict(id=i, image_id=1, category_id=1, segmentation=s)
            for i, s in enumerate([[box], rle])
        ],
        categories=[dict(id=1, name='thing')])
    refs = [
        dict(
            ref_id=i,
            ann_id=i,
            image_id=1,
            split='train',
            sentences=[dict(sent_id=i, sent='the thing')]) for i in (0, 1)
    ]
    return instances, refs


def replace(value: Any, rng: random.Random) -> Any:
    """A copy with a nasty value at a random place."""
    if isinstance(value, (list, dict)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        chosen = rng.choice(keys)
        copy = value.copy()
        copy[chosen] = replace(copy[chosen], rng)
        return copy
    return rng.choice(NASTY)


def damage(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut off, moved, doubled or set to extremes."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        # Headers and directories are at the ends.
        reach = rng.choice([len(data), min(200, len(data))])
        at = min(rng.randrange(reach + 1), max(len(data) - 1, 0))
        if rng.random() < 0.3:
            at = max(len(data) - 1 - at, 0)
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.randrange(256)
        elif kind == 2 and rng.random() < 0.3:
            del data[at:]
        elif kind == 3:
            data[at:at + 8] = rng.choice([b'\xff', b'\0', b'\x7f']) * 8
        elif kind == 4:
            del data[at:at + rng.randrange(1, 40)]
        else:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start:start + rng.randrange(1, 100)]
    return bytes(data)


def checkpoint(zipped: bool) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        torch.save(
            dict(state_dict=nn.Linear(3, 2).state_dict(), meta=dict(epoch=1)),
            file.name,
            _use_new_zipfile_serialization=zipped)
        return open(file.name, 'rb').read()


def torchscript() -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)).save(file.name)
        return open(file.name, 'rb').read()


def write(path: str, content: bytes) -> str:
    with open(path, 'wb') as file:
        file.write(content)
    return path


def targets(root: str) -> dict[str, tuple]:
    """By format: how an input is made, its file, and what reads it."""
    instances, refs = annotations()
    picture = np.tile(np.arange(64, dtype=np.uint8), (3, 48, 1)).transpose(
        1, 2, 0)
    ann = write(
        osp.join(root, 'instances.json'), json.dumps(instances).encode())
    split = write(osp.join(root, 'refs(unc).p'), pickle.dumps(refs, 2))

    def encoded(suffix: str) -> bytes:
        return cv2.imencode(suffix, picture)[1].tobytes()

    def bytes_of(content: bytes) -> Callable:
        return lambda rng: damage(content, rng)

    def refs_pickle(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return pickle.dumps(replace(refs, rng), rng.randrange(6))
        return damage(pickle.dumps(refs, rng.randrange(6)), rng)

    def instances_json(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return json.dumps(replace(instances, rng), default=str).encode()
        return damage(json.dumps(instances).encode(), rng)

    def rle(rng: random.Random) -> bytes:
        counts = damage(b'Xk02U1M3N1N200N1' * 3, rng).decode('latin-1')
        return json.dumps(dict(size=[48, 64], counts=counts)).encode()

    def read_rle(path: str) -> None:
        with open(path) as file:
            decode_mask(json.load(file), 48, 64)

    def read_refer(path: str) -> None:
        load_refer(path if path.endswith('n') else ann,
                   path if path.endswith('p') else split, 'train')

    found = {
        'refs pickle': (refs_pickle, 'damaged.p', read_refer),
        'instances.json': (instances_json, 'damaged.json', read_refer),
        'RLE string': (rle, 'rle.txt', read_rle),
    }
    for name in ('.jpg', '.png', '.bmp', '.tiff', '.webp'):
        found[f'image {name}'] = (bytes_of(encoded(name)), f'a{name}',
                                  image_size)
    found['mask .png'] = (bytes_of(encoded('.png')), 'mask.png',
                          lambda path: read_mask(path, 48, 64))
    for name, content, file in (('.pth', checkpoint(True), 'a.pth'),
                                ('legacy .pth', checkpoint(False), 'b.pth'),
                                ('.safetensors',
                                 save(dict(a=torch.ones(3))),
                                 'a.safetensors'), ('TorchScript',
                                                    torchscript(), 'a.pt')):
        found[name] = (bytes_of(content), file, read_checkpoint)
    return found


def child(name: str, root: str, seed: int, first: int, until: float, most: int,
          tried: Any) -> None:
    """Try inputs until the time is over, and count them in ``tried``."""
    make, file, read = targets(root)[name]
    path = osp.join(root, file)
    size = int(open('/proc/self/statm').read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # libraries complain there
    violations = []
    allowed = (root, sys.prefix, sys.base_prefix, '/proc', '/dev', '/sys')

    def audit(event: str, args: tuple) -> None:
        if event in FORBIDDEN:
            violations.append(f'{event} {args}')
        elif event == 'open' and isinstance(args[0], str) and not (
                osp.realpath(args[0]).startswith(allowed)):
            violations.append(f'open {args[0]}')

    write(path, make(random.Random(0)))
    try:
        read(path)  # what is imported late is imported now
    except (ValueError, OSError):
        pass
    sys.addaudithook(audit)
    for number in range(first, most):
        if time.time() > until:
            break
        tried.value = number + 1
        rng = random.Random(f'{seed}-{name}-{number}')
        write(path, make(rng))
        try:
            read(path)
        except (ValueError, OSError):
            pass
        except BaseException:
            violations.append(traceback.format_exc())
        if violations:
            write(osp.join(root, 'error'), '\n'.join(violations).encode())
            os._exit(3)


def fuzz(name: str, seed: int, seconds: float, most: int, out: str) -> tuple:
    """Inputs tried and findings of one format."""
    findings = first = 0
    until = time.time() + seconds
    context = multiprocessing.get_context('fork')
    tried = context.Value('q', 0, lock=False)
    with tempfile.TemporaryDirectory() as root:
        while first < most and time.time() < until and findings < 5:
            error = osp.join(root, 'error')
            write(error, b'')
            process = context.Process(
                target=child,
                args=(name, root, seed, first, until, most, tried))
            process.start()
            process.join(seconds + MINUTE)
            hangs = process.is_alive()
            if hangs:
                process.kill()
                process.join()
            first = tried.value
            if process.exitcode == 0:
                break
            findings += 1
            file = osp.join(root, targets(root)[name][1])
            os.makedirs(out, exist_ok=True)
            kept = osp.join(out, f'{findings}_{osp.basename(file)}')
            os.replace(file, kept)
            print(f'{name}: {kept}: ' + (
                'it hangs' if hangs else open(error).read()
                or f'the process ended with {process.exitcode}'))
    return first, findings


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0])
    parser.add_argument('--seconds', type=float, default=300, help='in all')
    parser.add_argument(
        '--inputs', type=int, default=sys.maxsize, help='most per format')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--out', default='work_dirs/fuzz', help='where findings are kept')
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        names = list(targets(root))
    total = found = 0
    for name in names:
        tried, findings = fuzz(name, args.seed, args.seconds / len(names),
                               args.inputs, args.out)
        print(f'{name:16}{tried:9} inputs, {findings} findings', flush=True)
        total, found = total + tried, found + findings
    print(f'{"in all":16}{total:9} inputs, {found} findings')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
