# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""srun as far as tools/slurm_*.sh need it, with all nodes on this machine.

Every node has its own TMPDIR, and its own HOME in $FAKE_NODES; with
FAKE_DISKS=own also its own current folder, as if that was on a local disk.
After a task that failed, the others get SIGTERM, and 5 seconds later SIGKILL.
A signal to srun is passed on to all tasks.
"""
import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

parser = argparse.ArgumentParser(prog='srun', allow_abbrev=False)
parser.add_argument('-p', '--partition')
parser.add_argument('--job-name')
parser.add_argument('--gres')
parser.add_argument('--ntasks', type=int, default=1)
parser.add_argument('--ntasks-per-node', type=int, default=1)
parser.add_argument('--cpus-per-task', type=int)
parser.add_argument('--kill-on-bad-exit', type=int, default=0)
parser.add_argument('command', nargs=argparse.REMAINDER)
args = parser.parse_args()
nodes = -(-args.ntasks // args.ntasks_per_node)
names = f'node[0-{nodes - 1}]' if nodes > 1 else 'node0'
tasks = []
# Short paths: those of sockets have at most 107 characters.
temporary = [tempfile.mkdtemp() for _ in range(nodes)]


def start(rank):
    node, local = divmod(rank, args.ntasks_per_node)
    home, disk = (Path(os.environ['FAKE_NODES'], f'node{node}', name)
                  for name in ('home', 'disk'))
    for folder in (home, disk):
        folder.mkdir(parents=True, exist_ok=True)
    own = os.environ.get('FAKE_DISKS') == 'own'
    tasks.append(subprocess.Popen(
        args.command, cwd=disk if own else None,
        env={'SLURM_JOB_ID': '71', **os.environ,
             'HOME': str(home), 'TMPDIR': temporary[node],
             'SLURM_STEP_ID': '0', 'SLURM_NTASKS': str(args.ntasks),
             'SLURM_NODELIST': names, 'SLURM_STEP_NODELIST': names,
             'SLURM_NNODES': str(nodes), 'SLURM_NODEID': str(node),
             'SLURM_PROCID': str(rank), 'SLURM_LOCALID': str(local)}))


def signal_all(number, _=None):
    for task in tasks:
        if task.poll() is None:
            task.send_signal(number)


def status(task):
    """128 + N after signal N, as srun reports it."""
    code = task.poll()
    return 128 - code if code is not None and code < 0 else code


for rank in range(args.ntasks):
    start(rank)
signal.signal(signal.SIGTERM, signal_all)
Path(os.environ['FAKE_NODES'], 'srun.pid').write_text(str(os.getpid()))
killed_at = None
while None in (states := [status(task) for task in tasks]):
    if args.kill_on_bad_exit and any(states) and killed_at is None:
        print(f'srun: error: exit statuses {states}', file=sys.stderr)
        signal_all(signal.SIGTERM)
        killed_at = time.monotonic() + 5
    if killed_at is not None and time.monotonic() > killed_at:
        signal_all(signal.SIGKILL)
    time.sleep(0.05)
for folder in temporary:
    shutil.rmtree(folder, ignore_errors=True)
print(f'srun: exit statuses {states}', file=sys.stderr)
sys.exit(max(states))
