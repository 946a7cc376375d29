# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""--help answers before anything heavy is imported."""
import sys

from conftest import REPO, run

TOOLS = [
    REPO / 'tools' / name for name in (
        'train.py', 'test.py', 'misc/print_config.py',
        'analysis_tools/benchmark.py', 'analysis_tools/calibrate.py',
        'analysis_tools/draw_predictions.py',
        'analysis_tools/get_flops.py', 'analysis_tools/mask_ceiling.py',
        'analysis_tools/report', 'analysis_tools/sweep_threshold.py',
        'misc/browse_dataset.py', 'model_converters/official_cris.py',
        'model_converters/publish_model.py')
]
CODE = '''
import runpy, sys
for path in sys.argv[1:]:
    sys.argv = [path, '--help']
    try:
        runpy.run_path(path, run_name='__main__')
    except SystemExit as stop:
        assert stop.code == 0, path
    heavy = {'cris', 'cv2', 'matplotlib', 'mmcv', 'mmengine', 'numpy', 'torch'}
    assert not heavy & sys.modules.keys(), path
'''


def test_help_imports_nothing_heavy():
    out = run(sys.executable, '-c', CODE, *TOOLS)
    assert out.count('usage: ') == len(TOOLS)
    assert out.count('--cfg-options KEY=VALUE') >= 3
