# R50 on RefCOCO with parameters, gradients and optimizer sharded over ranks.
#   bash tools/dist_train.sh configs/cris/sharded/cris_r50_8xb8-amp-50e-fsdp_refcoco-416x416.py 8
# Hardware: 8 GPUs x 8 = 64. The recipe is that without sharding, with SyncBN;
# not run on GPUs here.
_base_ = '../cris_r50_8xb8-amp-50e_refcoco-416x416.py'
# A fused optimizer does not tell the other ranks of an overflow in fp16.
optim_wrapper = dict(use_fsdp=True, optimizer=dict(fused=False))
runner_type = 'FlexibleRunner'
strategy = dict(
    type='ShardedStrategy',
    sync_bn='torch',
    state_dict_cfg='full',  # the same weights as without sharding
    model_wrapper=dict(type='MMFullyShardedDataParallel', use_orig_params=True))
