_base_ = [
    '../_base_/models/cris_tiny.py', '../_base_/datasets/refshapes_gen.py',
    '../_base_/schedules/schedule_scratch.py', '../_base_/default_runtime.py'
]
model = dict(decode_head=dict(existence=True, existence_loss_weight=0.2))
load_from = 'checkpoints/cris_tiny_1xb8-3e_refshapes-160x160-5fdc2c99.safetensors'
optim_wrapper = dict(optimizer=dict(lr=6e-4))
train_cfg = dict(max_epochs=1, val_interval=1)
auto_scale_lr = dict(num_expressions=10)
default_hooks = dict(checkpoint=dict(save_best='gIoU'))
