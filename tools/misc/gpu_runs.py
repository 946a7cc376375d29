# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Parts of a check: processes with a limit, a log, and a table."""
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
from itertools import groupby
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
BENCHMARK = 'tools/analysis_tools/benchmark.py'
#: Seconds that a part may take, however small its share.
LEAST = 45


class LeftOut(Exception):
    """Why a part was not tried."""


class Failed(Exception):
    """What went wrong in a part."""


class Check:
    """All parts, and what they wrote.

    Args:
        out (Path): Existing folder for what is written.
        minutes (float): For all parts together.
        machine (dict): From :func:`gpu_machine.look`.
        plan (Any): For the parts.
    """

    def __init__(self, out: Path, minutes: float, machine: dict, plan: Any):
        self.out, self.minutes, self.machine = out, minutes, machine
        self.plan = plan
        self.end = time.monotonic() + 60 * minutes
        self.parts: dict[str, dict] = {}
        self.log = out / 'check.log'
        self.log.write_text(f'{json.dumps(machine, indent=2)}\n')
        self.folder = Path(tempfile.mkdtemp(dir=out))

    def close(self) -> None:
        """End what still runs, and remove what is not to be kept."""
        end_processes()
        shutil.rmtree(self.folder, ignore_errors=True)

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
        begin, start = self.log.stat().st_size, time.monotonic()
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
        with open(self.log, 'a') as log:
            log.write(f'\n[{time.monotonic() - start:.1f} s]\n')
        if status != 0 and not (stop and status == 143):
            raise Failed(_reason(text, status))
        return text

    def figures(self, *command: object, limit: float) -> dict:
        """The tables of a subcommand of benchmark.py."""
        file = self.folder / 'figures.json'
        self.run(BENCHMARK, *command, '--json', file, limit=limit)
        return json.loads(file.read_text())

    def note(self, text: str) -> None:
        self.parts[self.part]['notes'].append(text)
        print(f'[{text}]', end=' ', flush=True)

    def try_part(self, part: Callable, share: float) -> None:
        """Run a part for at most this share of the time that is left."""
        begin, name = time.monotonic(), part.__name__
        left = self.end - begin
        limit = min(left, max(LEAST, share * left))
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
    # Of torchrun's ranks the first error; what torchrun says comes last.
    errors = [line for line in lines if re.match(
        r'(\[rank\d+\]: )?(error:|FAILED|\w*(\.\w+)*Error\b)', line)
        and 'ChildFailedError' not in line]
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
