# R50 on RefCOCO with parameters, gradients and optimizer sharded over ranks.
#   bash tools/dist_train.sh configs/cris/sharded/cris_r50_8xb8-amp-50e-fsdp_refcoco-416x416.py 8
# Hardware: 8 GPUs x 8 = 64. Same recipe and scores as without sharding.
_base_ = '../cris_r50_8xb8-amp-50e_refcoco-416x416.py'
optim_wrapper = dict(use_fsdp=True)
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',  # the same checkpoints as without sharding
    model_wrapper=dict(type='MMFullyShardedDataParallel', use_orig_params=True))
