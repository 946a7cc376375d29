# The small model on RefShapes with expressions for no, one or several
# objects: it also says whether there is a referent.
#   python tools/dataset_converters/refshapes.py --out data/refshapes --num-train 4000 --generalized
#   python tools/train.py configs/cris/cris_tiny-gen_1xb8-2e_refshapes-128x128.py --amp
# Hardware: 2 CPU cores. 1 x 8 images x 10 expressions = 80. mIoU is over
# expressions with a referent; gIoU counts all.
_base_ = [
    '../_base_/models/cris_tiny-fine.py',
    '../_base_/datasets/refshapes.py',
    '../_base_/schedules/schedule_scratch.py',
    '../_base_/default_runtime.py'
]
# From the small model that always answers.
load_from = 'checkpoints/cris_tiny_1xb8-6e_refshapes-128x128-69206921.safetensors'
model = dict(decode_head=dict(existence=True, existence_loss_weight=0.2))
dataset = dict(split_file='grefs(unc).json')
# A picture has 10 refs at most: 6 of one object, 2 of none, 2 of several.
train_dataloader = dict(dataset=dict(**dataset, num_expressions=10))
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(type='RefSegMetric', generalized=True)
test_evaluator = val_evaluator
optim_wrapper = dict(
    optimizer=dict(lr=6e-4),  # half that from scratch
    paramwise_cfg=dict(
        custom_keys={'decode_head.existence': dict(lr_mult=8.0)}))  # new
train_cfg = dict(max_epochs=2, val_interval=2)
auto_scale_lr = dict(num_expressions=10)
default_hooks = dict(checkpoint=dict(save_best='gIoU'))
