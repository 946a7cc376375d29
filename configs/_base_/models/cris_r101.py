_base_ = './cris_r50.py'
model = dict(backbone=dict(model_name='RN101'))
