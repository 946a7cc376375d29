# From scratch on little data: one rate for all parts, warm-up, then a cosine
# down to zero.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.2e-3, weight_decay=0.01, fused=True),
    clip_grad=dict(max_norm=1.0),
    constructor='GroupedOptimWrapperConstructor')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=100, by_epoch=False),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=50, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
# The rate is for 8 images x 8 expressions.
auto_scale_lr = dict(enable=False, base_batch_size=8, num_expressions=8)
