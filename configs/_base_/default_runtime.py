default_scope = 'mmseg'
custom_imports = dict(imports=['cris'], allow_failed_imports=False)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # The time-out, in seconds, must be well above that of data_timeout.
    dist_cfg=dict(backend='nccl', timeout=1800))
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='SafeCheckpointHook',
        interval=1,
        max_keep_ckpts=1,
        save_best='mIoU',
        rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # Pictures of the validation: default_hooks.visualization.num_images=8.
    visualization=dict(type='ReferVisualizationHook', num_images=0),
    exact_resume=dict(type='ExactResumeHook'),
    preemption=dict(type='PreemptionHook'),
    check_loss=dict(type='CheckLossHook', action='stop'),
    data_timeout=dict(type='DataTimeoutHook', seconds=300))
# Without SyncBN the ranks' batch statistics differ: average them.
custom_hooks = [dict(type='SyncBuffersHook')]
visualizer = dict(
    type='ReferLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(by_epoch=True)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
