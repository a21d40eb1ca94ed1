"""What the experiments on the published weights of Wan share.

  python -m spacetime encode --checkpoint=WAN --data=CLIPS --out=CACHE
  python -m spacetime train --config=experiments/wan_t2v_1_3b.py \
    --checkpoint=WAN --workdir=DIR --config.data.dir=CACHE

--config.lora.rank=16 --config.optimizer.learning_rate=1e-4 trains low-rank
pairs instead of every parameter.
"""

TEXT = dict(  # UMT5-XXL
  kind='frozen',
  length=512,
  vocab_size=256384,
  d_model=4096,
  d_kv=64,
  num_heads=64,
  d_ff=10240,
  num_layers=24,
  dtype='bfloat16',
)
AUTOENCODERS = {
  '2.1': dict(
    base_dim=96,
    z_dim=16,
    latents_mean=(
      *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
      *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ),
    latents_std=(
      *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
      *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
  ),
  # Its latents' mean and scale come with the weights.
  '2.2': dict(
    base_dim=160,
    decoder_base_dim=256,
    z_dim=48,
    is_residual=True,
    patch_size=2,
  ),
}


def get_sections(
  *, autoencoder: str, shift: float, size, fps: int, batch: int, mesh: dict
) -> dict:
  """All but `model`: the data, the frozen networks and a gentle fine-tune."""
  frames, height, width = size
  return dict(
    stage='diffusion',
    seed=0,
    data=dict(
      name='cache',
      dir='cache',
      clips=0,
      held_out_clips=0,
      frames=frames,
      height=height,
      width=width,
      batch_size=batch,
      caption_dropout=0.1,
      crop=None,
      fps=fps,
    ),
    autoencoder=dict(kind='wan', **AUTOENCODERS[autoencoder]),
    text=dict(TEXT),
    flow=dict(prediction='velocity', shift=shift),
    lora=dict(rank=0, alpha=16.0, dropout=0.0),
    optimizer=dict(name='adamw', learning_rate=1e-5, warmup=100, decay=0.2),
    mesh=mesh,
    train=dict(
      steps=2000,
      ema=0.99,
      accumulate=1,
      log_every=10,
      skip_nan=True,
      spike=0.0,
      evaluate_every=200,
      sheet_every=0,  # nothing in a run decodes
      checkpoint_every=200,
      keep=2,
      held_out=4,
    ),
    sampling=dict(
      steps=50,
      solver='unipc',
      guidance=5.0,
      interval=(0.0, 1.0),
      shift=shift,
      schedule='published',
    ),
  )
