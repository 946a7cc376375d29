# The paper's recipe: fp16, Adam without weight decay, CLIP at a tenth of the
# rate except for its positional embeddings. tools/train.py switches fused off
# where torch cannot do it (on a CPU before 2.4).
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='Adam', lr=1e-4, fused=True),
    constructor='GroupedOptimWrapperConstructor',
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            'positional_embedding': dict(lr_mult=1.0)
        }))
param_scheduler = [
    dict(type='MultiStepLR', milestones=[35], gamma=0.1, by_epoch=True)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=50, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=64)  # 8 GPUs x 8
sync_bn = 'torch'
