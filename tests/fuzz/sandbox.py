# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Run a reader on generated files in a process of its own."""
import multiprocessing
import os
import os.path as osp
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

MEMORY = 2 << 30  # bytes that a reader may add
FORBIDDEN = ('os.', 'subprocess.', 'socket.', 'ctypes.', 'shutil.', 'urllib.',
             'webbrowser.')
HARMLESS = ('os.listdir', 'os.scandir', 'os.fwalk', 'os.walk')

settings.register_profile(
    'quick', max_examples=150, derandomize=True, database=None, deadline=None,
    suppress_health_check=list(HealthCheck))
settings.register_profile(
    'nightly', settings.get_profile('quick'), max_examples=100_000,
    derandomize=False)
PROFILE = settings.get_profile(os.environ.get('HYPOTHESIS_PROFILE', 'quick'))


def examine(path: Path, valid: bytes, contents: SearchStrategy[bytes],
            read: Callable[[str], Any]) -> None:
    """Fail unless a reader survives every content of a file.

    It may return, or raise a ValueError or OSError. Another exception, the
    end of the process, a minute without an answer, more than ``MEMORY``, a
    file outside the folder, anything in ``FORBIDDEN`` and code from a string
    fail. The file is left behind.

    Args:
        path (Path): The file, alone with its companions in a folder.
        valid (bytes): Content that the reader must accept.
        contents (SearchStrategy[bytes]): Contents to try.
        read (Callable): Gets the path.
    """
    report = path.with_name('report.txt')
    report.write_text('the process ended, or gave no answer in a minute')
    process = multiprocessing.get_context('fork').Process(
        target=_child, args=(path, valid, contents, read, report))
    process.start()
    process.join()
    assert process.exitcode == 0, (
        f'{path}: exit code {process.exitcode}, {report.read_text()}')


def _child(path: Path, valid: bytes, contents: SearchStrategy[bytes],
           read: Callable, report: Path) -> None:
    violations: list[str] = []
    reading = False
    allowed = tuple(map(osp.realpath, (
        path.parent, sys.prefix, sys.base_prefix, '/proc', '/dev', '/sys')))

    def audit(event: str, args: tuple) -> None:
        if not reading:
            return
        if event == 'open' and isinstance(args[0], str):
            if not osp.realpath(args[0]).startswith(allowed):
                violations.append(f'open {args[0]}')
        elif event == 'exec' and args[0].co_filename == '<string>' or (
                event.startswith(FORBIDDEN) and event not in HARMLESS):
            violations.append(f'{event} {args}')

    @settings(PROFILE)
    @given(contents)
    def survives(content: bytes) -> None:
        nonlocal reading
        path.write_bytes(content)
        signal.alarm(60)  # ends the process
        try:
            reading = True
            read(str(path))
        except (ValueError, OSError):
            pass
        finally:
            reading = False
        assert not violations, violations

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries complain there
    try:
        # Late imports happen now, those for unknown formats, too.
        path.write_bytes(b'?')
        with suppress(ValueError, OSError):
            read(str(path))
        path.write_bytes(valid)
        read(str(path))
        sys.addaudithook(audit)
        used = int(Path('/proc/self/statm').read_text().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, ) * 2)
        survives()
    except BaseException:
        report.write_text(traceback.format_exc())
        os._exit(3)
    os._exit(0)
